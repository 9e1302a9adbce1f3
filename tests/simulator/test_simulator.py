import ast
import gzip
import http.client
import itertools
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
import requests

import creatify_exporter.simulator
from clocks import ManualClock
from creatify_exporter.simulator import (
    BALANCE_PATH,
    COMPACT,
    FAULTS,
    LIST_PATH,
    MODELS,
    REVERSED,
    SPACED,
    Account,
    Clock,
    Incident,
    Listing,
    Model,
    Request,
    Response,
    Simulator,
    Task,
    Traffic,
    Truth,
    delayed,
    dripping,
    inserted,
    odd_task,
)
from creatify_exporter.simulator.faults import ODD_ID
from creatify_exporter.simulator.listing import Encoder

START = 1_760_000_040.0  # a full minute
KEYS = {"X-API-ID": "simulated-id", "X-API-KEY": "simulated-key"}
LOWER_KEYS = {name.lower(): value for name, value in KEYS.items()}
SHORT = Traffic(rate=0.5, text_bytes=200)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START + 600)


@pytest.fixture
def simulator(clock: ManualClock) -> Iterator[Simulator]:
    with Simulator(Account(1, START, SHORT), Clock(real=clock)) as simulator:
        yield simulator


def listed(account: Account, at: float, listing: Listing | None = None) -> list[dict[str, Any]]:
    listing = listing or Listing()
    tasks: list[dict[str, Any]] = json.loads(
        b"".join(Encoder(account, listing.style).array(listing.tasks(account, at), at))
    )
    return tasks


def get(simulator: Simulator, path: str = LIST_PATH, **headers: str) -> requests.Response:
    return requests.get(simulator.url + path, headers=KEYS | headers, timeout=5, allow_redirects=False)


def instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# The clock


def test_an_accelerated_clock_starts_in_the_past_and_catches_up_with_real_time() -> None:
    real = ManualClock(1000)
    clock = Clock.behind(5900, speed=60, real=real)
    assert clock.now() == 1000 - 5900
    for real.at in (1010, 1050, 1099.9):
        assert clock.now() == pytest.approx(1000 - 5900 + 60 * (real.at - 1000))
        assert clock.now() < real.at
    for real.at in (1100, 1200):
        assert clock.now() == real.at


@pytest.mark.parametrize("make", [lambda: Clock(speed=0.5), lambda: Clock.behind(10, speed=1)])
def test_a_clock_that_would_never_catch_up_is_refused(make: Callable[[], Clock]) -> None:
    with pytest.raises(ValueError, match="speed"):
        make()


# The account


def test_the_same_seed_and_instant_give_the_same_bytes_in_whatever_steps_they_are_read() -> None:
    impatient, patient, other = Account(1, START, SHORT), Account(1, START, SHORT), Account(2, START, SHORT)
    for at in range(int(START), int(START) + 900, 7):
        impatient.tasks(at)
    for listing in (Listing(), Listing(order="shuffled", repeats=True), Listing(style=SPACED, newest=50)):
        bodies = [
            b"".join(Encoder(account, listing.style).array(listing.tasks(account, START + 900), START + 900))
            for account in (impatient, patient, other)
        ]
        assert bodies[0] == bodies[1] != bodies[2]


def test_an_encoder_that_has_seen_a_task_settled_still_shows_its_past() -> None:
    account = Account(1, START, SHORT)
    used, tasks = Encoder(account, COMPACT), account.tasks(START + 300)
    used.array(account.tasks(START + 5000), START + 5000)
    assert used.array(tasks, START + 300) == Encoder(account, COMPACT).array(tasks, START + 300)


def test_the_truth_is_what_a_replay_of_every_instant_counts() -> None:
    account = Account(
        5, START, Traffic(rate=0.5, text_bytes=100, models=[replace(m, failure_ratio=0.3) for m in MODELS])
    )
    tasks = account.tasks(START + 120)
    instants = {moment for t in tasks for moment in (*(step.at for step in t.steps), *(at for at, _ in t.bills))}
    replayed = Truth()
    seen: dict[str, dict[str, Any]] = {}
    for at in sorted(at for at in instants if at <= START + 120):
        for task in listed(account, at):
            _count(replayed, task, seen.get(task["id"]))
            seen[task["id"]] = task
    truth = account.truth(START + 120)
    for name in ("submitted", "finished", "failed", "credits_used", "credits_refunded"):
        assert nonzero(getattr(truth, name)) == nonzero(getattr(replayed, name)), name
    assert sum(truth.kinds.values()) == sum(truth.failed.values()) > 0


