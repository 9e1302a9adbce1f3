"""Computes the changes that a complete list makes to a book.

`reconcile` is pure: it reads a book and a list, and returns the changes. Its rules are in docs/ledger.md, its promises
in docs/guarantees.md.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from math import floor, inf
from typing import Final

from msgspec.structs import replace

from creatify_exporter.creatify.task import FINISHED, OTHER
from creatify_exporter.ledger.staging import Observation, Settled, StagingTable
from creatify_exporter.ledger.state import (
    DAY,
    DAY_TOTALS,
    DURATION_BOUNDS,
    FAILED_BY,
    Book,
    Changes,
    DayKey,
    Progress,
    Row,
    Rules,
    Series,
    SeriesKey,
    Total,
    series_of,
)
from creatify_exporter.ledger.transaction import Transaction

_LONGEST_GAP: Final = 15 * 60
"""Seconds between two recorded lists; after a longer gap, the second one no longer shows when a task finished."""

_BOUNDS: Final = [float(bound) for bound in DURATION_BOUNDS]


class _Draft:
    """The changes that one list makes to a book, collected step by step; the book itself does not change.

    `now` is the time of the list, `clock` the time by the ledger's clock, `today` the UTC day of the list as in
    `DayKey`. `first` says whether this is the first list; `watermark` is the one that this list sets. `models` are
    admitted models, `counted_models` those that count towards `max_models`, admitted or not. `counts` are the increases
    by UTC day, model, total and label; `succeeded` are the models with a task that became done.
    """

    def __init__(self, book: Book, rules: Rules, *, now: float, clock: float, has_dates: bool) -> None:
        before = book.progress
        self.book, self.rules, self.now, self.clock = book, rules, now, clock
        self.today = int(now // DAY)
        self.first = before.recorded_at is None
        # In whole seconds, which are exact both as a float and as a datetime.
        self.watermark = max(float(floor(now - rules.settle_after)), before.watermark or float("-inf"))
        # A new set at each call.
        self.models = book.models
        self.counted_models = (self.models | rules.models) - {OTHER}
        self.counts: defaultdict[tuple[int, str, Total, str], float] = defaultdict(float)
        self.succeeded: set[str] = set()
        progress = Progress(
            version=before.version + 1,
            has_dates=has_dates or before.has_dates,
            first_recorded_at=now if before.first_recorded_at is None else before.first_recorded_at,
            recorded_at=now,
            watermark=self.watermark,
        )
        self.changes = Changes(progress=progress)


def reconcile(book: Book, transaction: Transaction, *, now: float, clock: float) -> Changes:
    """Return the changes that the list of a transaction, which is of the time `now`, makes to a book.

    `clock` is the time by the ledger's clock, which ends the holds of new series and therefore must begin them too.
    Errors in reading the observations are passed on.
    """
    draft = _Draft(book, transaction.rules, now=now, clock=clock, has_dates=transaction.has_dates)
    # The configuration may have added reasons, which need series.
    for model in draft.models:
        _create_series(draft, model)
    summed_up_before = -inf
    if _can_sum_up(draft, transaction.staging):
        summed_up_before = draft.watermark
        for settled in transaction.staging.settled(summed_up_before):
            _add_settled(draft, settled)
    compared = set()
    for observation in transaction.staging.oldest_first(summed_up_before):
        row = book.rows.get(observation.id)
        if row is None:
            _add_new(draft, observation)
        else:
            _update(draft, observation, row)
            compared.add(observation.id)
    for task, row in book.rows.items():
        listed = task in transaction.unchanged or task in compared
        may_settle = row.created_at < draft.watermark and row.dated and row.finished
        # No call for tasks that stay as they are: there may be a hundred thousand. `_expire` agrees: it changes a
        # listed task only to end an absence, or to stop tracking it, for which `may_settle` must be true.
        if listed and row.absent_since is None and not may_settle:
            continue
        if task not in draft.changes.rows:
            _expire(draft, task, row, listed=listed)
    _sum_up(draft)
    _count_runs(draft)
    return draft.changes


def _can_sum_up(draft: _Draft, observations: StagingTable) -> bool:
    """Return whether settled tasks need not be compared one by one: in a first list, most tasks have settled.

    Not if it has more models than can be admitted: then the models of the oldest tasks are admitted first, which needs
    the tasks one by one, in order.
    """
    if not draft.first:
        return False
    most = draft.rules.max_models
    # One more than can be admitted decides; another one, because `OTHER` may be among them and does not count.
    observed = observations.models(most + 2)
    return len((draft.rules.models | observed) - {OTHER}) <= most


def _add_settled(draft: _Draft, settled: Settled) -> None:
    """Count tasks of the first list that count the same way and need not be tracked."""
    model = _admit(draft, settled.model)
    if draft.rules.history == "skip":
        return
    # Says under which model and day to count; it is not stored.
    row = _new_row(draft, model, settled.created_at)
    for total in ("submitted", "finished"):
        _count(draft, row, total, settled.tasks)
    _count_signed(draft, row, "credits_used", "credits_refunded", settled.credits_used)
    if settled.status == "done":
        draft.succeeded.add(model)
    else:
        _count(draft, row, "failed", settled.tasks, label=settled.reason)
        _count_signed(draft, row, "failed_credits_used", "failed_credits_refunded", settled.credits_used)


def _add_new(draft: _Draft, observation: Observation) -> None:
    """Count a task that is seen for the first time."""
    row = _new_row(draft, _admit(draft, observation.model), observation.created_at)
    if draft.first and draft.rules.history == "skip":
        row.status, row.credits_used = observation.status, observation.credits_used
        row.uncounted = observation.credits_used or 0.0
    else:
        _count(draft, row, "submitted")
        _apply_delta(draft, row, observation, before=None)
    settled = draft.first and row.dated and row.finished and row.created_at < draft.watermark
    if not settled:
        draft.changes.rows[observation.id] = row


def _new_row(draft: _Draft, model: str, created_at: float | None) -> Row:
    return Row(
        model=model,
        status="unknown",
        credits_used=None,
        uncounted=0.0,
        created_at=draft.now if created_at is None else created_at,
        dated=created_at is not None,
        changed_at=draft.now,
    )


def _update(draft: _Draft, observation: Observation, before: Row) -> None:
    """Count the changes of a tracked task."""
    # If nothing else has changed, `_expire` ends the absence.
    row = replace(before, absent_since=None)
    _apply_delta(draft, row, observation, before)
    if (row.status, row.credits_used) != (before.status, before.credits_used):
        row.changed_at = draft.now
        draft.changes.rows[observation.id] = row


def _apply_delta(draft: _Draft, row: Row, observation: Observation, before: Row | None) -> None:
    """Count the difference between a row and an observation of its task, and update the row."""
    _apply_credits(draft, row, observation)
    if observation.status == "failed" and row.status != "failed":
        _count(draft, row, "failed", label=observation.reason)
    if observation.status in FINISHED and not row.finished:
        _count(draft, row, "finished")
        if observation.status == "done":
            draft.succeeded.add(row.model)
        _observe_duration(draft, row, before)
    # A failure is final, a done task can still fail, and `unknown` replaces nothing.
    if observation.status == "failed" or (not row.finished and observation.status != "unknown"):
        row.status = observation.status


def _apply_credits(draft: _Draft, row: Row, observation: Observation) -> None:
    """Count the change of a task's credits.

    After a failure it also counts as credits of failed tasks; at the failure, so do all its credits counted until then.
    """
    gained = 0.0
    if observation.credits_used is not None:
        gained = observation.credits_used - (row.credits_used or 0.0)
        row.credits_used = observation.credits_used
    _count_signed(draft, row, "credits_used", "credits_refunded", gained)
    if row.status == "failed":
        _count_signed(draft, row, "failed_credits_used", "failed_credits_refunded", gained)
    elif observation.status == "failed":
        wasted = (row.credits_used or 0.0) - row.uncounted
        _count_signed(draft, row, "failed_credits_used", "failed_credits_refunded", wasted)


def _observe_duration(draft: _Draft, row: Row, before: Row | None) -> None:
    """Observe the duration of a task if the previous list proves that it has finished since then."""
    previous = draft.book.progress.recorded_at
    if previous is None or not row.dated or draft.now - previous > _LONGEST_GAP:
        return
    # The caller has checked that it had not finished.
    was_listed = before is not None and before.absent_since is None
    if not was_listed and row.created_at <= previous:
        return
    duration = max(0.0, draft.now - row.created_at)
    _count(draft, row, "duration_bucket", label=DURATION_BOUNDS[bisect_left(_BOUNDS, duration)])
    _count(draft, row, "duration_sum", duration)


def _expire(draft: _Draft, task: str, row: Row, *, listed: bool) -> None:
    """Stop tracking an unchanged task if no change of it is expected; otherwise update its absence."""
    absent_since = None if listed else _absent_since(draft, row)
    if row.created_at < draft.watermark and _is_over(draft, row, absent_since):
        if not row.finished:
            _count(draft, row, "vanished")
        draft.changes.rows[task] = None
    elif absent_since != row.absent_since and not (row.finished and row.dated):
        # The absence of a finished task with a date does not matter, so it is not written.
        draft.changes.rows[task] = replace(row, absent_since=absent_since)


def _absent_since(draft: _Draft, row: Row) -> float:
    """Return the time since which a task that this list lacks counts as absent.

    Of the time since the previous list, at most half of `settle_after` counts. Otherwise an outage or a clock change
    would turn a single list without the task into a long absence; so it takes three lists.
    """
    previous = draft.book.progress.recorded_at
    if row.absent_since is None or previous is None:
        return draft.now
    return min(draft.now, row.absent_since + max(0.0, draft.now - previous - draft.rules.settle_after / 2))


def _is_over(draft: _Draft, row: Row, absent_since: float | None) -> bool:
    """Return whether a task has been final, or absent, for so long that no further change is expected."""
    settle_after = draft.rules.settle_after
    long_absent = absent_since is not None and draft.now - absent_since >= settle_after
    if not row.finished:
        return long_absent
    return draft.now - row.changed_at >= settle_after and (row.dated or long_absent)


def _admit(draft: _Draft, model: str) -> str:
    """Return the label value for a new task's model, admitting the model if there is room."""
    if model not in draft.counted_models and len(draft.counted_models) >= draft.rules.max_models:
        model = OTHER
    if model not in draft.models:
        draft.models.add(model)
        if model != OTHER:
            draft.counted_models.add(model)
        _create_series(draft, model)
    return model


