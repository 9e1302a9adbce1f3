"""The ledger in a PostgreSQL database, which several exporters may share."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

import msgspec
import psycopg
import psycopg_pool
import structlog
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from creatify_exporter.errors import ConfigError, LedgerError, LedgerRefused, LedgerUnavailable
from creatify_exporter.ledger.state import Book, Changes
from creatify_exporter.ledger.store import Statements, Store, unavailable

# The maximum; a transaction takes milliseconds.
_CONNECTIONS: Final = 10
# Seconds to wait for a connection: an answer after the scrape's timeout is lost.
_LONGEST_WAIT: Final = 1.5
# Seconds without another attempt after a failed one, so that a thousand workspaces do not wait one by one.
_BREATHER: Final = 1.0
# Entries for each book; an exporter that is further behind loads the whole book.
_JOURNAL: Final = 100
# Bytes; a larger entry takes as long to read as the book.
_LONGEST_ENTRY: Final = 2**20

_DEFAULTS: Final[dict[str, str | int]] = {
    "application_name": "creatify-exporter",
    "connect_timeout": 2,
    "target_session_attrs": "read-write",  # of several hosts, the primary
    "tcp_user_timeout": 10_000,  # ms until a vanished peer is given up
    "keepalives_idle": 30,
}
"""Connection parameters that the URL may override."""

# Set for the transaction, not for the session, which a pooler may give to another client between two transactions. A
# replica that is paused in a transaction loses it, because its locks would block all others. Counts that were served
# must survive a crash of the database.
_SETTINGS: Final = """
SELECT set_config('search_path', 'creatify_exporter', true), set_config('lock_timeout', '5s', true),
  set_config('statement_timeout', '30s', true), set_config('idle_in_transaction_session_timeout', '10s', true),
  set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
    ELSE current_setting('synchronous_commit') END, true);
"""
# The isolation is not left to the default of the role or the database: a transaction that has waited for a lock must
# see the changes of the transaction that held it.
_WRITING: Final = f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {_SETTINGS}"
_READING: Final = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {_SETTINGS}"

_REVISION: Final = "SELECT revision FROM book WHERE number = {}"
_ENTRIES: Final = "SELECT changes FROM journal WHERE book = ? AND revision > ? AND revision <= ? ORDER BY revision"
_PRUNE: Final = """
DELETE FROM journal WHERE book = ?
  AND revision <= (SELECT revision FROM journal WHERE book = ? ORDER BY revision DESC OFFSET ? LIMIT 1)
