"""A store: reads books from a database and writes their changes."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Final, NamedTuple, Protocol, cast

from msgspec.structs import astuple

from creatify_exporter.errors import LedgerRefused, LedgerUnavailable
from creatify_exporter.ledger.state import (
    FAILURE_RUN,
    Book,
    BookName,
    Changes,
    DayKey,
    Progress,
    Row,
    Series,
    SeriesKey,
)

# The columns keep the names of the first version: `generation` is the version of a book, `dated` its `has_dates`,
# `created_at` its `first_recorded_at`, `settled_before` its watermark; `credits` is a task's `credits_used`. `astuple`
# writes them: the fields of `Row` and `Progress` have the order of these columns.
_NEW_BOOK: Final = """
INSERT INTO book (workspace, api, revision, generation, dated, created_at, recorded_at, settled_before)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (workspace, api) DO NOTHING RETURNING number
"""
_BOOKS_WITH: Final = """
SELECT DISTINCT number, workspace, api FROM book JOIN series ON series.book = book.number WHERE model = ?
ORDER BY number
"""
_BOOKS: Final = """
SELECT workspace, api, number, revision, generation, dated, created_at, recorded_at, settled_before FROM book
"""
_NEW_PROGRESS: Final = """
UPDATE book SET generation = ?, dated = ?, created_at = ?, recorded_at = ?, settled_before = ?
WHERE number = ? AND generation = ? RETURNING number
"""
_TASKS: Final = """
SELECT id, model, status, credits, uncounted, created_at, dated, changed_at, absent_since FROM task WHERE book = ?
"""
_PUT_TASK: Final = """
INSERT INTO task (book, id, model, status, credits, uncounted, created_at, dated, changed_at, absent_since)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (book, id) DO UPDATE SET
  model = excluded.model, status = excluded.status, credits = excluded.credits, uncounted = excluded.uncounted,
  created_at = excluded.created_at, dated = excluded.dated, changed_at = excluded.changed_at,
  absent_since = excluded.absent_since
"""
_PUT_SERIES: Final = """
INSERT INTO series (book, model, total, label, value, born_at, held) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_ADD: Final = "UPDATE series SET value = value + ? WHERE book = ? AND model = ? AND total = ? AND label = ?"
_RELEASE: Final = "UPDATE series SET held = ? WHERE book = ? AND model = ? AND total = ? AND label = ?"
_PUT_RUN: Final = """
INSERT INTO series (book, model, total, label, value, born_at, held) VALUES (?, ?, ?, '', ?, 0, ?)
ON CONFLICT (book, model, total, label) DO UPDATE SET value = excluded.value
"""
_PUT_DAY: Final = """
INSERT INTO day (book, day, model, total, value) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (book, day, model, total) DO UPDATE SET value = day.value + excluded.value
"""

# Bits of the largest step between two revisions; 64 bits have room for a thousand years of such steps, one every 15 s.
_STEP_BITS: Final = 32


class Day(NamedTuple):
    """A daily total of one book; `day` is a number as in `DayKey`."""

    day: int
    workspace: str
    api: str
    model: str
    total: str
    value: float


class Statements(Protocol):
    """Executes SQL in an open transaction, with `?` for parameters; `execute` returns the rows as tuples."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Iterable[Any]: ...  # noqa: D102 - as the class says
    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> object: ...  # noqa: D102 - as above


class Conflict(Exception):
    """Another list has been recorded, or the changes by others are unknown; nothing has been written."""


@contextmanager
def unavailable(errors: type[Exception]) -> Iterator[None]:
    """Raise `LedgerUnavailable` if the block raises one of the database's `errors`."""
    try:
        yield
    except errors as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LedgerUnavailable(f"the ledger cannot be used: {reason}") from error


