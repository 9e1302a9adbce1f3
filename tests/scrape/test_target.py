"""A reader with a chunk cache compared with one that decodes every byte, over lists that change as real lists do."""

import json
from contextlib import closing
from itertools import count
from random import Random
from typing import Any

import msgspec
import pytest
from desk import DAY, WORKSPACE, Desk, moment
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoder import Pieces

from conftest import examples
from creatify_exporter.config.schema import Labels
from creatify_exporter.creatify.chunk_cache import ChunkCache
from creatify_exporter.creatify.decoder import Batch, Decoder
from creatify_exporter.creatify.task import Task
from creatify_exporter.errors import FetchError, LedgerUnavailable
from creatify_exporter.snapshot import Snapshot
from creatify_exporter.target import completed_at, read_list

BATCH = 2000  # bytes
Entry = dict[str, Any]


class Reader:
    """A ledger that reads lists from bytes; `decoded` is how many tasks of the last list were decoded."""

    def __init__(self, *, remembers: bool) -> None:
        self.desk, self.cache, self.decoded = Desk(), ChunkCache(BATCH), 0
        self._remembers = remembers

    def read(self, body: bytes, now: float, sizes: list[int], fate: str = "recorded") -> tuple[Snapshot, Any]:
        """Read a list to its `fate`; return its snapshot, the counters so far, and the tracked tasks."""
        self.desk.now, self.decoded = now, 0
        with closing(self.desk.ledger.begin(*WORKSPACE)) as transaction:
            cache = (self.cache if self._remembers else ChunkCache(BATCH)).successor(transaction.holds)
            batches = Decoder(2**20, cache).batches(Pieces(body, sizes))
            snapshot = read_list(map(self._noted, batches), transaction, cache)
            self.cache = cache
            if fate == "overtaken":
                self.desk.list(*(self._failed(number, has_dates=snapshot.has_dates) for number in range(3)))
            self.desk.ledger.commit(transaction, now)
        [book] = self.desk.store.books()
        return snapshot, (self.desk.ledger.counters(*WORKSPACE), book.rows)

    def _failed(self, number: int, *, has_dates: bool) -> Task:
        """Return a task as another exporter's list may show it: failed since, but created when it always was."""
        return self.desk.task(f"task-{number}", "failed", 9.0, at=created_at(number) if has_dates else None)

    def _noted(self, batch: Batch) -> Batch:
        self.decoded += len(batch.tasks)
        return batch


def created_at(number: int) -> float:
    """Return when a task of the first list was created."""
    return NOW - (number % 40) * DAY / 16


def entry(number: int, at: float | None, **fields: Any) -> Entry:
    task = Task(f"task-{number}", "flash", "done", None, 1.0, None if at is None else moment(at))
    return {**msgspec.to_builtins(task), "messages": ["},{ " * (number % 7)], **fields}


def body_of(entries: list[Entry], separators: tuple[str, str] = (",", ":")) -> bytes:
    return json.dumps(entries, separators=separators).encode()


NOW = 1_793_448_000.0
CHANGES = (
    "new",
    "appended",
    "gone from the end",
    "gone from within",
    "gone for a while",
    "back",
    "copied",
    "copied as it was",
    "copied and changed",
    "moved",
    "shuffled",
    "copied without a date",
    "date lost",
    "credits changed",
    "failed",
    "unreadable",
    "surrogate",
)
FIELDS: dict[str, Entry] = {
    "date lost": {"created_at": None},
    "credits changed": {"credits_used": 2.5},
    "failed": {"status": "failed", "failed_reason": "quota"},
    "unreadable": {"model_name": 7},
    "surrogate": {"model_name": "\ud800"},
}


