"""The connections of the server: how many there are, how long they may take, and that nothing is left of them.

HTTP/1.1 is spoken on each of them, by h11, and one request is answered at a time. Whose turn it is, is known here: a
connection *waits* for its client, be it for the rest of a request or until an answer is taken, or it is being
*answered*. Who lets the server wait for too long is dropped, and when there are too many, or too much of what they have
not taken, who has let it wait for the longest.
"""

import asyncio
import errno
import itertools
import resource
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from email.utils import formatdate
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import h11
import structlog
from starlette.types import ASGIApp, Message, Scope

_LONGEST_HEAD: Final = 2**14  # bytes of a request before its body; also of the requests that come before their turn
_LONGEST_REQUEST: Final = 2**16  # bytes, the body included, for which no route has a use
_PIECE: Final = 2**15  # bytes of an answer that are held for the system to take
_RECEIVE_BUFFER: Final = 2**15  # bytes that the system keeps for a connection; Linux makes it twice that
_SEND_BUFFER: Final = 2**16  # likewise; with less than two segments of loopback, each piece waits 40 ms for a receipt
_QUEUE: Final = 2**15  # connections to be accepted; the system has a lower limit, beyond which a client waits seconds
_BATCH: Final = 64  # connections that are accepted before others have their turn
_SPARE_FILES: Final = 256  # for the ledger, for fetches and for all else that is not a connection here
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = structlog.get_logger()


class Limits(NamedTuple):
    """What clients may take; times in seconds."""

    connections: int = 1000
    patience: float = 30.0  # until a request has to be complete, or an answer taken
    untaken: int = 2**26  # bytes of answers that clients do not take, those that they share counted once
    stop: float = 25.0  # for requests in flight after SIGTERM; Kubernetes allows 30
    farewell: float = 2.0  # for an answer to be taken then


LIMITS: Final = Limits()


class Wait(NamedTuple):
    """Since when a client lets us wait, and the answer that it has not taken."""

    since: float
    answer: bytes


