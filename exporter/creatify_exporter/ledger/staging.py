"""The observations of one list, before any of them is counted."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, Final, NamedTuple

from creatify_exporter.creatify.task import RANK, Status
from creatify_exporter.errors import LedgerUnavailable

_TABLE: Final = """
CREATE TABLE observation (
  id TEXT PRIMARY KEY, status TEXT, credits_used REAL, model TEXT, reason TEXT, created_at REAL
) WITHOUT ROWID
"""
_RANK: Final = " ".join(["CASE {}.status", *(f"WHEN '{status}' THEN {rank}" for status, rank in RANK.items()), "END"])
_ADD: Final = f"""
INSERT INTO observation VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
  status = excluded.status, credits_used = excluded.credits_used, model = excluded.model,
  reason = excluded.reason, created_at = excluded.created_at
WHERE ({_RANK.format("excluded")}, coalesce(excluded.credits_used, -1))
  > ({_RANK.format("observation")}, coalesce(observation.credits_used, -1))
"""  # noqa: S608 - built from constants
_OLDEST_FIRST: Final = """
SELECT id, status, credits_used, model, reason, created_at FROM observation
WHERE NOT coalesce(created_at < ? AND status IN ('done', 'failed'), FALSE)
ORDER BY created_at IS NULL, created_at, id
"""
_SETTLED: Final = """
SELECT status, model, reason, min(created_at), count(*), total(credits_used) FROM observation
WHERE created_at < ? AND status IN ('done', 'failed')
GROUP BY CAST(created_at / 86400 AS INTEGER), status, model, reason
"""
_MODELS: Final = "SELECT DISTINCT model FROM observation LIMIT ?"


class Observation(NamedTuple):
    """A task as one list shows it; `model` and `reason` are label values, `created_at` seconds since the epoch."""

    id: str
    status: Status
    credits_used: float | None
    model: str
    reason: str
    created_at: float | None


class Settled(NamedTuple):
    """Finished tasks of one UTC day that count the same way: how many they are, and their credits."""

    status: Status
    model: str
    reason: str
    created_at: float
    tasks: int
    credits_used: float


class StagingTable:
    """Holds the observations of one list, one for each task, in a private temporary database.

    The first list can hold years of tasks. None of them may be counted before the list has proved complete, and until
    then they should not fill the memory: SQLite moves a growing database to disk. Every method may raise
    `LedgerUnavailable`.
    """

    def __init__(self) -> None:
        self._database: sqlite3.Connection | None = None

    def add(self, observations: Iterable[Observation]) -> None:
        """Add observations; of several for one task, keep the one that is furthest along, the first of equal ones."""
        with _unavailable():
            self._opened().executemany(_ADD, observations)

    def oldest_first(self, settled_before: float = -inf) -> Iterator[Observation]:
        """Yield the observations that `settled` does not sum up, one for each task; those without a date come last."""
        with _unavailable():
            # All tasks share their strings, because a hundred thousand may be tracked from here on; SQLite returns new
            # ones for each. Not `sys.intern`, which in Python 3.12 keeps them forever.
            texts: dict[Any, Any] = {}
            for task, status, credits_used, model, *rest in self._query(_OLDEST_FIRST, settled_before):
                same_status, same_model = texts.setdefault(status, status), texts.setdefault(model, model)
                yield Observation._make((task, same_status, credits_used, same_model, *rest))

    def settled(self, before: float) -> Iterator[Settled]:
        """Yield the sums of the finished tasks that were created before a time."""
        with _unavailable():
            yield from map(Settled._make, self._query(_SETTLED, before))

    def models(self, most: int) -> set[str]:
        """Return at most `most` of the observed models."""
        with _unavailable():
            return {model for (model,) in self._query(_MODELS, most)}

    def close(self) -> None:
        """Free memory and disk."""
        if self._database:
            self._database.close()

    def _query(self, statement: str, parameter: float) -> Iterable[Any]:
        # Most lists have nothing new and need no table.
        return self._database.execute(statement, (parameter,)) if self._database else ()

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            database.execute("PRAGMA cache_size = -4096")  # KiB
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("BEGIN")
            database.execute(_TABLE)
            self._database = database
        return self._database


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        remedy = "make room in /var/tmp or /tmp, or set SQLITE_TMPDIR to another folder"
        raise LedgerUnavailable(f"the list cannot be sorted in a temporary file: {error}; {remedy}") from error
