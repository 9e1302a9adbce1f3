"""The client against a simulated API that misbehaves, and against servers that are not an API at all."""

import gzip
import io
import itertools
import json
import re
import shutil
import socket
import ssl
import threading
import time
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authority import Authority
from creatify_exporter import log, redaction
from creatify_exporter.config.credential import Credential
from creatify_exporter.config.schema import TLS, Fetch, Workspace
from creatify_exporter.creatify.client import Client
from creatify_exporter.creatify.decoder import Decoder
from creatify_exporter.creatify.transport import default_context
from creatify_exporter.errors import FetchError, RateLimited
from creatify_exporter.simulator import (
    BALANCE_PATH,
    FAULTS,
    LIST_PATH,
    Account,
    Clock,
    Fault,
    Listing,
    Response,
    Simulator,
    Traffic,
    delayed,
    dripping,
    replied,
)
from creatify_exporter.simulator.faults import Wire, whole
from processes import free_port
from servers import Proxy, Recorder, delivered, hung_up, reset, said, silent_address

NOW = 1_760_000_000.0
TASKS = 20
SHORT = 0.5  # seconds for a fetch that is meant to run out of time
GRACE = 1.0  # seconds by which the fetcher lets a fetch overrun its deadline
API_ID, API_KEY = "canary-id-7f3a", "canary/key+9c1e"
CERTIFICATES = Path(__file__).parents[1] / "certificates"


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    account = Account(1, NOW - 3600, Traffic(rate=1 / 10, text_bytes=200))
    with Simulator(
        account, Clock(real=lambda: NOW), api_id=API_ID, api_key=API_KEY, listing=Listing(newest=TASKS)
    ) as simulated:
        yield simulated


def workspace(url: str, **settings: Any) -> Workspace:
    keys = {"api_id": Credential(API_ID), "api_key": Credential(API_KEY)}
    return Workspace(**{"name": "default", "base_url": url, **keys, **settings})


def client(url: str, *, timeout: float = 20.0, max_body: int = 64 << 20, **settings: Any) -> Client:
    limits = Fetch(timeout=timeout, max_body=max_body, max_task=1 << 20)
    return Client(workspace(url, **settings), limits, clock=lambda: NOW)


def fetched(one: Client, decoder: Decoder | None = None) -> int:
    return sum(len(batch.tasks) for batch in one.fetch_list(decoder or Decoder(1 << 20)))


def fetch(url: str, **settings: Any) -> int:
    with closing(client(url, **settings)) as one:
        return fetched(one)


def failure(url: str, **settings: Any) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch(url, **settings)
    return caught.value


def _server_tls(*, client_certificate: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "server.pem", CERTIFICATES / "server.key")
    if client_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(CERTIFICATES / "ca.pem")
    return context


# --- The result of a reply -----------------------------------------------------------------------------------------

ODD: tuple[int, dict[str, int]] = (TASKS + 1, {})  # one task more than there are, and nothing wrong with it


def _bad(field: str) -> tuple[int, dict[str, int]]:
    return TASKS + 1, {field: 1}


# A cause, or the number of tasks and the invalid ones among them.
EXPECTED: dict[str, str | tuple[int, dict[str, int]]] = {
    "unauthorized": "auth",
    "forbidden": "auth",
    "rate_limited": "rate_limited",
    "rate_limited_seconds": "rate_limited",
    "rate_limited_date": "rate_limited",
    "server_error": "http_status",
    "bad_gateway": "http_status",
    "unavailable": "http_status",
    "gateway_timeout": "http_status",
    "html": "invalid_body",
    "empty": "invalid_body",
    "null": "invalid_body",
    "object": "invalid_body",
    "truncated": "connection",
    "truncated_chunk": "connection",
    "unclosed": "invalid_body",
    "trailing_bytes": "invalid_body",
    "trailing_space": (TASKS, {}),
    "wrong_content_encoding": "invalid_body",
    "gzip_bomb": "too_large",
    "gzip_without_trailer": (TASKS, {}),
    "byte_order_mark": (TASKS, {}),
    "early_hints": (TASKS, {}),
    "repeated_length": (TASKS, {}),
    "white_space": "too_large",
    "giant_task": "too_large",
    "nested_brackets": (TASKS, {"task": 1}),
    "invalid_utf8": ODD,
    "lone_surrogates": ODD,
    "nan": "invalid_body",
    "infinite": _bad("credits_used"),
    "negative_credits": _bad("credits_used"),
    "duplicate_keys": ODD,
    "unknown_status": ODD,
    "year_0": _bad("created_at"),
    "year_9999": ODD,
    "not_a_task": (TASKS, {"task": 3}),
    "dripping_body": "timeout",
    "dripping_headers": "timeout",
    "silence": "timeout",
    "reset": "connection",
    "delayed": "timeout",
    "redirect_same_origin": "redirect",  # where it happens again and again
    "redirect_utf_8": "redirect",  # as above
    "redirect_other_origin": "redirect",
    "redirect_loop": "redirect",
    "wrong_id": ODD,
    "wrong_model_name": _bad("model_name"),
    "wrong_messages": ODD,
    "wrong_config": ODD,
    "wrong_response_function_calls": ODD,
    "wrong_status": _bad("status"),
    "wrong_response_text": ODD,
    "wrong_failed_reason": _bad("failed_reason"),
    "wrong_credits_used": ODD,
    "wrong_created_at": _bad("created_at"),
    "wrong_updated_at": ODD,
    "null_id": _bad("id"),
    "without_id": _bad("id"),
}
RUN_OUT = {name for name, expected in EXPECTED.items() if expected == "timeout"}


