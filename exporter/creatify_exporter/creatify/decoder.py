"""Decodes the body of a list into batches of tasks while it arrives.

A list may be gigabytes long, but only one buffer of about a megabyte is kept. The buffer is cut where a task seems to
begin, and the part before the cut is decoded as an array of its own, at the speed of C. Decoding proves the cut: a cut
anywhere but between two elements leaves a bracket or a string open, and the part is refused. In that case, and if the
tasks do not look alike, an exact linear scan for the brackets outside of strings finds the cut.

The decoder accepts the same bodies as decoding them at once would, with one exception: an element costs at most itself,
and not the list, if only the standard library can read it (a lone surrogate, bytes that are not UTF-8), if it is nested
too deep for either, or if its fields have the wrong type.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from mmap import mmap
from typing import Final, NamedTuple, Protocol, cast

import msgspec

from creatify_exporter.creatify.chunk_cache import Chunk, ChunkCache, after_white_space
from creatify_exporter.creatify.task import REFUSALS, EntryDecoder, Field, Task, malformed, read_json
from creatify_exporter.errors import FetchError
from creatify_exporter.lists import TEXT_GENERATOR, TaskList

# Upper limit of the batches that the exact scan cuts between two guesses.
_MAX_SKIPS: Final = 1024

_MAX_INVALID_IDS: Final = 10_000
_WHITE: Final = b" \t\n\r"
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'
_SCALAR: Final = rb"(?:" + _STRING + rb'|[^\s",\[\]{}]++)'
_FIRST_KEYS: Final = re.compile(
    rb'\[\s*+\{((?:\s*+"[^"\\]*+"\s*+:\s*+' + _SCALAR + rb'\s*+,){0,3})\s*+("[^"\\]*+")\s*+:', re.DOTALL
)
_KEY: Final = re.compile(rb'("[^"\\]*+")\s*+:\s*+' + _SCALAR + rb"\s*+,", re.DOTALL)
# Before Python 3.11.5 (Debian 12 has 3.11.2), a possessive repeat ends at the wrong place if its last attempt fails
# after the first byte (https://github.com/python/cpython/issues/106052), as an attempt to match a whole string would.
# The string may therefore lack its end here, and the group is then empty.
_STRING_OR_PART: Final = rb'"(?:[^"\\]++|\\.)*+("?)'
_TO_BRACKET: Final = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING_OR_PART + rb")*+", re.DOTALL)
_TO_BRACKET_OR_COMMA: Final = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING_OR_PART + rb")*+", re.DOTALL)
_REST_OF_STRING: Final = re.compile(rb'(?:[^"\\]++|\\.)*+("?)', re.DOTALL)

_BEGINNINGS: Final = (
    (rb"<", "an HTML or XML document"),
    (rb"\[", "a JSON array"),
    (rb'"', "a JSON string"),
    (rb"(null|true|false)\b", "a JSON literal"),
    (rb"-?[0-9]", "a number"),
    (rb"\x1f\x8b", "gzip data"),
)
# Keys that hint at the kind of object; other keys may be a user's text.
_TELLING_KEYS: Final = ("code", "data", "detail", "error", "errors", "items", "message", "results", "status", "tasks")

# Adds the next bytes to a buffer; returns their number, 0 at the end.
_Fill = Callable[[], int]


class Source(Protocol):
    """A source of bytes, such as an `io.RawIOBase`."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer with at least one byte; return how many, 0 at the end."""


class Batch(NamedTuple):
    """Some tasks of a list, in its order: either decoded `tasks`, or a `chunk` known from the previous fetch.

    If the tasks can be cached, `content` holds their bytes, with the bracket or comma before them and the comma after
    them. It is valid until the next batch is asked for. A batch with a chunk has no tasks.
    """

    tasks: list[Task]
    content: memoryview | None = None
    chunk: Chunk | None = None


