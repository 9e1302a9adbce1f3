"""The lists of a workspace over HTTP, as the Creatify API answers.

Faults are set from Python, except for `POST FAIL_PATH`, which makes a model fail.
"""

import contextlib
import difflib
import ipaddress
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
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import parse_qs, parse_qsl

from creatify_exporter.simulator.account import Account
from creatify_exporter.simulator.clock import Clock
from creatify_exporter.simulator.faults import Faults, Response, refused, replied
from creatify_exporter.simulator.listing import Encoder, Listing, envelope
from creatify_exporter.simulator.products import TEXT_GENERATOR

BALANCE_PATH = "/api/remaining_credits/"
FAIL_PATH = "/simulator/fail"
"""`POST FAIL_PATH?model=NAME&ratio=RATIO`, without keys, from this machine only."""

BLOCK = 300  # pieces per block: some 300 KB of a list


class Request(NamedTuple):
    """A received request."""

    at: float
    """The simulated instant, epoch seconds; the reply shows the account at exactly this instant."""
    path: str
    """Including the query."""
    headers: Mapping[str, str]
    """By lower-case name."""


@dataclass
class Served:
    """One list, as the API serves it."""

    account: Account
    listing: Listing = field(default_factory=Listing)
    path: str = ""
    """Where the list has moved to; empty: the documented path."""
    in_plan: bool = True
    """Whether the workspace's plan includes the product; if not, its list answers 403."""

    def __post_init__(self) -> None:
        self.path = self.path or self.account.product.path


