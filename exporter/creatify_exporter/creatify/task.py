"""A task as the API lists it, reduced to what is counted, and its label values.

Throughout the exporter `credits_used` is what a task says that it has used, in credits, and `created_at` when it was
created. Here that is a datetime, as the API writes it; everywhere else a name in `_at` is in seconds since the epoch.
"""

from datetime import datetime
from functools import lru_cache
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from creatify_exporter import redaction

Status = Literal["pending", "running", "done", "failed", "unknown"]
STATUSES: Final[tuple[Status, ...]] = ("pending", "running", "done", "failed")
PREVIEW: Final = "preview"
"""A pending task that waits for a person, who looks at its preview; a status of the gauges only."""
STATUS_LABELS: Final[tuple[str, ...]] = (*STATUSES, PREVIEW, "unknown")
UNFINISHED: Final[frozenset[Status]] = frozenset({"pending", "running"})
FINISHED: Final[frozenset[Status]] = frozenset({"done", "failed"})

RANK: Final[dict[Status, int]] = {"unknown": 0, "pending": 1, "running": 2, "done": 3, "failed": 4}
"""Of two entries with one id the one of the higher rank holds: the other is a copy that came late."""

Field = Literal["task", "id", "model_name", "status", "failed_reason", "credits_used", "created_at"]
"""What can be at fault in an entry of the list; `task` if the entry is no object at all."""
FIELDS: Final[tuple[Field, ...]] = get_args(Field)

# An id is a UUID; a key of the ledger must not be as long as somebody's text. No task costs a billion credits, and one
# more credit would not change a sum of 1e300.
TaskId = Annotated[str, Meta(min_length=1, max_length=255)]
Credits = Annotated[float, Meta(ge=0, le=1e9)]
Moment = Annotated[datetime, Meta(tz=True)]


class Task(msgspec.Struct, gc=False):
    """One entry of the list. None stands for absent, `null` or unreadable, and so does an empty `id`.

    `created_at` has an offset; `credits_used` is finite and not negative.
    """

    id: TaskId
    model_name: str | None = None
    status: str | None = None
    failed_reason: str | None = None
    credits_used: Credits | None = None
    created_at: Moment | None = None


def known_status(status: str | None) -> Status:
    """Return the status that is counted: one of the documented four, else `unknown`."""
    if status == PREVIEW:
        return "pending"
    return status if status in STATUSES else "unknown"


def status_label(status: str | None) -> str:
    """Return the status as a label value of the gauges."""
    return PREVIEW if status == PREVIEW else known_status(status)


OTHER: Final = "other"
"""The label value for all models that have none of their own, and for all reasons that no rule matches."""

MAX_LABEL_LENGTH: Final = 100
MAX_NAME_LENGTH: Final = 4 * MAX_LABEL_LENGTH
"""Characters of a model's name that are kept: more than a label holds, since white space is folded there."""


def model_label(name: str | None) -> str:
    """Return a model's name as a label value: one line of at most 100 characters, `unknown` if it has none.

    Prometheus drops a label whose value is empty, and cannot store a lone surrogate. A key in a name, from
    an API that echoes what it was sent, is redacted as in the log.
    """
    return _label(redaction.mask((name or "")[:MAX_NAME_LENGTH]))


@lru_cache(maxsize=1000)
def _label(name: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in name)
    return " ".join(printable.split())[:MAX_LABEL_LENGTH] or "unknown"