class Decoder:
    """Decodes one list, which may have several pages.

    `task_list` describes the entries. `received` counts the bytes so far; `invalid` counts the entries that cannot be
    read, by the field at fault. `next_page` is the URL of the page after the last one decoded, None if there is none.
    `answered_at` is the time of the first answer with a date, None if there is none. Chunks that `cache` knows are not
    decoded. Bytes are held back until they fill a batch.
    """

    def __init__(self, max_task: int, cache: ChunkCache | None = None, task_list: TaskList = TEXT_GENERATOR) -> None:
        self.received = 0
        self.invalid: Counter[Field] = Counter()
        self.next_page: str | None = None
        self.answered_at: float | None = None
        self._cache = ChunkCache() if cache is None else cache
        self.task_list = task_list
        self._entries = EntryDecoder(task_list)
        self._invalid_ids: set[str] = set()
        self._max_task = max_task

    def batches(self, source: Source, *, answered_at: float | None = None) -> Iterator[Batch]:
        """Yield the tasks of one body; `source` returns its bytes, without a content encoding.

        `answered_at` is when the API answered, by its own clock, in seconds since the epoch. Each batch is proved
        well-formed before it is yielded, and the body when the iterator ends. Raises `FetchError` (`invalid_body`,
        `too_large`).
        """
        self.next_page = None
        if self.answered_at is None:
            self.answered_at = answered_at
        buffer = _Buffer(self._cache.batch_bytes)

        def fill() -> int:
            count = buffer.fill(source)
            self.received += count
            return count

        _skip_to_beginning(buffer, fill)
        opening = bytes(buffer.content[:1])
        if opening == b"[":
            return self._array(buffer, fill)
        if opening == b"{":
            results, page = BytesIO(self._results(buffer, fill)), _Buffer(self._cache.batch_bytes)
            return self._array(page, lambda: page.fill(results))
        raise _not_a_list(buffer.content)

    def _array(self, buffer: "_Buffer", fill: _Fill) -> Iterator[Batch]:
        cutter = _Cutter(self._cache, self._entries)
        while fill():
            yield from self._whole_batches(buffer, cutter)
        yield Batch(self._rest(buffer.content, cutter))

    def _whole_batches(self, buffer: "_Buffer", cutter: "_Cutter") -> Iterator[Batch]:
        """Take batches out of the buffer until the next one needs more bytes."""
        while True:
            content = buffer.content
            if chunk := self._cache.lookup(content):
                yield Batch([], chunk=chunk)
                cutter.drop(buffer, 1 + chunk.length)
                continue
            if len(content) < self._cache.batch_bytes or self._cache.may_match(content):
                return
            cut, tasks = cutter.cut(content)
            if not cut:
                self._check_size(content)
                return
            if tasks is None:
                yield Batch(self._one_by_one(content, cutter.commas))
            else:
                yield Batch(tasks, content[: cut + 1])
            cutter.drop(buffer, cut)

    def _rest(self, buffer: memoryview, cutter: "_Cutter") -> list[Task]:
        batch = _decoded(self._entries, buffer)
        if batch is None:
            end = cutter.end(buffer)
            return self._one_by_one(buffer, [*cutter.commas, end])
        if cutter.has_dropped and not batch:
            raise malformed("there is a comma before its end")
        return batch

    def _one_by_one(self, buffer: memoryview, commas: list[int]) -> list[Task]:
        """Decode the elements between the opening bracket of the buffer and the last of `commas`, each on its own."""
        begins = [1, *(comma + 1 for comma in commas)]
        tasks = (self._task(bytes(buffer[begin:end])) for begin, end in zip(begins, commas, strict=False))
        return [task for task in tasks if task]

    def _task(self, element: bytes) -> Task | None:
        faults: Counter[Field] = Counter()
        task = self._entries.read(element, faults)
        if faults and not (task and self._is_repeated(task.id)):
            self.invalid.update(faults)
        return task

    def _is_repeated(self, task_id: str) -> bool:
        """Return whether an entry with this id was counted as invalid before: pages may overlap."""
        repeated = task_id in self._invalid_ids
        if task_id and len(self._invalid_ids) < _MAX_INVALID_IDS:
            self._invalid_ids.add(task_id)
        return repeated

    def _results(self, buffer: "_Buffer", fill: _Fill) -> bytes:
        """Return the array in an envelope, which is read whole, and is therefore bounded by `fetch.max_task`."""
        while fill():
            self._check_size(buffer.content)
        try:
            page = msgspec.json.decode(buffer.content, type=_Page)
        except REFUSALS:
            page = _lenient_page(bytes(buffer.content))
        results = bytes(page.results)
        if not results.startswith(b"["):
            raise _not_a_list(buffer.content)
        self.next_page = page.next or None
        return results

    def _check_size(self, buffer: memoryview) -> None:
        if len(buffer) > self._max_task:
            raise FetchError(
                "too_large", f"a task (or a page in an envelope) is longer than fetch.max_task, {self._max_task} bytes"
            )