class Store(ABC):
    """Reads and writes books; every method may raise `LedgerUnavailable`.

    `shared` says whether other exporters may write at the same time; calls to an unshared store must not overlap.
    `tables` are the tables whose rows belong to a book.
    """

    shared: ClassVar[bool]
    tables: ClassVar[tuple[str, ...]] = ("task", "series", "day")

    def ready(self) -> bool:
        """Return whether the database has been opened; try to open it if it could not be reached before."""
        return True

    def connect_by(self, conninfo: Callable[[], str]) -> None:  # noqa: B027 - a file has no connections
        """Take the URL of new connections from `conninfo`: the same database, perhaps with another password."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Statements]:
        """Commit everything that the block writes, or nothing."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Statements]:
        """Let the block read one state of the database, even while others write."""

    @abstractmethod
    def clock(self) -> float:
        """Return seconds since the epoch by a clock that all exporters on this store share."""

    @abstractmethod
    def close(self) -> None:
        """Close the database."""

    def allow_pauses(self, sql: Statements) -> None:  # noqa: B027 - not every database limits them
        """Let a transaction stay idle for any length of time."""

    def load(self, workspace: str, api: str) -> Book:
        """Read a book; create an empty one if there is none."""
        with self.reading() as sql:
            found = read_book(sql, workspace, api)
        if found:
            return found
        with self.writing() as sql:
            _make_book(sql, workspace, api, Progress())
            self._write_checksum(sql, workspace, api)
            made = read_book(sql, workspace, api)
        assert made is not None  # noqa: S101 - it has just been written
        return made

    def changes_since(self, book: Book) -> list[Changes] | None:  # noqa: ARG002 - an unshared store has none
        """Return the changes by others since the book's revision, in order; None if the book must be loaded again."""
        return []

    def write(self, book: Book, changes: Changes) -> list[Changes]:
        """Write `changes`; return all changes that the book in memory now lacks, in order. May raise `Conflict`."""
        with self.writing() as sql:
            missed = self._advance(sql, book, changes)
            if changes.progress:
                _move_progress(sql, book, changes.progress)
            self._annotate(sql, book, changes)
            _put(sql, book.number, changes)
        return [*missed, changes]

    def days(self, since: int, before: int) -> list[Day]:
        """Return the daily totals from the day `since` to the day before `before`, sorted."""
        with self.reading() as sql:
            rows = sql.execute(
                """
                SELECT day, workspace, api, model, total, value FROM day JOIN book ON day.book = book.number
                WHERE day >= ? AND day < ?
                """,
                (since, before),
            )
            # Not sorted by the database, which may use the collation of a language.
            return sorted(Day._make(row) for row in rows)

    def first_lists(self) -> dict[BookName, float]:
        """Return when the first list of each workspace and api was recorded, in seconds since the epoch."""
        with self.reading() as sql:
            rows = sorted(sql.execute("SELECT workspace, api, created_at FROM book WHERE created_at IS NOT NULL"))
        return {(workspace, api): recorded_at for workspace, api, recorded_at in rows}

    def books(self) -> Iterator[Book]:
        """Yield every book, all as of the same moment."""
        with self.reading() as sql:
            yield from read_books(sql)

    def copy_from(self, other: "Store") -> None:
        """Copy all books of another store into this one; raise `LedgerRefused` if this one is not empty."""
        refusal = LedgerRefused("a ledger can only be copied into an empty one, so nothing was written")
        # Book by book, because the daily totals of many workspaces over years would not fit into memory at once.
        with self.writing() as sql, other.reading() as theirs:
            # Each transaction is idle while the other one handles a book, which may be large.
            self.allow_pauses(sql)
            other.allow_pauses(theirs)
            if list(sql.execute("SELECT number FROM book")):
                raise refusal
            for book in read_books(theirs):
                own = _make_book(sql, book.workspace, book.api, book.progress)
                # An exporter has created the book in the meantime.
                if own is None:
                    raise refusal
                _put(sql, own, _content(theirs, book))
                self._write_checksum(sql, book.workspace, book.api)

    def forget_model(self, model: str, within: Callable[[str, str], bool]) -> int:
        """Remove a model's series from the books for which `within(workspace, api)` is true; return how many had any.

        Raises `LedgerRefused` if one of these books still tracks tasks of the model. The journal gets no entry, so
        other exporters load the books again.
        """
        with self.writing() as sql:
            chosen = [book for book in sql.execute(_BOOKS_WITH, (model,)) if within(*book[1:])]
            for number, workspace, api in chosen:
                # The version (column `generation`) too: a transaction in progress began while the book had the model,
                # and must not be recorded.
                sql.execute(
                    "UPDATE book SET revision = revision + ?, generation = generation + 1 WHERE number = ?",
                    (_revision_step(), number),
                )
                [(tracked,)] = sql.execute("SELECT count(*) FROM task WHERE book = ? AND model = ?", (number, model))
                if tracked:
                    raise LedgerRefused(
                        f"{tracked} tasks of {model} in the workspace {workspace} may still change, so "
                        "nothing was forgotten; try again when they have settled"
                    )
                sql.execute("DELETE FROM series WHERE book = ? AND model = ?", (number, model))
                self._write_checksum(sql, workspace, api)
        return len(chosen)

    def forget_books(self, within: Callable[[str, str], bool]) -> list[BookName]:
        """Remove the books for which `within(workspace, api)` is true, daily totals too; return their names."""
        with self.writing() as sql:
            found = sql.execute("SELECT number, workspace, api FROM book ORDER BY workspace, api")
            chosen = [book for book in found if within(*book[1:])]
            for number, _, _ in chosen:
                for table in self.tables:
                    sql.execute(f"DELETE FROM {table} WHERE book = ?", (number,))  # noqa: S608 - a name of our own
                sql.execute("DELETE FROM book WHERE number = ?", (number,))
            return [(workspace, api) for _, workspace, api in chosen]

    def _advance(self, sql: Statements, book: Book, changes: Changes) -> list[Changes]:
        """Give `changes` their revision, and lock the book for other writers until the transaction ends.

        Return the changes that the book in memory lacks; raise `Conflict` if they are unknown.
        """
        step = _revision_step()
        moved = "UPDATE book SET revision = revision + ? WHERE number = ? RETURNING revision"
        numbered = list(sql.execute(moved, (step, book.number)))
        if not numbered:
            raise Conflict
        changes.revision = numbered[0][0]
        changes.base = changes.revision - step
        missed = self._missed(sql, book, changes.base)
        if missed is None:
            raise Conflict
        return missed

    def _missed(self, sql: Statements, book: Book, until: int) -> list[Changes] | None:  # noqa: ARG002 - for shared stores
        """Return the changes that lead from a book's revision to the revision `until`, None if they are unknown."""
        return [] if until == book.revision else None

    @abstractmethod
    def _annotate(self, sql: Statements, book: Book, changes: Changes) -> None:
        """Write what this kind of store adds to changes before they are written: the checksum, or a journal entry."""

    def _write_checksum(self, sql: Statements, workspace: str, api: str) -> None:  # noqa: B027 - not every store has one
        """Compute a book's checksum from its stored content, and store it."""


