"""The connections of the server: how many there are, how long they may take, and that nothing is left of them.

Hypercorn speaks HTTP on each of them. Whose turn it is, is known here: a connection *waits* for its client, be it for
the rest of a request or until an answer is taken, or it is being *answered*. Who lets the server wait for too long is
dropped, and when there are too many, who has let it wait for the longest.
"""

import asyncio
import errno
import itertools
import logging
import math
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, NamedTuple

import structlog
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import AsyncioSingleTask, WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LARGEST_BODY: Final = 2**16  # bytes; no route has a use for a body
_LONGEST_REQUEST: Final = 2**17  # bytes, headers and body and what else comes without being a request
_RECEIVE_BUFFER: Final = 2**15  # bytes that the system keeps for a connection
_STREAMS: Final = 32  # requests at one time on one HTTP/2 connection
_SPARE_FILES: Final = 256  # for the ledger, for fetches and for all else that is not a connection here
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = structlog.get_logger()


class Limits(NamedTuple):
    """What clients may take; times in seconds."""

    connections: int = 1000
    patience: float = 30.0  # until a request has to be complete, or an answer taken
    stop: float = 25.0  # for requests in flight after SIGTERM; Kubernetes allows 30
    farewell: float = 2.0  # for an answer to be taken then


LIMITS: Final = Limits()


class Connections:
    """Serves `app`, over TLS with a context.

    `limits.connections` is lowered to what the limit of open files leaves room for, after that has been raised.
    """

    def __init__(self, app: ASGIApp, context: ssl.SSLContext | None = None, limits: Limits = LIMITS) -> None:
        self.app, self.context = app, context
        self._limits = limits
        self._room = _room(self._limits.connections)
        self._patience = self._limits.patience
        self._waiting: dict[Connection, float] = {}  # since when, the longest-waiting first
        self._answered: dict[Connection, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._crowded = False
        self._told: set[str] = set()  # names of errors
        self.config, self.worker = _config(), WorkerContext(None)

    async def serve(self, sockets: Sequence[socket.socket], stop: asyncio.Event) -> None:
        """Serve on listening sockets until `stop`; requests in flight are answered before it returns."""
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[Any]] = [loop.create_task(self._accept(each)) for each in sockets]
        tasks += [loop.create_task(self._watch()), loop.create_task(stop.wait())]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for each in tasks[: len(sockets)]:
            each.cancel()
        await asyncio.wait(tasks[: len(sockets)])
        for listening in sockets:
            listening.close()
        await self._finish()
        for each in tasks:
            each.cancel()
        for each in done:
            each.result()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        listening.listen(self._limits.connections)
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError as error:
                await self._refused(error)
                continue
            self._admit(sock)
            await asyncio.sleep(0)  # else a flood of connections is all that the loop sees

    async def _refused(self, error: OSError) -> None:
        if error.errno in _NO_ROOM:  # the others, such as ECONNABORTED, are about the one that left
            self._make_room(error.strerror or str(error))
            await asyncio.sleep(0.1)

    def _admit(self, sock: socket.socket) -> None:
        if self.open >= self._room:
            self._make_room(f"{self._room} are open")
        elif self.open < self._room // 2:
            self._crowded = False
        self.waits(Connection(self, sock))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do what is to be done for a connection; a stop waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
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
        for connection in itertools.islice(itertools.chain(self._waiting, self._answered), 1):
            connection.drop()

    def waits(self, connection: "Connection") -> None:
        """Note that it is the client's turn."""
        self._answered.pop(connection, None)
        self._waiting[connection] = asyncio.get_running_loop().time()

    def answers(self, connection: "Connection") -> None:
        """Note that it is ours."""
        self._waiting.pop(connection, None)
        self._answered[connection] = None

    def forget(self, connection: "Connection") -> None:
        """Note that it has ended."""
        self._waiting.pop(connection, None)
        self._answered.pop(connection, None)

    def broke(self, error: Exception) -> None:
        """Tell what hypercorn did not expect of a client, once: clients could fill the log."""
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        name = type(error).__name__
        if name not in self._told:
            self._told.add(name)
            _log.warning("a client broke its connection", error=name)

    async def _watch(self) -> None:
        """Drop those who let us wait for too long."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self._patience / 10))
            latest = loop.time() - self._patience
            for connection in list(self._waiting):
                if self._waiting.get(connection, math.inf) <= latest:
                    connection.drop()
                    await asyncio.sleep(0)  # a thousand at once would keep the others waiting

    async def _finish(self) -> None:
        """End all connections, those with a request once it is answered."""
        await self.worker.terminated.set()
        self._patience = self._limits.farewell
        for connection in [*self._waiting, *self._answered]:
            connection.finish()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._limits.stop)
        for connection in [*self._waiting, *self._answered]:
            connection.drop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)


class Connection:
    """A client's connection, from the moment it is accepted."""

    def __init__(self, connections: Connections, sock: socket.socket) -> None:
        self._connections, self._sock = connections, sock
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._speaker: _Speaker | None = None
        self._received = 0  # bytes since the last complete request
        self._requests = 0  # that are complete
        self._working = 0  # of them, those that do not wait for the client to take a part of the answer
        self._dropped = False
        asyncio.get_running_loop().add_reader(sock, self._begin)

    def _begin(self) -> None:
        """Go on, now that the client has said something: as long as it does not, it costs next to nothing."""
        asyncio.get_running_loop().remove_reader(self._sock)
        self._task = self._connections.spawn(self._live())

    async def _live(self) -> None:
        try:
            await self._speak()
        except OSError:  # in the handshake
            pass
        except Exception as error:  # noqa: BLE001 - whatever a client does to hypercorn ends its own connection only
            self._connections.broke(error)
        finally:
            self.drop()

    async def _speak(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = _Protocol(reader, self._receive, self._lost)
        context = self._connections.context
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, self._sock, ssl=context)
        self._transport = transport
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        app: Any = partial(_answer, self, self._connections.app)  # hypercorn has types of its own for ASGI
        worker, config = self._connections.worker, self._connections.config
        self._speaker = _Speaker(ASGIWrapper(app), loop, config, worker, {}, reader, writer)
        await self._speaker.run()

    def _receive(self, size: int) -> None:
        self._received += size
        if self._received > _LONGEST_REQUEST:
            self.drop()

    def _lost(self) -> None:
        if self._speaker and self._task and not self._task.done():
            self._connections.spawn(self._end(self._speaker, self._task))

    async def _end(self, speaker: "_Speaker", task: asyncio.Task[None]) -> None:
        """End what hypercorn does for a client that is gone: it would leave tasks that nothing wakes.

        It has to know that before it is cancelled, else it would answer the cancelled requests with a 500.
        """
        with suppress(Exception):  # of a connection that broke
            await speaker.close()
        task.cancel()

    def drop(self) -> None:
        """End it now."""
        self._dropped = True
        self._connections.forget(self)
        if self._transport:
            self._transport.abort()
        elif self._task:
            self._task.cancel()
        else:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()

    def finish(self) -> None:
        """End it as soon as no request is in flight."""
        if self._transport is None:
            self.drop()
        elif not self._requests:  # else hypercorn ends it, since it knows that the server stops
            self._transport.close()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Work on a complete request."""
        self._received = 0
        self._requests += 1
        self._work(1)
        try:
            yield
        finally:
            self._requests -= 1
            self._work(-1)

    @contextmanager
    def handing_over(self) -> Iterator[None]:
        """Wait for the client to take a part of the answer."""
        self._work(-1)
        try:
            yield
        finally:
            self._work(1)

    def _work(self, more: int) -> None:
        worked, self._working = self._working > 0, self._working + more
        if worked != (self._working > 0) and not self._dropped:
            (self._connections.waits if worked else self._connections.answers)(self)


class _Protocol(asyncio.StreamReaderProtocol):
    """Tells what arrives, and the end of the connection even while hypercorn does not read."""

    def __init__(self, reader: asyncio.StreamReader, receive: Callable[[int], None], lost: Callable[[], None]) -> None:
        super().__init__(reader)
        self._receive, self._lost = receive, lost

    def data_received(self, data: bytes) -> None:
        """Take what has arrived."""
        super().data_received(data)
        self._receive(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        """Take notice that nothing can be read or written any more."""
        super().connection_lost(exc)
        self._lost()


class _Speaker(TCPServer):
    """Hypercorn on one connection, which leaves all clocks to us."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - as inherited
        super().__init__(*arguments)
        self.idle_task = _NoTask()

    async def close(self) -> None:
        """Take notice that the client is gone."""
        if hasattr(self, "protocol"):  # set once it runs
            await self.protocol.handle(Closed())


