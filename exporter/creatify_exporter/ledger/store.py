"""What every store does: it reads books, and writes what a list changes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from msgspec.structs import astuple

from creatify_exporter.errors import LedgerRefused
from creatify_exporter.ledger.state import Book, Changes, DayKey, Key, Marks, Row, Series

_NEW_BOOK: Final = """
INSERT INTO book (workspace, api, generation, dated, created_at, recorded_at, settled_before)
VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (workspace, api) DO NOTHING RETURNING number
"""
_BOOKS_WITH: Final = """
SELECT DISTINCT number, workspace, api FROM book JOIN series ON series.book = book.number WHERE model = ?
ORDER BY number
"""
_BOOK: Final = """
SELECT number, revision, generation, dated, created_at, recorded_at, settled_before
FROM book WHERE workspace = ? AND api = ?
"""
_NEW_MARKS: Final = """
UPDATE book SET generation = ?, dated = ?, created_at = ?, recorded_at = ?, settled_before = ?
WHERE number = ? AND generation = ?
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
_PUT_DAY: Final = """
INSERT INTO day (book, day, model, total, value) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (book, day, model, total) DO UPDATE SET value = day.value + excluded.value
"""


class Day(NamedTuple):
    """A daily total of one book; `day` is a number as in `DayKey`."""

    day: int
    workspace: str
    api: str
    model: str
    total: str
    value: float


class Rows(Protocol):
    """What a statement returns; `rowcount` is the number of rows that it changed."""

    @property
    def rowcount(self) -> int: ...  # noqa: D102 - as the class says
    def fetchall(self) -> list[Any]: ...  # noqa: D102 - tuples
    def __iter__(self) -> Iterator[Any]: ...


class Statements(Protocol):
    """Takes SQL, with `?` for parameters, while a transaction is open."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Rows: ...  # noqa: D102 - as the class says
    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> object: ...  # noqa: D102 - as above


class Overtaken(Exception):
    """Somebody else has recorded a list since the book was read; nothing has been written."""


class Store(ABC):
    """Reads and writes books; every method may raise `LedgerUnavailable`.

    `shared` says whether other exporters may write at the same time; calls to a store that is not shared must not
    overlap.
    """

    shared: ClassVar[bool]

    def ready(self) -> bool:
        """Return whether the database has been opened; try to, where it could not be reached."""
        return True

    @abstractmethod
    def writing(self) -> AbstractContextManager[Statements]:
        """Commit what the block writes, all or nothing."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Statements]:
        """Let the block read one state of the database, whatever others write meanwhile."""

    @abstractmethod
    def clock(self) -> float:
        """Return seconds since the epoch, by a clock that all exporters on this store share."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""

    def load(self, workspace: str, api: str) -> Book:
        """Read a workspace's book, making an empty one where there is none."""
        with self.reading() as sql:
            found = read_book(sql, workspace, api)
        if found:
            return found
        with self.writing() as sql:
            sql.execute(_NEW_BOOK, (workspace, api, *astuple(Marks()))).fetchall()
            self._seal(sql, workspace, api)
            made = read_book(sql, workspace, api)
        assert made is not None  # noqa: S101 - it has just been written
        return made

    def news(self, book: Book) -> list[Changes] | None:  # noqa: ARG002 - there are none where nobody else writes
        """Return what others have written since `book` was last changed, in order; None where it has to be loaded."""
        return []

    def write(self, book: Book, changes: Changes) -> list[Changes]:
        """Write `changes`; return all that the book in memory then lacks, in order. May raise `Overtaken`."""
        with self.writing() as sql:
            missed = self._advance(sql, book)
            if changes.marks:
                _move_marks(sql, book, changes.marks)
            self._move_seal(sql, book, changes)
            _put(sql, book.number, changes)
            self._publish(sql, book.number, book.revision + len(missed) + 1, changes)
        return [*missed, changes]

    def days(self, since: int, before: int) -> list[Day]:
        """Read the daily totals of the days from `since` until `before`, in their order."""
        with self.reading() as sql:
            rows = sql.execute(
                """
                SELECT day, workspace, api, model, total, value FROM day JOIN book ON day.book = book.number
                WHERE day >= ? AND day < ?
                """,
                (since, before),
            )
            return sorted(Day._make(row) for row in rows)  # not by the database, which may sort as in some language

    def books(self) -> Iterator[tuple[str, str, Book]]:
        """Yield workspace, api and book of each, as they are at one moment."""
        with self.reading() as sql:
            yield from _books(sql)

    def take_in(self, other: "Store") -> None:
        """Copy all that another store holds into this one; raise `LedgerRefused` where it is not empty."""
        with self.writing() as sql, other.reading() as theirs:
            if sql.execute("SELECT number FROM book").fetchall():
                raise LedgerRefused("a ledger can only be copied into an empty one, so nothing was written")
            for workspace, api, book in _books(theirs):
                [(own,)] = sql.execute(_NEW_BOOK, (workspace, api, *astuple(book.marks))).fetchall()
                days = theirs.execute("SELECT day, model, total, value FROM day WHERE book = ?", (book.number,))
                totals = {DayKey(*key): value for *key, value in days}
                _put(sql, own, Changes(rows={**book.rows}, born=book.series, days=totals))
                self._seal(sql, workspace, api)

    def forget(self, model: str) -> int:
        """Remove a model's series from all books; return from how many. `LedgerRefused` while it has tasks there.

        Nobody is told by `_publish`, so that other exporters load these books anew.
        """
        forgotten = 0
        with self.writing() as sql:
            for number, workspace, api in sql.execute(_BOOKS_WITH, (model,)).fetchall():
                # The generation too: a list that is being fetched was begun while the book had the model.
                sql.execute(
                    "UPDATE book SET revision = revision + 1, generation = generation + 1 WHERE number = ?", (number,)
                )
                one_model = (number, model)
                tracked = sql.execute("SELECT id FROM task WHERE book = ? AND model = ?", one_model).fetchall()
                if tracked:
                    raise LedgerRefused(
                        f"{len(tracked)} tasks of {model} in the workspace {workspace} may still change, so that "
                        "nothing was forgotten; try again when they have settled"
                    )
                sql.execute("DELETE FROM series WHERE book = ? AND model = ?", one_model)
                self._seal(sql, workspace, api)
                forgotten += 1
        return forgotten

    def _advance(self, sql: Statements, book: Book) -> list[Changes]:
        """Keep other writers out of the book until the transaction ends; return what the book has missed of them."""
        numbered = sql.execute(
            "UPDATE book SET revision = revision + 1 WHERE number = ? RETURNING revision", (book.number,)
        ).fetchall()
        if not numbered:
            raise Overtaken
        before = numbered[0][0] - 1
        return [] if before == book.revision else self._missed(sql, book, before)

    def _missed(self, sql: Statements, book: Book, until: int) -> list[Changes]:  # noqa: ARG002 - of a shared store
        """Return the changes of others up to a revision; raise `Overtaken` where they are not known."""
        raise Overtaken

    def _move_seal(self, sql: Statements, book: Book, changes: Changes) -> None:  # noqa: B027 - not every store has one
        """Move a book's seal by what is about to be written to it."""

    def _seal(self, sql: Statements, workspace: str, api: str) -> None:  # noqa: B027 - as above
        """Seal a book as it now is."""

    def _publish(self, sql: Statements, number: int, revision: int, changes: Changes) -> None:  # noqa: B027 - as `news`
        """Tell the other exporters what a book's new revision has changed."""


