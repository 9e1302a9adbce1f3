"""The decoder compared with decoding the whole body at once, and its work and memory on hostile bodies."""

import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from itertools import cycle
from typing import Any, NoReturn

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple

from conftest import examples
from creatify_exporter.creatify import decoder
from creatify_exporter.creatify.chunk_cache import ChunkCache
from creatify_exporter.creatify.decoder import Decoder, Source
from creatify_exporter.creatify.task import EntryDecoder, Task
from creatify_exporter.errors import FetchError
from creatify_exporter.lists import LISTS, TEXT_GENERATOR, TaskList, other_list

MEBIBYTE = 1024 * 1024
Reading = tuple[list[tuple[Any, ...]], Counter[str]]


# --- What the decoder is compared with ------------------------------------------------------------------------------


def refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def integer(digits: str) -> float:
    return int(digits) if len(digits) < 32 else float(digits)


def whole(body: bytes) -> Any:
    """Decode a body at once. Strings may have bytes that are not UTF-8, because their text is not counted."""
    return json.loads(body.decode("utf-8", "surrogateescape"), parse_constant=refuse, parse_int=integer)


def expected(body: bytes, task_list: TaskList = TEXT_GENERATOR) -> Reading | None:
    """Return the tasks that must be read from a body, None if it must be refused."""
    try:
        value = whole(body)
    except ValueError:
        return None
    return read(value, task_list) if isinstance(value, list) else None


def read(entries: list[Any], task_list: TaskList = TEXT_GENERATOR) -> Reading:
    tasks = []
    invalid: Counter[str] = Counter()
    counted = set()
    for entry in entries:
        if not isinstance(entry, dict):
            invalid["task"] += 1
            continue
        entry = {**entry, "model_name": entry.get(task_list.model_field)}  # noqa: PLW2901 - under one name
        fields: dict[str, Any] = {}
        for name, reader in READERS.items():
            value = entry.get(name)
            fields[name] = None if value is None and name != "id" else reader(value)
        identity = fields["id"]
        faults = [name for name in READERS if fields[name] is None and (entry.get(name) is not None or name == "id")]
        if faults and identity not in counted:
            invalid.update(faults)
            counted |= {identity} - {None}
        tasks.append(tuple({**fields, "id": fields["id"] or "", **meaning(entry, fields, task_list)}.values()))
    return tasks, invalid


def meaning(entry: dict[str, Any], fields: dict[str, Any], task_list: TaskList) -> dict[str, Any]:
    """Return the meaning of the words of a list."""
    word, reason = fields["status"], fields["failed_reason"]
    status = None if word is None else task_list.statuses.get(word, "unknown")
    waits_for_a_person = any(isinstance(entry.get(each), str | list | dict) and entry[each] for each in PREVIEWS)
    if status == "pending" and task_list.has_previews and waits_for_a_person:
        status = "preview"
    if word == "rejected" and status == "failed":
        reason = reason if reason and reason.strip() else "rejected"
    model = fields["model_name"]
    model = model if model and model.strip() else task_list.default_model
    return {"model_name": model, "status": status, "failed_reason": reason}


PREVIEWS = ("preview", "previews")


def an_id(value: Any) -> str | None:
    text = str(value) if type(value) is int else value
    return text if isinstance(text, str) and 0 < len(text) <= 255 and not re.search("[\ud800-\udfff]", text) else None


def a_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def credit(value: Any) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", value):
        value = float(value)
    return float(value) if type(value) in (int, float) and 0 <= value <= 1e9 else None


def date(value: Any) -> datetime | None:
    try:
        found = DATES[value] if value in DATES else msgspec.convert(value, datetime)
    except (ValueError, TypeError):
        return None
    return found.replace(tzinfo=found.tzinfo or UTC)


DATES = {
    "2026-10-31T12:00:00Z": datetime(2026, 10, 31, 12, tzinfo=UTC),
    "2026-10-31T12:00:00.123456-07:00": datetime(2026, 10, 31, 12, 0, 0, 123456, timezone(timedelta(hours=-7))),
    "2026-10-31T12:00:00": datetime(2026, 10, 31, 12, tzinfo=UTC),
    "2026-10-31 12:00:00+02:00": datetime(2026, 10, 31, 10, tzinfo=UTC),
}
READERS: dict[str, Callable[[Any], Any]] = {
    "id": an_id,
    "model_name": a_text,
    "status": a_text,
    "failed_reason": a_text,
    "credits_used": credit,
    "created_at": date,
}


