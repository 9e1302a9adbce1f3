"""Fetches from the Creatify API, within one deadline for everything."""

import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import urljoin, urlsplit
from weakref import WeakSet

import msgspec
import requests
import urllib3
from requests.adapters import DEFAULT_CA_BUNDLE_PATH, HTTPAdapter

from creatify_exporter import __version__, redaction
from creatify_exporter.config.schema import Fetch, Workspace
from creatify_exporter.creatify.chunk_cache import Stretch
from creatify_exporter.creatify.decoder import BATCH_BYTES, Decoder, excerpt
from creatify_exporter.creatify.task import Task
from creatify_exporter.errors import ConfigError, FetchError, RateLimited

TASKS_PATH: Final = "/sse/text_generator/"
BALANCE_PATH: Final = "/api/remaining_credits/"

_RETRIED: Final = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
_MOST_REDIRECTS: Final = 5
_MAX_BALANCE_BYTES: Final = 64 * 1024


class Listing:
    """One fetch of the list: iterate over it for batches of tasks and known stretches.

    The list is complete when that ends.

    `received` counts decoded bytes, also while it runs. `date` is the server's time in seconds since the epoch, None
    where it does not tell. The iteration raises `FetchError`.
    """

    def __init__(self, batches: Callable[["Listing"], Iterator[list[Task] | Stretch]], decoder: Decoder) -> None:
        self.received = 0
        self.date: float | None = None
        self.decoder = decoder
        self._batches = batches

    def __iter__(self) -> Iterator[list[Task] | Stretch]:
        return self._batches(self)


class Client:
    """Asks on behalf of one workspace; for one fetch at a time, since a deadline ends all connections of a client.

    `clock` returns seconds since the epoch. Every failure is a `FetchError` whose text holds no secret, and that
    carries no other exception: those of `requests` know the headers that were sent.
    """

    def __init__(self, workspace: Workspace, limits: Fetch, clock: Callable[[], float] = time.time) -> None:
        self._workspace, self._limits, self._clock = workspace, limits, clock
        self._watchdog = _Watchdog()
        self._session = _session(workspace, self._watchdog)

    def tasks(self) -> Listing:
        """Return the list of tasks, which is fetched while one iterates over it."""
        return Listing(self._batches, Decoder(self._limits.max_task))

    def remaining_credits(self) -> float:
        """Return the workspace's balance in credits."""
        with self._deadline() as deadline, self._get(self._workspace.base_url + BALANCE_PATH, deadline) as response:
            body = b"".join(self._pieces(response, deadline, _MAX_BALANCE_BYTES))
            try:
                return msgspec.json.decode(body, type=_Balance, strict=False).remaining_credits
            except (ValueError, RecursionError):
                raise FetchError("invalid_body", f"expected remaining_credits, got {excerpt(body)}") from None

    def close(self) -> None:
        """Close the idle connections."""
        self._session.close()

    def _batches(self, listing: Listing) -> Iterator[list[Task] | Stretch]:
        url: str | None = self._workspace.base_url + TASKS_PATH
        visited = set()
        with self._deadline() as deadline:
            while url:
                visited.add(url)
                with self._get(url, deadline) as response:
                    listing.date = _date(response) if listing.date is None else listing.date
                    yield from listing.decoder.batches(self._counted(response, deadline, listing))
                url = self._next_page(url, listing.decoder.next_page)
                if url in visited:
                    raise FetchError("invalid_body", "the pages of the list lead back to one that was read already")

    def _counted(self, response: requests.Response, deadline: float, listing: Listing) -> Iterator[bytes]:
        for piece in self._pieces(response, deadline, self._limits.max_body - listing.received):
            listing.received += len(piece)
            yield piece

    def _pieces(self, response: requests.Response, deadline: float, most: int) -> Iterator[bytes]:
        """Yield the decoded body; its errors are urllib3's, since `requests` reads in pieces of 10 KB."""
        received, began = 0, time.monotonic()
        while True:
            failure = None
            try:
                piece = response.raw.read(BATCH_BYTES, decode_content=True)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                failure = _broken_body(error, received)
            if failure:
                raise failure
            if not piece:
                return
            received += len(piece)
            if received > most:
                spent = time.monotonic() - began
                raise FetchError("too_large", f"the body is too large: {received} decoded bytes after {spent:.1f} s")
            if time.monotonic() > deadline:
                raise FetchError("timeout", "time is up")
            yield piece

    def _get(self, url: str, deadline: float) -> requests.Response:
        """Return a response with status 200 and its body unread."""
        for _ in range(_MOST_REDIRECTS):
            response = self._sent(url, deadline)
            if not response.is_redirect:
                _check_status(response, self._clock())
                return response
            response.close()
            url = self._same_origin(url, response.headers["Location"])
        raise FetchError("redirect", f"redirected {_MOST_REDIRECTS} times, lastly to {excerpt(url.encode())}")

    def _sent(self, url: str, deadline: float) -> requests.Response:
        """Send one request, and once more where a connection or a gateway failed it."""
        answer = self._try(url, deadline)
        retry = answer.cause == "connection" if isinstance(answer, FetchError) else answer.status_code in _RETRIED
        if retry and time.monotonic() < deadline:
            if isinstance(answer, requests.Response):
                answer.close()
            answer = self._try(url, deadline)
        if isinstance(answer, FetchError):
            raise answer
        return answer

    def _try(self, url: str, deadline: float) -> requests.Response | FetchError:
        remaining = max(0.001, deadline - time.monotonic())
        try:
            return self._session.get(
                url, headers=self._credentials(), stream=True, allow_redirects=False, timeout=remaining
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            return _failed_request(error)

    def _credentials(self) -> dict[str, str]:
        try:
            return {"X-API-ID": self._workspace.api_id.read(), "X-API-KEY": self._workspace.api_key.read()}
        except ConfigError as error:
            raise FetchError("auth", str(error)) from None

    def _next_page(self, url: str, link: str | None) -> str | None:
        return self._same_origin(url, link) if link else None

    @staticmethod
    def _same_origin(url: str, link: str) -> str:
        """Resolve a link; the keys go nowhere but to the origin that they were meant for."""
        try:
            target = urljoin(url, link)
            same = _origin(target) == _origin(url)
        except ValueError:
            same = False
        if not same:
            raise FetchError("redirect", "the API points to another origin, which does not get the keys")
        return target

    @contextmanager
    def _deadline(self) -> Iterator[float]:
        """Bound the block by `fetch.timeout`; yield its end on the monotonic clock."""
        end = time.monotonic() + self._limits.timeout
        failure: FetchError | None = None
        with self._watchdog.limit(self._limits.timeout):
            try:
                yield end
            except FetchError as error:
                error.__context__ = None  # what was refused in the decoder knows the body
                failure = self._explained(error, end)
        if failure:
            raise failure

    def _explained(self, error: FetchError, end: float) -> FetchError:
        if time.monotonic() >= end:  # whatever it looked like: it was the watchdog that broke the connection
            return FetchError("timeout", f"no complete answer within {self._limits.timeout:g} s (fetch.timeout)")
        return error


class _Balance(msgspec.Struct):
    remaining_credits: Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]  # bounded, so that neither "nan" nor "inf" is


