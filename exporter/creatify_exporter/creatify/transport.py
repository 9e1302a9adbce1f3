"""HTTP through `requests` and urllib3, with a deadline that a slow peer cannot outlive, and with translated errors."""

import http.client
import io
import os
import re
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from itertools import chain, zip_longest
from typing import Any, Final
from urllib.parse import unquote
from weakref import WeakSet

import requests
import urllib3
from requests.adapters import DEFAULT_CA_BUNDLE_PATH, HTTPAdapter

from creatify_exporter import __version__, redaction
from creatify_exporter.config.schema import Workspace
from creatify_exporter.errors import FetchError

# Seconds before the next address is tried in parallel (RFC 8305, section 5).
_HEAD_START: Final = 0.25
_Address = tuple[socket.AddressFamily, object]
# Returns a subclass of a connection class; a deadline can shut its connections.
_Guarding = Callable[[type], type]
_MAX_LINE: Final = 2**16
_INTERIM: Final = frozenset(range(100, 200)) - {HTTPStatus.SWITCHING_PROTOCOLS}


class Transport:
    """The connections of one workspace, kept alive between requests. Every failure is a `FetchError`."""

    def __init__(self, workspace: Workspace) -> None:
        self._session = _session(workspace, self._guarded)
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._lock = threading.Lock()

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Shut all connections if the block takes longer, so that a dripping answer cannot outlive the deadline."""
        timer = threading.Timer(seconds, self._shut)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:
            raise FetchError("connection", "the system cannot start another thread right now") from None
        try:
            yield
        finally:
            timer.cancel()

    def get(self, url: str, headers: dict[str, str], deadline: float) -> requests.Response:
        """Return the answer, whatever its status, with its body unread; redirects are not followed."""
        remaining = max(0.001, deadline - time.monotonic())
        try:
            return self._session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=remaining)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            failure = _failed_request(error)
        # Outside of the block, so that no exception of `requests`, which holds the headers, is attached to it.
        raise failure

    def close(self) -> None:
        """Close the idle connections."""
        self._session.close()

    def _guarded(self, connection: Any) -> Any:  # noqa: ANN401 - any of urllib3's connection classes
        """Return a subclass of a connection class; `limit` can shut its connections."""
        transport = self

        class Guarded(connection):  # type: ignore[misc] # the class is urllib3's choice
            response_class = _Response

            def _new_conn(self) -> socket.socket:
                plain = _connected(self)
                # Guarded here already: a proxy may be slow to confirm the connection.
                transport._guard(plain)
                return plain

            def connect(self) -> None:
                super().connect()
                # The TLS socket, which has replaced the plain one.
                transport._guard(self.sock)

        return Guarded

    def _guard(self, connected: object) -> None:
        # TLS in TLS, through a proxy, does not have its own socket.
        if isinstance(connected, socket.socket):
            with self._lock:
                self._sockets.add(connected)

    def _shut(self) -> None:
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with suppress(OSError):
                # The method of the plain socket: that of a TLS socket would discard the TLS state while it is in use.
                socket.socket.shutdown(each, socket.SHUT_RDWR)


class Body(io.RawIOBase):
    """Reads a body until the deadline, and undoes its content encoding.

    `received` counts the decoded bytes, including those `before` this body; it must not exceed `limit`. Every failure
    is a `FetchError`. A body without an encoding is read straight into the buffer; `requests` would read it in pieces
    of 10 KB.
    """

    def __init__(self, response: requests.Response, deadline: float, limit: int, before: int) -> None:
        self._raw, self._deadline, self._limit = response.raw, deadline, limit
        self._read = self._decode if response.headers.get("Content-Encoding") else self._copy
        self.received = before

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - the base class's signature
        """Read some bytes into the buffer; return their number, 0 at the end. Raises `FetchError`."""
        try:
            count = self._read(buffer)
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            failure = _broken_body(error, self.received)
        else:
            self.received += count
            if self.received > self._limit:
                raise FetchError("too_large", f"{self.received} bytes were decoded; the limit is {self._limit}")
            if time.monotonic() > self._deadline:
                raise FetchError("timeout", "the deadline has passed")
            return count
        raise failure

    def _decode(self, buffer: bytearray | memoryview) -> int:
        piece: bytes = self._raw.read(len(buffer), decode_content=True)
        buffer[: len(piece)] = piece
        return len(piece)

    def _copy(self, buffer: bytearray | memoryview) -> int:
        # The private response, because urllib3's own `readinto` creates a new `bytes` each time and copies it.
        response: Any = self._raw._fp  # noqa: SLF001 - as above
        count: int = response.readinto(buffer)
        if response.isclosed():
            self._raw.release_conn()
        return count


@cache
def default_context() -> ssl.SSLContext:
    """Return the TLS context of workspaces without a `tls_config`; they share it, because it takes up 0.7 MiB."""
    context = urllib3.util.create_urllib3_context()
    context.load_verify_locations(_authorities_file())
    return context


def _authorities_file() -> str:
    """Return the file named by SSL_CERT_FILE, as OpenSSL and Go do, or the list that comes with `requests`."""
    return os.environ.get("SSL_CERT_FILE") or DEFAULT_CA_BUNDLE_PATH


class _Session(requests.Session):
    """Ignores redirects: `requests` would read the body of a redirect to its end, even without following it."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: no redirect."""


