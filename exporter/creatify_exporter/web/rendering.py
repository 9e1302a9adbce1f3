"""Renders responses outside the event loop, few at a time, in the requested format and encoding.

Format and encoding are negotiated as in RFC 9110, section 12.
"""

import asyncio
import gzip
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics
from starlette.datastructures import Headers
from starlette.responses import Response

from creatify_exporter.metrics import ScrapeRegistry

# While one waits for the ledger, another can continue; more would slow down the event loop.
_AT_ONCE: Final = 2
# Bytes; smaller responses are not worth compressing.
_MIN_COMPRESSED: Final = 1000
# The default, 9, costs more than the rendering and saves only a few per cent.
_COMPRESSION: Final = 1

OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPINGS: Final = ("allow-utf-8", "underscores", "dots", "values")
# A q-value has at most three decimals; an invalid one counts as 0, a refusal.
_QUALITY: Final = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?", re.ASCII)
_VERSION: Final = re.compile(r"(\d+(\.\d+)*)?", re.ASCII)
# Quoted strings may contain commas and semicolons.
_ITEM: Final = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_PARAMETER: Final = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*"?)+')


class Renderer:
    """Renders in threads: thousands of series take a while, and rendering may wait for the ledger."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, "render")

    async def metrics(self, request: Headers, collect: Callable[[], ScrapeRegistry]) -> Response:
        """Answer a request with these headers with the metrics that `collect` returns."""
        media_type = content_type(", ".join(request.getlist("Accept")))
        # Without `escaping` and `version`, which would change names or claim a version that is not written.
        generate = openmetrics.generate_latest if media_type.startswith("application") else exposition.generate_latest
        answer = await self.render(request, lambda: generate(collect()), media_type)
        answer.headers["Vary"] = "Accept, Accept-Encoding"
        return answer

    async def render(self, request: Headers, make: Callable[[], bytes], media_type: str) -> Response:
        """Answer with what `make` returns, compressed if it is large enough and the request accepts gzip."""
        may_compress = accepts_gzip(", ".join(request.getlist("Accept-Encoding")))

        def work() -> tuple[bytes, bool]:
            body = make()
            if may_compress and len(body) >= _MIN_COMPRESSED:
                return gzip.compress(body, _COMPRESSION), True
            return body, False

        body, compressed = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        encoding = {"Content-Encoding": "gzip"} if compressed else {}
        return Response(body, headers={"Content-Type": media_type, "Vary": "Accept-Encoding", **encoding})


class _Range(NamedTuple):
    """One item of an `Accept` or `Accept-Encoding` header, in lower case."""

    name: str = ""
    quality: float = 0.0
    version: str = ""
    escaping: str = ""


def content_type(accept: str) -> str:
    """Return the content type for an `Accept` header: OpenMetrics if the client prefers it, otherwise the text format.

    OpenMetrics is always 1.0.0, whatever version is requested. A client that accepts neither format gets text, which is
    more helpful than a 406. All names here are valid in every escaping scheme, so the requested one is always true.
    """
    ranges = [each for each in _ranges(accept) if _VERSION.fullmatch(each.version)]
    openmetrics_range = _best(ranges, "application/openmetrics-text", "1.0.0")
    text_range = _best(ranges, "text/plain", "0.0.4")
    # If both are equally acceptable, OpenMetrics is for clients that name it.
    is_named = openmetrics_range.name == "application/openmetrics-text"
    is_preferred = openmetrics_range.quality > 0 and (openmetrics_range.quality, is_named) > (text_range.quality, False)
    media_type, asked = (OPENMETRICS, openmetrics_range) if is_preferred else (TEXT, text_range)
    return f"{media_type}; escaping={asked.escaping}" if asked.escaping in _ESCAPINGS else media_type


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether an `Accept-Encoding` header accepts gzip, and at least as much as no encoding."""
    qualities = {each.name: each.quality for each in _ranges(accept_encoding)}
    quality = qualities.get("gzip", qualities.get("x-gzip", qualities.get("*", 0.0)))
    return quality > 0 and quality >= qualities.get("identity", 0.0)


def _ranges(header: str) -> Iterator[_Range]:
    for item in _ITEM.findall(header):
        name, *parameters = [part.strip() for part in _PARAMETER.findall(item)] or [""]
        pairs = (parameter.partition("=") for parameter in parameters)
        values = {key.strip().lower(): value.strip().strip('"').lower() for key, _, value in pairs}
        quality = float(values.get("q", "1")) if _QUALITY.fullmatch(values.get("q", "1")) else 0.0
        yield _Range(name.lower(), quality, values.get("version", ""), values.get("escaping", ""))


def _best(ranges: list[_Range], media_type: str, version: str) -> _Range:
    """Return the most specific range for a media type; of equally specific ones, the one with the highest quality.

    Ranges that name this version come first, those that name another version last.
    """
    for name in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if matching := [each for each in ranges if each.name == name]:
            return max(matching, key=lambda each: (each.version == version, not each.version, each.quality))
    return _Range()
