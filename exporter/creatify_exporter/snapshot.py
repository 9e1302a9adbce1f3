"""What one complete list says now."""

from collections import defaultdict
from math import inf
from typing import Final

import msgspec

from creatify_exporter.tasks import OTHER, UNFINISHED, Status, Task, known, model_label

_MOST_KINDS: Final = 10_000
"""Distinct pairs of model and status that are told apart before a hostile list has its way with the memory."""


class Cell(msgspec.Struct, gc=False):
    """How many tasks there are of one kind, what they used, and when the oldest was created, if it is unfinished.

    Times are seconds since the epoch; infinite where no task tells.
    """

    tasks: int = 0
    credits: float = 0.0
    oldest: float = inf

    def merge(self, other: "Cell") -> None:
        """Add another cell to this one."""
        self.tasks += other.tasks
        self.credits += other.credits
        self.oldest = min(self.oldest, other.oldest)


class Snapshot:
    """Sums up a list, batch by batch; it is to be shown only when the list has proved complete.

    `oldest` and `newest` are the creation times that bound the list, in seconds since the epoch; infinite where no task
    tells its own.
    """

    def __init__(self) -> None:
        self.oldest, self.newest = inf, -inf
        self._cells: dict[tuple[str | None, str | None], Cell] = {}

    def add(self, batch: list[Task]) -> None:
        """Take in some tasks; an entry that stands in the list twice counts twice, as it would for a reader."""
        kinds: defaultdict[tuple[str | None, str | None], list[Task]] = defaultdict(list)
        for task in batch:
            kinds[task.model_name, task.status].append(task)
        for kind, tasks in kinds.items():
            cell = self._cells.get(kind) or self._cell(*kind)
            cell.tasks += len(tasks)
            cell.credits += sum([task.credits_used or 0.0 for task in tasks])
            if kind[1] in UNFINISHED:
                cell.oldest = min([cell.oldest, *_created(tasks)])
        dates = _created(batch)  # as numbers, since times in different zones are slow to compare
        self.oldest, self.newest = min([self.oldest, *dates]), max([self.newest, *dates])

    def _cell(self, model_name: str | None, raw_status: str | None) -> Cell:
        """Return the cell for a kind not met before, under names of bounded length and number."""
        kind = (model_name[:400] if model_name else None, known(raw_status))
        if kind not in self._cells and len(self._cells) >= _MOST_KINDS:
            kind = (None, kind[1])
        return self._cells.setdefault(kind, Cell())

    def by_model(self, models: frozenset[str]) -> dict[str, dict[Status, Cell]]:
        """Return the cells by label values: those of the `models` that the ledger knows, and `other` for the rest."""
        sums: dict[str, dict[Status, Cell]] = {model: {} for model in sorted(models)}
        for (name, status), cell in self._cells.items():
            label = model_label(name)
            row = sums.setdefault(label if label in models else OTHER, {})
            row.setdefault(known(status), Cell()).merge(cell)
        return sums


def _created(tasks: list[Task]) -> list[float]:
    return [task.created_at.timestamp() for task in tasks if task.created_at]
