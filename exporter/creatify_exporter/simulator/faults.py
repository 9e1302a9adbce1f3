"""Faults of replies, each a named function of the correct reply."""

import gzip
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Protocol

LIST_PATH = "/sse/text_generator/"
ODD_ID = "0dd0dd0d-0000-4000-8000-000000000000"

MIB = 1 << 20


class Wire(Protocol):
    """What a delivery needs of a connection. Methods raise OSError if the peer disconnects or the server stops."""

    def send(self, data: bytes) -> None:
        """Send all data."""

    def wait(self, seconds: float) -> None:
        """Sleep."""

    def hang(self) -> None:
        """Wait until the peer disconnects."""

    def close(self) -> None:
        """Close after this reply; otherwise the connection is kept alive."""

    def reset(self) -> None:
        """End the connection with RST instead of FIN."""


Delivery = Callable[[Wire, bytes, Iterable[bytes]], None]
"""Sends the head and the framed body (blocks of a few 100 KB)."""


def whole(wire: Wire, head: bytes, blocks: Iterable[bytes]) -> None:
    """Deliver correctly."""
    for block in blocks:
        wire.send(head + block)
        head = b""
    wire.send(head)


@dataclass(frozen=True)
class Response:
    """A reply to send: `pieces` are its body, `at` is the simulated instant (epoch seconds) that it shows."""

    at: float
    path: str
    host: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    chunked: bool = False
    deliver: Delivery = whole


Fault = Callable[[Response], Response]


def replied(status: int, body: bytes = b"", **headers: str) -> Fault:
    """Reply with this instead, as JSON unless `content_type` says otherwise."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return lambda response: replace(response, status=status, headers=named, pieces=[body], chunked=False)


def refused(status: int, detail: str, **headers: str) -> Fault:
    """Reply with an error in the API's format."""
    return replied(status, json.dumps({"detail": detail}).encode(), **headers)


def _rate_limited_until(response: Response) -> Response:
    return refused(429, "Too many requests.", retry_after=formatdate(response.at + 30, usegmt=True))(response)


def redirected(location: str) -> Fault:
    """Redirect; the location may contain `{path}` and `{port}`."""

    def fault(response: Response) -> Response:
        target = location.format(path=response.path, port=response.host.rpartition(":")[2])
        return replied(302, location=target)(response)

    return fault


def odd_task(at: float, without: str = "", **raw: bytes) -> bytes:
    """Encode a done task created a minute before `at`; `raw` replaces the JSON of some fields."""
    created = datetime.fromtimestamp(at - 60, UTC).isoformat().replace("+00:00", "Z").encode()
    fields = {
        "id": b'"' + ODD_ID.encode() + b'"',
        "model_name": b'"gemini-2.5-pro"',
        "messages": b'[{"role":"user","content":"odd"}]',
        "config": b"{}",
        "response_function_calls": b"[]",
        "status": b'"done"',
        "response_text": b'"odd"',
        "failed_reason": b"null",
        "credits_used": b"1",
        "created_at": b'"' + created + b'"',
        "updated_at": b'"' + created + b'"',
    }
    fields = {name: value for name, value in (fields | raw).items() if name != without}
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in fields.items()) + b"}"


def inserted(without: str = "", **raw: bytes) -> Fault:
    """Put an odd task first in the list."""

    def fault(response: Response) -> Response:
        opening, *rest = response.pieces
        comma = [b","] if len(rest) > 1 else []
        return replace(response, pieces=[opening, odd_task(response.at, without, **raw), *comma, *rest])

    return fault


def followed(tail: bytes) -> Fault:
    """Append bytes to the body, included in its length."""
    return lambda response: replace(response, pieces=[*response.pieces, tail])