class _Watchdog:
    """Shuts the sockets of a client when its time is up, so that no slow drip outlives the deadline."""

    def __init__(self) -> None:
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._lock = threading.Lock()

    def guard(self, connected: object) -> None:
        """Remember the socket of a new connection."""
        if isinstance(connected, socket.socket):
            with self._lock:
                self._sockets.add(connected)

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Shut whatever is open when the block takes longer."""
        timer = threading.Timer(seconds, self._shut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _shut(self) -> None:
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with suppress(OSError):
                # The plain socket's method: that of a TLS socket would pull its TLS state from under its reader.
                socket.socket.shutdown(each, socket.SHUT_RDWR)


@cache
def usual_authorities() -> ssl.SSLContext:
    """Return what verifies certificates where nothing else is said: one for all, as each has 0.7 MiB of authorities."""
    context = urllib3.util.create_urllib3_context()
    context.load_verify_locations(_authorities_file())
    return context


def _authorities_file() -> str:
    """Return the file of SSL_CERT_FILE, as OpenSSL and Go have it, else the list that comes with `requests`."""
    return os.environ.get("SSL_CERT_FILE") or DEFAULT_CA_BUNDLE_PATH


class _GuardedAdapter(HTTPAdapter):
    """Tells the watchdog of every connection that is made.

    `context` verifies certificates; without one, each connection has its own as `requests` makes it.
    """

    def __init__(self, watchdog: _Watchdog, context: ssl.SSLContext | None) -> None:
        self._watchdog, self._context = watchdog, context
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - requests' signature
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # noqa: ANN401 - requests' signature
        return super().proxy_manager_for(proxy, **kwargs, ssl_context=self._context, proxy_ssl_context=self._context)

    def cert_verify(self, conn: Any, *args: Any) -> None:  # noqa: ANN401 - requests' signature
        super().cert_verify(conn, *args)  # type: ignore[no-untyped-call]
        if self._context:
            conn.ca_certs = None  # they are in it; for each connection they would be read again

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - requests' signature
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        if "ConnectionCls" not in vars(pool):
            pool.ConnectionCls = _guarded(pool.ConnectionCls, self._watchdog)
        return pool


def _guarded(connection: Any, watchdog: _Watchdog) -> type:  # noqa: ANN401 - any of urllib3's connection classes
    class Guarded(connection):  # type: ignore[misc] # the class is urllib3's choice
        def _new_conn(self) -> socket.socket:
            plain: socket.socket = super()._new_conn()
            watchdog.guard(plain)  # already now, since a proxy may be slow to say that it is connected
            return plain

        def connect(self) -> None:
            super().connect()
            watchdog.guard(self.sock)  # that of TLS, which has taken the place of the plain one

    return Guarded


class _Session(requests.Session):
    """Leaves redirects alone: even where it does not follow one, `requests` would read its body to the end."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return nowhere."""


