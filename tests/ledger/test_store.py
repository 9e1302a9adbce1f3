"""Properties of a ledger in every store: the same stories on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

import msgspec
import pytest
from desk import DAY, HOUR, NOON, STORES, TODAY, WORKSPACE, Desk, Killed, When, new_desk

from creatify_exporter.creatify.task import Task
from creatify_exporter.errors import LedgerUnavailable
from creatify_exporter.ledger.staging import Observation, StagingTable
from creatify_exporter.ledger.state import Changes, SeriesKey

ODD_ID = "ключ \N{KEY} \\ ' %s ?"
ODD_MODEL = "模型 % ? %s \\"


@pytest.fixture(params=STORES)
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    desk = new_desk(request, tmp_path)
    yield desk
    desk.ledger.close()


# --- What is stored -------------------------------------------------------------------------------------------------


def test_a_book_is_read_as_it_was_written(desk: Desk) -> None:
    oldest = msgspec.convert("0001-01-01T00:00:00+14:00", datetime)
    desk.list(Task("a", "flash", "running", None, 1.0, oldest), Task("b", "flash", "done", None, 2.0, oldest))
    desk.list(
        Task("a", "flash", "done", None, 1.0, oldest),
        desk.task(ODD_ID, "failed", 1 / 3, model=ODD_MODEL, reason="?"),
        desk.task("undated", None, at=None),
    )
    before = desk.ledger.counters(*WORKSPACE)
    books = list(desk.store.books())
    desk.restart()
    after = desk.ledger.counters(*WORKSPACE)
    assert (dict(after.values), *after[1:]) == (dict(before.values), *before[1:])
    assert list(desk.store.books()) == books
    assert (before.tracked, before.models) == (3, frozenset({"flash", ODD_MODEL}))


def test_all_rows_share_the_texts_of_models_and_statuses(desk: Desk) -> None:
    desk.list(*(desk.task(name, "running") for name in "abc"))
    rows = desk.ledger.store.load(*WORKSPACE).rows.values()
    assert len({id(row.model) for row in rows}) == len({id(row.status) for row in rows}) == 1
    with closing(StagingTable()) as staging:
        staging.add(Observation(name, "running", None, "flash", "", None) for name in "abc")
        observed = list(staging.oldest_first())
    assert len({id(each.model) for each in observed}) == len({id(each.status) for each in observed}) == 1


def test_an_absence_continues_through_a_restart(desk: Desk) -> None:
    desk.list(desk.task())
    desk.list()
    desk.restart()
    desk.list(after=DAY / 2)
    desk.restart()
    desk.list(after=DAY / 2 - 1)
    assert desk.count("vanished") == 0
    desk.list(after=1)
    assert desk.count("vanished") == 1


def test_an_evicted_book_is_read_again_even_by_a_fetch_in_progress(desk: Desk) -> None:
    desk.list(desk.task("first"))
    transaction = desk.ledger.begin(*WORKSPACE)
    transaction.add([desk.task("first", "done", 2.0), desk.task("b")])
    desk.ledger.evict(*WORKSPACE)
    assert desk.counts("submitted", "finished") == (1, 0)
    desk.ledger.evict(*WORKSPACE)
    assert desk.ledger.commit(transaction, desk.now)
    assert desk.counts("submitted", "finished", "credits_used") == (2, 1, 2)


def test_workspaces_do_not_touch_each_other(desk: Desk) -> None:
    desk.list(desk.task("a"))
    desk.list(desk.task("b", "done", 2.0, model="pro"))
    for tasks in ([desk.task("a", "done", 8.0)], [desk.task("c", "done", 4.0, model="pro")]):
        desk.now += 60
        transaction = desk.ledger.begin("other", "text_generator")
        transaction.add(tasks)
        assert desk.ledger.commit(transaction, desk.now)
    assert (desk.count("credits_used", model="pro"), desk.counts("submitted", "finished")) == (2, (1, 0))
    desk.restart()
    assert (desk.count("credits_used", model="pro"), desk.counts("submitted", "finished")) == (2, (1, 0))
    other = desk.ledger.counters("other", "text_generator").values
    assert (other[SeriesKey("flash", "credits_used")], other[SeriesKey("pro", "credits_used")]) == (8, 0)  # held
    desk.now += 120
    other = desk.ledger.counters("other", "text_generator").values
    assert (other[SeriesKey("flash", "credits_used")], other[SeriesKey("pro", "credits_used")]) == (8, 4)


def test_the_first_list_is_booked_under_the_days_on_which_its_tasks_were_created(desk: Desk) -> None:
    desk.list(desk.task("a", "done", 2.0, at=NOON - 3 * DAY), desk.task("b", at=NOON - DAY), desk.task("c", at=-DAY))
    desk.list(desk.task("b", "failed", 1.5, at=NOON - DAY), after=DAY)
    booked = [(day.day - TODAY, day.total, day.value) for day in desk.store.days(TODAY - 3, TODAY + 2)]
    assert booked == [
        (-3, "credits_used", 2.0),
        (-3, "finished", 1.0),
        (-3, "submitted", 1.0),
        (-1, "submitted", 1.0),
        (1, "credits_used", 1.5),
        (1, "failed", 1.0),
        (1, "failed:other", 1.0),
        (1, "failed_credits_used", 1.5),
        (1, "finished", 1.0),
    ]
    assert [day.day for day in desk.store.days(0, TODAY - 3)] == [0]  # no day is before 1970
    assert desk.store.days(TODAY, TODAY + 1) == []


def test_a_journal_entry_is_read_and_written_as_by_earlier_versions() -> None:
    entry = Path(__file__).with_name("files").joinpath("journal-entry.msgpack").read_bytes()
    changes = msgspec.msgpack.decode(entry, type=Changes)
    assert changes.progress
    assert (changes.progress.version, changes.progress.watermark) == (3, NOON + 30 - DAY)
    assert changes.rows["a"]
    assert changes.rows["a"].credits_used == 2.5
    # Earlier versions ignore new fields; the others must keep their names and shapes.
    new = {"failure_runs", "base", "revision"}
    fields = dict[str, msgspec.Raw]
    written = msgspec.msgpack.decode(msgspec.msgpack.encode(changes), type=fields)
    assert {name: bytes(raw) for name, raw in written.items() if name not in new} == {
        name: bytes(raw) for name, raw in msgspec.msgpack.decode(entry, type=fields).items()
    }


# --- One list at a time ---------------------------------------------------------------------------------------------


def test_a_list_is_recorded_once_and_not_after_a_newer_one(desk: Desk) -> None:
    older, newer = desk.ledger.begin(*WORKSPACE), desk.ledger.begin(*WORKSPACE)
    older.add([desk.task("b", "running")])
    newer.add([desk.task("b", "done", 2.0)])
    assert [desk.ledger.commit(each, desk.now) for each in (newer, newer, older)] == [True, False, False]
    assert desk.counts("submitted", "finished", "credits_used") == (1, 1, 2)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_that_fails_at_any_statement_loses_nothing_and_repeats_nothing(desk: Desk, when: When) -> None:
    desk.list(desk.task("a"))
    listed = [desk.task("a")]
    for number in count():
        listed.append(desk.task(f"task {number}", "done", 2.0))
        other = desk.ledger.begin(*WORKSPACE)
        other.add(listed)
        # 0 is the commit itself; if it fails after it has been executed, it only seems to have failed.
        desk.store.fail(number, when)
        with suppress(LedgerUnavailable):
            desk.list(*listed)
        tripped, committed = desk.store.tripped, desk.store.tap.committed
        desk.store.heal()
        assert desk.ledger.commit(other, desk.now) is not committed
        assert desk.counts("submitted", "finished", "credits_used") == (number + 2, number + 1, 2 * number + 2)
        if not tripped:
            break
    assert number > 10


def test_a_closed_ledger_says_so(desk: Desk) -> None:
    transaction = desk.ledger.begin(*WORKSPACE)
    transaction.add([desk.task()])
    desk.ledger.close()
    with pytest.raises(LedgerUnavailable):
        desk.ledger.commit(transaction, desk.now)


# --- Holds ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def held(desk: Desk) -> Desk:
    """Add a model that first appears in the second list."""
    desk.list(desk.task("a"))
    desk.list(desk.task("b", "done", 5.0, model="pro"))
    return desk


def test_a_hold_that_is_over_stays_over_through_restarts_and_clock_steps(held: Desk) -> None:
    held.now += 120
    assert held.count("credits_used", model="pro") == 5
    for step in (0, -HOUR, -DAY, 3 * DAY):
        held.now += step
        held.restart()
        assert held.count("credits_used", model="pro") == 5


def test_a_hold_begins_again_with_a_start_that_may_have_kept_the_0_from_being_scraped(held: Desk) -> None:
    held.now += 600
    held.restart()
    assert held.count("credits_used", model="pro") == 0
    held.now += 120
    assert held.count("credits_used", model="pro") == 5


@pytest.mark.parametrize("number", [0, 1, 3, 25])
def test_a_hold_that_cannot_be_ended_in_the_store_continues(held: Desk, number: int) -> None:
    held.now += 120
    held.store.fail(number, "before", Killed())
    with suppress(Killed):
        held.count("credits_used", model="pro")
    assert held.store.tripped
    held.store.heal()
    held.restart()
    assert held.count("credits_used", model="pro") == 0
    held.now += 120
    assert held.count("credits_used", model="pro") == 5
