"""Chunks of a list that need not be decoded again: their bytes are known, and their tasks are no news to the ledger.

From one scrape to the next nearly all bytes of a list are the same, though not in the same place: new tasks push them
along, old ones leave. So a chunk is found by its first bytes, and proved by a digest of all its bytes. Stored with it
are a summary of its tasks, and on what basis they are no news.

A batch in which no task may still change is one chunk. Else the chunks are what lies between those that may, unless it
is too short.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import xxhash

BATCH_BYTES: Final = 512 * 1024
"""How full a buffer gets before it is cut, and how much is read at once; the fastest of what was measured."""

# Bytes: usually the id of a task or its times are among them, so that no two chunks begin alike.
_HEAD: Final = 256
# A short chunk is at least this part of a batch, any other one half of it; none is longer than three.
_SHORT: Final = 16
_MAX_SHORT: Final = 8192
# There are at most two short chunks for each group of tasks that may still change, and a few more.
_SPARE_CHUNKS: Final = 64
# Searches for candidates that are left out, at most, after one that found none.
_MAX_SKIPS: Final = 16


class Chunk(NamedTuple):
    """Whole elements of a list, without the bracket or comma before them and the comma behind them.

    `head` is a hash of their first bytes, `digest` of all, `length` their number. `summary` sums up their tasks, and
    `basis` is why these are no news, for the ledger to judge.
    """

    head: int
    length: int
    digest: bytes
    summary: bytes
    basis: Any


class ChunkCache:
    """Holds the chunks of the list before, to look up, and stores those of the present list.

    All methods take a buffer that begins with one byte (a bracket or a comma) before the first element. Memory: some
    600 bytes for each chunk, and what its basis needs. One cache is for one list; `successor` makes that of the next.
    `batch_bytes` is the length of a batch; `holds` says of a known chunk whether its basis still holds.
    """

    def __init__(self, batch_bytes: int = BATCH_BYTES, holds: Callable[[Any], bool] = lambda _basis: False) -> None:
        self.batch_bytes, self._holds = batch_bytes, holds
        # Groups of tasks that may still change, and pieces that are too short for a full chunk.
        self._groups = self._fragments = 0
        self._known: dict[int, Chunk] = {}
        self._stored: dict[int, Chunk] = {}
        # Whether the buffer has the head of a known chunk, but not its digest, or its basis no longer holds.
        self._refuted = False
        self._skips, self._penalty = 0, 1

    def __len__(self) -> int:
        """Return the number of chunks stored."""
        return len(self._stored)

    def successor(self, holds: Callable[[Any], bool]) -> "ChunkCache":
        """Return the cache for the next list, which knows the chunks stored here for as long as their basis `holds`."""
        successor = ChunkCache(self.batch_bytes, holds)
        successor._known = self._stored
        return successor

    def lookup(self, buffer: memoryview) -> Chunk | None:
        """Return the known chunk that the buffer begins with, if a comma follows it and its basis holds."""
        chunk = self._candidate(buffer)
        if chunk is None or len(buffer) < chunk.length + 2:
            return None
        is_same = buffer[1 + chunk.length] == ord(",") and _digest(buffer, chunk.length) == chunk.digest
        if not (is_same and self._holds(chunk.basis)):
            self._refuted = True
            self._note_search(success=False)
            return None
        self._keep(chunk)
        return chunk

    def may_match(self, buffer: memoryview) -> bool:
        """Return whether the buffer may begin with a known chunk whose end has not arrived yet."""
        return self._candidate(buffer) is not None

    def store(self, buffer: memoryview, length: int, summary: bytes, basis: Any) -> None:  # noqa: ANN401 - the ledger's
        """Remember the elements that are the first `length` bytes in the buffer."""
        self._keep(Chunk(_head(buffer, 0), length, _digest(buffer, length), summary, basis))

    def _keep(self, chunk: Chunk) -> None:
        self._stored[chunk.head] = chunk
        self._fragments += 2 * chunk.length < self.batch_bytes

    @property
    def _shortest(self) -> float:
        return self.batch_bytes / (_SHORT if self._fragments < _MAX_SHORT else 2)

    def is_worth(self, length: float) -> bool:
        """Return whether a chunk of this length is worth its place: not too short, nor so long that it comes late."""
        return self._shortest <= length <= 3 * self.batch_bytes

    def note_batch(self, length: int, groups: int) -> None:
        """Learn from a decoded batch in how many groups the tasks stand that may still change."""
        self._groups += groups
        self._fragments += not groups and length < self._shortest

    @property
    def is_fragmented(self) -> bool:
        """Whether tasks that were scattered have settled since, so that there are too many short chunks."""
        return self._fragments > _SPARE_CHUNKS + 2 * self._groups

    def discard(self) -> None:
        """Forget what was stored, so that the next list is decoded whole."""
        self._stored.clear()

    def reset(self) -> None:
        """Forget what is known about the buffer: it begins with something else now."""
        self._refuted = False

    def candidates(self, look: re.Pattern[bytes], buffer: memoryview) -> Iterator[int]:
        """Yield the first comma, among those that `look` finds, that a known chunk seems to follow.

        If the list has been given a new order there is none; then it is searched less and less often.
        """
        if not self._known:
            return
        if self._skips:
            self._skips -= 1
            return
        for found in look.finditer(buffer, 1):
            if _head(buffer, found.start()) in self._known:
                self._note_search(success=True)
                yield found.start()
                return
        self._note_search(success=False)

    def _candidate(self, buffer: memoryview) -> Chunk | None:
        if self._refuted or not self._known or len(buffer) <= _HEAD:
            return None
        return self._known.get(_head(buffer, 0))

    def _note_search(self, *, success: bool) -> None:
        self._penalty = 1 if success else min(2 * self._penalty, _MAX_SKIPS)
        self._skips = self._penalty - 1


def _head(buffer: memoryview, place: int) -> int:
    return xxhash.xxh3_64_intdigest(buffer[place + 1 : place + 1 + _HEAD])


def _digest(buffer: memoryview, length: int) -> bytes:
    return xxhash.xxh3_128_digest(buffer[1 : 1 + length])
