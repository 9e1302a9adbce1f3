"""ASGI middleware that applies the web configuration: TLS context, passwords, and headers of every response.

The files of the configuration are polled once a second. Open connections stay open when it changes, but each request is
authenticated by the newest configuration.
"""

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from creatify_exporter.errors import ConfigError
from creatify_exporter.web import web_config
from creatify_exporter.web.certificates import file_state
from creatify_exporter.web.tls import LatestContext
from creatify_exporter.web.users import Users
from creatify_exporter.web.web_config import Files, Loaded, WebConfig

_TRY_EVERY: Final = 5  # looks between attempts at a configuration that was refused: a missing file may come
_PUBLIC: Final = ("/-/healthy", "/-/ready")
"""What asks no password: the kubelet has none to give, and they tell nothing but that somebody is there."""

_CHALLENGE: Final = 'Basic realm="creatify-exporter", charset="UTF-8"'

_NO_GUESSES: Final = {b"x-content-type-options": b"nosniff"}
"""In every answer: a browser must not take for markup what repeats somebody's words."""

_log = structlog.get_logger()


class FailedReload(NamedTuple):
    """Files that were not taken as they were then, and what was wrong with them."""

    files: Files
    problems: tuple[str, ...]


class WebMiddleware:
    """Holds a web configuration; ConfigError when the first one cannot be used. Without a path, everybody gets in.

    `poll_interval` is the time in seconds between two looks at the files.
    """

    def __init__(
        self, path: Path | None = None, environ: Mapping[str, str] | None = None, *, poll_interval: float = 1.0
    ) -> None:
        self._path, self._environ, self._look_every = path, environ or {}, poll_interval
        self._take(web_config.load(path, self._environ))
        self.context = self._listening_context()

    @property
    def config(self) -> WebConfig:
        """The configuration that holds now."""
        return self._read.config

    def load(self) -> Loaded:
        """Read the file anew; ConfigError where it is wrong, or asks for what only a restart can do."""
        read = web_config.load(self._path, self._environ)
        if bool(read.config.tls_server_config) != bool(self.config.tls_server_config):
            change = "removed" if self.config.tls_server_config else "added"
            words = f"{self._path}: tls_server_config: cannot be {change} while connections are served"
            raise ConfigError([f"{words}; restart the exporter"])
        return read

    def take(self, read: Loaded) -> None:
        """Go over to what `load` returned, without a word to those who are connected; forget who was admitted."""
        self._take(read)
        if self._path:
            _log.info("web configuration reloaded", holds=read.config.summary)

    def _take(self, read: Loaded) -> None:
        self._read = read
        self._users = Users(read.config.basic_auth_users)
        self._headers = {**_NO_GUESSES, **read.config.http_server_config.response_headers}

    def _listening_context(self) -> ssl.SSLContext | None:
        """Return what to listen with, None for plain connections."""
        if self._read.context is None:
            return None
        context = LatestContext(ssl.PROTOCOL_TLS_SERVER)
        context.latest = lambda: self._read.context or context
        return context

    async def watch(self) -> None:
        """Look at the files until cancelled, and go over to what they say once they have come to rest.

        A file that is being written may be well-formed and lack its users: two looks have to see the same.
        """
        before: Files = {}
        refused, looks = FailedReload({}, ()), 0
        while self._path:
            await asyncio.sleep(self._look_every)
            now = await asyncio.to_thread(self._files)
            rests, before, looks = now == before, now, looks + 1
            if now == self._read.files or not rests or (now == refused.files and looks % _TRY_EVERY):
                continue
            refused = await self._try(now, refused)

    def _files(self) -> Files:
        return {path: file_state(path) for path in self._read.files}

    async def _try(self, files: Files, last: FailedReload) -> FailedReload:
        """Go over to the configuration as it is now; return why not, which is logged unless it is what it was."""
        try:
            self.take(await asyncio.to_thread(self.load))
        except ConfigError as error:
            for problem in error.problems if error.problems != last.problems else ():
                _log.error("web configuration not reloaded, the old one holds", problem=problem)
            return FailedReload(files, error.problems)
        return FailedReload({}, ())

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return `app` behind this middleware."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            refusal = await self._refusal(scope)
            await (app if refusal is None else refusal)(scope, receive, self._with_headers(send))

        return guarded

    async def _refusal(self, scope: Scope) -> Response | None:
        if scope["path"] in _PUBLIC:
            return None
        verdict = await self._users.check(_authorization(scope))
        if verdict == "busy":
            return PlainTextResponse("too many logins at once\n", 503, {"Retry-After": "1"})
        if verdict == "refused":
            return PlainTextResponse("a name and its password are needed\n", 401, {"WWW-Authenticate": _CHALLENGE})
        return None

    def _with_headers(self, send: Send) -> Send:
        """Return `send` with the configured headers in each response, in place of the app's own of the same name."""
        headers = self._headers

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [pair for pair in message.get("headers", ()) if pair[0].lower() not in headers]
                message = {**message, "headers": [*own, *headers.items()]}
            await send(message)

        return send_with_headers


def _authorization(scope: Scope) -> bytes | None:
    """Return the one such header, None for none or several."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    return values[0] if len(values) == 1 else None
