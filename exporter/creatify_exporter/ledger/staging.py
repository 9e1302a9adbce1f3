"""What one list says of each task, however often and in whatever order it says it."""

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from creatify_exporter.creatify.task import Status

# Of two entries with one id, the one that is further on holds: the other is a copy that came late.
_RANK: Final[dict[Status, int]] = {"unknown": 0, "pending": 1, "running": 2, "done": 3, "failed": 4}

_TABLE: Final = """
CREATE TABLE sight (
  id TEXT PRIMARY KEY, status TEXT, credits REAL, model TEXT, reason TEXT, created_at REAL, rank INTEGER
) WITHOUT ROWID
"""
_ADD: Final = """
INSERT INTO sight VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
  status = excluded.status, credits = excluded.credits, model = excluded.model,
  reason = excluded.reason, created_at = excluded.created_at, rank = excluded.rank
WHERE excluded.rank > rank OR excluded.rank = rank AND coalesce(excluded.credits, -1) > coalesce(credits, -1)
"""
_OLDEST_FIRST: Final = """
SELECT id, status, credits, model, reason, created_at FROM sight ORDER BY created_at IS NULL, created_at, id
"""


class Sight(NamedTuple):
    """One task as a list shows it; `model` and `reason` are label values, `created_at` seconds since the epoch."""

    id: str
    status: Status
    credits: float | None
    model: str
    reason: str
    created_at: float | None


class Fold:
    """Collects sights in a private temporary database, which SQLite spills to disk when it grows.

    A first list can hold years of tasks; none of them may be counted, and few be kept in memory, before its end has
    been seen.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA cache_size = -4096")  # KiB
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("BEGIN")
        self._database.execute(_TABLE)

    def add(self, sights: Iterable[Sight]) -> None:
        """Take in sights; of equal ones the first holds."""
        self._database.executemany(_ADD, ((*sight, _RANK[sight.status]) for sight in sights))

    def __iter__(self) -> Iterator[Sight]:
        """Yield one sight a task, the oldest task first, those without a date last."""
        return map(Sight._make, self._database.execute(_OLDEST_FIRST))

    def close(self) -> None:
        """Give back memory and disk."""
        self._database.close()
