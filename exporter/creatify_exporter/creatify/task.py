"""A task as the API lists it, reduced to what is counted."""

from datetime import datetime
from functools import lru_cache
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from creatify_exporter import redaction

API: Final = "text_generator"

Status = Literal["pending", "running", "done", "failed", "unknown"]
STATUSES: Final[tuple[Status, ...]] = ("pending", "running", "done", "failed")
UNFINISHED: Final[frozenset[Status]] = frozenset({"pending", "running"})
FINISHED: Final[frozenset[Status]] = frozenset({"done", "failed"})

Field = Literal["task", "id", "model_name", "status", "failed_reason", "credits_used", "created_at"]
"""What can be at fault in an entry of the list; `task` where the entry is no object at all."""
FIELDS: Final[tuple[Field, ...]] = get_args(Field)

# An id is a UUID; a key of the ledger must not be as long as somebody's text. No task costs a billion credits, and a
# sum that once took in 1e300 would never feel another credit.
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


def known(status: str | None) -> Status:
    """Return the status as a label value: one of the documented four, else `unknown`."""
    return status if status in STATUSES else "unknown"


OTHER: Final = "other"
_LONGEST_LABEL: Final = 100


def model_label(name: str | None) -> str:
    """Return a model's name as a label value: one line of at most 100 characters, `unknown` where there is none.

    Prometheus drops a label whose value is empty, and cannot store a lone surrogate. A name that has a key in it, as of
    an API that echoes what it was sent, is hidden as in the log.
    """
    return _label(redaction.mask((name or "")[: 4 * _LONGEST_LABEL]))


@lru_cache(maxsize=1000)
def _label(name: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in name)
    return " ".join(printable.split())[:_LONGEST_LABEL] or "unknown"