"""

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """
        CREATE TABLE book (
          number INTEGER PRIMARY KEY GENERATED ALWAYS AS IDENTITY, workspace TEXT NOT NULL, api TEXT NOT NULL,
          revision BIGINT NOT NULL DEFAULT 0, generation BIGINT NOT NULL, dated BOOLEAN NOT NULL,
          created_at DOUBLE PRECISION, recorded_at DOUBLE PRECISION, settled_before DOUBLE PRECISION,
          UNIQUE (workspace, api)
        )
        """,
        """
        CREATE TABLE task (
          book INTEGER NOT NULL, id TEXT NOT NULL, model TEXT NOT NULL, status TEXT NOT NULL, credits DOUBLE PRECISION,
          uncounted DOUBLE PRECISION NOT NULL, created_at DOUBLE PRECISION NOT NULL, dated BOOLEAN NOT NULL,
          changed_at DOUBLE PRECISION NOT NULL, absent_since DOUBLE PRECISION, PRIMARY KEY (book, id)
        )
        """,
        """
        CREATE TABLE series (
          book INTEGER NOT NULL, model TEXT NOT NULL, total TEXT NOT NULL, label TEXT NOT NULL,
          value DOUBLE PRECISION NOT NULL, born_at DOUBLE PRECISION NOT NULL, held BOOLEAN NOT NULL,
          PRIMARY KEY (book, model, total, label)
        )
        """,
        """
        CREATE TABLE day (
          book INTEGER NOT NULL, day INTEGER NOT NULL, model TEXT NOT NULL, total TEXT NOT NULL,
          value DOUBLE PRECISION NOT NULL, PRIMARY KEY (book, day, model, total)
        )
        """,
        """
        CREATE TABLE journal (
          book INTEGER NOT NULL, revision BIGINT NOT NULL, changes BYTEA NOT NULL, PRIMARY KEY (book, revision)
        )
        """,
    ),
)
"""Like those of SQLite. `journal` holds the latest `Changes` of each book in MessagePack."""

_log = structlog.get_logger()


class PostgresqlStore(Store):
    """A database that several exporters may use at the same time, each with its own copy of the books in memory.

    `conninfo` returns the database's URL, and is called for each connection. Opening the store raises `LedgerRefused`
    if the database holds something else or was written by a newer version. A database that cannot be reached yet is
    opened later.
    """

    shared = True
    tables = (*Store.tables, "journal")

    def __init__(self, conninfo: Callable[[], str], *, read_only: bool = False) -> None:
        self._conninfo, self._read_only = conninfo, read_only
        self._opened = self._prepared = False
        self._unreachable_until = 0.0
        # A fetch that fails logs the reason itself.
        logging.getLogger("psycopg").setLevel(logging.ERROR)
        try:
            with unavailable(psycopg.Error):
                self._prepare()
        except LedgerUnavailable as error:
            if read_only:
                raise
            _log.warning("the ledger cannot be opened yet", reason=str(error))
        self._pool = psycopg_pool.ConnectionPool(
            lambda: _parsed(self._conninfo()),
            # A pooler may not support prepared statements.
            kwargs={"autocommit": True, "prepare_threshold": None},
            min_size=0,
            max_size=_CONNECTIONS,
            timeout=_LONGEST_WAIT,
            reconnect_timeout=_LONGEST_WAIT,
            check=psycopg_pool.ConnectionPool.check_connection,
            open=True,
        )

    def ready(self) -> bool:
        """See `Store`."""
        if not self._opened:
            with suppress(LedgerUnavailable):
                self.clock()
        return self._opened

    def connect_by(self, conninfo: Callable[[], str]) -> None:
        """See `Store`; open connections stay open."""
        self._conninfo = conninfo

    @contextmanager
    def writing(self) -> Iterator[Statements]:
        """See `Store`; waits at most 5 s for another writer of the same book."""
        with self._connection() as sql:
            sql.execute(_WRITING)
            yield sql
            sql.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[Statements]:
        """See `Store`."""
        with self._connection() as sql:
            sql.execute(_READING)
            yield sql

    def clock(self) -> float:
        """Return the time of the database server."""
        with self._connection() as sql:
            [(now,)] = sql.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
            return float(now)

    def allow_pauses(self, sql: Statements) -> None:
        """See `Store`."""
        sql.execute("SELECT set_config('idle_in_transaction_session_timeout', '0', true)")

    def changes_since(self, book: Book) -> list[Changes] | None:
        """See `Store`; if there are no changes, this reads a single number."""
        with self._connection() as sql:
            # One message, which is a transaction by itself, because this runs before every answer.
            found = list(sql.execute(_SETTINGS + _REVISION.format(book.number)))
            if not found:
                return None
            [(revision,)] = found
            if revision == book.revision:
                return []
            sql.execute(_READING)
            return self._missed(sql, book, revision)

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _missed(self, sql: Statements, book: Book, until: int) -> list[Changes] | None:
        if until == book.revision:
            return []
        missed, reached = [], book.revision
        for (entry,) in sql.execute(_ENTRIES, (book.number, book.revision, until)):
            changes = _decoded(entry)
            if changes is None or changes.base != reached:
                return None
            missed.append(changes)
            reached = changes.revision
        return missed if reached == until else None

    def _annotate(self, sql: Statements, book: Book, changes: Changes) -> None:
        entry = msgspec.msgpack.encode(changes)
        if len(entry) <= _LONGEST_ENTRY:
            values = (book.number, changes.revision, entry)
            sql.execute("INSERT INTO journal (book, revision, changes) VALUES (?, ?, ?)", values)
        sql.execute(_PRUNE, (book.number, book.number, _JOURNAL))

    @contextmanager
    def _connection(self) -> Iterator[Statements]:
        """Borrow a connection; a transaction left open is committed, or rolled back if the block fails."""
        with unavailable(psycopg.Error):
            connection = self._reached()
            try:
                with connection:
                    yield _Session(connection)
            except psycopg.errors.UndefinedTable:
                # The database has lost its tables or was replaced by an empty one; the next attempt creates them.
                self._prepared = False
                raise
            finally:
                self._pool.putconn(connection)

    def _reached(self) -> "psycopg.Connection[Any]":
        """Return a working connection; prepare the tables first if that is still to be done."""
        if time.monotonic() < self._unreachable_until:
            raise LedgerUnavailable("the ledger's PostgreSQL could not be reached a moment ago")
        try:
            if not self._prepared:
                self._prepare()
            return self._pool.getconn()
        except (psycopg.OperationalError, ConfigError, LedgerError) as error:
            # It may return as another database, and only `_prepare` says why a database cannot be used.
            self._prepared = False
            self._unreachable_until = time.monotonic() + _BREATHER
            if isinstance(error, psycopg.Error):
                raise
            raise LedgerUnavailable(str(error)) from error

    def _prepare(self) -> None:
        """Create or migrate the tables; raise `LedgerRefused` if they are not this program's."""
        with psycopg.connect(_parsed(self._conninfo()), autocommit=True) as connection:
            sql = _Session(connection)
            if list(sql.execute("SHOW server_encoding")) != [("UTF8",)]:
                raise LedgerRefused("the ledger's PostgreSQL database is not encoded in UTF8; create one that is")
            sql.execute(_READING if self._read_only else _WRITING)
            if not self._read_only:
                _migrate(sql)
            elif _version(sql) < len(MIGRATIONS):
                raise LedgerRefused("this PostgreSQL database has no ledger, or an old one; start the exporter once")
        self._opened = self._prepared = True


