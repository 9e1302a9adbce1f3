"""A task as the API lists it, reduced to what is counted."""

from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

API: Final = "text_generator"

Status = Literal["unknown", "pending", "running", "done", "failed"]
STATUSES: Final[tuple[Status, ...]] = ("pending", "running", "done", "failed")
FINISHED: Final[frozenset[Status]] = frozenset({"done", "failed"})

Field = Literal["task", "id", "model_name", "status", "failed_reason", "credits_used", "created_at"]
"""What can be at fault in an entry of the list; `task` where the entry is no object at all."""


class Task(msgspec.Struct, gc=False):
    """One entry of the list; None stands for absent, `null` or unreadable.

    `id` is None where it cannot be read: such an entry is seen in the list, but cannot be counted.
    `created_at` is as the API wrote it; a time without offset means UTC (see `created`).
    """

    id: str | None = None
    model_name: str | None = None
    status: str | None = None
    failed_reason: str | None = None
    credits_used: float | None = None
    created_at: datetime | None = None


def known(status: str | None) -> Status:
    """The status as a label value: one of the documented four, else `unknown`."""
    return status if status in STATUSES else "unknown"  # type: ignore[return-value]


def created(task: Task) -> float | None:
    """When the task was created, in seconds since the epoch."""
    moment = task.created_at
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