def nonzero(counts: dict[str, float]) -> dict[str, float]:
    return {model: count for model, count in counts.items() if count}


def _count(truth: Truth, task: dict[str, Any], before: dict[str, Any] | None) -> None:
    model, status = task["model_name"], task["status"]
    before = before or {"status": None, "credits_used": 0}
    truth.submitted[model] += before["status"] is None
    if status != before["status"]:
        truth.finished[model] += status in ("done", "failed")
        truth.failed[model] += status == "failed"
    change = task["credits_used"] - before["credits_used"]
    truth.credits_used[model] += max(0, change)
    truth.credits_refunded[model] += max(0, -change)


def test_the_truth_subtracts_and_can_leave_out_older_tasks() -> None:
    account = Account(1, START, SHORT)
    early, late = START + 300, START + 5000
    between = account.truth(late) - account.truth(early)
    assert sum(between.submitted.values()) == len(account.tasks(late, early))
    assert account.truth(late, early).submitted == between.submitted
    assert sum(between.finished.values()) > sum(account.truth(late, early).finished.values())
    assert sum(account.truth(late).credits.values()) == sum(task.credits(late) for task in account.tasks(late))


def test_lists_show_the_traps_of_the_real_api() -> None:
    account = Account(1, START, Traffic(rate=0.5, text_bytes=2000))
    tasks = listed(account, START + 3000)
    done = [task for task in tasks if task["status"] == "done"]
    at_once = [task for task in done if instant(task["updated_at"]) - instant(task["created_at"]) < 0.05]
    assert len(at_once) > len(done) / 2
    assert {task["created_at"][-6:] == "-07:00" for task in tasks} == {True, False}
    assert {task["failed_reason"] for task in done} == {None, ""}
    assert {type(task["credits_used"]) for task in tasks} == {int, float}
    calls = [m["function_call"]["args"] for task in tasks for m in task["messages"] if "function_call" in m]
    assert any(args["tasks"][0]["status"] == "failed" for args in calls)
    late = [task for task in account.tasks(START + 3000) if task.bills and task.settled > task.finished]
    refunded = [task for task in late if task.bills[-1][1] < max(value for _, value in task.bills)]
    assert len(late) > len(refunded) > 0


def test_incidents_and_a_newcomer_whose_first_tasks_fail() -> None:
    newcomer = Model("newcomer", 10, 5, 0, 1, since=START + 3000, first_failures=4)
    incidents = [
        Incident(START + 600, START + 1200, "gemini-2.5-flash", failure_ratio=1, reason="timeout"),
        Incident(START + 1800, START + 2100, stuck=True),
        Incident(START + 2400, START + 3000, burn=5),
        Incident(START + 3600, START + 4200, arrivals=0),
    ]
    account = Account(1, START, Traffic(rate=1, rhythm=0, models=[*MODELS, newcomer], incidents=incidents))
    tasks = account.tasks(START + 6000)

    def born(low: float, high: float) -> list[Task]:
        return [task for task in tasks if START + low <= task.created < START + high]

    assert {task.kind for task in born(600, 1200) if task.model == "gemini-2.5-flash"} == {"timeout"}
    assert not [task for task in tasks if START + 1800 <= task.finished < START + 2100]
    burnt, usual = (
        sum(task.credits(START + 9e9) for task in span) / len(span) for span in (born(2400, 3000), born(0, 600))
    )
    assert burnt > 3 * usual
    assert not born(3600, 4200)
    assert [task.failed for task in tasks if task.model == "newcomer"][:5] == [True] * 4 + [False]


def test_an_hour_of_silence_and_no_tasks_at_all_are_answered() -> None:
    account = Account(1, START, Traffic(rate=0))
    assert listed(account, START + 3600) == []


# The list


