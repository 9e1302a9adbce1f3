"""How answers are made: outside of the event loop, few at a time, in the format and the encoding that is asked for."""

import asyncio
import gzip
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics
from starlette.datastructures import Headers
from starlette.responses import Response

from creatify_exporter.metrics import ScrapeRegistry
from creatify_exporter.web.negotiation import accepts_gzip, content_type

# While one waits for the ledger, another may go on; more would keep the event loop waiting.
_AT_ONCE: Final = 2
# Bytes; of less, compression saves nothing worth it.
_LEAST_COMPRESSED: Final = 1000
# 9, which is usual, costs more than the rendering and saves a few per cent of bytes.
_COMPRESSION: Final = 1


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