class _Session:
    """A connection with SQLite's interface; several statements in one text return the rows of the last one."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Iterable[Any]:
        return self._connection.execute(cast("Any", sql.replace("?", "%s")), parameters or None).set_result(-1)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(cast("Any", sql.replace("?", "%s")), rows)


def _decoded(entry: bytes) -> Changes | None:
    """Decode a journal entry; None if a newer version has written something that this one does not know."""
    try:
        return msgspec.msgpack.decode(entry, type=Changes)
    # A text that is not UTF-8 is no `DecodeError` to msgspec.
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _version(sql: Statements) -> int:
    """Return the version of the ledger in the database, 0 if there is none."""
    # Qualified by the schema: without the right to use it, this fails instead of looking like a missing ledger.
    [(exists,)] = sql.execute("SELECT to_regclass('creatify_exporter.version') IS NOT NULL")
    if not exists:
        return 0
    [(version,)] = sql.execute("SELECT coalesce(max(number), 0) FROM version")
    if version > len(MIGRATIONS):
        raise LedgerRefused(
            f"the ledger in PostgreSQL has version {version}, this exporter knows {len(MIGRATIONS)}: "
            "install a newer one"
        )
    return int(version)


def _migrate(sql: Statements) -> None:
    # If several replicas start at the same time, one migrates and the others wait.
    sql.execute("SELECT pg_advisory_xact_lock(hashtext('creatify_exporter'))")
    version = _version(sql)
    if not version:
        _make_schema(sql)
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        for statement in statements:
            sql.execute(statement)
        sql.execute("INSERT INTO version (number) VALUES (?)", (number,))


def _make_schema(sql: Statements) -> None:
    """Create the schema, unless an administrator has created an empty one for this exporter."""
    if list(sql.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'creatify_exporter'")):
        raise LedgerRefused("the schema creatify_exporter holds tables of something else; use another database")
    if not list(sql.execute("SELECT oid FROM pg_namespace WHERE nspname = 'creatify_exporter'")):
        sql.execute("CREATE SCHEMA creatify_exporter")
    sql.execute("CREATE TABLE creatify_exporter.version (number INTEGER PRIMARY KEY)")


def _parsed(url: str) -> str:
    """Add the defaults to the URL. No message quotes the URL: it may hold a password."""
    try:
        # Model names can be in any script, so the encoding is not left to the environment or the role.
        return make_conninfo("", **{**_DEFAULTS, **conninfo_to_dict(url), "client_encoding": "UTF8"})
    except psycopg.ProgrammingError:
        raise LedgerRefused(
            "ledger.url: is not a PostgreSQL URL; write it like "
            "postgresql://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full"
        ) from None
