"""Connects to a host that has several addresses, some of which may be silent (RFC 8305, *Happy Eyeballs*)."""

import os
import selectors
import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from itertools import chain, zip_longest
from typing import Final

# Seconds that an address has for itself before the next one is tried beside it (RFC 8305, section 5).
_HEAD_START: Final = 0.25

_Address = tuple[socket.AddressFamily, object]


def connect(host: str, port: int, timeout: float, options: Iterable[tuple[int, int, int]] = ()) -> socket.socket:
    """Return a socket connected to the first address that answers.

    `options` are set before connecting; `timeout` is in seconds, for all addresses together, and stays that of the
    socket. Raises `socket.gaierror`, `TimeoutError`, or the `OSError` of the last address.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    connected = _race(_interleaved((family, address) for family, _, _, _, address in found), timeout, options)
    connected.settimeout(timeout)
    return connected


def _interleaved(addresses: Iterable[_Address]) -> list[_Address]:
    """Let the families take turns, beginning with that of the first address: a whole family may be silent."""
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
                if addresses and (error := _begin(addresses.pop(0), options, selector)):
                    # Nothing to wait for: the next address need not wait either.
                    failure = error
                    continue
                remaining = end - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError("no address answers in time")
                for key, _ in selector.select(min(_HEAD_START, remaining) if addresses else remaining):
                    result = _end(key.data, selector)
                    if isinstance(result, socket.socket):
                        return result
                    failure = result
        finally:
            for key in selector.get_map().values():
                key.data.close()
    raise failure


def _begin(
    address: _Address, options: Iterable[tuple[int, int, int]], selector: selectors.BaseSelector
) -> OSError | None:
    """Begin to connect; return why that is impossible, as without a route."""
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


def _end(attempt: socket.socket, selector: selectors.BaseSelector) -> socket.socket | OSError:
    """Return the connected socket, or why it is not."""
    selector.unregister(attempt)
    error = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if not error:
        return attempt
    attempt.close()
    return OSError(error, os.strerror(error))