class _Adapter(HTTPAdapter):
    """Sends requests through the pools of a manager, with connection classes that `guarded` returns.

    `context` verifies certificates. Without it, each connection reads the session's files again, so that certificates
    can be renewed.
    """

    def __init__(self, manager: urllib3.PoolManager, context: ssl.SSLContext | None, guarded: _Guarding) -> None:
        super().__init__()
        self.poolmanager, self._context, self._guarded = manager, context, guarded

    def get_connection_with_tls_context(self, request: Any, *_: Any, **__: Any) -> Any:  # noqa: ANN401 - requests' signature
        pool: Any = self.poolmanager.connection_from_url(request.url)
        if "ConnectionCls" not in vars(pool):
            pool.ConnectionCls = self._guarded(pool.ConnectionCls)
        return pool

    def cert_verify(self, conn: Any, _url: str, *files: Any) -> None:  # noqa: ANN401 - requests' signature
        # Always as for https: if the API is plain http, its proxy may still have a certificate.
        super().cert_verify(conn, "https://", *files)  # type: ignore[no-untyped-call] # requests' own
        if self._context:
            # The context holds the authorities; each connection would read them again.
            conn.ca_certs = None


def _session(workspace: Workspace, guarded: _Guarding) -> requests.Session:
    session = _Session()
    # Otherwise requests adds an Authorization header from ~/.netrc, and uses the proxies of the environment.
    session.trust_env = False
    # Otherwise the session keeps any number of cookies.
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    session.headers["User-Agent"] = f"creatify-exporter/{__version__}"
    session.headers["Accept"] = "application/json"
    context = None
    if tls := workspace.tls_config:
        session.verify = str(tls.ca_file or _authorities_file())
        session.cert = (str(tls.cert_file), str(tls.key_file)) if tls.cert_file else None
    else:
        context = default_context()
    if workspace.proxy_url:
        # So that `requests` knows of the proxy; the manager connects to it.
        session.proxies = {"http": workspace.proxy_url, "https": workspace.proxy_url}
    adapter = _Adapter(_manager(workspace.proxy_url, context), context, guarded)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def _manager(proxy_url: str | None, context: ssl.SSLContext | None) -> urllib3.PoolManager:
    if not proxy_url:
        return urllib3.PoolManager(num_pools=1, ssl_context=context)
    proxy = urllib3.util.parse_url(proxy_url)
    headers = None
    if proxy.auth:
        # Without a password, the password is empty (RFC 7617, 2).
        name, _, password = proxy.auth.partition(":")
        # Latin-1 preserves each byte in any encoding of the login; `requests` refuses characters outside Latin-1.
        headers = urllib3.make_headers(proxy_basic_auth=unquote(f"{name}:{password}", "latin-1"))
    return urllib3.ProxyManager(
        proxy._replace(auth=None).url,
        num_pools=1,
        proxy_headers=headers,
        ssl_context=context,
        proxy_ssl_context=context,
    )


