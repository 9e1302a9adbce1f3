"""Connecting to hosts with several addresses, if some of them are silent, refuse, or have no route."""

import socket
import time
from typing import Any

import pytest

from creatify_exporter.creatify.transport import connect
from processes import free_port
from servers import Recorder, silent_address


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[Any, ...]) -> None:
    """Let every name have these addresses."""

    def resolve(*_: object, **__: object) -> list[tuple[Any, ...]]:
        families = (socket.AF_INET6 if len(address) > 2 else socket.AF_INET for address in addresses)
        return [
            (family, socket.SOCK_STREAM, 6, "", address) for family, address in zip(families, addresses, strict=True)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_the_first_address_that_answers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing, no_route = ("127.0.0.1", free_port()), ("100::1", 9, 0, 0)
    with Recorder() as server, silent_address() as silent:
        good = ("127.0.0.1", server.port)
        for addresses in (
            [good],
            [good, silent],
            [silent, good],
            [refusing, good],
            [silent, silent, no_route, refusing, good],
        ):
            resolving(monkeypatch, *addresses)
            with connect("several.test", 80, 20.0, [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]) as connected:
                assert connected.getpeername() == good
                assert connected.gettimeout() == 20.0
                assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_if_no_address_answers_the_last_error_or_a_timeout_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_address() as silent:
        resolving(monkeypatch, ("127.0.0.1", free_port()), ("127.0.0.1", free_port()))
        with pytest.raises(ConnectionRefusedError):
            connect("refusing.test", 80, 20.0)
        resolving(monkeypatch, silent, ("127.0.0.1", free_port()))
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            connect("silent.test", 80, 0.5)
        assert time.monotonic() - began >= 0.5
        # There is no route to it, which is known at once.
        resolving(monkeypatch, ("127.0.0.1", free_port()), ("255.255.255.255", 9))
        with pytest.raises(OSError, match=r"unreachable|denied"):
            connect("unreachable.test", 80, 1e6)
        resolving(monkeypatch)
        with pytest.raises(OSError, match="no address"):
            connect("nowhere.test", 80, 1.0)
