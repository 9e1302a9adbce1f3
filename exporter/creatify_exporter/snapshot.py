"""What one complete list says now."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from math import inf
from typing import Final

import msgspec

from creatify_exporter.config.schema import Labels
from creatify_exporter.creatify.task import (
    FINISHED,
    MAX_NAME_LENGTH,
    OTHER,
    RANK,
    UNFINISHED,
    Task,
    known_status,
    model_label,
    status_label,
)

_MAX_KINDS: Final = 10_000
"""Distinct pairs of model and status that are told apart, so that a hostile list cannot take all memory."""


_MAX_RECENT: Final = 16_000
_MAX_UNFINISHED: Final = 10_000


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

    @property
    def tasks(self) -> int:
        """How many tasks it sums up."""
        return sum(cell.tasks for cell in self.cells.values())

    @property
    def credits_used(self) -> float:
        """How many credits these have cost."""
        return sum(cell.credits_used for cell in self.cells.values())

    @property
    def has_dates(self) -> bool:
        """Whether any of them says when it was created."""
        return self.oldest_at < inf

    @classmethod
    def of(cls, tasks: list[Task]) -> "Snapshot":
        """Sum up some tasks, copies included."""
        snapshot = cls()
        kinds: defaultdict[tuple[str | None, str | None], list[Task]] = defaultdict(list)
        for task in tasks:
            kinds[task.model_name, task.status].append(task)
        for kind, alike in kinds.items():
            cell = snapshot._cell(*kind)
            cell.tasks += len(alike)
            cell.credits_used += sum([task.credits_used or 0.0 for task in alike])
            if kind[1] in UNFINISHED:
                cell.oldest_at = min(cell.oldest_at, _bounds(alike)[0])
        snapshot.oldest_at, snapshot.newest_at = _bounds(tasks)
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

    def date_oldest(self, task: Task, seen_at: float) -> None:
        """Note since when an unfinished task without a date has been there."""
        cell = self._cell(task.model_name, task.status)
        cell.oldest_at = min(cell.oldest_at, seen_at)

    def _cell(self, model_name: str | None, raw_status: str | None) -> Cell:
        """Return the cell for a kind not met before, under names of bounded length and number."""
        kind = (model_name[:MAX_NAME_LENGTH] if model_name else None, status_label(raw_status))
        if kind not in self.cells and len(self.cells) >= _MAX_KINDS:
            kind = (None, kind[1])
        return self.cells.setdefault(kind, Cell())

    def by_model(self, models: frozenset[str], labels: Labels) -> dict[str, dict[str, Cell]]:
        """Return the cells by label values, with those models that the ledger knows even if they have no tasks.

        Tasks that the ledger does not count, since they are old, may have other models. These have labels of their own
        while there are places for them, else `other`.
        """
        listed = {model_label(name) for name, _ in self.cells}
        shown = models | _admitted(listed - models, models, labels)
        sums: dict[str, dict[str, Cell]] = {model: {} for model in sorted(models)}
        for (name, status), cell in self.cells.items():
            label = model_label(name)
            row = sums.setdefault(label if label in shown else OTHER, {})
            row.setdefault(status_label(status), Cell()).merge(cell)
        return sums


def _admitted(candidates: set[str], models: frozenset[str], labels: Labels) -> set[str]:
    """Return the candidates that have a label of their own: as in the ledger, places are kept for `labels.models`."""
    promised = frozenset(labels.models)
    places = labels.max_models - len((models | promised) - {OTHER})
    return (candidates & promised) | set(sorted(candidates - promised - {OTHER})[: max(0, places)])


class Tally:
    """Sums up one list, batch by batch; an id counts once.

    An API may repeat an entry, and does if tasks arrive between two pages: they push others onto the next page. Of an
    unfinished task the copy counts that is furthest on, as in the ledger; of a finished one the first. The memory is
    bounded: a copy is recognised if it comes at most 16,000 entries after the first; 10,000 unfinished tasks can wait.
    """

    def __init__(self) -> None:
        self.has_copies = False
        self._sums = Snapshot()
        # Hashes, which need half the memory of the ids.
        self._recent: set[int] = set()
        self._older: set[int] = set()
        self._unfinished: dict[str, Task] = {}

    def add(self, tasks: list[Task]) -> Snapshot:
        """Add a batch; return the sums of those of its tasks that count at once: no copies, and none to hold."""
        counted = [task for task in self._distinct(tasks) if task.status in FINISHED or not self._hold(task)]
        sums = Snapshot.of(counted)
        self._sums.merge(sums)
        return sums

    def merge(self, part: Snapshot, ids: Iterable[str]) -> None:
        """Add the sums of a part that is known from the list before, and the ids of its tasks as far as they are known.

        None of these may have been added before.
        """
        self._make_room()
        self._recent.update(map(hash, ids))
        self._sums.merge(part)

    def snapshot(self, first_seen_at: Callable[[str], float | None]) -> Snapshot:
        """Return the sums, at the end of the list; `first_seen_at` dates unfinished tasks that do not say their age."""
        whole = Snapshot.of(list(self._unfinished.values()))
        whole.merge(self._sums)
        for task in self._unfinished.values():
            if task.created_at is None and task.status in UNFINISHED:
                seen_at = first_seen_at(task.id)
                whole.date_oldest(task, inf if seen_at is None else seen_at)
        return whole

    def _hold(self, task: Task) -> bool:
        """Keep an unfinished task until the end of the list; return whether there is room for it."""
        if not task.id or len(self._unfinished) >= _MAX_UNFINISHED:
            return False
        self._unfinished[task.id] = _slim(task)
        return True

    def _distinct(self, tasks: list[Task]) -> Iterable[Task]:
        """Return the tasks without copies; lazily, since one task may be a copy of the one before it."""
        new = {hash(task.id) for task in tasks}
        self._make_room()
        if len(new) == len(tasks) and new.isdisjoint(self._recent) and new.isdisjoint(self._older):
            self._recent |= new
            return tasks
        return (task for task in tasks if not task.id or not self._is_copy(task))

    def _make_room(self) -> None:
        if len(self._recent) >= _MAX_RECENT:
            self._older, self._recent = self._recent, set()

    def _is_copy(self, task: Task) -> bool:
        """Return whether a task was listed before; one that is further on takes the place of its original."""
        key = hash(task.id)
        if key not in self._recent and key not in self._older:
            self._recent.add(key)
            return False
        self.has_copies = True
        original = self._unfinished.get(task.id)
        if original and _progress(task) > _progress(original):
            self._unfinished[task.id] = _slim(task)
        return True


def _progress(task: Task) -> tuple[int, float]:
    return RANK[known_status(task.status)], -1.0 if task.credits_used is None else task.credits_used


def _slim(task: Task) -> Task:
    """Return a task that is no longer than what is summed up of it."""
    model_name = task.model_name and task.model_name[:MAX_NAME_LENGTH]
    return Task(task.id, model_name, status_label(task.status), None, task.credits_used, task.created_at)


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Snapshot)


def _bounds(tasks: list[Task]) -> tuple[float, float]:
    """Return when the oldest and the newest task were created, infinite if none of them says it."""
    # Compared as they are: to make each a number takes three times as long if the API writes them all in UTC.
    created = [task.created_at for task in tasks if task.created_at]
    return (min(created).timestamp(), max(created).timestamp()) if created else (inf, -inf)
