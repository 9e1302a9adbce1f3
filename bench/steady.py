"""What the ledger costs when every list brings one new task: for a short and for a very long list of settled tasks."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

from creatify_exporter.collector import rules
from creatify_exporter.config import Config, Workspace
from creatify_exporter.credential import Credential
from creatify_exporter.ledger import Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.tasks import API, Task

_UNSETTLED: Final = 100
_BATCH: Final = 160  # tasks in a full buffer


class Steady(NamedTuple):
    """Milliseconds of CPU: to look at all tasks of a list, and to commit it."""

    look: float
    commit: float


def measured(sizes: tuple[int, ...], runs: int) -> dict[int, Steady]:
    """Return the medians by the length of the list, measured in turns."""
    scrapes = {tasks: _scrapes(tasks) for tasks in sizes}
    for each in scrapes.values():
        next(each)  # the first contact
    rounds = [{tasks: next(each) for tasks, each in scrapes.items()} for _ in range(runs)]
    return {
        tasks: Steady(*(statistics.median(values) for values in zip(*(each[tasks] for each in rounds), strict=True)))
        for tasks in sizes
    }


def _scrapes(tasks: int) -> Iterator[Steady]:
    now = time.time()
    workspace = Workspace(name="default", api_id=Credential("benchmark"), api_key=Credential("benchmark-key"))
    listed = [_task(number, now if number < _UNSETTLED else now - 1e6) for number in range(tasks)]
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Ledger(SqliteStore(Path(folder) / "ledger.db"), rules(Config(workspaces=(workspace,))))) as ledger,
    ):
        for number in count(tasks):
            listed.append(_task(number, now))
            with closing(ledger.begin("default", API)) as recording:
                began = time.thread_time()
                for first in range(0, len(listed), _BATCH):
                    recording.add(listed[first : first + _BATCH])
                looked = time.thread_time()
                assert recording.commit(time.time())
                yield Steady(1e3 * (looked - began), 1e3 * (time.thread_time() - looked))


def _task(number: int, created: float) -> Task:
    return Task(
        id=f"task-{number}",
        model_name="gemini-2.5-pro",
        status="done",
        credits_used=1.0,
        created_at=datetime.fromtimestamp(created, UTC),
    )