def change(how: str, entries: list[Entry], new: Entry, gone: list[Entry], chance: Random) -> None:
    """Change a list as an API may between two fetches; `gone` are entries that may return."""
    place = chance.randrange(len(entries)) if entries else 0
    if how in FIELDS:
        entries[place : place + 1] = [{**each, **FIELDS[how]} for each in entries[place : place + 1]]
    elif how.startswith("gone"):
        leave(how, entries, place, gone, chance)
    elif how.startswith("copied"):
        copy(how, entries, place, gone, chance)
    else:
        match how:
            case "new":
                entries.insert(0, {**new, "status": chance.choice(["running", "done"])})
            case "appended":
                entries.append({**new, "created_at": new["created_at"] and "2026-10-01T00:00:00Z"})
            case "back":
                entries[place:place] = gone
                gone.clear()
            case "moved":
                entries[:] = entries[place:] + entries[:place]
            case "shuffled":
                chance.shuffle(entries)


def leave(how: str, entries: list[Entry], place: int, gone: list[Entry], chance: Random) -> None:
    match how:
        case "gone from the end":
            del entries[-chance.randrange(1, 9) :]
        case "gone from within":
            del entries[place : place + 5]
        case "gone for a while":
            gone += entries[place : place + 9]
            del entries[place : place + 9]


def copy(how: str, entries: list[Entry], place: int, gone: list[Entry], chance: Random) -> None:
    far, one = chance.randrange(len(entries) + 1), entries[place : place + 1]
    match how:
        case "copied":
            entries.extend(entries[place : place + 3])
        case "copied as it was":  # and it returns unchanged
            gone += entries[place : place + 3]
        case "copied and changed":
            entries[far:far] = [{**each, "status": "failed"} for each in one]
        case "copied without a date":
            entries.extend({**each, "created_at": None} for each in one)


def read(reader: Reader, body: bytes, now: float, sizes: list[int], fate: str) -> tuple[Snapshot, Any] | str:
    """Read a list, or return why it is not recorded."""
    match fate:
        case "evicted":
            reader.desk.ledger.evict(*WORKSPACE)
        case "failed":
            reader.desk.store.fail(0, "before")
        case "failed in appearance":
            reader.desk.store.fail(0, "after")
    try:
        return reader.read(body, now, sizes, fate)
    except (FetchError, LedgerUnavailable) as error:
        return str(error)
    finally:
        reader.desk.store.heal()


FATES = ["recorded"] * 6 + ["evicted", "failed", "failed in appearance", "overtaken"]
steps = st.tuples(
    st.lists(st.sampled_from(CHANGES), max_size=3),
    st.sampled_from([15.0, 15.0, 600.0, DAY / 2, 2 * DAY]),
    st.sampled_from(FATES),
)


@settings(max_examples=examples(80))
@given(
    tasks=st.integers(0, 120),
    undated=st.sampled_from(["none", "few", "most", "all"]),
    steps=st.lists(steps, min_size=2, max_size=8),
    form=st.tuples(
        st.sampled_from([[700], [64, 5000], [100_000]]), st.sampled_from([(",", ":"), (", ", ": "), (",\n", ":")])
    ),
    chance=st.randoms(use_true_random=False),
)
def test_what_is_remembered_counts_as_what_is_read(
    tasks: int,
    undated: str,
    steps: list[tuple[list[str], float, str]],
    form: tuple[list[int], tuple[str, str]],
    chance: Random,
) -> None:
    # Of 40 tasks, so many have no date.
    silent = {"none": 0, "few": 1, "most": 38, "all": 40}[undated]
    sizes, separators = form

    def new(number: int, at: float) -> Entry:
        return entry(number, None if 7 * number % 40 < silent else at)

    now, entries, gone = NOW, [new(number, created_at(number)) for number in range(tasks)], list[Entry]()
    one, other, numbers = Reader(remembers=True), Reader(remembers=False), count(tasks)
    with closing(one.desk.ledger), closing(other.desk.ledger):
        for changes, gap, fate in steps:
            for how in changes:
                change(how, entries, new(next(numbers), now), gone, chance)
            now += gap
            body = body_of(entries, separators)
            assert_alike(read(one, body, now, sizes, fate), read(other, body, now, sizes, fate), entries)


