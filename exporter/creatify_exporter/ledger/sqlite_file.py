"""Opens a ledger in an SQLite file: takes its lock, looks for damage, migrates it to this version."""

import fcntl
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Final, Literal

from creatify_exporter.config import file
from creatify_exporter.errors import LedgerRefused
from creatify_exporter.ledger import checksum
from creatify_exporter.ledger.store import read_books

# "crex", which distinguishes a ledger from other SQLite files.
_APPLICATION_ID: Final = 0x63726578
# The first version in which books have checksums, in the column `seal`.
_CHECKSUMS: Final = 3
LOCK_TIMEOUT: Final = 5.0
"""Seconds to wait for a lock that another program holds on the file."""

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """
        CREATE TABLE book (
          number INTEGER PRIMARY KEY, workspace TEXT NOT NULL, api TEXT NOT NULL,
          generation INTEGER NOT NULL, dated INTEGER NOT NULL,
          created_at REAL, recorded_at REAL, settled_before REAL,
          UNIQUE (workspace, api)
        )
        """,
        """
        CREATE TABLE task (
          book INTEGER NOT NULL, id TEXT NOT NULL, model TEXT NOT NULL, status TEXT NOT NULL, credits REAL,
          uncounted REAL NOT NULL, created_at REAL NOT NULL, dated INTEGER NOT NULL, changed_at REAL NOT NULL,
          absent_since REAL, PRIMARY KEY (book, id)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE series (
          book INTEGER NOT NULL, model TEXT NOT NULL, total TEXT NOT NULL, label TEXT NOT NULL,
          value REAL NOT NULL, born_at REAL NOT NULL, held INTEGER NOT NULL,
          PRIMARY KEY (book, model, total, label)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE day (
          book INTEGER NOT NULL, day INTEGER NOT NULL, model TEXT NOT NULL, total TEXT NOT NULL, value REAL NOT NULL,
          PRIMARY KEY (book, day, model, total)
        ) WITHOUT ROWID
        """,
    ),
    ("ALTER TABLE book ADD COLUMN revision INTEGER NOT NULL DEFAULT 0",),
    ("ALTER TABLE book ADD COLUMN seal INTEGER NOT NULL DEFAULT 0",),
)
"""The entry with index n migrates a ledger from version n to n + 1, in one transaction."""


def inspect(path: Path) -> None:
    """Raise `LedgerRefused` if an exporter run by this user could not open or create the file; touch nothing."""
    _refuse_foreign(path)
    with _refused(path):
        resolved = _resolved(path)
        # Opening the ledger creates missing folders.
        folder = next(each for each in resolved.parents if each.exists())
        there = [each for each in (resolved, Path(f"{resolved}.lock")) if each.exists()]
    if not folder.is_dir():
        raise LedgerRefused(f"the ledger {path} cannot be opened: {folder} is not a folder; name another ledger")
    # SQLite keeps files beside the ledger, so its folder must be writable too.
    for each in (folder, *there):
        if not os.access(each, os.W_OK | (os.X_OK if each is folder else 0), effective_ids=True):
            remedy = "grant write permission, or name another ledger"
            raise LedgerRefused(f"the ledger {path} cannot be opened: this user may not write to {each}; {remedy}")


