"""The measurements as the tables and the chart of docs/performance.md; ratios come first."""

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

import chart
from cost import Cost
from steady import Steady

FIRST: Final = "this exporter, first scrape"
SECOND: Final = "this exporter, second scrape"
LATER: Final = "this exporter, later scrape"
BARE: Final = "bare download, requests"
TYPED: Final = "msgspec, typed, whole body"
PLAIN: Final = "requests + json"
UNPACKED: Final = "bare download, decompressed"
MOST_SPREAD: Final = 1.3
"""Limit of the bare download's median, as a multiple of its minimum, above which the machine was busy."""

_PART: Final = re.compile(r"(<!-- written by make bench -->\n).*(<!-- until here -->\n)", re.DOTALL)


class Variant(NamedTuple):
    """How a list is written and sent, and the share and order of its tasks younger than `ledger.settle_after`.

    `young` is None if no task has a creation time.
    """

    notation: str
    how: str
    young: float | None
    order: str = "newest first"

    @property
    def tracked(self) -> float:
        """The share of its tasks that the ledger tracks."""
        return 1.0 if self.young is None else self.young


class Figures(msgspec.Struct):
    """All measurements: medians by size and method (or why there are none), and by variant and method."""

    runs: int
    variants_at: int
    load: float
    spreads: list[float] = []
    sizes: dict[int, dict[str, Cost | str]] = {}
    variants: dict[Variant, dict[str, Cost]] = {}
    rest: dict[str, float] = {}
    steady: dict[int, Steady] = {}


class Goal(NamedTuple):
    """A goal, the measurement, and whether it reaches the goal."""

    goal: str
    measured: str
    reached: bool


