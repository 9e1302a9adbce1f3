# ruff: noqa: INP001 - a folder that is run by its path, not a package
"""How long a run of failed tasks must be: the cost of each length, in false alarms and in time.

Quiet weeks of the same models, without Prometheus. Any of their tasks might be the first of an incident in which
everything fails, so they also show how long such an incident takes to reach a given number of failed tasks.
"""

import math
import statistics
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

import weeks

RULE: Final = 0  # the length that CreatifyModelFailing requires, which depends on the tasks of a day
LENGTHS: Final = (3, 4, 5, 6, 7, 8, RULE)
LONGEST: Final = 10
GOAL_TASKS: Final = 5  # if everything fails: detect it ten minutes after the fifth failed task
GOAL: Final = 10 * weeks.MINUTE
FOR: Final = 5 * weeks.MINUTE  # of CreatifyModelFailing


class Runs:
    """A model's runs of failed tasks that lasted long enough for an alarm, and the times when its tasks finished."""

    def __init__(self) -> None:
        self.alarms = dict.fromkeys(LENGTHS, 0)
        self.since: dict[int, int] = {}
        self.finished: list[int] = []

    def asked(self, length: int, now: int, finished: int) -> int:
        """Return how long a run must be now, after this many finished tasks."""
        if length != RULE:
            return length
        return 5 + int(math.log10(max(1, finished - bisect_left(self.finished, now - weeks.DAY))))

    def look(self, now: int, run: int, finished: int) -> None:
        """Record one minute."""
        self.finished.extend([now] * (finished - len(self.finished)))
        if not run:
            self.since.clear()
            return
        for length in LENGTHS:
            if run < self.asked(length, now, finished):
                self.since.pop(length, None)
            elif now - self.since.setdefault(length, now) == FOR:
                self.alarms[length] += 1

    def delays(self, length: int) -> Iterator[int]:
        """Yield how long after its fifth failed task each incident would be detected, in seconds."""
        for first in range(len(self.finished) - LONGEST):
            fifth = self.finished[first + GOAL_TASKS - 1]
            asked = self.asked(length, fifth, first + GOAL_TASKS)
            yield self.finished[first + asked - 1] + FOR - fifth


def watch(workspace: weeks.Workspace) -> list[Runs]:
    """Return the runs of each model of a workspace."""
    world = weeks.World(workspace)
    found = {name: Runs() for name in world.models}
    for now, _ in world.minutes():
        for name, model in world.models.items():
            found[name].look(now, model.run, int(model.totals[1]))
    return list(found.values())


def row(volume: str, long: int, seed: int) -> str:
    """Return a row of the table: for each length the false alarms, the median delay and the share detected in time."""
    found = watch(weeks.Workspace(volume, volume, 1000 + seed, weeks.BEGIN, long * 7, replicas=0))
    cells = []
    for length in LENGTHS:
        alarms = sum(runs.alarms[length] for runs in found)
        delays = sorted(delay for runs in found for delay in runs.delays(length))
        in_time = sum(delay <= GOAL for delay in delays) / len(delays)
        cells.append(f"{alarms}, {statistics.median(delays) / 60:.0f} min, {in_time:.0%}".replace("%", " %"))
    return f"| {volume} | " + " | ".join(cells) + " |"


def table(volumes: list[str], long: int, seed: int) -> str:
    """Return the table as Markdown."""
    names = " | ".join(f"{length} in a row" if length else "the rule" for length in LENGTHS)
    head = [f"| {long} weeks | {names} |", "|---" * (len(LENGTHS) + 1) + "|"]
    return "\n".join([*head, *(row(volume, long, seed) for volume in volumes)])
