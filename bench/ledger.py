"""What the ledger costs in a file and in PostgreSQL, by the number of tracked tasks.

    python bench/ledger.py [postgresql://USER@HOST/DATABASE]

Each size has its own ledger. Each recorded list has ten new tasks; the results are medians of twenty.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from creatify_exporter.config.schema import Config, LedgerSettings
from creatify_exporter.creatify.task import Task
from creatify_exporter.exporter import rules
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.postgresql import PostgresqlStore
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.ledger.store import Store
from creatify_exporter.lists import TEXT_GENERATOR

TRACKED: Final = (1_000, 20_000, 100_000)
ROUNDS: Final = 20
NEW: Final = 10
RULES: Final = rules(Config(ledger=LedgerSettings(history="count")))


def tasks(first: int, number: int, at: datetime) -> list[Task]:
    """Return finished tasks that were created at the same time."""
    return [Task(f"{each:036}", "gemini-2.5-flash", "done", None, 1.0, at) for each in range(first, first + number)]


def record(ledger: Ledger, name: str, listed: list[Task], now: datetime) -> float:
    """Return the seconds to commit a list that has been read already."""
    transaction = ledger.begin(name, TEXT_GENERATOR.api)
    transaction.add(listed)
    began = time.perf_counter()
    assert ledger.commit(transaction, now.timestamp())
    taken = time.perf_counter() - began
    transaction.close()
    return taken


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that the work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measured(open_store: Callable[[], Store], name: str, tracked: int, *, followed: bool) -> tuple[float, ...]:
    """Return seconds: first list, a commit, an answer, reading another exporter's commit (0: not measured), loading."""
    ledger, now = Ledger(open_store(), RULES), datetime.now(UTC)
    follower = Ledger(open_store(), RULES) if followed else None
    listed = tasks(0, tracked, now - timedelta(hours=1))
    first = record(ledger, name, listed, now)
    commits, answers, news = [], [], [0.0]
    for number in range(ROUNDS):
        now += timedelta(seconds=15)
        listed += tasks(tracked + number * NEW, NEW, now)
        if follower:
            follower.counters(name, TEXT_GENERATOR.api)
        commits.append(record(ledger, name, listed, now))
        answers.append(timed(lambda: ledger.counters(name, TEXT_GENERATOR.api)))
        if follower:
            news.append(timed(lambda: follower.counters(name, TEXT_GENERATOR.api)))
    for each in (ledger, follower):
        if each:
            each.close()
    again = Ledger(open_store(), RULES)
    load = timed(lambda: again.counters(name, TEXT_GENERATOR.api))
    again.close()
    return first, median(commits), median(answers), median(news), load


def main() -> None:
    """Print a table."""
    store: Callable[[], Store]
    print("| ledger | tracked | first list | commit | answer | news | loading |")
    print("|---|---|---|---|---|---|---|")
    for url in sys.argv[1:]:
        for tracked in TRACKED:
            store = partial(PostgresqlStore, partial(str, url))
            print_row("PostgreSQL", tracked, measured(store, f"bench {time.time()}", tracked, followed=True))
    with tempfile.TemporaryDirectory() as folder:
        for tracked in TRACKED:
            store = partial(SqliteStore, Path(folder, f"{tracked}.db"))
            print_row("file", tracked, measured(store, "bench", tracked, followed=False))


def print_row(ledger: str, tracked: int, times: tuple[float, ...]) -> None:
    """Print milliseconds."""
    cells = (f"{1e3 * seconds:,.1f} ms" if seconds else "–" for seconds in times)
    print(f"| {ledger} | {tracked:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
