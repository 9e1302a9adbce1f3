"""What a complete list changes in the ledger.

The judgement is pure: it reads a book and a fold, and returns the changes. Its rules, and what they promise, stand in
docs/ledger.md.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from math import floor
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from creatify_exporter.creatify.task import FINISHED, OTHER
from creatify_exporter.ledger.staging import Sight
from creatify_exporter.ledger.state import (
    DAY,
    DAY_TOTALS,
    DURATION_BOUNDS,
    Book,
    Changes,
    DayKey,
    Key,
    Marks,
    Row,
    Series,
    Total,
    series_of,
)

_LONGEST_GAP: Final = 15 * 60
"""Seconds between two recorded lists beyond which the second one no longer tells when a task finished."""

_BOUNDS: Final = [float(bound) for bound in DURATION_BOUNDS]


class Rules(msgspec.Struct, frozen=True):
    """What the configuration says about counting; `settle_after` and `new_series_hold` in seconds."""

    reasons: tuple[str, ...]
    classify: Callable[[str | None], str]
    history: Literal["count", "skip"] = "count"
    settle_after: float = 24 * 3600.0
    new_series_hold: float = 120.0
    max_models: int = 100
    models: frozenset[str] = frozenset()


class Judgement:
    """Judges one complete list against the book as its predecessor left it.

    `now` is the time of the list, `clock` what the exporter's clock says: births are held by the latter, since it is
    that clock which ends the hold. `dated` tells whether any entry of the list says when its task was created.
    """

    def __init__(self, book: Book, rules: Rules, *, now: float, clock: float, dated: bool) -> None:
        self._book, self._rules, self._now, self._clock = book, rules, now, clock
        marks = book.marks
        self._first = marks.recorded_at is None
        # In whole seconds, so that the mark is the same as a float and as a datetime.
        self._mark = max(float(floor(now - rules.settle_after)), marks.settled_before or float("-inf"))
        self._models = set(book.models)
        self._day = int(now // DAY)
        self._counts: defaultdict[tuple[int, str, Total, str], float] = defaultdict(float)
        self._changes = Changes(
            marks=Marks(
                generation=marks.generation + 1,
                dated=dated or marks.dated,
                created_at=now if marks.created_at is None else marks.created_at,
                recorded_at=now,
                settled_before=self._mark,
            )
        )

    def changes(self, sights: Iterable[Sight], seen: Collection[str]) -> Changes:
        """Judge the sights of new or changed tasks; `seen` are the tracked tasks that the list shows unchanged."""
        for model in self._book.models:
            self._bear(model)  # reasons that the configuration has added
        compared = set()
        for sight in sights:
            row = self._book.rows.get(sight.id)
            if row is None:
                self._meet(sight)
            else:
                self._compare(sight, row)
                compared.add(sight.id)
        for task, row in self._book.rows.items():
            if task not in self._changes.rows:
                self._keep_or_drop(task, row, listed=task in seen or task in compared)
        self._book_counts()
        return self._changes

    def _meet(self, sight: Sight) -> None:
        """Count a task that is seen for the first time."""
        created_at = self._now if sight.created_at is None else sight.created_at
        if self._first:  # what this list tells of the past is booked under the day it happened
            self._day = int(max(0.0, min(created_at, self._now)) // DAY)
        row = Row(
            model=self._admit(sight.model),
            status="unknown",
            credits=None,
            uncounted=0.0,
            created_at=created_at,
            dated=sight.created_at is not None,
            changed_at=self._now,
        )
        if self._first and self._rules.history == "skip":
            row.status, row.credits, row.uncounted = sight.status, sight.credits, sight.credits or 0.0
        else:
            self._count(row, "submitted")
            self._progress(row, sight, before=None)
        settled = self._first and row.dated and row.finished and created_at < self._mark
        if not settled:
            self._changes.rows[sight.id] = row

    def _compare(self, sight: Sight, before: Row) -> None:
        """Count what has become of a tracked task."""
        row = replace(before, absent_since=None)
        self._progress(row, sight, before)
        if (row.status, row.credits) != (before.status, before.credits):
            row.changed_at = self._now
            self._changes.rows[sight.id] = row

    def _progress(self, row: Row, sight: Sight, before: Row | None) -> None:
        """Bring a row up to what is seen of its task, and count the difference."""
        gained = 0.0 if sight.credits is None else sight.credits - (row.credits or 0.0)
        row.credits = row.credits if sight.credits is None else sight.credits
        self._count_signed(row, "credits_used", "credits_refunded", gained)
        if row.status == "failed":
            self._count_signed(row, "failed_credits_used", "failed_credits_refunded", gained)
        elif sight.status == "failed":
            wasted = (row.credits or 0.0) - row.uncounted
            self._count_signed(row, "failed_credits_used", "failed_credits_refunded", wasted)
            self._count(row, "failed", label=sight.reason)
        if sight.status in FINISHED and not row.finished:
            self._count(row, "finished")
            self._observe_duration(row, before)
        if sight.status == "failed" or (not row.finished and sight.status != "unknown"):
            row.status = sight.status

    def _observe_duration(self, row: Row, before: Row | None) -> None:
        """Observe how long a task took, if the list before this one shows that it has finished only since."""
        previous = self._book.marks.recorded_at
        if previous is None or not row.dated or self._now - previous > _LONGEST_GAP:
            return
        listed_unfinished = before is not None and before.absent_since is None
        if not listed_unfinished and row.created_at <= previous:
            return
        duration = max(0.0, self._now - row.created_at)
        self._count(row, "duration_bucket", label=DURATION_BOUNDS[bisect_left(_BOUNDS, duration)])
        self._count(row, "duration_sum", duration)

    def _keep_or_drop(self, task: str, row: Row, *, listed: bool) -> None:
        """Let go of a tracked task, unchanged by this list, that the mark will tell from a new one."""
        absent_since = None if listed else self._now if row.absent_since is None else row.absent_since
        long_absent = absent_since is not None and self._now - absent_since >= self._rules.settle_after
        long_unchanged = self._now - row.changed_at >= self._rules.settle_after
        droppable = long_unchanged and (row.dated or long_absent) if row.finished else long_absent
        if droppable and row.created_at < self._mark:
            if not row.finished:
                self._count(row, "vanished")
            self._changes.rows[task] = None
        elif absent_since != row.absent_since and not (row.finished and row.dated):
            # Nobody asks how long a finished task with a date has been absent, so that is not written either.
            self._changes.rows[task] = replace(row, absent_since=absent_since)

    def _admit(self, model: str) -> str:
        """Return the label value for a new task's model, admitting the model if there is room."""
        if model not in self._models:
            taken = (self._models | self._rules.models) - {OTHER}  # a place is kept for those that are always admitted
            if model not in self._rules.models and len(taken) >= self._rules.max_models:
                model = OTHER
            self._models.add(model)
            self._bear(model)
        return model

    def _bear(self, model: str) -> None:
        for key in series_of(model, self._rules.reasons):
            if key not in self._book.series:
                self._changes.born[key] = Series(value=0.0, born_at=self._clock, held=not self._first)

    def _count_signed(self, row: Row, up: Total, down: Total, amount: float) -> None:
        if amount:
            self._count(row, up if amount > 0 else down, abs(amount))

    def _count(self, row: Row, total: Total, amount: float = 1.0, *, label: str = "") -> None:
        self._counts[self._day, row.model, total, label] += amount

    def _book_counts(self) -> None:
        """Add up what has been counted, by series and by day."""
        totals, days = self._changes.totals, self._changes.days
        for (day, model, total, label), amount in self._counts.items():
            key = Key(model, total, label)
            totals[key] = totals.get(key, 0.0) + amount
            if total in DAY_TOTALS:
                daily = DayKey(day, model, total)
                days[daily] = days.get(daily, 0.0) + amount
