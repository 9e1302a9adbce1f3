"""What a scrape costs, compared with the bare download and with exporters that one would write in an hour.

    python bench/scrape.py [--quick] [--busy]

Methods take turns, each in a fresh process, against one file server on loopback; the results are the ratios of the
medians. Without `--quick`, it writes the measured part of docs/performance.md and its chart, on an idle machine only
unless `--busy` is given. It needs Linux, 6 GB in the temporary directory and 12 GB of memory, and takes about half an
hour.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median as middle
from typing import Final, NamedTuple

import cost
import lists
import origin
import report
import steady
from cost import Cost
from others import METHODS
from product import Exporter
from report import BARE, FIRST, LATER, MOST_SPREAD, SECOND, TYPED, UNPACKED, Figures, Variant

SIZES: Final = (100, 1_000, 10_000, 100_000, 1_000_000)
QUICK_SIZES: Final = (100, 1_000, 10_000)
RUNS: Final = 9
FEWER: Final = 3  # if one run takes long
_LONG: Final = 2.0  # seconds
# Measurements of one list, if the machine is busy during the first ones.
_ATTEMPTS: Final = 3
_MOST_MEMORY: Final = 8_000.0  # MB
_MOST_TIME: Final = 120.0  # seconds

VARIANTS: Final = (
    Variant("compact", "plain", 0.001),
    Variant("white-spaced", "plain", 0.001),
    Variant("other order", "plain", 0.001),
    Variant("compact", "chunked", 0.001),
    Variant("compact", "gzip", 0.001),
    Variant("compact", "gigabit", 0.001),
    Variant("compact", "plain", 0.01, "scattered"),
    Variant("compact", "plain", 0.1),
    Variant("compact", "plain", 1.0),
    Variant("compact", "plain", None),
)
# Running and waiting processes per core, before anything is measured.
_BUSY: Final = 0.25


class Bench(NamedTuple):
    """A folder of lists, and the URL of the server that serves them."""

    folder: Path
    url: str
    spreads: list[float]

    def upstream(self, name: str, how: str = "plain") -> str:
        """Return the root URL of an API that serves a list."""
        return f"{self.url}/{how}/{name}"

    def other(self, method: str, name: str, how: str = "plain") -> Cost:
        """Measure another method in a separate process."""
        urls = (self.upstream(name, how), self.upstream("warmup"))
        command = [sys.executable, str(Path(__file__).with_name("others.py")), method, *urls]
        return Cost(*json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))

    def product(self, name: str, how: str = "plain") -> dict[str, Cost]:
        """Measure one exporter: the first scrape, the second, which records what has settled, and a later one."""
        with Exporter(self.upstream(name, how)) as exporter:
            return {each: exporter.scrape() for each in (FIRST, SECOND, LATER)}


def by_size(bench: Bench, sizes: tuple[int, ...], runs: int) -> Iterator[tuple[int, dict[str, Cost | str]]]:
    """Yield the medians of all methods for each size, or why a method is left out."""
    before: dict[str, Cost | str] = {}
    for tasks in sizes:
        lists.write(bench.folder / "list", tasks)
        left_out = {name: why for name, each in before.items() if (why := _too_much(each))}
        medians = _medians(bench, "list", [name for name in METHODS if name not in left_out], runs)
        before = {**medians, **left_out}
        yield tasks, before


def _too_much(shorter: Cost | str) -> str | None:
    """Return why a method is not measured on a list ten times as long as the previous one."""
    if isinstance(shorter, str):
        return shorter
    if 10 * shorter.memory > _MOST_MEMORY:
        return f"left out: it would need about {10 * shorter.memory / 1e3:,.0f} GB"
    if 10 * shorter.wall > _MOST_TIME:
        return f"left out: it would take about {10 * shorter.wall:,.0f} s"
    return None


def _medians(bench: Bench, name: str, methods: list[str], runs: int, how: str = "plain") -> dict[str, Cost]:
    """Return the medians of interleaved runs; repeated if the bare download was slow, which flatters others."""
    for attempt in range(_ATTEMPTS):
        costs = _costs(bench, name, methods, runs, how)
        medians = {method: cost.median(each) for method, each in costs.items()}
        spread = medians[BARE].cpu / min(each.cpu for each in costs[BARE])
        if spread <= MOST_SPREAD:
            break
        again = "; measured again" if attempt + 1 < _ATTEMPTS else ""
        print(f"warning: the bare download took {spread:.2f} × its own minimum; the machine is busy{again}", flush=True)
    bench.spreads.append(spread)
    return medians


def _costs(bench: Bench, name: str, methods: list[str], runs: int, how: str) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {}
    for _ in range(runs):
        for method, each in bench.product(name, how).items():
            if not _enough(costs.setdefault(method, [])):
                costs[method].append(each)
        for method in methods:
            if not _enough(costs.setdefault(method, [])):
                costs[method].append(bench.other(method, name, how))
        if all(map(_enough, costs.values())):
            break
    return costs


def _enough(costs: list[Cost]) -> bool:
    return len(costs) >= FEWER and costs[0].wall > _LONG


def by_variant(bench: Bench, tasks: int, runs: int) -> Iterator[tuple[Variant, dict[str, Cost]]]:
    """Yield the medians for each way to write, send and fill a list."""
    for variant in VARIANTS:
        path = bench.folder / "list"
        scattered = variant.order == "scattered"
        lists.write(path, tasks, young=variant.young, notation=variant.notation, scattered=scattered)
        if variant.how == "gzip":
            lists.compress(path, path.with_suffix(".gz"))
        methods = [BARE, TYPED, UNPACKED] if variant.how == "gzip" else [BARE, TYPED]
        yield variant, _medians(bench, "list", methods, runs, variant.how)


def at_rest(bench: Bench, runs: int) -> dict[str, float]:
    """Return the seconds until ready, the MB when idle, and the cost of an answer without a fetch."""
    lists.write(bench.folder / "list", 100, models=1)
    started, resident, idle, answers = [], [], [], []
    for _ in range(runs):
        with Exporter(bench.upstream("list"), min_interval="1h") as exporter:
            started.append(exporter.started)
            path = "/probe?workspace=default"
            series = sum(not line.startswith("#") for line in exporter.get(path).splitlines())
            answers += [exporter.meter.cost(lambda: exporter.get(path)) for _ in range(50)]  # noqa: B023 - called at once
            resident.append(exporter.meter.resident())
            cpu = exporter.meter.cpu()
            time.sleep(1)
            idle.append(exporter.meter.cpu() - cpu)
    wall, cpu, _ = cost.median(answers)
    return {
        "started": middle(started),
        "resident": middle(resident),
        "idle": middle(idle),
        "series": series,
        "answer_wall": wall,
        "answer_cpu": cpu,
    }


def measured(sizes: tuple[int, ...], variants_at: int, runs: int, say: Callable[[str], None]) -> Figures:
    """Measure everything."""
    figures = Figures(runs=runs, variants_at=variants_at, load=load())
    with tempfile.TemporaryDirectory() as folder, origin.serving(Path(folder)) as url:
        bench = Bench(Path(folder), url, figures.spreads)
        lists.write(bench.folder / "warmup", 100)
        say(f"at rest, {runs} processes")
        figures.rest = at_rest(bench, runs)
        for tasks, medians in by_size(bench, sizes, runs):
            figures.sizes[tasks] = medians
            say(report.size_table(tasks, medians))
        for variant, costs in by_variant(bench, variants_at, runs):
            figures.variants[variant] = costs
            say(report.variant_row(figures, variant))
    figures.steady = steady.measured((sizes[1], sizes[-1]), runs)
    return figures


def load() -> float:
    """Return the running and waiting processes per core in the last minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def main() -> None:
    """Measure, print, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short lists and few runs, about a minute; writes nothing")
    parser.add_argument("--busy", action="store_true", help="measure and write even if the machine is busy, and say so")
    arguments = parser.parse_args()

    def say(text: str) -> None:
        print(text, flush=True)

    if arguments.quick:
        say(report.text(measured(QUICK_SIZES, QUICK_SIZES[-1], 3, lambda _: None)))
        return
    if load() > _BUSY and not arguments.busy:
        sys.exit(f"the machine is busy: {load():.2f} processes a core; wait, or pass --busy for tables that say so")
    figures = measured(SIZES, 100_000, RUNS, say)
    say(report.text(figures))
    if max(figures.spreads) > MOST_SPREAD and not arguments.busy:
        sys.exit("the machine was busy during the run: nothing was written; pass --busy for tables that say so")
    report.write(figures, Path(__file__).parents[1] / "docs")


if __name__ == "__main__":
    main()
