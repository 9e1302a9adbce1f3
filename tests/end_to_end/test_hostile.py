"""Clients that mean harm, or that behave as if they did, and the probes that are answered beside them."""

import os
import random
import resource
import select
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from creatify_exporter.simulator import Account, Clock, Simulator, Traffic, delayed
from creatify_exporter.web.server import LIMITS
from processes import ExporterProcess, parsed, reset, running_exporter, total, until, write_config

pytestmark = pytest.mark.slow
IDLE = int(os.environ.get("IDLE_CONNECTIONS", "2000"))
SLOW = 500
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    clock = Clock()
    with Simulator(Account(3, clock.now() - 3600, Traffic(rate=1 / 60, text_bytes=300)), clock) as simulated:
        yield simulated


@pytest.fixture
def config(tmp_path: Path, simulator: Simulator) -> Path:
    return write_config(tmp_path / "config.yml", simulator, fetch={"min_interval": "5m"})


@pytest.fixture
def exporter(config: Path) -> Iterator[ExporterProcess]:
    """Start an exporter that has scraped once, and see that it stops as if nothing had happened."""
    with running_exporter("--config.file", str(config), "--web.listen-address", "127.0.0.1:0") as running:
        yield running
        if running.process.poll() is None:
            assert stopped(running) < 15


def stopped(exporter: ExporterProcess) -> float:
    """Stop it; return after how many seconds it had ended."""
    began = time.monotonic()
    assert exporter.terminate() == 0
    assert "Traceback" not in "".join(exporter.log)
    assert "level=error" not in "".join(exporter.log)
    return time.monotonic() - began


def connected(exporter: ExporterProcess, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(exporter.url.rpartition(":")[2])), timeout=30)
    with suppress(ConnectionError):  # what is too much is not read to its end
        connection.sendall(sent)
    return connection


def open_files(exporter: ExporterProcess) -> int:
    return len(list(Path(f"/proc/{exporter.process.pid}/fd").iterdir()))


