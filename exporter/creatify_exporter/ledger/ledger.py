"""The ledger: counts each task once, whatever the list forgets, repeats or reorders.

A fetch begins a `Transaction`, hands it the list batch by batch, and commits it when the list has proved complete. What
`Ledger.counters` returns is committed, always.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import NamedTuple

from creatify_exporter.creatify.task import Task, model_label, status_label
from creatify_exporter.errors import FetchError, LedgerUnavailable
from creatify_exporter.ledger.reconcile import Judgement, Rules
from creatify_exporter.ledger.sqlite import unavailable
from creatify_exporter.ledger.staging import Fold, Sight
from creatify_exporter.ledger.state import Book, Changes, Key, Marks
from creatify_exporter.ledger.store import Overtaken, Store

__all__ = ["Counters", "Ledger", "Rules", "Transaction"]


_Name = tuple[str, str]
"""Workspace and api."""


class Counters(NamedTuple):
    """What is committed of one workspace: the value of each series as it is to be served, the marks, the rows' number.

    `models` are the label values that the ledger knows.
    """

    values: list[tuple[Key, float]]
    marks: Marks
    tracked: int
    models: frozenset[str]


class Ledger:
    """All workspaces' books on one store. Safe to use from several threads.

    `clock` returns seconds since the epoch, by default the store's; it ends the holds of new series. No hold ends
    sooner after `held_since` than it lasts: by default now, since who scrapes may have missed what was served before a
    restart. `rules` may be replaced at any time and hold for the recordings that are begun from then on.
    """

    def __init__(
        self,
        store: Store,
        rules: Rules,
        clock: Callable[[], float] | None = None,
        *,
        held_since: float | None = None,
    ) -> None:
        self.rules = rules
        self._store, self._clock = store, clock or store.clock
        self._turns: defaultdict[_Name | None, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()  # for what stands in memory: held for moments, so that no answer waits for a disk
        self._books: dict[_Name, Book] = {}
        self._doubtful: set[_Name] = set()
        self._held_since = held_since
        if held_since is None:
            with suppress(LedgerUnavailable):  # then from the first time that the store can be asked
                self._held_since = self._clock()

    def ready(self) -> bool:
        """Return whether the store has been opened; try to, where it could not be reached. May take seconds."""
        return self._store.ready()

    def begin(self, workspace: str, api: str) -> "Transaction":
        """Start to follow a fetch; where the book cannot be read, the commit will say so."""
        name = (workspace, api)
        with self._turn(name):
            try:
                return Transaction(self, name, self._book(name))
            except LedgerUnavailable as error:
                return Transaction(self, name, Book(number=0), error)

    def counters(self, workspace: str, api: str) -> Counters:
        """Return what is committed, ending the holds that are due.

        Nobody else writes to a store that is not shared: what is in memory is what is committed, after a failed write
        too, so that no answer waits for that store. While a commit is under way there, a hold may last longer.
        """
        name = (workspace, api)
        known = None if self._store.shared else self._books.get(name)
        with self._turn(name, wait=known is None) as ours:
            book = known or self._book(name)
            if ours:
                self._release(name, book)
        with self._lock:
            values = [(key, 0.0 if series.held else series.value) for key, series in book.series.items()]
            return Counters(values, book.marks, len(book.rows), frozenset(book.models))

    def put_away(self, workspace: str, api: str) -> None:
        """Keep a book in the store only; whoever asks for it has it read again."""
        self._books.pop((workspace, api), None)

    def close(self) -> None:
        """Wait for a commit under way, then close the store."""
        with self._turn(None):
            self._store.close()

    @contextmanager
    def _turn(self, name: _Name | None, *, wait: bool = True) -> Iterator[bool]:
        """Take turns: on a shared store with those who want the same book, on another one with everybody."""
        turn = self._turns[name if self._store.shared else None]
        ours = turn.acquire(blocking=wait)
        try:
            yield ours
        finally:
            if ours:
                turn.release()

    def _book(self, name: _Name) -> Book:
        """Return the book as it is committed now."""
        book = self._books.get(name)
        news = None if book is None or name in self._doubtful else self._store.news(book)
        if book is None or news is None:
            self._books[name] = book = self._store.load(*name)
            self._doubtful.discard(name)
        else:
            self._apply(book, news)
        return book

    def _release(self, name: _Name, book: Book) -> None:
        """End the holds that are due: first in the store, so that no restart and no other replica shows 0 again."""
        held = [(key, series) for key, series in book.series.items() if series.held]
        if not held:
            return
        with suppress(LedgerUnavailable):  # they go on being 0, which is what was served last
            now, hold = self._clock(), self.rules.new_series_hold
            since = self._held_since = now if self._held_since is None else self._held_since
            # The distance, not the difference: a clock that was ahead and is set right must not prolong it for ever.
            due = [key for key, series in held if abs(now - max(series.born_at, since)) >= hold]
            if due:
                self._write(name, book, Changes(released=due))

    def _commit(self, name: _Name, transaction: "Transaction", now: float) -> bool:
        with self._turn(name):
            book = self._book(name)  # read anew where a commit since the beginning may have succeeded after all
            if book.marks.generation != transaction.generation:
                return False
            judgement = Judgement(book, transaction.rules, now=now, clock=self._clock(), dated=transaction.dated)
            with unavailable():
                changes = judgement.changes(transaction.fold, transaction.seen)
            return self._write(name, book, changes)

    def _write(self, name: _Name, book: Book, changes: Changes) -> bool:
        """Write to the store and then to the book; return False where somebody else has recorded a list before."""
        try:
            written = self._store.write(book, changes)
        except Overtaken:
            if not self._store.shared:  # there is no news to come
                self._doubtful.add(name)
            return False
        except BaseException:
            self._doubtful.add(name)  # a commit that failed may have been one that succeeded
            raise
        self._apply(book, written)
        return True

    def _apply(self, book: Book, news: Iterable[Changes]) -> None:
        with self._lock:
            for changes in news:
                book.apply(changes)


class Transaction:
    """Follows one fetch; nothing of it is in the ledger before `commit`, and nothing ever without it.

    Only what the list changes is kept: of a task that stands in the list as it stands in the book, that it was seen;
    of a settled one, nothing. Tasks that have settled stay so in all recordings with the same `settled_in`; None
    stands for nothing.
    """

    def __init__(self, ledger: Ledger, name: _Name, book: Book, failure: LedgerUnavailable | None = None) -> None:
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
        # A task without a date never settles, and may have the id of one that has.
        self.settled_in = book if all(row.dated for row in book.rows.values()) else None
        mark = book.marks.settled_before
        self._settled_before = None if mark is None else datetime.fromtimestamp(max(0.0, mark), UTC)

    def add(self, batch: list[Task]) -> bool:
        """Take in a batch; return whether all of it has settled, so that it never will be news.

        A ledger that fails here says so at `commit`, so that the list can be read to its end.
        """
        self._listed = self._listed or bool(batch)
        self.dated = self.dated or any(task.created_at for task in batch)
        if self._failure:
            return False
        news, settled = self._news(batch)
        try:
            with unavailable():
                self.fold.add(news)
        except LedgerUnavailable as error:
            self._failure = error
        return settled == len(batch)

    def pass_over(self) -> None:
        """Take notice that the list has tasks that settled long ago, which are no news."""
        self._listed = self.dated = True

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

    def _news(self, batch: list[Task]) -> tuple[list[Sight], int]:
        """Return the sights that are news, and how many of the tasks have settled."""
        rows, mark, seen = self.book.rows, self._settled_before, self.seen
        news, settled = [], 0
        for task in batch:
            row = rows.get(task.id)
            if row is None:
                created_at = task.created_at
                if mark is not None and created_at is not None and created_at < mark:
                    settled += 1
                elif task.id and "\0" not in task.id:  # PostgreSQL cannot store a NUL, and no id has one
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
        return news, settled

    def _sight(self, task: Task) -> Sight:
        status = status_label(task.status)
        reason = self.rules.classify(task.failed_reason) if status == "failed" else ""
        created_at = None if task.created_at is None else task.created_at.timestamp()
        # Without names: a first list has a hundred thousand of these.
        return Sight(task.id, status, task.credits_used, model_label(task.model_name), reason, created_at)