# --- Bodies ---------------------------------------------------------------------------------------------------------

FRAGMENTS = [
    *(b"a", b"done", b"failed", b" ", b"\\n", b"\\/", b'\\"', b"\\\\", b"\\u0041", b"\\ud83d\\ude00", "é".encode()),
    *("\U0001f600".encode(), b"\\ud800", b"\\udc00x", b"\xff", b"\xed\xa0\x80", b"[", b"]", b"{", b"}", b",", b":"),
    *(b'},{\\"id\\":\\"', b"},{", b'\\\\\\"', b"\\u0000", b"\x7f", b"//"),
]
NUMBERS = [
    "0",
    "-0",
    "1",
    "2.5",
    "1e2",
    "1E-2",
    "-1",
    "1e9",
    "1000000000.5",
    "1e400",
    "-1e400",
    "1" * 31,
    "1" * 32,
    "9" * 400,
]

white = st.sampled_from([b"", b"", b"", b" ", b"\n\t", b" \r\n  "])
string = st.lists(st.sampled_from(FRAGMENTS), max_size=5).map(lambda parts: b'"' + b"".join(parts) + b'"')
number = st.sampled_from([text.encode() for text in NUMBERS])
scalar = st.sampled_from([b"null", b"true", b"false", b'""', b"[]", b"{}"]) | number | string


@st.composite
def joined(draw: st.DrawFn, around: bytes, parts: st.SearchStrategy[bytes], most: int) -> bytes:
    """Put brackets around the parts, commas between them, and white space anywhere."""
    filled = [draw(white) + part + draw(white) for part in draw(st.lists(parts, max_size=most))]
    return around[:1] + (b",".join(filled) or draw(white)) + around[1:]


@st.composite
def member(draw: st.DrawFn, key: st.SearchStrategy[bytes], value: st.SearchStrategy[bytes]) -> bytes:
    return draw(key) + draw(white) + b":" + draw(white) + draw(value)


def text(*values: str) -> st.SearchStrategy[bytes]:
    return st.sampled_from([json.dumps(value).encode() for value in values])


WORDS = sorted({word for each in LISTS.values() for word in each.statuses} | {"queued", "preview", "unknown"})
MODEL_FIELDS = sorted({each.model_field for each in LISTS.values() if each.model_field})
preview = st.deferred(lambda: scalar | string | joined(b"[]", string | task_of(scalar), 2) | task_of(scalar))
task_lists = st.sampled_from([TEXT_GENERATOR, *LISTS.values(), other_list("new_videos", "/api/new_videos/")])
FIELDS: dict[bytes, st.SearchStrategy[bytes]] = {
    b'"id"': text("a", "b", "x" * 255, "x" * 256, "a\0b", "é") | number | scalar,
    **{f'"{name}"'.encode(): text("flash", "pro", " ") | scalar for name in MODEL_FIELDS},
    **{f'"{name}"'.encode(): preview for name in PREVIEWS},
    b'"status"': text("pending", *WORDS) | scalar,
    b'"failed_reason"': text(" ") | string | scalar,
    b'"credits_used"': number | text("2.5", "1e3", "-1", "nan", "inf", "", "x", "5 ", "1_0") | scalar,
    b'"created_at"': text(*DATES, "yesterday", "2026-13-01T00:00:00Z", "2026-10-31", "0001-01-01T00:00:00+14:00")
    | scalar,
}