def test_each_fault_of_the_api_has_its_cause_or_costs_one_task(simulator: Simulator) -> None:
    wrong = {}
    for name in FAULTS:
        expected = EXPECTED.get(name, ODD) if name.startswith(("null_", "without_")) else EXPECTED[name]
        timeout = SHORT if name in RUN_OUT else 20.0
        simulator.faults.clear()
        simulator.faults.always(name)
        began = time.monotonic()
        found = outcome(simulator.url, timeout)
        if found != expected or time.monotonic() - began > timeout + GRACE:
            wrong[name] = found, time.monotonic() - began
    assert wrong == {}


def outcome(url: str, timeout: float) -> str | tuple[int, dict[str, int]]:
    """Fetch a list; return the cause of the failure, or the number of tasks and the invalid ones among them."""
    decoder = Decoder(1 << 20)
    try:
        with closing(client(url, timeout=timeout)) as one:
            batches = list(one.fetch_list(decoder))
    except FetchError as error:
        return error.cause
    assert decoder.answered_at == NOW
    return sum(len(batch.tasks) for batch in batches), {str(field): count for field, count in decoder.invalid.items()}


def test_a_redirect_within_the_origin_is_followed(simulator: Simulator) -> None:
    simulator.faults.next("redirect_same_origin")
    assert fetch(simulator.url) == TASKS
    assert [request.path for request in simulator.listings()] == [LIST_PATH, f"{LIST_PATH}?redirected"]