class _Page(msgspec.Struct):
    """The envelope of Creatify's newer lists: `{"count", "next", "previous", "results"}`."""

    results: msgspec.Raw
    next: str | None = None


class _Buffer:
    """A window on its own memory; `size` is the number of bytes of one read.

    `content` is writable, and valid until the next call. The memory is mapped, not allocated: the space of a giant task
    returns to the system at once, and the allocator does not learn to keep as much (mallopt(3), M_MMAP_THRESHOLD).
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
        """Add the next bytes of the source; return their number, 0 at its end."""
        if len(self._memory) - self._end < self._size:
            self._make_room()
        count = source.readinto(self._memory[self._end : self._end + self._size])
        self._end += count
        return count

    def drop(self, length: int) -> None:
        """Forget the first bytes."""
        self._begin += length

    def _make_room(self) -> None:
        """Move the content to the front, in new memory if the old is too small, or far too large."""
        content = self.content
        needed = len(content) + self._size
        if not needed <= len(self._memory) <= max(2 * self._size, 4 * needed):
            self._memory = memoryview(mmap(-1, max(2 * self._size, 2 * len(content))))
        self._memory[: len(content)] = content
        self._begin, self._end = 0, len(content)


class _Cutter:
    """Finds where to cut a buffer that opens with `[`: at a comma between two elements.

    `commas` are the offsets that the exact scan has found, in order. The scan keeps its position between calls while
    the buffer only grows. The first guess is the offset at which a chunk of the `cache` seems to begin. `_skip` batches
    are cut without a guess; `_penalty` is the next value of `_skip`.
    """

    def __init__(self, cache: ChunkCache, entries: EntryDecoder) -> None:
        self._cache, self._entries = cache, entries
        self._start: re.Pattern[bytes] | None = None
        self._skip, self._penalty = 0, 1
        self.has_dropped = False
        self._restart()

    def drop(self, buffer: _Buffer, cut: int) -> None:
        """Drop the bytes before the comma, turn it into an opening bracket, and start again there."""
        buffer.drop(cut)
        buffer.content[0] = ord("[")
        self.has_dropped = True
        self._cache.reset()
        self._restart()

    def _restart(self) -> None:
        self.commas: list[int] = []
        self._position = self._depth = 1
        self._in_string = False

    def cut(self, buffer: memoryview) -> tuple[int, list[Task] | None]:
        """Return the offset of a comma, 0 if there is none yet, and the tasks before it.

        The tasks are None if they must be read one by one, up to each of `commas`.
        """
        # No guesses once the exact scan of this buffer has begun.
        if not self._skip and self._position == 1:
            for cut in self._guesses(buffer):
                if batch := _decoded(self._entries, buffer, cut):
                    self._penalty = 1
                    return cut, batch
            # A hostile list refutes every guess: each refutation in a row doubles the number of batches until the next.
            self._skip, self._penalty = self._penalty, min(2 * self._penalty, _MAX_SKIPS)
        self._scan(buffer)
        if not self.commas:
            return 0, None
        self._skip = max(0, self._skip - 1)
        # An empty array before a comma is malformed; it is read one by one to say so.
        return self.commas[-1], _decoded(self._entries, buffer, self.commas[-1]) or None

    def end(self, buffer: memoryview) -> int:
        """Return the offset of the list's closing bracket; raise `FetchError` if it is missing or not the last."""
        self._scan(buffer)
        if self._depth > 0 or self._in_string:
            raise malformed("it is incomplete")
        body = bytes(buffer).rstrip(_WHITE)
        if self._depth < 0 or not body.endswith(b"]"):
            raise malformed("there is more after its end")
        return len(body) - 1

    def _guesses(self, buffer: memoryview) -> Iterator[int]:
        """Yield commas before text that looks like the beginning of the first element: the last one, then earlier ones.

        That text may be nested in a task. A wrong guess costs little compared with the exact scan, so a few more
        guesses are worth it, further and further from the end.
        """
        if self._start is None:
            self._start = _element_start(buffer)
        yield from self._cache.candidates(self._start, buffer)
        near = _offsets(self._start, buffer, len(buffer) - 8 * 1024)
        yield from near[-1:]
        offsets = _offsets(self._start, buffer, 1)
        back = 2 if near else 1
        while back <= len(offsets):
            yield offsets[-back]
            back *= 2

    def _scan(self, buffer: memoryview) -> None:
        """Add the commas between elements in the new part of the buffer to `commas`."""
        while self._position < len(buffer):
            if self._in_string:
                rest = _matched(_REST_OF_STRING, buffer, self._position)
                self._in_string, self._position = not rest[1], rest.end()
                if self._in_string:
                    # A backslash may be left until the character that it escapes arrives.
                    return
            skipped = _matched(_TO_BRACKET_OR_COMMA if self._depth == 1 else _TO_BRACKET, buffer, self._position)
            if skipped[1] == b"":
                # The string has no end yet.
                self._in_string, self._position = True, skipped.end(1)
                return
            offset = skipped.end()
            self._position = offset + 1
            match buffer[offset : offset + 1]:
                case b",":
                    self.commas.append(offset)
                case b"[" | b"{":
                    self._depth += 1
                case b"]" | b"}":
                    self._depth -= 1
        self._position = len(buffer)


