"""Addresses to listen on, and the errors for invalid ones."""

import os
import socket

import pytest

from creatify_exporter.errors import ConfigError
from creatify_exporter.web.listener import inherited, listen


@pytest.mark.parametrize(
    ("address", "family", "host", "by_ipv4"),
    [
        ("127.0.0.1:0", socket.AF_INET, "127.0.0.1", True),
        ("localhost:0", socket.AF_INET, "127.0.0.1", True),
        ("[::1]:0", socket.AF_INET6, "::1", False),
        ("[::]:0", socket.AF_INET6, "::", True),
        ("[::0]:0", socket.AF_INET6, "::", True),
        ("[0:0:0:0:0:0:0:0]:0", socket.AF_INET6, "::", True),
        (":0", socket.AF_INET6, "::", True),
        ("0.0.0.0:0", socket.AF_INET, "0.0.0.0", True),  # noqa: S104  the test's own machine
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, family: socket.AddressFamily, host: str, by_ipv4: bool) -> None:
    (listening,) = listen([address])
    with listening:
        assert (listening.family, listening.getsockname()[0]) == (family, host)
        if by_ipv4:
            socket.create_connection(("127.0.0.1", listening.getsockname()[1]), timeout=5).close()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "not an address"),
        ("10081", "not an address"),
        ("::1:10081", "not an address"),
        ("[::1]", "not an address"),
        ("localhost:", "not a port"),
        ("localhost:nosuchservice", "not a port"),
        (":-1", "not a port"),
        (":65536", "not a port"),
        (f":{'9' * 5000}", "not a port"),
        (":1 ", "not a port"),
        (":\u0663", "not a port"),
        ("vsock://:10081", "only TCP"),
        ("unix:///run/x.sock", "only TCP"),
        ("http://127.0.0.1:1", "only TCP"),
        ("nosuch.invalid:80", "there is no such host"),
        ("no such host:80", "there is no such host"),
        (f"{'x' * 70}:80", "there is no such host"),
        ("[fe80::1%nowhere]:80", "there is no such host"),
        ("192.0.2.1:80", "Cannot assign requested address"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_one_clear_line(address: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listen(["127.0.0.1:0", address])
    (problem,) = str(caught.value).splitlines()
    assert problem.startswith(f"--web.listen-address {address}: {words}")
    assert "; " in problem, "it says how to fix it"


def test_a_port_that_is_taken_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ConfigError, match=r"in use; choose another") as caught:
            listen([f"127.0.0.1:{taken.getsockname()[1]}"])
        assert len(str(caught.value).splitlines()) == 1


def test_a_named_port_is_its_number() -> None:
    # Whether this user may listen there or not, the name was understood.
    try:
        (listening,) = listen(["127.0.0.1:http-alt"])
    except ConfigError as error:
        assert "choose another address or port" in str(error)  # noqa: PT017  either is right
    else:
        with listening:
            assert listening.getsockname()[1] == 8080


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_without_sockets_from_systemd_it_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="systemd passed no sockets; start"):
        inherited(environ)


def test_an_answer_is_sent_at_once() -> None:
    [listening] = listen(["127.0.0.1:0"])
    with listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