@pytest.mark.parametrize(
    ("location", "query"),
    [
        ("?é中Å".encode(), "%C3%A9%E4%B8%AD%C3%85"),
        ("?é".encode("latin-1"), "%E9"),
        ("?%C3%A9 é".encode(), "%C3%A9%20%C3%A9"),
    ],
)
def test_a_location_that_is_not_ascii_is_followed_byte_by_byte(
    simulator: Simulator, location: bytes, query: str
) -> None:
    simulator.faults.next(said(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: %b\r\n\r\n" % location))
    assert fetch(simulator.url) == TASKS
    assert simulator.listings()[-1].path == f"{LIST_PATH}?{query}"


def test_only_a_number_is_accepted_as_a_balance(simulator: Simulator) -> None:
    with closing(client(simulator.url)) as one:
        assert one.fetch_balance() == simulator.account.remaining_credits(NOW)
        simulator.faults.next(replied(200, b'{"remaining_credits":"12.5"}'), path=BALANCE_PATH)
        assert one.fetch_balance() == 12.5
        for body in (b"", b"null", b"[]", b"{}", b"12", b'{"remaining_credits":null}', b'{"remaining_credits":true}'):
            simulator.faults.next(replied(200, body), path=BALANCE_PATH)
            assert _cause(one.fetch_balance) == "invalid_body"
        for word in (b'"nan"', b'"inf"', b'"-Infinity"', b"NaN", b"1e999", b'"many"'):
            simulator.faults.next(replied(200, b'{"remaining_credits":%s}' % word), path=BALANCE_PATH)
            assert _cause(one.fetch_balance) == "invalid_body"
        simulator.faults.next(replied(200, b" " * 70_000 + b'{"remaining_credits":1}'), path=BALANCE_PATH)
        assert _cause(one.fetch_balance) == "too_large"
        simulator.faults.next("unauthorized", path=BALANCE_PATH)
        assert _cause(one.fetch_balance) == "auth"


def _cause(ask: Callable[[], object]) -> str:
    with pytest.raises(FetchError) as caught:
        ask()
    return caught.value.cause


# --- One deadline for everything -----------------------------------------------------------------------------------


def _endless_pages(response: Response) -> Response:
    number = next(_pages)
    return replace(response, pieces=[b'{"results":[],"next":"%s?page=%d"}' % (LIST_PATH.encode(), number)])


_pages = itertools.count(2)


def _head_then_nothing(wire: Wire, head: bytes, _blocks: Iterable[bytes]) -> None:
    wire.send(head)
    wire.hang()
    wire.close()


def _all_but_the_end(wire: Wire, head: bytes, blocks: Iterable[bytes]) -> None:
    wire.send(head + b"".join(blocks)[:-1])
    wire.hang()
    wire.close()


def _slow_redirect(response: Response) -> Response:
    return dripping(0.02, headers=True)(FAULTS["redirect_same_origin"](response))


SLOW: dict[str, list[Fault]] = {
    "a first failure that takes most of the time": [
        lambda response: delayed(0.8 * SHORT)(FAULTS["unavailable"](response)),
        FAULTS["silence"],
    ],
    "a body that stops": [delivered(_head_then_nothing)],
    "a body that lacks its last byte": [delivered(_all_but_the_end)],
    "a redirect that drips": [_slow_redirect],
    "silence behind a redirect": [FAULTS["redirect_same_origin"], FAULTS["silence"]],
    "pages without end": [_endless_pages] * 10_000,
}


@pytest.mark.parametrize("faults", SLOW.values(), ids=list(SLOW))
def test_one_deadline_ends_everything_that_takes_too_long(simulator: Simulator, faults: list[Fault]) -> None:
    simulator.faults.next(*faults)
    began = time.monotonic()
    error = failure(simulator.url, timeout=SHORT)
    assert time.monotonic() - began < SHORT + GRACE
    assert error.cause == "timeout"


def test_the_balance_has_the_same_deadline(simulator: Simulator) -> None:
    simulator.faults.always(dripping(0.05), path=BALANCE_PATH)
    with closing(client(simulator.url, timeout=SHORT)) as one:
        began = time.monotonic()
        assert _cause(one.fetch_balance) == "timeout"
        assert time.monotonic() - began < SHORT + GRACE


def test_a_client_whose_time_ran_out_fetches_again(simulator: Simulator) -> None:
    simulator.faults.next("dripping_body")
    with closing(client(simulator.url, timeout=SHORT)) as one:
        assert _cause(lambda: fetched(one)) == "timeout"
        assert fetched(one) == TASKS


def test_a_silent_tls_handshake_and_a_dripping_proxy_end_with_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, Proxy(drips=True) as proxy:
        for settings in (
            {"url": f"https://127.0.0.1:{mute.getsockname()[1]}"},
            {"url": "https://127.0.0.1:9", "proxy_url": proxy.url},
            {"url": "http://127.0.0.1:9", "proxy_url": proxy.url},
        ):
            began = time.monotonic()
            assert failure(timeout=SHORT, **settings).cause == "timeout"
            assert time.monotonic() - began < SHORT + GRACE


# --- Retries and connections ---------------------------------------------------------------------------------------

RETRIED: dict[str, Fault] = {
    **{name: FAULTS[name] for name in ("bad_gateway", "unavailable", "gateway_timeout")},
    "hung_up": hung_up,
    "reset": reset,
    "garbage": said(b"SSH-2.0-OpenSSH_9.2\r\n"),
}
NOT_RETRIED = (
    "server_error",
    "unauthorized",
    "forbidden",
    "rate_limited",
    "html",
    "truncated",
    "redirect_other_origin",
)


def test_a_failed_connection_or_gateway_is_retried_once(simulator: Simulator) -> None:
    for name, fault in RETRIED.items():
        simulator.faults.clear()
        simulator.requests.clear()
        simulator.faults.next(fault)
        assert fetch(simulator.url) == TASKS, name
        assert len(simulator.listings()) == 2, name
        simulator.faults.always(fault)
        assert failure(simulator.url).cause in ("connection", "http_status"), name
        assert len(simulator.listings()) == 4, name


def test_a_failure_that_a_retry_cannot_fix_is_not_retried(simulator: Simulator) -> None:
    for name in NOT_RETRIED:
        simulator.faults.always(name)
        simulator.requests.clear()
        failure(simulator.url)
        assert len(simulator.listings()) == 1, name


def test_a_silent_api_is_not_retried(simulator: Simulator) -> None:
    simulator.faults.always("silence")
    failure(simulator.url, timeout=SHORT)
    assert len(simulator.listings()) == 1


def test_a_connection_that_went_stale_between_two_fetches_costs_nothing(simulator: Simulator) -> None:
    def then_close(wire: Wire, head: bytes, blocks: Iterable[bytes]) -> None:
        whole(wire, head, blocks)
        wire.close()

    simulator.faults.always(delivered(then_close))
    with closing(client(simulator.url)) as one:
        assert [fetched(one) for _ in range(4)] == [TASKS] * 4
    assert len(simulator.listings()) == 4


def test_one_connection_serves_many_fetches() -> None:
    with Recorder() as api, closing(client(api.url)) as one:
        assert [fetched(one) for _ in range(5)] == [0] * 5
        assert (len(api.heads), api.connections) == (5, 1)


def test_connections_that_cannot_be_made_say_why() -> None:
    refused = failure(f"http://127.0.0.1:{free_port()}")
    assert refused.cause == "connection"
    assert str(refused).endswith("Connection refused")
    unnamed = failure("http://[fe80::1%25nowhere]:9")  # a name that the resolver refuses without asking anybody
    assert unnamed.cause == "connection"
    assert "resolve" in str(unnamed)
    assert failure("http://a..b").cause == "connection"
    assert failure("http://127.0.0.1:9", proxy_url="http://a..b").cause == "connection"


def test_a_compressed_list_and_one_in_chunks_are_lists(simulator: Simulator) -> None:
    simulator.gzip = True
    assert fetch(simulator.url) == TASKS
    simulator.gzip, simulator.chunked = False, True
    assert fetch(simulator.url) == TASKS
    assert "gzip" in simulator.requests[0].headers["accept-encoding"]


FINAL = b"Content-Length: 2\r\n\r\n[]"
FRAMED: dict[str, tuple[bytes, str | None]] = {
    "one interim answer": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n" + FINAL, None),
    "a hundred": (b"HTTP/1.1 102 Processing\r\n\r\n" * 100 + b"HTTP/1.1 200 OK\r\n" + FINAL, None),
    "others that nobody has heard of": (b"HTTP/1.1 199 \r\nA: b\r\nC: d\r\n\r\nHTTP/1.1 200 OK\r\n" + FINAL, None),
    "an upgrade that nobody asked for": (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "http_status"),
    "an interim answer and no other": (b"HTTP/1.1 103 Early Hints\r\n\r\n", "connection"),
    "a length twice": (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n[]", None),
    "a length in two lines": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + FINAL, None),
    "a length three times": (b"HTTP/1.1 200 OK\r\nContent-Length: 2 ,02,2\r\n\r\n[]", None),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n[]", "invalid_body"),
    "two lengths in two lines": (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n" + FINAL, "invalid_body"),
    "an empty length": (b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n[]", "invalid_body"),
    "no number": (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n[]", "invalid_body"),
    "a number that only Python reads": (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n[]", "invalid_body"),
    "less than nothing": (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n[]", "invalid_body"),
}


@pytest.mark.parametrize("name", FRAMED)
def test_interim_answers_and_lengths_follow_http_even_if_the_connection_stays_open(
    simulator: Simulator, name: str
) -> None:
    raw, cause = FRAMED[name]

    def deliver(wire: Wire, _head: bytes, _blocks: Iterable[bytes]) -> None:
        wire.send(raw)
        if name == "an interim answer and no other":
            wire.close()

    simulator.faults.always(delivered(deliver))
    if cause:
        assert failure(simulator.url, timeout=5.0).cause == cause
    else:
        assert fetch(simulator.url, timeout=5.0) == 0


def test_a_byte_order_mark_before_the_balance_is_ignored(simulator: Simulator) -> None:
    simulator.faults.always(replied(200, b'\xef\xbb\xbf{"remaining_credits":7}'), path=BALANCE_PATH)
    with closing(client(simulator.url)) as one:
        assert one.fetch_balance() == 7


PROMPT = "a prompt that is nobody's business"
QUOTING: dict[str, Fault] = {
    "an HTML or XML document": replied(200, f"<html>{PROMPT}".encode()),
    "a JSON object with detail, status": replied(200, json.dumps({"status": PROMPT, "detail": PROMPT}).encode()),
    "a JSON object": replied(200, json.dumps({PROMPT: PROMPT}).encode()),
    "a JSON string": replied(200, f'"{PROMPT}"'.encode()),
    "text or binary data": replied(200, PROMPT.encode()),
    "a number": replied(200, f"42 {PROMPT}".encode()),
    "a JSON literal": replied(200, f"null {PROMPT}".encode()),
    "an empty body": replied(200, b" \n"),
    "the list is not valid JSON: ": replied(200, f'[{{"id": "{PROMPT}" "}}]'.encode()),
    "the list is not valid JSON: it cannot be read": replied(200, f'{{"results": ["{PROMPT}"'.encode()),
    "the answer is not HTTP": said(PROMPT.encode() + b"\r\n\r\n"),
    "stopped after 5 redirects": said(
        f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /{PROMPT}\r\n\r\n".encode()
    ),
}


@pytest.mark.parametrize("shape", QUOTING)
def test_a_refused_answer_is_described_by_its_shape_and_not_quoted(simulator: Simulator, shape: str) -> None:
    simulator.faults.always(QUOTING[shape], path=None)
    told = str(failure(simulator.url))
    assert shape in told
    assert not [word for word in PROMPT.split() if len(word) > 3 and word in told]


def test_the_log_does_not_quote_an_unreadable_head(simulator: Simulator) -> None:
    logged = io.StringIO()
    log.configure("debug", "logfmt", logged)
    simulator.faults.always(said(f"HTTP/1.1 200 OK\r\n{PROMPT}\r\n\r\n[]".encode()), path=None)
    with suppress(FetchError):
        fetch(simulator.url)
    assert simulator.requests
    assert PROMPT not in logged.getvalue()


def test_a_silent_first_address_costs_a_moment_and_not_the_timeout(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent_address() as silent:

        def resolve(*_: object, **__: object) -> list[tuple[Any, ...]]:
            addresses = (silent, ("127.0.0.1", simulator.port))
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        began = time.monotonic()
        assert fetch(f"http://creatify.test:{simulator.port}", timeout=8.0) == TASKS
        assert time.monotonic() - began < 4


# --- Pages, sizes, pauses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, TASKS, 100])
def test_pages_are_followed_to_the_last(simulator: Simulator, size: int) -> None:
    simulator.listing = Listing(newest=TASKS, page_size=size)
    assert fetch(simulator.url) == TASKS
    assert len(simulator.listings()) == -(-TASKS // size)


@pytest.mark.parametrize(
    ("link", "cause"),
    [
        (f"{LIST_PATH}?page=1", "invalid_body"),
        (LIST_PATH, "invalid_body"),
        ("http://127.0.0.1:1/sse/text_generator/", "redirect"),
        ("//localhost/sse/text_generator/", "redirect"),
        ("ftp://127.0.0.1/list", "redirect"),
        ("https://127.0.0.1/", "redirect"),
        ("http://[", "redirect"),
        ("http://127.0.0.1:99999999/", "redirect"),
        ("/elsewhere", "http_status"),
    ],
)
def test_pages_that_lead_back_or_away_are_refused(simulator: Simulator, link: str, cause: str) -> None:
    simulator.faults.always(replied(200, json.dumps({"results": [], "next": link}).encode()))
    assert failure(simulator.url).cause == cause


def test_a_page_that_fails_costs_the_whole_list(simulator: Simulator) -> None:
    simulator.listing = Listing(newest=TASKS, page_size=7)
    simulator.faults.next(lambda response: response, lambda response: response, FAULTS["server_error"])
    assert failure(simulator.url).cause == "http_status"


def test_a_body_ends_at_its_bound_and_pages_share_it(simulator: Simulator) -> None:
    with closing(client(simulator.url)) as one:
        decoder = Decoder(1 << 20)
        assert fetched(one, decoder) == TASKS
    assert fetch(simulator.url, max_body=decoder.received) == TASKS
    error = failure(simulator.url, max_body=decoder.received - 1)
    assert error.cause == "too_large"
    assert str(decoder.received) in str(error)
    simulator.listing = Listing(newest=TASKS, page_size=5)
    error = failure(simulator.url, max_body=decoder.received // 2)
    assert (error.cause, f"the limit is {decoder.received // 2}" in str(error)) == ("too_large", True)
    assert int(str(error).split()[0]) > decoder.received // 2


def test_a_gzip_bomb_ends_at_the_bound_of_decoded_bytes(simulator: Simulator) -> None:
    bomb = gzip.compress(b"[" + b" " * (40 << 20))
    simulator.faults.always(replied(200, bomb, content_encoding="gzip"))
    with closing(client(simulator.url, max_body=600_000)) as one:
        decoder = Decoder(1 << 20)
        assert _cause(lambda: fetched(one, decoder)) == "too_large"
        assert decoder.received < 2 << 20


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("30", 30.0),
        ("0", 0.0),
        ("007", 7.0),
        (formatdate(NOW + 45, usegmt=True), 45.0),
        (formatdate(NOW - 45, usegmt=True), 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("9" * 400, float("inf")),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", None),
        ("Mon, 01 Jan 99999 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(simulator: Simulator, header: str, seconds: float | None) -> None:
    raw = f"HTTP/1.1 429 Too Many Requests\r\nRetry-After: {header}\r\nContent-Length: 0\r\n\r\n"
    simulator.faults.always(said(raw.encode("latin-1")))
    error = failure(simulator.url)
    assert isinstance(error, RateLimited)
    assert error.retry_after == seconds


@given(header=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60) | st.from_regex(
    r"\A(Mon, )?[0-9]{1,2} (Jan|Feb|Foo) [0-9]{1,5} [0-9]{1,3}:[0-9]{1,3}(:[0-9]{1,3})? [+-]?[0-9A-Z]{0,24}\Z"
))  # fmt: skip
def test_an_odd_date_or_retry_after_does_not_break_a_fetch(header: str) -> None:
    with Answering(f"HTTP/1.1 429 Slow down\r\nDate: {header}\r\nRetry-After: {header}\r\n") as url:
        assert isinstance(failure(url), RateLimited)


class Answering:
    """A server for one connection, and cheap to start."""

    def __init__(self, head: str) -> None:
        self._raw = f"{head}Content-Length: 0\r\n\r\n".encode()
        self._listener = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> str:
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(self._raw)


# --- The keys ------------------------------------------------------------------------------------------------------


def test_the_keys_go_to_the_api_and_to_no_other_origin(simulator: Simulator) -> None:
    with Recorder() as other:
        elsewhere = f"{other.url}{LIST_PATH}"
        for fault in (
            replied(302, location=elsewhere),
            replied(307, location=elsewhere.removeprefix("http:")),
            replied(301, location=elsewhere.replace("127.0.0.1", "127.0.0.1@127.0.0.1")),
            replied(200, json.dumps({"results": [], "next": elsewhere}).encode()),
        ):
            simulator.faults.next(fault)
            assert failure(simulator.url).cause == "redirect"
        assert other.connections == 0
    assert {(r.headers["x-api-id"], r.headers["x-api-key"]) for r in simulator.requests} == {(API_ID, API_KEY)}


def test_only_the_head_of_a_redirect_is_read(simulator: Simulator) -> None:
    """By default, `requests` reads the body of a redirect to its end, however long it is."""

    def endless(wire: Wire, _head: bytes, _blocks: Iterable[bytes]) -> None:
        head = f"HTTP/1.1 302 Found\r\nLocation: {LIST_PATH}?redirected\r\nContent-Length: 10000000000\r\n\r\n"
        wire.send(head.encode())
        with suppress(OSError):
            for _ in range(100):
                wire.send(b" " * (1 << 20))
                wire.wait(0.05)
        wire.close()

    simulator.faults.next(delivered(endless))
    assert fetch(simulator.url, timeout=2.0) == TASKS


@pytest.mark.parametrize("location", ["http://[", "http://x:y/", "//", "\x80", "http://127.0.0.1:99999/", "?" * 2000])
def test_a_redirect_to_nowhere_is_refused(simulator: Simulator, location: str) -> None:
    raw = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
    simulator.faults.always(said(raw))
    error = failure(simulator.url)
    assert error.cause in ("redirect", "http_status")
    assert len(str(error)) < 300


def test_rotated_key_files_are_read_again(simulator: Simulator, tmp_path: Path) -> None:
    id_file, key_file = tmp_path / "id", tmp_path / "key"
    id_file.write_text(f"{API_ID}\n")
    key_file.write_text(f"{API_KEY}\r\n")
    keys: dict[str, Any] = {"api_id": Credential(file=id_file), "api_key": Credential(file=key_file)}
    with closing(client(simulator.url, **keys)) as one:
        assert fetched(one) == TASKS
        simulator.api_key = "rotated-key"
        assert _cause(lambda: fetched(one)) == "auth"
        key_file.write_text("rotated-key\n")
        assert fetched(one) == TASKS
        key_file.unlink()
        with pytest.raises(FetchError, match=r"key cannot be read: No such file") as caught:
            fetched(one)
        assert caught.value.cause == "auth"
        key_file.write_text("rotated-key")
        assert fetched(one) == TASKS


ECHO = f"{API_ID} {API_KEY}".encode()
NO_SECRET_TEXT: dict[str, list[Fault]] = {
    "in an error": [replied(401, b'{"detail":"%s"}' % ECHO)],
    "in a body that is no list": [replied(200, b'{"error":"%s"}' % ECHO)],
    "in a body that is nothing": [replied(200, ECHO)],
    "in a broken list": [replied(200, b"[{%s}]" % ECHO)],
    "in a status line": [replied(500), said(b"HTTP/1.1 500 %s\r\n\r\n" % ECHO)],
    "instead of a status line": [said(ECHO + b"\r\n\r\n")] * 2,
    "instead of a status": [said(b"HTTP/1.1 %s\r\n\r\n" % ECHO)] * 2,
    "in a redirect": [said(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: ?%s\r\n\r\n" % ECHO)] * 9,
    "in a redirect elsewhere": [said(b"HTTP/1.1 302 Found\r\nLocation: http://%s/\r\n\r\n" % API_ID.encode())],
    "in the next page": [replied(200, b'{"results":[],"next":"http://%s/"}' % API_ID.encode())],
    "in a pause": [said(b"HTTP/1.1 429 Too Many\r\nRetry-After: %s\r\n\r\n" % ECHO)],
    "as a length": [said(b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n[" % ECHO)],
    "as an encoding": [said(b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: 2\r\n\r\n[}" % ECHO)],
    "as a chunk": [said(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n" % ECHO)],
    "in a broken head": [said(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n{" % ECHO)],
    "nowhere, but nothing else comes either": [hung_up] * 2,
}


@pytest.mark.parametrize("faults", NO_SECRET_TEXT.values(), ids=list(NO_SECRET_TEXT))
def test_an_api_that_echoes_the_keys_does_not_get_them_into_an_error(simulator: Simulator, faults: list[Fault]) -> None:
    simulator.faults.next(*faults)
    _assert_secretless(failure(simulator.url))


def test_the_error_for_a_name_that_cannot_be_resolved_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure("http://api.example", allow_insecure=True)
    assert str(error) == "no connection: Failed to resolve 'api.example' (Name or service not known)"


def test_no_network_error_holds_the_keys_or_the_proxys_password() -> None:
    with Proxy(refuses=True) as refusing, socket.create_server(("127.0.0.1", 0)) as mute:
        password = "canary-password"  # noqa: S105 - of a proxy that this test makes up
        redaction.register(password)
        mute_url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        for settings in (
            {"url": mute_url},
            {"url": mute_url.replace("http", "https")},
            {"url": f"http://127.0.0.1:{free_port()}"},
            {"url": "http://[fe80::1%25nowhere]:9"},
            {"url": "http://a..b"},
            {"url": "https://127.0.0.1:9", "proxy_url": refusing.url.replace("//", f"//user:{password}@")},
            {"url": "http://127.0.0.1:9", "proxy_url": f"http://user:{password}@127.0.0.1:{free_port()}"},
            {"url": "http://127.0.0.1:9", "proxy_url": f"http://user:{password}@a..b"},
        ):
            error = failure(timeout=SHORT, **settings)
            _assert_secretless(error, password, b64encode(f"user:{password}".encode()).decode())


def _assert_secretless(error: BaseException, *secrets: str) -> None:
    """Search everything that a log might show of an error: the error and all exceptions attached to it."""
    texts, known = [""], set[int]()
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop()
        if one is None or id(one) in known:
            continue
        known.add(id(one))
        assert not hasattr(one, "request"), "an exception of requests knows the headers that were sent"
        texts += [str(one), repr(one), repr(one.args), repr(vars(one)), *traceback.format_exception(one)]
        queue += [one.__cause__, one.__context__]
    for secret in (API_ID, API_KEY, *secrets):
        assert secret not in "\n".join(texts)


def test_neither_netrc_nor_the_environments_proxy_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login canary password canary\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with Recorder() as api, Proxy() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert fetch(api.url) == 0
        assert proxy.connections == 0
        assert "authorization" not in api.heads[0]
        assert api.heads[0]["user-agent"].startswith("creatify-exporter/")


def test_no_cookie_is_kept(simulator: Simulator) -> None:
    """An API could fill the memory with them."""
    cookie = said(b"HTTP/1.1 503 Busy\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n")
    simulator.faults.next(cookie)
    assert fetch(simulator.url) == TASKS
    assert ["cookie" in request.headers for request in simulator.listings()] == [False, False]


# --- Proxy and TLS -------------------------------------------------------------------------------------------------


def test_a_list_is_fetched_through_a_proxy_that_does_not_see_the_keys_of_an_https_api(simulator: Simulator) -> None:
    with Proxy() as proxy:
        proxy_url = proxy.url.replace("//", "//user:pä€s%20word@")
        assert fetch(simulator.url, proxy_url=proxy_url) == TASKS
        assert f"Basic {b64encode('user:pä€s word'.encode()).decode()}" in proxy.heads[0]
        with Recorder(_server_tls()) as api:
            assert fetch(api.url, proxy_url=proxy_url, tls_config=TLS(ca_file=CERTIFICATES / "ca.pem")) == 0
            assert api.heads[0]["x-api-key"] == API_KEY
            assert "proxy-authorization" not in api.heads[0]
        tunnel = proxy.heads[-1]
        assert tunnel.startswith("CONNECT 127.0.0.1:")
        assert API_KEY not in tunnel


def test_a_login_of_a_proxy_without_a_password_has_an_empty_one(simulator: Simulator) -> None:
    with Proxy() as proxy:
        assert fetch(simulator.url, proxy_url=proxy.url.replace("//", "//user@")) == TASKS
        assert f"Basic {b64encode(b'user:').decode()}" in proxy.heads[0]


def test_a_proxy_that_refuses_is_a_connection_error() -> None:
    with Proxy(refuses=True) as proxy:
        error = failure("https://127.0.0.1:9", proxy_url=proxy.url)
    assert (error.cause, str(error)) == ("connection", "no connection: 407 Proxy Authentication Required")


def test_the_certificate_of_a_proxy_is_verified_for_http_and_https_apis() -> None:
    with Recorder(_server_tls()) as proxy:
        for url in ("http://api.example", "https://api.example"):
            for tls in (None, TLS(ca_file=CERTIFICATES / "other-ca.pem")):
                error = failure(url, proxy_url=proxy.url, tls_config=tls)
                assert "certificate" in str(error)
        assert proxy.heads == []
        assert fetch("http://api.example", proxy_url=proxy.url, tls_config=TLS(ca_file=CERTIFICATES / "ca.pem")) == 0
        assert len(proxy.heads) == 1


def test_a_private_ca_is_trusted_only_if_it_is_configured() -> None:
    with Recorder(_server_tls()) as api:
        assert fetch(api.url, tls_config=TLS(ca_file=CERTIFICATES / "ca.pem")) == 0
        assert failure(api.url).cause == "tls"
        assert failure(api.url, tls_config=TLS(ca_file=CERTIFICATES / "other-ca.pem")).cause == "tls"
        assert failure(api.url, tls_config=TLS(ca_file=CERTIFICATES / "server.key")).cause == "tls"
        assert failure(api.url, tls_config=TLS(ca_file=CERTIFICATES / "missing.pem")).cause == "tls"
        assert len(api.heads) == 1


@pytest.mark.parametrize("flaw", ["another name", "expired"])
def test_a_certificate_that_proves_nothing_is_refused(tmp_path: Path, flaw: str) -> None:
    authority = Authority(tmp_path)
    names = "DNS:elsewhere.example" if flaw == "another name" else "IP:127.0.0.1"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server", names, days=-1 if flaw == "expired" else 2))
    with Recorder(context) as api:
        assert failure(api.url, tls_config=TLS(ca_file=authority.pem)).cause == "tls"
    assert api.heads == []  # no key went there


def test_a_client_certificate_is_sent_if_the_server_asks_for_it() -> None:
    with Recorder(_server_tls(client_certificate=True)) as api:
        ca = CERTIFICATES / "ca.pem"
        pair = {"cert_file": CERTIFICATES / "client.pem", "key_file": CERTIFICATES / "client.key"}
        assert fetch(api.url, tls_config=TLS(ca_file=ca, **pair)) == 0
        assert failure(api.url, tls_config=TLS(ca_file=ca)).cause in ("tls", "connection")
        unfit = {**pair, "key_file": CERTIFICATES / "server.key"}
        assert failure(api.url, tls_config=TLS(ca_file=ca, **unfit)).cause == "tls"
        assert len(api.heads) == 1


def test_files_are_read_again_for_each_connection(tmp_path: Path) -> None:
    files = {"ca_file": "ca.pem", "cert_file": "client.pem", "key_file": "client.key"}
    tls = TLS(**{key: Path(shutil.copy(CERTIFICATES / name, tmp_path)) for key, name in files.items()})
    with Recorder(_server_tls(client_certificate=True)) as api, closing(client(api.url, tls_config=tls)) as one:
        for name in files.values():
            assert fetched(one) == 0
            # The next connection is a new one.
            one.close()
            gone = (tmp_path / name).rename(tmp_path / "gone")
            with pytest.raises(FetchError, match=re.escape(f"{tmp_path / name}")) as caught:
                fetched(one)
            assert caught.value.cause == "tls"
            gone.rename(tmp_path / name)
        shutil.copy(CERTIFICATES / "other-ca.pem", tmp_path / "ca.pem")
        with pytest.raises(FetchError, match="certificate") as caught:
            fetched(one)
        assert caught.value.cause == "tls"


def test_all_workspaces_share_the_default_context() -> None:
    with Recorder(_server_tls()) as api:
        assert failure(api.url).cause == "tls"
        default_context().load_verify_locations(CERTIFICATES / "ca.pem")
        assert [fetch(api.url) for _ in range(3)] == [0, 0, 0]
    default_context.cache_clear()


def test_the_authorities_of_ssl_cert_file_are_trusted_instead_of_the_usual_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = TLS(cert_file=CERTIFICATES / "client.pem", key_file=CERTIFICATES / "client.key")
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "ca.pem"))
    default_context.cache_clear()
    with Recorder(_server_tls()) as api:
        assert fetch(api.url) == fetch(api.url, tls_config=pair) == 0
        assert failure(api.url, tls_config=TLS(ca_file=CERTIFICATES / "other-ca.pem")).cause == "tls"
    default_context.cache_clear()


def test_a_server_without_tls_is_a_tls_failure(simulator: Simulator) -> None:
    error = failure(simulator.url.replace("http:", "https:"))
    assert (error.cause, str(error)) == ("tls", "no secure connection: wrong version number")


def test_the_error_for_an_untrusted_certificate_is_readable() -> None:
    with Recorder(_server_tls()) as api:
        assert re.fullmatch(r"no secure connection: [a-z -]*(certificate|issuer)[a-z -]*", str(failure(api.url)))