def assert_alike(one: tuple[Snapshot, Any] | str, other: tuple[Snapshot, Any] | str, entries: list[Entry]) -> None:
    """The counters are the same, and so are the snapshots if the list has each id once, or no dates.

    A copy of a task in a chunk of settled tasks is not recognised, because the ids there are not known.
    """
    if isinstance(one, str) or isinstance(other, str):
        assert one == other
        return
    assert one[1] == other[1]
    ids = {each["id"] for each in entries}
    if len(ids) == len(entries) or not any(each["created_at"] for each in entries):
        assert one[0] == other[0]
    assert tasks_in(other[0]) == len(ids) <= tasks_in(one[0]) <= len(entries)


def tasks_in(snapshot: Snapshot) -> int:
    return sum(cell.tasks for cell in snapshot.cells.values())


def settled(number: int) -> list[Entry]:
    return [entry(each, NOW - 9 * DAY) for each in range(number)]


def test_only_the_new_part_of_a_growing_list_is_decoded() -> None:
    reader, entries = Reader(remembers=True), settled(1000)
    for number in range(2):
        reader.read(body_of(entries), NOW + number, [512])
    assert reader.decoded == 1000  # at first nothing has settled
    for number in range(30):
        entries = [entry(1000 + number, NOW + number), *entries[:-1]]
        snapshot, _ = reader.read(body_of(entries), NOW + 2 + number, [512])
        assert snapshot.by_model(frozenset({"flash"}), Labels())["flash"]["done"].tasks == 1000
        assert reader.decoded < 150


def test_only_the_surroundings_of_a_changed_settled_task_are_decoded() -> None:
    reader, entries = Reader(remembers=True), settled(1000)
    for number in range(2):
        reader.read(body_of(entries), NOW + number, [512])
    for number in range(100, 900, 50):
        entries[number] = {**entries[number], "credits_used": 7.0}
        reader.read(body_of(entries), NOW + 2 + number, [512])
        assert 0 < reader.decoded < 100


def test_little_more_than_the_scattered_young_tasks_of_a_list_is_decoded() -> None:
    reader, chance = Reader(remembers=True), Random(1)  # noqa: S311 - an order
    most = 0
    for day in range(15):
        young = set(chance.sample(range(1000), 50))
        now = NOW + day * 2 * DAY
        entries = [entry(number, NOW - 3 * DAY, status=("done", "running")[number in young]) for number in range(1000)]
        body = body_of(entries)
        for scrape in range(6):
            reader.read(body, now + scrape, [512])
        assert reader.decoded < 200
        most = max(most, len(reader.cache))
    assert most < 1000 / 4


def test_chunks_do_not_fall_to_pieces_as_tasks_settle_one_by_one() -> None:
    reader, entries = Reader(remembers=True), settled(500)
    for hour in range(100):
        now = NOW + hour * 3600
        entries = [entry(500 + hour, now), *entries]
        body = body_of(entries)
        reader.read(body, now, [512])
    assert len(reader.cache) < len(body) / (BATCH / 2)
    assert reader.decoded < 100


def test_a_settled_task_that_returns_without_its_date_is_tracked_with_its_dated_copy() -> None:
    entries = settled(1000)
    copied = [*entries, {**entries[500], "created_at": None}]
    one, other = Reader(remembers=True), Reader(remembers=False)
    with closing(one.desk.ledger), closing(other.desk.ledger):
        for number, listed in enumerate([entries, entries, copied, entries, entries, entries, copied]):
            body, now = body_of(listed), NOW + number * 2 * DAY
            assert_alike(one.read(body, now, [512]), other.read(body, now, [512]), listed)


