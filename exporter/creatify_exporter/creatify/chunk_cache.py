"""Stretches of a list that need not be decoded again: their bytes are known, and their tasks have settled.

From one scrape to the next, nearly all bytes of a list are the same, though not in the same place: new tasks push them
along, old ones leave. So a stretch is known by how it begins, and proved to be what it was by a digest of all its
bytes. What it adds up to was noted when it was decoded.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import xxhash

_HEAD: Final = 256  # bytes: as a rule a task's id or its times are among them, so that no other stretch begins alike
_MOST_SKIPPED: Final = 16  # times that the beginning of a stretch is not looked for, where it has not been found


class Stretch(NamedTuple):
    """Whole elements of a list, without the bracket or comma before them and the comma behind.

    `length` is in bytes. `summary` is what the one who decoded it wanted to know of its tasks.
    """

    length: int
    digest: bytes
    summary: bytes


class Stretches:
    """Those known from the list before, and those that this list teaches; none is known without `before`.

    A buffer always begins with one byte that stands for what is before its first element. Memory: some 600 bytes for
    each stretch of the list. For one list; `before` is not changed.
    """

    def __init__(self, before: "Stretches | None" = None) -> None:
        self._known = before._learnt if before else {}  # noqa: SLF001 - of the same class
        self._learnt: dict[int, Stretch] = {}
        self._refuted = False  # what the buffer begins with looked known, and is something else
        self._skip, self._penalty = 0, 1

    def __len__(self) -> int:
        """Return how many this list has."""
        return len(self._learnt)

    def recall(self, buffer: bytearray) -> Stretch | None:
        """Return the stretch that the buffer begins with, if it is known and a comma follows it."""
        head, stretch = self._expected(buffer)
        if stretch is None or len(buffer) < stretch.length + 2:
            return None
        if buffer[1 + stretch.length] != ord(",") or _digest(buffer, stretch.length) != stretch.digest:
            self._refuted = True
            self._found(success=False)
            return None
        self._learnt[head] = stretch
        return stretch

    def awaits(self, buffer: bytearray) -> bool:
        """Return whether the buffer may begin with a known stretch that has not come to its end yet."""
        return self._expected(buffer)[1] is not None

    def learn(self, buffer: bytearray, length: int, summary: bytes) -> None:
        """Note what the buffer begins with."""
        self._learnt[_head(buffer, 0)] = Stretch(length, _digest(buffer, length), summary)

    def moved(self) -> None:
        """Take notice that the buffer begins with something else now."""
        self._refuted = False

    def beginnings(self, look: re.Pattern[bytes], buffer: bytearray) -> Iterator[int]:
        """Yield the first comma, of those that `look` finds, behind which a known stretch seems to begin.

        Where the list was given a new order there is none, so that it is not looked for every time.
        """
        if not self._known:
            return
        if self._skip:
            self._skip -= 1
            return
        for found in look.finditer(buffer, 1):
            if _head(buffer, found.start()) in self._known:
                self._found(success=True)
                yield found.start()
                return
        self._found(success=False)

    def _expected(self, buffer: bytearray) -> tuple[int, Stretch | None]:
        if self._refuted or not self._known or len(buffer) <= _HEAD:
            return 0, None
        head = _head(buffer, 0)
        return head, self._known.get(head)

    def _found(self, *, success: bool) -> None:
        self._penalty = 1 if success else min(2 * self._penalty, _MOST_SKIPPED)
        self._skip = self._penalty - 1


def _head(buffer: bytearray, place: int) -> int:
    with _part(buffer, place + 1, place + 1 + _HEAD) as part:
        return xxhash.xxh3_64_intdigest(part)


def _digest(buffer: bytearray, length: int) -> bytes:
    with _part(buffer, 1, 1 + length) as part:
        return xxhash.xxh3_128_digest(part)


@contextmanager
def _part(buffer: bytearray, begin: int, end: int) -> Iterator[memoryview]:
    with memoryview(buffer) as whole, whole[begin:end] as part:
        yield part
