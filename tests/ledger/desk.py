"""Shared by the tests of the ledger: rules, stores whose statements can fail, and a ledger that is fed list by list."""

import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import psycopg
import pytest

from creatify_exporter.creatify.task import Task
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.postgresql import PostgresqlStore
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.ledger.state import Rules, SeriesKey, Total
from creatify_exporter.ledger.store import Statements

HOUR, DAY = 3600.0, 24 * 3600.0
NOON = datetime(2026, 10, 31, 12, tzinfo=UTC).timestamp()
TODAY = (date(2026, 10, 31) - date(1970, 1, 1)).days
WORKSPACE = ("default", "text_generator")


def rules(*reasons: str, **settings: Any) -> Rules:
    """Make rules whose reasons are the texts themselves."""
    reasons = reasons or ("timeout", "quota")
    defaults: dict[str, Any] = {
        "history": "count",
        "settle_after": DAY,
        "new_series_hold": 120.0,
        "max_models": 100,
        "models": frozenset(),
    }

    def classify(text: str | None) -> str:
        return text if text and text in reasons else "other"

    return Rules(reasons=(*reasons, "other"), classify=classify, **{**defaults, **settings})


def moment(at: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at)


# --- Stores whose statements can be watched and failed --------------------------------------------------------------


class Killed(BaseException):
    """The process ends here; no code may catch this."""


When = Literal["before", "after"]
Cursor = TypeVar("Cursor")


class Tap:
    """Sees every single statement before and after it is executed."""

    def __init__(self) -> None:
        self.committed = False
        self.watcher: Callable[[str, When], None] = lambda _sql, _when: None

    def execute(self, sql: str, run: Callable[[], Cursor]) -> Cursor:
        self.watcher(sql, "before")
        cursor = run()
        self.committed = sql == "COMMIT" or self.committed
        self.watcher(sql, "after")
        return cursor


class Watched:
    """A store whose statements can be made to fail; `failure` creates the error that its database raises."""

    tap: Tap
    failure: Callable[[], Exception]
    tripped = False

    def fail(self, number: int, when: When, error: BaseException | None = None) -> None:
        """Fail once at the numbered statement from now on (0: the commit), before or after it is executed."""
        statements = 0

        def watch(sql: str, now: When) -> None:
            nonlocal statements
            statements += now == when
            due = sql == "COMMIT" if number == 0 else statements == number
            if due and now == when and not self.tripped:
                self.tripped = True
                raise error or self.failure()

        self.tripped = self.tap.committed = False
        self.tap.watcher = watch

    def heal(self) -> None:
        self.tap.watcher = lambda _sql, _when: None

    def statements(self) -> list[str]:
        """Return a list to which every later statement is added."""
        told: list[str] = []
        self.tap.watcher = lambda sql, when: told.append(sql) if when == "before" else None
        return told


class Wiretap:
    """A connection that shows its tap every single statement."""

    def __init__(self, database: Statements, tap: Tap) -> None:
        self._database, self._tap = database, tap

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Iterable[Any]:
        return self._tap.execute(sql, lambda: self._database.execute(sql, parameters))

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        for row in rows:
            self.execute(sql, row)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


class WatchedSqlite(Watched, SqliteStore):
    failure = partial(sqlite3.OperationalError, "database or disk is full")

    def __init__(self, path: Path | None) -> None:
        super().__init__(path)
        self.path = path or Path()
        self._database.execute("PRAGMA synchronous = OFF")  # a process dies in these tests, not a machine
        self.tap = Tap()
        self._database = cast("sqlite3.Connection", Wiretap(self._database, self.tap))

    def execute(self, sql: str) -> list[Any]:
        return list(self._database.execute(sql))

    def kill(self, number: int, torn: float, copy: Path) -> None:
        """End the process at the numbered statement from now on (0: the commit); `copy` gets the files it leaves.

        At the commit it dies while it writes the log: `torn` is the part that reaches the file.
        """
        statements = 0

        def watch(sql: str, now: When) -> None:
            nonlocal statements
            statements += now == "before"
            if sql != "COMMIT" if number == 0 else statements != number:
                return
            if now == "before":
                self.leave(copy)
                if sql != "COMMIT":
                    raise Killed
            else:
                name = f"{self.path.name}-wal"
                old, new = (copy / name).read_bytes(), self.path.with_name(name).read_bytes()
                written = int(torn * len(new))
                (copy / name).write_bytes(new[:written] + old[written:])
                raise Killed

        self.tap.committed = False
        self.tap.watcher = watch

    def leave(self, copy: Path) -> None:
        """Copy the files as they are now, which is how a process that is killed now leaves them."""
        copy.mkdir()
        for part in self.path.parent.glob(f"{self.path.name}*"):
            shutil.copy(part, copy)


