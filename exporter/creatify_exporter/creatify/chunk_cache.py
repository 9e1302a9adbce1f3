"""Chunks of a list that need not be decoded again: their bytes are known, and hold no news for the ledger.

Nearly all bytes of a list are the same in the next scrape, but not in the same place: new tasks push them along, and
old tasks leave. A chunk is therefore found by its first bytes and confirmed by a digest of all its bytes. It is stored
with a summary of its tasks and with its basis: the reason why it holds no news.

Of each batch that was decoded, these chunks are stored:
- the whole batch, if no task in it can still change;
- otherwise, each run of tasks between those that can still change;
- but no chunk that is too short to be worth its memory, or so long that it would arrive late.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple, cast

import msgspec
import xxhash

BATCH_BYTES: Final = 512 * 1024
"""The length at which a buffer is cut, and the size of one read: the fastest value measured."""

# Bytes. They usually include the id or the times of a task, so that no two chunks begin alike.
_HEAD: Final = 256
# A chunk is at least 1/16 of a batch long, or half a batch once there are 8,192 short ones, and at most three batches.
_SHORT: Final = 16
_MAX_SHORT: Final = 8192
# Short chunks that are tolerated beyond two for each group of tasks that can still change.
_SPARE_CHUNKS: Final = 64
# At most so many searches for candidates are skipped after one that finds none.
_MAX_SKIPS: Final = 16
_WHITE_SPACE: Final = re.compile(rb"[ \t\n\r]*+")

_raw_decoder = msgspec.json.Decoder(list[msgspec.Raw])


class Chunk(NamedTuple):
    """Whole elements of a list, without the bracket or comma before them and the comma after them.

    `head` is a hash of the first bytes, `digest` a hash of all `length` bytes. `summary` sums up the tasks; `basis` is
    the reason why they are no news, which the cache does not look into: see `Transaction.holds`.
    """

    head: int
    length: int
    digest: bytes
    summary: bytes
    basis: Any


class ChunkCache:
    """Looks up the chunks of the previous fetch of a list, and stores those of the current one.

    A buffer passed to a method begins with one byte (a bracket or a comma) before the first element. Memory: about
    600 bytes for each chunk, and its basis. A cache serves one fetch; `successor` returns the cache for the next.
    `batch_bytes` is the length of a batch. `holds` returns whether a basis still holds: see `Transaction.holds`.
    """

    def __init__(self, batch_bytes: int = BATCH_BYTES, holds: Callable[[Any], bool] = lambda _basis: False) -> None:
        self.batch_bytes, self._holds = batch_bytes, holds
        # Groups of tasks that can still change, and pieces shorter than half a batch.
        self._groups = self._fragments = 0
        self._known: dict[int, Chunk] = {}
        self._stored: dict[int, Chunk] = {}
        # Whether the buffer begins like a known chunk that has another digest or whose basis no longer holds.
        self._refuted = False
        self._skips, self._penalty = 0, 1

    def __len__(self) -> int:
        """Return the number of chunks stored."""
        return len(self._stored)

    def successor(self, holds: Callable[[Any], bool]) -> "ChunkCache":
        """Return the cache for the next fetch, which knows the chunks stored here while their basis `holds`."""
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

    def store_batch(
        self,
        content: memoryview,
        count: int,
        changing: Sequence[int],
        describe: Callable[[int, int], tuple[bytes, Any]],
    ) -> None:
        """Store the chunks of a decoded batch of `count` tasks; the module's docstring says which.

        `content` is as in `Batch`. `changing` are the indexes of the tasks that can still change, in order. `describe`
        returns the summary and the basis of the tasks from one index up to, but not including, another.
        """
        length = len(content)
        self._note_batch(length, _count_groups(changing))
        runs = _runs_between(changing, count)
        runs = [(begin, end) for begin, end in runs if self._is_worth((end - begin) * length / count)]
        if not runs:
            return
        # In most batches no task changes; then the batch is one chunk.
        offsets = _boundaries(content) if changing else []
        for begin, end in runs:
            first, last = (offsets[begin], offsets[end]) if changing else (0, length - 1)
            self._store(content[first:], last - first - 1, *describe(begin, end))

    def _store(self, buffer: memoryview, length: int, summary: bytes, basis: Any) -> None:  # noqa: ANN401 - the ledger's type
        """Store the elements in the `length` bytes after the opening bracket or comma."""
        self._keep(Chunk(_head(buffer, 0), length, _digest(buffer, length), summary, basis))

    def _keep(self, chunk: Chunk) -> None:
        self._stored[chunk.head] = chunk
        self._fragments += 2 * chunk.length < self.batch_bytes

    @property
    def _shortest(self) -> float:
        return self.batch_bytes / (_SHORT if self._fragments < _MAX_SHORT else 2)

    def _is_worth(self, length: float) -> bool:
        """Return whether to store a chunk of this length: neither too short nor so long that it arrives late."""
        return self._shortest <= length <= 3 * self.batch_bytes

    def _note_batch(self, length: int, groups: int) -> None:
        """Record the length of a decoded batch, and its number of groups of tasks that can still change."""
        self._groups += groups
        self._fragments += not groups and length < self._shortest

    @property
    def is_fragmented(self) -> bool:
        """Whether there are too many short chunks, because the scattered tasks between them have settled since."""
        return self._fragments > _SPARE_CHUNKS + 2 * self._groups

    def discard(self) -> None:
        """Forget the stored chunks, so that the next fetch decodes the whole list."""
        self._stored.clear()

    def reset(self) -> None:
        """Note that the buffer begins with other elements now."""
        self._refuted = False

    def candidates(self, start: re.Pattern[bytes], buffer: memoryview) -> Iterator[int]:
        """Yield the first of the commas found by `start` that a known chunk seems to follow.

        There is none if the list has a new order; searches then become rarer and rarer.
        """
        if not self._known:
            return
        if self._skips:
            self._skips -= 1
            return
        for found in start.finditer(buffer, 1):
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


def _runs_between(changing: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Return the first index of each run of tasks between the changing ones, and the index after its last."""
    return [(before + 1, after) for before, after in pairwise([-1, *changing, count]) if after > before + 1]


def _count_groups(changing: Sequence[int]) -> int:
    """Return how many groups of neighbours the changing tasks form."""
    return bool(changing) + sum(after > before + 1 for before, after in pairwise(changing))


def _boundaries(content: memoryview) -> list[int]:
    """Return the offsets around the tasks of a batch: 0, then that of the comma after each task."""
    content[-1] = ord("]")
    try:
        elements = _raw_decoder.decode(content)
    finally:
        content[-1] = ord(",")
    offsets = [0]
    for element in elements:
        begin = after_white_space(content, offsets[-1] + 1)
        offsets.append(after_white_space(content, begin + memoryview(element).nbytes))
    return offsets


def after_white_space(content: memoryview, offset: int) -> int:
    """Return the first offset from `offset` on that is not JSON's white space."""
    # The pattern also matches the empty string.
    return cast("re.Match[bytes]", _WHITE_SPACE.match(content, offset)).end()


def _head(buffer: memoryview, offset: int) -> int:
    return xxhash.xxh3_64_intdigest(buffer[offset + 1 : offset + 1 + _HEAD])


def _digest(buffer: memoryview, length: int) -> bytes:
    return xxhash.xxh3_128_digest(buffer[1 : 1 + length])
