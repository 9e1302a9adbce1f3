# ruff: noqa: INP001 - a folder that is run by its path, not a package
"""How many failed tasks are a spike: the cost of each limit, in false alarms and in missed incidents.

A Python copy of CreatifyFailureSpike and the series that it reads, over weeks of one replica. It takes seconds instead
of Prometheus' minutes, and finds the same alarms to the minute (tests/rules/test_lab.py).
"""

import statistics
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import weeks

WINDOWS: Final = (5, 15, 30, 60)
FLOOR, FACTOR, CEILING, TOLERATED = 0.2, 4, 0.9, 0.6
CLEANING, CLEAN_TASKS = (5, 15), 10
KEPT: Final = 5 * weeks.MINUTE
SLACK: Final = 75 * weeks.MINUTE
LATE: Final = 10 * weeks.MINUTE
LEAST: Final = 5
"""No tested limit is below this, so most minutes can be skipped."""


@dataclass(frozen=True)
class Limit:
    """Failed tasks too many for a spike at once, and for one after they have lasted some minutes."""

    at_once: float
    lasting: float
    minutes: int

    def __str__(self) -> str:
        if not self.minutes:
            return f"{self.at_once:g} at once"
        return f"{self.lasting:g} for {self.minutes} min or {self.at_once:g} at once"


RULE: Final = Limit(11, 8, 5)
LIMITS: Final = (
    *(Limit(excess, excess, 0) for excess in (8, 9, 10, 11, 12)),
    *(Limit(at_once, 8, minutes) for minutes in (3, 5, 8) for at_once in (10, 11, 12)),
    Limit(11, 7, 5),
    Limit(11, 9, 5),
)


@dataclass
class Counters:
    """A model's counters at a replica, minute by minute."""

    finished: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)

    def increases(self, minute: int) -> Iterator[tuple[float, float]]:
        """Yield the failed and the finished tasks of each window, extrapolated as Prometheus does."""
        for window in WINDOWS:
            first, beyond = max(0, minute - window + 1), window / (window - 1)
            yield (
                (self.failed[minute] - self.failed[first]) * beyond,
                (self.finished[minute] - self.finished[first]) * beyond,
            )

    def excesses(self) -> Iterator[tuple[int, float]]:
        """Yield the minutes in which a window is above the limit and not over, with the largest excess of these."""
        limit, past = FLOOR, list[tuple[int, float]]()
        for minute in range(len(self.finished)):
            windows = list(self.increases(minute))
            if minute % 15 == 0:
                failed, finished = windows[-1]
                if finished:
                    past.append((minute, min(1, failed / finished)))
                limit = ratio_limit([ratio for at, ratio in past if minute - 1500 <= at <= minute - 60])
                past = past[-120:]
            excess = most_excess(windows, limit)
            if excess >= LEAST:
                yield minute, excess


def most_excess(windows: Sequence[tuple[float, float]], limit: float) -> float:
    """Return the largest excess of a window that is above the limit and that no shorter window ends."""
    most, over = 0.0, False
    for window, (failed, finished) in zip(WINDOWS, windows, strict=True):
        excess = failed - finished * limit * TOLERATED
        if failed > finished * limit and not over:
            most = max(most, excess)
        over = over or (window in CLEANING and excess <= 0 and finished >= CLEAN_TASKS)
    return most


def ratio_limit(past: Sequence[float]) -> float:
    """Return the share above which failures are a spike, by the hours of the day before."""
    return min(CEILING, max(FLOOR, FACTOR * statistics.median(past))) if past else FLOOR


def alarms(excesses: Sequence[tuple[int, float]], limit: Limit) -> list[int]:
    """Return the minutes at which the alert begins to fire."""
    begun: list[int] = []
    since = last = fired = None
    for minute, excess in excesses:
        if excess < min(limit.lasting, limit.at_once):
            continue
        if last is not None and minute - last > 1:
            since = None
        if fired is not None and (minute - fired) * weeks.MINUTE > KEPT + weeks.MINUTE:
            fired = None
        since, last = minute if since is None else since, minute
        if excess >= limit.at_once or minute - since >= limit.minutes:
            if fired is None:
                begun.append(minute)
            fired = minute
    return begun


class Silent(weeks.World):
    """A workspace whose exporters count but serve nothing."""

    def scrape(self, replica: weeks.Replica, now: int, episodes: list[weeks.Episode]) -> str:
        """Record the list if a fetch succeeds."""
        if not replica.is_away(episodes) and not replica.fetch_fails(episodes):
            replica.book(now, self.models, episodes)
        return ""


def watch(workspace: weeks.Workspace) -> dict[str, Counters]:
    """Return the counters of each model at a replica."""
    world = Silent(workspace)
    found = {name: Counters() for name in world.models}
    for _ in world.minutes():
        for name, counters in found.items():
            totals = world.replicas[0].shown.get(name, [0.0] * len(weeks.COUNTERS))
            counters.finished.append(totals[1])
            counters.failed.append(sum(totals[2 : 2 + len(weeks.REASONS)]))
    return found


def begun(workspace: weeks.Workspace, limits: Sequence[Limit]) -> dict[Limit, dict[str, list[int]]]:
    """Return the times (in seconds) at which the alert begins, by limit and model; windows end a minute earlier."""
    found: dict[Limit, dict[str, list[int]]] = {limit: {} for limit in limits}
    for name, counters in watch(workspace).items():
        excesses = list(counters.excesses())
        for limit in limits:
            minutes = alarms(excesses, limit)
            found[limit][name] = [workspace.start + (minute + 2) * weeks.MINUTE for minute in minutes]
    return found


def delays(episodes: Sequence[weeks.Episode], at: dict[str, list[int]]) -> list[float | None]:
    """Return for each incident with a tenth failed task the seconds from it to the alert; None: never detected."""
    found: list[float | None] = []
    for episode in episodes:
        tenth = episode.tenth_failure()
        if tenth is not None and not episode.drifts:
            alarm = bisect_left(at[episode.model], episode.start)
            first = next((t for t in at[episode.model][alarm:] if t <= episode.end + SLACK), None)
            found.append(None if first is None else first - tenth)
    return found


def table(volumes: list[str], long: int, seed: int) -> str:
    """Return a Markdown table of false alarms in quiet weeks and of missed and late incidents, by limit and volume."""
    cells: dict[Limit, list[str]] = {limit: [] for limit in LIMITS}
    for volume in volumes:
        quiet = begun(weeks.Workspace(volume, volume, 2000 + seed, weeks.BEGIN, long * 7), LIMITS)
        plan = weeks.incidents(weeks.BEGIN, long // 2 * 2)
        eventful = begun(weeks.Workspace(volume, volume, 3000 + seed, weeks.BEGIN, long * 7, plan), LIMITS)
        for limit in LIMITS:
            found = delays(plan, eventful[limit])
            late = sum(delay is not None and delay > LATE for delay in found)
            false = sum(map(len, quiet[limit].values()))
            cells[limit].append(f"{false}, {found.count(None)} and {late} of {len(found)}")
    head = [f"| {long} weeks | " + " | ".join(volumes) + " |", "|---" * (len(volumes) + 1) + "|"]
    return "\n".join([*head, *(f"| {limit} | " + " | ".join(row) + " |" for limit, row in cells.items())])
