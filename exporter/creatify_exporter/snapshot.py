"""What one complete list says now."""

from collections import defaultdict
from math import inf
from typing import Final

import msgspec

from creatify_exporter.creatify.task import OTHER, UNFINISHED, Status, Task, model_label, status_label

_MAX_KINDS: Final = 10_000
"""Distinct pairs of model and status that are told apart, so that a hostile list cannot take all memory."""


class Cell(msgspec.Struct, gc=False, array_like=True):
    """How many tasks there are of one kind, their credits, and when the oldest was created if they are unfinished.

    `oldest_at` is infinite if no task says when it was created.
    """

    tasks: int = 0
    credits_used: float = 0.0
    oldest_at: float = inf

    def merge(self, other: "Cell") -> None:
        """Add another cell to this one."""
        self.tasks += other.tasks
        self.credits_used += other.credits_used
        self.oldest_at = min(self.oldest_at, other.oldest_at)


class Snapshot(msgspec.Struct, array_like=True):
    """Sums up tasks; a list is summed up part by part, and shown only when it has proved complete.

    `oldest_at` and `newest_at` are the creation times that bound the list; infinite if no task says its own.
    `cells` are by names of model and status.
    """

    oldest_at: float = inf
    newest_at: float = -inf
    cells: dict[tuple[str | None, str | None], Cell] = {}

    @classmethod
    def of(cls, tasks: list[Task]) -> "Snapshot":
        """Sum up some tasks; an entry that stands in the list twice counts twice, as it would for a reader."""
        snapshot = cls()
        kinds: defaultdict[tuple[str | None, str | None], list[Task]] = defaultdict(list)
        for task in tasks:
            kinds[task.model_name, task.status].append(task)
        for kind, alike in kinds.items():
            cell = snapshot._cell(*kind)
            cell.tasks += len(alike)
            cell.credits_used += sum([task.credits_used or 0.0 for task in alike])
            if kind[1] in UNFINISHED:
                cell.oldest_at = min([cell.oldest_at, *_created(alike)])
        created = _created(tasks)
        snapshot.oldest_at, snapshot.newest_at = min([inf, *created]), max([-inf, *created])
        return snapshot

    @classmethod
    def unpacked(cls, packed: bytes) -> "Snapshot":
        """Return what `packed` was made of."""
        return _decoder.decode(packed)

    def packed(self) -> bytes:
        """Return some 30 bytes for each kind of task, whose names must be text that can be encoded."""
        return _encoder.encode(self)

    def merge(self, other: "Snapshot") -> None:
        """Add the sums of another part of the list."""
        for kind, cell in other.cells.items():
            self._cell(*kind).merge(cell)
        self.oldest_at = min(self.oldest_at, other.oldest_at)
        self.newest_at = max(self.newest_at, other.newest_at)

    def _cell(self, model_name: str | None, raw_status: str | None) -> Cell:
        """Return the cell for a kind not met before, under names of bounded length and number."""
        kind = (model_name[:400] if model_name else None, status_label(raw_status))
        if kind not in self.cells and len(self.cells) >= _MAX_KINDS:
            kind = (None, kind[1])
        return self.cells.setdefault(kind, Cell())

    def by_model(self, models: frozenset[str]) -> dict[str, dict[Status, Cell]]:
        """Return the cells by label values: those of the `models` that the ledger knows, and `other` for the rest."""
        sums: dict[str, dict[Status, Cell]] = {model: {} for model in sorted(models)}
        for (name, status), cell in self.cells.items():
            label = model_label(name)
            row = sums.setdefault(label if label in models else OTHER, {})
            row.setdefault(status_label(status), Cell()).merge(cell)
        return sums


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Snapshot)


def _created(tasks: list[Task]) -> list[float]:
    # As numbers, since times in different zones are slow to compare.
    return [task.created_at.timestamp() for task in tasks if task.created_at]
