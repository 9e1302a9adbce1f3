"""The state of a book, its tracked tasks and everything it has counted, and the rules for counting."""

from collections.abc import Callable, Iterable
from typing import Final, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from creatify_exporter.creatify.task import FINISHED, Status
from creatify_exporter.lists import REJECTED, rejects

BookName = tuple[str, str]
"""Workspace and api."""

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
"""What a series counts.

During an upgrade, replicas of the version before share the database (decision 25). Such a replica loads a series with
an unknown total like any other. But it cannot decode a journal entry that has one, so each such entry makes it load
the whole book again.
"""

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
"""A model has one series for each of these, a `failed` series for each reason, a `duration_bucket` for each bound."""

DURATION_BOUNDS: Final = ("5.0", "10.0", "20.0", "30.0", "60.0", "120.0", "300.0", "600.0", "1800.0", "3600.0", "+Inf")
"""Upper bounds of the buckets in seconds, as values of the label `le`; in the ledger, buckets are not cumulative."""

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
"""Totals that are also kept by day; `failed` also by reason, as `FAILED_BY` followed by the reason."""
FAILED_BY: Final = "failed:"


FAILURE_RUN: Final = "consecutive_failures"
"""The total under which the table `series` holds a run of failures; earlier versions keep it as an unknown series."""


class SeriesKey(NamedTuple):
    """Identifies a series: `label` is the reason of `failed`, the bound of `duration_bucket`, otherwise empty."""

    model: str
    total: Total
    label: str = ""


class DayKey(NamedTuple):
    """Identifies a daily total; `day` is the UTC day as a number of days since 1970-01-01."""

    day: int
    model: str
    total: str


class Series(msgspec.Struct):
    """A counter. While it is `held`, 0 is served instead of its value.

    `born_at` is when it was created, by the ledger's clock.
    """

    value: float
    born_at: float
    held: bool


class Row(msgspec.Struct, gc=False):
    """A tracked task. Times are seconds since the epoch; `model` is a label value.

    `credits_used` is None until a list reports it. `uncounted` is the part of it that was used before counting began.
    `dated` says whether the list reports `created_at`; if not, that is the time of the first recorded list with the
    task. `absent_since` is the time of the first recorded list without the task, moved later by the parts of long gaps
    between lists that do not count as absence.
    """

    model: str
    status: Status
    # The journal and the tables keep the names of the first version.
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
    """The progress of a book. Times are seconds since the epoch, None before the first recorded list.

    `version` counts the recorded lists; forgetting a model adds one too. `has_dates` says whether any list reported
    when a task was created. An untracked task that was created before the watermark is settled.
    """

    version: int = msgspec.field(default=0, name="generation")
    has_dates: bool = msgspec.field(default=False, name="dated")
    first_recorded_at: float | None = msgspec.field(default=None, name="created_at")
    recorded_at: float | None = None
    watermark: float | None = msgspec.field(default=None, name="settled_before")


class Changes(msgspec.Struct):
    """The changes that one transaction writes to the store and then applies to the book in memory.

    `progress` is the progress after a recorded list, None if no list was recorded. `totals` and `days` are increases.
    `released` are the series whose hold ends, `failure_runs` the new lengths of the runs that change. Once written, the
    changes lead from the book's revision `base` to `revision`; changes written by an earlier version have no `base`.
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
    """What has been committed for one workspace and api.

    `number` is its key in the database. `revision` identifies its state: each change raises it, and no other state of
    any book has the same one. `failure_runs` has, for each model, the number of tasks that have failed since one was
    last done; a model without an entry has 0. `is_stale` says that the store may hold something else, so that the book
    must be loaded again.

    A new field also goes into `Changes` and `Book.apply`; in `store` into `_read_book`, `_content` and `_put`; in
    `checksum` into `of_book` and `difference`.
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
        """Apply committed changes to the book."""
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


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The settings for counting; `settle_after` and `new_series_hold` are in seconds.

    `classify` returns the reason, one of `reasons`, for a failure text. `models` are always admitted.
    """

    reasons: tuple[str, ...]
    classify: Callable[[str | None], str]
    history: Literal["count", "skip"]
    settle_after: float
    new_series_hold: float
    max_models: int
    models: frozenset[str]

    def of_list(self, api: str) -> "Rules":
        """Return the rules for one list.

        If its tasks may be rejected, `rejected` is one more reason, for exactly this failure text.
        """
        if not rejects(api):
            return self
        classify = self.classify
        return replace(
            self,
            reasons=tuple(dict.fromkeys([*self.reasons, REJECTED])),
            classify=lambda text: REJECTED if text == REJECTED else classify(text),
        )


def series_of(model: str, reasons: Iterable[str]) -> list[SeriesKey]:
    """Return the keys of all series of a model, which are created together so that no first increase is lost."""
    return [
        *(SeriesKey(model, total) for total in PLAIN_TOTALS),
        *(SeriesKey(model, "failed", reason) for reason in reasons),
        *(SeriesKey(model, "duration_bucket", bound) for bound in DURATION_BOUNDS),
    ]
