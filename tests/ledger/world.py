"""Histories of an account, and a world that plays them to a ledger and compares it with the truth after each step."""

import json
import secrets
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from math import inf
from pathlib import Path
from typing import Any, Literal

import psycopg
from desk import DAY, HOUR, NOON, WORKSPACE, Killed, WatchedPostgresql, WatchedSqlite, When, moment, rules
from hypothesis import strategies as st
from oracle import Name, Recorded, Shown, Truth
from psycopg import sql

from creatify_exporter.creatify.chunk_cache import ChunkCache
from creatify_exporter.creatify.decoder import Decoder
from creatify_exporter.creatify.task import Task
from creatify_exporter.errors import FetchError, LedgerUnavailable
from creatify_exporter.ledger.ledger import Counters, Ledger
from creatify_exporter.ledger.state import Rules
from creatify_exporter.ledger.transaction import Transaction
from creatify_exporter.lists import TEXT_GENERATOR
from creatify_exporter.target import read_list

RANK = {"pending": 1, "running": 2, "done": 3, "failed": 4}  # an undocumented status is unknown, and ranks 0
TASKS = 12
REASONS = (("timeout", "quota"), ("timeout",), ("quota", "refused"))
SETTLE_AFTER = 2 * HOUR
REPLICAS = 3
LIST = TEXT_GENERATOR._replace(has_previews=True)
# Long enough to recognise an entry by its first bytes, and for a chunk of two entries.
ENTRY, BATCH = 300, 500
LONGEST = 20


# --- Histories ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A task between two of its changes."""

    status: str
    credits_used: float | None


@dataclass(frozen=True)
class Life:
    """The true course of a task: its `age` when a list could first show it (None: no date), then its stages."""

    age: float | None
    model: str | None
    reason: str | None
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Entry:
    """An entry of a list: a task as it was `lag` stages ago, perhaps without its status, credits or date."""

    task: int
    lag: int
    status: Literal["told", "undocumented", "absent"]
    tells_credits: bool
    tells_date: bool


@dataclass(frozen=True)
class Step:
    """Time passes, some tasks proceed, the configuration may change, and a list arrives, with its fate.

    A list that `goes_on` has the entries of the previous one after its own. Unless it has copies, only the first entry
    of each task stays. `number` selects the replica that receives it.
    "failed over": the database loses the last lists, `lost` of them, `when` (before or after) this list is fetched.
    """

    wait: float
    clock_off: float
    changes: tuple[int, ...]
    entries: tuple[Entry, ...]
    goes_on: bool
    has_copies: bool
    number: int
    fate: Literal[
        "recorded", "given up", "overtaken", "failed", "killed", "restarted", "evicted", "no list", "failed over"
    ]
    reasons: tuple[str, ...]
    rules_change: Literal["never", "before", "meanwhile"]
    statement: int
    when: When
    torn: float
    hiccup: int
    rival: tuple[Entry, ...]
    lost: int


@dataclass(frozen=True)
class History:
    """`silent` is what no task reports; tasks of the list `api` may be `rejected`, or not."""

    silent: Literal["nothing", "dates", "credits"]
    api: Literal["text_generator", "aurora"]
    lives: tuple[Life, ...]
    steps: tuple[Step, ...]
    settings: dict[str, Any] = field(hash=False)

    @property
    def own_reasons(self) -> tuple[str, ...]:
        """Failure texts that are used as reasons, unchanged."""
        return ("rejected",) if self.api == "aurora" else ()


PATHS = ["pr", "prd", "prdd", "prf", "pd", "pf", "d", "f", "df", "prdf", "prff", "rd", "prdff"]
# Previews that appear and disappear, and tasks that start again after they were done.
PATHS += ["v", "pv", "vp", "pvrd", "pvpf", "vrdv", "prdr", "prdrd", "prdrf"]
STATUS = {"p": "pending", "v": "preview", "r": "running", "d": "done", "f": "failed"}
TIMES = [0.0, 0.25, 15.0, 15.0, 15.0, 60.0, 120.0, 899.0, 900.0, 900.25, HOUR, SETTLE_AFTER - 0.25, SETTLE_AFTER]
# SETTLE_AFTER + 15: the task was created exactly at the watermark of a list 15 s ago.
AGES = [
    0.0,
    5.0,
    5.0,
    *TIMES,
    SETTLE_AFTER + 1,
    SETTLE_AFTER + 15,
    2 * SETTLE_AFTER,
    100 * 365 * DAY,
    -15.0,
    -3 * DAY,
    -365 * DAY,
    None,
]


