"""Serves lists from files, with as little work of its own as can be; never faster than a network, where asked."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

GIGABIT: Final = 125_000_000  # bytes per second
HOW: Final = ("plain", "chunked", "gzip", "gigabit")
"""How a list can come: with its length, in chunks of 64 KB, compressed, or at 1 Gbit/s."""

_PIECE: Final = 64 * 1024


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder from another process; yield the URL under which `/HOW/FILE/...` is a list."""
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
    """Answer the requests of a connection, none of which has a body, until it ends."""
    with connection, suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        while piece := connection.recv(_PIECE):
            received += piece
            while b"\r\n\r\n" in received:
                head, _, received = received.partition(b"\r\n\r\n")
                how, name = head.split(b" ")[1].decode().split("/")[1:3]
                _send(connection, folder / (f"{name}.gz" if how == "gzip" else name), how)


def _send(connection: socket.socket, path: Path, how: str) -> None:
    size = path.stat().st_size
    length = "Transfer-Encoding: chunked" if how == "chunked" else f"Content-Length: {size}"
    encoding = "Content-Encoding: gzip\r\n" if how == "gzip" else ""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: {formatdate(usegmt=True)}\r\n{encoding}{length}"
    connection.sendall(f"{head}\r\n\r\n".encode())
    with path.open("rb") as file:
        if how == "chunked":
            _send_chunks(connection, file.fileno(), size)
        elif how == "gigabit":
            _send_slowly(connection, file.fileno(), size)
        else:
            connection.sendfile(file)


def _send_chunks(connection: socket.socket, file: int, size: int) -> None:
    for offset in range(0, size, _PIECE):
        piece = os.pread(file, _PIECE, offset)
        connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
    connection.sendall(b"0\r\n\r\n")


def _send_slowly(connection: socket.socket, file: int, size: int) -> None:
    began = time.perf_counter()
    for offset in range(0, size, _PIECE):
        time.sleep(max(0.0, began + offset / GIGABIT - time.perf_counter()))
        connection.sendall(os.pread(file, _PIECE, offset))
