"""Bytes that have arrived and are still needed, in one place that is filled again and again."""

from mmap import mmap
from typing import Protocol


class Source(Protocol):
    """Where bytes come from, as `io.RawIOBase` has it."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer with at least one byte; return how many, 0 at the end."""


class Buffer:
    """A window on memory of its own, which is read into in place.

    `content` may be written to, and holds until the next call. The memory is mapped and not allocated: what a giant
    task took goes back to the system at once, and no allocator learns from it to keep as much (mallopt(3),
    M_MMAP_THRESHOLD). `size` is how many bytes are read at once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._memory = memoryview(mmap(-1, 2 * size))
        self._begin = self._end = 0

    @property
    def content(self) -> memoryview:
        """The bytes read and not dropped."""
        return self._memory[self._begin : self._end]

    def fill(self, source: Source) -> int:
        """Add what the source has next; return how many bytes, 0 at its end."""
        if len(self._memory) - self._end < self._size:
            self._make_room()
        count = source.readinto(self._memory[self._end : self._end + self._size])
        self._end += count
        return count

    def drop(self, length: int) -> None:
        """Forget the first bytes."""
        self._begin += length

    def _make_room(self) -> None:
        """Move the content to the front, in memory of a size that suits it."""
        content = self.content
        needed = len(content) + self._size
        if not needed <= len(self._memory) <= max(2 * self._size, 4 * needed):
            self._memory = memoryview(mmap(-1, max(2 * self._size, 2 * len(content))))
        self._memory[: len(content)] = content
        self._begin, self._end = 0, len(content)
