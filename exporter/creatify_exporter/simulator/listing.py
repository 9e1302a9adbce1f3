"""The list of an account at one instant: which tasks, in which order, in which notation."""

import json
import random
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Literal, NamedTuple

from creatify_exporter.simulator import texts
from creatify_exporter.simulator.account import Account
from creatify_exporter.simulator.task import Step, Task

SHAPES = 64  # different texts: enough variety for a decoder, few enough to be kept encoded


class Style(NamedTuple):
    """A notation of JSON: the separators after an item and after a key, and whether a task's fields are reversed."""

    item: str
    key: str
    reverse: bool


COMPACT = Style(",", ":", reverse=False)
SPACED = Style(" ,\r\n\t", " : ", reverse=False)
REVERSED = Style(",", ":", reverse=True)


@dataclass(frozen=True)
class Listing:
    """How the list behaves. The real list's order, completeness, cap and retention are unknown."""

    newest: int | None = None
    """Maximum number of tasks, the newest ones."""
    younger_than: float | None = None
    """Maximum age of a task in seconds."""
    order: Literal["newest", "oldest", "shuffled"] = "newest"
    repeats: bool = False
    """Every seventh entry is repeated."""
    page_size: int | None = None
    """Number of tasks on a page, as `{"count", "next", "previous", "results"}`; None: one array."""
    overlap: int = 0
    """Number of tasks that each page repeats from the end of the previous one; less than `page_size`."""
    style: Style = COMPACT

    def tasks(self, account: Account, at: float) -> list[Task]:
        """Return the tasks in the list at an instant, in its order."""
        tasks = account.tasks(at) if self.younger_than is None else account.tasks(at, at - self.younger_than)
        tasks = tasks[max(0, len(tasks) - self.newest) :] if self.newest is not None else tasks
        if self.order == "newest":
            tasks.reverse()
        elif self.order == "shuffled":
            # The same seed and instant give the same order; no secret depends on it.
            random.Random(f"{account.seed}/{at}").shuffle(tasks)  # noqa: S311
        if self.repeats:
            tasks = [task for number, task in enumerate(tasks) for _ in range(2 if number % 7 == 3 else 1)]  # noqa: PLR2004 - any one of seven
        return tasks


