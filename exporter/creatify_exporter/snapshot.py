"""What one complete list says now."""

from datetime import datetime
from typing import Final

import msgspec

from creatify_exporter.tasks import OTHER, Status, Task, known, model_label

_MOST_KINDS: Final = 10_000
"""Distinct pairs of model and status that are told apart before a hostile list has its way with the memory."""


class Cell(msgspec.Struct, gc=False):
    """How many tasks there are of one kind, what they used, and when the oldest was created."""

    tasks: int = 0
    credits: float = 0.0
    oldest: datetime | None = None

    def merge(self, other: "Cell") -> None:
        """Add another cell to this one."""
        self.tasks += other.tasks
        self.credits += other.credits
        self.oldest = _earlier(self.oldest, other.oldest)


class Snapshot:
    """Sums up a list, batch by batch; it is to be shown only when the list has proved complete.

    `oldest` and `newest` are the creation times that bound the list, None where no task tells its own.
    """

    def __init__(self) -> None:
        self.oldest: datetime | None = None
        self.newest: datetime | None = None
        self._cells: dict[tuple[str | None, str | None], Cell] = {}

    def add(self, batch: list[Task]) -> None:
        """Take in some tasks; an entry that stands in the list twice counts twice, as it would for a reader."""
        cells = self._cells
        for task in batch:
            cell = cells.get((task.model_name, task.status)) or self._cell(task)
            cell.tasks += 1
            if task.credits_used:
                cell.credits += task.credits_used
            if task.status != "done" and task.created_at and (cell.oldest is None or task.created_at < cell.oldest):
                cell.oldest = task.created_at
        dates = [task.created_at for task in batch if task.created_at]
        if dates:
            self.oldest = _earlier(self.oldest, min(dates))
            newest = max(dates)
            self.newest = newest if self.newest is None or newest > self.newest else self.newest

    def _cell(self, task: Task) -> Cell:
        """Return the cell for a kind not met before, under names of bounded length and number."""
        name = task.model_name[:400] if task.model_name else None
        status = known(task.status)
        if len(self._cells) >= _MOST_KINDS:
            name = None
        return self._cells.setdefault((name, status), Cell())

    def by_model(self, models: frozenset[str]) -> dict[str, dict[Status, Cell]]:
        """Return the cells by label values: those of the `models` that the ledger knows, and `other` for the rest."""
        sums: dict[str, dict[Status, Cell]] = {model: {} for model in sorted(models)}
        for (name, status), cell in self._cells.items():
            label = model_label(name)
            row = sums.setdefault(label if label in models else OTHER, {})
            row.setdefault(known(status), Cell()).merge(cell)
        return sums


def _earlier(one: datetime | None, another: datetime | None) -> datetime | None:
    if one is None or another is None:
        return one or another
    return min(one, another)
