"""The sums of one complete list, for the gauges."""

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
    counted_status,
    model_label,
    status_label,
)

_MAX_KINDS: Final = 10_000
"""Pairs of model and status that are kept apart, so that a hostile list cannot use up the memory."""

_MAX_RECENT: Final = 16_000
_MAX_UNFINISHED: Final = 10_000


class Cell(msgspec.Struct, gc=False, array_like=True):
    """The tasks of one kind: their number, their credits, and the creation time of the oldest if they are unfinished.

    `oldest_at` is infinite if no task has a creation time.
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
    """The sums of some tasks. A list is summed up part by part, and served only after it has proved complete.

    `oldest_at` and `newest_at` are the first and the last creation time, infinite if no task has one. `cells` are by
    model name and status.
    """

    oldest_at: float = inf
    newest_at: float = -inf
    cells: dict[tuple[str | None, str], Cell] = {}

    @property
    def tasks(self) -> int:
        """How many tasks are summed up."""
        return sum(cell.tasks for cell in self.cells.values())

    @property
    def credits_used(self) -> float:
        """How many credits these tasks have used."""
        return sum(cell.credits_used for cell in self.cells.values())

    @property
    def has_dates(self) -> bool:
        """Whether any task has a creation time."""
        return self.oldest_at < inf

    @classmethod
    def of(cls, tasks: list[Task]) -> "Snapshot":
        """Sum up some tasks, including copies."""
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
        """Return the snapshot from the bytes that `packed` returned."""
        return _decoder.decode(packed)

    def packed(self) -> bytes:
        """Return the snapshot as bytes, some 30 for each kind of task. Model names must not have lone surrogates."""
        return _encoder.encode(self)

    def merge(self, other: "Snapshot") -> None:
        """Add the sums of another part of the list."""
        for kind, cell in other.cells.items():
            self._cell(*kind).merge(cell)
        self.oldest_at = min(self.oldest_at, other.oldest_at)
        self.newest_at = max(self.newest_at, other.newest_at)

    def date_oldest(self, task: Task, seen_at: float) -> None:
        """Add the time at which an unfinished task without a creation time was first seen."""
        cell = self._cell(task.model_name, task.status)
        cell.oldest_at = min(cell.oldest_at, seen_at)

    def _cell(self, model_name: str | None, status: str | None) -> Cell:
        """Return the cell of a kind, new or not, under names of bounded length and number."""
        kind = (model_name[:MAX_NAME_LENGTH] if model_name else None, status_label(status))
        if kind not in self.cells and len(self.cells) >= _MAX_KINDS:
            kind = (None, kind[1])
        return self.cells.setdefault(kind, Cell())

    def by_model(self, models: frozenset[str], labels: Labels) -> dict[str, dict[str, Cell]]:
        """Return the cells by label values; `models`, which the ledger knows, are included even without tasks.

        Tasks that are too old for the ledger to count may have other models. Those models get their own label while
        there is room, and `other` afterwards.
        """
        listed = {model_label(name) for name, _ in self.cells}
        shown = models | _admitted(listed - models, models, labels)
        sums: dict[str, dict[str, Cell]] = {model: {} for model in sorted(models)}
        for (name, status), cell in self.cells.items():
            label = model_label(name)
            row = sums.setdefault(label if label in shown else OTHER, {})
            row.setdefault(status, Cell()).merge(cell)
        return sums


def _admitted(candidates: set[str], models: frozenset[str], labels: Labels) -> set[str]:
    """Return the candidates that get their own label; as in the ledger, `labels.models` have reserved places."""
    promised = frozenset(labels.models)
    free = labels.max_models - len((models | promised) - {OTHER})
    return (candidates & promised) | set(sorted(candidates - promised - {OTHER})[: max(0, free)])


class Tally:
    """Sums up one list, batch by batch; each id counts once.

    An API may repeat an entry, for example if new tasks push others onto the next page between two requests. Of an
    unfinished task, the copy with the most progress counts, as in the ledger; of a finished task, the first copy. The
    memory is bounded: a copy is recognised up to 16,000 entries after the first; 10,000 unfinished tasks are deferred.
    """

    def __init__(self) -> None:
        self.has_copies = False
        self._sums = Snapshot()
        # Hashes, because they need half the memory of the ids.
        self._recent: set[int] = set()
        self._older: set[int] = set()
        self._unfinished: dict[str, Task] = {}

    def add(self, tasks: list[Task]) -> Snapshot:
        """Add a batch; return the sums of the tasks that count at once: neither copies nor deferred ones."""
        may_have_copies = not self._add_new(tasks)
        counted = []
        for task in tasks:
            if may_have_copies and task.id and self._is_copy(task):
                continue
            if task.status not in FINISHED and self._defer(task):
                continue
            counted.append(task)
        sums = Snapshot.of(counted)
        self._sums.merge(sums)
        return sums

    def merge(self, part: Snapshot, ids: Iterable[str]) -> None:
        """Add the sums of a part known from the previous fetch, and the ids of its tasks that are known.

        None of these ids may have been added before.
        """
        self._make_room()
        self._recent.update(map(hash, ids))
        self._sums.merge(part)

    def snapshot(self, first_seen_at: Callable[[str], float | None]) -> Snapshot:
        """Return the sums, at the end of the list; `first_seen_at` dates unfinished tasks without a creation time."""
        whole = Snapshot.of(list(self._unfinished.values()))
        whole.merge(self._sums)
        for task in self._unfinished.values():
            if task.created_at is None and task.status in UNFINISHED:
                seen_at = first_seen_at(task.id)
                whole.date_oldest(task, inf if seen_at is None else seen_at)
        return whole

    def _defer(self, task: Task) -> bool:
        """Defer an unfinished task until the end of the list; return whether there is room for it."""
        if not task.id or len(self._unfinished) >= _MAX_UNFINISHED:
            return False
        self._unfinished[task.id] = _slim(task)
        return True

    def _add_new(self, tasks: list[Task]) -> bool:
        """Add the ids of a batch at once if all are new, as in most batches; return whether they are."""
        ids = {hash(task.id) for task in tasks}
        self._make_room()
        are_new = len(ids) == len(tasks) and ids.isdisjoint(self._recent) and ids.isdisjoint(self._older)
        if are_new:
            self._recent |= ids
        return are_new

    def _make_room(self) -> None:
        if len(self._recent) >= _MAX_RECENT:
            self._older, self._recent = self._recent, set()

    def _is_copy(self, task: Task) -> bool:
        """Return whether a task was listed before; a copy with more progress replaces a deferred original."""
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
    return RANK[counted_status(task.status)], -1.0 if task.credits_used is None else task.credits_used


def _slim(task: Task) -> Task:
    """Return a copy of a task with only the fields that are summed up, and with names of bounded length."""
    model_name = task.model_name and task.model_name[:MAX_NAME_LENGTH]
    return Task(task.id, model_name, status_label(task.status), None, task.credits_used, task.created_at)


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Snapshot)


def _bounds(tasks: list[Task]) -> tuple[float, float]:
    """Return the first and the last creation time, infinite if no task has one."""
    # Compared as datetimes: converting each to a number takes three times as long if all of them are in UTC.
    created = [task.created_at for task in tasks if task.created_at]
    return (min(created).timestamp(), max(created).timestamp()) if created else (inf, -inf)
