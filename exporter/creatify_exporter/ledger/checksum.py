"""The checksum of a book in SQLite: it reveals flipped bits in the file.

SQLite notices a malformed page, but not a changed number in a page. A book's checksum (column `seal`) is a sum of
CRC-32s, one for each task, series and day, so a commit updates it from the rows that it changes. The days, which
accumulate over years, are summed up separately.
"""

from typing import Final
from zlib import crc32

from msgspec.msgpack import encode

from creatify_exporter.ledger.state import FAILURE_RUN, Book, Changes, DayKey, Progress, Row, Series, SeriesKey
from creatify_exporter.ledger.store import Statements, read_book

_DAYS: Final = "SELECT day, model, total, value FROM day WHERE book = ?"
_DAY: Final = "SELECT value FROM day WHERE book = ? AND day = ? AND model = ? AND total = ?"


def of_book(book: Book) -> int:
    """Return the checksum of a book without its daily totals."""
    return (
        crc32(encode((book.workspace, book.api)))
        + _progress(book.revision, book.progress)
        + sum(_task(task, row) for task, row in book.rows.items())
        + sum(_series(key, series) for key, series in book.series.items())
        + sum(_run(model, failures) for model, failures in book.failure_runs.items())
    )


def of_days(sql: Statements, book: Book) -> int:
    """Return what the stored daily totals add to a book's checksum."""
    return sum(_day(DayKey(*key), value) for *key, value in sql.execute(_DAYS, (book.number,)))


def stored(sql: Statements, book: Book) -> int:
    """Return the checksum that is stored with a book."""
    [(written,)] = sql.execute("SELECT seal FROM book WHERE number = ?", (book.number,))
    return int(written)


def matches(sql: Statements, book: Book) -> bool:
    """Return whether a book that has just been read matches its stored checksum."""
    return of_book(book) + of_days(sql, book) == stored(sql, book)


def write(sql: Statements, workspace: str, api: str) -> None:
    """Compute a book's checksum from its stored content and store it; do nothing if there is no such book."""
    if book := read_book(sql, workspace, api):
        whole = of_book(book) + of_days(sql, book)
        sql.execute("UPDATE book SET seal = ? WHERE number = ?", (whole, book.number))


def add(sql: Statements, book: Book, amount: int) -> None:
    """Add to the checksum that is stored with a book."""
    sql.execute("UPDATE book SET seal = seal + ? WHERE number = ?", (amount, book.number))


def difference(book: Book, changes: Changes) -> int:
    """Return what `changes`, not yet applied, add to the checksum of a book without its daily totals."""
    move = _progress(changes.revision, changes.progress or book.progress) - _progress(book.revision, book.progress)
    for task, row in changes.rows.items():
        old = book.rows.get(task)
        move += (_task(task, row) if row else 0) - (_task(task, old) if old else 0)
    released = set(changes.released)
    for key in {*changes.new_series, *changes.totals, *released}:
        before = book.series.get(key)
        now = before or changes.new_series[key]
        after = Series(now.value + changes.totals.get(key, 0.0), now.born_at, now.held and key not in released)
        move += _series(key, after) - (_series(key, before) if before else 0)
    for model, failures in changes.failure_runs.items():
        before_run = book.failure_runs.get(model)
        move += _run(model, failures) - (0 if before_run is None else _run(model, before_run))
    return move


def days_difference(sql: Statements, book: Book, changes: Changes) -> int:
    """Return what `changes`, not yet written, add to the checksum of the daily totals."""
    move = 0
    for key, increase in changes.days.items():
        found = list(sql.execute(_DAY, (book.number, *key)))
        before = found[0][0] if found else 0.0
        move += _day(key, before + increase) - (_day(key, before) if found else 0)
    return move


def _number(value: float | None) -> float | None:
    """Return the value as a database returns it: a float, and no negative zero."""
    return None if value is None else value + 0.0


def _progress(revision: int, progress: Progress) -> int:
    times = map(_number, (progress.first_recorded_at, progress.recorded_at, progress.watermark))
    return crc32(encode((revision, progress.version, bool(progress.has_dates), *times)))


def _task(task: str, row: Row) -> int:
    credits_ = (_number(row.credits_used), _number(row.uncounted))
    times = (_number(row.created_at), _number(row.changed_at), _number(row.absent_since))
    return crc32(encode((task, row.model, row.status, bool(row.dated), *credits_, *times)))


def _series(key: SeriesKey, series: Series) -> int:
    return crc32(encode((*key, _number(series.value), _number(series.born_at), bool(series.held))))


def _run(model: str, failures: int) -> int:
    # Like a series that is not held: earlier versions treat it as one, and must get the same sum.
    return crc32(encode((model, FAILURE_RUN, "", float(failures), 0.0, False)))


def _day(key: DayKey, value: float) -> int:
    return crc32(encode((*key, _number(value))))
