"""What one look at the account shows: which tasks, in which order, in which notation."""

import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Literal, NamedTuple

from creatify_exporter.simulator import texts
from creatify_exporter.simulator.account import Account, Task

SHAPES = 64  # so many different texts: variety enough for a decoder, little enough to be kept encoded

_ZONES = (UTC, UTC, timezone(timedelta(hours=-7)))


class Style(NamedTuple):
    """A notation of JSON: what stands after an item, after a key, and which end of a task comes first."""

    item: str
    key: str
    reverse: bool


COMPACT = Style(",", ":", reverse=False)
SPACED = Style(" ,\r\n\t", " : ", reverse=False)
REVERSED = Style(",", ":", reverse=True)


@dataclass(frozen=True)
class Listing:
    """How the list behaves. Nothing is known of the real one's order, completeness, cap or retention."""

    newest: int | None = None
    """Only so many of the newest tasks."""
    younger_than: float | None = None
    """Only tasks younger than so many seconds."""
    order: Literal["newest", "oldest", "shuffled"] = "newest"
    repeats: bool = False
    """Every seventh entry comes twice."""
    page_size: int | None = None
    """Answer `{"count", "next", "previous", "results"}`, so many tasks a page."""
    overlap: int = 0
    """So many tasks of each page are those that the page before it ends with; fewer than `page_size`."""
    style: Style = COMPACT

    def tasks(self, account: Account, at: float) -> list[Task]:
        """Return the tasks that the list holds at an instant, in its order."""
        tasks = account.tasks(at) if self.younger_than is None else account.tasks(at, at - self.younger_than)
        tasks = tasks[max(0, len(tasks) - self.newest) :] if self.newest is not None else tasks
        if self.order == "newest":
            tasks.reverse()
        elif self.order == "shuffled":
            # The same seed and instant shuffle alike; no secret depends on it.
            random.Random(f"{account.seed}/{at}").shuffle(tasks)  # noqa: S311
        if self.repeats:
            tasks = [task for number, task in enumerate(tasks) for _ in range(2 if number % 7 == 3 else 1)]  # noqa: PLR2004 - any one of seven
        return tasks


class Encoder:
    """Encodes tasks in one notation, as pieces whose bytes are shared: 100,000 tasks of 3 KB take 50 MB, not 300.

    A task is three pieces: its first fields, the texts that it shares with others, the fields that change.
    """

    def __init__(self, account: Account, style: Style) -> None:
        self.account = account
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
        pieces[-1:] = [b"]"] if tasks else [b"[", b"]"]
        return pieces

    def entry(self, task: Task, at: float) -> list[bytes]:
        """Encode one task as it is at an instant."""
        return list(self._entry(task, at))

    def _entry(self, task: Task, at: float) -> tuple[bytes, bytes, bytes]:
        first, last = self._front(task), self._back(task, at)
        if self.style.reverse:
            first, last = last, first
        comma = self.style.item.encode()
        text = self._texts[task.style % SHAPES, task.status(at) == "done"]
        entry = (b"{" + first + comma, text, comma + last + b"}")
        if at >= task.settled:
            self._settled[task.number] = entry
        return entry

    def _front(self, task: Task) -> bytes:
        return self._joined({"id": f'"{task.id}"', "model_name": json.dumps(task.model)})

    def _back(self, task: Task, at: float) -> bytes:
        """Encode what changes. Either notation of time, of whole credits and of no reason is used by some tasks."""
        status, credits_used = task.status(at), task.credits(at)
        no_reason = '""' if task.style >> 8 & 1 else "null"
        whole = credits_used.is_integer() and task.style >> 9 & 1
        return self._joined(
            {
                "status": f'"{status}"',
                "failed_reason": json.dumps(task.reason) if status == "failed" else no_reason,
                "credits_used": str(int(credits_used) if whole else credits_used),
                "created_at": f'"{_written(task.created, task.style)}"',
                "updated_at": f'"{_written(_updated(task, at), task.style)}"',
            }
        )

    def _joined(self, fields: dict[str, str]) -> bytes:
        """Join names and encoded values, without braces."""
        item, key, _ = self.style
        return item.join([f'"{name}"{key}{value}' for name, value in fields.items()]).encode()


def envelope(pieces: list[bytes], count: int, previous: str | None, following: str | None) -> list[bytes]:
    """Wrap an encoded array as one page."""
    head = json.dumps({"count": count, "next": following, "previous": previous}, separators=(",", ":"))[:-1]
    return [head.encode() + b',"results":[', *pieces[1:], b"}"]


def _texts(account: Account, shape: int, *, done: bool, style: Style) -> bytes:
    """Encode one of the texts, without braces: every sixteenth is long, every other one has raw UTF-8."""
    # The same text whenever it is drawn; no secret.
    rng = random.Random(f"{account.seed}/texts/{shape}")  # noqa: S311
    size = int(account.traffic.text_bytes * (3 if shape % 16 == 0 else 0.6))
    fields = texts.contents(rng, size, done=done)
    return json.dumps(fields, separators=(style.item, style.key), ensure_ascii=shape % 2 == 0)[1:-1].encode()


def _updated(task: Task, at: float) -> float:
    """Return `updated_at`: for most tasks some milliseconds after the creation, whatever happened since."""
    if task.style >> 10 & 3:
        updated = task.created + 0.022 + (task.style >> 12) % 22 / 1000
        return updated if updated <= at else task.created
    return max(instant for instant in (task.created, task.started, task.finished) if instant <= at)


def _written(instant: float, style: int) -> str:
    """Write an instant as the documentation does (`Z`) or as a sister endpoint does (microseconds and `-07:00`)."""
    zone = _ZONES[style % 3]
    return datetime.fromtimestamp(instant, zone).isoformat(timespec="microseconds").replace("+00:00", "Z")
