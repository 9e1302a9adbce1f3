"""The ledger: counts each task once, even if the list forgets, repeats or reorders tasks.

A fetch begins a `Transaction`, adds the list to it batch by batch, and commits it once the list has proved complete.
`Ledger.counters` returns only committed counts.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from creatify_exporter import trace
from creatify_exporter.errors import LedgerUnavailable
from creatify_exporter.ledger.reconcile import reconcile
from creatify_exporter.ledger.state import Book, BookName, Changes, Progress, Rules, SeriesKey
from creatify_exporter.ledger.store import Conflict, Day, Store
from creatify_exporter.ledger.transaction import Transaction


class Counters(NamedTuple):
    """The committed counts of one workspace and api.

    `values` are the values to serve, 0 for a held series. `tracked` is the number of tracked tasks; `models` are the
    models that have series, as label values. `failure_runs` has, for each of them, the number of tasks that have failed
    since one was last done; it is a gauge and never held.
    """

    values: dict[SeriesKey, float]
    progress: Progress
    tracked: int
    models: frozenset[str]
    failure_runs: dict[str, int]


class Ledger:
    """The books of all workspaces in one store. Safe to use from several threads.

    `clock` returns seconds since the epoch and times the holds of new series; by default it is the store's clock. A
    hold begins no earlier than `held_since`, by default now, because values served before a restart may not have been
    scraped. `rules` may be replaced at any time; transactions that begin afterwards use the new ones.
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
        self._locks: dict[BookName | None, threading.Lock] = {}
        # Guards the content of the books; never held during I/O, so that no scrape waits for a disk.
        self._content_lock = threading.Lock()
        self._books: dict[BookName, Book] = {}
        self._held_since = held_since
        if held_since is None:
            # If the store cannot be reached yet, `_end_holds` asks for its time later.
            with suppress(LedgerUnavailable):
                self._held_since = self._clock()

    def begin(self, workspace: str, api: str) -> Transaction:
        """Begin a transaction for a fetch; if the book cannot be read, `commit` raises the error."""
        name, rules = (workspace, api), self.rules.of_list(api)
        failure = None
        with self._locked(name):
            try:
                book = self._book(name)
            except LedgerUnavailable as error:
                book, failure = Book(*name, number=0), error
            return Transaction(book, rules, failure)

    def commit(self, transaction: Transaction, now: float) -> bool:
        """Record the list of a transaction, which is of the time `now`; return False if it was overtaken.

        It is overtaken if another list, or changes that are not known, came since `begin`. `now` is in seconds since
        the epoch. Raises `LedgerUnavailable`, and `FetchError` for a list that must not be trusted.
        """
        transaction.verify()
        name = (transaction.book.workspace, transaction.book.api)
        with self._locked(name):
            # Loaded again if an earlier commit reported a failure but may have succeeded.
            book = self._book(name)
            # Another list may have been recorded
            # - between `begin` and `_book`: then the progress differs. All of it is compared, not only the version:
            #   after a failover that lost a list, the next list gets the same version;
            # - since `_book`, and the store cannot list the changes: then `Store._advance` raises `Conflict`;
            # - since `_book`, and it can: then `_move_progress` finds another version and raises `Conflict`.
            if book.progress != transaction.begun:
                trace.step("another list has been recorded in the meantime")
                return False
            changes = reconcile(book, transaction, now=now, clock=self._clock())
            written = self._write(book, changes)
            trace.step("commit", recorded=written, tasks_changed=len(changes.rows), series_changed=len(changes.totals))
            return written

    def counters(self, workspace: str, api: str) -> Counters:
        """Return the committed counts, after ending the holds that are due.

        An unshared store has no other writer, so the book in memory is the committed one, even after a failed write. A
        scrape waits for such a store only to end a hold, and during a commit not even for that.
        """
        name = (workspace, api)
        book = None if self.store.shared else self._books.get(name)
        if book is None:
            with self._locked(name):
                book = self._book(name)
                self._end_holds(book)
        else:
            with self._locked(name, wait=False) as locked:
                if locked:
                    self._end_holds(book)
        with self._content_lock:
            values = {key: 0.0 if series.held else series.value for key, series in book.series.items()}
            models = frozenset(book.models)
            runs = {model: book.failure_runs.get(model, 0) for model in models}
            return Counters(values, book.progress, len(book.rows), models, runs)

    def days(self, since: int, before: int) -> list[Day] | None:
        """Return the daily totals of all workspaces like `Store.days`; None during a commit to an unshared store.

        So the landing page never waits for a commit.
        """
        if self.store.shared:
            return self.store.days(since, before)
        with self._locked(None, wait=False) as locked:
            return self.store.days(since, before) if locked else None

    def evict(self, workspace: str, api: str) -> None:
        """Drop a book from memory; it is read again when needed."""
        self._books.pop((workspace, api), None)

    def close(self) -> None:
        """Wait for the commits in progress, then close the store."""
        with ExitStack() as locked:
            for lock in list(self._locks.values()):
                locked.enter_context(lock)
            self.store.close()

    @contextmanager
    def _locked(self, name: BookName | None, *, wait: bool = True) -> Iterator[bool]:
        """Lock one book of a shared store, or all of an unshared one; yield whether the lock is held."""
        # One lock for all threads; a defaultdict can create two, if a garbage collection runs while it creates one.
        lock = self._locks.setdefault(name if self.store.shared else None, threading.Lock())
        locked = lock.acquire(blocking=wait)
        try:
            yield locked
        finally:
            if locked:
                lock.release()

    def _book(self, name: BookName) -> Book:
        """Return the book as it is committed now."""
        book = self._books.get(name)
        changes = None if book is None or book.is_stale else self.store.changes_since(book)
        if book is None or changes is None:
            self._books[name] = book = self.store.load(*name)
        else:
            self._apply(book, changes)
        return book

    def _end_holds(self, book: Book) -> None:
        """End the holds that are due, in the store first, so that no restart and no other replica serves 0 again."""
        held = [(key, series) for key, series in book.series.items() if series.held]
        if not held:
            return
        # If that fails, the series are still served as 0.
        with suppress(LedgerUnavailable):
            now, hold = self._clock(), self.rules.new_series_hold
            if self._held_since is None:
                self._held_since = now
            since = self._held_since
            # The absolute difference: setting back a clock that was ahead must not prolong the hold forever.
            due = [key for key, series in held if abs(now - max(series.born_at, since)) >= hold]
            if due:
                self._write(book, Changes(released=due))

    def _write(self, book: Book, changes: Changes) -> bool:
        """Write to the store and then to the book; return False if another list has been recorded first."""
        try:
            written = self.store.write(book, changes)
        except Conflict:
            # Another program has changed a file. It has no journal to catch up from, so the book must be loaded again.
            if not self.store.shared:
                book.is_stale = True
            return False
        except BaseException:
            # A commit that reports a failure may have succeeded.
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
                # They may have been applied in part.
                book.is_stale = True
                raise