def _white_space(response: Response) -> Response:
    opening, *rest = response.pieces
    return replace(response, pieces=[opening, *[b" \n\r\t" * (MIB // 4)] * 32, *rest])


def _giant_task(response: Response) -> Response:
    return inserted(response_text=b'"' + b"giant " * (4 * MIB) + b'"')(response)


def _labelled_gzip(response: Response) -> Response:
    return replace(response, headers=response.headers | {"Content-Encoding": "gzip"})


def _gzip_bomb(response: Response) -> Response:
    """Send 10 GiB of white space in 10 MB, as members of one gzip body."""
    member = gzip.compress(b" " * (10 * MIB))
    return replace(_labelled_gzip(response), pieces=[gzip.compress(b"["), *[member] * 1024])


def _gzip_cut(response: Response) -> Response:
    """Leave out the gzip trailer: checksum and length, eight bytes."""
    return replace(_labelled_gzip(response), pieces=[gzip.compress(b"".join(response.pieces), 1)[:-8]])


def delivered(deliver: Delivery, *, chunked: bool = False) -> Fault:
    """Deliver the correct reply in another way."""
    return lambda response: replace(response, deliver=deliver, chunked=chunked)


def _cut(wire: Wire, head: bytes, blocks: Iterable[bytes]) -> None:
    body = b"".join(blocks)
    wire.send(head + body[: len(body) // 2])
    wire.close()


def _reset(wire: Wire, head: bytes, blocks: Iterable[bytes]) -> None:
    body = b"".join(blocks)
    wire.send(head + body[: len(body) // 2])
    wire.wait(0.05)  # RST discards bytes that the peer has not read yet
    wire.reset()


def _silence(wire: Wire, _head: bytes, _blocks: Iterable[bytes]) -> None:
    wire.hang()
    wire.close()


def _after_interim_answers(wire: Wire, head: bytes, blocks: Iterable[bytes]) -> None:
    wire.send(b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n" * 3)
    whole(wire, head, blocks)


def _with_repeated_length(wire: Wire, head: bytes, blocks: Iterable[bytes]) -> None:
    whole(wire, re.sub(rb"(?m)^Content-Length: (\d+)", rb"Content-Length: \1, \1", head), blocks)


def delayed(seconds: float) -> Fault:
    """Wait before anything is sent."""

    def deliver(wire: Wire, head: bytes, blocks: Iterable[bytes]) -> None:
        wire.wait(seconds)
        whole(wire, head, blocks)

    return lambda response: replace(response, deliver=deliver)


def dripping(seconds: float, *, headers: bool = False) -> Fault:
    """Send the body, or the headers, a byte at a time, `seconds` apart."""

    def deliver(wire: Wire, head: bytes, blocks: Iterable[bytes]) -> None:
        slow = head if headers else b"".join(blocks)
        wire.send(b"" if headers else head)
        for byte in slow:
            wire.send(bytes((byte,)))
            wire.wait(seconds)
        whole(wire, b"", blocks if headers else ())

    return delivered(deliver)


_WRONG = {
    "id": b"7",
    "model_name": b'["gemini-2.5-pro"]',
    "messages": b'"hello"',
    "config": b"null",
    "response_function_calls": b"{}",
    "status": b"200",
    "response_text": b"false",
    "failed_reason": b'{"code":13}',
    "credits_used": b'"2.5"',
    "created_at": b"1759579200",
    "updated_at": b'"yesterday"',
}

FAULTS: dict[str, Fault] = {
    "unauthorized": refused(401, "Invalid API credentials."),
    "forbidden": refused(403, "You do not have permission to perform this action."),
    "rate_limited": refused(429, "Too many requests."),
    "rate_limited_seconds": refused(429, "Too many requests.", retry_after="30"),
    "rate_limited_date": _rate_limited_until,
    "server_error": refused(500, "Internal server error."),
    "bad_gateway": replied(502, b"<html><h1>502 Bad Gateway</h1></html>", content_type="text/html"),
    "unavailable": refused(503, "Service unavailable."),
    "gateway_timeout": replied(504, b"<html><h1>504 Gateway Time-out</h1></html>", content_type="text/html"),
    "html": replied(200, b"<!doctype html><title>Sign in to the proxy</title>", content_type="text/html"),
    "empty": replied(200),
    "null": replied(200, b"null"),
    "object": replied(200, b'{"detail":"this is not a list"}'),
    "truncated": delivered(_cut),
    "truncated_chunk": delivered(_cut, chunked=True),
    "unclosed": lambda response: replace(response, pieces=response.pieces[:-1]),
    "trailing_bytes": followed(b'\n{"id":"late"}'),
    "trailing_space": followed(b" \r\n\t" * 1000),
    "wrong_content_encoding": _labelled_gzip,
    "gzip_bomb": _gzip_bomb,
    "gzip_without_trailer": _gzip_cut,
    "byte_order_mark": lambda response: replace(response, pieces=[b"\xef\xbb\xbf", *response.pieces]),
    "early_hints": delivered(_after_interim_answers),
    "repeated_length": delivered(_with_repeated_length),
    "white_space": _white_space,
    "giant_task": _giant_task,
    "nested_brackets": inserted(messages=b"[" * 100_000 + b"]" * 100_000),
    "invalid_utf8": inserted(response_text=b'"\xff\xfe\xc3("'),
    "lone_surrogates": inserted(response_text=b'"\\ud83d and \\ude80"'),
    "nan": inserted(credits_used=b"NaN"),
    "infinite": inserted(credits_used=b"1e999"),
    "negative_credits": inserted(credits_used=b"-3"),
    "duplicate_keys": inserted(status=b'"failed","credits_used":7,"status":"done"'),
    "unknown_status": inserted(status=b'"in_queue"'),
    "year_0": inserted(created_at=b'"0000-01-01T00:00:00Z"'),
    "year_9999": inserted(created_at=b'"9999-12-31T23:59:59.999999-23:59"'),
    "not_a_task": lambda response: replace(response, pieces=[response.pieces[0], b"17,null,[],", *response.pieces[1:]]),
    "dripping_body": dripping(0.02),
    "dripping_headers": dripping(0.02, headers=True),
    "silence": delivered(_silence),
    "reset": delivered(_reset),
    "delayed": delayed(1),
    "redirect_same_origin": redirected("{path}?redirected"),
    "redirect_utf_8": redirected("{path}?é中Å"),
    "redirect_other_origin": redirected("http://localhost:{port}{path}"),
    "redirect_loop": redirected("{path}"),
    **{f"wrong_{name}": inserted("", **{name: value}) for name, value in _WRONG.items()},
    **{f"null_{name}": inserted("", **{name: b"null"}) for name in _WRONG},
    **{f"without_{name}": inserted(without=name) for name in _WRONG},
}
"""Every fault by its name. A redirect loop needs `always`: each reply redirects to its own path."""


class Faults:
    """Pending faults: first those for the next requests, in order, otherwise the one that always applies."""

    def __init__(self) -> None:
        self._next: deque[tuple[str | None, Fault]] = deque()
        self._always: list[tuple[str | None, Fault]] = []
        self._lock = threading.Lock()

    def next(self, *faults: str | Fault, path: str | None = LIST_PATH, times: int = 1) -> None:
        """Apply these faults to the next requests of a path (None: any), one each, the whole sequence `times` times."""
        with self._lock:
            self._next += [(path, _named(fault)) for fault in faults * times]

    def always(self, fault: str | Fault, path: str | None = LIST_PATH) -> None:
        """Apply this fault to every request of a path (None: any) until `clear`; the latest one wins."""
        with self._lock:
            self._always.insert(0, (path, _named(fault)))

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._next.clear()
            self._always.clear()

    def take(self, path: str) -> Fault | None:
        """Return the fault of the current request for a path, and remove it unless it always applies."""
        with self._lock:
            for number, (where, fault) in enumerate(self._next):
                if where in (None, path):
                    del self._next[number]
                    return fault
            return next((fault for where, fault in self._always if where in (None, path)), None)


def _named(fault: str | Fault) -> Fault:
    return FAULTS[fault] if isinstance(fault, str) else fault
