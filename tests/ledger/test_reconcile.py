"""The rules of the ledger, told list by list; test_oracle.py shows that they hold for any history."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from desk import DAY, HOUR, NOON, WORKSPACE, Desk, rules

from creatify_exporter.creatify.task import Task
from creatify_exporter.errors import FetchError
from creatify_exporter.ledger.staging import StagingTable


def replaced(task: Task, **changes: Any) -> Task:
    return msgspec.structs.replace(task, **changes)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    desk.list(desk.task("first", at=NOON))
    yield desk
    desk.ledger.close()


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


def test_an_entry_that_contradicts_one_that_changes_nothing_is_compared_with_it(desk: Desk) -> None:
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


def test_credits_that_are_absent_are_unchanged(desk: Desk) -> None:
    for credit in (2.0, None, 2.0, None, 3.0):
        desk.list(desk.task("b", "done", credit))
    assert desk.counts("credits_used", "credits_refunded") == (3, 0)


def test_a_new_task_from_before_the_watermark_is_settled(desk: Desk) -> None:
    watermark = NOON + 15 - DAY
    desk.list(desk.task("old", "done", 9.0, at=watermark - 1), desk.task("young", "done", 1.0, at=watermark))
    assert desk.counts("submitted", "finished", "credits_used") == (2, 1, 1)


def test_a_list_is_judged_by_the_watermark_of_the_one_before_it(desk: Desk) -> None:
    desk.list(desk.task("b", "done", at=NOON + 60), after=3 * DAY)
    assert desk.count("finished") == 1


def test_the_watermark_never_goes_back(desk: Desk) -> None:
    desk.list(after=2 * DAY)
    watermark = desk.ledger.counters(*WORKSPACE).progress.watermark
    desk.list(after=-2 * DAY)
    desk.list(desk.task("b", at=NOON))
    assert desk.ledger.counters(*WORKSPACE).progress.watermark == watermark == NOON + 15 + DAY
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
    desk.list(after=DAY / 2)
    desk.list(after=DAY / 2 - 1)
    assert (desk.count("vanished"), desk.tracked()) == (0, 1)
    desk.list(after=1)
    assert (desk.count("vanished"), desk.tracked()) == (1, 0)
    desk.list(desk.task("first", "done", 3.0))
    assert desk.counts("submitted", "finished", "vanished", "credits_used") == (1, 0, 1, 0)


@pytest.mark.parametrize(("status", "credit"), [("pending", None), ("queued", None), (None, 2.0), ("running", None)])
def test_an_unfinished_task_does_not_vanish_while_it_is_listed(status: str | None, credit: float | None) -> None:
    desk = Desk()
    desk.list(desk.task("b", "pending", 2.0))
    for _ in range(50):
        desk.list(desk.task("b", status, credit), after=HOUR)
    assert (desk.count("vanished"), desk.tracked()) == (0, 1)
    desk.list(desk.task("b", "done", 2.0), after=60)
    assert desk.counts("finished", "duration_sum") == (1, desk.now - NOON)


def test_an_entry_without_changes_is_not_compared(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [desk.task("p", "preview", 5.0, at=None), desk.task("u", "queued"), desk.task("n", None)]
    desk.list(*tasks)
    monkeypatch.delattr(StagingTable, "add")
    assert desk.list(*tasks)


def test_a_task_without_a_date_is_kept_for_as_long_as_it_is_listed(desk: Desk) -> None:
    anchor = desk.task("first", "done")
    for _ in range(5):
        desk.list(desk.task("b", "done", 2.0, at=None), anchor, after=DAY)
    assert (desk.count("credits_used"), desk.tracked()) == (2, 1)
    desk.list(anchor)
    desk.list(anchor, after=DAY)
    assert desk.tracked() == 1
    desk.list(anchor, after=DAY)
    assert (desk.count("vanished"), desk.tracked()) == (0, 0)


@pytest.mark.parametrize("status", ["running", "done"])
def test_an_absence_ends_with_the_list_that_has_the_task_again(desk: Desk, status: str) -> None:
    anchor, task = desk.task("first", "done"), desk.task("b", status, at=None)
    for _ in range(4):
        desk.list(anchor, task, after=DAY / 2)
        desk.list(anchor, after=DAY / 4)
        desk.list(anchor, after=DAY / 2)
    assert desk.counts("submitted", "vanished") == (2, 0)
    assert desk.tracked() == 1


def test_a_clock_change_is_not_an_absence() -> None:
    desk = Desk(new_series_hold=0.0)
    one, other = desk.task("one", "done", 5.0, at=None), desk.task("other", "done", 1.0, at=None)
    desk.list(one, other)
    desk.list(other)  # a page has shifted, so one task is missing for half a minute
    desk.list(other, after=40 * DAY)
    desk.list(one, other)
    assert desk.counts("submitted", "credits_used") == (2, 6)


def test_a_clock_that_was_ahead_for_long_lengthens_no_absence() -> None:
    desk = Desk(new_series_hold=0.0)
    one, other = desk.task("one", "running", at=None), desk.task("other", "done", 1.0, at=None)
    desk.list(one, other)
    desk.list(other)
    desk.list(other, after=30 * DAY)
    desk.now -= 30 * DAY
    for _ in range(30):
        desk.list(other, after=HOUR)
    assert desk.count("vanished") == 1


def test_with_lists_that_are_rarer_than_a_settle_time_a_task_still_vanishes(desk: Desk) -> None:
    vanished = []
    for _ in range(4):
        desk.list(after=2 * DAY)
        vanished.append(desk.count("vanished"))
    assert vanished == [0, 0, 1, 1]


def test_the_number_of_tracked_tasks_does_not_grow_with_history() -> None:
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


def test_a_list_without_dates_is_refused_after_a_list_with_dates(desk: Desk) -> None:
    with pytest.raises(FetchError, match="created_at"):
        desk.list(desk.task("b", at=None))
    assert desk.list()  # an empty list is trusted, and forgets nothing
    with pytest.raises(FetchError, match="created_at"):
        desk.list(desk.task("b", at=None))
    assert desk.count("submitted") == 1


def test_rules_that_change_while_a_list_is_read_hold_from_the_next_one_on() -> None:
    desk = Desk()
    transaction = desk.ledger.begin(*WORKSPACE)
    transaction.add([desk.task("a", "failed", reason="quota")])
    desk.ledger.rules = rules("refused")
    assert desk.ledger.commit(transaction, desk.now)
    assert desk.count("failed", "quota") == 1
    desk.list(desk.task("b", "failed", reason="refused"))
    assert (desk.count("failed", "quota"), desk.count("failed", "refused")) == (1, 0)  # held like a new model
    desk.now += 120
    assert (desk.count("failed", "quota"), desk.count("failed", "refused")) == (1, 1)


def test_models_are_admitted_by_age_up_to_the_limit_and_the_rest_is_other() -> None:
    desk = Desk(max_models=3, models=frozenset({"always"}))  # "always" keeps one of the three places
    names = {"young": 0.0, "old": -60.0, "always": 60.0, "older": -120.0, "": 90.0}
    desk.list(*(desk.task(name or "empty", at=NOON + born, model=name) for name, born in names.items()))
    assert desk.ledger.counters(*WORKSPACE).models == {"older", "old", "always", "other"}
    assert desk.count("submitted", model="other") == 2
    desk.list(desk.task("later", at=NOON + 99, model="young"))
    assert desk.ledger.counters(*WORKSPACE).models == {"older", "old", "always", "other"}


def test_every_model_has_every_series_from_its_first_task_on(desk: Desk) -> None:
    totals = {(key.total, key.label) for key in desk.ledger.counters(*WORKSPACE).values}
    assert {label for total, label in totals if total == "failed"} == {"timeout", "quota", "other"}
    assert len(totals) == 8 + 3 + 11


def test_a_settle_time_longer_than_history_has_dates_is_accepted() -> None:
    desk = Desk(settle_after=100 * 366 * 24 * 3600.0)
    assert desk.list(desk.task("a"))
    assert desk.list(desk.task("a"), desk.task("b"))
    assert desk.count("submitted") == 2


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


def test_correcting_a_clock_does_not_prolong_a_hold_forever(desk: Desk) -> None:
    desk.now += 365 * DAY
    desk.list(desk.task("b", "done", 5.0, model="pro", at=desk.now))
    desk.now -= 365 * DAY
    assert desk.count("credits_used", model="pro") == 5


# --- Runs of failures -----------------------------------------------------------------------------------------------


def test_a_run_of_failures_ends_with_a_success_of_the_same_model(desk: Desk) -> None:
    runs = []
    lists = [
        [("a", "failed", "flash"), ("b", "failed", "flash")],
        [("b", "failed", "flash"), ("c", "failed", "flash"), ("d", "failed", "pro")],
        [("e", "done", "pro"), ("c", "failed", "flash"), ("f", "running", "flash")],
        # Which of the two was first is unknown.
        [("f", "done", "flash"), ("g", "failed", "flash"), ("h", "failed", "pro")],
        # A done task that fails later has certainly failed after a success.
        [("f", "failed", "flash"), ("h", "failed", "pro")],
    ]
    for each in lists:
        desk.list(*(desk.task(name, status, model=model) for name, status, model in each))
        runs.append(dict(desk.ledger.counters(*WORKSPACE).failure_runs))
    assert runs == [
        {"flash": 2},
        {"flash": 3, "pro": 1},
        {"flash": 3, "pro": 0},
        {"flash": 0, "pro": 1},
        {"flash": 1, "pro": 1},
    ]


@pytest.mark.parametrize(("history", "run"), [("count", 2), ("skip", 0)])
def test_the_first_list_begins_a_run_if_it_counts(history: str, run: int) -> None:
    desk = Desk(history=history)
    desk.list(desk.task("a", "failed"), desk.task("b", "failed"))
    assert desk.ledger.counters(*WORKSPACE).failure_runs == {"flash": run}


# --- Durations: the first list is of 12:00:15 and shows `first`, which was created at 12:00:00 and is pending -------


def durations(desk: Desk) -> dict[str, float]:
    values = desk.ledger.counters(*WORKSPACE).values
    return {key.label: value for key, value in values.items() if key.total == "duration_bucket" and value}


@pytest.mark.parametrize(
    ("tasks", "after", "observed"),
    [
        pytest.param([("first", 0)], 15, {"30.0": 1}, id="listed unfinished before"),
        pytest.param([("new", 16), ("old", 15)], 15, {"20.0": 1}, id="only those created since the list before"),
        pytest.param([("first", 0)], 900, {"1800.0": 1}, id="15 minutes later"),
        pytest.param([("first", 0)], 900.25, {}, id="more than 15 minutes later"),
        pytest.param([("new", HOUR)], 15, {"5.0": 1}, id="before it was created"),
        pytest.param([("new", 20)], 15, {"10.0": 1}, id="at a bound"),
        pytest.param([("first", 0), ("undated", None)], 15, {"30.0": 1}, id="without a date"),
    ],
)
def test_a_duration_is_observed_if_the_previous_list_proves_that_the_task_has_finished_since(
    desk: Desk, tasks: list[tuple[str, float | None]], after: float, observed: dict[str, float]
) -> None:
    desk.list(*(desk.task(name, "done", at=None if at is None else NOON + at) for name, at in tasks), after=after)
    assert durations(desk) == observed


def test_no_duration_is_observed_of_a_task_that_the_list_before_lacked(desk: Desk) -> None:
    desk.list()
    desk.list(desk.task("first", "done"))
    assert durations(desk) == {}


def test_the_first_list_observes_no_duration() -> None:
    desk = Desk()
    desk.list(desk.task("a", "done"))
    assert durations(desk) == {}