def test_finished_tasks_are_decoded_once_more_when_they_settle() -> None:
    reader, entries = Reader(remembers=True), [entry(number, NOW - number * 300) for number in range(1000)]
    decoded = []
    for scrape in range(250):
        reader.read(body_of(entries), NOW + scrape * 600, [512])
        decoded.append(reader.decoded)
    # The tasks of the first list settle together, a day later.
    assert sorted(decoded[2:])[-2] < 60
    assert reader.desk.tracked() == 0


def test_the_credits_of_a_known_task_are_compared_if_another_exporter_has_seen_others() -> None:
    reader, body = Reader(remembers=True), body_of([entry(number, NOW - number) for number in range(1000)])
    for scrape in range(3):
        reader.read(body, NOW + scrape, [512])
    reader.desk.list(reader.desk.task("task-500", "done", 5.0, at=NOW - 500), after=0.0)
    reader.read(body, NOW + 4, [512])
    assert reader.desk.counts("credits_used", "credits_refunded") == (1004, 4)


def undated(number: int) -> list[Entry]:
    return [entry(each, None) for each in range(number)]


def test_tasks_without_a_date_are_decoded_only_while_new_and_stay_tracked() -> None:
    reader, entries = Reader(remembers=True), undated(1000)
    for scrape in range(40):
        entries = [entry(1000 + scrape, None), *entries]
        snapshot, (counters, _) = reader.read(body_of(entries), NOW + scrape * DAY / 2, [512])
        assert tasks_in(snapshot) == counters.tracked == 1001 + scrape
        assert reader.decoded < 150 or scrape < 2


def test_a_task_without_a_date_that_leaves_a_known_chunk_is_dropped_after_its_absence() -> None:
    reader, entries = Reader(remembers=True), undated(1000)
    tracked = []
    for scrape in range(8):
        _, (counters, _) = reader.read(body_of(entries), NOW + scrape * DAY / 2, [512])
        tracked.append(counters.tracked)
        if scrape == 3:
            del entries[500]
    assert tracked == [1000] * 6 + [999] * 2
    assert reader.decoded < 150


def test_a_copy_of_a_task_in_a_known_chunk_counts_once_before_or_after_it() -> None:
    for place in (0, 1000):
        reader, entries = Reader(remembers=True), undated(1000)
        for scrape in range(3):
            reader.read(body_of(entries), NOW + scrape, [512])
        assert reader.decoded < 150
        entries.insert(place, {**entries[500], "status": "failed"})
        snapshot, (counters, _) = reader.read(body_of(entries), NOW + 3, [512])
        assert tasks_in(snapshot) == counters.tracked == 1000


def test_after_a_commit_that_failed_chunks_of_tasks_without_a_date_are_still_known() -> None:
    reader, body = Reader(remembers=True), body_of(undated(1000))
    for scrape in range(4):
        read(reader, body, NOW + scrape, [512], "failed" if scrape == 2 else "recorded")
    assert reader.decoded < 150


def test_a_list_with_copies_is_decoded_whole_until_it_has_none() -> None:
    reader, entries = Reader(remembers=True), settled(1000)
    for number in range(4):
        snapshot, _ = reader.read(body_of([*entries, entries[500]]), NOW + number, [512])
        assert (tasks_in(snapshot), reader.decoded) == (1000, 1001)
    reader.read(body_of(entries), NOW + 4, [512])
    reader.read(body_of(entries), NOW + 5, [512])
    assert reader.decoded < 100


def test_known_chunks_have_the_creation_times_of_their_tasks() -> None:
    entries = settled(1000)
    reader = Reader(remembers=True)
    for number in range(3):
        reader.read(body_of(entries), NOW + number, [512])
    decoded = reader.decoded
    undated = [{**each, "created_at": None} for each in entries[-decoded:]]
    reader.read(body_of([*entries[:-decoded], *undated]), NOW + 3, [512])  # a list without any date would be refused
    assert reader.decoded == decoded


