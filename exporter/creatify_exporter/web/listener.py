"""Listening sockets: for configured addresses, or inherited from systemd."""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Final

from creatify_exporter.errors import ConfigError

# The file descriptor of the first socket that systemd passes.
_FIRST_INHERITED: Final = 3


def listen(addresses: Sequence[str]) -> list[socket.socket]:
    """Return a listening socket for each `HOST:PORT`, `:PORT` meaning all interfaces; raise `ConfigError`."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(_listening(address)) for address in addresses]
        for listening in sockets:
            _disable_nagle(listening)
        # All of them could be opened: keep them open.
        opened.pop_all()
        return sockets


def inherited(environ: Mapping[str, str]) -> list[socket.socket]:
    """Return the sockets that systemd listens on for this process; raise `ConfigError` if there are none.

    https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html
    """
    count = environ.get("LISTEN_FDS", "") if environ.get("LISTEN_PID") == str(os.getpid()) else ""
    if not re.fullmatch("[1-9][0-9]{0,4}", count):
        raise ConfigError(["--web.systemd-socket: systemd passed no sockets; start the exporter from a .socket unit"])
    sockets = []
    for number in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count)):
        try:
            sockets.append(socket.socket(fileno=number))
            sockets[-1].set_inheritable(False)
            _disable_nagle(sockets[-1])
        except OSError:
            words = f"file descriptor {number} is not a TCP socket; name addresses and ports in ListenStream="
            raise ConfigError([f"--web.systemd-socket: {words}"]) from None
    return sockets


def _disable_nagle(listening: socket.socket) -> None:
    """Send small packets at once: otherwise the body of each response waits 40 ms for the ACK of its head.

    asyncio does so only if `proto` of a socket is IPPROTO_TCP; `socket.create_server` leaves it at 0.
    """
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _listening(address: str) -> socket.socket:
    try:
        return _bound(*_parsed(address))
    except ValueError as error:
        raise ConfigError([f"--web.listen-address {address}: {error}"]) from None
    except OSError as error:
        # Python's own text repeats the address.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError([f"--web.listen-address {address}: {reason}; choose another address or port"]) from None


def _parsed(address: str) -> tuple[str, int]:
    """Return host and port; ValueError says what is wrong and how to fix it."""
    if "://" in address:
        raise ValueError("only TCP is supported; write it like :10081 or 127.0.0.1:10081")
    host, separator, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not separator or (":" in host and not is_bracketed):
        raise ValueError("not an address; write it like :10081, 127.0.0.1:10081 or [::1]:10081")
    return host[1:-1] if is_bracketed else host, _port(port)


def _port(text: str) -> int:
    if re.fullmatch("[0-9]{1,5}", text) and int(text) < 2**16:
        return int(text)
    try:
        return socket.getservbyname(text, "tcp")
    except (OSError, UnicodeError, ValueError):
        raise ValueError("not a port; write a number from 0 to 65535, as in :10081") from None


def _bound(host: str, port: int) -> socket.socket:
    """Return a listening socket; OSError if the system refuses, ValueError if there is no such host."""
    both = socket.has_dualstack_ipv6()
    if not host and both:
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            # IPv6 may be compiled in, but switched off.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)  # noqa: S104  as requested
    except (OSError, UnicodeError):
        raise ValueError("there is no such host; write an address of this machine, or none for all") from None
    family, *_, sockaddr = min(found, key=lambda each: each[0] != socket.AF_INET)
    # All interfaces, whether written as `[::]`, `[::0]` or in full.
    return socket.create_server(sockaddr, family=family, dualstack_ipv6=both and sockaddr[0] == "::")
