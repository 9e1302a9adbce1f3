"""The state of a book: which tasks are tracked, and what has been counted."""

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

import msgspec

from creatify_exporter.creatify.task import FINISHED, Status

Total = Literal[
    "submitted",
    "finished",
    "failed",
    "vanished",
    "credits_used",
    "credits_refunded",
    "failed_credits_used",
    "failed_credits_refunded",
    "duration_bucket",
    "duration_sum",
]
PLAIN_TOTALS: Final[tuple[Total, ...]] = (
    "submitted",
    "finished",
    "vanished",
    "credits_used",
    "credits_refunded",
    "failed_credits_used",
    "failed_credits_refunded",
    "duration_sum",
)
"""A model has one series of each of these; of `failed` one for each reason, of `duration_bucket` one for each bound."""

DURATION_BOUNDS: Final = ("5.0", "10.0", "20.0", "30.0", "60.0", "120.0", "300.0", "600.0", "1800.0", "3600.0", "+Inf")
"""Upper bounds of the buckets in seconds, as the values of the label `le`; here each bucket counts for itself."""

DAY: Final = 24 * 3600.0
DAY_TOTALS: Final[tuple[Total, ...]] = (
    "submitted",
    "finished",
    "failed",
    "credits_used",
    "credits_refunded",
    "failed_credits_used",
    "failed_credits_refunded",
)
"""Totals that are also kept by day; `failed` for each reason too, as `FAILED_BY` and the reason."""
FAILED_BY: Final = "failed:"


FAILURE_RUN: Final = "consecutive_failures"
"""The name of a run of failures in the table `series`; earlier versions keep it as a series that they do not know."""


class SeriesKey(NamedTuple):
    """Names a series: `label` is the reason of `failed`, the bound of `duration_bucket`, else empty."""

    model: str
    total: Total
    label: str = ""


class DayKey(NamedTuple):
    """Names a daily total; `day` is the UTC day as a number, 0 being 1970-01-01."""

    day: int
    model: str
    total: str


class Series(msgspec.Struct):
    """A counter: while it is `held`, 0 is served in place of its value. `born_at` is the exporter's clock."""

    value: float
    born_at: float
    held: bool


class Row(msgspec.Struct, gc=False):
    """A tracked task. Times are seconds since the epoch; `model` is a label value.

    `credits_used` is None as long as no list has told it. `uncounted` is the part of it that was there before counting
    began. `dated` says whether the list tells `created_at`; if not, that is the time of the first recorded list that
    showed the task. `absent_since` is the time of the first recorded list that lacked the task, later by the parts of
    long gaps between lists that do not count as absence.
    """

    model: str
    status: Status
    # The names in the journal and in the databases' tables are those of the first version.
    credits_used: float | None = msgspec.field(name="credits")
    uncounted: float
    created_at: float
    dated: bool
    changed_at: float
    absent_since: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the task is done or failed."""
        return self.status in FINISHED


class Progress(msgspec.Struct, frozen=True):
    """How far a book has come; times in seconds since the epoch, None before the first recorded list.

    `version` counts the recorded lists. `has_dates` says whether any of them told when a task was created. A task that
    was created before the watermark and is not tracked is settled.
    """

    version: int = msgspec.field(default=0, name="generation")
    has_dates: bool = msgspec.field(default=False, name="dated")
    first_recorded_at: float | None = msgspec.field(default=None, name="created_at")
    recorded_at: float | None = None
    watermark: float | None = msgspec.field(default=None, name="settled_before")


class Changes(msgspec.Struct):
    """What is written in one transaction, then applied to the book in memory.

    `progress` is that after a recorded list, None if none was recorded. `released` are the series whose hold ends,
    `failure_runs` the new values of those that change. Once written, they lead from the revision `base` of the book to
    `revision`; those that an earlier version wrote do not say so.
    """

    progress: Progress | None = msgspec.field(default=None, name="marks")
    rows: dict[str, Row | None] = {}
    new_series: dict[SeriesKey, Series] = msgspec.field(default_factory=dict, name="born")
    totals: dict[SeriesKey, float] = {}
    days: dict[DayKey, float] = {}
    released: list[SeriesKey] = []
    failure_runs: dict[str, int] = {}
    base: int = 0
    revision: int = 0


class Book(msgspec.Struct):
    """What is committed of one workspace and api.

    `number` is its key in the database. `revision` names its state: each change brings a higher one, and no other state
    has it, in any book. `failure_runs` says for each model how many tasks have failed since one was last done, unless
    that is 0. `is_stale` says that something else may be committed, so that the book has to be loaded again.
    """

    workspace: str
    api: str
    number: int
    revision: int = 0
    progress: Progress = Progress()
    rows: dict[str, Row] = {}
    series: dict[SeriesKey, Series] = {}
    failure_runs: dict[str, int] = {}
    is_stale: bool = False

    @property
    def models(self) -> set[str]:
        """The models that have series, as label values."""
        return {key.model for key in self.series}

    def apply(self, changes: Changes) -> None:
        """Bring the book to its state after the commit of `changes`."""
        for task, row in changes.rows.items():
            if row is None:
                self.rows.pop(task, None)
            else:
                self.rows[task] = row
        self.series.update(changes.new_series)
        for key, increase in changes.totals.items():
            self.series[key].value += increase
        for key in changes.released:
            self.series[key].held = False
        self.failure_runs.update(changes.failure_runs)
        self.progress = changes.progress or self.progress
        self.revision = changes.revision


def series_of(model: str, reasons: Iterable[str]) -> list[SeriesKey]:
    """Return all the series of a model: they are created together, so that no increase is lost."""
    return [
        *(SeriesKey(model, total) for total in PLAIN_TOTALS),
        *(SeriesKey(model, "failed", reason) for reason in reasons),
        *(SeriesKey(model, "duration_bucket", bound) for bound in DURATION_BOUNDS),
    ]
