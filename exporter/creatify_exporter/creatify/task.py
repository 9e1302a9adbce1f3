"""A task as the API lists it, reduced to what is counted, its label values, and how an entry of a list becomes one.

Throughout the exporter `credits_used` is what a task says that it has used, in credits, and `created_at` when it was
created. Here that is a datetime, as the API writes it; everywhere else a name in `_at` is in seconds since the epoch.
"""

import json
import re
import sys
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Annotated, Any, Final, Literal, NoReturn, get_args

import msgspec
from msgspec import Meta

from creatify_exporter import redaction
from creatify_exporter.errors import FetchError
from creatify_exporter.lists import REJECTED, TaskList

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

# msgspec refuses text with a ValueError (its own, or Python's for bytes that are not UTF-8), depth with the other.
REFUSALS: Final = (ValueError, RecursionError)
_LARGEST: Final = sys.float_info.max
# A text, an array or an object that is not empty.
_PREVIEW: Final = re.compile(rb'\s*(?:"[^"]|\[\s*[^\]\s]|\{\s*[^}\s])')
_ABSENT: Final = msgspec.Raw(b"")
# No entry has a field of that name.
_NO_FIELD: Final = "no field of this list is its model"


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


class EntryDecoder:
    """Decodes the entries of one list. Only their top level is read: what is nested may look like a task of its own.

    What is not well-formed, or does not fit, is refused with a ValueError or a RecursionError.
    """

    def __init__(self, task_list: TaskList) -> None:
        self._list = task_list
        self._type = _entry_type(task_list.api, task_list.model_field, has_previews=task_list.has_previews)
        self._batch: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[self._type])  # type: ignore[name-defined]  # a type made from data
        self._one: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._type)

    def decode_batch(self, array: memoryview) -> list[Task]:
        """Return the tasks of a JSON array."""
        return self._completed(self._batch.decode(array))

    def read(self, element: bytes, faults: Counter[Field]) -> Task | None:
        """Return what can be read of one element, None if it is no object or nested too deep; count what cannot.

        Raises `FetchError` for what is no JSON.
        """
        with suppress(*REFUSALS):
            [task] = self._completed([self._one.decode(element)])
            return task
        with suppress(RecursionError):
            entry = read_json(element)
            if isinstance(entry, dict):
                return self._convert(entry, faults)
        faults["task"] += 1
        return None

    def _convert(self, entry: dict[str, Any], faults: Counter[Field]) -> Task:
        created_at = _read(entry.get("created_at"), "created_at", datetime, faults)
        task = self._type(
            id=_id(entry, faults),
            model_name=_read(entry.get(self._list.model_field or _NO_FIELD), "model_name", str, faults),
            status=_read(entry.get("status"), "status", str, faults),
            failed_reason=_read(entry.get("failed_reason"), "failed_reason", str, faults),
            # Where documented strings turned out to be numbers, numbers may turn out to be strings.
            credits_used=_read(entry.get("credits_used"), "credits_used", Credits, faults, strict=False),
            created_at=created_at.replace(tzinfo=created_at.tzinfo or UTC) if created_at else None,
        )
        if self._list.has_previews:
            task.preview, task.previews = (_raw(entry.get(name)) for name in ("preview", "previews"))
        [completed] = self._completed([task])
        return completed

    def _completed(self, tasks: list[Any]) -> list[Task]:
        """Replace the list's words by statuses, and give the default model to tasks without one."""
        statuses, default_model = self._list.statuses, self._list.default_model
        for task in tasks:
            if not (task.model_name and task.model_name.strip()):
                task.model_name = default_model
            word = task.status
            if word is None:
                continue
            task.status = statuses.get(word, "unknown")
            if word == REJECTED and task.status == "failed" and not (task.failed_reason or "").strip():
                task.failed_reason = REJECTED
        if self._list.has_previews:
            _mark_previews(tasks)
        return tasks


def _mark_previews(tasks: list[Any]) -> None:
    """Tell tasks that wait for a person from those that wait for Creatify."""
    for task in tasks:
        if task.status == "pending" and (_PREVIEW.match(task.preview) or _PREVIEW.match(task.previews)):
            task.status = PREVIEW
        # They keep the buffer that they were decoded from.
        task.preview = task.previews = _ABSENT


@cache
def _entry_type(api: str, model_field: str | None, *, has_previews: bool) -> Any:  # noqa: ANN401 - a type made from data
    """Return the type of a list's entries: a `Task` whose model is in another field, with what tells of a preview."""
    fields: list[Any] = []
    if model_field != "model_name":
        fields.append(("model_name", str | None, msgspec.field(default=None, name=model_field or _NO_FIELD)))
    if has_previews:
        fields += [("preview", msgspec.Raw, _ABSENT), ("previews", msgspec.Raw, _ABSENT)]
    return msgspec.defstruct(f"{api}_entry", fields, bases=(Task,), gc=False) if fields else Task


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(b'"preview"') if value and isinstance(value, str | list | dict) else _ABSENT


def _read(value: object, field: Field, kind: Any, faults: Counter[Field], *, strict: bool = True) -> Any:  # noqa: ANN401 - any field's type
    if value is None:
        return None
    try:
        return msgspec.convert(value, kind, strict=strict)
    except ValueError:
        faults[field] += 1
        return None


def _id(entry: dict[str, Any], faults: Counter[Field]) -> str:
    value = entry.get("id")
    if type(value) is int:
        value = str(value)
    try:
        identity: str = msgspec.convert(value, TaskId)
        # A lone surrogate cannot be stored.
        identity.encode()
    except ValueError:
        faults["id"] += 1
        return ""
    return identity


def read_json(body: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Read JSON with the standard library, which takes lone surrogates and bytes that are not UTF-8.

    Raises `FetchError` if it is no JSON, RecursionError if it is nested too deep.
    """
    try:
        text = body.decode("utf-8", "surrogateescape")
        return json.loads(text, parse_constant=_refuse, parse_int=_integer, parse_float=_float)
    except ValueError:
        raise malformed("it cannot be read") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> float:
    # Python refuses to read thousands of digits as an int, and JSON does not.
    return int(digits) if len(digits) < 32 else _float(digits)  # noqa: PLR2004 - longer than any id or amount


def _float(digits: str) -> float:
    # Not infinite, since an envelope that is taken apart is written as JSON again; far beyond any amount anyway.
    return min(max(float(digits), -_LARGEST), _LARGEST)


def malformed(what: str) -> FetchError:
    """Return the failure of a list that is no JSON."""
    return FetchError("invalid_body", f"the list is not valid JSON: {what}")