class WatchedPostgresql(Watched, PostgresqlStore):
    failure = partial(psycopg.OperationalError, "server closed the connection")

    def __init__(self, url: str) -> None:
        self.url, self.tap = url, Tap()
        super().__init__(lambda: url)
        # A busy machine may take longer for a connection than a scrape waits.
        self._pool.timeout = 60

    @contextmanager
    def _connection(self) -> Iterator[Statements]:
        with super()._connection() as sql:
            yield Wiretap(sql, self.tap)


# --- A ledger fed list by list --------------------------------------------------------------------------------------


class Desk:
    """A ledger in a file or in memory and a clock, for stories that are told list by list."""

    def __init__(self, path: Path | None = None, **settings: Any) -> None:
        self.now = NOON
        self.rules = rules(**settings)
        self.open(path)

    def open(self, path: Path | None) -> None:
        self.store = WatchedSqlite(path)
        self.ledger = Ledger(self.store, self.rules, lambda: self.now)

    def restart(self) -> None:
        self.ledger.close()
        self.open(self.store.path)

    def list(self, *tasks: Task, after: float = 15.0) -> bool:
        self.now += after
        transaction = self.ledger.begin(*WORKSPACE)
        transaction.add(list(tasks))
        return self.ledger.commit(transaction, self.now)

    def count(self, total: Total, label: str = "", model: str = "flash") -> float:
        return self.ledger.counters(*WORKSPACE).values.get(SeriesKey(model, total, label), -1.0)

    def counts(self, *totals: Total) -> tuple[float, ...]:
        return tuple(self.count(total) for total in totals)

    def tracked(self) -> int:
        return self.ledger.counters(*WORKSPACE).tracked

    def task(
        self,
        identity: str = "a",
        status: str | None = "pending",
        credits_used: float | None = None,
        *,
        at: float | None = NOON,
        **names: str,
    ) -> Task:
        created_at = None if at is None else moment(at)
        return Task(identity, names.get("model", "flash"), status, names.get("reason"), credits_used, created_at)


class Shared(Desk):
    """One of several exporters on a PostgreSQL database, with the clock of the first one."""

    store: WatchedPostgresql  # type: ignore[assignment] # it has the methods that the desk uses

    def __init__(self, url: str, clock: Desk | None = None, **settings: Any) -> None:
        self.url, self.clock = url, clock
        super().__init__(None, **settings)

    def open(self, path: object) -> None:  # noqa: ARG002 - there is only one database
        self.store = WatchedPostgresql(self.url)
        self.ledger = Ledger(self.store, self.rules, lambda: (self.clock or self).now)

    def restart(self) -> None:
        self.ledger.close()
        self.open(None)

    def list(self, *tasks: Task, after: float = 15.0) -> bool:
        if self.clock:
            self.now = self.clock.now
        recorded = super().list(*tasks, after=after)
        if self.clock:
            self.clock.now = self.now
        return recorded


STORES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]
"""The parameters of a fixture that calls `new_desk`."""


def new_desk(request: pytest.FixtureRequest, folder: Path, **settings: Any) -> Desk:
    """Return a ledger in a new store of the kind that the fixture's parameter names."""
    if request.param == "sqlite":
        return Desk(folder / "state" / "ledger.db", **settings)
    return Shared(request.getfixturevalue("postgres").database(), **settings)