def task_of(nested: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    known = [member(st.just(key), value) for key, value in FIELDS.items()]
    plain = [member(st.just(key), value) for key, value in FIELDS.items() if key in {b'"id"', b'"status"'}]
    others = member(text("args", "messages") | string, nested)
    regular = st.tuples(text("a", "b", "c"), text("done", "pending"), nested).map(
        lambda parts: b'{"id":%b,"status":%b,"args":%b}' % parts
    )
    return regular | joined(b"{}", st.one_of(*known, *plain, others), 7)


nested = st.recursive(
    scalar,
    lambda inner: joined(b"[]", inner, 3) | joined(b"{}", member(string, inner), 3) | task_of(inner),
    max_leaves=6,
)
task = task_of(nested)
lists = joined(b"[]", st.one_of(task, task, task, nested), 8)
around = st.tuples(white, lists, white).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Take a valid body and break it in a few places, or not at all."""
    body = bytearray(draw(around))
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        place = draw(st.integers(0, len(body)))
        match draw(st.sampled_from(["insert", "replace", "delete", "cut", "swallow"])):
            case "insert":
                body[place:place] = draw(st.sampled_from(SPLINTERS))
            case "replace":
                body[place : place + 1] = draw(st.sampled_from(SPLINTERS))
            case "delete":
                del body[place : place + 1]
            case "cut":
                del body[place:]
            case "swallow":
                del body[place : place + draw(st.integers(1, 20))]
    return bytes(body)


SPLINTERS = [bytes([byte]) for byte in b'"\\[]{},: \n\x0b\x0c\x00\x1f0-.eEntf/\xff\xc3'] + [
    b"NaN",
    b"},{",
    b"],[",
    b",,",
    b"[]",
]
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=4)
batch_bytes = st.sampled_from([1, 2, 7, 20, 64, 300])


class Pieces:
    """A body that arrives in pieces of at most these sizes, in turn."""

    def __init__(self, body: bytes, sizes: list[int]) -> None:
        self._body, self._sizes = BytesIO(body), cycle(sizes)

    def readinto(self, buffer: memoryview, /) -> int:
        return self._body.readinto(buffer[: next(self._sizes)])


def tasks_of(reader: Decoder, source: Source) -> list[Task]:
    return [task for batch in reader.batches(source) for task in batch.tasks]


def decoded(body: bytes, sizes: list[int], batch_bytes: int, task_list: TaskList = TEXT_GENERATOR) -> Reading | None:
    reader = Decoder(MEBIBYTE, ChunkCache(batch_bytes), task_list)
    try:
        tasks = [astuple(task)[: len(READERS)] for task in tasks_of(reader, Pieces(body, sizes))]
    except FetchError as error:
        if error.cause != "invalid_body":
            raise
        return None
    return tasks, Counter[str](reader.invalid.elements())


# --- The same as decoding the whole ---------------------------------------------------------------------------------


@settings(max_examples=examples(250))
@given(task_list=task_lists, body=around, sizes=sizes, batch_bytes=batch_bytes)
def test_a_list_in_pieces_reads_as_the_whole_list(
    task_list: TaskList, body: bytes, sizes: list[int], batch_bytes: int
) -> None:
    reading = expected(body, task_list)
    assert reading is not None
    assert decoded(body, sizes, batch_bytes, task_list) == reading


@settings(max_examples=examples(350))
@given(task_list=task_lists, body=mutated(), sizes=sizes, batch_bytes=batch_bytes)
def test_a_broken_list_is_refused_exactly_if_the_whole_is(
    task_list: TaskList, body: bytes, sizes: list[int], batch_bytes: int
) -> None:
    assert decoded(body, sizes, batch_bytes, task_list) == expected(body, task_list)


@pytest.mark.parametrize("body", [b'[{"id":"a"}]', b' \n[{"id":"a"}]', b'{"results":[{"id":"a"}]}'])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_a_byte_order_mark_is_ignored_however_it_is_cut(body: bytes, size: int) -> None:
    assert tasks_of(Decoder(MEBIBYTE), Pieces(b"\xef\xbb\xbf" + body, [size])) == [Task("a")]


@settings(max_examples=examples(150))
@given(body=st.lists(st.sampled_from(SPLINTERS), max_size=30).map(b"".join), sizes=sizes, batch_bytes=batch_bytes)
def test_splinters_are_refused_exactly_if_the_whole_is(body: bytes, sizes: list[int], batch_bytes: int) -> None:
    assert decoded(b"[" + body, sizes, batch_bytes) == expected(b"[" + body)


BROKEN = [
    *(b"[1,]", b"[,1]", b"[1,,2]", b"[,]", b"[", b"[1", b"[1,", b"[1}", b"[{]}", b"[]]", b"[][]", b"[1}{]", b"[1],[2]"),
    *(b'["a]', b'["a\\"]', b'["a"]"]', b'[{"a":1},]', b'[{"a":1},{"b":2},]', b'[{"a":1}{"b":2}]', b"[1] x", b"[1] ]"),
    *(
        b"[NaN]",
        b"[-Infinity,1]",
        b'[{"a":[1,2},{"b":3]}]',
        b'[{"a":1}},{"b":2]',
        b'[{"a":1}],[{"b":2}]',
        b"[01]",
        b"[\0]",
    ),
]


@pytest.mark.parametrize("batch_bytes", [1, 4, 1000])
@pytest.mark.parametrize("body", BROKEN)
def test_a_body_that_is_nearly_a_list_is_refused(body: bytes, batch_bytes: int) -> None:
    assert expected(body) is None
    assert [decoded(body, [size], batch_bytes) for size in (1, 2, 3, 5, 1000)] == [None] * 5


@settings(max_examples=examples(200))
@given(
    results=lists | mutated() | scalar,
    following=st.sampled_from([b"null", b'""', b'"https://api.creatify.ai/?page=2"', b"7", b'"\\ud800"']),
    detail=scalar,
    sizes=sizes,
    batch_bytes=batch_bytes,
)
def test_an_envelope_reads_as_the_list_in_it(
    results: bytes, following: bytes, detail: bytes, sizes: list[int], batch_bytes: int
) -> None:
    body = b'{"count": 1, "detail": %b, "next": %b, "results": %b}' % (detail, following, results)
    try:
        page = whole(body)
    except ValueError:
        page = {}
    good = isinstance(page.get("results"), list) and isinstance(page.get("next"), str | None)
    assert decoded(body, sizes, batch_bytes) == (read(page["results"]) if good else None)


def test_an_envelope_has_the_url_of_the_next_page() -> None:
    reader = Decoder(MEBIBYTE)
    assert tasks_of(reader, BytesIO(b' {"next": "https://x/?page=2", "results": [{"id": "a"}]}')) == [Task("a")]
    assert reader.next_page == "https://x/?page=2"
    assert tasks_of(reader, BytesIO(b'{"results": []}')) == []
    assert reader.next_page is None
    list(reader.batches(BytesIO(b'{"results": [], "next": ""}')))
    assert reader.next_page is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"null",
        b'"[]"',
        b"<html>",
        b'{"detail": "no"}',
        b'{"results": {}}',
        b" \xef\xbb\xbf[]",
        b"\xef\xbb[]",
    ],
)
def test_a_body_that_is_not_a_list_is_refused(body: bytes) -> None:
    with pytest.raises(FetchError, match="expected a list of tasks, got") as refused:
        list(Decoder(MEBIBYTE).batches(BytesIO(body)))
    assert refused.value.cause == "invalid_body"


def test_an_element_that_is_nested_too_deep_costs_only_itself() -> None:
    deep = b'{"id": "b", "args": ' + b"[" * 100_000 + b"]" * 100_000 + b', "status": "done"}'
    deepest = b"[" * 100_000 + b"]" * 100_000
    reader = Decoder(MEBIBYTE)
    body = b",".join([b'[{"id": "a"}', deep, deepest, b'{"id": "c"}]'])
    assert tasks_of(reader, Pieces(body, [5000])) == [Task("a"), Task("c")]
    assert reader.invalid == {"task": 2}


# --- Size -----------------------------------------------------------------------------------------------------------


def huge(size: int) -> bytes:
    return b'{"id": "b", "response_text": "' + b"x" * size + b'"}'


def test_a_task_longer_than_allowed_is_too_large() -> None:
    body = b'[{"id": "a"},' + huge(600_000) + b',{"id": "c"}]'
    assert len(tasks_of(Decoder(700_000), Pieces(body, [10_000]))) == 3
    with pytest.raises(FetchError, match=r"fetch\.max_task") as refused:
        list(Decoder(540_000).batches(Pieces(body, [10_000])))
    assert refused.value.cause == "too_large"


def test_an_envelope_longer_than_a_task_is_too_large() -> None:
    body = b'{"results": [' + b",".join([huge(1000)] * 100) + b"]}"
    with pytest.raises(FetchError) as refused:
        list(Decoder(50_000).batches(Pieces(body, [10_000])))
    assert refused.value.cause == "too_large"


# --- Work and memory ------------------------------------------------------------------------------------------------


class Meter:
    """Counts the bytes that are decoded or searched, and the longest buffer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.work = self.longest = 0
        real_decoded: Callable[..., list[Task] | None] = vars(decoder)["_decoded"]
        real_matched: Callable[..., re.Match[bytes]] = vars(decoder)["_matched"]
        real_offsets: Callable[..., list[int]] = vars(decoder)["_offsets"]

        def count_decoded(entries: EntryDecoder, buffer: bytearray, cut: int | None = None) -> list[Task] | None:
            self.work += len(buffer) if cut is None else cut
            self.longest = max(self.longest, len(buffer))
            return real_decoded(entries, buffer, cut)

        def count_matched(pattern: re.Pattern[bytes], buffer: bytearray, position: int) -> re.Match[bytes]:
            found = real_matched(pattern, buffer, position)
            self.work += found.end() - position + 1
            self.longest = max(self.longest, len(buffer))
            return found

        def count_offsets(start: re.Pattern[bytes], buffer: bytearray, begin: int) -> list[int]:
            self.work += len(buffer) - max(1, begin)
            return real_offsets(start, buffer, begin)

        monkeypatch.setattr(decoder, "_decoded", count_decoded)
        monkeypatch.setattr(decoder, "_matched", count_matched)
        monkeypatch.setattr(decoder, "_offsets", count_offsets)


BATCH, PIECE = 8 * 1024, 4 * 1024
LENGTH = MEBIBYTE // 4  # of each shape, about: many batches
LOOK = b'{"id":"b","args":1}'
SHAPES: dict[str, bytes] = {
    "tasks": b",".join([b'{"id":"a","args":[%b]}' % (b"1," * 500 + b"1")] * 250),
    "one task": b'{"id":"a","args":"' + b"x" * LENGTH + b'"}',
    "one task full of others": b'{"id":"a","args":[' + b",".join([LOOK] * 12_500) + b"]}",
    "tasks that end in others": b",".join([b'{"id":"a","args":[' + b",".join([LOOK] * 400) + b"]}"] * 32),
    "tasks full of others in text": b",".join([b'{"id":"a","args":"%b"}' % (b'},{\\"id\\":' * 500)] * 50),
    "white space": b'{"id":"a"}' + b" " * LENGTH + b',{"id":"b"}',
    "white space between tasks": (b'{"id":"a"}' + b" " * 5000 + b",") * 50 + b'{"id":"b"}',
    "backslashes": b'{"id":"a","args":"' + b"\\\\" * (LENGTH // 2) + b'"}',
    "brackets": b'{"id":"a","args":' + b"[" * (LENGTH // 2) + b"]" * (LENGTH // 2) + b"}",
    "numbers": b",".join([b"1"] * (LENGTH // 16)),
    "a first key that is a text": b'{"%b":1}' % (b"k" * LENGTH),
    "invalid tasks": b",".join([b'{"id":7,"status":[]}'] * 10_000),
    "different tasks": b",".join(b'{"k%d":1,"id":"a"}' % number for number in range(10_000)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [PIECE, 97])
def test_no_shape_costs_more_than_a_few_times_its_length(
    shape: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter(monkeypatch)
    body = b"[" + SHAPES[shape] + b"]"
    for _ in Decoder(2 * MEBIBYTE, ChunkCache(BATCH)).batches(Pieces(body, [step])):
        pass
    assert meter.work <= 12 * len(body)


@pytest.mark.parametrize("shape", ["tasks", "tasks that end in others", "numbers", "invalid tasks", "different tasks"])
def test_the_buffer_is_as_long_as_a_batch_a_piece_and_a_task(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(monkeypatch)
    for _ in Decoder(2 * MEBIBYTE, ChunkCache(BATCH)).batches(Pieces(b"[" + SHAPES[shape] + b"]", [PIECE])):
        pass
    assert meter.longest <= BATCH + PIECE + 9000


def test_tasks_that_look_alike_are_cut_by_guessing_and_never_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(monkeypatch)
    body = b"[" + SHAPES["tasks"] + b"]"
    for _ in Decoder(2 * MEBIBYTE, ChunkCache(BATCH)).batches(Pieces(body, [PIECE])):
        pass
    assert meter.work <= 4 * len(body)