def _connected(connection: Any) -> socket.socket:  # noqa: ANN401 - any of urllib3's connections
    """Connect like urllib3, with the same errors, but try other addresses while one stays silent."""
    try:
        return connect(
            connection._dns_host.strip("[]"),  # noqa: SLF001 - as urllib3's own method does
            connection.port,
            connection.timeout,
            connection.socket_options or (),
        )
    except socket.gaierror as error:
        raise urllib3.exceptions.NameResolutionError(connection.host, connection, error) from error
    except TimeoutError as error:
        raise urllib3.exceptions.ConnectTimeoutError(connection, str(error)) from error
    except OSError as error:
        raise urllib3.exceptions.NewConnectionError(connection, str(error)) from error


def connect(host: str, port: int, timeout: float, options: Iterable[tuple[int, int, int]] = ()) -> socket.socket:
    """Return a socket connected to the first address that answers; some may be silent (RFC 8305, *Happy Eyeballs*).

    `options` are set before connecting. `timeout`, in seconds, covers all addresses together, and remains set on the
    socket. Raises `socket.gaierror`, `TimeoutError`, or the last `OSError` of an address.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    connected = _race(_interleaved((family, address) for family, _, _, _, address in found), timeout, options)
    connected.settimeout(timeout)
    return connected


def _interleaved(addresses: Iterable[_Address]) -> list[_Address]:
    """Alternate between the families, beginning with that of the first address: a whole family may be silent."""
    families: dict[socket.AddressFamily, list[_Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [address for address in chain.from_iterable(zip_longest(*families.values())) if address]


def _race(addresses: list[_Address], timeout: float, options: Iterable[tuple[int, int, int]]) -> socket.socket:
    end = time.monotonic() + timeout
    failure = OSError("the host has no address")
    with selectors.DefaultSelector() as selector:
        try:
            while addresses or selector.get_map():
                if addresses and (error := _begin_attempt(addresses.pop(0), options, selector)):
                    # This attempt is over, so the next address need not wait.
                    failure = error
                    continue
                remaining = end - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError("no address answered in time")
                for key, _ in selector.select(min(_HEAD_START, remaining) if addresses else remaining):
                    result = _end_attempt(key.data, selector)
                    if isinstance(result, socket.socket):
                        return result
                    failure = result
        finally:
            for key in selector.get_map().values():
                key.data.close()
    raise failure


def _begin_attempt(
    address: _Address, options: Iterable[tuple[int, int, int]], selector: selectors.BaseSelector
) -> OSError | None:
    """Begin to connect; return the error if that is impossible, for example without a route."""
    with ExitStack() as undo:
        try:
            attempt = undo.enter_context(socket.socket(address[0], socket.SOCK_STREAM))
            for option in options:
                attempt.setsockopt(*option)
            attempt.setblocking(False)
            with suppress(BlockingIOError):
                attempt.connect(address[1])  # type: ignore[arg-type] # as getaddrinfo returns it
        except OSError as error:
            return error
        undo.pop_all()
    selector.register(attempt, selectors.EVENT_WRITE, attempt)
    return None


def _end_attempt(attempt: socket.socket, selector: selectors.BaseSelector) -> socket.socket | OSError:
    """Return the connected socket, or the error of the attempt."""
    selector.unregister(attempt)
    error = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if not error:
        return attempt
    attempt.close()
    return OSError(error, os.strerror(error))


class _Response(http.client.HTTPResponse):
    """Follows RFC 9110 where `http.client` does not: interim answers, repeated lengths, and bodies that end early."""

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - the base class's signature
        """Read the next bytes of the body; raise IncompleteRead if the connection ends before the body does (8)."""
        count = super().readinto(buffer)
        if not count and self.length:
            raise http.client.IncompleteRead(b"", self.length)
        return count

    def _read_status(self) -> tuple[str, int, str]:
        """Skip any number of interim answers, such as 103 Early Hints (15.2); the base class skips only 100."""
        while True:
            # Private, but the only place that also reads the answers of proxies to CONNECT.
            version, status, reason = super()._read_status()  # type: ignore[misc] # as above
            if status not in _INTERIM:
                return version, status, reason
            while self.fp.readline(_MAX_LINE) not in (b"\r\n", b"\n", b""):
                pass

    def begin(self) -> None:
        """Read the head; the length may be repeated if it is the same each time (8.6)."""
        super().begin()
        lengths = self.headers.get_all("Content-Length")
        if self.chunked or lengths is None:
            return
        values = ",".join(lengths).split(",")
        if not all(value.strip().isascii() and value.strip().isdigit() for value in values):
            raise urllib3.exceptions.InvalidHeader("Content-Length")
        length, *others = {int(value) for value in values}
        if others:
            raise urllib3.exceptions.InvalidHeader("Content-Length")
        if self.length is None:
            self.length = length


def _failed_request(error: Exception) -> FetchError:
    if isinstance(error, requests.Timeout):
        return FetchError("timeout", "the API did not answer in time")
    if isinstance(error, requests.exceptions.SSLError):
        return FetchError("tls", f"no secure connection: {_innermost(error)}")
    if isinstance(error, requests.exceptions.InvalidHeader):
        return FetchError("invalid_body", "the answer has an invalid Content-Length")
    if isinstance(error, requests.ConnectionError):
        return FetchError("connection", f"no connection: {_innermost(error)}")
    if isinstance(error, requests.RequestException | urllib3.exceptions.HTTPError | ValueError):
        return FetchError("connection", f"the request cannot be sent: {type(error).__name__}")
    # A certificate or key file is missing.
    return FetchError("tls", f"no secure connection: {error}")


def _broken_body(error: Exception, received: int) -> FetchError:
    after = f"after {received} bytes"
    if isinstance(error, urllib3.exceptions.ReadTimeoutError | TimeoutError):
        return FetchError("timeout", f"no more of the body arrived {after}")
    if isinstance(error, urllib3.exceptions.DecodeError):
        return FetchError("invalid_body", f"the body does not match its Content-Encoding, {after}")
    if isinstance(error, urllib3.exceptions.SSLError | ssl.SSLError):
        return FetchError("tls", f"the secure connection broke {after}")
    return FetchError("connection", f"the connection broke {after}")


def _innermost(error: Exception) -> str:
    """Return the innermost of urllib3's nested reasons, such as `Connection refused`; the others repeat the URL."""
    inner: object = error
    while isinstance(inner, Exception):
        reason, inner = inner, getattr(inner, "reason", None) or (inner.args[-1] if inner.args else None)
    if isinstance(reason, http.client.HTTPException) and not isinstance(reason, http.client.RemoteDisconnected):
        # Its text comes from the peer.
        return f"the answer is not HTTP ({type(reason).__name__})"
    # It may quote the API, which may echo the keys. OpenSSL adds a code before its text, and a source line after it.
    text = re.sub(r"\[[^]]*\] | ?\(_ssl\.c:\d+\)", "", redaction.mask(str(reason)))
    text = text.rpartition(": ")[2].strip("()'\" ,")
    # Stripping has removed the closing bracket of a final remark.
    text += ")" * (text.count("(") - text.count(")"))
    return text[:200] or type(reason).__name__
