"""The ledger against an oracle that never forgets, rule by rule, and on files that fail it."""

import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracle import BY_DAY, Name, Oracle

from creatify_exporter.creatify.task import Task
from creatify_exporter.errors import FetchError, LedgerRefused, LedgerUnavailable
from creatify_exporter.ledger.checksum import book_checksum
from creatify_exporter.ledger.ledger import Counters, Ledger, Rules, Transaction
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.ledger.state import DayKey, SeriesKey, Total
from creatify_exporter.ledger.store import Day, read_book

HISTORIES = int(os.environ.get("LEDGER_HISTORIES", "1500"))
FLIPS = int(os.environ.get("LEDGER_FLIPS", "200"))
HOUR, DAY = 3600.0, 24 * 3600.0
NOON = datetime(2026, 10, 31, 12, tzinfo=UTC).timestamp()
TODAY = (date(2026, 10, 31) - date(1970, 1, 1)).days
WORKSPACE = ("default", "text_generator")


def rules(*reasons: str, **settings: Any) -> Rules:
    """Make rules whose reasons are the texts themselves."""
    reasons = reasons or ("timeout", "quota")
    defaults = {
        "history": "count",
        "settle_after": DAY,
        "new_series_hold": 120.0,
        "max_models": 100,
        "models": frozenset(),
    }

    def classify(text: str | None) -> str:
        return text if text and text in reasons else "other"

    return Rules(reasons=(*reasons, "other"), classify=classify, **{**defaults, **settings})


def days(path: Path, since: int, before: int) -> list[Day]:
    """Read the daily totals as `report` does, without disturbing whoever writes."""
    with closing(SqliteStore(path, read_only=True)) as store:
        return store.days(since, before)


def moment(at: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at)


# --- A store whose statements can be watched, failed, and killed ----------------------------------------------------


class Killed(BaseException):
    """The process ends here; nothing may catch this."""


When = Literal["before", "after"]
Cursor = TypeVar("Cursor")


class Tap:
    """Is told of each single statement before and after it is executed."""

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
    """What makes the statements of a store fail; `failure` is what its database raises then, anew each time."""

    tap: Tap
    failure: Callable[[], Exception]
    tripped = False

    def fail(self, number: int, when: When, error: BaseException | None = None) -> None:
        """Fail once at one of the statements to come (0: the commit): before it is executed, or after it has been."""
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


