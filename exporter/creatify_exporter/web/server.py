"""The server: uvicorn, with limits for slow clients.

uvicorn accepts connections, speaks HTTP/1.1 (with h11) and calls the application. This module adds what it lacks: a
timeout for clients that owe a handshake or the rest of a request, or do not read a response; a limit of connections; an
alert and a log line for refused TLS handshakes.
"""

import asyncio
import contextlib
import itertools
import re
import resource
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import h11
import structlog
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from creatify_exporter.web.handshake import REFUSED

# Maximum bytes of a request's line and headers; h11 refuses more.
_MAX_HEAD: Final = 2**14
# Maximum bytes that a client may send before it gets its next response: no route needs a larger request.
_MAX_UNANSWERED: Final = 2**16
# Socket buffers of a connection, in bytes; Linux doubles them.
_RECEIVE_BUFFER: Final = 2**15
_SEND_BUFFER: Final = 2**16
# Length of the accept queue. The system caps it; clients that do not fit wait for seconds.
_BACKLOG: Final = 2**15
# Connections accepted per iteration of the event loop; for a moment, the limit may be exceeded by as many.
_ACCEPTED_AT_ONCE: Final = 16
# File descriptors reserved for the ledger, for fetches and for everything else that is not a client's connection.
_SPARE_FILES: Final = 256
# Seconds that a client has to read the alert that refuses its handshake.
_ALERT_TIMEOUT: Final = 1.0

# Request smuggling: a proxy that uses the other length treats part of the body as a request. RFC 9112, section 6.1.
_TWO_LENGTHS: Final = PlainTextResponse("a body cannot have two lengths\n", 400, {"Connection": "close"})

_log = structlog.get_logger()


class Limits(NamedTuple):
    """Limits for clients; times in seconds."""

    connections: int = 1000
    client_timeout: float = 30.0
    """From the accept, or the end of a response, until the client has read it and sent a complete request."""
    shutdown_timeout: int = 25
    """For requests in flight after SIGTERM; Kubernetes allows 30."""
    drain_timeout: float = 2.0
    """For a client to read its response during a shutdown."""


LIMITS: Final = Limits()