class Encoder:
    """Encodes tasks in one notation, as pieces with shared bytes: 100,000 tasks of 3 KB take 50 MB, not 300.

    A task consists of three pieces: its first fields, texts shared with other tasks, and the fields that change.
    """

    def __init__(self, account: Account, style: Style) -> None:
        self.account = account
        self.product = account.product
        self.style = style
        self._settled: dict[int, tuple[bytes, bytes, bytes]] = {}
        self._texts = {
            (shape, done): _texts(account, shape, done=done, style=style)
            for shape in range(SHAPES)
            for done in (False, True)
        }

    def array(self, tasks: list[Task], at: float) -> list[bytes]:
        """Encode the tasks as they are at an instant: `[`, three pieces for each task, `]`."""
        settled, comma, pieces = self._settled, self.style.item.encode(), [b"["]
        for task in tasks:
            known = settled.get(task.number) if at >= task.settled else None
            pieces += known or self._entry(task, at)
            pieces.append(comma)
        if tasks:
            pieces.pop()
        pieces.append(b"]")
        return pieces

    def entry(self, task: Task, at: float) -> list[bytes]:
        """Encode one task as it is at an instant."""
        return list(self._entry(task, at))

    def _entry(self, task: Task, at: float) -> tuple[bytes, bytes, bytes]:
        step = task.step(at)
        first, last = self._front(task), self._back(task, step, at)
        if self.style.reverse:
            first, last = last, first
        comma = self.style.item.encode()
        text = self._texts[task.style % SHAPES, step.state == "done"]
        entry = (b"{" + first + comma, text, comma + last + b"}")
        if at >= task.settled:
            self._settled[task.number] = entry
        return entry

    def _front(self, task: Task) -> bytes:
        named = self.product.model_field
        return self._joined({"id": f'"{task.id}"', named: json.dumps(task.model) if named else None})

    def _back(self, task: Task, step: Step, at: float) -> bytes:
        """Encode the fields that change; tasks differ in how they write times, whole credits and missing reasons."""
        fields = {
            "status": f'"{step.status}"',
            "failed_reason": self._reason(task, step),
            "credits_used": self._credits(task, at),
            self.product.previews: self._preview(task, at),
        }
        if self.product.dated:
            zone = self.product.zones[task.style % len(self.product.zones)]
            fields["created_at"] = f'"{_written(task.created, zone)}"'
            fields["updated_at"] = f'"{_written(_updated(task, step, at), zone)}"'
        return self._joined(fields)

    def _reason(self, task: Task, step: Step) -> str | None:
        if step.state == "failed":
            return json.dumps(task.reason)
        return self.product.no_reason[(task.style >> 8 & 1) % len(self.product.no_reason)]

    def _credits(self, task: Task, at: float) -> str | None:
        """Encode credits; whole numbers with or without `.0`."""
        if self.product.reported == "never":
            return None
        billed = bool(task.bills) and task.bills[0][0] <= at
        if not billed and self.product.unbilled != "0":
            return self.product.unbilled
        value = task.credits(at)
        whole = value.is_integer() and (self.product.unit == 1 or task.style >> 9 & 1)
        return str(int(value) if whole else value)

    def _preview(self, task: Task, at: float) -> str | None:
        """Encode the preview that a task is waiting or has waited with."""
        there = any(step.state == "preview" and step.at <= at for step in task.steps)
        match self.product.previews:
            case "previews":
                return json.dumps([texts.MEDIA_LOOK_ALIKE] if there else [])
            case "preview" if there:
                return f'"https://cdn.example/{task.id}.mp4"'
            case "preview":
                return ("null", '""')[task.style >> 11 & 1]
            case _:
                return None

    def _joined(self, fields: dict[str, str | None]) -> bytes:
        """Join names and encoded values, without braces; fields without a value are left out."""
        item, key, _ = self.style
        return item.join([f'"{name}"{key}{value}' for name, value in fields.items() if value is not None]).encode()


def envelope(pieces: list[bytes], count: int, previous: str | None, following: str | None) -> list[bytes]:
    """Wrap an encoded array as one page."""
    head = json.dumps({"count": count, "next": following, "previous": previous}, separators=(",", ":"))[:-1]
    return [head.encode() + b',"results":[', *pieces[1:], b"}"]


def _texts(account: Account, shape: int, *, done: bool, style: Style) -> bytes:
    """Encode one of the texts, without braces: every 16th is long, every second one contains raw UTF-8."""
    # The text is reproducible; no secret.
    rng = random.Random(f"{account.seed}/texts/{shape}")  # noqa: S311
    size = int(account.traffic.text_bytes * (3 if shape % 16 == 0 else 0.6))
    nested = account.product.nested
    fields = texts.media(rng, size, nested, done=done) if nested else texts.contents(rng, size, done=done)
    return json.dumps(fields, separators=(style.item, style.key), ensure_ascii=shape % 2 == 0)[1:-1].encode()


def _updated(task: Task, step: Step, at: float) -> float:
    """Return `updated_at`: for most tasks a few milliseconds after creation, whatever has happened since."""
    if task.style >> 10 & 3:
        updated = task.created + 0.022 + (task.style >> 12) % 22 / 1000
        return updated if updated <= at else task.created
    return step.at


def _written(instant: float, zone: tzinfo) -> str:
    """Write an instant with microseconds, with `Z` as in the documentation or `-07:00` as in real replies."""
    return datetime.fromtimestamp(instant, zone).isoformat(timespec="microseconds").replace("+00:00", "Z")
