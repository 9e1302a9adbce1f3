"""The account behind HTTP, as the Creatify API answers; what goes wrong is decided in Python only."""

import contextlib
import json
import math
import os
import socket
import socketserver
import struct
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import parse_qs

from creatify_exporter.simulator.account import Account, Task
from creatify_exporter.simulator.clock import Clock
from creatify_exporter.simulator.faults import LIST_PATH, Faults, Response, refused, replied
from creatify_exporter.simulator.listing import Encoder, Listing, envelope

BALANCE_PATH = "/api/remaining_credits/"

BLOCK = 300  # pieces to a block: some 300 KB of a list


class Request(NamedTuple):
    """A request as it came in."""

    at: float
    """The simulated instant, epoch seconds; the reply shows the account at exactly this instant."""
    path: str
    """With the query."""
    headers: Mapping[str, str]
    """By lower-cased name."""


@dataclass
class Simulator:
    """Serves one account on a port of its own while it is entered; port 0 takes a free one.

    All attributes may be changed while it serves, host and port excepted.
    """

    account: Account
    clock: Clock
    host: str = "127.0.0.1"
    port: int = 0
    api_id: str = "simulated-id"
    api_key: str = "simulated-key"
    listing: Listing = field(default_factory=Listing)
    gzip: bool = False
    """Compress for those who accept it."""
    chunked: bool = False
    """Send lists in chunks, without Content-Length."""
    faults: Faults = field(default_factory=Faults)
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=100_000))
    """The latest requests, oldest first."""

    def __enter__(self) -> Self:
        self._encoder = Encoder(self.account, self.listing.style)
        self._server = _Server((self.host, self.port), self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="simulator", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        """Where it serves, without a slash at the end."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def listings(self) -> list[Request]:
        """Return the requests of the list, pages included."""
        return [request for request in self.requests if request.path.partition("?")[0] == LIST_PATH]

    def answer(self, request: Request) -> Response:
        """Answer as the real API would, faults not yet applied."""
        path, _, query = request.path.partition("?")
        response = Response(request.at, path, request.headers.get("host", ""))
        found = self._route(path)
        if not found and self._route(path + "/"):
            return replied(301, location=f"{path}/" + (f"?{query}" if query else ""))(response)
        if not found:
            return refused(404, "Not found.")(response)
        if "x-api-id" not in request.headers or "x-api-key" not in request.headers:
            return refused(401, "Authentication credentials were not provided.")(response)
        if (request.headers["x-api-id"], request.headers["x-api-key"]) != (self.api_id, self.api_key):
            return refused(401, "Invalid API credentials.")(response)
        return found(response, query)

    def _route(self, path: str) -> Callable[[Response, str], Response] | None:
        if path == LIST_PATH:
            return self._list
        if path == BALANCE_PATH:
            return self._balance
        name = path.removeprefix(LIST_PATH).removesuffix("/")
        return self._task if path == f"{LIST_PATH}{name}/" and "/" not in name else None

    def _list(self, response: Response, query: str) -> Response:
        tasks = self.listing.tasks(self.account, response.at)
        if self.listing.page_size is not None:
            return self._page(response, tasks, self.listing.page_size, query)
        return replace(response, pieces=self._encoded().array(tasks, response.at), chunked=self.chunked)

    def _page(self, response: Response, tasks: list[Task], size: int, query: str) -> Response:
        overlap, step = self.listing.overlap, size - self.listing.overlap
        wanted, pages = parse_qs(query).get("page", ["1"])[0], max(1, math.ceil((len(tasks) - overlap) / step))
        number = int(wanted) if wanted.isdecimal() else 0
        if not 1 <= number <= pages:
            return refused(404, "Invalid page.")(response)
        previous, following = (
            f"http://{response.host}{LIST_PATH}?page={n}" if 1 <= n <= pages else None for n in (number - 1, number + 1)
        )
        page = self._encoded().array(tasks[(number - 1) * step : (number - 1) * step + size], response.at)
        return replace(response, pieces=envelope(page, len(tasks), previous, following), chunked=self.chunked)

    def _task(self, response: Response, _query: str) -> Response:
        name = response.path.removeprefix(LIST_PATH).removesuffix("/")
        task = next((task for task in self.account.tasks(response.at) if task.id == name), None)
        if not task:
            return refused(404, "Not found.")(response)
        return replace(response, pieces=self._encoded().entry(task, response.at))

    def _balance(self, response: Response, _query: str) -> Response:
        body = json.dumps({"remaining_credits": self.account.remaining_credits(response.at)}, separators=(",", ":"))
        return replace(response, pieces=[body.encode()])

    def _encoded(self) -> Encoder:
        if (self._encoder.account, self._encoder.style) != (self.account, self.listing.style):
            self._encoder = Encoder(self.account, self.listing.style)
        return self._encoder


class _Server(socketserver.ThreadingTCPServer):
    """A thread for each connection; not http.server's, which asks the name service for its own name first."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], simulator: Simulator) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.simulator = simulator
        self.stopping = threading.Event()
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def stop(self) -> None:
        """Stop at once, whatever the handlers are doing."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent about clients that leave."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    """One connection, and the `Wire` of its replies."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.request)

    def finish(self) -> None:
        self.server.connections.discard(self.request)
        super().finish()

    def do_GET(self) -> None:
        simulator = self.server.simulator
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(simulator.clock.now(), self.path, headers)
        simulator.requests.append(request)
        fault = simulator.faults.take(self.path.partition("?")[0])
        response = simulator.answer(request)
        self._reply(fault(response) if fault else response)

    def _reply(self, response: Response) -> None:
        headers = {"Date": formatdate(response.at, usegmt=True), "Content-Type": "application/json"} | response.headers
        blocks = _blocks(response.pieces)
        chunked = response.chunked
        accepted = "gzip" in self.headers.get("Accept-Encoding", "")
        if self.server.simulator.gzip and accepted and "Content-Encoding" not in headers:
            headers["Content-Encoding"] = "gzip"
            blocks, chunked = _compressed(blocks), True
        headers |= (
            {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(sum(map(len, response.pieces)))}
        )
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}", *map(": ".join, headers.items())]
        response.deliver(self, "\r\n".join([*lines, "", ""]).encode(), _chunks(blocks) if chunked else blocks)

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def wait(self, seconds: float) -> None:
        if self.server.stopping.wait(seconds):
            raise ConnectionAbortedError("the simulator stops")

    def hang(self) -> None:
        self.connection.recv(1)

    def close(self) -> None:
        self.close_connection = True

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())  # the socket's own close would wait for its files
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing: `Simulator.requests` is the log."""


def _blocks(pieces: list[bytes]) -> Iterator[bytes]:
    for first in range(0, len(pieces), BLOCK):
        yield b"".join(pieces[first : first + BLOCK])


def _compressed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    deflate = zlib.compressobj(1, wbits=31)
    yield from filter(None, map(deflate.compress, blocks))
    yield deflate.flush()


def _chunks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        yield b"%x\r\n%s\r\n" % (len(block), block) if block else b""
    yield b"0\r\n\r\n"
