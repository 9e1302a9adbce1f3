"""What comes from outside, broken at random: lists, configurations, requests.

A fixed number of executions runs with all other tests; `make fuzz` sets `FUZZ_SECONDS`, for each of these, and a seed.
"""

import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from test_decoder import BROKEN, FRAGMENTS, MODEL_FIELDS, NUMBERS, WORDS, decoded, expected

from creatify_exporter.config.load import load
from creatify_exporter.errors import ConfigError
from creatify_exporter.lists import LISTS, TEXT_GENERATOR
from creatify_exporter.simulator import Account, Clock, Listing, Request, Served, Simulator, Traffic
from creatify_exporter.simulator.scenes import workspace
from creatify_exporter.web import web_config
from processes import ExporterProcess, running_exporter, write_config

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
FOLDER = Path(__file__).parents[1]

pytestmark = pytest.mark.timeout(SECONDS + 600)


class Mutator:
    """Breaks one of its good samples at random, with its own words and parts of other samples."""

    def __init__(self, samples: Sequence[bytes], words: Sequence[bytes]) -> None:
        self.random = random.Random(SEED)  # noqa: S311 - reproducible draws are the point
        self.samples, self.words = samples, words

    def __call__(self) -> bytes:
        broken = bytearray(self.random.choice(self.samples))
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 8))):
            start = self.random.randrange(len(broken) + 1)
            end = start + self.random.choice((0, 0, 1, 2, 5, 40))
            broken[start:end] = self._put(bytes(broken[start:end]))
        return bytes(broken)

    def _put(self, old: bytes) -> bytes:
        """Return what is to stand in a place."""
        other = self.random.choice(self.samples)
        start = self.random.randrange(len(other) + 1)
        return self.random.choice(
            (
                b"",
                old + old,
                self.random.randbytes(self.random.choice((1, 1, 2, 4))),
                self.random.choice(self.words),
                old + self.random.choice(self.words),
                other[start : start + self.random.randrange(60)],
            )
        )


def executions(name: str, number: int) -> Iterator[int]:
    """Count them: so many, or as many as the time of `make fuzz` allows."""
    began, done = time.monotonic(), 0
    while done < number if not SECONDS else time.monotonic() - began < SECONDS:
        yield done
        done += 1
    print(f"{name}: {done} executions in {time.monotonic() - began:.0f} s, seed {SEED}")


# --- Lists ----------------------------------------------------------------------------------------------------------


def bodies(api: str) -> list[bytes]:
    """Return bodies of a list as the simulated API sends them, longer and longer ones."""
    clock = Clock(end=1_800_000_000.0, real=lambda: 1_800_000_000.0)
    accounts = workspace(3, clock.now() - 3600, {TEXT_GENERATOR.api, api}, text_bytes=200)
    shown = []
    for newest in (0, 1, 2, 3, 5, 8):
        served = Served(accounts[api], Listing(newest=newest))
        with Simulator(accounts[TEXT_GENERATOR.api], clock, listing=served.listing, lists={api: served}) as simulator:
            keys = {"x-api-id": simulator.api_id, "x-api-key": simulator.api_key}
            answer = simulator.answer(Request(clock.now(), simulator.list_path(api), keys))
            shown.append(b"".join(answer.pieces))
    return shown


def test_a_list_broken_at_random_is_read_as_the_whole_is_or_refused() -> None:
    words = [
        *FRAGMENTS,
        *(number.encode() for number in NUMBERS),
        *(f'"{word}"'.encode() for word in WORDS),
        *(f'"{name}":'.encode() for name in MODEL_FIELDS),
        b"null",
        b"true",
        b'"',
        b'""',
        b'"id":',
        b'"status":',
        b'"preview":',
    ]
    mutators = {api: Mutator([*bodies(api), *BROKEN], words) for api in LISTS}
    draw = random.Random(SEED)  # noqa: S311 - as above
    for number in executions("lists", 16_000):
        api = draw.choice(list(LISTS))
        body = mutators[api]()
        sizes = [draw.choice((1, 2, 7, 50, 300, 4000)) for _ in range(draw.randrange(1, 4))]
        batch_bytes = draw.choice((1, 4, 30, 300, 5000))
        task_list = LISTS[api]
        assert decoded(body, sizes, batch_bytes, task_list) == expected(body, task_list), (number, api, body, sizes)


# --- Configurations -------------------------------------------------------------------------------------------------

