"""A transaction: follows one fetch, and collects what the ledger needs to record its list."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from creatify_exporter.creatify.task import FINISHED, MAX_NAME_LENGTH, Task, counted_status, model_label
from creatify_exporter.errors import FetchError, LedgerUnavailable
from creatify_exporter.ledger.staging import Observation, StagingTable
from creatify_exporter.ledger.state import Book, Row, Rules


class Basis(NamedTuple):
    """Why the ledger can skip a chunk that a later list repeats byte for byte: all of its tasks have finished.

    - Tracked tasks are in `ids`. Each must still have an equal row in the book; `rows` are those that were compared.
    - Untracked tasks have settled in `book`, which must still be the same object, because a book that was loaded again
      may be an earlier state. It is None if there are no such tasks.
    """

    book: Book | None
    ids: tuple[str, ...]
    rows: tuple[Row, ...]


class Comparison(NamedTuple):
    """A batch compared with the book.

    `rows` has the row of each task at that moment, because `book` may change during the fetch; it is empty if the book
    could not be read. Each task is one of:

    - changing: its index is in `changing`, and it may differ when it is listed again;
    - tracked: it has a row, which says what the list says;
    - untracked: it has no row (None), and has settled in `book`.
    """

    book: Book
    batch: list[Task]
    rows: Sequence[Row | None]
    changing: Sequence[int]

    def basis(self, begin: int, end: int) -> Basis:
        """Return the basis of the tasks `batch[begin:end]`, none of which may be changing."""
        tracked = [(task.id, row) for task, row in zip(self.batch[begin:end], self.rows[begin:end], strict=True) if row]
        ids, rows = zip(*tracked, strict=True) if tracked else ((), ())
        return Basis(self.book if len(tracked) < end - begin else None, ids, rows)


class Transaction:
    """Takes a list batch by batch; none of it reaches the ledger without `Ledger.commit`.

    Only changes are kept: of a task that is listed as the book has it, only the id, in `unchanged`; of a settled task,
    nothing; of any other with an id, an observation in `staging`. `has_dates` says whether any task has a creation
    time. `rules` and `begun`, the progress of the book, are as they were when the transaction began. `failure` is the
    error if the book could not be read.
    """

    def __init__(self, book: Book, rules: Rules, failure: LedgerUnavailable | None) -> None:
        # The ledger's own book, not a copy: during the fetch, the commit of another fetch changes it, and on PostgreSQL
        # that of another exporter.
        self.book = book
        self.rules, self.begun = rules, book.progress
        self._failure = failure
        self.staging = StagingTable()
        # A list has thousands of tasks of each model; the cache keeps 128 names.
        self._label = lru_cache(model_label)
        self.unchanged: set[str] = set()
        self._contradicted: set[str] = set()
        self.has_dates = False
        self._listed = False
        # False while a task without a date is tracked: it may have settled before and now be tracked again, and a chunk
        # of settled tasks, whose ids are not kept, may hold it too.
        self._can_skip_settled = all(row.dated for row in book.rows.values())
        watermark = book.progress.watermark
        self._watermark = None if watermark is None else datetime.fromtimestamp(max(0.0, watermark), UTC)

    def add(self, batch: list[Task]) -> Comparison:
        """Add a batch; return how it compares with the book.

        A failure of the ledger is raised by `verify`, so that the list can be read to its end.
        """
        self._listed = self._listed or bool(batch)
        self.has_dates = self.has_dates or any(task.created_at for task in batch)
        if self._failure:
            return Comparison(self.book, batch, [], range(len(batch)))
        rows = list(map(self.book.rows.get, [task.id for task in batch]))
        observations, changing = self._observations(batch, rows)
        try:
            if observations:
                self.staging.add(observations)
        except LedgerUnavailable as error:
            self._failure = error
        return Comparison(self.book, batch, rows, changing)

    def holds(self, basis: Basis) -> bool:
        """Return whether a basis still holds: the book has the same rows, and the list has not shown their tasks yet.

        A second entry of a task must be compared with the first one.
        """
        if basis.book and not (basis.book is self.book and self._can_skip_settled):
            return False
        ids = basis.ids
        is_same = tuple(map(self.book.rows.get, ids)) == basis.rows
        return is_same and self.unchanged.isdisjoint(ids) and self._contradicted.isdisjoint(ids)

    def skip(self, basis: Basis, *, has_dates: bool) -> None:
        """Add the tasks of a basis that holds; `has_dates` says whether any of them has a creation time."""
        self._listed = True
        self.has_dates = self.has_dates or has_dates
        self.unchanged.update(basis.ids)

    def verify(self) -> None:
        """Raise `LedgerUnavailable` if the ledger has failed, `FetchError` if the list must not be trusted."""
        if self._failure:
            raise self._failure
        if self.book.progress.has_dates and self._listed and not self.has_dates:
            # Every settled task would look like a new one.
            raise FetchError("invalid_body", "no task has a creation time (created_at), as tasks of earlier lists had")

    def first_seen_at(self, task_id: str) -> float | None:
        """Return when a tracked task was created, or first seen if that is unknown; None if it is not tracked."""
        row = self.book.rows.get(task_id)
        return row.created_at if row else None

    def close(self) -> None:
        """Discard the list."""
        self.staging.close()

    def _observations(self, batch: list[Task], rows: list[Row | None]) -> tuple[list[Observation], list[int]]:
        """Return the observations of new and changed tasks, and the indexes of tasks that may differ next time.

        An untracked task

        - has settled if it was created before the watermark, and is not observed;
        - cannot be counted if it has no usable id, and is not observed;
        - otherwise is new, and is observed.

        A tracked task

        - is observed if its credits or status differ from its row;
        - is also observed if those of an earlier entry did, so that the two entries are compared;
        - otherwise is unchanged.

        All may differ next time, except finished tasks that are unchanged, and, if `_can_skip_settled`, finished tasks
        that have settled.
        """
        # No calls for settled or unchanged tasks: a list can hold a hundred thousand of them.
        watermark, can_skip_settled = self._watermark, self._can_skip_settled
        observations: list[Observation] = []
        changing: list[int] = []
        for index, (task, row) in enumerate(zip(batch, rows, strict=True)):
            if row is None:
                created_at = task.created_at
                if watermark is not None and created_at is not None and created_at < watermark:
                    if can_skip_settled and task.status in FINISHED:
                        continue
                # PostgreSQL cannot store a NUL, and no real id has one.
                elif task.id and "\0" not in task.id:
                    observations.append(self._observe(task))
            elif task.credits_used != row.credits_used or (
                # A preview counts as pending, and thousands of them may wait forever.
                task.status != row.status and counted_status(task.status) != row.status
            ):
                observations.extend(self._contradict(task, row))
            elif task.id in self._contradicted:
                observations.append(self._observe(task))
            else:
                self.unchanged.add(task.id)
                if task.status in FINISHED:
                    continue
            changing.append(index)
        return observations, changing

    def _contradict(self, task: Task, row: Row) -> Iterator[Observation]:
        """Observe a tracked task that the list shows differently from the book."""
        if task.id in self.unchanged and task.id not in self._contradicted:
            # An earlier entry agreed with the book; now that there are two, they must be compared.
            yield Observation(task.id, row.status, row.credits_used, row.model, "", row.created_at)
        self._contradicted.add(task.id)
        yield self._observe(task)

    def _observe(self, task: Task) -> Observation:
        status = counted_status(task.status)
        reason = self.rules.classify(task.failed_reason) if status == "failed" else ""
        created_at = None if task.created_at is None else task.created_at.timestamp()
        # Cut to what a label needs, because the cache keeps names.
        name = task.model_name and task.model_name[:MAX_NAME_LENGTH]
        # Positional arguments are faster: a first list has a hundred thousand tasks.
        return Observation(task.id, status, task.credits_used, self._label(name), reason, created_at)
