"""Connections with limits short enough for a test, and an application that the test controls."""

import asyncio
import logging
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import h11
import pytest
import structlog
from starlette.types import Receive, Scope, Send

from creatify_exporter.web.handshake import Context
from creatify_exporter.web.listener import listen
from creatify_exporter.web.server import LIMITS, Limits, Server
from processes import reset, until

PAIR = Path(__file__).parents[1] / "certificates"
PATIENT = Limits(client_timeout=60.0)
HASTY = Limits(client_timeout=0.5, drain_timeout=0.5)
LARGE = 20_000_000  # bytes, more than the socket buffers hold
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    """Serves an application in a thread: `/held` is answered once it is released, `/large` is large."""

    def __init__(self, limits: Limits = PATIENT, context: ssl.SSLContext | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._stop, self._released = asyncio.Event(), asyncio.Event()
        self.context = context
        server = Server(self._answer, self._stop, lambda: self.context, limits)
        self.connections, self._serving = server.server_state, server.serve
        self.paths: list[str] = []
        self.cancelled = 0
        self._large: dict[bytes, bytes] = {}
        self._listening = listen(["127.0.0.1:0"])
        self.address = self._listening[0].getsockname()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.join()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serving(self._listening))

    async def _answer(self, scope: Scope, _: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        if scope["path"] == "/held":
            try:
                await self._released.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        body = scope["path"].encode()
        if scope["path"] == "/large":
            body = self._large.setdefault(scope["query_string"], b"x" * LARGE)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    def stop(self) -> None:
        with suppress(RuntimeError):  # it has stopped already
            self._loop.call_soon_threadsafe(self._stop.set)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._released.set)

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()

    def tasks(self) -> int:
        """How many there are besides those of the server."""

        async def count() -> int:
            return len(asyncio.all_tasks()) - 3  # the main one, the watch and this one

        return asyncio.run_coroutine_threadsafe(count(), self._loop).result(10)

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(self.address, timeout=20)
        connection.sendall(sent)
        return connection

    def held(self, count: int = 1) -> list[socket.socket]:
        """Return connections whose requests are being answered."""
        before = self.paths.count("/held")
        connections = [self.connect(GET.replace(b"/ ", b"/held ")) for _ in range(count)]
        until(lambda: self.paths.count("/held") == before + count)
        return connections

    def ask(self, sent: bytes = GET) -> bytes:
        with self.connect(sent) as connection:
            return connection.recv(1000)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as one:
        yield one


@pytest.fixture
def hasty() -> Iterator[Site]:
    with Site(HASTY) as one:
        yield one