def test_the_list_can_be_windowed_reordered_and_repeated() -> None:
    account, at = Account(1, START, SHORT), START + 600
    ids = [task.id for task in account.tasks(at)]
    order = {name: [t.id for t in Listing(order=name).tasks(account, at)] for name in ("newest", "oldest", "shuffled")}
    assert order["oldest"] == ids == order["newest"][::-1]
    assert order["shuffled"] not in (ids, ids[::-1])
    assert sorted(order["shuffled"]) == sorted(ids)
    assert [t.id for t in Listing(newest=20).tasks(account, at)] == ids[:-21:-1]
    assert Listing(newest=0).tasks(account, at) == []
    young = Listing(younger_than=60).tasks(account, at)
    assert 0 < len(young) < len(ids)
    assert all(at - task.created < 60 for task in young)
    repeated = [task.id for task in Listing(repeats=True).tasks(account, at)]
    assert len(repeated) > len(ids) == len(set(repeated))


def test_every_notation_says_the_same() -> None:
    account, at = Account(1, START, SHORT), START + 600
    compact, spaced, reverse = (listed(account, at, Listing(style=style)) for style in (COMPACT, SPACED, REVERSED))
    assert compact == spaced == reverse
    assert list(compact[0]) != list(reverse[0])


# The server


def test_both_keys_are_checked(simulator: Simulator) -> None:
    for path in (LIST_PATH, BALANCE_PATH):
        for wrong in ({"X-API-ID": "no"}, {"X-API-KEY": "no"}, {"X-API-ID": ""}):
            assert get(simulator, path, **wrong).status_code == 401
        for missing in KEYS:
            keys = {name: value for name, value in KEYS.items() if name != missing}
            reply = requests.get(simulator.url + path, headers=keys, timeout=5)
            assert (reply.status_code, list(reply.json())) == (401, ["detail"])
        assert get(simulator, path).status_code == 200


def test_the_list_is_the_account_at_the_instant_of_the_request(simulator: Simulator, clock: ManualClock) -> None:
    reply = get(simulator)
    assert reply.json() == listed(simulator.account, clock.at)
    assert parsedate_to_datetime(reply.headers["Date"]).timestamp() == clock.at
    [request] = simulator.listings()
    assert (request.at, request.path, request.headers["x-api-id"]) == (clock.at, LIST_PATH, "simulated-id")


def test_one_task_the_balance_and_unknown_paths(simulator: Simulator, clock: ManualClock) -> None:
    task = listed(simulator.account, clock.at)[7]
    assert get(simulator, f"{LIST_PATH}{task['id']}/").json() == task
    assert get(simulator, f"{LIST_PATH}00000000/").status_code == 404
    spent = sum(simulator.account.truth(clock.at).credits.values())
    assert get(simulator, BALANCE_PATH).json() == {"remaining_credits": 10_000 - spent}
    for path in ("/", "/metrics", "/-/faults", "/-/faults/", "/sse//", LIST_PATH + "a/b/"):
        assert get(simulator, path).status_code == 404
    bare = get(simulator, LIST_PATH.rstrip("/") + "?ids=1")
    assert (bare.status_code, bare.headers["Location"]) == (301, LIST_PATH + "?ids=1")


def test_the_account_can_be_exchanged_while_it_is_served(simulator: Simulator, clock: ManualClock) -> None:
    clock.at += 3600
    get(simulator)
    simulator.account = Account(2, START, SHORT)
    assert get(simulator).json() == listed(simulator.account, clock.at)


