"""The ledger: counts each task once, whatever the list forgets, repeats or reorders.

A fetch begins a `Transaction`, adds the list to it batch by batch, and commits it once the list has proved complete.
Everything that `Ledger.counters` returns is committed.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import NamedTuple

from creatify_exporter import trace
from creatify_exporter.errors import LedgerUnavailable
from creatify_exporter.ledger.reconcile import ListContents, Rules, reconcile
from creatify_exporter.ledger.state import Book, Changes, Progress, SeriesKey
from creatify_exporter.ledger.store import Conflict, Day, Store
from creatify_exporter.ledger.transaction import Transaction

__all__ = ["Counters", "Ledger", "Rules", "Transaction"]


_Name = tuple[str, str]
"""Workspace and api."""


class Counters(NamedTuple):
    """What is committed of one workspace and api.

    `values` are those to be served, 0 for a series that is held. `tracked` is the number of tracked tasks, `models` are
    the label values that the ledger knows. `failure_runs` says for each of these how many tasks have failed since one
    was last done; it is a gauge, and never held.
    """

    values: list[tuple[SeriesKey, float]]
    progress: Progress
    tracked: int
    models: frozenset[str]
    failure_runs: dict[str, int]


class Ledger:
    """The books of all workspaces in one store. Safe to use from several threads.

    `clock` returns seconds since the epoch, by default the store's; it times the holds of new series. Each hold begins
    at `held_since` at the earliest, by default now, because what was served before a restart may not have been scraped.
    `rules` may be replaced at any time and hold for the transactions that begin afterwards.
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
        self.store, self._clock = store, clock or store.clock
        self._locks: dict[_Name | None, threading.Lock] = {}
        # Guards the books' content; held for moments only, so that no answer waits for a disk.
        self._content_lock = threading.Lock()
        self._books: dict[_Name, Book] = {}
        self._held_since = held_since
        if held_since is None:
            # If the store cannot be reached yet, its time is taken when it is.
            with suppress(LedgerUnavailable):
                self._held_since = self._clock()

    def begin(self, workspace: str, api: str, *, own_reasons: Collection[str] = ()) -> Transaction:
        """Begin to follow a fetch; if the book cannot be read, the commit will say so.

        `own_reasons` are texts of failures that are reasons by themselves in this list.
        """
        name, rules = (workspace, api), self.rules.with_reasons(own_reasons)
        failure = None
        with self._locked(name):
            try:
                book = self._book(name)
            except LedgerUnavailable as error:
                book, failure = Book(*name, number=0), error
            return Transaction(book, rules, partial(self._record, name, book.progress, rules), failure)

    def counters(self, workspace: str, api: str) -> Counters:
        """Return what is committed, after ending the holds that are due.

        A store that is not shared has no other writer, so that the book in memory is what is committed, also after a
        failed write: an answer waits for such a store only to end a hold, and not even for that during a commit.
        """
        name = (workspace, api)
        known = None if self.store.shared else self._books.get(name)
        with self._locked(name, wait=known is None) as locked:
            book = known or self._book(name)
            if locked:
                self._end_holds(book)
        with self._content_lock:
            values = [(key, 0.0 if series.held else series.value) for key, series in book.series.items()]
            models = frozenset(book.models)
            runs = {model: book.failure_runs.get(model, 0) for model in models}
            return Counters(values, book.progress, len(book.rows), models, runs)

    def days(self, since: int, before: int) -> list[Day] | None:
        """Return the daily totals of all workspaces as `Store.days` does, None during a commit to an unshared store.

        So they keep no scrape waiting for a disk.
        """
        if self.store.shared:
            return self.store.days(since, before)
        with self._locked(None, wait=False) as locked:
            return self.store.days(since, before) if locked else None

    def evict(self, workspace: str, api: str) -> None:
        """Drop a book from memory; it is read again when it is needed."""
        self._books.pop((workspace, api), None)

    def close(self) -> None:
        """Wait for the commits under way, then close the store."""
        with ExitStack() as locked:
            for lock in list(self._locks.values()):
                locked.enter_context(lock)
            self.store.close()

    @contextmanager
    def _locked(self, name: _Name | None, *, wait: bool = True) -> Iterator[bool]:
        """Lock one book of a shared store, the whole of another one; yield whether the lock is held."""
        # One for all threads; a defaultdict can make two, if garbage is collected while it makes one.
        lock = self._locks.setdefault(name if self.store.shared else None, threading.Lock())
        locked = lock.acquire(blocking=wait)
        try:
            yield locked
        finally:
            if locked:
                lock.release()

    def _book(self, name: _Name) -> Book:
        """Return the book as it is committed now."""
        book = self._books.get(name)
        changes = None if book is None or book.is_stale else self.store.changes_since(book)
        if book is None or changes is None:
            self._books[name] = book = self.store.load(*name)
        else:
            self._apply(book, changes)
        return book

    def _end_holds(self, book: Book) -> None:
        """End the holds that are due: first in the store, so that no restart and no other replica shows 0 again."""
        held = [(key, series) for key, series in book.series.items() if series.held]
        if not held:
            return
        # If that fails, the series go on being served as 0, as they were last.
        with suppress(LedgerUnavailable):
            now, hold = self._clock(), self.rules.new_series_hold
            since = self._held_since = now if self._held_since is None else self._held_since
            # The distance, not the difference: a clock that was ahead and is set right must not prolong it for ever.
            due = [key for key, series in held if abs(now - max(series.born_at, since)) >= hold]
            if due:
                self._write(book, Changes(released=due))

    def _record(self, name: _Name, begun: Progress, rules: Rules, contents: ListContents, now: float) -> bool:
        """Record a complete list; return False if another one has been recorded since the book had the progress."""
        with self._locked(name):
            # Read anew if an earlier commit may have succeeded although it said that it failed.
            book = self._book(name)
            # Not the version alone: a database that has lost a list in a failover gives the next one the same.
            if book.progress != begun:
                trace.step("another list has been recorded meanwhile")
                return False
            changes = reconcile(book, contents, rules, now=now, clock=self._clock())
            written = self._write(book, changes)
            trace.step("commit", recorded=written, tasks_changed=len(changes.rows), series_changed=len(changes.totals))
            return written

    def _write(self, book: Book, changes: Changes) -> bool:
        """Write to the store and then to the book; return False if another list has been recorded before."""
        try:
            written = self.store.write(book, changes)
        except Conflict:
            # Without a journal of others' changes the book has to be loaded.
            if not self.store.shared:
                book.is_stale = True
            return False
        except BaseException:
            # A commit that failed may have been one that succeeded.
            book.is_stale = True
            raise
        self._apply(book, written)
        return True

    def _apply(self, book: Book, written: Iterable[Changes]) -> None:
        with self._content_lock:
            try:
                for changes in written:
                    book.apply(changes)
            except BaseException:
                # Half of them may have been.
                book.is_stale = True
                raise
