"""Servers of a test's own, on free ports of 127.0.0.1, and replies that the simulated API does not give by itself."""

import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any, Self

from creatify_exporter.simulator import Fault, Response
from creatify_exporter.simulator.faults import Delivery, Wire


class Server(socketserver.ThreadingTCPServer):
    """Serves while it is entered, on a free port of 127.0.0.1; `connections` counts what came in."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, handler: type[socketserver.BaseRequestHandler], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.scheme = "https" if tls else "http"
        self.connections = 0
        self.tls = tls

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        self.connections += 1
        accepted, address = super().get_request()
        if self.tls:
            accepted = self.tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        return accepted, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent about clients that leave."""

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


class Recorder(Server):
    """Answers every request with a list, by default an empty one, and keeps its headers, names in lower case."""

    def __init__(self, tls: ssl.SSLContext | None = None, body: bytes = b"[]") -> None:
        self.heads: list[dict[str, str]] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                recorder.heads.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        super().__init__(Handler, tls)


class Proxy(Server):
    """An HTTP proxy, with CONNECT and without; `heads` are the requests as it got them. Or one that only drips."""

    def __init__(self, *, drips: bool = False, refuses: bool = False) -> None:
        self.heads: list[str] = []
        proxy = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                lines = list(iter(self.rfile.readline, b"\r\n"))
                proxy.heads.append(b"".join(lines).decode())
                method, target, _ = lines[0].split()
                if refuses:
                    self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                elif drips:
                    for byte in b"HTTP/1.1 200 Connection established, after quite a while\r\n\r\n":
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.1)
                elif method == b"CONNECT":
                    self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    self._pipe(target.decode(), b"")
                else:
                    _, _, authority, path = target.decode().split("/", 3)
                    self._pipe(authority, f"GET /{path} HTTP/1.1\r\n".encode() + b"".join(lines[1:]) + b"\r\n")

            def _pipe(self, authority: str, head: bytes) -> None:
                host, _, port = authority.rpartition(":")
                with socket.create_connection((host, int(port)), timeout=5) as upstream:
                    upstream.sendall(head)
                    back = threading.Thread(target=_copy, args=(upstream, self.connection), daemon=True)
                    back.start()
                    _copy(self.connection, upstream)
                    back.join(5)

        super().__init__(Handler)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


def delivered(deliver: Delivery) -> Fault:
    return lambda response: replace(response, deliver=deliver)


def said(raw: bytes) -> Fault:
    """Say exactly this, then close."""

    def deliver(wire: Wire, _head: bytes, _blocks: Iterable[bytes]) -> None:
        wire.send(raw)
        wire.close()

    return delivered(deliver)


hung_up = said(b"")


def reset(response: Response) -> Response:
    return replace(response, deliver=lambda wire, _head, _blocks: wire.reset())


@contextmanager
def silent_address() -> Iterator[tuple[str, int]]:
    """Yield an address that does not answer: its queue is full, so that it drops what else comes."""
    with socket.create_server(("127.0.0.2", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            with suppress(BlockingIOError):
                each.connect(address)
        yield address
        for each in waiting:
            each.close()
