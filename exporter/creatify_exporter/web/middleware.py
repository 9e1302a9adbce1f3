"""ASGI middleware that applies the web configuration: TLS context, rate limit, passwords and response headers.

When the configuration changes, open connections stay open, but each request is checked against the latest one.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from creatify_exporter.errors import ConfigError
from creatify_exporter.web import web_config
from creatify_exporter.web.users import Users
from creatify_exporter.web.web_config import Loaded, WebConfig

_PUBLIC: Final = ("/-/healthy", "/-/ready")
"""Paths that need no password: a kubelet has none, and they reveal only that the exporter is running."""

_CHALLENGE: Final = 'Basic realm="creatify-exporter", charset="UTF-8"'

_NOSNIFF: Final = {"X-Content-Type-Options": "nosniff"}
"""In every response: a browser must not treat text that repeats a client's input as markup."""

_log = structlog.get_logger()


class RateLimiter:
    """Token bucket: allows `burst` requests at once, and one more every `interval` seconds.

    An interval of 0 allows any number; a burst of 0 allows none, as in the toolkit. `clock` returns seconds.
    """

    def __init__(self, interval: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval = interval
        self._burst, self._clock = burst, clock
        self._tokens, self._filled_at = float(burst), clock()

    def allows(self) -> bool:
        """Return whether one more request is within the limit, and count it if it is."""
        if not self.interval:
            return True
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) / self.interval)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class WebMiddleware:
    """Applies a web configuration; ConfigError if the first one is invalid. Without a path, everybody is admitted."""

    def __init__(self, path: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._path, self._environ = path, environ or {}
        self.last_reload_successful: bool | None = None if path is None else True
        """None if there is no file."""
        self.loaded = Loaded(WebConfig(), None, {})
        self._limiter, self._users = RateLimiter(0, 0), Users({})
        self._take(web_config.load(path, self._environ))

    @property
    def config(self) -> WebConfig:
        """The configuration in effect."""
        return self.loaded.config

    def load(self) -> Loaded:
        """Read the files again; ConfigError if they are invalid, or if the change needs a restart."""
        try:
            return self._read_again()
        except Exception:
            self.last_reload_successful = False
            raise

    def _read_again(self) -> Loaded:
        read = web_config.load(self._path, self._environ)
        if bool(read.config.tls_server_config) != bool(self.config.tls_server_config):
            change = "removed" if self.config.tls_server_config else "added"
            words = f"{self._path}: tls_server_config: cannot be {change} while connections are served"
            raise ConfigError([f"{words}; restart the exporter"])
        return read

    def apply(self, read: Loaded) -> None:
        """Use what `load` returned; open connections stay open."""
        self._take(read)
        if self._path:
            self.last_reload_successful = True
            _log.info("web configuration reloaded", holds=read.config.summary)

    def _take(self, read: Loaded) -> None:
        before, self.loaded = self.config, read
        limit, users = read.config.rate_limit, read.config.basic_auth_users
        if limit != before.rate_limit:
            self._limiter = RateLimiter(limit.interval, limit.burst)
        # Logins are remembered until any user changes.
        if users != before.basic_auth_users:
            self._users = Users(users)
        self._headers = {**_NOSNIFF, **read.config.http_server_config.response_headers}

    def wrap(self, app: ASGIApp, route_prefix: str = "") -> ASGIApp:
        """Return `app` behind this middleware; its routes begin with `route_prefix`."""
        public = {f"{route_prefix}{path}" for path in _PUBLIC}

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            refusal = None if scope["path"] in public else await self._refusal(scope)
            await (app if refusal is None else refusal)(scope, receive, self._with_headers(send))

        return guarded

    async def _refusal(self, scope: Scope) -> Response | None:
        if not self._limiter.allows():
            retry_after = {"Retry-After": str(math.ceil(self._limiter.interval))}
            return PlainTextResponse("more requests than rate_limit allows\n", 429, retry_after)
        login = await self._users.check(_authorization(scope))
        if login == "busy":
            return PlainTextResponse("too many logins at once\n", 503, {"Retry-After": "1"})
        if login == "refused":
            return PlainTextResponse("a user name and a password are required\n", 401, {"WWW-Authenticate": _CHALLENGE})
        return None

    def _with_headers(self, send: Send) -> Send:
        """Return a `send` that sets the configured headers, replacing the app's headers of the same name."""
        headers = self._headers

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                MutableHeaders(scope=message).update(headers)
            await send(message)

        return send_with_headers


def _authorization(scope: Scope) -> bytes | None:
    """Return the `Authorization` header, None unless there is exactly one."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    return values[0] if len(values) == 1 else None