class _NoTask(AsyncioSingleTask):
    """In place of the one that closes idle connections: a task each, where one look a second does for all."""

    async def restart(self, *_: object) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""


async def _answer(connection: Connection, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request once it is complete."""

    async def hand_over(message: Message) -> None:
        with connection.handing_over():
            await send(message)

    if scope["type"] == "http":
        try:
            app = await _refusal(scope, receive) or app
        except ClientDisconnect:
            return
    with connection.answering():
        if scope["http_version"] == "2":
            await _unless_reset(app(scope, receive, hand_over), receive)
        else:  # there, the end of what a client says need not be the end of what it hears
            await app(scope, receive, hand_over)


async def _refusal(scope: Scope, receive: Receive) -> ASGIApp | None:
    """Read the body, for which no route has a use, to its end; return what answers where it has none."""
    if {b"content-length", b"transfer-encoding"} <= {name.lower() for name, _ in scope["headers"]}:
        # Two lengths: a proxy that goes by the other one takes a part of the body for the next request. RFC 9112, 6.1
        return PlainTextResponse("a body cannot have two lengths\n", 400, {"Connection": "close"})
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        size, more = size + len(message["body"]), message["more_body"]
        if size > _LARGEST_BODY:
            return PlainTextResponse("nothing here takes so large a body\n", 413)
    return None


async def _unless_reset(answering: Awaitable[None], receive: Receive) -> None:
    """Answer unless the client resets the stream: it could have new ones without end, and all would go on here."""
    tasks = [asyncio.ensure_future(answering), asyncio.ensure_future(receive())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


def _config() -> Config:
    config = Config()
    config.h2_max_concurrent_streams = _STREAMS
    config.max_app_queue_size = 0  # a full queue blocks the very task that would say that the request has ended
    config.include_server_header = False
    config.errorlog = logging.getLogger("hypercorn")
    return config


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
