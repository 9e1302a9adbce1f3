"""The exporter for a long time: scraped every second, with faults, kills, restarts and reloads at random.

A minute of it runs with all other tests; `make soak` sets `SOAK_SECONDS` and `SOAK_SEED`.
"""

import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from accounts import assert_true, risen
from creatify_exporter.simulator import FAULTS, LIST_PATH, Account, Clock, Listing, Response, Simulator, Traffic
from creatify_exporter.simulator.faults import ODD_ID
from processes import ExporterProcess, Samples, ledger_counters, parsed, total, until, wait_until, write_config

SECONDS = int(os.environ.get("SOAK_SECONDS", "60"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
TASKS = 20_000
SPEED = max(30.0, 18_000 / SECONDS)  # of the account, which has a task a second of its own time
FAULTY = 0.1  # of the seconds
MIB = 1 << 20


def whole_or_nothing() -> list[str]:
    """Return the faults that add no task to the list: what is true of the account stays so."""

    def adds(name: str) -> bool:
        pieces = FAULTS[name](Response(0.0, LIST_PATH, "", pieces=[b"[", b"]"])).pieces
        # `wrong_id` has the odd task under an id of its own, which is another task each time that it has settled.
        return name == "wrong_id" or any(ODD_ID.encode() in piece for piece in pieces)

    return [name for name in FAULTS if not adds(name)]


class Sample(NamedTuple):
    """What one scrape cost, and what the process and its ledger had become; sizes in bytes, `took` in seconds."""

    life: int
    up: bool
    took: float
    resident: float
    descriptors: float
    threads: float
    ledger: float
    journal: float
    tracked: float
    cpu: float


class Soak:
    """Plays the seconds of a seed, scrape by scrape."""

    def __init__(self, simulator: Simulator, folder: Path) -> None:
        self.simulator, self.folder = simulator, folder
        self.random = random.Random(SEED)  # noqa: S311 - reproducible draws are the point
        self.faults = whole_or_nothing()
        self.met: Counter[str] = Counter()
        self.scrapes: list[Sample] = []
        self.counters: Samples = {}
        self.life = 0
        self.configure()
        self.exporter = self.started()
        self.began = time.time()

    def configure(self) -> Path:
        """Write the configuration, which is another one each time."""
        return write_config(
            self.folder / "config.yml",
            self.simulator,
            fetch={"min_interval": "500ms", "timeout": f"{self.random.randint(5000, 6000)}ms", "max_body": "64MiB"},
            ledger={"url": f"sqlite:///{self.folder}/ledger.db", "settle_after": "30m", "new_series_hold": "3s"},
        )

    def started(self) -> ExporterProcess:
        return ExporterProcess("--config.file", str(self.folder / "config.yml"), "--web.listen-address", "127.0.0.1:0")

    def play(self) -> None:
        """Restarts come in the first two thirds, so that the last process lives for long."""
        events: dict[int, Callable[[], None]] = {}
        for event, number, until_second in (
            (self.kill, SECONDS // 200, SECONDS * 2 // 3),
            (self.terminate, SECONDS // 300, SECONDS * 2 // 3),
            (self.reload, SECONDS // 40, SECONDS),
        ):
            for _ in range(max(2, number)):
                events[self.random.randrange(5, until_second)] = event
        for second in range(SECONDS):
            wait_until(self.began + second)
            if second in events:
                self.met[events[second].__name__] += 1
                events[second]()
            if time.time() < self.began + second + 1:  # else it is late, as a scraper would be that waits for an answer
                self.scrape(faulty=self.random.random() < FAULTY)
            if second % 60 == 59:
                print(f"{second + 1:6} s", self.scrapes[-1], flush=True)

    def kill(self) -> None:
        """Kill it at some instant of a scrape."""
        end = threading.Timer(self.random.uniform(0, 0.6), self.exporter.process.kill)
        end.start()
        try:
            self.scrape(faulty=False)
        except requests.RequestException:
            self.met["scrape lost"] += 1
        end.join()
        self.exporter.kill()
        self.restart()

    def terminate(self) -> None:
        assert self.exporter.terminate() == 0, self.exporter.log
        self.restart()

    def restart(self) -> None:
        assert "Traceback" not in "".join(self.exporter.log)
        self.life += 1
        self.exporter = self.started()

    def reload(self) -> None:
        self.configure()
        if self.random.random() < 0.5:
            assert requests.post(f"{self.exporter.url}/-/reload", timeout=30).ok
        else:
            self.exporter.process.send_signal(signal.SIGHUP)

    def scrape(self, *, faulty: bool) -> Samples:
        self.simulator.faults.clear()
        if faulty:
            fault = self.random.choice(self.faults)
            self.met[fault] += 1
            self.simulator.faults.next(fault)
        began = time.monotonic()
        samples = parsed(self.exporter.get(**{"X-Prometheus-Scrape-Timeout-Seconds": "2"}).text)
        self.compare(samples)
        self.scrapes.append(self.measured(samples, time.monotonic() - began))
        return samples

    def compare(self, samples: Samples) -> None:
        """Whatever happens, no counter of the ledger goes down or away."""
        for key, value in self.counters.items():
            assert samples.get(key, -1.0) >= value, (key, value, samples.get(key))
        self.counters = ledger_counters(samples)

    def measured(self, samples: Samples, took: float) -> Sample:
        def value(name: str) -> float:
            return total(samples, name) or 0.0

        return Sample(
            self.life,
            total(samples, "creatify_up", api="text_generator") == 1,
            took,
            value("process_resident_memory_bytes"),
            value("process_open_fds"),
            len(list(Path(f"/proc/{self.exporter.process.pid}/task").iterdir())),
            (self.folder / "ledger.db").stat().st_size,
            (self.folder / "ledger.db-wal").stat().st_size,
            value("creatify_exporter_ledger_tasks"),
            value("process_cpu_seconds_total"),
        )

    def first(self) -> tuple[Samples, float]:
        """Return the first samples of a list, and the instant that it shows."""

        def good() -> Samples | None:
            samples = self.scrape(faulty=False)
            return samples if self.scrapes[-1].up else None

        samples: Samples = until(good, 120)
        return samples, self.simulator.listings()[-1].at

    last = first


def growth(scrapes: list[Sample], name: str) -> tuple[float, float]:
    """Return medians of the second and of the last quarter: the first one is for warming up."""
    values = [float(getattr(sample, name)) for sample in scrapes]
    quarter = len(values) // 4
    return statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])


def lives(soak: Soak) -> list[list[Sample]]:
    """Return the scrapes of each process that lived long enough to say something, and those of all."""
    each = [[sample for sample in soak.scrapes if sample.life == life] for life in range(soak.life + 1)]
    return [*(life for life in each if len(life) >= min(60, SECONDS // 6)), soak.scrapes]


def table(soak: Soak) -> str:
    took = sorted(sample.took for sample in soak.scrapes)
    lines = [
        f"seed {SEED}, {SECONDS} s, {len(soak.scrapes)} scrapes, {soak.life + 1} processes, {TASKS} tasks in the list",
        f"scrapes that were up: {sum(sample.up for sample in soak.scrapes)}",
        f"seconds of a scrape: median {statistics.median(took):.3f}, 99 % {took[len(took) * 99 // 100]:.3f}",
        f"seconds of the longest scrape: {took[-1]:.3f}",
        f"met: {dict(sorted(soak.met.items()))}",
        f"{'':12}{'lowest':>12}{'2nd quarter':>12}{'last quarter':>12}{'highest':>12}   (of all; of the last process)",
    ]
    for name in ("resident", "descriptors", "threads", "ledger", "journal", "tracked"):
        for scrapes in (soak.scrapes, lives(soak)[-2]):
            values = [getattr(sample, name) for sample in scrapes]
            figures = (min(values), *growth(scrapes, name), max(values))
            lines.append(f"{name:12}" + "".join(f"{figure:12,.0f}" for figure in figures))
    return "\n".join(lines)


@pytest.mark.timeout(SECONDS + 600)
def test_nothing_grows_and_nothing_is_lost_however_long_it_goes_badly(tmp_path: Path) -> None:
    clock = Clock.accelerated(SECONDS + 150.0, SPEED)
    # Some more than the list shows, so that it is full from the start.
    account = Account(SEED, clock.now() - 1.3 * TASKS, Traffic(rate=1.0, rhythm=0.0, text_bytes=100))
    with Simulator(account, clock, listing=Listing(newest=TASKS)) as simulator:
        soak = Soak(simulator, tmp_path)
        try:
            before, first = soak.first()
            soak.play()
            after, last = soak.last()
        finally:
            soak.exporter.kill()
            print(table(soak))
    truth = account.truth(last) - account.truth(first)

    assert_true(truth, before, after, least=SECONDS + 1)
    assert risen(before, after, "creatify_tasks_vanished_total") == {}

    assert "Traceback" not in "".join(soak.exporter.log)
    for life in lives(soak):
        for name, tolerance in (("resident", 16 * MIB), ("descriptors", 3), ("threads", 2)):
            early, late = growth(life, name)
            assert late <= early + tolerance, (name, early, late, len(life))
    early, late = growth(soak.scrapes, "ledger")
    assert late <= 1.25 * early, (early, late)
    assert max(sample.journal for sample in soak.scrapes) < 16 * MIB
