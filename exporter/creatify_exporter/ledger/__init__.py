"""The ledger: counts each task once, whatever the list forgets, repeats or reorders.

A fetch begins a `Recording`, hands it the list batch by batch, and commits it when the list has proved complete. What
`Ledger.account` returns is committed, always.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from creatify_exporter.errors import FetchError, LedgerUnavailable
from creatify_exporter.ledger.book import Book, Key, Marks
from creatify_exporter.ledger.fold import Fold, Sight
from creatify_exporter.ledger.judgement import Judgement, Rules
from creatify_exporter.ledger.sqlite import SqliteStore, unavailable
from creatify_exporter.tasks import Task, known, model_label

__all__ = ["Account", "Ledger", "Recording", "Rules"]


class Account(NamedTuple):
    """What is committed of one workspace: the value of each series as it is to be served, the marks, the rows' number.

    `models` are the label values that the ledger knows.
    """

    values: list[tuple[Key, float]]
    marks: Marks
    tracked: int
    models: frozenset[str]


class Ledger:
    """All workspaces' books on one store. Safe to use from several threads.

    `clock` returns seconds since the epoch; it ends the holds of new series. No hold ends sooner after `held_since`
    than it lasts: by default now, since who scrapes may have missed what was served before a restart. `rules` may be
    replaced at any time and hold for the recordings that are begun from then on.
    """

    def __init__(
        self,
        store: SqliteStore,
        rules: Rules,
        clock: Callable[[], float] = time.time,
        *,
        held_since: float | None = None,
    ) -> None:
        self.rules = rules
        self._store, self._clock = store, clock
        self._held_since = clock() if held_since is None else held_since
        self._storing = threading.Lock()  # for the store, which may wait seconds for its file
        self._lock = threading.Lock()  # for what stands in memory: held for moments, so that no answer waits for a disk
        self._books: dict[tuple[str, str], Book] = {}
        self._doubtful: set[tuple[str, str]] = set()

    def begin(self, workspace: str, api: str) -> "Recording":
        """Start to follow a fetch; where the book cannot be read, the commit will say so."""
        name = (workspace, api)
        with self._storing:
            try:
                return Recording(self, name, self._book(*name))
            except LedgerUnavailable as error:
                return Recording(self, name, Book(number=0), error)

    def account(self, workspace: str, api: str) -> Account:
        """Return what is committed, ending the holds that are due; after a failed write, what is last known of it.

        Waits for the store only where nothing is known yet: while a commit is under way, a hold may last longer.
        """
        book = self._books.get((workspace, api))
        if book is None:
            with self._storing:
                book = self._book(workspace, api)
        if self._storing.acquire(blocking=False):
            try:
                self._release(book)
            finally:
                self._storing.release()
        with self._lock:
            values = [(key, 0.0 if series.held else series.value) for key, series in book.series.items()]
            return Account(values, book.marks, len(book.rows), frozenset(book.models))

    def close(self) -> None:
        """Wait for a commit under way, then close the store."""
        with self._storing:
            self._store.close()

    def _book(self, workspace: str, api: str) -> Book:
        name = (workspace, api)
        if name not in self._books or name in self._doubtful:
            self._books[name] = self._store.load(workspace, api)
            self._doubtful.discard(name)
        return self._books[name]

    def _release(self, book: Book) -> None:
        """End the holds that are due: first in the store, so that no restart and no other replica shows 0 again."""
        now, hold = self._clock(), self.rules.new_series_hold
        since = self._held_since
        # The distance, not the difference: a clock that was ahead and is set right must not prolong a hold for ever.
        due = [key for key, s in book.series.items() if s.held and abs(now - max(s.born_at, since)) >= hold]
        if not due:
            return
        try:
            with self._store.transaction():
                self._store.release(book, due)
        except LedgerUnavailable:
            return  # they go on being 0, which is what was served last
        with self._lock:
            for key in due:
                book.series[key].held = False

    def _commit(self, name: tuple[str, str], recording: "Recording", now: float) -> bool:
        with self._storing:
            book = self._book(*name)  # read anew where a commit since the beginning may have succeeded after all
            if book.marks.generation != recording.generation:
                return False
            judgement = Judgement(book, recording.rules, now=now, clock=self._clock(), dated=recording.dated)
            try:
                with unavailable():
                    changes = judgement.changes(recording.fold, recording.seen)
                with self._store.transaction():
                    self._store.write(book, changes)
            except BaseException:
                self._doubtful.add(name)  # a commit that failed may have been one that succeeded
                raise
            with self._lock:
                book.apply(changes)
            return True


class Recording:
    """Follows one fetch; nothing of it is in the ledger before `commit`, and nothing ever without it.

    Only what the list changes is kept: of a task that stands in the list as it stands in the book, that it was seen;
    of a settled one, nothing.
    """

    def __init__(
        self, ledger: Ledger, name: tuple[str, str], book: Book, failure: LedgerUnavailable | None = None
    ) -> None:
        self.book, self.rules = book, ledger.rules
        self.generation = book.marks.generation
        self.seen: set[str] = set()
        self.dated = False
        self._ledger, self._name = ledger, name
        self._listed = False
        self._changed: set[str] = set()
        self._failure = failure
        try:
            with unavailable():
                self.fold = Fold()
        except LedgerUnavailable as error:
            self._failure = error
        mark = book.marks.settled_before
        self._settled_before = None if mark is None else datetime.fromtimestamp(max(0.0, mark), UTC)

    def add(self, batch: list[Task]) -> None:
        """Take in a batch; a ledger that fails here says so at `commit`, so that the list can be read to its end."""
        self._listed = self._listed or bool(batch)
        self.dated = self.dated or any(task.created_at for task in batch)
        if self._failure:
            return
        news = self._news(batch)
        try:
            with unavailable():
                self.fold.add(news)
        except LedgerUnavailable as error:
            self._failure = error

    def commit(self, now: float) -> bool:
        """Record the list, which was complete at `now`; return False where another list has been recorded meanwhile.

        Raises `LedgerUnavailable`, and `FetchError` for a list that must not be believed.
        """
        if self._failure:
            raise self._failure
        if self.book.marks.dated and self._listed and not self.dated:
            # Every settled task would look like a new one.
            raise FetchError("invalid_body", "no task says when it was created (created_at), as those before it did")
        return self._ledger._commit(self._name, self, now)  # noqa: SLF001 - the other half of this class

    def close(self) -> None:
        """Forget what has been kept."""
        if hasattr(self, "fold"):
            self.fold.close()

    def _news(self, batch: list[Task]) -> list[Sight]:
        rows, mark, seen = self.book.rows, self._settled_before, self.seen
        news = []
        for task in batch:
            row = rows.get(task.id)
            if row is None:
                created_at = task.created_at
                if task.id and (mark is None or created_at is None or created_at >= mark):
                    news.append(self._sight(task))
            elif task.status != row.status or task.credits_used != row.credits:
                if task.id in seen and task.id not in self._changed:
                    # An earlier entry was no news; now that there are two, both have to be compared.
                    news.append(Sight(task.id, row.status, row.credits, row.model, "", row.created_at))
                self._changed.add(task.id)
                news.append(self._sight(task))
            else:
                if task.id in self._changed:
                    news.append(self._sight(task))
                seen.add(task.id)
        return news

    def _sight(self, task: Task) -> Sight:
        status = known(task.status)
        reason = self.rules.classify(task.failed_reason) if status == "failed" else ""
        created_at = None if task.created_at is None else task.created_at.timestamp()
        # Without names: a first list has a hundred thousand of these.
        return Sight(task.id, status, task.credits_used, model_label(task.model_name), reason, created_at)