def histories(*, on_disk: bool, shared: bool = False) -> st.SearchStrategy[History]:
    credit = st.none() | st.integers(0, 12).map(lambda halves: halves / 2)
    # Made once, because making them for each life would take half of the time of a draw.
    stages = {path: st.tuples(*(st.builds(Stage, st.just(STATUS[each]), credit) for each in path)) for path in PATHS}
    life = st.builds(
        Life,
        age=st.sampled_from(AGES),
        model=st.sampled_from(["flash", "pro", "lite", "flash", "other", "", None, "always", "rare"]),
        reason=st.sampled_from(["timeout", "quota", "refused", "rejected", "?", None]),
        stages=st.sampled_from(PATHS).flatmap(stages.__getitem__),
    )
    task = st.integers(0, TASKS - 1)
    entry = st.builds(
        Entry,
        task=task,
        lag=st.sampled_from([0, 0, 0, 0, 1, 2]),
        status=st.sampled_from(["told"] * 8 + ["undocumented", "absent"]),
        tells_credits=st.sampled_from([True] * 5 + [False]),
        tells_date=st.sampled_from([True] * 5 + [False]),
    )
    entries = st.lists(entry, max_size=10).map(tuple)
    fates = ["recorded"] * 6 + ["given up", "overtaken", "failed", "evicted", "no list"]
    fates += ["killed", "killed", "restarted", "restarted"] if on_disk else []
    fates += ["failed over"] * 3 if shared else []
    eventful = {
        "changes": st.lists(task, max_size=8).map(tuple),
        "entries": entries,
        "goes_on": st.sampled_from([True, True, False]),
        "has_copies": st.sampled_from([False, False, True]),
    }
    # Most of its list is known from the previous one.
    calm = {
        "changes": st.just(()),
        "entries": st.lists(entry, max_size=1).map(tuple),
        "goes_on": st.just(True),
        "has_copies": st.just(False),
    }
    step_of = partial(
        st.builds,
        Step,
        wait=st.sampled_from([*TIMES, SETTLE_AFTER + 1, 3 * DAY, -15.0, -HOUR, -3 * SETTLE_AFTER]),
        clock_off=st.sampled_from([0.0, 0.0, 0.0, 0.0, 90.0, -90.0, DAY, -DAY]),
        number=st.integers(1, 5),
        fate=st.sampled_from(fates),
        reasons=st.sampled_from(REASONS),
        rules_change=st.sampled_from(["never", "never", "never", "before", "meanwhile"]),
        statement=st.just(0) | st.integers(1, 8) | st.integers(1, 80),
        when=st.sampled_from(["before", "after"]),
        torn=st.sampled_from([0.0, 0.3, 0.7, 0.99, 1.0]),
        hiccup=st.sampled_from([0, 0, 0, 1, 2, 5]),
        rival=entries,
        lost=st.sampled_from([1, 1, 2, 3]),
    )
    step = step_of(**eventful)
    steps = st.lists(step, min_size=1, max_size=12) | st.lists(
        step | step_of(**calm) | step_of(**calm), min_size=1, max_size=12
    )
    return st.builds(
        History,
        silent=st.sampled_from(["nothing", "nothing", "dates", "credits"]),
        api=st.sampled_from(["text_generator", "aurora"]),
        lives=st.lists(life, min_size=TASKS, max_size=TASKS).map(tuple),
        steps=steps.map(tuple),
        settings=st.fixed_dictionaries(
            {
                "history": st.sampled_from(["count", "count", "skip"]),
                "max_models": st.sampled_from([100, 3, 1]),
                "models": st.sampled_from([frozenset(), frozenset({"always"})]),
                "settle_after": st.just(SETTLE_AFTER),
                "new_series_hold": st.sampled_from([120.0, 120.0, 0.0]),
            }
        ),
    )