def _session(workspace: Workspace, watchdog: _Watchdog) -> requests.Session:
    session = _Session()
    session.trust_env = False  # neither ~/.netrc, which would add an Authorization header, nor proxies unasked for
    session.headers["User-Agent"] = f"creatify-exporter/{__version__}"
    session.headers["Accept"] = "application/json"
    if workspace.proxy_url:
        session.proxies = {"http": workspace.proxy_url, "https": workspace.proxy_url}
    if tls := workspace.tls_config:
        session.verify = str(tls.ca_file or _authorities_file())
        session.cert = (str(tls.cert_file), str(tls.key_file)) if tls.cert_file else None
    for scheme in ("https://", "http://"):
        session.mount(scheme, _GuardedAdapter(watchdog, None if workspace.tls_config else usual_authorities()))
    return session


def _check_status(response: requests.Response, now: float) -> None:
    status = response.status_code
    if status == HTTPStatus.OK:
        return
    response.close()
    phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else "unknown status"
    said = f"the API answered {status} {phrase}"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise FetchError("auth", f"{said}: check the API id and key")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise RateLimited(said, _retry_after(response, now))
    raise FetchError("http_status", said)


def _retry_after(response: requests.Response, now: float) -> float | None:
    """Return the wish of a 429 in seconds; it may be written as seconds or as a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    moment = _http_date(value)
    return None if moment is None else max(0.0, moment - now)


def _date(response: requests.Response) -> float | None:
    return _http_date(response.headers.get("Date", ""))


def _http_date(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _failed_request(error: Exception) -> FetchError:
    if isinstance(error, requests.Timeout):
        return FetchError("timeout", "the API does not answer in time")
    if isinstance(error, requests.exceptions.SSLError):
        return FetchError("tls", f"no secure connection: {_innermost(error)}")
    if isinstance(error, requests.ConnectionError):
        return FetchError("connection", f"no connection: {_innermost(error)}")
    if isinstance(error, requests.RequestException | urllib3.exceptions.HTTPError | ValueError):
        return FetchError("connection", f"the request cannot be sent: {type(error).__name__}")
    return FetchError("tls", f"no secure connection: {error}")  # a CA or key file that cannot be read


def _broken_body(error: Exception, received: int) -> FetchError:
    after = f"after {received} bytes"
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return FetchError("timeout", f"the body stopped coming {after}")
    if isinstance(error, urllib3.exceptions.DecodeError):
        return FetchError("invalid_body", f"the body is not encoded as its header says, {after}")
    if isinstance(error, urllib3.exceptions.SSLError):
        return FetchError("tls", f"the secure connection broke {after}")
    return FetchError("connection", f"the connection broke {after}")


def _innermost(error: Exception) -> str:
    """Return the last of urllib3's nested reasons, such as `Connection refused`; the others repeat the URL."""
    inner: object = error
    while isinstance(inner, Exception):
        reason, inner = inner, getattr(inner, "reason", None) or (inner.args[-1] if inner.args else None)
    # It may quote the API, which may echo the keys. OpenSSL's have a code in front and their place in a file behind.
    text = re.sub(r"\[[^]]*\] | ?\(_ssl\.c:\d+\)", "", redaction.mask(str(reason)))
    text = text.rpartition(": ")[2].strip("()'\" ,")
    return text[:200] or type(reason).__name__
