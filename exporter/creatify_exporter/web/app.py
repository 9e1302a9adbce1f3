"""The application: its routes, and its life from the first connection to SIGTERM."""

import asyncio
import math
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from creatify_exporter.config.schema import Config
from creatify_exporter.errors import ConfigError
from creatify_exporter.exporter import Exporter, Visit
from creatify_exporter.fetcher import Outcome
from creatify_exporter.web import landing_page as page
from creatify_exporter.web.middleware import WebMiddleware
from creatify_exporter.web.rendering import COMPRESSION, LEAST_COMPRESSED, Renderings
from creatify_exporter.web.server import LIMITS, Server

_SCRAPE_TIMEOUT: Final = "X-Prometheus-Scrape-Timeout-Seconds"

_log = structlog.get_logger()


class Application:
    """Answers requests from an exporter.

    `load` reads the configuration anew and raises `ConfigError`. `external_url` is where Prometheus finds this
    server, None for the address that it asks at. `middleware` decides who gets in, everybody without one.
    """

    def __init__(
        self,
        exporter: Exporter,
        load: Callable[[], Config],
        *,
        telemetry_path: str = "/metrics",
        external_url: str | None = None,
        middleware: WebMiddleware | None = None,
    ) -> None:
        self._exporter, self._load, self._middleware = exporter, load, middleware or WebMiddleware()
        self._telemetry_path, self._external_url = telemetry_path, external_url
        self._stop = asyncio.Event()
        self._renderings = Renderings(exporter)
        self._reloading = asyncio.Lock()
        self._reloads: set[asyncio.Task[str]] = set()  # a task that nobody refers to may be collected before it ends

    def app(self) -> Starlette:
        """Return the routes."""
        return Starlette(
            routes=[
                Route(self._telemetry_path, self._metrics),
                Route(f"{self._telemetry_path.rstrip('/')}/exporter", self._own_metrics),
                Route("/probe", self._probe),
                Route("/sd", self._discovery),
                Route("/-/healthy", _healthy),
                Route("/-/ready", self._ready),
                Route("/-/reload", self._reload, methods=["POST"]),
                Route("/", self._page),
            ],
            # Of all but scrapes, which are rendered and compressed outside of the event loop.
            middleware=[Middleware(GZipMiddleware, minimum_size=LEAST_COMPRESSED, compresslevel=COMPRESSION)],
        )

    async def run(self, sockets: Sequence[socket.socket]) -> None:
        """Serve on listening sockets until SIGTERM or SIGINT; scrapes in flight are answered before it returns."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            _handle(signum, self._stop.set)
        _handle(signal.SIGHUP, self._begin_reload)
        watching = loop.create_task(self._middleware.watch())
        await Server(self._middleware.wrap(self.app()), self._stop, self._middleware.context).serve(list(sockets))
        watching.cancel()

    async def _metrics(self, request: Request) -> Response:
        return await self._scrape(request, self._exporter.visit(), own=True)

    async def _own_metrics(self, request: Request) -> Response:
        return await self._scrape(request, [], own=True)

    async def _probe(self, request: Request) -> Response:
        name = request.query_params.get("workspace")
        if name is None:
            return PlainTextResponse("name a workspace: /probe?workspace=NAME\n", 400)
        if name not in self._exporter.targets:
            return PlainTextResponse("no workspace of that name is configured\n", 404)
        return await self._scrape(request, self._exporter.visit([name]), own=False)

    async def _scrape(self, request: Request, visits: list[Visit], *, own: bool) -> Response:
        """Wait for the fetches as long as the scrape may, then answer with what is known."""
        fetches = {asyncio.wrap_future(future) for visit in visits for future in visit.futures}
        if fetches:
            await self._wait(fetches, self._patience(request.headers))
        return await self._renderings.scrape(request.headers, visits, own=own)

    async def _wait(self, fetches: set[asyncio.Future[Outcome]], patience: float) -> None:
        """Wait until all fetches have ended; once the server is to stop, no longer than it can wait for the answer."""
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        stopping = loop.create_task(self._stop.wait())
        everything = asyncio.ensure_future(asyncio.wait(fetches))
        try:
            await asyncio.wait({everything, stopping}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                await asyncio.wait({everything}, timeout=min(max(0.0, end - loop.time()), LIMITS.shutdown_timeout / 2))
        finally:  # also where the scraper is gone
            everything.cancel()
            stopping.cancel()

    def _patience(self, headers: Mapping[str, str]) -> float:
        """Return for how many seconds a scrape may wait: a little less than its own timeout, never more than a fetch.

        A fetch that is not over by then hangs where nothing can end it, as in a name lookup.
        """
        longest = self._exporter.config.fetch.timeout + 1
        with suppress(ValueError):
            timeout = float(headers.get(_SCRAPE_TIMEOUT, ""))
            if math.isfinite(timeout) and timeout > 0:
                return min(longest, max(timeout / 2, timeout - 0.5))
        return longest

    async def _discovery(self, request: Request) -> Response:
        """Answer Prometheus' HTTP service discovery: each workspace has its own scrape, timeout and shard."""
        url = urlsplit(self._external_url or str(request.base_url))
        prefix = url.path.rstrip("/")
        groups = [
            {
                "targets": [url.netloc],
                "labels": {
                    "__scheme__": url.scheme,
                    "__metrics_path__": f"{prefix}/probe",
                    "__param_workspace": name,
                    # All have one address, and two targets must not have the same labels.
                    "instance": f"{url.netloc}/{name}",
                },
            }
            for name in self._exporter.targets
        ]
        own_path = f"{prefix}{self._telemetry_path.rstrip('/')}/exporter"
        own = {"__scheme__": url.scheme, "__metrics_path__": own_path, "instance": url.netloc}
        return JSONResponse([*groups, {"targets": [url.netloc], "labels": own}])

    async def _reload(self, _: Request) -> Response:
        problems = await asyncio.shield(self._begin_reload())  # who asks for it need not wait for its end
        return PlainTextResponse(problems or "the configuration has been reloaded\n", 500 if problems else 200)

    def _begin_reload(self) -> asyncio.Task[str]:
        task = asyncio.get_running_loop().create_task(self._reloaded())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        return task

    async def _reloaded(self) -> str:
        """Go over to the configuration as it is now; return what is wrong with it, in which case nothing changes."""
        async with self._reloading:  # in the order in which they are asked for, so that the latest one holds
            try:
                loaded, middleware = await asyncio.to_thread(lambda: (self._load(), self._middleware.load()))
                self._exporter.reload(loaded)
                self._middleware.take(middleware)
            except ConfigError as error:
                self._exporter.reload_failed()
                for problem in error.problems:
                    _log.error("configuration not reloaded", problem=problem)
                return f"the configuration was not reloaded, the old one holds:\n{error}\n"
        _log.info("configuration reloaded", workspaces=len(self._exporter.targets))
        return ""

    async def _ready(self, _: Request) -> Response:
        # The configuration is in order before the server listens, a ledger that is a file too. An upstream that is
        # down does not make it unready: `creatify_up 0` has to be scraped.
        if await asyncio.to_thread(self._exporter.ready):
            return PlainTextResponse("ready\n")
        return PlainTextResponse("the ledger has not been opened yet\n", 503)

    async def _page(self, _: Request) -> Response:
        body = await self._renderings.render("page", lambda: page.render(self._exporter, self._telemetry_path).encode())
        return HTMLResponse(body, headers=page.HEADERS)


def _handle(signum: signal.Signals, react: Callable[[], object]) -> None:
    """Let `react` be called by the running loop at each such signal.

    asyncio alone loses one while the pipe that wakes the loop is full, as when many threads have ended during a long
    turn: it learns from a byte in the pipe which signal there was. So here that byte only wakes the loop.
    """
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signum, lambda: None)
    signal.signal(signum, lambda *_: loop.call_soon_threadsafe(react))
    signal.siginterrupt(signum, False)  # as asyncio has it
    signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("alive\n")