class Connections(ServerState):
    """All open connections: those waiting for their client, and since when, and those being answered."""

    def __init__(self, context: Callable[[], ssl.SSLContext | None], limits: Limits) -> None:
        super().__init__()
        self.context, self.timeout = context, limits.client_timeout
        self._limit = _limit(limits.connections)
        # Both are ordered, longest-waiting first.
        self._waiting: dict[Connection, float] = {}
        self._answering: dict[Connection, None] = {}
        self._over_limit = False

    @property
    def open(self) -> int:
        """How many there are, including those in a handshake."""
        return len(self._waiting) + len(self._answering)

    def add(self, connection: "Connection") -> None:
        """Add a new connection; if there are too many, close another one."""
        if self.open >= self._limit:
            self._make_room()
        elif self.open < self._limit // 2:
            self._over_limit = False
        self.waits(connection)

    def waits(self, connection: "Connection") -> None:
        """Note that the connection waits for its client; if it did already, its timeout keeps running."""
        self._answering.pop(connection, None)
        self._waiting.setdefault(connection, asyncio.get_running_loop().time())

    def answers(self, connection: "Connection") -> None:
        """Note that the client waits for a response."""
        self._waiting.pop(connection, None)
        self._answering[connection] = None

    def remove(self, connection: "Connection") -> None:
        """Forget a closed connection."""
        self._waiting.pop(connection, None)
        self._answering.pop(connection, None)

    def _make_room(self) -> None:
        """Close the connection that has waited longest for its client; if none waits, the longest being answered."""
        if not self._over_limit:  # logged once until there is room again
            self._over_limit = True
            _log.warning("too many connections, closing those without a request", open=self.open)
        next(itertools.chain(self._waiting, self._answering)).abort()

    async def watch(self) -> None:
        """Close connections whose clients have exceeded the timeout."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self.timeout / 10))
            oldest = loop.time() - self.timeout
            for connection, since in list(self._waiting.items()):
                if since > oldest:
                    break
                if self._waiting.get(connection) == since:
                    connection.abort()
                    await asyncio.sleep(0)  # closing a thousand at once would delay everything else

    def close_silent(self) -> None:
        """Close connections that uvicorn does not know yet, because their clients have sent nothing."""
        for connection in [each for each in self._waiting if each not in self.connections]:
            connection.abort()

    def abort(self) -> None:
        """Close all of them now."""
        for connection in [*self._waiting, *self._answering]:
            connection.abort()


class Server(uvicorn.Server):
    """Serves `app` until `stop` is set, over TLS if there is a context; then answers the requests in flight.

    Each connection calls `context` when it opens, and so gets the latest one. `limits.connections` is lowered to what
    the limit of open files allows.
    """

    def __init__(
        self,
        app: ASGIApp,
        stop: asyncio.Event,
        context: Callable[[], ssl.SSLContext | None],
        limits: Limits = LIMITS,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            loop="asyncio",
            ws="none",
            interface="asgi3",
            lifespan="off",
            workers=1,
            backlog=_ACCEPTED_AT_ONCE,
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            log_level="error",
            timeout_keep_alive=int(limits.client_timeout) + 1,
            timeout_graceful_shutdown=limits.shutdown_timeout,
            h11_max_incomplete_event_size=_MAX_HEAD,
        )
        super().__init__(config)
        self.server_state: Connections = Connections(context, limits)
        # The buffer that asyncio allocates for each TLS connection, by default 256 KiB.
        SSLProtocol.max_size = _RECEIVE_BUFFER
        self._stop, self._drain_timeout = stop, limits.drain_timeout

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise the signal again at the end, so that the exit code is not 0."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. asyncio also accepts `backlog` connections at once, so the length of the queue is set afterwards."""
        for listening in sockets or ():
            # Accepted connections inherit the sizes.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(_BACKLOG)
        self._watching = asyncio.create_task(self.server_state.watch())

    async def main_loop(self) -> None:
        """Tick once a second until the stop, for the Date header; uvicorn itself would tick ten times a second."""
        while not (await self.on_tick(0) or self._stop.is_set()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the requests in flight, with less time for clients; then close all connections."""
        self.server_state.timeout = self._drain_timeout
        self.server_state.close_silent()
        await super().shutdown(sockets)
        self.server_state.abort()
        self._watching.cancel()


class _Flow(FlowControl):
    """Keeps reading while a request is answered, so that a disconnect is noticed."""

    def pause_reading(self) -> None:
        """Do nothing: `Connection.data_received` bounds the bytes."""


class Connection(H11Protocol):
    """A client's connection, from the moment it is accepted."""

    server_state: Connections

    def __init__(self, *args: Any, **named: Any) -> None:  # noqa: ANN401  as inherited
        super().__init__(*args, **named)
        self.app = self._answer
        self._context = self.server_state.context()
        self._accepted: asyncio.Transport
        self._handshake: asyncio.Task[None]
        self._is_ready = False
        self._answering: asyncio.Task[Any] | None = None
        # Bytes that arrive before `start_tls` returns.
        self._early = b""
        self._unanswered = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as inherited
        """Begin a TLS handshake, or wait for the first bytes: until they arrive, a connection costs little."""
        self._accepted = transport
        self.server_state.add(self)
        if self._context:
            transport.pause_reading()
            self._handshake = self.loop.create_task(self._shake_hands(self._context))

    async def _shake_hands(self, context: ssl.SSLContext) -> None:
        REFUSED.set(self._refused)
        try:
            secured = await self.loop.start_tls(self._accepted, self, context, server_side=True)
        except OSError:
            secured = None
        if secured is None:  # the client disconnected, was refused or took too long
            self.server_state.remove(self)
            return
        self._be_ready(secured)
        if self._early:
            self.data_received(self._early)

    def _refused(self, reason: str) -> None:
        """Log why a handshake was refused, and give the client a moment to read the alert."""
        peer = self._accepted.get_extra_info("peername")
        _log.warning("TLS handshake refused", client=peer and peer[0], reason=reason)
        self.loop.call_soon(self._accepted.write_eof)
        self.loop.call_later(_ALERT_TIMEOUT, self._accepted.abort)

    def _be_ready(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._is_ready = True

    def data_received(self, data: bytes) -> None:
        """Pass the bytes to uvicorn; close the connection if there are too many for one request."""
        if not self._is_ready:
            if self._context:
                self._early += data
                return
            self._be_ready(self._accepted)
        if self.transport.is_closing():
            return
        self._unanswered += len(data)
        super().data_received(data)
        self._note_whose_turn()
        if self._unanswered > _MAX_UNANSWERED:
            self.abort()

    def handle_events(self) -> None:
        """Skip empty lines before a request, which h11 rejects. RFC 9112, section 2.2."""
        if self.conn.their_state is h11.IDLE:
            received, _ = self.conn.trailing_data
            if received.startswith((b"\r", b"\n")):
                self.conn = h11.Connection(h11.SERVER, _MAX_HEAD)
                if rest := received.lstrip(b"\r\n"):
                    self.conn.receive_data(rest)
        super().handle_events()

    def send_400_response(self, msg: str) -> None:
        """Answer 400 to an invalid head of a request; if the body is invalid, only close the connection."""
        if self.conn.our_state is h11.IDLE:
            super().send_400_response(msg)
        else:
            self.transport.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application; cancelled if the client disconnects or the shutdown takes too long."""
        self._answering = asyncio.current_task()
        try:
            # Read the whole body, which no route needs, before answering: h11 would treat the rest as the next request.
            while (await receive()).get("more_body"):
                pass
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
                await _TWO_LENGTHS(scope, receive, send)
            else:
                await self.config.loaded_app(_in_origin_form(scope), receive, send)
        except asyncio.CancelledError:
            # Otherwise uvicorn would log that there is no response.
            self.cycle.disconnected = True
            self.abort()

    def on_response_complete(self) -> None:
        """Wait for the client again."""
        self._unanswered = len(self.conn.trailing_data[0])
        super().on_response_complete()
        self._note_whose_turn()

    def pause_writing(self) -> None:
        """Wait until the client reads the response."""
        super().pause_writing()
        self._note_whose_turn()

    def resume_writing(self) -> None:
        """Continue, now that the client has read it."""
        super().resume_writing()
        self._note_whose_turn()

    def _note_whose_turn(self) -> None:
        if self._owes_answer() and not self.flow.write_paused:
            self.server_state.answers(self)
        else:
            self.server_state.waits(self)

    def _owes_answer(self) -> bool:
        """Return whether a complete request has not been fully answered."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def eof_received(self) -> bool:  # type: ignore[override]  # as in asyncio
        """Return whether a client that has shut down its side still gets a response; over TLS, asyncio forbids it."""
        if self._context or not self._owes_answer():
            return False
        self.cycle.keep_alive = False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop answering."""
        self.server_state.remove(self)
        if self._is_ready:
            super().connection_lost(exc)
        if self._answering:
            self._answering.cancel()

    def abort(self) -> None:
        """Close the connection now."""
        self.server_state.remove(self)
        self._accepted.abort()


def _in_origin_form(scope: Scope) -> Scope:
    """Return `scope` without the scheme and host of a request target in absolute form. RFC 9112, section 3.2.2."""
    target = re.match(r"(?i)https?://([^/?#]*)", scope["path"])
    if not target:
        return scope
    raw = re.sub(rb"(?i)^https?://[^/?#]*", b"", scope["raw_path"]) or b"/"
    headers = [pair for pair in scope["headers"] if pair[0] != b"host"]
    host = (b"host", target[1].encode())
    return {**scope, "path": scope["path"][target.end() :] or "/", "raw_path": raw, "headers": [host, *headers]}


def _limit(connections: int) -> int:
    """Return `connections`, or fewer if the limit of open files leaves no room for them."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return connections
    return min(connections, max(files - _SPARE_FILES, files // 2))
