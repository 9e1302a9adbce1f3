"""Seals: a sum over all that a book holds, kept beside it, by which a bit that has turned over in a file is noticed.

SQLite tells that a page has lost its shape, but not that a number in it is another one. A seal is the sum of one CRC
for each row, so that a recording moves it by the rows that it changes.
"""

from collections.abc import Iterable
from zlib import crc32

from msgspec.msgpack import encode

from creatify_exporter.ledger.state import Book, Changes, DayKey, Key, Marks, Row, Series


def book_seal(name: tuple[str, str], book: Book, days: Iterable[tuple[DayKey, float]]) -> int:
    """Return the seal of a whole book; `name` is its workspace and api, `days` are its daily totals."""
    return (
        crc32(encode(name))
        + _marks(book.revision, book.marks)
        + sum(_task(task, row) for task, row in book.rows.items())
        + sum(_series(key, series) for key, series in book.series.items())
        + sum(_day(key, value) for key, value in days)
    )


def moved(book: Book, changes: Changes, days: dict[DayKey, float]) -> int:
    """Return by how much `changes` move the seal of a book as it is before them, and of its daily totals `days`."""
    move = _marks(book.revision + 1, changes.marks or book.marks) - _marks(book.revision, book.marks)
    for task, row in changes.rows.items():
        old = book.rows.get(task)
        move += (_task(task, row) if row else 0) - (_task(task, old) if old else 0)
    released = set(changes.released)
    for key in {*changes.born, *changes.totals, *released}:
        before = book.series.get(key)
        now = changes.born.get(key) or before
        if now:
            after = Series(now.value + changes.totals.get(key, 0.0), now.born_at, now.held and key not in released)
            move += _series(key, after) - (_series(key, before) if before else 0)
    for day, increase in changes.days.items():
        stood = days.get(day)
        move += _day(day, increase if stood is None else stood + increase) - (0 if stood is None else _day(day, stood))
    return move


def _number(value: float | None) -> float | None:
    """Return it as a database gives it back: no integers, and no zero with a sign."""
    return None if value is None else value + 0.0


def _marks(revision: int, marks: Marks) -> int:
    times = map(_number, (marks.created_at, marks.recorded_at, marks.settled_before))
    return crc32(encode((revision, marks.generation, bool(marks.dated), *times)))


def _task(task: str, row: Row) -> int:
    credits_ = (_number(row.credits), _number(row.uncounted))
    times = (_number(row.created_at), _number(row.changed_at), _number(row.absent_since))
    return crc32(encode((task, row.model, row.status, bool(row.dated), *credits_, *times)))


def _series(key: Key, series: Series) -> int:
    return crc32(encode((*key, _number(series.value), _number(series.born_at), bool(series.held))))


def _day(key: DayKey, value: float) -> int:
    return crc32(encode((*key, _number(value))))
