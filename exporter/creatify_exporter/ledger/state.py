"""The state of one workspace's ledger: which tasks are tracked, and what has been counted."""

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
"""Those of which a model has one series; `failed` has one for each reason, `duration_bucket` one for each bound."""

DURATION_BOUNDS: Final = ("5.0", "10.0", "20.0", "30.0", "60.0", "120.0", "300.0", "600.0", "1800.0", "3600.0", "+Inf")
"""Upper bounds of the buckets in seconds, as the values of the label `le`; here each bucket counts for itself."""

DAY: Final = 24 * 3600.0
DAY_TOTALS: Final[tuple[Total, ...]] = ("submitted", "finished", "failed", "credits_used", "credits_refunded")
"""What is also kept by day."""


class Key(NamedTuple):
    """Names a series: `label` is the reason of `failed`, the bound of `duration_bucket`, else empty."""

    model: str
    total: Total
    label: str = ""


class DayKey(NamedTuple):
    """Names a daily total; `day` is the UTC day as a number, 0 being 1970-01-01."""

    day: int
    model: str
    total: Total


class Series(msgspec.Struct):
    """A counter: while it is `held`, 0 is served in place of its value. `born_at` is the exporter's clock."""

    value: float
    born_at: float
    held: bool


class Row(msgspec.Struct, gc=False):
    """A tracked task. Times are seconds since the epoch; `model` is a label value.

    `credits` is None while no list has told them. `uncounted` is the part of them that was there before counting
    began. `dated` is False where the list does not tell `created_at`, which then is the time of the first sight.
    `absent_since` is the time of the first recorded list that lacked the task.
    """

    model: str
    status: Status
    credits: float | None
    uncounted: float
    created_at: float
    dated: bool
    changed_at: float
    absent_since: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the task is done or failed."""
        return self.status in FINISHED


class Marks(msgspec.Struct, frozen=True):
    """How far the ledger has come; times in seconds since the epoch, None before the first recorded list.

    `generation` counts the recorded lists. `dated` tells whether one of them told when a task was created. A task
    created before `settled_before` that is not tracked is settled.
    """

    generation: int = 0
    dated: bool = False
    created_at: float | None = None
    recorded_at: float | None = None
    settled_before: float | None = None


class Changes(msgspec.Struct):
    """What is written in one transaction, then applied to the book in memory.

    `marks` are those after a recorded list, None where none was recorded. `released` are the series whose hold ends.
    """

    marks: Marks | None = None
    rows: dict[str, Row | None] = {}
    born: dict[Key, Series] = {}
    totals: dict[Key, float] = {}
    days: dict[DayKey, float] = {}
    released: list[Key] = []


class Book(msgspec.Struct):
    """One workspace's rows, series and marks, as they are committed.

    `number` is its key in the database, `revision` the number of `Changes` that it has gone through.
    """

    number: int
    revision: int = 0
    marks: Marks = Marks()
    rows: dict[str, Row] = {}
    series: dict[Key, Series] = {}
    models: set[str] = set()

    def apply(self, changes: Changes) -> None:
        """Make the book what the ledger is after the commit of `changes`."""
        for task, row in changes.rows.items():
            if row is None:
                self.rows.pop(task, None)
            else:
                self.rows[task] = row
        self.series.update(changes.born)
        self.models.update(key.model for key in changes.born)
        for key, increase in changes.totals.items():
            self.series[key].value += increase
        for key in changes.released:
            self.series[key].held = False
        self.marks = changes.marks or self.marks
        self.revision += 1


def series_of(model: str, reasons: Iterable[str]) -> list[Key]:
    """Return all the series of a model: they are born together, so that no increase is lost."""
    return [
        *(Key(model, total) for total in PLAIN_TOTALS),
        *(Key(model, "failed", reason) for reason in reasons),
        *(Key(model, "duration_bucket", bound) for bound in DURATION_BOUNDS),
    ]