class Wiretap:
    """A connection to SQLite that tells its tap of each single statement."""

    def __init__(self, database: sqlite3.Connection, tap: Tap) -> None:
        self._database, self._tap = database, tap

    def execute(self, sql: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        return self._tap.execute(sql, lambda: self._database.execute(sql, parameters))

    def executemany(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        for row in rows:
            self.execute(sql, row)

    @property
    def in_transaction(self) -> bool:
        return self._database.in_transaction

    def close(self) -> None:
        self._database.close()


class WatchedStore(Watched, SqliteStore):
    failure = partial(sqlite3.OperationalError, "database or disk is full")

    def __init__(self, path: Path | None) -> None:
        super().__init__(path)
        self.path = path or Path()
        self._database.execute("PRAGMA synchronous = OFF")  # a process dies in these tests, not a machine
        self.tap = Tap()
        self._database = cast("sqlite3.Connection", Wiretap(self._database, self.tap))

    def execute(self, sql: str) -> list[Any]:
        return self._database.execute(sql).fetchall()

    def kill(self, number: int, torn: float, copy: Path) -> None:
        """End the process at one of the statements to come (0: the commit): `copy` gets what it leaves behind.

        Where that is the commit, it dies while it writes the log: `torn` is the part that reaches the file.
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
        """Copy the files as they are at this moment, which is what a process that is killed now leaves behind."""
        copy.mkdir()
        for part in self.path.parent.glob(f"{self.path.name}*"):
            shutil.copy(part, copy)


# --- Histories ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """What a list says of a task: `told` None repeats what was said last."""

    task: int
    told: tuple[str | None, float | None] | None
    with_date: bool
    reason: str | None


@dataclass(frozen=True)
class Step:
    """Time goes by, the configuration may change, and a list comes in that the ledger records, or does not."""

    wait: float
    clock_off: float
    entries: tuple[Entry, ...]
    batch: int
    fate: Literal["recorded", "given up", "overtaken", "failed", "killed", "restarted", "no list"]
    reasons: tuple[str, ...]
    rules_change: Literal["never", "before", "meanwhile"]
    statement: int = 1
    when: When = "before"
    torn: float = 1.0
    hiccup: int = 0
    rival: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Birth:
    """When a task says it was created, relative to the list that shows it first (None: it never says)."""

    age: float | None
    model: str | None


@dataclass(frozen=True)
class History:
    births: tuple[Birth, ...]
    steps: tuple[Step, ...]
    settings: dict[str, Any] = field(hash=False)


REASONS = (("timeout", "quota"), ("timeout",), ("quota", "refused"))
TASKS = 12


def histories(*, on_file: bool) -> st.SearchStrategy[History]:
    settle_after = 2 * HOUR
    times = [0.0, 0.25, 15.0, 15.0, 15.0, 60.0, 120.0, 899.0, 900.0, 900.25, HOUR, settle_after - 0.25, settle_after]
    waits = st.sampled_from([*times, settle_after + 1, 3 * DAY, -15.0, -HOUR, -3 * settle_after])
    ages = [*times, settle_after + 1, 2 * settle_after, 100 * 365 * DAY, -15.0, -settle_after, -3 * DAY, -365 * DAY]
    credit = st.none() | st.integers(0, 12).map(lambda halves: halves / 2)
    status = st.sampled_from(["pending", "running", "done", "failed", "done", "failed", "queued", None])
    entry = st.builds(
        Entry,
        task=st.integers(0, TASKS - 1),
        told=st.none() | st.tuples(status, credit),
        with_date=st.sampled_from([True, True, True, True, False]),
        reason=st.sampled_from(["timeout", "quota", "refused", "?", None]),
    )
    entries = st.lists(entry, max_size=10).map(tuple)
    fates = ["recorded"] * 6 + ["given up", "overtaken", "failed", "no list"]
    step = st.builds(
        Step,
        wait=waits,
        clock_off=st.sampled_from([0.0, 0.0, 0.0, 0.0, 90.0, -90.0, DAY, -DAY]),
        entries=entries,
        batch=st.integers(1, 5),
        fate=st.sampled_from(fates + (["killed", "killed", "restarted", "restarted"] if on_file else [])),
        reasons=st.sampled_from(REASONS),
        rules_change=st.sampled_from(["never", "never", "never", "before", "meanwhile"]),
        statement=st.just(0) | st.integers(1, 8) | st.integers(1, 80),
        when=st.sampled_from(["before", "after"]),
        torn=st.sampled_from([0.0, 0.3, 0.7, 0.99, 1.0]),
        hiccup=st.sampled_from([0, 0, 0, 1, 2, 5]),
        rival=entries,
    )
    birth = st.builds(
        Birth,
        age=st.sampled_from([0.0, 5.0, 5.0, *ages, None]),
        model=st.sampled_from(["flash", "pro", "lite", "flash", "other", "", None, "always", "rare"]),
    )
    return st.builds(
        History,
        births=st.lists(birth, min_size=TASKS, max_size=TASKS).map(tuple),
        steps=st.lists(step, min_size=1, max_size=12).map(tuple),
        settings=st.fixed_dictionaries(
            {
                "history": st.sampled_from(["count", "count", "skip"]),
                "max_models": st.sampled_from([100, 3, 1]),
                "models": st.sampled_from([frozenset(), frozenset({"always"})]),
                "settle_after": st.just(settle_after),
                "new_series_hold": st.sampled_from([120.0, 120.0, 0.0]),
            }
        ),
    )


class World:
    """Plays a history to a ledger and to the oracle, and compares them after each step."""

    def __init__(self, history: History, folder: Path | None) -> None:
        self.history, self.folder = history, folder
        self.name = WORKSPACE
        self.now = self.clock = NOON
        self.lives = 0
        self.versions: dict[Transaction, int] = {}
        self.born: dict[int, float | None] = {}
        self.told: dict[int, tuple[str | None, float | None]] = {}
        self.rules = rules(*REASONS[0], **history.settings)
        self.oracle, self.endless = Oracle(), Oracle(settling=False)
        self.served: dict[Name, float] = {}
        self.open(folder / "0" / "ledger.db" if folder else None)

    def open(self, path: Path | None) -> None:
        self.store = WatchedStore(path)
        self.opened_at = self.clock
        self.ledger = Ledger(self.store, self.rules, lambda: self.clock)

    def restart(self, path: Path | None = None) -> None:
        self.ledger.close()
        self.open(path or self.store.path)

    def play(self) -> None:
        for step in self.history.steps:
            self.now += step.wait
            self.clock = self.now + step.clock_off
            self.take(step)
            self.compare(step.hiccup)
        self.ledger.close()

    def rival(self) -> Ledger:
        """Return who may record another list meanwhile."""
        return self.ledger

    def configure(self, step: Step) -> None:
        self.ledger.rules = self.rules = rules(*step.reasons, **self.history.settings)

    def take(self, step: Step) -> None:
        if step.rules_change == "before":
            self.configure(step)
        if step.fate == "no list":
            return
        if step.fate == "restarted":
            self.restart()
        rules, transaction, tasks = self.rules, self.begin(self.ledger), self.list(step.entries)
        rival, newer = (self.begin(self.rival()), self.list(step.rival)) if step.fate == "overtaken" else (None, [])
        tell(transaction, tasks, step.batch)
        if step.rules_change == "meanwhile":
            self.configure(step)
        if rival:
            tell(rival, newer, step.batch)
            self.fail_at(step, rival, newer, rules)
        if step.fate == "failed":
            self.fail_at(step, transaction, tasks, rules)
        elif step.fate == "killed":
            self.kill_at(step, transaction, tasks, rules)
        elif step.fate != "given up":
            self.commit(transaction, tasks, rules)
        transaction.close()

    def begin(self, ledger: Ledger) -> Transaction:
        transaction = ledger.begin(*self.name)
        self.versions[transaction] = transaction._book.progress.version  # noqa: SLF001 - no getter for tests alone
        return transaction

    def commit(self, transaction: Transaction, tasks: list[Task], rules: Rules) -> None:
        """Commit, and see that the list is recorded, unless a newer one has been or it must not be believed."""
        overtaken = self.versions[transaction] != self.oracle.lists
        believed = self.oracle.believes(tasks)
        try:
            recorded = transaction.commit(self.now)
        except FetchError:
            assert not believed
        else:
            assert believed or overtaken
            assert recorded is not overtaken
            if recorded:
                self.record(tasks, rules)

    def record(self, tasks: list[Task], rules: Rules) -> None:
        for oracle in (self.oracle, self.endless):
            oracle.record(tasks, self.now, self.clock, rules)

    def fail_at(self, step: Step, transaction: Transaction, tasks: list[Task], rules: Rules) -> None:
        """Commit while one statement fails; if that was the commit and it has failed only in appearance, it counts."""
        self.store.fail(step.statement, step.when)
        try:
            self.commit(transaction, tasks, rules)
        except LedgerUnavailable:
            assert self.store.tripped
            if self.store.tap.committed:
                self.record(tasks, rules)
        finally:
            self.store.heal()

    def kill_at(self, step: Step, transaction: Transaction, tasks: list[Task], rules: Rules) -> None:
        self.lives += 1
        assert self.folder
        copy = self.folder / str(self.lives)
        self.store.kill(step.statement, step.torn, copy)
        try:
            self.commit(transaction, tasks, rules)
        except Killed:
            self.store.heal()
        else:
            self.store.heal()
            self.store.leave(copy)
        committing = self.store.tap.committed
        self.restart(copy / self.store.path.name)
        if self.generation() > self.oracle.lists:
            assert committing
            self.record(tasks, rules)

    def generation(self) -> int:
        return int(self.store.execute("SELECT max(generation) FROM book")[0][0])

    def list(self, entries: Iterable[Entry]) -> list[Task]:
        """Return a list of tasks; those on which the ledger promises nothing are left out."""
        tasks = (self.task(entry) for entry in entries)
        return [task for task in tasks if task]

    def task(self, entry: Entry) -> Task | None:
        birth = self.history.births[entry.task]
        if entry.task not in self.born:
            self.born[entry.task] = None if birth.age is None else self.now - birth.age
        created_at, identity = self.born[entry.task], f"task {entry.task}"
        if entry.told:
            self.told[entry.task] = entry.told
        status, credit = self.told.get(entry.task, ("pending", None))
        known = self.oracle.tasks.get(identity)
        settled = known.settled if known else created_at is not None and created_at < self.oracle.mark
        if settled and (created_at is None or created_at >= self.oracle.mark):
            return None  # nothing in it tells it from a new one
        return Task(
            id=identity if entry.task else "",
            model_name=birth.model,
            status=status,
            failed_reason=entry.reason,
            credits_used=credit,
            created_at=moment(created_at) if created_at is not None and (entry.with_date or settled) else None,
        )

    def counters(self, hiccup: int) -> tuple[Counters, dict[Name, float]]:
        """Return what the ledger serves and what it should; in a hiccup it cannot write down that a hold is over."""
        if hiccup:
            self.store.fail(hiccup, "before")
        counters = self.ledger.counters(*self.name)
        hold = float("inf") if hiccup and self.store.tripped else self.rules.new_series_hold
        self.store.heal()
        return counters, self.oracle.served(self.clock, self.opened_at, hold)

    def compare(self, hiccup: int) -> None:
        self.ledger.begin(*self.name).close()  # reads the book anew where that is in doubt
        counters, expected = self.counters(hiccup)
        served: dict[Name, float] = {(key.model, key.total, key.label): value for key, value in counters.values}
        assert served == expected
        assert all(served[name] >= value for name, value in self.served.items())
        self.served = served
        assert counters.tracked == self.oracle.tracked()
        assert counters.models == self.oracle.models
        assert (counters.progress.watermark or float("-inf")) == self.oracle.mark
        totals = self.oracle.totals
        for model in counters.models:
            net = totals[model, "credits_used", ""] - totals[model, "credits_refunded", ""]
            assert net == self.oracle.net_credits(model)
        limits = sums(self.endless.totals)
        assert all(value <= limits[total] for total, value in sums(totals).items() if total not in UNLIMITED)
        if self.folder:
            self.compare_days()

    def compare_days(self) -> None:
        booked = {(day.day, day.model, day.total): day.value for day in days(self.store.path, 0, 99_999)}
        assert booked == self.oracle.days
        by_total: defaultdict[tuple[str, str], float] = defaultdict(float)
        for (_, model, total), value in booked.items():
            by_total[model, total] += value
        counted: defaultdict[tuple[str, str], float] = defaultdict(float)
        for (model, total, _), value in self.oracle.totals.items():
            if value and total in BY_DAY:
                counted[model, total] += value
        assert by_total == counted


UNLIMITED = ("vanished", "duration_bucket", "duration_sum")  # depend on when a task settles, and on which list it was


def tell(transaction: Transaction, tasks: list[Task], batch: int) -> None:
    for start in range(0, len(tasks), batch):
        transaction.add(tasks[start : start + batch])


def sums(totals: dict[Name, float]) -> defaultdict[str, float]:
    by_total: defaultdict[str, float] = defaultdict(float)
    for (_, total, _), value in totals.items():
        by_total[total] += value
    return by_total


at_length = settings(
    max_examples=HISTORIES // 2,
    phases=set(Phase) - {Phase.explain},
)


@at_length
@given(history=histories(on_file=True))
def test_a_ledger_on_file_counts_what_the_oracle_counts(
    history: History, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("history")
    World(history, folder).play()
    shutil.rmtree(folder)


@at_length
@given(history=histories(on_file=False))
def test_a_ledger_in_memory_counts_what_the_oracle_counts(history: History) -> None:
    World(history, None).play()


# --- The eight rules, one by one ------------------------------------------------------------------------------------


def replaced(task: Task, **changes: Any) -> Task:
    return msgspec.structs.replace(task, **changes)


class Desk:
    """A ledger and a clock, for stories that are told list by list."""

    def __init__(self, path: Path | None = None, **changes: Any) -> None:
        self.now = NOON
        self.rules = rules(**changes)
        self.open(path)

    def open(self, path: Path | None) -> None:
        self.store = WatchedStore(path)
        self.ledger = Ledger(self.store, self.rules, lambda: self.now)

    def restart(self) -> None:
        self.ledger.close()
        self.open(self.store.path)

    def list(self, *tasks: Task, after: float = 15.0) -> bool:
        self.now += after
        transaction = self.ledger.begin(*WORKSPACE)
        transaction.add(list(tasks))
        return transaction.commit(self.now)

    def count(self, total: Total, label: str = "", model: str = "flash") -> float:
        return dict(self.ledger.counters(*WORKSPACE).values).get(SeriesKey(model, total, label), -1.0)

    def counts(self, *totals: Total) -> tuple[float, ...]:
        return tuple(self.count(total) for total in totals)

    def tracked(self) -> int:
        return self.ledger.counters(*WORKSPACE).tracked

    def task(
        self,
        identity: str = "a",
        status: str | None = "pending",
        credit: float | None = None,
        *,
        at: float | None = NOON,
        **names: str,
    ) -> Task:
        created_at = None if at is None else moment(at)
        return Task(identity, names.get("model", "flash"), status, names.get("reason"), credit, created_at)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    desk.list(desk.task("first", at=NOON))
    yield desk
    desk.ledger.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


def test_a_list_that_is_given_up_changes_nothing(desk: Desk) -> None:
    transaction = desk.ledger.begin(*WORKSPACE)
    transaction.add([desk.task("b", "done", 5.0)])
    transaction.close()
    assert desk.counts("submitted", "finished", "credits_used") == (1, 0, 0)
    assert desk.ledger.counters(*WORKSPACE).progress.version == 1


def test_a_task_counts_once_however_often_it_is_listed(desk: Desk) -> None:
    for _ in range(3):
        desk.list(desk.task("b", "running"), desk.task("b", "done", 2.0), desk.task("b", "running", 9.0))
    assert desk.counts("submitted", "finished", "credits_used", "credits_refunded") == (2, 1, 2, 0)


def test_of_two_entries_the_one_further_on_holds_in_any_order(desk: Desk) -> None:
    one, other = desk.task("b", "failed", 1.0, reason="quota"), desk.task("b", "done", 7.0)
    desk.list(one, other)
    assert (desk.count("failed", "quota"), desk.count("credits_used")) == (1, 1)
    desk.list(replaced(other, id="c"), replaced(one, id="c"))
    assert (desk.count("failed", "quota"), desk.count("credits_used")) == (2, 2)


def test_of_two_entries_of_the_same_status_the_one_with_more_credits_holds(desk: Desk) -> None:
    desk.list(desk.task("b", "done", 1.0), desk.task("b", "done", 4.0), desk.task("b", "done"))
    assert desk.count("credits_used") == 4


def test_an_entry_that_contradicts_one_without_news_is_compared_with_it(desk: Desk) -> None:
    desk.list(desk.task("b", "running", 5.0))
    desk.list(desk.task("b", "running", 5.0), desk.task("b", "running", 2.0))
    assert desk.counts("credits_used", "credits_refunded") == (5, 0)


def test_done_then_failed_adds_the_failure_and_the_credits_that_were_wasted(desk: Desk) -> None:
    desk.list(desk.task("b", "done", 3.0))
    desk.list(desk.task("b", "failed", 4.0, reason="timeout"))
    desk.list(desk.task("b", "failed", 2.5, reason="quota"))
    assert desk.counts("finished", "credits_used", "credits_refunded") == (1, 4, 1.5)
    assert desk.counts("failed_credits_used", "failed_credits_refunded") == (4, 1.5)
    assert (desk.count("failed", "timeout"), desk.count("failed", "quota")) == (1, 0)


def test_failed_stays_failed_and_finished_stays_finished(desk: Desk) -> None:
    for status in ("failed", "done", "running", "failed", None, "queued", "failed"):
        desk.list(desk.task("b", status, reason="timeout"))
    assert (desk.count("finished"), desk.count("failed", "timeout")) == (1, 1)


def test_a_status_that_is_not_documented_is_unfinished(desk: Desk) -> None:
    desk.list(desk.task("b", "rejected"))
    assert desk.count("finished") == 0
    desk.list(desk.task("b", "done"))
    assert desk.count("finished") == 1


def test_a_status_that_is_not_documented_leaves_the_last_known_one(desk: Desk) -> None:
    for status in ("running", "rejected", None):
        desk.list(desk.task("b", status))
    assert desk.store.execute("SELECT status FROM task WHERE id = 'b'") == [("running",)]


def test_credits_that_are_absent_are_unchanged(desk: Desk) -> None:
    for credit in (2.0, None, 2.0, None, 3.0):
        desk.list(desk.task("b", "done", credit))
    assert desk.counts("credits_used", "credits_refunded") == (3, 0)


def test_a_task_stays_with_the_model_under_which_it_was_first_seen(desk: Desk) -> None:
    desk.list(desk.task("b", model="pro"))
    desk.list(desk.task("b", "done", 1.0, model="flash"), after=200)
    assert (desk.count("finished", model="pro"), desk.count("finished")) == (1, 0)


def test_a_new_task_from_before_the_mark_is_settled(desk: Desk) -> None:
    mark = NOON + 15 - DAY
    desk.list(desk.task("old", "done", 9.0, at=mark - 1), desk.task("young", "done", 1.0, at=mark))
    assert desk.counts("submitted", "finished", "credits_used") == (2, 1, 1)


def test_a_list_is_judged_by_the_mark_of_the_one_before_it(desk: Desk) -> None:
    desk.list(desk.task("b", "done", at=NOON + 60), after=3 * DAY)
    assert desk.count("finished") == 1


def test_the_mark_never_goes_back(desk: Desk) -> None:
    desk.list(after=2 * DAY)
    mark = desk.ledger.counters(*WORKSPACE).progress.watermark
    desk.list(after=-2 * DAY)
    desk.list(desk.task("b", at=NOON))
    assert desk.ledger.counters(*WORKSPACE).progress.watermark == mark == NOON + 15 + DAY
    assert desk.count("submitted") == 1


def test_a_finished_task_that_still_changes_is_tracked_until_it_has_been_quiet_for_a_day(desk: Desk) -> None:
    for hours in range(1, 72, 6):
        desk.list(desk.task("b", "done", float(hours)), after=6 * HOUR)
    assert desk.count("credits_used") == 67
    desk.list(desk.task("b", "done", 67.0), after=DAY)
    desk.list(desk.task("b", "failed", 99.0))
    assert (desk.count("credits_used"), desk.count("failed", "other")) == (67, 0)


def test_an_unfinished_task_that_leaves_the_list_for_a_day_has_vanished(desk: Desk) -> None:
    desk.list()
    desk.list(after=DAY - 1)
    assert (desk.count("vanished"), desk.tracked()) == (0, 1)
    desk.list(after=1)
    assert (desk.count("vanished"), desk.tracked()) == (1, 0)
    desk.list(desk.task("first", "done", 3.0))
    assert desk.counts("submitted", "finished", "vanished", "credits_used") == (1, 0, 1, 0)


def test_an_unfinished_task_that_comes_back_in_time_has_not_vanished(desk: Desk) -> None:
    desk.list()
    desk.list(desk.task("first"), after=DAY - 1)
    desk.list()
    desk.list(after=DAY - 1)
    desk.list(desk.task("first", "done"))
    assert desk.counts("submitted", "finished", "vanished") == (1, 1, 0)


@pytest.mark.parametrize(("status", "credit"), [("pending", None), ("queued", None), (None, 2.0), ("running", None)])
def test_an_unfinished_task_does_not_vanish_while_it_is_listed(status: str | None, credit: float | None) -> None:
    desk = Desk()
    desk.list(desk.task("b", "pending", 2.0))
    for _ in range(50):
        desk.list(desk.task("b", status, credit), after=HOUR)
    assert (desk.count("vanished"), desk.tracked()) == (0, 1)
    desk.list(desk.task("b", "done", 2.0), after=60)
    assert desk.counts("finished", "duration_sum") == (1, desk.now - NOON)


def test_an_absence_goes_on_through_a_restart(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task())
    desk.list()
    desk.restart()
    desk.list(after=DAY)
    assert desk.count("vanished") == 1


def test_a_task_without_a_date_is_kept_for_as_long_as_it_is_listed(desk: Desk) -> None:
    anchor = desk.task("first", "done")
    for _ in range(5):
        desk.list(desk.task("b", "done", 2.0, at=None), anchor, after=DAY)
    assert (desk.count("credits_used"), desk.tracked()) == (2, 1)
    desk.list(anchor)
    desk.list(anchor, after=DAY)
    assert (desk.count("vanished"), desk.tracked()) == (0, 0)


def test_what_is_tracked_does_not_grow_with_history() -> None:
    desk = Desk()
    history: list[Task] = []
    for number in range(400):
        history.append(desk.task(f"task {number}", "done", 1.0, at=desk.now))
        desk.list(*history, after=HOUR)
        assert desk.tracked() <= 26
    assert desk.counts("submitted", "finished", "credits_used") == (400, 400, 400)


def test_the_first_list_is_counted_and_its_old_finished_tasks_settle_at_once() -> None:
    desk = Desk()
    old = NOON - 30 * DAY
    desk.list(desk.task("a", "done", 2.0, at=old), desk.task("b", "running", at=old), desk.task("c", "failed", 1.0))
    assert desk.counts("submitted", "finished", "credits_used") == (3, 2, 3)
    assert (desk.count("failed", "other"), desk.tracked()) == (1, 2)
    desk.list(desk.task("a", "failed", 5.0, at=old), desk.task("b", "done", 4.0, at=old))
    assert desk.counts("submitted", "finished", "credits_used", "failed_credits_used") == (3, 3, 7, 1)


def test_skipped_history_is_followed_but_not_counted() -> None:
    desk = Desk(history="skip")
    desk.list(desk.task("a", "done", 2.0), desk.task("b", "running", 1.0))
    assert desk.counts("submitted", "finished", "credits_used") == (0, 0, 0)
    desk.list(desk.task("a", "done", 2.5), desk.task("b", "failed", 4.0), desk.task("c", "done", 1.0))
    assert desk.counts("submitted", "finished", "credits_used") == (1, 2, 4.5)
    assert (desk.count("failed", "other"), desk.count("failed_credits_used")) == (1, 3)


def test_a_date_of_the_year_one_is_a_date(path: Path) -> None:
    desk = Desk(path)
    oldest = msgspec.convert("0001-01-01T00:00:00+14:00", datetime)
    desk.list(Task("a", "flash", "running", None, 1.0, oldest), Task("b", "flash", "done", None, 2.0, oldest))
    desk.list(Task("a", "flash", "done", None, 1.0, oldest), Task("c", "flash", "done", None, 2.0, oldest))
    assert desk.counts("submitted", "finished", "credits_used") == (2, 2, 3)
    assert {day.day for day in days(path, -999_999, 99_999)} == {0, TODAY}


def test_a_list_in_which_no_task_says_when_it_was_created_is_not_believed_after_one_that_did(desk: Desk) -> None:
    with pytest.raises(FetchError, match="created_at"):
        desk.list(desk.task("b", at=None))
    assert desk.list()  # one that is empty is believed, and forgets nothing
    with pytest.raises(FetchError, match="created_at"):
        desk.list(desk.task("b", at=None))
    assert desk.count("submitted") == 1


def test_an_outage_is_booked_with_the_first_list_after_it(desk: Desk) -> None:
    desk.list(
        desk.task("first", "failed", 3.0, reason="quota"), desk.task("b", "done", 2.0, at=NOON + DAY), after=5 * DAY
    )
    assert desk.counts("submitted", "finished", "credits_used") == (2, 2, 5)


def test_a_list_that_comes_after_a_newer_one_is_not_recorded(desk: Desk) -> None:
    older = desk.ledger.begin(*WORKSPACE)
    older.add([desk.task("b", "running")])
    assert desk.list(desk.task("b", "done", 2.0))
    assert older.commit(desk.now) is False
    assert desk.counts("submitted", "finished", "credits_used") == (2, 1, 2)


def test_a_recording_is_committed_once(desk: Desk) -> None:
    transaction = desk.ledger.begin(*WORKSPACE)
    transaction.add([desk.task("b", "done", 2.0)])
    assert [transaction.commit(desk.now), transaction.commit(desk.now)] == [True, False]


def test_a_book_that_is_evict_is_read_again_also_by_a_fetch_under_way(desk: Desk) -> None:
    transaction = desk.ledger.begin(*WORKSPACE)
    transaction.add([desk.task("first", "done", 2.0), desk.task("b")])
    desk.ledger.evict(*WORKSPACE)
    assert desk.counts("submitted", "finished") == (1, 0)
    desk.ledger.evict(*WORKSPACE)
    assert transaction.commit(desk.now)
    assert desk.counts("submitted", "finished", "credits_used") == (2, 1, 2)


def test_workspaces_do_not_touch_each_other(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a"))
    desk.list(desk.task("b", "done", 2.0, model="pro"))
    for tasks in ([desk.task("a", "done", 8.0)], [desk.task("c", "done", 4.0, model="pro")]):
        desk.now += 60
        transaction = desk.ledger.begin("other", "text_generator")
        transaction.add(tasks)
        assert transaction.commit(desk.now)
    assert (desk.count("credits_used", model="pro"), desk.counts("submitted", "finished")) == (2, (1, 0))
    desk.restart()
    assert (desk.count("credits_used", model="pro"), desk.counts("submitted", "finished")) == (2, (1, 0))
    other = dict(desk.ledger.counters("other", "text_generator").values)
    assert (other[SeriesKey("flash", "credits_used")], other[SeriesKey("pro", "credits_used")]) == (
        8,
        0,
    )  # its hold goes on
    desk.now += 120
    other = dict(desk.ledger.counters("other", "text_generator").values)
    assert (other[SeriesKey("flash", "credits_used")], other[SeriesKey("pro", "credits_used")]) == (8, 4)


def test_rules_that_change_while_a_list_is_read_hold_from_the_next_one_on() -> None:
    desk = Desk()
    transaction = desk.ledger.begin(*WORKSPACE)
    transaction.add([desk.task("a", "failed", reason="quota")])
    desk.ledger.rules = rules("refused")
    assert transaction.commit(desk.now)
    assert desk.count("failed", "quota") == 1
    desk.list(desk.task("b", "failed", reason="refused"))
    assert (desk.count("failed", "quota"), desk.count("failed", "refused")) == (1, 0)  # held like a new model
    desk.now += 120
    assert (desk.count("failed", "quota"), desk.count("failed", "refused")) == (1, 1)


# --- Models ---------------------------------------------------------------------------------------------------------


def test_models_are_admitted_by_age_up_to_the_limit_and_the_rest_is_other() -> None:
    desk = Desk(max_models=3, models=frozenset({"always"}))  # which keeps one of the three places
    names = {"young": 0.0, "old": -60.0, "always": 60.0, "older": -120.0, "": 90.0}
    desk.list(*(desk.task(name or "empty", at=NOON + born, model=name) for name, born in names.items()))
    assert desk.ledger.counters(*WORKSPACE).models == {"older", "old", "always", "other"}
    assert desk.count("submitted", model="other") == 2
    desk.list(desk.task("later", at=NOON + 99, model="young"))
    assert desk.ledger.counters(*WORKSPACE).models == {"older", "old", "always", "other"}


def test_every_model_has_every_series_from_its_first_sight_on(desk: Desk) -> None:
    totals = {(key.total, key.label) for key, _ in desk.ledger.counters(*WORKSPACE).values}
    assert {label for total, label in totals if total == "failed"} == {"timeout", "quota", "other"}
    assert len(totals) == 8 + 3 + 11


# --- Durations ------------------------------------------------------------------------------------------------------


def durations(desk: Desk) -> dict[str, float]:
    values = desk.ledger.counters(*WORKSPACE).values
    return {key.label: value for key, value in values if key.total == "duration_bucket" and value}


def test_the_first_list_observes_no_duration() -> None:
    desk = Desk()
    desk.list(desk.task("a", "done"))
    assert durations(desk) == {}


def test_a_duration_is_observed_where_the_list_before_held_the_task_unfinished(desk: Desk) -> None:
    desk.list(desk.task("first", "done"), after=15)
    assert (durations(desk), desk.count("duration_sum")) == ({"30.0": 1}, 30)


def test_a_duration_is_observed_of_a_task_that_was_created_since_the_list_before(desk: Desk) -> None:
    desk.list(desk.task("b", "failed", at=NOON + 16), desk.task("c", "done", at=NOON + 15), after=15)
    assert (durations(desk), desk.count("duration_sum")) == ({"20.0": 1}, 14)


@pytest.mark.parametrize(("gap", "observed"), [(900.0, {"1800.0": 1}), (900.25, {})])
def test_no_duration_is_observed_after_a_gap_of_more_than_15_minutes(desk: Desk, gap: float, observed: object) -> None:
    desk.list(desk.task("first", "done"), after=gap)
    assert durations(desk) == observed


def test_no_duration_is_observed_of_a_task_that_the_list_before_lacked(desk: Desk) -> None:
    desk.list()
    desk.list(desk.task("first", "done"))
    assert durations(desk) == {}


def test_a_task_that_finishes_before_it_was_created_took_no_time(desk: Desk) -> None:
    desk.list(desk.task("b", "done", at=NOON + HOUR))
    assert (durations(desk), desk.count("duration_sum")) == ({"5.0": 1}, 0)


def test_no_duration_is_observed_of_a_task_without_a_date(desk: Desk) -> None:
    desk.list(desk.task("first"), desk.task("b", at=None))
    desk.list(desk.task("first"), desk.task("b", "done", at=None))
    assert (durations(desk), desk.count("finished")) == ({}, 1)


def test_a_duration_at_a_bound_falls_below_it(desk: Desk) -> None:
    desk.list(desk.task("b", "done", at=NOON + 20), after=15)
    desk.list(desk.task("c", "done", at=NOON + 35), after=20)
    assert durations(desk) == {"10.0": 1, "20.0": 1}


# --- Holds ----------------------------------------------------------------------------------------------------------


def test_a_model_that_is_born_later_is_served_as_0_until_its_hold_is_over(desk: Desk) -> None:
    desk.list(desk.task("b", "failed", 5.0, model="pro"))
    seen = []
    for _ in range(5):
        seen.append((desk.count("credits_used", model="pro"), desk.count("failed", "other", model="pro")))
        desk.now += 40
    assert seen == [(0, 0), (0, 0), (0, 0), (5, 1), (5, 1)]


def test_models_of_the_first_list_are_served_with_their_values_at_once() -> None:
    desk = Desk()
    desk.list(desk.task("a", "done", 5.0))
    assert desk.count("credits_used") == 5


def test_a_hold_that_is_over_stays_over_through_restarts_and_clock_steps(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a"))
    desk.list(desk.task("b", "done", 5.0, model="pro"))
    desk.now += 120
    assert desk.count("credits_used", model="pro") == 5
    for step in (0, -HOUR, -DAY, 3 * DAY):
        desk.now += step
        desk.restart()
        assert desk.count("credits_used", model="pro") == 5


def test_a_hold_begins_anew_with_a_start_that_may_have_kept_the_0_from_being_seen(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a"))
    desk.list(desk.task("b", "done", 5.0, model="pro"))
    desk.now += 600
    desk.restart()
    assert desk.count("credits_used", model="pro") == 0
    desk.now += 120
    assert desk.count("credits_used", model="pro") == 5


def test_a_clock_that_is_set_right_does_not_prolong_a_hold_for_ever(desk: Desk) -> None:
    desk.now += 365 * DAY
    desk.list(desk.task("b", "done", 5.0, model="pro", at=desk.now))
    desk.now -= 365 * DAY
    assert desk.count("credits_used", model="pro") == 5


@pytest.mark.parametrize("number", [0, 1, 2, 3, 25])
def test_a_hold_that_cannot_be_ended_in_the_file_goes_on(path: Path, number: int) -> None:
    desk = Desk(path)
    desk.list(desk.task("a"))
    desk.list(desk.task("b", "done", 5.0, model="pro"))
    desk.now += 120
    desk.store.fail(number, "before")
    failed = desk.count("credits_used", model="pro")
    assert (failed == 0) == desk.store.tripped
    desk.store.heal()
    assert desk.count("credits_used", model="pro") == 5


@pytest.mark.parametrize("number", [0, 1, 2, 12, 24])
@pytest.mark.parametrize("torn", [0.0, 0.5, 1.0])
def test_a_process_killed_while_it_ends_a_hold_has_shown_nothing_yet(path: Path, number: int, torn: float) -> None:
    desk = Desk(path)
    desk.list(desk.task("a"))
    desk.list(desk.task("b", "done", 5.0, model="pro"))
    desk.now += 120
    desk.store.kill(number, torn, path.parent / "copy")
    with pytest.raises(Killed):
        desk.ledger.counters(*WORKSPACE)
    desk.ledger.close()
    desk.open(path.parent / "copy" / path.name)
    held = {value for key, value in desk.ledger.counters(*WORKSPACE).values if key == SeriesKey("pro", "credits_used")}
    assert held in ({0.0}, {5.0})
    desk.now += 120
    assert desk.counts("submitted") == (1,)
    assert desk.count("credits_used", model="pro") == 5
    assert desk.store.execute("SELECT DISTINCT held FROM series") == [(0,)]  # all of a model's end together


# --- Days -----------------------------------------------------------------------------------------------------------


def test_daily_totals_can_be_read_while_the_ledger_is_open(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a", "done", 2.0, at=NOON - 3 * DAY), desk.task("b", at=NOON - DAY))
    desk.list(desk.task("b", "failed", 1.5, at=NOON - DAY), after=DAY)
    booked = [day[0:1] + day[3:] for day in days(path, TODAY - 3, TODAY + 1)]
    assert sorted(booked) == [
        (TODAY - 3, "flash", "credits_used", 2.0),
        (TODAY - 3, "flash", "finished", 1.0),
        (TODAY - 3, "flash", "submitted", 1.0),
        (TODAY - 1, "flash", "submitted", 1.0),
    ]
    assert {(day.day, day.total) for day in days(path, TODAY + 1, TODAY + 2)} == {
        (TODAY + 1, total) for total in ("finished", "failed", "credits_used")
    }
    assert desk.list(desk.task("c"))


@pytest.mark.parametrize("content", [None, b"", b"not a ledger"])
def test_daily_totals_of_what_is_no_ledger_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ledger.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LedgerRefused):
        days(path, 0, 99_999)
    assert not path.exists() if content is None else path.read_bytes() == content


# --- Files that are refused -----------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    """Return why a file is refused, having seen that it was left alone."""
    before = path.read_bytes()
    with pytest.raises(LedgerRefused) as refused:
        SqliteStore(path)
    assert path.read_bytes() == before
    assert {part.name for part in path.parent.iterdir()} <= {path.name, f"{path.name}.lock"}
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def used(path: Path) -> None:
    desk = Desk(path)
    for number in range(300):
        desk.list(desk.task(f"task {number}" * 5, "done", 1.0))
    desk.ledger.close()


@pytest.mark.parametrize("content", [b"PNG", b"notes\n" * 1000, b"\0" * 4096])
def test_a_file_that_is_no_database_is_not_touched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    assert "is not a ledger of this exporter" in refusal(path)


def test_another_programs_database_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE book (title TEXT)")
    assert "is not a ledger of this exporter" in refusal(path)


def test_a_ledger_of_a_newer_version_is_not_touched(path: Path) -> None:
    used(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    assert "has version 99" in refusal(path)


def test_a_damaged_ledger_is_not_touched(path: Path) -> None:
    used(path)
    content = bytearray(path.read_bytes())
    content[4096 : len(content) - 4096] = b"\x55" * (len(content) - 8192)
    path.write_bytes(content)
    assert "ledger" in refusal(path)


def test_a_bit_that_turns_over_in_a_ledger_is_noticed_or_changes_nothing(path: Path) -> None:
    used(path)
    good, draw = path.read_bytes(), random.Random(1)  # noqa: S311 - reproducible draws are the point
    with closing(SqliteStore(path)) as store:
        books, booked = list(store.books()), store.days(0, TODAY + 2)
    refused = 0
    for _ in range(FLIPS):
        flipped = bytearray(good)
        flipped[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            store = SqliteStore(path)
        except LedgerRefused as error:
            assert "\n" not in str(error)  # noqa: PT017 - it may, and need not, be raised
            assert path.read_bytes() == flipped
            refused += 1
            continue
        with closing(store):
            assert (list(store.books()), store.days(0, TODAY + 2)) == (books, booked)
    assert refused > FLIPS / 10


def test_a_bit_that_turns_over_in_the_log_is_noticed_unless_it_is_in_the_last_recording(path: Path) -> None:
    """What cannot be told from a power failure during the last commit is taken for one."""
    desk = Desk(path)
    for number in range(40):
        desk.list(*(desk.task(f"task {number} {each}", "done", 1.0) for each in range(5)))
    left = path.with_name("left")
    desk.store.leave(left)
    good, draw = (left / "ledger.db-wal").read_bytes(), random.Random(1)  # noqa: S311 - as above
    places = [*range(32), *(draw.randrange(len(good)) for _ in range(FLIPS))]
    for number, place in enumerate(places):
        copy = path.with_name(str(number))
        shutil.copytree(left, copy)
        (copy / "ledger.db-shm").unlink(missing_ok=True)
        flipped = bytearray(good)
        flipped[place] ^= 1 << draw.randrange(8)
        (copy / "ledger.db-wal").write_bytes(flipped)
        try:
            store = SqliteStore(copy / "ledger.db")
        except LedgerRefused:
            assert (copy / "ledger.db-wal").read_bytes() == flipped
        else:
            with closing(store):
                assert store.load(*WORKSPACE).progress.version >= 39
        shutil.rmtree(copy)


def test_what_is_damaged_under_a_running_exporter_is_not_read_again(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a", "done", 1.0))
    with closing(sqlite3.connect(path)) as damage:
        damage.execute("UPDATE series SET value = value + 64 WHERE total = 'finished'")
        damage.commit()
    desk.store.fail(0, "before")
    with pytest.raises(LedgerUnavailable):
        desk.list(desk.task("b", "done", 2.0))
    desk.store.heal()
    with pytest.raises(LedgerUnavailable, match="damaged"):
        desk.list(desk.task("b", "done", 2.0))
    assert desk.counts("submitted", "finished") == (1, 1)


def test_a_ledger_of_the_version_before_seals_is_sealed_when_it_is_opened(path: Path) -> None:
    used(path)
    with closing(sqlite3.connect(path)) as old:
        old.execute("ALTER TABLE book DROP COLUMN seal")
        old.execute("PRAGMA user_version = 2")
    desk = Desk(path)
    assert desk.count("submitted") == 300
    desk.list(desk.task("another"))
    desk.restart()
    assert desk.count("submitted") == 301


def test_a_ledger_that_has_lost_its_end_is_not_touched(path: Path) -> None:
    used(path)
    path.write_bytes(path.read_bytes()[:-4096])
    assert "ledger" in refusal(path)


OPEN = """
import sys
from pathlib import Path
from creatify_exporter.ledger.sqlite import SqliteStore
SqliteStore(Path(sys.argv[1]))
"""


def test_a_ledger_in_use_is_refused_and_free_after_its_end(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task())
    other = subprocess.run([sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "in use by another exporter" in other.stderr
    with pytest.raises(LedgerRefused, match="in use by another exporter"):
        SqliteStore(path)
    assert desk.list(desk.task())
    desk.restart()
    assert desk.count("submitted") == 1


def test_a_file_of_no_length_is_taken_as_new(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    desk = Desk(path)
    assert desk.list(desk.task())
    desk.restart()
    assert desk.count("submitted") == 1


def test_a_folder_that_cannot_be_made_or_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerRefused, match="cannot be opened"):
        SqliteStore(tmp_path / "file" / "ledger.db")
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.geteuid() != 0:  # for whom nothing is closed
        with pytest.raises(LedgerRefused, match="cannot be opened"):
            SqliteStore(tmp_path / "closed" / "ledger.db")


def test_a_refused_file_can_be_replaced_and_opened_in_the_same_process(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"notes")
    refusal(path)
    path.unlink()
    assert Desk(path).list()


# --- Files that fail ------------------------------------------------------------------------------------------------


@contextmanager
def full_database(desk: Desk) -> Iterator[None]:
    """Let the database have no page more."""
    desk.store.execute("PRAGMA max_page_count = 1")
    yield
    desk.store.execute("PRAGMA max_page_count = 1000000")


@contextmanager
def full_disk(desk: Desk) -> Iterator[None]:
    """Let no file of this process grow beyond the size that the ledger's log has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = desk.store.path.with_name(f"{desk.store.path.name}-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 5000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(desk: Desk) -> Iterator[None]:
    desk.store.execute("PRAGMA query_only = ON")
    yield
    desk.store.execute("PRAGMA query_only = OFF")


@contextmanager
def locked(desk: Desk) -> Iterator[None]:
    """Let somebody else hold the file's lock for longer than anybody waits."""
    desk.store.execute("PRAGMA busy_timeout = 20")
    with closing(sqlite3.connect(desk.store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@pytest.mark.parametrize("trouble", [full_database, full_disk, read_only, locked])
def test_a_ledger_that_cannot_be_written_serves_what_is_committed_and_recovers(
    path: Path, trouble: Callable[[Desk], AbstractContextManager[None]]
) -> None:
    desk = Desk(path)
    desk.list(desk.task("a", "running", 1.0))
    tasks = [desk.task(f"task {number}", "done", 1.0) for number in range(400)]
    with trouble(desk):
        for _ in range(3):
            with pytest.raises(LedgerUnavailable):
                desk.list(*tasks)
            assert desk.counts("submitted", "finished", "credits_used") == (1, 0, 1)
    assert desk.list(*tasks)
    assert desk.counts("submitted", "finished", "credits_used") == (401, 400, 401)
    desk.restart()
    assert desk.counts("submitted", "finished", "credits_used") == (401, 400, 401)


def test_a_link_to_a_ledger_is_that_ledger(path: Path) -> None:
    with closing(SqliteStore(path)):
        link = path.with_name("link.db")
        link.symlink_to(path)
        with pytest.raises(LedgerRefused, match="in use by another exporter"):
            SqliteStore(link)


def test_a_ledger_that_was_written_behind_our_back_is_read_anew_before_anything_is_counted(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a"))
    with closing(sqlite3.connect(path)) as somebody:
        somebody.execute("UPDATE book SET generation = generation + 1")
        book = read_book(somebody, *WORKSPACE)
        assert book
        days = somebody.execute("SELECT day, model, total, value FROM day").fetchall()
        seal = book_checksum(WORKSPACE, book, ((DayKey(*key), value) for *key, value in days))
        somebody.execute("UPDATE book SET seal = ?", (seal,))
        somebody.commit()
    assert desk.list(desk.task("a"), desk.task("b")) is False
    assert desk.count("submitted") == 1
    assert desk.list(desk.task("a"), desk.task("b"))
    assert desk.count("submitted") == 2


def test_no_answer_waits_while_the_ledger_is_busy(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a"))
    with closing(sqlite3.connect(path, isolation_level=None)) as somebody:
        somebody.execute("BEGIN IMMEDIATE")
        transaction = desk.ledger.begin(*WORKSPACE)
        transaction.add([desk.task("b")])
        committing = threading.Thread(target=transaction.commit, args=(desk.now,))
        committing.start()
        assert desk.count("submitted") == 1
        assert committing.is_alive()  # so the answer came first
        somebody.execute("ROLLBACK")
    committing.join()
    assert desk.count("submitted") == 2


def test_a_settle_time_longer_than_history_has_dates_is_borne() -> None:
    desk = Desk(settle_after=100 * 366 * 24 * 3600.0)
    assert desk.list(desk.task("a"))
    assert desk.list(desk.task("a"), desk.task("b"))
    assert desk.count("submitted") == 2


def test_nobody_waits_for_a_lock_for_longer_than_5_seconds(path: Path) -> None:
    assert Desk(path).store.execute("PRAGMA busy_timeout") == [(5000,)]


@pytest.mark.parametrize("replaced_by", [None, b""])
def test_a_ledger_whose_file_was_deleted_or_replaced_is_not_written(path: Path, replaced_by: bytes | None) -> None:
    desk = Desk(path)
    desk.list(desk.task("a", "done", 1.0))
    path.unlink()
    if replaced_by is not None:
        path.write_bytes(replaced_by)
    with pytest.raises(LedgerUnavailable, match="deleted or replaced"):
        desk.list(desk.task("b", "done", 1.0))
    assert desk.counts("submitted", "finished") == (1, 1)


def test_a_commit_that_succeeds_and_says_that_it_failed_is_not_repeated(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a"))
    other = desk.ledger.begin(*WORKSPACE)
    other.add([desk.task("b", "done", 2.0)])
    desk.store.fail(0, "after")
    with pytest.raises(LedgerUnavailable):
        desk.list(desk.task("b", "done", 2.0))
    desk.store.heal()
    assert other.commit(desk.now) is False
    desk.list(desk.task("b", "done", 2.0))
    assert desk.counts("submitted", "finished", "credits_used") == (2, 1, 2)


def test_what_was_read_before_a_failed_commit_can_still_be_committed(desk: Desk) -> None:
    other = desk.ledger.begin(*WORKSPACE)
    other.add([desk.task("b", "done", 2.0)])
    desk.store.fail(3, "before")
    with pytest.raises(LedgerUnavailable):
        desk.list(desk.task("c", "done", 2.0))
    desk.store.heal()
    assert other.commit(desk.now) is True
    assert desk.counts("submitted", "finished", "credits_used") == (2, 1, 2)


def test_a_closed_ledger_says_so(path: Path) -> None:
    desk = Desk(path)
    transaction = desk.ledger.begin(*WORKSPACE)
    desk.ledger.close()
    with pytest.raises(LedgerUnavailable):
        transaction.commit(desk.now)


def test_a_new_ledger_is_private(path: Path) -> None:
    desk = Desk(path)
    assert desk.list()
    modes = {part.stat().st_mode & 0o077 for part in (path.parent, *path.parent.iterdir())}
    assert modes == {0}


DIE = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from test_ledger import NOON, Desk
desk = Desk(Path(sys.argv[1]))
statements = 0
def watch(sql, now):
    global statements
    statements += now == "before"
    if statements == int(sys.argv[2]):
        os._exit(9)
desk.now = NOON + 60
desk.store.tap.watcher = watch
desk.list(desk.task("a", "done", 2.0), desk.task("b", "failed", 3.0, model="pro"))
os._exit(0)
"""


def test_a_process_that_dies_at_any_statement_loses_nothing_and_repeats_nothing(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a", "running", 1.0))
    desk.ledger.close()
    ends = []
    for number in (1, 2, 3, 5, 20, 40, 1000):
        command = [sys.executable, "-c", DIE, str(path), str(number), *sys.path]
        ends.append(subprocess.run(command, check=False).returncode)
        desk.open(path)
        counted = desk.counts("submitted", "finished", "credits_used")
        assert counted == ((1, 0, 1) if ends[-1] else (1, 1, 2))
        desk.ledger.close()
    assert ends == [9] * 6 + [0]