def _revision_step() -> int:
    """Return how much higher a book's next revision is: a random number.

    A database that has lost its last changes, in a failover or a restore, continues from an earlier revision. What it
    writes then must not get the revisions of lost states that an exporter has seen.
    """
    return secrets.randbits(_STEP_BITS) + 1


def _make_book(sql: Statements, workspace: str, api: str, progress: Progress) -> int | None:
    """Create an empty book; return its number, None if the book already exists."""
    made = list(sql.execute(_NEW_BOOK, (workspace, api, _revision_step(), *astuple(progress))))
    return made[0][0] if made else None


def read_books(sql: Statements) -> Iterator[Book]:
    """Yield every book."""
    # All rows first: the caller may write to the table between two books.
    for row in list(sql.execute(f"{_BOOKS} ORDER BY workspace, api")):
        yield _read_book(sql, row)


def read_book(sql: Statements, workspace: str, api: str) -> Book | None:
    """Return a book, None if there is none."""
    found = list(sql.execute(f"{_BOOKS} WHERE workspace = ? AND api = ?", (workspace, api)))
    return _read_book(sql, found[0]) if found else None


def _read_book(sql: Statements, row: Sequence[Any]) -> Book:
    workspace, api, number, revision, version, has_dates, *times = row
    book = Book(workspace, api, number, revision, Progress(version, bool(has_dates), *times))
    rows, texts = sql.execute(_TASKS, (number,)), dict[Any, Any]()
    for task, model, status, credits_used, uncounted, created_at, dated, *rest in rows:
        # All rows share their strings; the database returns new ones for each row.
        words = texts.setdefault(model, model), texts.setdefault(status, status)
        book.rows[task] = Row(*words, credits_used, uncounted, created_at, bool(dated), *rest)
    series = sql.execute("SELECT model, total, label, value, born_at, held FROM series WHERE book = ?", (number,))
    for model, total, label, value, born_at, held in series:
        if total == FAILURE_RUN:
            book.failure_runs[model] = int(value)
        else:
            book.series[SeriesKey(model, total, label)] = Series(value, born_at, bool(held))
    return book


def _content(sql: Statements, book: Book) -> Changes:
    """Return the content of a book, with its daily totals, as changes to an empty one."""
    days = sql.execute("SELECT day, model, total, value FROM day WHERE book = ?", (book.number,))
    return Changes(
        rows=cast("dict[str, Row | None]", book.rows),
        new_series=book.series,
        days={DayKey(*key): value for *key, value in days},
        failure_runs=book.failure_runs,
    )


def _move_progress(sql: Statements, book: Book, progress: Progress) -> None:
    """Write the progress after a list; raise `Conflict` if another list got its version first."""
    version, *others = astuple(progress)
    if not list(sql.execute(_NEW_PROGRESS, (version, *others, book.number, version - 1))):
        raise Conflict


def _put(sql: Statements, number: int, changes: Changes) -> None:
    """Write the changes to a book, except its progress."""
    sql.executemany(
        "DELETE FROM task WHERE book = ? AND id = ?",
        ((number, task) for task, row in changes.rows.items() if row is None),
    )
    sql.executemany(_PUT_TASK, ((number, task, *astuple(row)) for task, row in changes.rows.items() if row is not None))
    sql.executemany(_PUT_SERIES, ((number, *key, s.value, s.born_at, s.held) for key, s in changes.new_series.items()))
    sql.executemany(_ADD, ((increase, number, *key) for key, increase in changes.totals.items()))
    sql.executemany(_RELEASE, ((False, number, *key) for key in changes.released))
    runs = ((number, model, FAILURE_RUN, failures, False) for model, failures in changes.failure_runs.items())
    sql.executemany(_PUT_RUN, runs)
    sql.executemany(_PUT_DAY, ((number, *key, increase) for key, increase in changes.days.items()))
