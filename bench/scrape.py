"""What a scrape costs, beside the bare download and the exporter that one would write in an hour.

    python bench/scrape.py [--tasks 100000] [--runs 5]

All methods take turns in one run against one simulated API on loopback, each in a process of its own; what counts are
the ratios of the medians. Tasks have about 3 KB; 1 % of them are younger than `ledger.settle_after`.
"""

import argparse
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import requests
import yaml

from creatify_exporter.simulator import LIST_PATH, Account, Clock, Simulator, Traffic

DAY = 24 * 3600.0
YOUNG = 0.01
KEYS = {"X-API-ID": "simulated-id", "X-API-KEY": "simulated-key"}


class Cost(NamedTuple):
    """Seconds of wall and CPU time, and how much memory grew over idle, in MB."""

    wall: float
    cpu: float
    memory: float


def download(url: str) -> None:
    """Read the body and drop it: nobody is faster."""
    with requests.get(url, headers=KEYS, stream=True, timeout=600) as response:
        while response.raw.read(256 * 1024):
            pass


def plain(url: str) -> None:
    """Count from the decoded list, as a plain exporter does."""
    tasks = requests.get(url, headers=KEYS, timeout=600).json()
    counts: Counter[tuple[str, str]] = Counter()
    used: Counter[str] = Counter()
    for task in tasks:
        counts[task["model_name"], task["status"]] += 1
        used[task["model_name"]] += task["credits_used"] or 0
        if task["status"] == "failed":
            counts[task["model_name"], task["failed_reason"] or ""] += 1


def measured(method: Callable[[str], None], url: str) -> Cost:
    """Run a method in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_cost, (method, url))


def _cost(method: Callable[[str], None], url: str) -> Cost:
    idle, wall, cpu = _peak(), time.perf_counter(), time.process_time()
    method(url)
    return Cost(time.perf_counter() - wall, time.process_time() - cpu, _peak() - idle)


def _peak() -> float:
    scale = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


class Exporter:
    """A running exporter with a ledger of its own."""

    def __init__(self, upstream: str, folder: Path) -> None:
        config = {
            "workspaces": [
                {
                    "name": "default",
                    "api_id": KEYS["X-API-ID"],
                    "api_key": KEYS["X-API-KEY"],
                    "base_url": upstream,
                    "remaining_credits": False,
                }
            ],
            "fetch": {"timeout": "10m", "min_interval": "0s"},
            "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
        }
        (folder / "config.yml").write_text(yaml.safe_dump(config))
        command = [
            sys.executable,
            "-m",
            "creatify_exporter",
            "--config.file",
            str(folder / "config.yml"),
            "--web.listen-address",
            "127.0.0.1:0",
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        address = self.process.stderr.readline().split("address=")[1].split()[0]
        self.url = f"http://{address}/metrics"
        requests.get(f"{self.url}/exporter", timeout=60)
        self.idle = self._status("VmHWM")

    def scrape(self) -> Cost:
        """Scrape once."""
        wall, cpu = time.perf_counter(), self._cpu()
        text = requests.get(self.url, timeout=600).text
        assert 'creatify_up{api="text_generator",workspace="default"} 1.0' in text
        return Cost(time.perf_counter() - wall, self._cpu() - cpu, self._status("VmHWM") - self.idle)

    def _cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def _status(self, name: str) -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(name))


def serve(tasks: int, pipe: Connection) -> None:
    """Serve a list of so many tasks until the pipe closes."""
    clock = Clock()
    days = 1 / YOUNG
    account = Account(1, clock.now() - days * DAY, Traffic(rate=tasks / (days * DAY), burst_ratio=0))
    with Simulator(account, clock) as simulator:
        pipe.send(simulator.url)
        pipe.poll(None)


@contextmanager
def upstream(tasks: int) -> Iterator[str]:
    """Serve the list from another process; yield the URL."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(tasks, theirs), daemon=True)
    process.start()
    yield ours.recv()
    process.kill()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with upstream(arguments.tasks) as url, tempfile.TemporaryDirectory() as folder:
        received = len(requests.get(url + LIST_PATH, headers=KEYS, timeout=600).content)  # also fills its caches
        print(f"{arguments.tasks:,} tasks, {received / 1e6:,.0f} MB, {arguments.runs} runs, medians\n")
        costs: dict[str, list[Cost]] = {}
        for run in range(arguments.runs):
            (Path(folder) / str(run)).mkdir()
            exporter = Exporter(url, Path(folder) / str(run))
            methods: dict[str, Callable[[], Cost]] = {
                "bare download": lambda: measured(download, url + LIST_PATH),
                "exporter, first contact": exporter.scrape,
                "exporter, later": exporter.scrape,
                "requests + json + loops": lambda: measured(plain, url + LIST_PATH),
            }
            for name, method in methods.items():
                costs.setdefault(name, []).append(method())
            exporter.process.terminate()
            exporter.process.wait()
        report(costs)


def report(costs: dict[str, list[Cost]]) -> None:
    """Print medians, and ratios to the bare download."""
    medians = {name: Cost(*map(statistics.median, zip(*each, strict=True))) for name, each in costs.items()}
    bare = medians["bare download"]
    print("| method | wall | x | CPU | x | memory growth |\n|---|---|---|---|---|---|")
    for name, (wall, cpu, memory) in medians.items():
        ratios = f"{wall:.2f} s | {wall / bare.wall:.1f} | {cpu:.2f} s | {cpu / bare.cpu:.1f}"
        print(f"| {name} | {ratios} | {memory:,.1f} MB |")
    later = medians["exporter, later"].wall
    print(f"\nfirst contact / later scrape: {medians['exporter, first contact'].wall / later:.1f}")
    print(f"requests + json + loops / later scrape: {medians['requests + json + loops'].wall / later:.1f}")


if __name__ == "__main__":
    main()
