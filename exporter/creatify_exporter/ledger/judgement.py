"""What a complete list changes in the ledger.

The judgement is pure: it reads a book and a fold, and returns the changes. Its rules, and what they promise, stand in
docs/ledger.md.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from math import floor
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from creatify_exporter.ledger.book import (
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
from creatify_exporter.ledger.fold import Sight
from creatify_exporter.tasks import FINISHED, OTHER

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
        return self._changes

    def _meet(self, sight: Sight) -> None:
        """Count a task that is seen for the first time."""
        created_at = self._now if sight.created_at is None else sight.created_at
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
            row = replace(row, status=sight.status, credits=sight.credits, uncounted=sight.credits or 0.0)
        else:
            self._count(row, "submitted")
            row = self._progress(sight, row, before=None)
        settled = self._first and row.dated and row.finished and created_at < self._mark
        if not settled:
            self._changes.rows[sight.id] = row

    def _compare(self, sight: Sight, before: Row) -> None:
        """Count what has become of a tracked task."""
        row = self._progress(sight, replace(before, absent_since=None), before=before)
        if (row.status, row.credits) != (before.status, before.credits):
            self._changes.rows[sight.id] = replace(row, changed_at=self._now)

    def _progress(self, sight: Sight, row: Row, before: Row | None) -> Row:
        used = self._credits_gained(sight, row)
        row = replace(row, credits=row.credits if sight.credits is None else sight.credits)
        self._count_signed(row, "credits_used", "credits_refunded", used)
        if row.status == "failed":
            self._count_signed(row, "failed_credits_used", "failed_credits_refunded", used)
        elif sight.status == "failed":
            wasted = (row.credits or 0.0) - row.uncounted
            self._count_signed(row, "failed_credits_used", "failed_credits_refunded", wasted)
            self._count(row, "failed", label=sight.reason)
        if sight.status in FINISHED and not row.finished:
            self._count(row, "finished")
            self._observe_duration(row, before)
        onward = sight.status == "failed" or (not row.finished and sight.status != "unknown")
        return replace(row, status=sight.status) if onward else row

    @staticmethod
    def _credits_gained(sight: Sight, row: Row) -> float:
        return 0.0 if sight.credits is None else sight.credits - (row.credits or 0.0)

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
            if model not in self._rules.models and len(self._models - {OTHER}) >= self._rules.max_models:
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
        key = Key(row.model, total, label)
        self._changes.totals[key] = self._changes.totals.get(key, 0.0) + amount
        if total in DAY_TOTALS:
            # Under today, or for what the first list tells of the past, under the day of the task's creation.
            moment = max(0.0, min(row.created_at, self._now)) if self._first else self._now
            day = DayKey(int(moment // DAY), row.model, total)
            self._changes.days[day] = self._changes.days.get(day, 0.0) + amount