# --- Playing them ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fetch:
    """A list on its way into a ledger; `last` is the last list recorded before it, `rules` are those of that time."""

    ledger: Ledger
    transaction: Transaction
    cache: ChunkCache
    tasks: list[Task]
    last: Recorded | None
    rules: Rules

    def tell(self) -> None:
        """Add the list to the transaction as in a fetch: from its bytes, skipping the known chunks."""
        body = json.dumps([_entry(task) for task in self.tasks], separators=(",", ":")).encode()
        read_list(Decoder(2**20, self.cache, LIST).batches(BytesIO(body)), self.transaction, self.cache)


class World:
    """Plays a history to a ledger in memory or in a file."""

    store: WatchedSqlite | WatchedPostgresql

    def __init__(self, history: History, folder: Path | None) -> None:
        self.history, self.folder = history, folder
        self.name = (WORKSPACE[0], history.api)
        self.now = self.clock = NOON
        self.copies = 0
        self.entries: tuple[Entry, ...] = ()
        self.caches: defaultdict[Ledger, ChunkCache] = defaultdict(partial(ChunkCache, BATCH))
        self.stages = dict.fromkeys(range(TASKS), 0)
        self.born: dict[int, float | None] = {}
        self.rules = rules(*REASONS[0], **history.settings)
        self.told_rules = rules(*REASONS[0], *history.own_reasons, **history.settings)
        self.lists: list[Recorded] = []
        self.truth = Truth(self.lists)
        self.held: dict[Name, float | None] = {}
        self.served: dict[Name, float] = {}
        self.open(folder / "0" / "ledger.db" if folder else None)

    def open(self, path: Path | None) -> None:
        self.store = WatchedSqlite(path)
        self.opened_at = self.clock
        self.ledger = Ledger(self.store, self.rules, lambda: self.clock)

    def restart(self) -> None:
        assert isinstance(self.store, WatchedSqlite)
        self.ledger.close()
        self.open(self.store.path)

    def play(self) -> None:
        for step in self.history.steps:
            self.now += step.wait
            self.clock = self.now + step.clock_off
            for task in step.changes:
                self.stages[task] = min(self.stages[task] + 1, len(self.history.lives[task].stages) - 1)
            self.take(step)
            self.compare(step.hiccup)
        self.ledger.close()

    def rival(self) -> Ledger:
        """Return the ledger that records another list in the meantime."""
        return self.ledger

    def configure(self, step: Step) -> None:
        self.ledger.rules = self.rules = rules(*step.reasons, **self.history.settings)
        self.told_rules = rules(*step.reasons, *self.history.own_reasons, **self.history.settings)

    def take(self, step: Step) -> None:
        if step.rules_change == "before":
            self.configure(step)
        if step.fate == "no list":
            return
        if step.fate == "restarted":
            self.restart()
        self.entries = (step.entries + (self.entries if step.goes_on else ()))[:LONGEST]
        if not step.has_copies:
            self.entries = tuple({entry.task: entry for entry in reversed(self.entries)}.values())[::-1]
        fetch = self.begin(self.ledger, self.entries)
        rival = self.begin(self.rival(), step.rival) if step.fate == "overtaken" else None
        fetch.tell()
        if step.rules_change == "meanwhile":
            self.configure(step)
        if rival:
            rival.tell()
            self.fail_at(step, rival)
        self.end(step, fetch)
        fetch.transaction.close()

    def end(self, step: Step, fetch: Fetch) -> None:
        match step.fate:
            case "failed":
                self.fail_at(step, fetch)
            case "killed":
                self.kill_at(step, fetch)
            case "given up":
                pass
            case "evicted":
                self.ledger.evict(*self.name)
                self.commit(fetch)
            case _:
                self.commit(fetch)

    def begin(self, ledger: Ledger, entries: Iterable[Entry]) -> Fetch:
        transaction = ledger.begin(*self.name)
        self.caches[ledger] = cache = self.caches[ledger].successor(transaction.holds)
        return Fetch(ledger, transaction, cache, self.listed(entries), self.last(), self.told_rules)

    def last(self) -> Recorded | None:
        return self.lists[-1] if self.lists else None

    def commit(self, fetch: Fetch) -> None:
        """Commit, and check that the list is recorded, unless a newer one has been or it must not be trusted."""
        overtaken = fetch.last is not self.last()
        # After a list with dates, a list without any must not be trusted.
        dated = any(each.has_dates for each in self.lists)
        dateless = bool(fetch.tasks) and not any(task.created_at for task in fetch.tasks)
        try:
            recorded = fetch.ledger.commit(fetch.transaction, self.now)
        except FetchError:
            assert dated
            assert dateless
        else:
            assert overtaken or not (dated and dateless)
            assert recorded is not overtaken
            if recorded:
                self.record(fetch)

    def record(self, fetch: Fetch) -> None:
        best: dict[str, Shown] = {}
        for task in fetch.tasks:
            shown = _shown(task, fetch.rules)
            if task.id and (task.id not in best or _weight(shown) > _weight(best[task.id])):
                best[task.id] = shown
        has_dates = any(task.created_at for task in fetch.tasks)
        self.lists.append(Recorded(self.now, self.clock, fetch.rules, best, has_dates))
        self.truth = Truth(self.lists)

    def fail_at(self, step: Step, fetch: Fetch) -> None:
        """Commit while one statement fails; if that is the commit and it only seems to fail, the list counts."""
        self.store.fail(step.statement, step.when)
        try:
            self.commit(fetch)
        except LedgerUnavailable:
            assert self.store.tripped
            if self.store.tap.committed:
                self.record(fetch)
        finally:
            self.store.heal()

    def kill_at(self, step: Step, fetch: Fetch) -> None:
        """Kill the process while it commits, and continue with the files that it has left."""
        assert self.folder
        assert isinstance(self.store, WatchedSqlite)
        self.copies += 1
        copy = self.folder / str(self.copies)
        before = len(self.lists)
        self.store.kill(step.statement, step.torn, copy)
        try:
            self.commit(fetch)
        except Killed:
            self.store.heal()
        else:
            self.store.heal()
            self.store.leave(copy)
        committing = self.store.tap.committed
        self.ledger.close()
        self.open(copy / self.store.path.name)
        self.recovered(fetch, before, may_be_there=committing)

    def recovered(self, fetch: Fetch, before: int, *, may_be_there: bool) -> None:
        """Check that the store holds all or nothing of a list whose commit was interrupted."""
        if len(self.lists) == before and self.version() > before:
            assert may_be_there
            self.record(fetch)

    def version(self) -> int:
        with self.store.reading() as sql:
            found = list(sql.execute("SELECT generation FROM book WHERE workspace = ?", self.name[:1]))
        return int(found[0][0]) if found else 0

    def listed(self, entries: Iterable[Entry]) -> list[Task]:
        """Return a list of tasks, without the tasks about which the ledger promises nothing."""
        return [task for task in map(self.task, entries) if task]

    def task(self, entry: Entry) -> Task | None:
        life = self.history.lives[entry.task]
        undated = life.age is None or self.history.silent == "dates"
        created_at = self.born.setdefault(entry.task, None if undated else self.now - (life.age or 0.0))
        identity = f"task {entry.task}"
        stage = life.stages[max(0, self.stages[entry.task] - entry.lag)]
        story = self.truth.stories.get(identity)
        if story and not story.tracked() and (created_at is None or created_at >= self.truth.watermarks[-1]):
            return None  # nothing distinguishes it from a new one
        # The same holds for an undated entry of a task that has settled, or was settled before it was seen.
        settled = not story.tracked() if story else self.is_old(created_at)
        tells_date = entry.tells_date or settled
        return Task(
            id=identity if entry.task else "",
            model_name=life.model,
            status={"told": stage.status, "undocumented": "queued", "absent": None}[entry.status],
            failed_reason=life.reason,
            credits_used=stage.credits_used if entry.tells_credits and self.history.silent != "credits" else None,
            created_at=moment(created_at) if created_at is not None and tells_date else None,
        )

    def is_old(self, created_at: float | None) -> bool:
        return bool(self.lists) and created_at is not None and created_at < self.truth.watermarks[-1]

    # --- Comparing ----------------------------------------------------------------------------------------------

    def counters(self, hiccup: int) -> tuple[Counters, dict[Name, float]]:
        """Return what the ledger serves and what it should serve; in a hiccup it cannot store that a hold is over."""
        if hiccup:
            self.store.fail(hiccup, "before")
        counters = self.ledger.counters(*self.name)
        hold = inf if hiccup and self.store.tripped else self.rules.new_series_hold
        self.store.heal()
        return counters, self.expected(hold)

    def expected(self, hold: float) -> dict[Name, float]:
        """Return every series as it must be served; a hold begins with the birth, and again with a later start."""
        for name, number in self.truth.births().items():
            self.held.setdefault(name, self.lists[number].clock if number else None)
        for name, born_at in self.held.items():
            if born_at is not None and abs(self.clock - max(born_at, self.opened_at)) >= hold:
                self.held[name] = None
        totals = self.truth.totals()
        return {name: totals.get(name, 0.0) if born_at is None else 0.0 for name, born_at in self.held.items()}

    def compare(self, hiccup: int) -> None:
        self.ledger.begin(*self.name).close()  # reads the book again if it may be stale
        counters, expected = self.counters(hiccup)
        served: dict[Name, float] = {(key.model, key.total, key.label): value for key, value in counters.values.items()}
        assert served == expected
        assert all(served[name] >= value for name, value in self.served.items())
        self.served = served
        assert counters.tracked == self.truth.tracked()
        assert counters.models == self.truth.models
        assert counters.failure_runs == self.truth.failure_runs()
        assert counters.progress.watermark == (self.truth.watermarks[-1] if self.lists else None)
        totals = self.truth.totals()
        for model in counters.models:
            used, refunded = (totals.get((model, f"credits_{each}", ""), 0.0) for each in ("used", "refunded"))
            assert used - refunded == self.truth.net_credits(model)
        self.compare_rows()
        self.compare_days()

    def compare_rows(self) -> None:
        """Check that the last known state of each task that may still change is stored."""
        stored = [book.rows for book in self.store.books() if book.workspace == self.name[0]]
        rows = {name: (row.status, row.credits_used) for rows in stored for name, row in rows.items()}
        tracked = [story for story in self.truth.stories.values() if story.tracked()]
        assert rows == {story.name: story.state(len(self.lists) - 1) for story in tracked}

    def compare_days(self) -> None:
        booked = {
            (d.day, d.model, d.total): d.value for d in self.store.days(-99_999, 99_999) if d.workspace == self.name[0]
        }
        assert booked == self.truth.days()