def _create_series(draft: _Draft, model: str) -> None:
    """Create the series that a model lacks; those of the first list are not held: nothing was served before it."""
    for key in series_of(model, draft.rules.reasons):
        if key not in draft.book.series:
            draft.changes.new_series[key] = Series(value=0.0, born_at=draft.clock, held=not draft.first)


def _count_signed(draft: _Draft, row: Row, increase: Total, decrease: Total, amount: float) -> None:
    if amount:
        _count(draft, row, increase if amount > 0 else decrease, abs(amount))


def _count(draft: _Draft, row: Row, total: Total, amount: float = 1.0, *, label: str = "") -> None:
    day = draft.today
    if draft.first and row.created_at < draft.now:
        # The first list reports the past: its changes are booked under the day of the task's creation.
        day = max(0, int(row.created_at // DAY))
    draft.counts[day, row.model, total, label] += amount


def _sum_up(draft: _Draft) -> None:
    """Add up the counts by series and by day."""
    totals, days = draft.changes.totals, draft.changes.days
    for (day, model, total, label), amount in draft.counts.items():
        key = SeriesKey(model, total, label)
        totals[key] = totals.get(key, 0.0) + amount
        for name in _daily_names(total, label):
            daily = DayKey(day, model, name)
            days[daily] = days.get(daily, 0.0) + amount


def _daily_names(total: Total, label: str) -> Iterator[str]:
    if total in DAY_TOTALS:
        yield total
    if total == "failed":
        yield FAILED_BY + label


def _count_runs(draft: _Draft) -> None:
    """Count the tasks of each model that have failed since one was last done.

    If a list has both, their order is unknown: only failures in later lists certainly belong to the run.
    """
    before = draft.book.failure_runs
    runs: defaultdict[str, int] = defaultdict(int)
    for key, failures in draft.changes.totals.items():
        if key.total == "failed":
            runs[key.model] += int(failures)
    for model in draft.succeeded | runs.keys():
        run = 0 if model in draft.succeeded else before.get(model, 0) + runs[model]
        if run != before.get(model, 0):
            draft.changes.failure_runs[model] = run
