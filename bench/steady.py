"""What the ledger costs if every list has one new task: for a short and a very long list of settled tasks."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

from creatify_exporter.config.credential import Credential
from creatify_exporter.config.schema import Config, Workspace
from creatify_exporter.creatify.chunk_cache import ChunkCache
from creatify_exporter.creatify.decoder import Decoder
from creatify_exporter.exporter import rules
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.ledger.transaction import Transaction
from creatify_exporter.lists import TEXT_GENERATOR
from creatify_exporter.target import read_list

_UNSETTLED: Final = 100
_ENTRY: Final = (
    '{"id":"%036d","model_name":"gemini-2.5-pro","status":"done","credits_used":1.0,"created_at":"%s","response_text":"'
    + "x" * 2800
    + '"}'
)


class Steady(NamedTuple):
    """Milliseconds of CPU: to find the changes in a list, and to commit it."""

    look: float
    commit: float


def measured(sizes: tuple[int, ...], runs: int) -> dict[int, Steady]:
    """Return the medians by length of the list, measured in turns."""
    scrapes = {tasks: _scrapes(tasks) for tasks in sizes}
    for each in scrapes.values():
        next(each)  # the first scrape
        next(each)  # records which tasks have settled
    rounds = [{tasks: next(each) for tasks, each in scrapes.items()} for _ in range(runs)]
    return {
        tasks: Steady(*(statistics.median(values) for values in zip(*(each[tasks] for each in rounds), strict=True)))
        for tasks in sizes
    }


def _scrapes(tasks: int) -> Iterator[Steady]:
    now = time.time()
    workspace = Workspace(name="default", api_id=Credential("benchmark"), api_key=Credential("benchmark-key"))
    cache = ChunkCache()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Ledger(SqliteStore(Path(folder) / "ledger.db"), rules(Config(workspaces=(workspace,))))) as ledger,
    ):
        for length in count(tasks):
            with closing(ledger.begin("default", TEXT_GENERATOR.api)) as transaction:
                spent = _watched(transaction)
                cache = cache.successor(transaction.holds)
                read_list(Decoder(1 << 20, cache=cache).batches(_Body(_pieces(length, now))), transaction, cache)
                looked = spent[0]
                began = time.thread_time()
                assert ledger.commit(transaction, time.time())
                yield Steady(1e3 * looked, 1e3 * (time.thread_time() - began))


def _watched(transaction: Transaction) -> list[float]:
    """Return a list with the seconds of CPU time in which the ledger finds changes, to be read at the list's end."""
    spent = [0.0]
    for name in ("add", "holds", "skip"):
        setattr(transaction, name, _timed(getattr(transaction, name), spent))
    return spent


class _Body:
    """A response body, read from pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readinto(self, buffer: memoryview, /) -> int:
        piece = self._rest or next(self._pieces, b"")
        count = min(len(piece), len(buffer))
        buffer[:count], self._rest = piece[:count], piece[count:]
        return count


def _timed(call: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as what is timed
        began = time.thread_time()
        try:
            return call(*arguments, **named)
        finally:
            spent[0] += time.thread_time() - began

    return timed


def _pieces(length: int, now: float) -> Iterator[bytes]:
    """Yield a list whose last tasks are young."""
    old, young = (datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for at in (now - 1e6, now))
    before = "["
    for number in range(length):
        created = old if number < length - _UNSETTLED else young
        yield (before + _ENTRY % (number, created)).encode()
        before = ","
    yield b"]"