def test_pages_hold_the_whole_list(simulator: Simulator, clock: ManualClock) -> None:
    simulator.listing = Listing(page_size=100)
    tasks: list[dict[str, Any]] = []
    url, pages = simulator.url + LIST_PATH, 0
    while url:
        page = requests.get(url, headers=KEYS, timeout=5).json()
        assert list(page) == ["count", "next", "previous", "results"]
        tasks, url, pages = tasks + page["results"], page["next"], pages + 1
    assert tasks == listed(simulator.account, clock.at)
    assert (page["count"], pages) == (len(tasks), -(-len(tasks) // 100))
    assert page["previous"] == f"{simulator.url}{LIST_PATH}?page={pages - 1}"
    assert get(simulator, LIST_PATH + "?page=99").status_code == 404
    assert get(simulator, LIST_PATH + "?page=x").status_code == 404


def test_pages_may_overlap(simulator: Simulator) -> None:
    simulator.listing = Listing(newest=20, page_size=7, overlap=2)
    pages = [get(simulator, f"{LIST_PATH}?page={number}").json()["results"] for number in (1, 2, 3, 4)]
    assert [page[0] for page in pages[1:]] == [page[-2] for page in pages[:-1]]
    assert [len(page) for page in pages] == [7, 7, 7, 5]
    assert get(simulator, LIST_PATH + "?page=5").status_code == 404
    assert len({task["id"] for page in pages for task in page}) == 20


def test_bodies_come_compressed_or_in_chunks_when_that_is_switched_on(simulator: Simulator) -> None:
    plain = get(simulator)
    assert "Content-Length" in plain.headers
    assert "Content-Encoding" not in plain.headers
    simulator.chunked = True
    chunked = get(simulator)
    assert chunked.headers["Transfer-Encoding"] == "chunked"
    simulator.gzip = True
    compressed = get(simulator)
    assert compressed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in get(simulator, **{"Accept-Encoding": "identity"}).headers
    assert plain.content == chunked.content == compressed.content


def test_connections_are_kept_alive(simulator: Simulator) -> None:
    connection = http.client.HTTPConnection(simulator.host, simulator.port, timeout=5)
    connection.connect()
    connection.auto_open = 0  # a connection that was closed stays closed
    for _ in range(3):
        connection.request("GET", LIST_PATH, headers=KEYS)
        assert json.loads(connection.getresponse().read())
    connection.close()


# What goes wrong


class Tape:
    """A wire without a peer: it records what is sent, and does not wait."""

    def __init__(self) -> None:
        self.sent, self.waited, self.hung, self.was_reset = bytearray(), 0.0, False, False

    def send(self, data: bytes) -> None:
        self.sent += data

    def wait(self, seconds: float) -> None:
        self.waited += seconds

    def hang(self) -> None:
        self.hung = True

    def close(self) -> None:
        """Nothing follows."""

    def reset(self) -> None:
        self.was_reset = True


@dataclass
class Reply:
    """What a fault sends, without its framing."""

    response: Response
    tape: Tape
    head: str
    body: bytes

    @property
    def status(self) -> int:
        return self.response.status

    def header(self, name: str) -> str:
        return self.response.headers.get(name, "")

    @property
    def odd(self) -> dict[str, Any]:
        first: dict[str, Any] = json.loads(self.body)[0]
        return first


def played(simulator: Simulator, name: str) -> Reply:
    """Apply a fault to a good reply, and deliver it."""
    good = simulator.answer(Request(simulator.clock.now(), LIST_PATH, {**LOWER_KEYS, "host": "127.0.0.1:80"}))
    response, tape = FAULTS[name](good), Tape()
    head = f"HTTP/1.1 {response.status}\r\nContent-Length: {sum(map(len, response.pieces))}\r\n\r\n".encode()
    response.deliver(tape, head, response.pieces)
    sent, _, body = bytes(tape.sent).partition(b"\r\n\r\n")
    return Reply(response, tape, sent.decode(), body)


def refuses(parse: Callable[[bytes], object], body: bytes) -> bool:
    try:
        parse(body)
    except (ValueError, OSError, EOFError):
        return True
    return False


def status(code: int) -> Callable[[Reply], bool]:
    return lambda reply: reply.status == code


def body(expected: bytes) -> Callable[[Reply], bool]:
    return lambda reply: reply.status == 200 and reply.body == expected


def cut(reply: Reply) -> bool:
    return 0 < len(reply.body) < sum(map(len, reply.response.pieces))


CHECKS: dict[str, Callable[[Reply], object]] = {
    "unauthorized": status(401),
    "forbidden": status(403),
    "rate_limited": lambda reply: status(429)(reply) and not reply.header("Retry-After"),
    "rate_limited_seconds": lambda reply: status(429)(reply) and reply.header("Retry-After") == "30",
    "rate_limited_date": lambda reply: (
        parsedate_to_datetime(reply.header("Retry-After")).timestamp() == reply.response.at + 30
    ),
    "server_error": status(500),
    "bad_gateway": status(502),
    "unavailable": status(503),
    "gateway_timeout": status(504),
    "html": lambda reply: status(200)(reply) and reply.header("Content-Type") == "text/html",
    "empty": body(b""),
    "null": body(b"null"),
    "object": lambda reply: list(json.loads(reply.body)) == ["detail"],
    "truncated": cut,
    "truncated_chunk": lambda reply: reply.response.chunked and cut(reply),
    "unclosed": lambda reply: status(200)(reply) and not refuses(json.loads, reply.body + b"]"),
    "trailing_bytes": lambda reply: status(200)(reply) and reply.body.endswith(b']\n{"id":"late"}'),
    "trailing_space": lambda reply: reply.body.endswith(b"] \r\n\t" + b" \r\n\t" * 999) and json.loads(reply.body),
    "wrong_content_encoding": lambda reply: reply.header("Content-Encoding") == "gzip" and json.loads(reply.body),
    "gzip_bomb": lambda reply: len(gzip.decompress(_members(reply.body[:50_000]))) > 500 * 50_000,
    "gzip_without_trailer": lambda reply: status(200)(reply) and refuses(gzip.decompress, reply.body),
    "byte_order_mark": lambda reply: reply.body.startswith(b"\xef\xbb\xbf[{") and json.loads(reply.body[3:]),
    "early_hints": lambda reply: (
        reply.body.count(b"HTTP/1.1 103 Early Hints\r\n") == 3 and b"HTTP/1.1 200" in reply.body
    ),
    "repeated_length": lambda reply: re.search(r"Content-Length: (\d+), \1\r?$", reply.head) and json.loads(reply.body),
    "white_space": lambda reply: len(reply.body) > 32 << 20 and json.loads(reply.body),
    "giant_task": lambda reply: len(reply.odd["response_text"]) > 16 << 20,
    "nested_brackets": lambda reply: b"[" * 100_000 + b"]" * 100_000 in reply.body,
    "invalid_utf8": lambda reply: refuses(bytes.decode, reply.body),
    "lone_surrogates": lambda reply: reply.odd["response_text"] == "\ud83d and \ude80",
    "nan": lambda reply: reply.odd["credits_used"] != reply.odd["credits_used"],
    "infinite": lambda reply: b'"credits_used":1e999' in reply.body and reply.odd["credits_used"] == float("inf"),
    "negative_credits": lambda reply: reply.odd["credits_used"] == -3,
    "duplicate_keys": lambda reply: reply.body.partition(b"updated_at")[0].count(b'"status"') == 2,
    "unknown_status": lambda reply: reply.odd["status"] == "in_queue",
    "year_0": lambda reply: reply.odd["created_at"].startswith("0000-"),
    "year_9999": lambda reply: reply.odd["created_at"].startswith("9999-"),
    "not_a_task": lambda reply: json.loads(reply.body)[:3] == [17, None, []],
    "dripping_body": lambda reply: reply.tape.waited == pytest.approx(0.02 * len(reply.body)),
    "dripping_headers": lambda reply: reply.tape.waited == pytest.approx(0.02 * (len(reply.head) + 4)),
    "silence": lambda reply: reply.tape.hung and not reply.tape.sent,
    "reset": lambda reply: reply.tape.was_reset and cut(reply),
    "delayed": lambda reply: reply.tape.waited == 1 and json.loads(reply.body),
    "redirect_same_origin": lambda reply: reply.header("Location") == LIST_PATH + "?redirected",
    "redirect_utf_8": lambda reply: reply.header("Location") == LIST_PATH + "?é中Å",
    "redirect_other_origin": lambda reply: reply.header("Location") == f"http://localhost:80{LIST_PATH}",
    "redirect_loop": lambda reply: reply.status == 302 and reply.header("Location") == LIST_PATH,
}
FIELDS = {name.removeprefix("without_") for name in FAULTS if name.startswith("without_")}
FAMILIES: dict[str, Callable[[Reply, str], object]] = {
    "wrong": lambda reply, name: (
        type(reply.odd[name]) is not type(json.loads(odd_task(START))[name]) or name == "updated_at"
    ),
    "null": lambda reply, name: reply.odd[name] is None,
    "without": lambda reply, name: set(reply.odd) == FIELDS - {name},
}


def _members(data: bytes) -> bytes:
    """Cut a sequence of equal gzip members after the last complete one."""
    return data[: data.rindex(b"\x1f\x8b\x08")]


def test_every_fault_does_what_it_is_called(simulator: Simulator) -> None:
    simulator.listing = Listing(newest=20)
    strangers = []
    for name in FAULTS:
        family, _, part = name.partition("_")
        reply = played(simulator, name)
        if not (CHECKS[name](reply) if name in CHECKS else FAMILIES[family](reply, part)):
            strangers.append(name)
    assert strangers == []


def test_a_connection_can_be_silent_reset_and_cut(simulator: Simulator) -> None:
    for name in ("silence", "reset", "truncated_chunk"):
        simulator.faults.next(name)
        with pytest.raises(requests.RequestException):
            requests.get(simulator.url + LIST_PATH, headers=KEYS, timeout=0.5)
        assert get(simulator).status_code == 200


def test_faults_are_applied_in_order_for_their_path_and_then_the_lasting_one(simulator: Simulator) -> None:
    simulator.faults.next("unavailable", "forbidden", times=2)
    simulator.faults.next("server_error", path=BALANCE_PATH)
    simulator.faults.always("bad_gateway")
    assert get(simulator, BALANCE_PATH).status_code == 500
    assert [get(simulator).status_code for _ in range(6)] == [503, 403, 503, 403, 502, 502]
    assert get(simulator, BALANCE_PATH).status_code == 200
    simulator.faults.clear()
    assert get(simulator).status_code == 200


def test_a_fault_can_be_a_custom_function(simulator: Simulator) -> None:
    simulator.listing = Listing(newest=0)
    simulator.faults.next(inserted(model_name=b'"mine"'), delayed(0.3), dripping(0.1))
    [task] = get(simulator).json()
    assert (task["id"], task["model_name"]) == (ODD_ID, "mine")
    for slow in (0.3, 0.2):
        assert get(simulator).elapsed.total_seconds() + 0.2 > slow
    simulator.faults.always("redirect_loop")
    with pytest.raises(requests.TooManyRedirects):
        requests.get(simulator.url + LIST_PATH, headers=KEYS, timeout=5)


def test_the_other_origin_of_a_redirect_sees_what_follows_it(simulator: Simulator) -> None:
    simulator.faults.next("redirect_other_origin")
    requests.get(simulator.url + LIST_PATH, headers=KEYS, timeout=5)
    assert [request.headers["host"].partition(":")[0] for request in simulator.listings()] == ["127.0.0.1", "localhost"]
    assert "x-api-key" in simulator.listings()[1].headers


def test_it_stops_at_once_however_stuck_its_handlers_are(clock: ManualClock) -> None:
    with Simulator(Account(1, START, SHORT), Clock(real=clock)) as simulator:
        connections = [socket.create_connection((simulator.host, simulator.port)) for _ in range(4)]
        simulator.faults.next("silence", "dripping_body", delayed(60), "dripping_headers")
        for connection in connections:
            keys = "".join(f"{name}: {value}\r\n" for name, value in KEYS.items())
            connection.sendall(f"GET {LIST_PATH} HTTP/1.1\r\nHost: x\r\n{keys}\r\n".encode())
        while len(simulator.requests) < len(connections):
            time.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    for connection in connections:
        connection.close()


# Why all this is needed


def naive_failures(simulator: Simulator) -> int:
    """Count as many exporters do: the failed tasks in the list, exposed as a counter."""
    return sum(task["status"] == "failed" for task in get(simulator).json())


def test_a_naive_exporter_gives_wrong_numbers(simulator: Simulator, clock: ManualClock) -> None:
    outage = Incident(START + 300, START + 600, failure_ratio=0.9)
    simulator.account = Account(1, START, replace(SHORT, incidents=[outage], rhythm=0))
    simulator.listing = Listing(newest=200)
    samples = []
    for clock.at in range(int(START) + 600, int(START) + 1800, 15):
        samples.append(naive_failures(simulator))
    steps = list(itertools.pairwise(samples))
    assert any(late < early for early, late in steps), "a counter that goes down"
    increase = sum(late - early if late >= early else late for early, late in steps)
    first, last = simulator.listings()[0].at, simulator.listings()[-1].at
    truth = simulator.account.truth(last) - simulator.account.truth(first)
    assert 0 < sum(truth.failed.values()) < 40
    assert increase > 10 * sum(truth.failed.values())


def test_it_imports_nothing_of_the_exporter() -> None:
    for module in Path(creatify_exporter.simulator.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("creatify_exporter"):
                assert (node.module or "").startswith("creatify_exporter.simulator")
            if isinstance(node, ast.Import):
                assert not [alias for alias in node.names if alias.name.startswith("creatify_exporter")]
