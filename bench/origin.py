"""Serves lists from files with as little work as possible, optionally no faster than a network.

Each answer on a connection has one task more than the previous one, at its beginning.
"""

import gzip
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import formatdate
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from lists import NEW_DATE, NEW_ID

GIGABIT: Final = 125_000_000  # bytes per second
HOW: Final = ("plain", "chunked", "gzip", "gigabit")
"""How a list can be sent: with its length, in chunks of 64 KB, compressed, or at 1 Gbit/s."""

_PIECE: Final = 64 * 1024


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder from another process; yield the URL below which `/HOW/FILE/...` is a list."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(folder, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


def _serve(folder: Path, pipe: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        pipe.send(listening.getsockname()[1])
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_answer, args=(connection, folder), daemon=True).start()


def _answer(connection: socket.socket, folder: Path) -> None:
    """Answer requests without bodies until the connection ends."""
    with connection, suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received, asked = b"", 0
        while piece := connection.recv(_PIECE):
            received += piece
            while b"\r\n\r\n" in received:
                head, _, received = received.partition(b"\r\n\r\n")
                how, name = head.split(b" ")[1].decode().split("/")[1:3]
                asked += 1
                _send(connection, folder / name, how, asked)


def _send(connection: socket.socket, path: Path, how: str, new: int) -> None:
    start, skipped = _beginning(path.with_suffix(".new"), new), 1  # the bracket
    if how == "gzip":
        path, start, skipped = path.with_suffix(".gz"), gzip.compress(start), 0  # a second member follows, RFC 1952
    size = path.stat().st_size - skipped + len(start)
    length = "Transfer-Encoding: chunked" if how == "chunked" else f"Content-Length: {size}"
    encoding = "Content-Encoding: gzip\r\n" if how == "gzip" else ""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: {formatdate(usegmt=True)}\r\n{encoding}{length}"
    connection.sendall(f"{head}\r\n\r\n".encode())
    with path.open("rb") as file:
        if how == "chunked":
            _send_chunks(connection, start, file.fileno(), skipped)
        elif how == "gigabit":
            _send_slowly(connection, start, file.fileno(), skipped)
        else:
            connection.sendall(start)
            connection.sendfile(file, skipped)


def _beginning(path: Path, new: int) -> bytes:
    """Return a bracket and this many new tasks."""
    task = path.read_bytes().replace(NEW_DATE, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode())
    return b"[" + b"".join(task.replace(NEW_ID, b"new-%d" % number) for number in range(new, 0, -1))


def _pieces(start: bytes, file: int, offset: int) -> Iterator[bytes]:
    yield start
    while piece := os.pread(file, _PIECE, offset):
        yield piece
        offset += len(piece)


def _send_chunks(connection: socket.socket, start: bytes, file: int, offset: int) -> None:
    for piece in _pieces(start, file, offset):
        connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
    connection.sendall(b"0\r\n\r\n")


def _send_slowly(connection: socket.socket, start: bytes, file: int, offset: int) -> None:
    began, sent = time.perf_counter(), 0
    for piece in _pieces(start, file, offset):
        time.sleep(max(0.0, began + sent / GIGABIT - time.perf_counter()))
        connection.sendall(piece)
        sent += len(piece)