def text(figures: Figures) -> str:
    """Return all tables."""
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    parts = [
        f"Medians of {figures.runs} runs (3 if one takes more than 2 s), in turns, on a machine with {machine}.",
        _calm(figures),
        "### Goals",
        _table(Goal._fields, [(goal, got, "yes" if reached else "**no**") for goal, got, reached in goals(figures)]),
        "### By length",
        *(size_table(tasks, costs) for tasks, costs in figures.sizes.items()),
        "### By notation, transfer and age",
        f"All lists have {figures.variants_at:,} tasks; × is the multiple of the bare download of the same list.",
        "\n".join([_VARIANT_HEAD, *(variant_row(figures, each) for each in figures.variants)]),
        "### Linear fit by length",
        "\n".join(_fits(figures)),
        "### Time spent in the ledger",
        _table(
            ("tasks in the list", "finding changes", "reconciling and committing"),
            [(f"{n:,}", f"{each.look:.2f} ms", f"{each.commit:.2f} ms") for n, each in figures.steady.items()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _calm(figures: Figures) -> str:
    """Return a sentence on how idle the machine was."""
    spread = max(figures.spreads)
    verdict = ": **the machine was busy**" if spread > MOST_SPREAD else ""
    return (
        f"Load before the start: {figures.load:.2f} processes per core. The bare download's median was at most "
        f"{spread:.2f} × its minimum{verdict}."
    )


def size_table(tasks: int, costs: Mapping[str, Cost | str]) -> str:
    """Return a table of all methods for one size."""
    bare = costs[BARE]
    assert isinstance(bare, Cost)
    rows = [(name, *_cells(each, bare)) for name, each in costs.items()]
    return _table((f"{tasks:,} tasks", "CPU ×", "wall ×", "CPU", "wall", "memory growth"), rows)


def _cells(each: Cost | str, bare: Cost) -> tuple[str, ...]:
    if isinstance(each, str):
        return each, "", "", "", ""
    ratios = f"{each.cpu / bare.cpu:,.1f}", f"{each.wall / bare.wall:,.1f}"
    return *ratios, _time(each.cpu), _time(each.wall), f"{each.memory:,.1f} MB"


_VARIANT_HEAD: Final = (
    "| notation | sent | younger than settle_after | bare: CPU | later: CPU × | later: wall × | second: CPU × "
    "| first: CPU × | later ÷ typed msgspec, CPU | first: memory | later: memory | per additional tracked task |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def variant_row(figures: Figures, variant: Variant) -> str:
    """Return a row of the table of variants."""
    costs = figures.variants[variant]
    bare, first, later = costs[BARE], costs[FIRST], costs[LATER]
    ratios = (
        *(later.cpu / bare.cpu, later.wall / bare.wall, costs[SECOND].cpu / bare.cpu),
        *(first.cpu / bare.cpu, later.cpu / costs[TYPED].cpu),
    )
    young = "no task has a date" if variant.young is None else f"{variant.young:.1%}, {variant.order}"
    cells = [variant.notation, variant.how, young, _time(bare.cpu), *(f"{ratio:.2f}" for ratio in ratios)]
    few = next(iter(figures.variants))
    tasks = (variant.tracked - few.tracked) * figures.variants_at
    each = f"{1e6 * (later.memory - figures.variants[few][LATER].memory) / tasks:,.0f} bytes" if tasks else ""
    return f"| {' | '.join([*cells, f'{first.memory:.1f} MB', f'{later.memory:.1f} MB', each])} |"


def goals(figures: Figures) -> Iterator[Goal]:
    """Yield each goal with its measurement."""
    base = _costs(figures.sizes[figures.variants_at])
    later, bare = base[LATER], base[BARE]
    at = f"at {figures.variants_at:,} tasks, CPU × the bare download ({_time(bare.cpu)})"
    for scrape, most in ((LATER, 2.2), (SECOND, 7.0), (FIRST, 15.0)):
        ratio = base[scrape].cpu / bare.cpu
        yield Goal(f"{scrape.partition(', ')[2]} {at}: ≤ {most}", f"{ratio:.2f} ×", ratio <= most)
    for variant, costs in figures.variants.items():
        if variant.order == "scattered":
            ratio = costs[LATER].cpu / costs[BARE].cpu
            aim = f"later scrape, {variant.tracked:.0%} young and scattered: ≤ 4 × the bare download (CPU)"
            yield Goal(aim, f"{ratio:.2f} ×", ratio <= 4)
        if variant.young is None:
            ratio = costs[LATER].cpu / base[LATER].cpu
            yield Goal("later scrape of tasks without dates: ≤ 3 × the CPU with dates", f"{ratio:.2f} ×", ratio <= 3)
        if variant.how == "gzip":
            ratio = costs[LATER].cpu / costs[UNPACKED].cpu
            yield Goal("later scrape, gzip: ≤ 2 × the decompression alone (CPU)", f"{ratio:.2f} ×", ratio <= 2)
    few = min(figures.sizes)
    cpu = _costs(figures.sizes[few])[LATER].cpu
    yield Goal(f"later scrape of {few} tasks: ≤ 4 ms of CPU", f"{1e3 * cpu:.1f} ms", cpu <= 0.004)
    at = f"at {figures.variants_at:,} tasks"
    slow = next(costs for variant, costs in figures.variants.items() if variant.how == "gigabit")
    ratio = slow[LATER].wall / slow[BARE].wall
    yield Goal(f"later scrape {at} at 1 Gbit/s: ≤ 1.5 × the bare download (wall)", f"{ratio:.2f} ×", ratio <= 1.5)
    for scrape in (FIRST, SECOND, LATER):
        memory = max(_costs(costs)[scrape].memory for costs in figures.sizes.values())
        aim = f"memory growth ≤ 16 MB up to {max(figures.sizes):,} tasks, 0.1 % young: {scrape.partition(', ')[2]}"
        yield Goal(aim, f"{memory:.1f} MB", memory <= 16)
    times, less = base[PLAIN].cpu / later.cpu, base[PLAIN].memory / later.memory
    yield Goal(f"≥ 10 × faster than requests + json {at} (CPU)", f"{times:.1f} ×", times >= 10)
    yield Goal(f"≥ 100 × less memory than requests + json {at}", f"{less:,.0f} ×", less >= 100)
    yield from _ledger_goals(figures.steady)
    yield from _goals_at_rest(figures.rest)


def _ledger_goals(measured: Mapping[int, Steady]) -> Iterator[Goal]:
    (few, short), (many, long) = measured.items()
    aim = f"one new task per scrape: no more ledger time at {many:,} tasks than at {few:,}"
    commits = f"{short.commit:.2f} → {long.commit:.2f} ms"
    yield Goal(f"{aim}: reconciling and committing", commits, long.commit <= 2 * short.commit)
    looks = f"{short.look:.2f} → {long.look:.2f} ms, {1e6 * long.look / many:.1f} ns a task"
    yield Goal(f"{aim}: finding changes", looks, long.look <= 2 * short.look)


def _goals_at_rest(rest: Mapping[str, float]) -> Iterator[Goal]:
    yield Goal("idle with SQLite: ≤ 60 MB resident", f"{rest['resident']:.1f} MB", rest["resident"] <= 60)
    yield Goal("idle: < 1 ms of CPU a second", f"{1e3 * rest['idle']:.2f} ms", rest["idle"] < 0.001)
    yield Goal("start to ready ≤ 0.7 s", f"{rest['started']:.2f} s", rest["started"] <= 0.7)
    answer = f"{1e3 * rest['answer_wall']:.2f} ms, CPU {1e3 * rest['answer_cpu']:.2f} ms"
    aim = f"answer without a fetch (min_interval), {rest['series']:.0f} series: ≤ 2 ms"
    yield Goal(aim, answer, rest["answer_wall"] <= 0.002)


def _fits(figures: Figures) -> Iterator[str]:
    for name in (LATER, SECOND, FIRST, BARE):
        points = [(tasks, _costs(costs)[name].cpu) for tasks, costs in figures.sizes.items()]
        slope, intercept, worst = _fit(points)
        yield (
            f"- {name}: {1e6 * slope:.2f} µs of CPU per task plus {1e3 * intercept:.2f} ms per scrape; "
            f"every length is within {worst:.0%} of that line"
        )


def _fit(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return slope, intercept and largest relative distance of the least-squares line, with relative weights."""
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    both = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True))
    slope = both / sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    intercept = mean_y - slope * mean_x
    return slope, intercept, max(abs(intercept + slope * x - y) / y for x, y in points)


def write(figures: Figures, folder: Path) -> None:
    """Write the measured part of performance.md, and its chart."""
    document = folder / "performance.md"
    before = document.read_text()
    assert _PART.search(before), "performance.md has no markers around the measured part"
    document.write_text(_PART.sub(lambda part: f"{part[1]}\n{text(figures)}\n{part[2]}", before))
    ours = (LATER, SECOND, FIRST)
    names = [LATER, SECOND, *(name for name in figures.sizes[min(figures.sizes)] if name not in ours)]
    panels = [
        chart.Panel("CPU of one scrape", "seconds", {name: _line(figures, name, "cpu") for name in names}),
        chart.Panel(
            "Memory growth of one scrape",
            "MB (less than 0.1 is drawn as 0.1)",
            {name: _line(figures, name, "memory", 0.1) for name in names},
        ),
    ]
    (folder / "images/performance.svg").write_text(chart.drawn(panels))


def _line(figures: Figures, name: str, field: str, least: float = 0.0) -> list[tuple[float, float]]:
    return [
        (tasks, max(least, getattr(costs[name], field)))
        for tasks, costs in figures.sizes.items()
        if isinstance(costs[name], Cost)
    ]


def _costs(costs: Mapping[str, Cost | str]) -> dict[str, Cost]:
    return {name: each for name, each in costs.items() if isinstance(each, Cost)}


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1e3 * seconds:,.1f} ms"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
