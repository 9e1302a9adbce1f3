"""What answers are made of: few at a time, and one for all who wait for the same."""

import asyncio
import gzip
from collections.abc import Callable, Hashable, Mapping
from typing import Final

from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from creatify_exporter.exporter import Exporter, Scrape
from creatify_exporter.metrics import ScrapeRegistry

_AT_ONCE: Final = 2  # while one waits for the ledger, another may go on; more would keep the event loop waiting
LEAST_COMPRESSED: Final = 1000  # bytes; of less, compression saves nothing worth it
COMPRESSION: Final = 1  # 9, which is usual, costs more than the rendering and saves a few per cent of bytes


class Renderings:
    """Renders outside of the event loop: thousands of series take a while, and the ledger may have to be waited for.

    Who asks for what others wait for already gets what they get, unless that has been begun: then it may be older than
    the question.
    """

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._queued: dict[Hashable, asyncio.Task[bytes]] = {}

    async def scrape(self, headers: Mapping[str, str], scrape: Scrape, *, own: bool) -> Response:
        """Answer with what a scrape brought, in the format and the encoding that is asked for."""
        encode, content_type = _encoder(headers.get("Accept", ""))
        compressed = "gzip" in headers.get("Accept-Encoding", "")

        def work() -> bytes:
            body = encode(self._exporter.collect(scrape, own=own))
            return gzip.compress(body, COMPRESSION) if compressed and len(body) >= LEAST_COMPRESSED else body

        body = await self.render((content_type, compressed, own, scrape.identity), work)
        answer = Response(body, headers={"Content-Type": content_type, "Vary": "Accept"})
        if body.startswith(b"\x1f\x8b"):  # else the middleware says so
            answer.headers.update({"Content-Encoding": "gzip", "Vary": "Accept, Accept-Encoding"})
        return answer

    async def render(self, key: Hashable, work: Callable[[], bytes]) -> bytes:
        """Return what `work` does when its turn comes, or what that of an equal key did which waited already."""
        task = self._queued.get(key)
        if task is None:
            task = self._queued[key] = asyncio.create_task(self._render(key, work))
        return await asyncio.shield(task)  # one that goes away does not take it from the others

    async def _render(self, key: Hashable, work: Callable[[], bytes]) -> bytes:
        async with self._turns:
            del self._queued[key]
            return await asyncio.to_thread(work)


def _encoder(accept: str) -> tuple[Callable[[ScrapeRegistry], bytes], str]:
    """Return what renders OpenMetrics where it is asked for, else the classic text format, and its content type."""
    try:
        return choose_encoder(accept)
    except (ValueError, TypeError):  # a header that asks for no version there is
        return choose_encoder("")