@dataclass
class Simulator:
    """Serves one workspace on a port while its context is entered; port 0 means any free one.

    All attributes except host and port may be changed while it serves.
    """

    account: Account
    """The account of text_generator's list …"""
    clock: Clock
    host: str = "127.0.0.1"
    port: int = 0
    api_id: str = "simulated-id"
    api_key: str = "simulated-key"
    listing: Listing = field(default_factory=Listing)
    """… and how that list behaves."""
    gzip: bool = False
    """Compress if the client accepts it."""
    chunked: bool = False
    """Send lists in chunks, without Content-Length."""
    faults: Faults = field(default_factory=Faults)
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=100_000))
    """The latest requests, oldest first."""
    lists: dict[str, Served] = field(default_factory=dict)
    """The other lists, by name; a list that is missing here answers 404."""

    def __enter__(self) -> Self:
        self._encoders: dict[str, Encoder] = {}
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
        """The base URL, without a trailing slash."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def served(self) -> dict[str, Served]:
        """Return all lists by name."""
        return {TEXT_GENERATOR.api: Served(self.account, self.listing), **self.lists}

    def list_path(self, api: str) -> str:
        """Return the path of a list."""
        return self.served()[api].path

    def listings(self, api: str = TEXT_GENERATOR.api) -> list[Request]:
        """Return the requests for a list, including its pages."""
        path = self.list_path(api)
        return [request for request in self.requests if request.path.partition("?")[0] == path]

    def remaining_credits(self, at: float) -> float:
        """Return the balance: the package of text_generator's account, less today's cost of all lists."""
        spent = sum(served.account.spent(at) for served in self.served().values())
        return self.account.package - spent % self.account.package

    def fail(self, model: str, ratio: float) -> None:
        """Make tasks of a model that are created from now on fail at this ratio, in all lists with that model.

        Raises:
            ValueError: no list has this model, or the ratio is not between 0 and 1.

        """
        accounts = [served.account for served in self.served().values()]
        having = [account for account in accounts if model in account.models]
        if not having:
            near = difflib.get_close_matches(model, {name for each in accounts for name in each.models}, cutoff=0)
            raise ValueError(f"no model is called {model!r}; the closest names are {', '.join(near)}")
        if not 0 <= ratio <= 1:
            raise ValueError(f"the ratio must be a number between 0 and 1, not {ratio}")
        for account in having:
            account.fail(model, ratio, self.clock.now())

    def answer(self, request: Request) -> Response:
        """Answer as the real API would, before faults are applied."""
        path, _, query = request.path.partition("?")
        response = Response(request.at, path, request.headers.get("host", ""))
        found = self._route(path)
        if not found and self._route(path + "/"):
            return replied(301, location=f"{path}/" + (f"?{query}" if query else ""))(response)
        if not found:
            return refused(404, "Not found.")(response)
        if "x-api-id" not in request.headers or "x-api-key" not in request.headers:
            return self._refused(response, 401, "Authentication credentials were not provided.")
        if (request.headers["x-api-id"], request.headers["x-api-key"]) != (self.api_id, self.api_key):
            return self._refused(response, 401, "Invalid API credentials.")
        return found(response, query)

    def command(self, path: str, at: float, *, local: bool) -> Response:
        """Answer a request to the simulator itself, not to the API."""
        path, _, query = path.partition("?")
        response = Response(at, path, "")
        if path != FAIL_PATH:
            return refused(404, "Not found.")(response)
        if not local:
            return refused(403, "Failures can only be requested from this machine.")(response)
        asked = dict(parse_qsl(query))
        try:
            self.fail(asked.get("model", ""), _number(asked.get("ratio", "")))
        except ValueError as error:
            return refused(400, str(error))(response)
        return replied(200, json.dumps(asked).encode())(response)

    def _route(self, path: str) -> Callable[[Response, str], Response] | None:
        if path == BALANCE_PATH:
            return self._balance
        for api, served in self.served().items():
            if path == served.path:
                return partial(self._list, api, served)
            name = path.removeprefix(served.path).removesuffix("/")
            if path == f"{served.path}{name}/" and "/" not in name:
                return partial(self._task, api, served, name)
        return None

    def _refused(self, response: Response, status: int, text: str) -> Response:
        """Refuse in the list's error format."""
        asked = (each.account.product for each in self.served().values() if response.path.startswith(each.path))
        words = {"list": [text], "field": {"non_field_errors": [text]}, "detail": {"detail": text}}
        body = words[next(asked, TEXT_GENERATOR).errors]
        return replied(status, json.dumps(body).encode())(response)

    def _list(self, api: str, served: Served, response: Response, query: str) -> Response:
        if not served.in_plan:
            return self._refused(response, 403, f"Your plan does not include {api}.")
        if served.listing.page_size is not None:
            return self._page(api, served, response, query)
        tasks = served.listing.tasks(served.account, response.at)
        return replace(response, pieces=self._encoder(api, served).array(tasks, response.at), chunked=self.chunked)

    def _page(self, api: str, served: Served, response: Response, query: str) -> Response:
        tasks = served.listing.tasks(served.account, response.at)
        size, overlap = served.listing.page_size or 1, served.listing.overlap
        step = size - overlap
        wanted, pages = parse_qs(query).get("page", ["1"])[0], max(1, math.ceil((len(tasks) - overlap) / step))
        number = int(wanted) if wanted.isdecimal() else 0
        if not 1 <= number <= pages:
            return refused(404, "Invalid page.")(response)
        previous, following = (
            f"http://{response.host}{response.path}?page={n}" if 1 <= n <= pages else None
            for n in (number - 1, number + 1)
        )
        page = self._encoder(api, served).array(tasks[(number - 1) * step : (number - 1) * step + size], response.at)
        return replace(response, pieces=envelope(page, len(tasks), previous, following), chunked=self.chunked)

    def _task(self, api: str, served: Served, name: str, response: Response, _query: str) -> Response:
        task = next((task for task in served.account.tasks(response.at) if task.id == name), None)
        if not task:
            return refused(404, "Not found.")(response)
        return replace(response, pieces=self._encoder(api, served).entry(task, response.at))

    def _balance(self, response: Response, _query: str) -> Response:
        body = json.dumps({"remaining_credits": self.remaining_credits(response.at)}, separators=(",", ":"))
        return replace(response, pieces=[body.encode()])

    def _encoder(self, api: str, served: Served) -> Encoder:
        encoder = self._encoders.get(api)
        if encoder is None or (encoder.account, encoder.style) != (served.account, served.listing.style):
            encoder = self._encoders[api] = Encoder(served.account, served.listing.style)
        return encoder


class _Server(socketserver.ThreadingTCPServer):
    """One thread per connection; not `http.server.HTTPServer`, which looks up its own name in DNS first."""

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
        """Stop immediately, whatever the handlers are doing."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Do not report clients that disconnect."""
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

    def do_POST(self) -> None:
        # The body is not read, so no other request can follow on this connection.
        self.close_connection = True
        simulator = self.server.simulator
        local = ipaddress.ip_address(self.client_address[0]).is_loopback
        self._reply(simulator.command(self.path, simulator.clock.now(), local=local))

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
            raise ConnectionAbortedError("the simulator is stopping")

    def hang(self) -> None:
        self.connection.recv(1)

    def close(self) -> None:
        self.close_connection = True

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())  # the socket's own close() would wait until its files are closed
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Do not log: `Simulator.requests` is the log."""


def _number(text: str) -> float:
    """Return a number; NaN if the text is not one."""
    try:
        return float(text)
    except ValueError:
        return math.nan


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