def _books(sql: Statements) -> Iterator[tuple[str, str, Book]]:
    for workspace, api in sql.execute("SELECT workspace, api FROM book ORDER BY workspace, api").fetchall():
        book = read_book(sql, workspace, api)
        if book:
            yield workspace, api, book


def read_book(sql: Statements, workspace: str, api: str) -> Book | None:
    """Return a book, None where there is none."""
    found = sql.execute(_BOOK, (workspace, api)).fetchall()
    if not found:
        return None
    number, revision, generation, dated, *times = found[0]
    book = Book(number=number, revision=revision, marks=Marks(generation, bool(dated), *times))
    rows = sql.execute(_TASKS, (number,))
    for task, model, status, credit, uncounted, created_at, has_date, *rest in rows:
        book.rows[task] = Row(model, status, credit, uncounted, created_at, bool(has_date), *rest)
    series = sql.execute("SELECT model, total, label, value, born_at, held FROM series WHERE book = ?", (number,))
    for model, total, label, value, born_at, held in series:
        book.series[Key(model, total, label)] = Series(value, born_at, bool(held))
        book.models.add(model)
    return book


def _move_marks(sql: Statements, book: Book, marks: Marks) -> None:
    generation, *others = astuple(marks)
    moved = sql.execute(_NEW_MARKS, (generation, *others, book.number, generation - 1))
    if moved.rowcount != 1:
        raise Overtaken


def _put(sql: Statements, number: int, changes: Changes) -> None:
    """Write what belongs to a book besides its marks."""
    sql.executemany(
        "DELETE FROM task WHERE book = ? AND id = ?",
        ((number, task) for task, row in changes.rows.items() if row is None),
    )
    sql.executemany(_PUT_TASK, ((number, task, *astuple(row)) for task, row in changes.rows.items() if row is not None))
    sql.executemany(_PUT_SERIES, ((number, *key, s.value, s.born_at, s.held) for key, s in changes.born.items()))
    sql.executemany(_ADD, ((increase, number, *key) for key, increase in changes.totals.items()))
    sql.executemany(_RELEASE, ((False, number, *key) for key in changes.released))
    sql.executemany(_PUT_DAY, ((number, *key, increase) for key, increase in changes.days.items()))
