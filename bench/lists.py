"""Lists of any length, as files: every task has its own id and date, and texts of a simulated account.

Each file has a companion `.new`: a task in the same notation, followed by a comma, which the server puts before all
others, because a real list changes between scrapes.
"""

import gzip
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Final, NamedTuple
from uuid import UUID

from creatify_exporter.simulator import COMPACT, REVERSED, SPACED, Account, Traffic
from creatify_exporter.simulator.listing import Encoder

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR  # the default of ledger.settle_after
NOTATIONS: Final = {"compact": COMPACT, "white-spaced": SPACED, "other order": REVERSED}

NEW_ID: Final = b"{id of a new task}"
NEW_DATE: Final = b"{date of a new task}"
_NO_DATE: Final = b"null"

_TEMPLATES: Final = 500


class Template(NamedTuple):
    """A finished task, as the bytes around its id and its creation time, in either order."""

    before: bytes
    between: bytes
    behind: bytes
    id_first: bool

    def filled(self, identity: bytes, created: bytes) -> bytes:
        """Return a task with this id and creation time."""
        first, second = (identity, created) if self.id_first else (created, identity)
        return b"".join((self.before, first, self.between, second, self.behind))


def write(  # noqa: PLR0913 - all properties of a list
    path: Path,
    tasks: int,
    *,
    young: float | None = 0.001,
    scattered: bool = False,
    notation: str = "compact",
    models: int | None = None,
) -> int:
    """Write a list, newest task first; return its size in bytes.

    `young` is the share of tasks younger than a day (at least one task); None: no task has a creation time. `scattered`
    shuffles the tasks, as in a list sorted by random ids. `models` is the maximum number of models.
    """
    templates = cycle(_templates(notation, models))
    comma = NOTATIONS[notation].item.encode()
    new = next(templates).filled(NEW_ID, _NO_DATE if young is None else b'"%b"' % NEW_DATE)
    path.with_suffix(".new").write_bytes(new + comma)
    with path.open("wb") as file:
        dates = [_NO_DATE] * tasks if young is None else list(_dates(tasks, young))
        if scattered:
            Random(1).shuffle(dates)  # noqa: S311 - an order
        for number, created in enumerate(dates):
            file.write(comma if number else b"[")
            file.write(next(templates).filled(str(UUID(int=number, version=4)).encode(), created))
        file.write(b"]")
        return file.tell()


def compress(source: Path, target: Path) -> None:
    """Compress like a web server, without the bracket before the first task."""
    with source.open("rb") as plain, gzip.open(target, "wb", compresslevel=1) as packed:
        plain.seek(1)
        while piece := plain.read(1 << 20):
            packed.write(piece)


def _dates(tasks: int, young: float) -> Iterator[bytes]:
    """Yield the times of creation: the young tasks over the last day, the others over the year before."""
    now = time.time()
    fresh = max(1, round(tasks * young))
    for number in range(tasks):
        rest = number - fresh
        age = 0.9 * DAY * (number + 1) / fresh if rest < 0 else 2 * DAY + 365 * DAY * rest / tasks
        yield datetime.fromtimestamp(now - age, UTC).strftime('"%Y-%m-%dT%H:%M:%SZ"').encode()


def _templates(notation: str, models: int | None) -> list[Template]:
    account = Account(1, 0.0, Traffic(rate=1.0, burst_ratio=0))
    ended = [task for task in account.tasks(HOUR) if task.settled <= HOUR]
    names = sorted({task.model for task in ended})[:models]
    encoder = Encoder(account, NOTATIONS[notation])
    chosen = [task for task in ended if task.model in names][:_TEMPLATES]
    return [_template(b"".join(encoder.entry(task, HOUR))) for task in chosen]


def _template(entry: bytes) -> Template:
    task = json.loads(entry)
    identity, created = task["id"].encode(), json.dumps(task["created_at"]).encode()
    (first, head), (second, tail) = sorted((entry.index(each), each) for each in (identity, created))
    return Template(entry[:first], entry[first + len(head) : second], entry[second + len(tail) :], head == identity)