@contextmanager
def _refused(path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "let this user open it, or name another ledger"
        raise LedgerRefused(f"the ledger {path} cannot be opened: {error}; {remedy}") from error
    # A damaged schema may not be valid UTF-8.
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise LedgerRefused(f"the ledger {path} cannot be opened: {error}") from error


def _resolved(path: Path) -> Path:
    """Return the path without links; OSError if links form a loop."""
    # For a loop, `resolve` itself raises another error or none, depending on the version of Python.
    with suppress(FileNotFoundError, NotADirectoryError):
        path.stat()
    return path.resolve()


def lock(path: Path) -> int:
    """Take the lock that makes this process the only writer; return its file descriptor.

    The lock has its own file: if this process opened and closed the ledger itself, SQLite would lose its locks on it.
    """
    with _refused(path):
        # A ledger and the links to it share one lock.
        path = _resolved(path)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LedgerRefused(
            f"the ledger {path} is in use by another exporter; stop that one first, "
            "or give this one its own --ledger.url, such as memory:"
        ) from None
    return descriptor


def connect(path: Path | None) -> sqlite3.Connection:
    """Open a ledger for writing, or one in memory if `path` is None; `LedgerRefused` leaves the file untouched."""
    if path:
        _refuse_foreign(path)
        _inspect_log(path)
    with _refused(path):
        if path and not path.exists():
            # SQLite gives its other files the same mode.
            path.touch(mode=0o600)
        database = sqlite3.connect(
            path or ":memory:", timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        with _closed_on_error(database):
            _migrate(database, path)
            database.execute("PRAGMA journal_mode = WAL")
            # Counts that were served must survive a power failure.
            database.execute("PRAGMA synchronous = FULL")
            # Start without frames of an earlier process in the log.
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database


@contextmanager
def _closed_on_error(database: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        database.close()
        raise


def _inspect_log(path: Path) -> None:
    """Refuse a damaged ledger that was not closed, before SQLite moves its log into the file and so touches it."""
    if not path.exists() or not _has_log(path):
        return
    with _refused(path), closing(_connected_unchanged(path, "mode=ro")) as database:
        version = _version(database, path)
        page_size = int(database.execute("PRAGMA page_size").fetchone()[0])
        read = int.from_bytes(_beside(path, "-shm").read_bytes()[16:20], sys.byteorder)
        lost = _unreadable(_log_of(path).read_bytes(), page_size, read)
        damage = f"{lost} of the latest recordings cannot be read" if lost else _damage(database, version)
    if damage:
        raise _damaged(path, damage)


def _unreadable(log: bytes, page_size: int, read: int) -> int:
    """Return how many commits are in a log behind the `read` frames that SQLite could read.

    SQLite treats the first invalid frame as the end of the log, because a power failure leaves such a frame in the last
    commit. For the same reason a single commit there counts as none. Offsets: sqlite.org/fileformat.html, the WAL file
    format.
    """
    size = 24 + page_size
    frames = [log[start : start + 16] for start in range(32 + read * size, len(log) - size + 1, size)]
    salts = log[16:24] if _header_holds(log) else log[40:48]  # those of the first frame
    commits = sum(frame[4:8] != bytes(4) and frame[8:16] == salts for frame in frames)
    return commits if commits > 1 else 0


def _header_holds(log: bytes) -> bool:
    """Return whether the checksum of a log's header is correct."""
    order: Literal["big", "little"] = "big" if log[3] & 1 else "little"
    first = second = 0
    for at in (0, 8, 16):
        first = (first + int.from_bytes(log[at : at + 4], order) + second) % 2**32
        second = (second + int.from_bytes(log[at + 4 : at + 8], order) + first) % 2**32
    return log[24:32] == first.to_bytes(4) + second.to_bytes(4)


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a ledger for reading, which needs no write permission."""
    with _refused(path):
        empty = not path.exists() or not path.stat().st_size
    if empty:
        raise LedgerRefused(f"there is no ledger at {path}; name the exporter's with --config.file or --ledger.url")
    _refuse_foreign(path)
    with _refused(path):
        database = _connected_to_read(path)
        with _closed_on_error(database):
            if (version := _version(database, path)) < len(MIGRATIONS):
                words = f"has version {version}, this program reads {len(MIGRATIONS)}: start this exporter once"
                raise LedgerRefused(f"the ledger {path} {words}")
    return database


def _connected_to_read(path: Path) -> sqlite3.Connection:
    """Connect to a ledger that may be on a read-only mount, or that only its owner may write to.

    Even for reading, SQLite creates a log and its index beside the ledger, unless an exporter has it open, and leaves
    them there. If they do not exist yet, or if SQLite cannot create them, a copy in memory is read.
    """
    if not _log_of(path).exists() and not _beside(path, "-shm").exists():
        return _copied_into_memory(path)
    database = _connected_unchanged(path, "mode=ro")
    try:
        with _closed_on_error(database):
            # SQLite opens the log with the first statement, not with the database.
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        return _copied_into_memory(path)
    return database


def _connected_unchanged(path: Path, option: str) -> sqlite3.Connection:
    """Connect to a ledger without changing its file; `option` is a parameter of sqlite.org/uri.html."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?{option}", uri=True, isolation_level=None)


def _copied_into_memory(path: Path) -> sqlite3.Connection:
    before = file.state(path), file.state(_log_of(path))
    database = sqlite3.connect(":memory:", isolation_level=None)
    with _closed_on_error(database):
        _copy(path, database)
        if (file.state(path), file.state(_log_of(path))) != before:
            raise LedgerRefused(f"the ledger {path} was written to while it was being read; try again")
    return database


def _copy(path: Path, database: sqlite3.Connection) -> None:
    if not _has_log(path):
        # The file is complete by itself; `immutable` keeps SQLite from looking for a log.
        with closing(_connected_unchanged(path, "immutable=1")) as source:
            source.backup(database)
        return
    with TemporaryDirectory(prefix="creatify-exporter-") as folder:
        copy = Path(folder, path.name)
        copyfile(path, copy)
        copyfile(_log_of(path), _log_of(copy))
        with closing(sqlite3.connect(copy)) as source:
            source.backup(database)


def _refuse_foreign(path: Path) -> None:
    """Refuse a file that is not a ledger before SQLite touches it. Offsets: sqlite.org/fileformat.html, the header."""
    with _refused(path):
        header = b""
        if path.exists():
            with path.open("rb") as opened:
                header = opened.read(100)
    if header and not (header[:16] == b"SQLite format 3\0" and header[68:72] == _APPLICATION_ID.to_bytes(4)):
        raise LedgerRefused(f"{path} is not a ledger of this exporter; it was not touched: give another --ledger.url")


def _version(database: sqlite3.Connection, path: Path | None) -> int:
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise LedgerRefused(
            f"the ledger {path} has version {version}, this exporter knows {len(MIGRATIONS)}: install a newer one"
        )
    return version


def _damage(database: sqlite3.Connection, version: int) -> str | None:
    """Return how the content of a ledger is damaged, None if it is intact or there is none yet."""
    if not version:
        return None
    found = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        return " ".join(found.split())
    if version < _CHECKSUMS:
        return None
    try:
        whole = all(checksum.matches(database, book) for book in read_books(database))
    # The file holds values that no exporter writes.
    except (ValueError, TypeError, sqlite3.Error):
        whole = False
    return None if whole else "its content is not what was written"


def _damaged(path: Path | None, damage: str) -> LedgerRefused:
    return LedgerRefused(f"the ledger {path} is damaged, and was not touched: {damage}; restore it from a backup")


def _migrate(database: sqlite3.Connection, path: Path | None) -> None:
    version = _version(database, path)
    if damage := _damage(database, version):
        raise _damaged(path, damage)
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        database.execute("BEGIN IMMEDIATE")
        for statement in (
            *statements,
            f"PRAGMA application_id = {_APPLICATION_ID}",
            f"PRAGMA user_version = {number}",
        ):
            database.execute(statement)
        if number == _CHECKSUMS:
            for book in read_books(database):
                checksum.write(database, book.workspace, book.api)
        database.execute("COMMIT")


def _log_of(path: Path) -> Path:
    """Return the path of SQLite's write-ahead log."""
    return _beside(path, "-wal")


def _beside(path: Path, ending: str) -> Path:
    """Return the path of a file that SQLite keeps beside a ledger: beside the file itself, not beside a link to it."""
    file = path.resolve()
    return file.with_name(f"{file.name}{ending}")


def _has_log(path: Path) -> bool:
    """Return whether the log may hold commits that the file lacks, as after a kill."""
    log = _log_of(path)
    return log.exists() and log.stat().st_size > 0


def file_identity(path: Path | None) -> tuple[int, int] | None:
    """Return the identity of a file, which another file at the same path does not share; None if there is no file."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found else None