# Each table with the column of the book's number; `book` is last, because the rows of the others are found by it.
TABLES = {"task": "book", "series": "book", "day": "book", "journal": "book", "book": "number"}


def _rows(action: str, table: str) -> sql.Composed:
    """Return a statement that reads or deletes the rows of a workspace."""
    books = "SELECT number FROM creatify_exporter.book WHERE workspace = %s"
    return sql.SQL(f"{{}} FROM creatify_exporter.{{}} WHERE {{}} IN ({books})").format(
        sql.SQL(action), sql.Identifier(table), sql.Identifier(TABLES[table])
    )


@dataclass(frozen=True)
class Standby:
    """The state of a standby after a list: the rows of each table, and which series were held."""

    tables: dict[str, list[tuple[Any, ...]]]
    held: dict[Name, float | None]


class SharedWorld(World):
    """Plays a history to exporters that share a database: each step to one of them; after it, all are compared."""

    def __init__(self, history: History, url: str) -> None:
        self.url = url
        # After no list, after one list, and so on.
        self.standbys = [Standby({}, {})]
        self.replicas: list[tuple[WatchedPostgresql, Ledger, float]] = []
        super().__init__(history, None)
        self.name = (secrets.token_hex(8), history.api)

    def open(self, path: object) -> None:  # noqa: ARG002 - there is only one database
        self.replicas = [self.replica() for _ in range(REPLICAS)]
        self.use(0)

    def replica(self) -> tuple[WatchedPostgresql, Ledger, float]:
        store = WatchedPostgresql(self.url)
        return store, Ledger(store, self.rules, lambda: self.clock), self.clock

    def use(self, number: int) -> None:
        self.number = number % REPLICAS
        self.store, self.ledger, self.opened_at = self.replicas[self.number]

    def restart(self) -> None:
        self.ledger.close()
        self.replicas[self.number] = self.replica()
        self.use(self.number)

    def rival(self) -> Ledger:
        return self.replicas[(self.number + 1) % REPLICAS][1]

    def configure(self, step: Step) -> None:
        super().configure(step)
        for _, ledger, _ in self.replicas:
            ledger.rules = self.rules

    def take(self, step: Step) -> None:
        self.use(step.number)
        if step.fate == "failed over" and step.when == "before":
            self.fail_over(step.lost)
        super().take(step)

    def end(self, step: Step, fetch: Fetch) -> None:
        if step.fate == "failed over" and step.when == "after":
            self.fail_over(step.lost)
            rival = self.begin(self.rival(), step.rival)
            rival.tell()
            self.commit(rival)
        super().end(step, fetch)

    def record(self, fetch: Fetch) -> None:
        super().record(fetch)
        with psycopg.connect(self.url) as database:
            tables = {table: database.execute(_rows("SELECT *", table), self.name[:1]).fetchall() for table in TABLES}
        self.standbys.append(Standby(tables, dict(self.held)))

    def fail_over(self, lost: int) -> None:
        """Lose the last lists; time passes, so that no list has the time of a lost one."""
        self.now, self.clock = self.now + 1, self.clock + 1
        left = max(0, len(self.lists) - lost)
        del self.lists[left:], self.standbys[left + 1 :]
        self.truth = Truth(self.lists)
        self.held, self.served = dict(self.standbys[left].held), {}
        with psycopg.connect(self.url) as database, database.cursor() as cursor:
            for table in TABLES:
                cursor.execute(_rows("DELETE", table), self.name[:1])
            for table, rows in self.standbys[left].tables.items():
                for row in rows:
                    values = sql.SQL(", ").join([sql.Placeholder()] * len(row))
                    insert = sql.SQL("INSERT INTO creatify_exporter.{} OVERRIDING SYSTEM VALUE VALUES ({})")
                    cursor.execute(insert.format(sql.Identifier(table), values), row)

    def kill_at(self, step: Step, fetch: Fetch) -> None:
        before = len(self.lists)
        self.store.fail(step.statement, step.when, Killed())
        with suppress(Killed):
            self.commit(fetch)
        committing = self.store.tap.committed
        self.restart()
        self.recovered(fetch, before, may_be_there=committing)

    def counters(self, hiccup: int) -> tuple[Counters, dict[Name, float]]:
        try:
            return super().counters(hiccup)
        except LedgerUnavailable:  # a replica that cannot read the changes by others serves nothing
            assert self.store.tripped
            self.store.heal()
            return super().counters(0)

    def compare(self, hiccup: int) -> None:
        for _ in range(REPLICAS):
            self.use(self.number + 1)
            super().compare(hiccup)

    def play(self) -> None:
        try:
            super().play()
        finally:
            for store, _, _ in self.replicas:
                store.close()


def _entry(task: Task) -> dict[str, Any]:
    """Return a task as the API lists it."""
    waits_for_a_person = task.status == "preview"
    return {
        "id": task.id,
        "model_name": task.model_name,
        "status": "pending" if waits_for_a_person else task.status,
        "failed_reason": task.failed_reason,
        "credits_used": task.credits_used,
        "created_at": task.created_at.isoformat() if task.created_at else None,
        "preview": "https://…" if waits_for_a_person else None,
        "text": "x" * (ENTRY - len(task.id)),
    }


def _shown(task: Task, rules: Rules) -> Shown:
    # To the ledger, a preview is pending: the task has not begun to run.
    status = "pending" if task.status == "preview" else task.status
    return Shown(
        status=status if status in RANK else "unknown",
        credits_used=task.credits_used,
        reason=rules.classify(task.failed_reason),
        model=task.model_name or "unknown",
        created_at=task.created_at.timestamp() if task.created_at else None,
    )


def _weight(shown: Shown) -> tuple[int, float]:
    return RANK.get(shown.status, 0), -1.0 if shown.credits_used is None else shown.credits_used