def _element_start(buffer: memoryview) -> re.Pattern[bytes]:
    """Return a pattern for the beginning of the first element: its keys up to the first nested value, at most four."""
    first = _FIRST_KEYS.match(buffer)
    if not first:
        return re.compile(rb",\s*+\{")
    pattern = rb",\s*+\{"
    for key in _KEY.findall(first[1]):
        pattern += rb"\s*+" + re.escape(key) + rb"\s*+:\s*+" + _SCALAR + rb"\s*+,"
    return re.compile(pattern + rb"\s*+" + re.escape(first[2]) + rb"\s*+:", re.DOTALL)


def _offsets(start: re.Pattern[bytes], buffer: memoryview, begin: int) -> list[int]:
    return [found.start() for found in start.finditer(buffer, max(1, begin))]


def _matched(pattern: re.Pattern[bytes], buffer: memoryview, position: int) -> re.Match[bytes]:
    # The patterns used here also match the empty string.
    return cast("re.Match[bytes]", pattern.match(buffer, position))


def _decoded(entries: EntryDecoder, buffer: memoryview, cut: int | None = None) -> list[Task] | None:
    """Decode the buffer, or the part before a cut as an array of its own; return None if it is refused."""
    try:
        if cut is None:
            return entries.decode_batch(buffer)
        buffer[cut] = ord("]")
        try:
            return entries.decode_batch(buffer[: cut + 1])
        finally:
            buffer[cut] = ord(",")
    except REFUSALS:
        return None


def _lenient_page(body: bytes) -> _Page:
    """Read an envelope with the standard library, which also accepts text that msgspec refuses."""
    try:
        page = read_json(body)
        results = msgspec.Raw(json.dumps(page["results"]).encode())
        return _Page(results=results, next=msgspec.convert(page.get("next"), str | None))
    except (*REFUSALS, KeyError):
        raise _not_a_list(body) from None


def _skip_to_beginning(buffer: _Buffer, fill: _Fill) -> None:
    """Skip a byte order mark (RFC 8259, 8.1) and the white space after it."""
    while len(buffer.content) < len(BYTE_ORDER_MARK) and fill():
        pass
    if bytes(buffer.content[: len(BYTE_ORDER_MARK)]) == BYTE_ORDER_MARK:
        buffer.drop(len(BYTE_ORDER_MARK))
    while True:
        buffer.drop(after_white_space(buffer.content, 0))
        if buffer.content or not fill():
            return


def _not_a_list(body: bytes | memoryview) -> FetchError:
    return FetchError("invalid_body", f"expected a list of tasks, got {shape(bytes(body))}")


def shape(body: bytes) -> str:
    """Describe a body without quoting it: an API may answer with a prompt or with the keys."""
    body = body.lstrip(_WHITE)
    if not body:
        return "an empty body"
    if body.startswith(b"{"):
        return _object_shape(body)
    return next((name for beginning, name in _BEGINNINGS if re.match(beginning, body)), "text or binary data")


def _object_shape(body: bytes) -> str:
    try:
        keys = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).keys()
    except REFUSALS:
        return "text that begins like a JSON object"
    telling = [key for key in _TELLING_KEYS if key in keys]
    return f"a JSON object with {', '.join(telling)}" if telling else "a JSON object"