class Connections:
    """Serves `app`, over TLS with a context.

    `limits.connections` is lowered to what the limit of open files leaves room for, after that has been raised.
    """

    def __init__(self, app: ASGIApp, context: ssl.SSLContext | None = None, limits: Limits = LIMITS) -> None:
        self.app, self.context = app, context
        self._limits = limits
        self._room = _room(self._limits.connections)
        self._patience = self._limits.patience
        self._waiting: dict[Connection, Wait] = {}  # the longest-waiting first
        self._answered: dict[Connection, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._crowded = False
        self._empty = asyncio.Event()
        SSLProtocol.max_size = _RECEIVE_BUFFER  # what asyncio sets aside for each connection over TLS, else 256 KiB

    async def serve(self, sockets: Sequence[socket.socket], stop: asyncio.Event) -> None:
        """Serve on listening sockets until `stop`; requests in flight are answered before it returns."""
        loop = asyncio.get_running_loop()
        watching, stopping = loop.create_task(self._watch()), loop.create_task(stop.wait())
        for listening in sockets:
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)  # connections inherit it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            listening.listen(_QUEUE)
            loop.add_reader(listening, self._accept, listening)
        await asyncio.wait([watching, stopping], return_when=asyncio.FIRST_COMPLETED)
        for listening in sockets:
            loop.remove_reader(listening)
            listening.close()
        await self._finish()
        for task in (watching, stopping):
            task.cancel()
        if watching.done():
            watching.result()

    def _accept(self, listening: socket.socket) -> None:
        """Take those who are there, some at a time: a flood of them is not all that the loop is to see."""
        for _ in range(_BATCH):
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:  # the others, such as ECONNABORTED, are about the one that left
                    self._pause(listening, error)
                    return
            else:
                self._admit(sock)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Try again in a moment: the one that is dropped has not let go of its file yet, and there may be none."""
        self._make_room(error.strerror or str(error))
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        loop.call_later(0.1, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:  # else it was closed meanwhile
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _admit(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if self.open >= self._room:
            self._make_room(f"{self._room} are open")
        elif self.open < self._room // 2:
            self._crowded = False
        self.waits(Connection(self, sock))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do what is to be done for a connection."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # a task that nobody refers to may be collected before it ends
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._waiting) + len(self._answered)

    def _make_room(self, reason: str) -> None:
        """Drop who waits for the longest; where all are being answered, for which a stop waits, the oldest of them.

        So a newcomer gets in always, and a probe with it.
        """
        if not self._crowded:  # told once for each crowd
            self._crowded = True
            _log.warning("too many connections, those without a request are dropped", reason=reason)
        oldest = next(itertools.chain(self._waiting, self._answered), None)
        if oldest:
            oldest.drop()

    def waits(self, connection: "Connection", answer: bytes = b"") -> None:
        """Note that it is the client's turn, to take an answer or to ask for one."""
        self._answered.pop(connection, None)
        self._waiting[connection] = Wait(asyncio.get_running_loop().time(), answer)
        if answer:
            self._bound_answers()

    def _bound_answers(self) -> None:
        """Drop those who have let us wait the longest with answers that take too much memory, but the last one."""
        owing = [(each, wait.answer) for each, wait in self._waiting.items() if wait.answer]
        while len(owing) > 1 and sum({id(answer): len(answer) for _, answer in owing}.values()) > self._limits.untaken:
            owing.pop(0)[0].drop()

    def answers(self, connection: "Connection") -> None:
        """Note that it is ours."""
        self._waiting.pop(connection, None)
        self._answered[connection] = None

    def forget(self, connection: "Connection") -> None:
        """Note that it has ended."""
        self._waiting.pop(connection, None)
        self._answered.pop(connection, None)
        if not self.open:
            self._empty.set()

    async def _watch(self) -> None:
        """Drop those who let us wait for too long."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self._patience / 10))
            latest = loop.time() - self._patience
            for connection, wait in list(self._waiting.items()):
                if wait.since > latest:
                    break
                if self._waiting.get(connection) is wait:
                    connection.drop()
                    await asyncio.sleep(0)  # a thousand at once would keep the others waiting

    async def _finish(self) -> None:
        """End all connections, those with a request once it is answered and the answer taken."""
        self._patience = self._limits.farewell
        for connection in [*self._waiting, *self._answered]:
            connection.finish()
        if self.open:
            self._empty.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), self._limits.stop)
        for connection in [*self._waiting, *self._answered]:
            connection.drop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)


class Connection(asyncio.Protocol):
    """A client's connection, from the moment it is accepted."""

    def __init__(self, connections: Connections, sock: socket.socket) -> None:
        self._connections, self._sock = connections, sock
        self._task: asyncio.Task[None] | None = None  # the handshake, then an answer
        self._connected = self._answering = self._last = False
        self._transport: asyncio.Transport
        self._http: h11.Connection
        self._response: h11.Response
        self._writable: asyncio.Event
        self._received = 0  # bytes that belong to no request that is complete
        asyncio.get_running_loop().add_reader(sock, self._begin)

    def _begin(self) -> None:
        """Go on, now that the client has said something: as long as it does not, it costs next to nothing."""
        asyncio.get_running_loop().remove_reader(self._sock)
        self._task = self._connections.spawn(self._connect())
        self._task.add_done_callback(self._let_go)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: self, self._sock, ssl=self._connections.context)
        except OSError:  # in the handshake
            self.drop()

    def _let_go(self, _: object) -> None:
        if not self._connected:
            self._sock.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready for a request."""
        self._connected, self._transport = True, transport  # type: ignore[assignment]  # this kind is for streams
        self._http, self._writable = h11.Connection(h11.SERVER, _LONGEST_HEAD), asyncio.Event()
        self._writable.set()
        self._transport.set_write_buffer_limits(1)  # with 0, TLS would wait for nothing to be taken

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; while a request is answered, the next ones wait, as far as there is room."""
        if self._transport.is_closing():
            return
        self._received += len(data)
        self._http.receive_data(data)
        if not self._answering:
            self._advance()
        if self._answering and self._received > _LONGEST_HEAD:
            self.drop()

    def eof_received(self) -> bool:
        """Take notice that the client will say no more; over a plain connection, it may still hear an answer."""
        if not self._transport.is_closing():
            self._http.receive_data(b"")
            if not self._answering:
                self._advance()
        return self._answering and self._connections.context is None

    def pause_writing(self) -> None:
        """Take notice that the client does not take what it is sent."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Take notice that it has taken it."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as inherited
        """Leave nothing behind."""
        self._connections.forget(self)
        if self._task:
            self._task.cancel()

    def drop(self) -> None:
        """End it now."""
        self._connections.forget(self)
        if self._connected:
            self._transport.abort()
        elif self._task:
            self._task.cancel()
        else:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()

    def finish(self) -> None:
        """End it as soon as no request is in flight."""
        self._last = True
        if not self._connected:
            self.drop()
        elif not self._answering:
            self._transport.close()

    def _advance(self) -> None:
        """Read up to the end of the next request, and begin to answer it."""
        try:
            while not self._transport.is_closing() and (event := self._http.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Request):
                    self._take(event)
                elif isinstance(event, h11.EndOfMessage):
                    self._begin_answer()
                    return
                elif isinstance(event, h11.ConnectionClosed):
                    self._transport.close()
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint)
        if self._received > _LONGEST_REQUEST:
            self._refuse(413, "nothing here takes so large a body")
        elif self._http.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[]))

    def _take(self, request: h11.Request) -> None:
        self._request = request
        if not request.http_version.startswith(b"1."):  # such as the first words of HTTP/2
            self._refuse(505, "only HTTP/1.1 is spoken here")
        elif {b"content-length", b"transfer-encoding"} <= {name for name, _ in request.headers}:
            # A proxy that goes by the other one takes a part of the body for the next request. RFC 9112, section 6.1
            self._refuse(400, "a body cannot have two lengths")

    def _refuse(self, status: int, reason: str = "") -> None:
        """Answer what does not get as far as the app, and close; the reason stands beside the status."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self._transport.is_closing():
            headers = [(b"content-length", b"0"), (b"connection", b"close"), _date()]
            self._write(h11.Response(status_code=status, reason=reason, headers=headers), h11.EndOfMessage())
        self._transport.close()

    def _begin_answer(self) -> None:
        self._answering, self._received = True, len(self._http.trailing_data[0])
        self._connections.answers(self)
        self._task = self._connections.spawn(self._answer(self._scope()))

    def _scope(self) -> Scope:
        path, _, query = self._request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": self._request.http_version.decode(),
            "method": self._request.method.decode(),
            "scheme": "https" if self._connections.context else "http",
            "path": unquote(path.decode()),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(self._request.headers),
            "client": None,
            "server": self._transport.get_extra_info("sockname")[:2],
        }

    async def _answer(self, scope: Scope) -> None:
        try:
            await self._connections.app(scope, _nothing, self._send)
        except Exception:  # noqa: BLE001 - whatever breaks an answer breaks its own only
            _log.exception("a request was not answered as it should")
        self._answering = False
        self._connections.waits(self)
        if self._http.our_state is h11.SEND_RESPONSE:
            self._refuse(500)
        elif self._last or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self._transport.close()
        else:
            self._http.start_next_cycle()
            self._advance()

    async def _send(self, message: Message) -> None:
        """Send a part of the answer, as ASGI has it; return when no more than a piece of it waits to be taken."""
        if message["type"] == "http.response.start":
            close = [(b"connection", b"close")] if self._last else []
            headers = [*message["headers"], _date(), *close]
            self._response = h11.Response(status_code=message["status"], headers=headers)
            return
        body = b"" if self._request.method == b"HEAD" else message.get("body", b"")
        head = [self._response] if self._http.our_state is h11.SEND_RESPONSE else []
        self._write(*head, h11.Data(data=body[:_PIECE]))
        for start in range(_PIECE, len(body), _PIECE):
            await self._taken(body)
            self._write(h11.Data(data=body[start : start + _PIECE]))
        await self._taken(body)
        if not message.get("more_body", False):
            self._write(h11.EndOfMessage())

    async def _taken(self, body: bytes) -> None:
        if not self._writable.is_set():
            self._connections.waits(self, body)
            await self._writable.wait()
            self._connections.answers(self)

    def _write(self, *events: h11.Event) -> None:
        data = b"".join(filter(None, map(self._http.send, events)))
        if not self._transport.is_closing():  # else asyncio logs each attempt
            self._transport.write(data)


async def _nothing() -> Message:
    """Return what is left of a request's body."""
    return {"type": "http.request", "body": b"", "more_body": False}


def _date() -> tuple[bytes, bytes]:
    return b"date", formatdate(usegmt=True).encode()


def _room(connections: int) -> int:
    """Return how many of so many connections the limit of open files allows; raise it as far as they need it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):  # a system may know another limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return max(soft - _SPARE_FILES, soft // 2)