YAML_WORDS = [
    *(
        b"\n",
        b": ",
        b"- ",
        b"{",
        b"}",
        b"[",
        b"]",
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!python/object:os.system ",
        b"!!int ",
        b"|",
    ),
    *(b"null", b"~", b"true", b"1e999", b"-1", b".nan", b".inf", b"0x10", b"2026-10-31", b"? ", b"---\n", b"...\n"),
    *(b"${", b"${HOME}", b"$", b"%", b"\t", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"#", b"'", b'"', b"\\"),
    *(
        b"14s",
        b"4GiB",
        b"https://",
        b"http://[",
        b"sqlite:///",
        b"postgresql://a:b@c/d",
        b"memory:",
        b"(?P<",
        b"9" * 5000,
    ),
    *(b"[" * 600, b"- " * 600, b"a: " * 50),  # deeper than Python recurses; PyYAML takes quadratic time for brackets
]


@pytest.mark.parametrize(
    ("folder", "load"),
    [
        pytest.param("config/cases", lambda path: load(path, {}), id="config"),
        pytest.param("web/cases", lambda path: web_config.load(path, {}), id="web_config"),
    ],
)
def test_a_configuration_broken_at_random_is_read_or_refused_in_lines(
    folder: str, load: Callable[[Path], object], tmp_path: Path
) -> None:
    mutator = Mutator([path.read_bytes() for path in sorted((FOLDER / folder).glob("*.yml"))], YAML_WORDS)
    path, refused = tmp_path / "config.yml", 0
    for number in executions(folder, 6000):
        text = mutator()
        path.write_bytes(text)
        lines: Sequence[str] = ["read"]
        try:
            load(path)
        except ConfigError as error:
            refused += 1
            lines = error.problems
        except BaseException:
            print(number, text)
            raise
        assert lines
        assert all(line.strip() and line.isprintable() for line in lines), (number, text, lines)
    assert refused


# --- Requests -------------------------------------------------------------------------------------------------------

REQUESTS = [
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\nX-Prometheus-Scrape-Timeout-Seconds: 2\r\n\r\n",
    b"GET /probe?workspace=default HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n",
    b"GET /sd HTTP/1.1\r\nHost: localhost:10081\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: a\r\n\r\n",
    b"GET /metrics/exporter HTTP/1.1\r\nHost: [::1]:1\r\nAuthorization: Basic YTpi\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"HEAD /-/healthy HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"POST /-/reload HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /-/reload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET /%2e%2e/metrics?a[]=b&workspace=%00 HTTP/1.1\r\nHost: a\r\nCookie: a=b\r\nExpect: 100-continue\r\n\r\n",
]
REQUEST_WORDS = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b"%",
        b"%00",
        b"%ff",
        b"%c0%af",
        b"?",
        b"&",
        b"#",
        b";",
        b"/",
        b"//",
    ),
    *(
        b"..",
        b"http://a/metrics",
        b"*",
        b"HTTP/2.0",
        b"HTTP/1.1",
        b"OPTIONS",
        b"CONNECT",
        b"TRACE",
        b"PRI",
        b"-1",
        b"9" * 40,
    ),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: identity, chunked\r\n", b"Upgrade: websocket\r\n", b"Host: \r\n"),
    *(b"X-Prometheus-Scrape-Timeout-Seconds: nan\r\n", b"X-Prometheus-Scrape-Timeout-Seconds: -1e999\r\n", b"a" * 9000),
    *(
        b"Accept: */*;q=x, application/openmetrics-text;version=\r\n",
        b"workspace=",
        b"\xff\xfe",
        "é".encode(),
        b"[",
        b"]",
    ),
]


def answer(exporter: ExporterProcess, request: bytes) -> bytes:
    """Return all that comes back on a connection of its own, which a server may also break."""
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", int(exporter.url.rpartition(":")[2])), timeout=60) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                received += piece
    except (ConnectionError, BrokenPipeError):
        pass
    return received


def test_a_request_broken_at_random_is_answered_without_any_fault_of_the_server(tmp_path: Path) -> None:
    clock = Clock()
    with Simulator(Account(3, clock.now() - 3600, Traffic(rate=1 / 60, text_bytes=200)), clock) as simulator:
        flags = ("--config.file", str(write_config(tmp_path / "config.yml", simulator)))
        with running_exporter(*flags, "--web.listen-address", "127.0.0.1:0") as exporter:
            mutator = Mutator(REQUESTS, REQUEST_WORDS)
            for number in executions("requests", 8000):
                request = mutator()
                statuses = re.findall(rb"^HTTP/1\.[01] (\d+)", answer(exporter, request), re.MULTILINE)
                assert b"500" not in statuses, (number, request)
                assert not [line for line in exporter.log if "Traceback" in line or "level=error" in line], request
            assert exporter.get("/-/healthy").ok