def test_a_list_in_a_new_order_each_time_costs_only_its_decoding() -> None:
    reader, entries, chance = Reader(remembers=True), settled(1000), Random(1)  # noqa: S311 - an order
    for number in range(4):
        chance.shuffle(entries)
        reader.read(body_of(entries), NOW + number, [512])
        assert reader.decoded == 1000


def test_a_broken_list_does_not_discard_known_chunks() -> None:
    reader, body = Reader(remembers=True), body_of(settled(1000))
    for number in range(2):
        reader.read(body, NOW + number, [512])
    with pytest.raises(FetchError):
        reader.read(body[:-200], NOW + 2, [512])
    reader.read(body, NOW + 3, [512])
    assert reader.decoded < 100


def test_after_a_failed_commit_everything_is_decoded_again() -> None:
    reader, body = Reader(remembers=True), body_of(settled(1000))
    for number in range(2):
        reader.read(body, NOW + number, [512])
    reader.desk.store.fail(0, "before")
    with pytest.raises(LedgerUnavailable):
        reader.read(body, NOW + 2, [512])
    assert reader.decoded < 100
    reader.desk.store.heal()
    reader.read(body, NOW + 3, [512])
    assert reader.decoded == 1000


# --- When a list was complete ---------------------------------------------------------------------------------------

NONE = float("-inf")


@pytest.mark.parametrize(
    ("clock", "date", "newest_at", "now"),
    [
        pytest.param(NOW, None, NOW + DAY, NOW, id="no date"),
        pytest.param(NOW, NOW, NONE, NOW, id="no task"),
        pytest.param(NOW, NOW - 1, NOW - 60, NOW - 1, id="as usual"),
        pytest.param(NOW + DAY, NOW, NOW - 60, NOW, id="the clock is ahead"),
        pytest.param(NOW, NOW - DAY, NOW - 60, NOW - 60, id="the date is of an old answer"),
        pytest.param(NOW - DAY, NOW, NOW - 60, NOW - 60, id="the clock is behind, as the newest task proves"),
        pytest.param(NOW - DAY, NOW, NOW - 2 * DAY, NOW - DAY, id="the clock or the date is wrong"),
        pytest.param(NOW + DAY, NOW, NOW + 9 * DAY, NOW, id="the clock is ahead, and a task is of the future"),
        pytest.param(NOW - DAY, NOW, NOW + 9 * DAY, NOW - DAY, id="the clock is behind, and a task is of the future"),
    ],
)
def test_a_list_was_complete_at_the_earlier_time_unless_its_newest_task_is_younger(
    clock: float, date: float | None, newest_at: float, now: float
) -> None:
    assert completed_at(clock, date, newest_at) == now


def fetched(desk: Desk, clock: float, date: float, *tasks: Task) -> None:
    newest_at = max(task.created_at.timestamp() for task in tasks if task.created_at)
    now = completed_at(clock, date, newest_at)
    desk.list(*tasks, after=now - desk.now)


def test_a_task_in_the_future_does_not_let_a_clock_that_is_ahead_settle_present_tasks() -> None:
    desk = Desk(new_series_hold=0.0)
    tasks = [desk.task("odd", at=NOW + 70 * 365 * DAY)]
    for number in range(4):
        date = NOW + 15 * number
        tasks.append(desk.task(f"task {number}", "done", at=date))
        fetched(desk, date + 2 * DAY, date, *tasks)
    assert desk.count("submitted") == 5


def test_a_clock_that_is_behind_books_no_credits_on_a_day_before_the_newest_task() -> None:
    desk = Desk(new_series_hold=0.0)
    before = desk.task("before", "done", 1.0, at=NOW - 100)
    fetched(desk, NOW - 100, NOW - 100, before)
    fetched(desk, NOW - 40 * DAY, NOW, before, desk.task("new", "done", 50.0, at=NOW - 10))
    booked = {day.day: day.value for day in desk.store.days(0, 99_999) if day.total == "credits_used"}
    assert booked == {int(NOW // DAY): 51}
