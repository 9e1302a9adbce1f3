"""The application: its routes, and its lifetime from the first connection to SIGTERM."""

import asyncio
import json
import math
import signal
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from creatify_exporter import metrics, signals
from creatify_exporter.exporter import Exporter, Scrape
from creatify_exporter.fetcher import GRACE, Outcome
from creatify_exporter.metrics import ScrapeRegistry
from creatify_exporter.web import debug_page, landing_page
from creatify_exporter.web.middleware import WebMiddleware
from creatify_exporter.web.reloader import Reloader
from creatify_exporter.web.rendering import Renderer
from creatify_exporter.web.server import LIMITS, Server

_SCRAPE_TIMEOUT: Final = "X-Prometheus-Scrape-Timeout-Seconds"
# Seconds that the landing page waits for first fetches; a page that is still incomplete refreshes itself.
_PAGE_TIMEOUT: Final = 2.0


class RouteSettings(NamedTuple):
    """The command line's settings for the routes."""

    telemetry_path: str = "/metrics"
    external_url: str | None = None
    """The URL at which Prometheus reaches this server; None: the address of the request."""
    route_prefix: str = ""
    """The prefix of every route, such as /exporter."""
    max_requests: int = 0
    """How many scrapes may run at once; 0: any number."""


class Application:
    """Serves an exporter behind `middleware`; `reloader` reloads the configuration of both."""

    def __init__(
        self, exporter: Exporter, middleware: WebMiddleware, reloader: Reloader, settings: RouteSettings
    ) -> None:
        self._exporter, self._middleware, self._reloader = exporter, middleware, reloader
        self._settings, self._prefix = settings, settings.route_prefix
        self._scrapes = 0
        self._stop = asyncio.Event()
        self._renderer = Renderer()
        self._routes = [
            self._route(self._settings.telemetry_path, self._metrics),
            self._route(f"{self._settings.telemetry_path.rstrip('/')}/exporter", self._own_metrics),
            self._route("/probe", self._probe),
            self._route("/sd", self._discovery),
            self._route("/-/healthy", _healthy),
            self._route("/-/ready", self._ready),
            self._route("/-/reload", self._reload, "POST"),
            self._route("/", self._landing_page),
        ]

    def app(self) -> Starlette:
        """Return the routes as an ASGI application."""
        app = Starlette(routes=self._routes, exception_handlers={404: self._not_found})
        app.router.redirect_slashes = False
        return app

    def _route(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
        return Route(f"{self._prefix}{path}", endpoint, methods=[method])

    async def _not_found(self, request: Request, _: Exception) -> Response:
        """Redirect to the route whose path differs only by a trailing slash or the prefix; if there is none, 404."""
        path = request.scope["path"].rstrip("/") or self._prefix
        for route in self._routes:
            if route.path in (path, f"{path}/"):
                base = (self._settings.external_url or self._prefix).rstrip("/")
                query = f"?{request.url.query}" if request.url.query else ""
                return RedirectResponse(f"{base}{route.path.removeprefix(self._prefix)}{query}")
        return PlainTextResponse("there is nothing at this path\n", 404)

    async def run(self, sockets: Sequence[socket.socket]) -> None:
        """Serve on listening sockets until SIGTERM or SIGINT; scrapes in flight are answered before it returns."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            _handle(signum, self._stop.set)
        _handle(signal.SIGHUP, self._reloader.begin)
        if signals.hung_up():
            self._reloader.begin()
        watching = [asyncio.create_task(watch) for watch in self._reloader.watches()]
        app = self._middleware.wrap(self.app(), self._prefix)
        await Server(app, self._stop, lambda: self._middleware.loaded.context).serve(list(sockets))
        for task in watching:
            task.cancel()

    async def _metrics(self, request: Request) -> Response:
        return await self._scrape(request, own=True)

    async def _own_metrics(self, request: Request) -> Response:
        return await self._scrape(request, [], own=True)

    async def _probe(self, request: Request) -> Response:
        name, api = (request.query_params.get(each) for each in ("workspace", "api"))
        if name is None:
            return PlainTextResponse("the parameter workspace is missing: write /probe?workspace=NAME\n", 400)
        if name not in self._exporter.targets:
            return PlainTextResponse("no workspace with that name is configured\n", 404)
        if api is not None and api not in self._exporter.targets[name].fetchers:
            return PlainTextResponse("no list with that name is configured for this workspace\n", 404)
        return await self._scrape(request, [name], api, debug=request.query_params.get("debug") == "true")

    async def _scrape(
        self,
        request: Request,
        names: Iterable[str] | None = None,
        api: str | None = None,
        *,
        own: bool = False,
        debug: bool = False,
    ) -> Response:
        """Wait for the fetches as long as the scrape allows, then answer with what is known.

        `own` adds the exporter's own metrics; `debug` puts the steps of the fetches before the metrics.
        """
        limit = self._settings.max_requests
        if limit and self._scrapes >= limit:
            return PlainTextResponse(f"the limit of {limit} concurrent scrapes is reached; try again later\n", 503)
        self._scrapes += 1
        try:
            scrape = self._exporter.begin_scrape(names, api)
            await self._wait(scrape.futures, self._scrape_timeout(request.headers))
            if debug:
                return await self._renderer.render(
                    request.headers, lambda: self._debug_page(scrape), "text/plain; charset=utf-8"
                )
            return await self._renderer.metrics(request.headers, lambda: self._collect(scrape, own=own))
        finally:
            self._scrapes -= 1

    def _debug_page(self, scrape: Scrape) -> bytes:
        return debug_page.render(scrape).encode() + generate_latest(self._collect(scrape, own=False))

    def _collect(self, scrape: Scrape, *, own: bool) -> ScrapeRegistry:
        registry = self._exporter.collect(scrape, own=own)
        if own and self._middleware.last_reload_successful is not None:
            registry.add(metrics.WEB_CONFIG_RELOAD_SUCCESSFUL, (), self._middleware.last_reload_successful)
        return registry

    async def _wait(self, futures: Iterable[Future[Outcome]], timeout: float) -> None:  # noqa: ASYNC109  no error
        """Wait for all fetches, up to `timeout` seconds; during a shutdown, at most half of the shutdown timeout."""
        fetches = {asyncio.wrap_future(future) for future in futures}
        if not fetches:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        stopping = loop.create_task(self._stop.wait())
        everything = asyncio.ensure_future(asyncio.wait(fetches))
        try:
            await asyncio.wait({everything, stopping}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                await asyncio.wait({everything}, timeout=min(max(0.0, end - loop.time()), LIMITS.shutdown_timeout / 2))
        finally:  # also if the client has disconnected
            everything.cancel()
            stopping.cancel()

    def _scrape_timeout(self, headers: Mapping[str, str]) -> float:
        """Return how many seconds a scrape may wait: a little less than its timeout, at most 1 s more than a fetch.

        A fetch that has not ended by then still waits for a slot, or hangs where it cannot be interrupted, as in a name
        lookup.
        """
        longest = self._exporter.config.fetch.timeout + GRACE
        with suppress(ValueError):
            timeout = float(headers.get(_SCRAPE_TIMEOUT, ""))
            if math.isfinite(timeout) and timeout > 0:
                return min(longest, max(timeout / 2, timeout - 0.5))
        return longest

    async def _discovery(self, request: Request) -> Response:
        """Answer Prometheus' HTTP service discovery: one target per workspace, with its own scrape, timeout and shard.

        With `?by=list`, one target per list, and one for the balance.
        """
        by = request.query_params.get("by", "workspace")
        if by not in ("workspace", "list"):
            return PlainTextResponse("by is workspace or list: write /sd or /sd?by=list\n", 400)
        url = urlsplit(self._settings.external_url or str(request.base_url))
        prefix = url.path.rstrip("/") if self._settings.external_url else self._prefix
        groups = [
            {
                "targets": [url.netloc],
                "labels": {
                    "__scheme__": url.scheme,
                    "__metrics_path__": f"{prefix}/probe",
                    **{f"__param_{key}": value for key, value in parameters.items()},
                    # All targets have the same address, and no two may have the same labels.
                    "instance": "/".join([url.netloc, *parameters.values()]),
                },
            }
            for parameters in self._parts(by_list=by == "list")
        ]
        own_path = f"{prefix}{self._settings.telemetry_path.rstrip('/')}/exporter"
        own = {"__scheme__": url.scheme, "__metrics_path__": own_path, "instance": url.netloc}
        body = json.dumps([*groups, {"targets": [url.netloc], "labels": own}]).encode()
        return await self._renderer.render(request.headers, lambda: body, "application/json")

    def _parts(self, *, by_list: bool) -> Iterator[dict[str, str]]:
        """Yield the parameters of the probes that together make up `/metrics`."""
        for name, target in self._exporter.targets.items():
            for part in [{"api": api} for api in target.fetchers] if by_list else [{}]:
                yield {"workspace": name, **part}

    async def _reload(self, _: Request) -> Response:
        # A client that disconnects does not cancel the reload.
        problems = await asyncio.shield(self._reloader.begin())
        return PlainTextResponse(problems or "the configuration has been reloaded\n", 500 if problems else 200)

    async def _ready(self, _: Request) -> Response:
        # The configuration and a ledger file are checked before the server listens. An API that is down does not make
        # the exporter unready: `creatify_up 0` has to be scraped.
        if await asyncio.to_thread(self._exporter.ready):
            return PlainTextResponse("ready\n")
        return PlainTextResponse("the ledger has not been opened yet\n", 503)

    async def _landing_page(self, request: Request) -> Response:
        # Before the first scrape, the page should not be empty. Later visits cost the API nothing.
        await self._wait(self._exporter.begin_first_fetches(), _PAGE_TIMEOUT)

        def page() -> bytes:
            return landing_page.render(self._exporter, self._settings.telemetry_path).encode()

        answer = await self._renderer.render(request.headers, page, "text/html; charset=utf-8")
        answer.headers.update(landing_page.HEADERS)
        return answer


def _handle(signum: signal.Signals, react: Callable[[], object]) -> None:
    """Make the running loop call `react` on each such signal.

    asyncio's own handler loses a signal while its self-pipe is full, for example if many threads end during one long
    iteration: it reads the signal's number from that pipe. Here the pipe only wakes the loop.
    """
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signum, lambda: None)
    signal.signal(signum, lambda *_: loop.call_soon_threadsafe(react))
    signal.siginterrupt(signum, False)  # as asyncio does
    signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("alive\n")
