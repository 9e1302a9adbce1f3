"""How answers are made: outside of the event loop, few at a time, in the format and the encoding that is asked for.

Format and encoding are negotiated by RFC 9110, section 12.
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

# While one waits for the ledger, another may go on; more would keep the event loop waiting.
_AT_ONCE: Final = 2
# Bytes; of less, compression saves nothing worth it.
_LEAST_COMPRESSED: Final = 1000
# 9, which is usual, costs more than the rendering and saves a few per cent of bytes.
_COMPRESSION: Final = 1

OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPINGS: Final = ("allow-utf-8", "underscores", "dots", "values")
# A q-value has at most three decimals; what is none of them is taken for a refusal.
_QUALITY: Final = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?", re.ASCII)
_VERSION: Final = re.compile(r"(\d+(\.\d+)*)?", re.ASCII)
# Commas and semicolons may stand in quotes.
_ITEM: Final = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_PARAMETER: Final = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*"?)+')


class Renderer:
    """Renders in threads: thousands of series take a while, and the ledger may have to be waited for."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, "render")

    async def metrics(self, request: Headers, collect: Callable[[], ScrapeRegistry]) -> Response:
        """Answer a request that has these headers with what `collect` returns."""
        media_type = content_type(", ".join(request.getlist("Accept")))
        # Their other arguments would change names, or claim a version that they do not write.
        generate = openmetrics.generate_latest if media_type.startswith("application") else exposition.generate_latest
        answer = await self.render(request, lambda: generate(collect()), media_type)
        answer.headers["Vary"] = "Accept, Accept-Encoding"
        return answer

    async def render(self, request: Headers, make: Callable[[], bytes], media_type: str) -> Response:
        """Answer with what `make` returns, compressed if it is worth it and the request's headers accept that."""
        may_compress = accepts_gzip(", ".join(request.getlist("Accept-Encoding")))

        def work() -> tuple[bytes, bool]:
            body = make()
            if may_compress and len(body) >= _LEAST_COMPRESSED:
                return gzip.compress(body, _COMPRESSION), True
            return body, False

        body, compressed = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        encoding = {"Content-Encoding": "gzip"} if compressed else {}
        return Response(body, headers={"Content-Type": media_type, "Vary": "Accept-Encoding", **encoding})


class _Range(NamedTuple):
    """One item of an `Accept…` header, in small letters."""

    name: str = ""
    quality: float = 0.0
    version: str = ""
    escaping: str = ""


def content_type(accept: str) -> str:
    """Return the format for an `Accept` header: OpenMetrics if the client prefers it, else the classic text format.

    Whichever version of OpenMetrics is asked for, 1.0.0 is what there is. A client that accepts neither gets text: an
    answer helps more than a 406. All names here are legal in every escaping scheme, so that the one that is asked for
    holds for the text as it is.
    """
    ranges = [each for each in _ranges(accept) if _VERSION.fullmatch(each.version)]
    openmetrics, text = _best(ranges, "application/openmetrics-text", "1.0.0"), _best(ranges, "text/plain", "0.0.4")
    # Of two that are equally welcome, OpenMetrics is for those that name it.
    is_named = openmetrics.name == "application/openmetrics-text"
    is_preferred = openmetrics.quality > 0 and (openmetrics.quality, is_named) > (text.quality, False)
    media_type, asked = (OPENMETRICS, openmetrics) if is_preferred else (TEXT, text)
    return f"{media_type}; escaping={asked.escaping}" if asked.escaping in _ESCAPINGS else media_type


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether an `Accept-Encoding` header prefers gzip to an answer as it is."""
    qualities = {each.name: each.quality for each in _ranges(accept_encoding)}
    rest = qualities.get("*", 0.0)
    gzip = qualities.get("gzip", qualities.get("x-gzip", rest))
    return gzip > 0 and gzip >= qualities.get("identity", 0.0)


def _ranges(header: str) -> Iterator[_Range]:
    for item in _ITEM.findall(header):
        name, *parameters = [part.strip() for part in _PARAMETER.findall(item)] or [""]
        pairs = (parameter.partition("=") for parameter in parameters)
        values = {key.strip().lower(): value.strip().strip('"').lower() for key, _, value in pairs}
        quality = float(values.get("q", "1")) if _QUALITY.fullmatch(values.get("q", "1")) else 0.0
        yield _Range(name.lower(), quality, values.get("version", ""), values.get("escaping", ""))


def _best(ranges: list[_Range], media_type: str, version: str) -> _Range:
    """Return the most specific range for a version of a media type, of equally specific ones that of highest quality.

    One that names another version says what is wanted only if there is no other.
    """
    for name in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if matching := [each for each in ranges if each.name == name]:
            return max(matching, key=lambda each: (each.version == version, not each.version, each.quality))
    return _Range()
