"""The ledger in an SQLite file; this process is its only writer."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from creatify_exporter.errors import LedgerUnavailable
from creatify_exporter.ledger import checksum, sqlite_file
from creatify_exporter.ledger.state import Book, Changes
from creatify_exporter.ledger.store import Statements, Store, unavailable


class SqliteStore(Store):
    """A file with one writer, which readers do not disturb.

    Opening it raises `LedgerRefused` if the file is damaged, not a ledger, of a newer version, or in use by another
    process; such a file is left untouched.
    """

    shared = False

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        """Open the ledger at `path`, or one in memory if `path` is None."""
        self._path = path
        self._commit_failed = False
        # By book number: what the daily totals add to the checksum, before and after the book's last commit, because a
        # commit that failed may have succeeded.
        self._days: dict[int, tuple[int, ...]] = {}
        self._lock = sqlite_file.lock(path) if path and not read_only else None
        try:
            self._database = sqlite_file.connect_to_read(path) if path and read_only else sqlite_file.connect(path)
            self._identity = sqlite_file.file_identity(path)
        except BaseException:
            self._unlock()
            raise

    @contextmanager
    def writing(self) -> Iterator[Statements]:
        """See `Store`; waits at most 5 s for a lock that another program holds."""
        with unavailable(sqlite3.Error):
            self._check_file()
            self._tidy_log()
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                self._commit_failed = True
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[Statements]:
        """See `Store`."""
        with unavailable(sqlite3.Error):
            self._database.execute("BEGIN")
            try:
                yield self._database
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")

    def load(self, workspace: str, api: str) -> Book:
        """See `Store`; raises `LedgerUnavailable` if the checksum does not match.

        Only the first load sums up the daily totals, which may span years; later ones use the remembered sum.
        """
        book = super().load(workspace, api)
        with self.reading() as sql:
            days = checksum.stored(sql, book) - checksum.of_book(book)
            if days not in self._days.get(book.number, ()) and days != checksum.of_days(sql, book):
                raise LedgerUnavailable(f"the ledger {self._path} is damaged; restore it from a backup and restart")
        self._days[book.number] = (days,)
        return book

    def clock(self) -> float:
        """Return the time of this machine."""
        return time.time()

    def close(self) -> None:
        """Close the file and release its lock."""
        self._database.close()
        self._unlock()

    def _annotate(self, sql: Statements, book: Book, changes: Changes) -> None:
        days = checksum.days_difference(sql, book, changes)
        checksum.add(sql, book, checksum.difference(book, changes) + days)
        if known := self._days.get(book.number):
            self._days[book.number] = (known[-1], known[-1] + days)

    def _write_checksum(self, sql: Statements, workspace: str, api: str) -> None:
        checksum.write(sql, workspace, api)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _tidy_log(self) -> None:
        """Empty the log after a failed commit: its remains would look like damage behind a later commit."""
        if not self._commit_failed:
            return
        # A reader can prevent this. It is not waited for: the next transaction tries again.
        self._database.execute("PRAGMA busy_timeout = 0")
        try:
            [(busy, *_)] = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._database.execute(f"PRAGMA busy_timeout = {sqlite_file.LOCK_TIMEOUT * 1000:.0f}")
        self._commit_failed = bool(busy)

    def _check_file(self) -> None:
        """Refuse to write to a file that has been deleted or replaced: a commit there would be lost."""
        if sqlite_file.file_identity(self._path) != self._identity:
            raise LedgerUnavailable(f"the ledger {self._path} has been deleted or replaced; restart the exporter")