def memory(exporter: ExporterProcess) -> int:
    """Return the resident memory in MiB."""
    pages = int(Path(f"/proc/{exporter.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


@contextmanager
def probing(exporter: ExporterProcess) -> Iterator[list[float]]:
    """Probe and scrape all the time, each over a connection of its own; collect how many seconds that took."""
    over, times = threading.Event(), list[float]()

    def probe() -> None:
        while not over.wait(0.02):
            for path in ("/-/healthy", "/metrics"):
                began = time.monotonic()
                assert exporter.get(path).status_code == 200
                times.append(time.monotonic() - began)

    with ThreadPoolExecutor(1) as pool:
        probes = pool.submit(probe)
        try:
            yield times
        finally:
            over.set()
            probes.result()


def many_files() -> int:
    """Return how many connections this process may open, after raising the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        soft = min(hard, 20_000) if hard != resource.RLIM_INFINITY else 20_000
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft - 200


def all_closed(connections: Sequence[socket.socket]) -> None:
    """Wait until the other end has closed all of them."""
    polled, left = select.poll(), {each.fileno() for each in connections}
    for number in left:
        polled.register(number, select.POLLIN)
    end = time.monotonic() + 3 * LIMITS.client_timeout
    while left and time.monotonic() < end:
        for number, _ in polled.poll(1000):
            left.discard(number)
            polled.unregister(number)
    assert not left


def test_probes_are_answered_beside_slow_and_idle_connections_which_end(
    exporter: ExporterProcess, stack: ExitStack
) -> None:
    exporter.get()
    files, before = open_files(exporter), memory(exporter)
    idle = min(IDLE, many_files() - SLOW)
    attacks = [b""] * idle + [b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: "] * SLOW
    with probing(exporter) as times:
        began = time.monotonic()
        connections = [stack.enter_context(connected(exporter, sent)) for sent in attacks]
        opened, largest, most = time.monotonic() - began, memory(exporter), open_files(exporter)
        all_closed(connections)
    closed = time.monotonic() - began - opened
    assert LIMITS.connections // 2 < most < LIMITS.connections + 200
    assert largest - before < 64
    until(lambda: open_files(exporter) <= files + 5)
    assert len([line for line in exporter.log if "too many connections" in line]) == 1
    took = stopped(exporter)
    print(  # for who wants to know: pytest -rP
        f"{idle} idle and {SLOW} slow connections, opened in {opened:.1f} s, the last one closed {closed:.1f} s later; "
        f"{len(times)} probes and scrapes, median {statistics.median(times) * 1e3:.1f} ms, worst "
        f"{max(times) * 1e3:.1f} ms; memory from {before} to {largest} MiB; stopped in {took:.2f} s"
    )


def silence(exporter: ExporterProcess) -> socket.socket:
    return connected(exporter)


def long_headers(exporter: ExporterProcess) -> socket.socket:
    return connected(exporter, b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200_000 + b"\r\n")


def long_header(exporter: ExporterProcess) -> socket.socket:
    return connected(exporter, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n")


def endless_line(exporter: ExporterProcess) -> socket.socket:
    return connected(exporter, b"GET /" + b"x" * 3_000_000)


def garbage(exporter: ExporterProcess) -> socket.socket:
    return connected(exporter, random.Random(3).randbytes(100_000))  # noqa: S311 - the same in each run


def hello_of_tls(exporter: ExporterProcess) -> socket.socket:
    return connected(exporter, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500)


def large_reload(exporter: ExporterProcess) -> socket.socket:
    return connected(
        exporter, b"POST /-/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 9_999_999
    )


def large_scrape(exporter: ExporterProcess) -> socket.socket:
    return connected(exporter, SCRAPE[:-2] + b"Transfer-Encoding: chunked\r\n\r\n" + b"5\r\nxxxxx\r\n" * 1_000_000)


def pipeline(exporter: ExporterProcess) -> socket.socket:
    return connected(exporter, SCRAPE * 20)


def pipeline_that_is_not_read(exporter: ExporterProcess) -> socket.socket:
    connection = connected(exporter)
    connection.settimeout(0.2)
    with suppress(OSError):  # it is closed, or not read any further
        connection.sendall(SCRAPE * 100_000)
    return connection


def upgrade(exporter: ExporterProcess) -> socket.socket:
    return connected(exporter, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" * 10)


ATTACKS = (silence, long_headers, long_header, endless_line, garbage, hello_of_tls, large_reload, large_scrape)
ATTACKS_AT_WORK = (pipeline, pipeline_that_is_not_read, upgrade)


def test_attacks_keep_nobody_waiting_not_even_a_stop(exporter: ExporterProcess, stack: ExitStack) -> None:
    exporter.get()
    before = memory(exporter)
    for attack in [*ATTACKS, *ATTACKS_AT_WORK]:
        for leaves in [True, False] * 5:
            connection = stack.enter_context(attack(exporter))
            if leaves:
                reset(connection)
        assert exporter.get("/-/healthy").text == "alive\n", attack
    assert exporter.get("/-/healthy").text == "alive\n"
    assert total(parsed(exporter.get().text), "creatify_up", api="text_generator") == 1
    assert memory(exporter) - before < 64
    assert stopped(exporter) < 15


@pytest.mark.parametrize(
    "follows", [b"", SCRAPE, SCRAPE * 2000, b"x" * 100_000], ids=["nothing", "another", "thousands", "no request"]
)
def test_scrapers_that_leave_during_a_fetch_do_not_hold_up_a_stop(
    exporter: ExporterProcess, simulator: Simulator, follows: bytes
) -> None:
    simulator.faults.always("silence")
    for _ in range(20):
        connection = connected(exporter, SCRAPE + follows)
        until(simulator.listings)
        reset(connection)
    assert exporter.get("/-/healthy").text == "alive\n"
    assert stopped(exporter) < 10


def test_64_scrapes_during_a_slow_fetch_cost_one_and_probes_are_answered(
    exporter: ExporterProcess, simulator: Simulator
) -> None:
    simulator.faults.next(delayed(2))
    with ThreadPoolExecutor(64) as pool:
        scrapes = [pool.submit(exporter.get) for _ in range(64)]
        until(simulator.listings)
        times = []
        while not any(scrape.done() for scrape in scrapes):
            began = time.monotonic()
            assert exporter.get("/-/healthy").text == "alive\n"
            times.append(time.monotonic() - began)
        assert [total(parsed(each.result().text), "creatify_up", api="text_generator") for each in scrapes] == [1] * 64
    assert len(simulator.listings()) == 1
    print(f"{len(times)} probes, median {statistics.median(times) * 1e3:.1f} ms, worst {max(times) * 1e3:.1f} ms")


def test_few_open_files_lock_nobody_out(config: Path, stack: ExitStack) -> None:
    files = 400
    flags = ("--config.file", str(config), "--web.listen-address", "127.0.0.1:0")
    limited = ("sh", "-c", f'ulimit -n {files}; exec "$@"', "sh")
    exporter = stack.enter_context(running_exporter(*flags, prefix=limited))
    exporter.get()
    for _ in range(3 * files):
        stack.enter_context(connected(exporter))
    for _ in range(5):
        assert exporter.get("/-/healthy").text == "alive\n"
        assert total(parsed(exporter.get().text), "creatify_up", api="text_generator") == 1
    assert len([line for line in exporter.log if "too many connections" in line]) == 1
    stopped(exporter)