def tls(kind: type[ssl.SSLContext] = ssl.SSLContext) -> ssl.SSLContext:
    context = kind(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PAIR / "server.pem", PAIR / "server.key")
    return context


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end closes it, possibly after sending something."""
    with suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass
    connection.close()
    return True


def hears(connection: socket.socket, what: bytes = b"/") -> bool:
    """Whether the other end answers with a body that ends like this."""
    received = b""
    while not received.endswith(what) and (data := connection.recv(1 << 16)):
        received += data
    return received.startswith(b"HTTP/1.1 200")


def taken(connection: socket.socket, pause: float = 0.0) -> int:
    """Return how many bytes the other end sends until it closes; read them with a pause before each piece."""
    received = 0
    while received <= LARGE and (data := connection.recv(1 << 20)):
        received += len(data)
        threading.Event().wait(pause)
    return received


def request(path: str, *headers: str, body: bytes = b"", method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode() + body


# --- Time ----------------------------------------------------------------------------------------------------------


def test_by_default_a_client_has_half_a_minute() -> None:
    assert LIMITS.client_timeout == 30


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        request("/", "X: y")[:-2],
        request("/", "Content-Length: 10", body=b"x"),
        request("/", "Transfer-Encoding: chunked", body=b"5\r\nx"),
    ],
)
def test_a_client_without_a_complete_request_is_closed(hasty: Site, sent: bytes) -> None:
    assert is_closed(hasty.connect(sent))
    until(lambda: hasty.tasks() == 0)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"])
def test_a_client_that_does_not_finish_its_handshake_is_closed(sent: bytes) -> None:
    with Site(HASTY, tls()) as site:
        assert is_closed(site.connect(sent))
        until(lambda: site.tasks() == 0)


def refused(site: Site, context: ssl.SSLContext) -> str:
    """Return the alert that a client gets, at the handshake or at its first request."""

    def ask() -> None:
        with site.connect() as plain, context.wrap_socket(plain) as connection:
            connection.sendall(GET)
            connection.recv(1)

    with pytest.raises(ssl.SSLError) as caught:
        ask()
    return str(caught.value.reason)


def test_a_refused_handshake_is_an_alert_to_the_client_and_a_line_in_the_log() -> None:
    without, wrong, old = (ssl.create_default_context(cafile=PAIR / "ca.pem") for _ in range(3))
    for each in (without, wrong, old):
        each.check_hostname = False
    wrong.load_cert_chain(PAIR / "server.pem", PAIR / "server.key")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    demanding = tls(Context)
    demanding.verify_mode = ssl.CERT_REQUIRED
    demanding.load_verify_locations(PAIR / "other-ca.pem")
    with structlog.testing.capture_logs() as events, Site(context=demanding) as site:
        assert refused(site, without) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        assert refused(site, wrong) == "TLSV1_ALERT_UNKNOWN_CA"
        demanding.minimum_version = ssl.TLSVersion.TLSv1_3
        assert refused(site, old) == "TLSV1_ALERT_PROTOCOL_VERSION"
        until(lambda: site.connections.open == 0)
    assert [(event["event"], event["client"], event["reason"]) for event in events] == [
        ("TLS handshake refused", "127.0.0.1", reason)
        for reason in (
            "peer did not return a certificate",
            "self-signed certificate in certificate chain",
            "unsupported protocol",
        )
    ]


def test_a_new_context_applies_in_full_to_new_connections() -> None:
    trusting = ssl.create_default_context(cafile=PAIR / "ca.pem")
    trusting.check_hostname = False
    with Site(context=tls(Context)) as site, trusting.wrap_socket(site.connect()) as before:
        assert before.version() == "TLSv1.3"
        site.context = tls(Context)
        site.context.maximum_version = ssl.TLSVersion.TLSv1_2
        with trusting.wrap_socket(site.connect()) as after:
            assert after.version() == "TLSv1.2"
        site.context.verify_mode = ssl.CERT_REQUIRED
        assert refused(site, trusting)
        before.sendall(GET)
        assert before.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "PATCH"])
def test_plain_http_on_the_tls_port_gets_an_explanation(method: str) -> None:
    with structlog.testing.capture_logs() as events, Site(context=tls(Context)) as site:
        answer = site.ask(request("/metrics", method=method))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"https://" in answer
        until(lambda: site.connections.open == 0)
    assert [event["reason"] for event in events] == ["plain HTTP on a TLS port"]


def test_a_broken_tls_record_ends_the_connection_without_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    trusting = ssl.create_default_context(cafile=PAIR / "ca.pem")
    trusting.check_hostname = False
    with structlog.testing.capture_logs() as events, Site(context=tls(Context)) as site:
        encrypted = trusting.wrap_socket(site.connect())
        encrypted.sendall(GET)
        assert encrypted.recv(1000)
        with socket.socket(fileno=encrypted.detach()) as plain:
            plain.settimeout(20)
            plain.sendall(b"no record of TLS")
            assert is_closed(plain)
        until(lambda: site.connections.open == 0)
    assert (events, [each for each in caplog.records if each.levelno > logging.DEBUG]) == ([], [])


def test_a_refused_client_that_keeps_sending_is_closed() -> None:
    with Site(context=tls(Context)) as site, site.connect(GET) as connection:
        with suppress(ConnectionError):
            while True:
                connection.sendall(GET * 1000)
        until(lambda: site.connections.open == 0)


def test_a_slow_drip_of_bytes_does_not_extend_the_timeout(hasty: Site) -> None:
    def drip() -> None:
        with hasty.connect(b"GET / HTTP/1.1\r\nHost: x\r\nX: ") as connection:
            while True:
                connection.sendall(b"x")
                threading.Event().wait(0.05)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        drip()


def test_an_idle_client_is_closed(hasty: Site) -> None:
    with hasty.connect(GET) as connection:
        assert hears(connection)
        connection.sendall(GET)
        assert hears(connection)
        assert is_closed(connection)


def test_a_request_may_be_answered_late(hasty: Site) -> None:
    (connection,) = hasty.held()
    for _ in range(2):
        assert is_closed(hasty.connect())  # one after the other
    hasty.release()
    assert hears(connection, b"/held")
    connection.close()


def test_a_client_that_does_not_read_its_response_is_closed(hasty: Site) -> None:
    connection = hasty.connect(request("/large", method="GET"))
    until(lambda: hasty.paths)
    until(lambda: hasty.connections.open == 0)
    until(lambda: hasty.tasks() == 0)
    connection.close()


def test_a_large_response_arrives_over_tls_too() -> None:
    with Site(HASTY, tls()) as site:
        trusting = ssl.create_default_context(cafile=PAIR / "ca.pem")
        trusting.check_hostname = False
        with trusting.wrap_socket(site.connect()) as connection:
            for _ in range(2):
                connection.sendall(GET)
                assert hears(connection)
            connection.sendall(request("/large", method="GET"))
            assert taken(connection) > LARGE


def test_a_slow_reader_gets_the_whole_response(site: Site) -> None:
    with site.connect(request("/large", "Connection: close", method="GET")) as connection:
        assert taken(connection, pause=0.02) > LARGE


# --- Number --------------------------------------------------------------------------------------------------------


def test_a_new_connection_replaces_the_one_that_has_waited_longest(stack: ExitStack) -> None:
    with structlog.testing.capture_logs() as events, Site(Limits(connections=10)) as site:
        answered = [stack.enter_context(each) for each in site.held(3)]
        waiting = []
        for sent in (b"", b"GET /", request("/", "Content-Length: 9"), GET, b"", b"", b""):
            waiting.append(stack.enter_context(site.connect(sent)))
            assert sent != GET or hears(waiting[-1])
            until(lambda: site.connections.open == len(answered) + len(waiting))
        for connection in waiting:
            newcomer = stack.enter_context(site.connect(GET))
            assert hears(newcomer)
            assert is_closed(connection)
        site.release()
        assert all(hears(each, b"/held") for each in answered)
    assert [event["event"] for event in events] == ["too many connections, closing those without a request"]


def test_a_new_connection_gets_in_even_if_all_others_are_being_answered(stack: ExitStack) -> None:
    with Site(Limits(connections=3)) as site:
        answered = [stack.enter_context(each) for each in site.held(3)]
        assert site.ask().startswith(b"HTTP/1.1 200")
        assert is_closed(answered[0])
        site.release()
        assert all(hears(each, b"/held") for each in answered[1:])


# --- Clients that leave --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("follows", [b"", GET, GET * 4000, GET * 20_000, b"GET /", b"\0" * 300_000])
def test_a_client_that_disconnects_before_its_response_leaves_nothing_behind(site: Site, follows: bytes) -> None:
    (connection,) = site.held()
    with suppress(ConnectionError):  # a request that is too long is not read to its end
        connection.sendall(follows)
    reset(connection)
    until(lambda: site.connections.open == 0)
    until(lambda: site.tasks() == 0)
    assert site.ask().startswith(b"HTTP/1.1 200")


def test_a_client_that_disconnects_leaves_nothing_behind_and_no_line_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for received in (0, 100_000) * 20:
        connection = site.connect(request("/large", method="GET") + GET)
        connection.recv(received)
        reset(connection)
    until(lambda: site.tasks() == 0)
    assert caplog.messages == []


def test_a_half_closed_client_still_gets_its_response(site: Site) -> None:
    (connection,) = site.held()
    connection.shutdown(socket.SHUT_WR)
    site.release()
    assert hears(connection, b"/held")
    assert is_closed(connection)
    until(lambda: site.tasks() == 0)


def test_a_connection_over_tls_costs_little_memory(stack: ExitStack) -> None:
    trusting = ssl.create_default_context(cafile=PAIR / "ca.pem")
    trusting.check_hostname = False
    with Site(context=tls()) as site:
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        for _ in range(20):
            connection = stack.enter_context(trusting.wrap_socket(site.connect()))
            connection.sendall(GET)
            assert hears(connection)
        taken, _ = tracemalloc.get_traced_memory()
    assert taken / 20 < 128 * 1024


# --- A stop --------------------------------------------------------------------------------------------------------


def test_a_shutdown_answers_requests_in_flight_and_waits_for_nothing_else(stack: ExitStack) -> None:
    with Site() as site:
        (answered,) = site.held()
        for sent in (b"", b"GET /", request("/", "Content-Length: 9"), GET):
            stack.enter_context(site.connect(sent))
        until(lambda: site.connections.open == 5 and "/" in site.paths)
        site.stop()
        until(lambda: site.connections.open == 1)
        site.release()
        assert hears(answered, b"/held")
        assert is_closed(answered)
        site.join()


def test_a_shutdown_waits_a_limited_time_for_a_client_to_read_its_response(stack: ExitStack) -> None:
    with Site(Limits(client_timeout=60.0, shutdown_timeout=60, drain_timeout=0.5)) as site:
        reading = stack.enter_context(site.connect(request("/large", method="GET")))
        stack.enter_context(site.connect(request("/large", method="GET")))
        until(lambda: site.paths == ["/large", "/large"])
        site.stop()
        assert taken(reading) > LARGE
        site.join()


def test_a_shutdown_gives_up_on_a_response_in_the_end(stack: ExitStack) -> None:
    with Site(Limits(client_timeout=60.0, shutdown_timeout=1)) as site:
        (held,) = site.held()
        stack.enter_context(held)
        site.stop()
        site.join()
        assert is_closed(held)


# --- What clients send ---------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    sent = [request(f"/{number}", "Content-Length: 5", body=b"12345") for number in range(50)]
    with site.connect(b"".join(sent) + request("/end", "Connection: close")) as connection:
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert [part.rpartition(b"/")[2] for part in received.split(b"HTTP/1.1 ")[1:-1]] == [b"%d" % n for n in range(50)]
    assert site.paths == [*(f"/{number}" for number in range(50)), "/end"]


@pytest.mark.parametrize("framing", ["Content-Length: 300000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("path", ["/", "/held"])
def test_a_large_body_is_not_read_to_its_end(site: Site, path: str, framing: str) -> None:
    piece = b"x" * 10_000
    with site.connect(request(path, framing)) as connection:
        with suppress(ConnectionError):
            for _ in range(30_000):
                connection.sendall(piece if "Length" in framing else b"2710\r\n" + piece + b"\r\n")
            pytest.fail("all of it was read")
        assert is_closed(connection)
    until(lambda: site.tasks() == 0)


def test_a_response_follows_the_body_which_is_not_read_byte_by_byte(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[int] = []
    receive = h11.Connection.receive_data

    def count(connection: h11.Connection, data: bytes) -> None:
        pieces.append(len(data))
        receive(connection, data)

    monkeypatch.setattr(h11.Connection, "receive_data", count)
    body = b"x" * 60_000
    with site.connect(request("/first", "Content-Length: 60000", body=body[:1])) as connection:
        until(lambda: pieces)
        assert site.paths == []
        connection.sendall(body[1:] + b"\r\n" + request("/second", "Connection: close"))
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert (received.count(b"HTTP/1.1 200"), site.paths) == (2, ["/first", "/second"])
    assert len(pieces) < 100


def test_a_client_whose_body_stalls_is_closed() -> None:
    with Site(HASTY) as site, site.connect(request("/", "Content-Length: 9", body=b"x")) as connection:
        assert is_closed(connection)
        assert site.paths == []


def test_an_idle_server_wakes_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[int] = []
    tick = Server.on_tick

    async def count(server: Server, counter: int) -> bool:
        ticks.append(counter)
        return await tick(server, counter)

    monkeypatch.setattr(Server, "on_tick", count)
    with Site() as site:
        time.sleep(1.2)
        assert site.ask().startswith(b"HTTP/1.1 200")
    assert len(ticks) <= 4, "uvicorn's own loop has more than ten"


def test_a_target_in_absolute_form_is_its_path(site: Site) -> None:
    paths = {"": "/", "/metrics": "/metrics", "/a%20b?c=http://d": "/a b"}
    for host in ("http://127.0.0.1", "HTTP://x:10081", "https://[::1]:1"):
        for path, expected in paths.items():
            assert site.ask(request(host + path)).startswith(b"HTTP/1.1 200")
            assert site.paths.pop() == expected


def test_empty_lines_before_a_request_are_skipped(site: Site) -> None:
    for between in (b"\r\n", b"\n", b"\r\n\r\n\r\n"):
        body = request("/first", "Content-Length: 2", body=b"xy")
        sent = between + body + between + request("/second") + between + request("/third", "Connection: close")
        for pieces in ([sent], [sent[at : at + 1] for at in range(len(sent))]):
            with site.connect() as connection:
                for piece in pieces:
                    connection.sendall(piece)
                received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            assert received.count(b"HTTP/1.1 200") == 3, pieces


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


HIDING = [
    # Each is one request to some parsers and two to others, or none at all.
    request("/", "Content-Length: 4", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    request("/", "Transfer-Encoding: chunked", "Content-Length: 40", body=b"0\r\n\r\n" + SMUGGLED),
    request("/", "Content-Length: 0", "Content-Length: 35", body=SMUGGLED),
    request("/", "Content-Length: 0, 35", body=SMUGGLED),
    request("/", "Content-Length: +35", body=SMUGGLED),
    request("/", "Content-Length: 0x23", body=SMUGGLED),
    request("/", "Content-Length: -1", body=SMUGGLED),
    request("/", "Content-Length : 35", body=SMUGGLED),
    request("/", "Content-Length:\r\n 35", body=SMUGGLED),
    request("/", "Content-Length: 35\r\n 0", body=SMUGGLED),
    request("/", "Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + SMUGGLED),
    request("/", "Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n" + SMUGGLED),
    request("/", "Transfer-Encoding: identity", "Content-Length: 35", body=SMUGGLED),
    request("/", "Transfer-Encoding : chunked", body=b"0\r\n\r\n" + SMUGGLED),
    request("/", "Transfer-Encoding:\x0bchunked", body=b"0\r\n\r\n" + SMUGGLED),
    request("/", "Transfer-Encoding: chunked\r\n , identity", body=b"0\r\n\r\n" + SMUGGLED),
    *(
        request("/", "Transfer-Encoding: chunked", body=size + b"\r\n" + SMUGGLED + b"\r\n0\r\n\r\n")
        for size in (b"0x23", b"+26", b"-26", b" 26", b"2_6", b"26 0", b"", b"g", b"0" * 30 + b"26", b"26\n")
    ),
    request("/", "Transfer-Encoding: chunked", body=b"1\r\nxx\r\n0\r\n\r\n" + SMUGGLED),
    request("/", "Transfer-Encoding: chunked", body=b"0;\n\r\n" + SMUGGLED),
    b"GET / HTTP/1.1\rHost: x\r\r" + SMUGGLED,
    b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n\x00\r\n\r\n" + SMUGGLED,
    b"GET / HTTP/1.1\r\n Host: x\r\n\r\n" + SMUGGLED,
    b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n" + SMUGGLED,
]


def test_no_request_is_hidden_in_another(site: Site) -> None:
    for raw in HIDING:
        with site.connect(raw) as connection:
            connection.shutdown(socket.SHUT_WR)
            received = b""
            with suppress(ConnectionResetError):
                while data := connection.recv(1 << 16):
                    received += data
        assert received.count(b"HTTP/1.1 ") <= 1, raw
        assert "/smuggled" not in site.paths, raw
    until(lambda: site.tasks() == 0)


def test_an_upgrade_to_another_protocol_is_ignored(site: Site) -> None:
    for offer in ("h2c", "websocket"):
        assert site.ask(request("/", "Connection: Upgrade", f"Upgrade: {offer}")).startswith(b"HTTP/1.1 200")


def test_a_client_that_pipelines_without_end_is_closed(site: Site) -> None:
    (connection,) = site.held()
    with suppress(ConnectionError):
        for _ in range(30_000):
            connection.sendall(GET * 100)
        pytest.fail("all of it was read")
    assert is_closed(connection)
    until(lambda: site.tasks() == 0)
