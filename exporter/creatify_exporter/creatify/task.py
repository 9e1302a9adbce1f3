"""A task, reduced to the fields that are counted; its label values; and the decoding of an entry of a list into one.

Throughout the exporter, `credits_used` is the number of credits that a task reports, and `created_at` the time of its
creation. Here that time is a datetime, as in the API; everywhere else a name in `_at` is in seconds since the epoch.
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
"""The status of a pending task that waits for a person to look at its preview; only gauges have it."""
STATUS_LABELS: Final[tuple[str, ...]] = (*STATUSES, PREVIEW, "unknown")
UNFINISHED: Final[frozenset[Status]] = frozenset({"pending", "running"})
FINISHED: Final[frozenset[Status]] = frozenset({"done", "failed"})

RANK: Final[dict[Status, int]] = {"unknown": 0, "pending": 1, "running": 2, "done": 3, "failed": 4}
"""Of two entries with one id, the one with the higher rank counts: the other is an outdated copy."""

Field = Literal["task", "id", "model_name", "status", "failed_reason", "credits_used", "created_at"]
"""The parts of an entry that can be at fault; `task` if the entry is not an object."""
FIELDS: Final[tuple[Field, ...]] = get_args(Field)

# An id is a UUID; its bound keeps the keys of the ledger short. No task costs a billion credits, and a sum of 1e300
# would absorb each further credit.
TaskId = Annotated[str, Meta(min_length=1, max_length=255)]
Credits = Annotated[float, Meta(ge=0, le=1e9)]
Moment = Annotated[datetime, Meta(tz=True)]

# msgspec raises ValueError for bad text (its own, or Python's for bytes that are not UTF-8), the other for depth.
REFUSALS: Final = (ValueError, RecursionError)
_LARGEST: Final = sys.float_info.max
# A string, an array or an object that is not empty.
_PREVIEW: Final = re.compile(rb'\s*(?:"[^"]|\[\s*[^\]\s]|\{\s*[^}\s])')
_ABSENT: Final = msgspec.Raw(b"")
# A field name that no entry has.
_NO_FIELD: Final = "no field of this list is its model"


class Task(msgspec.Struct, gc=False):
    """One entry of the list. None means absent, `null` or unreadable; for `id`, the empty string does.

    `status` is the list's own word until `EntryDecoder` translates it into a `Status` or `preview`. `created_at` has an
    offset; `credits_used` is finite and not negative.
    """

    id: TaskId
    model_name: str | None = None
    status: str | None = None
    failed_reason: str | None = None
    credits_used: Credits | None = None
    created_at: Moment | None = None


def counted_status(status: str | None) -> Status:
    """Return the status that the ledger counts: a preview is pending; None is `unknown`."""
    if status == PREVIEW:
        return "pending"
    return status if status in STATUSES else "unknown"


def status_label(status: str | None) -> str:
    """Return the status that gauges show: previews have their own label value; None is `unknown`."""
    return PREVIEW if status == PREVIEW else counted_status(status)


OTHER: Final = "other"
"""The label value of all models without their own label, and of all failures that no rule matches."""

MAX_LABEL_LENGTH: Final = 100
MAX_NAME_LENGTH: Final = 4 * MAX_LABEL_LENGTH
"""Characters of a model's name that are kept: more than a label holds, because a label folds white space."""


def model_label(name: str | None) -> str:
    """Return a model's name as a label value: one line of at most 100 characters, or `unknown` if it is empty.

    Prometheus drops labels with an empty value, and cannot store lone surrogates. API keys in a name, from an API that
    echoes the request, are redacted as in the log.
    """
    return _label(redaction.mask((name or "")[:MAX_NAME_LENGTH]))


@lru_cache(maxsize=1000)
def _label(name: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in name)
    return " ".join(printable.split())[:MAX_LABEL_LENGTH] or "unknown"


class EntryDecoder:
    """Decodes the entries of one list. Only their top level is read: a nested object may look like a task."""

    def __init__(self, task_list: TaskList) -> None:
        self._list = task_list
        self._type = _entry_type(task_list.api, task_list.model_field, has_previews=task_list.has_previews)
        self._batch: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[self._type])  # type: ignore[name-defined]  # a type made from data
        self._one: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._type)

    def decode_batch(self, array: memoryview) -> list[Task]:
        """Return the tasks of a JSON array; raise one of `REFUSALS` if it is malformed or a field has another type."""
        return self._completed(self._batch.decode(array))

    def read(self, element: bytes, faults: Counter[Field]) -> Task | None:
        """Return the readable part of one element, None if it is not an object or nested too deep; count the faults.

        Raises `FetchError` if the element is not JSON.
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
            # Not strict: documented strings turned out to be numbers, so numbers may turn out to be strings.
            credits_used=_read(entry.get("credits_used"), "credits_used", Credits, faults, strict=False),
            created_at=created_at.replace(tzinfo=created_at.tzinfo or UTC) if created_at else None,
        )
        if self._list.has_previews:
            task.preview, task.previews = (_raw(entry.get(name)) for name in ("preview", "previews"))
        [completed] = self._completed([task])
        return completed

    def _completed(self, tasks: list[Any]) -> list[Task]:
        """Translate the words of the list into statuses, and give the default model to tasks without a model."""
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
    """Give the status `preview` to pending tasks that wait for a person, not for Creatify."""
    for task in tasks:
        if task.status == "pending" and (_PREVIEW.match(task.preview) or _PREVIEW.match(task.previews)):
            task.status = PREVIEW
        # A raw value would keep the buffer that it was decoded from alive.
        task.preview = task.previews = _ABSENT


@cache
def _entry_type(api: str, model_field: str | None, *, has_previews: bool) -> Any:  # noqa: ANN401 - a type made from data
    """Return the type of a list's entries: `Task`, with its model read from `model_field`, and perhaps its previews.

    That of `lipsyncs`, which has both, is as if it were written

        class lipsyncs_entry(Task, gc=False):
            model_name: str | None = msgspec.field(default=None, name="model_version")
            preview: msgspec.Raw = _ABSENT
            previews: msgspec.Raw = _ABSENT
    """
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
    """Read JSON with the standard library, which accepts lone surrogates and bytes that are not UTF-8.

    Raises `FetchError` if it is not JSON, RecursionError if it is nested too deep.
    """
    try:
        text = body.decode("utf-8", "surrogateescape")
        return json.loads(text, parse_constant=_refuse, parse_int=_integer, parse_float=_float)
    except ValueError:
        raise malformed("it cannot be read") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> float:
    # Python refuses to convert thousands of digits into an int, which are valid JSON.
    return int(digits) if len(digits) < 32 else _float(digits)  # noqa: PLR2004 - longer than any id or amount


def _float(digits: str) -> float:
    # Finite, because the array of an envelope is written as JSON again. Any real amount is far smaller.
    return min(max(float(digits), -_LARGEST), _LARGEST)


def malformed(what: str) -> FetchError:
    """Return the error for a list that is not JSON; `what` says why."""
    return FetchError("invalid_body", f"the list is not valid JSON: {what}")
