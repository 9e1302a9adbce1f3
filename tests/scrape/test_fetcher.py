"""When a fetcher fetches and when it does not. The clock stands still unless a test moves it."""

import itertools
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clocks import ManualClock
from creatify_exporter.errors import CAUSES
from creatify_exporter.fetcher import MAX_STALENESS, Fetcher, Outcome
from creatify_exporter.lanes import Lanes

MIN_INTERVAL, TIMEOUT, GRACE = 14.0, 30.0, 1.0
LIMIT = 15 * 60.0


@dataclass
class Call:
    """A running fetch in a thread of the fetcher; the test ends it."""

    thread: threading.Thread = field(default_factory=threading.current_thread)
    outcome: "Future[Outcome]" = field(default_factory=Future)

    def end(self, outcome: Outcome) -> None:
        """End the fetch, and wait until the fetcher knows."""
        self.outcome.set_result(outcome)
        self.thread.join(10)


class Fetches:
    """The function that a fetcher calls in its threads; `begun` returns the calls in order."""

    def __init__(self) -> None:
        self.calls: queue.Queue[Call] = queue.Queue()
        self.seen: set[threading.Thread] = set()

    def __call__(self) -> Outcome:
        call = Call()
        self.calls.put(call)
        return call.outcome.result(60)

    def begun(self) -> Call:
        call = self.calls.get(timeout=10)
        self.seen.add(call.thread)
        return call


class Bench:
    """A fetcher with everything around it under control; its threads have a unique name."""

    _number = itertools.count()

    def __init__(
        self,
        min_interval: float = MIN_INTERVAL,
        timeout: float = TIMEOUT,
        lanes: Lanes | None = None,
        serve_stale_for: float = 0.0,
    ) -> None:
        self.clock, self.fetches = ManualClock(1000.0), Fetches()
        names = ("bench", str(next(self._number)))
        self.name = "/".join(names)
        self.fetcher = Fetcher(
            names,
            self.fetches,
            lanes or Lanes(3, timeout),  # two that hang, and one more
            min_interval=min_interval,
            timeout=timeout,
            serve_stale_for=serve_stale_for,
            monotonic=self.clock,
        )

    def scrape(self) -> "Future[Outcome]":
        """Return the future that a scrape with enough time waits for."""
        return self.fetcher.refresh().future

    def hurry(self) -> Outcome | None:
        """Return the outcome for a scrape that cannot wait at all."""
        ticket = self.fetcher.refresh()
        return ticket.future.result() if ticket.future.done() else ticket.late

    def fetched(self, outcome: Outcome, *, after: float = 0.0) -> Outcome:
        """Scrape, let the fetch end, and answer the scrape with it."""
        future = self.scrape()
        call = self.fetches.begun()
        self.clock.at += after
        call.end(outcome)
        self.fetcher.mark_served(future.result(10))
        return future.result()

    @property
    def idle(self) -> bool:
        """Whether the test has seen every fetch that has begun."""
        return {each for each in threading.enumerate() if each.name == self.name} <= self.fetches.seen

    def end(self) -> None:
        while not self.idle:
            self.fetches.begun().end(Outcome())


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.end()


def good(balance: float = 1.0) -> Outcome:
    return Outcome(balance=balance, duration=0.1)


def limited(retry_after: float | None = None) -> Outcome:
    return Outcome(cause="rate_limited", reason="429", retry_after=retry_after, duration=0.1)


def test_nothing_is_fetched_before_the_first_scrape(bench: Bench) -> None:
    assert bench.fetcher.last is None
    assert (bench.fetcher.ended.total(), bench.idle) == (0, True)


def test_scrapes_at_one_time_share_one_fetch(bench: Bench) -> None:
    futures = [bench.scrape() for _ in range(50)]
    bench.clock.at += MIN_INTERVAL + 1
    futures.append(bench.scrape())
    outcome = good()
    bench.fetches.begun().end(outcome)
    assert all(future.result(10) is outcome for future in futures)
    assert (bench.fetcher.ended.total(), bench.idle) == (1, True)


@pytest.mark.parametrize("outcome", [good(), Outcome(cause="auth", reason="401", duration=0.2)])
def test_a_scrape_within_the_interval_gets_the_last_fetch_good_or_bad(bench: Bench, outcome: Outcome) -> None:
    bench.fetched(outcome)
    bench.clock.at += MIN_INTERVAL - 0.01
    assert bench.scrape().result(0) is outcome
    assert bench.fetcher.ended.total() == 1
    bench.clock.at += 0.01
    assert bench.fetched(good(2.0)).balance == 2.0
    assert bench.fetcher.ended.total() == 2


def test_the_interval_counts_from_the_start_of_a_fetch(bench: Bench) -> None:
    bench.fetched(good(), after=MIN_INTERVAL)
    assert bench.fetched(good(2.0)).balance == 2.0


def test_failures_are_counted_once_each_under_their_cause(bench: Bench) -> None:
    for cause in CAUSES:
        bench.fetched(Outcome(cause=cause, reason="as told", retry_after=0.0, duration=0.1))
        bench.scrape()  # which costs nothing more
        bench.clock.at += MIN_INTERVAL
    assert bench.fetcher.ended == dict.fromkeys(CAUSES, 1)


def test_a_list_that_can_wait_is_served_from_the_last_fetch_unless_that_failed_or_is_old() -> None:
    bench = Bench(min_interval=60.0, serve_stale_for=120.0)
    first, second = good(1.0), good(2.0)
    bench.fetched(first)
    bench.clock.at += 60
    assert bench.scrape().result(0) is first
    bench.fetches.begun().end(second)
    assert bench.scrape().result(0) is second
    bench.clock.at += 120
    assert bench.fetched(Outcome(cause="auth", reason="403", duration=0.1)).cause == "auth"
    bench.clock.at += 60
    assert bench.fetched(good(3.0)).balance == 3.0


# --- 429 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [(60.0, 60.0), (0.0, MIN_INTERVAL), (5.0, MIN_INTERVAL), (LIMIT, LIMIT), (LIMIT + 1, LIMIT), (float("inf"), LIMIT)],
)
def test_a_pause_lasts_as_long_as_the_api_says_but_no_longer_than_a_quarter_of_an_hour(
    bench: Bench, retry_after: float, seconds: float
) -> None:
    bench.fetched(limited(retry_after))
    bench.clock.at += seconds - 0.01
    told = bench.scrape().result(0)
    assert (told.cause, told.snapshot) == ("rate_limited", None)
    bench.clock.at += 0.01
    bench.fetched(good())
    assert bench.fetcher.ended == {"rate_limited": 1, None: 1}


def test_in_a_pause_there_is_no_request_no_fetch_and_no_failure(bench: Bench) -> None:
    bench.fetched(limited(600.0))
    for _ in range(30):
        bench.clock.at += 15
        assert bench.scrape().result(0).cause == "rate_limited"
    assert bench.idle
    assert bench.fetcher.ended == {"rate_limited": 1}


def test_pauses_without_retry_after_double_up_to_a_quarter_of_an_hour(bench: Bench) -> None:
    pauses = []
    for _ in range(8):
        bench.fetched(limited())
        ended = bench.clock.at
        while bench.scrape().done():
            bench.clock.at += 10
        pauses.append(bench.clock.at - ended)
        bench.fetches.begun().end(limited(0.0))
        bench.clock.at += MIN_INTERVAL
    assert pauses == [30, 60, 120, 240, 480, LIMIT, LIMIT, LIMIT]


def test_after_a_success_pauses_are_short_again(bench: Bench) -> None:
    for _ in range(4):
        bench.fetched(limited())
        bench.clock.at += LIMIT
    bench.fetched(good())
    bench.clock.at += MIN_INTERVAL
    bench.fetched(limited())
    bench.clock.at += 29
    assert bench.scrape().done()
    bench.clock.at += 1
    assert not bench.scrape().done()


# --- Late and stuck fetches ----------------------------------------------------------------------------------------


def test_a_late_list_is_served_to_a_scrape_that_cannot_wait_for_the_new_fetch(bench: Bench) -> None:
    waiting = bench.scrape()  # its scrape goes away without it
    late = good(1.0)
    bench.fetches.begun().end(late)
    assert waiting.result(10) is late
    bench.clock.at += MIN_INTERVAL
    assert bench.hurry() is late
    assert bench.hurry() is late  # the other one of a pair
    patient = bench.scrape()
    assert not patient.done()
    fresh = good(2.0)
    bench.fetches.begun().end(fresh)
    assert patient.result(10) is fresh
    assert bench.fetcher.ended == {None: 2}


def test_after_an_abandoned_scrape_later_ones_do_not_lag_one_fetch_behind(bench: Bench) -> None:
    bench.scrape()
    bench.fetches.begun().end(good(1.0))
    bench.clock.at += MIN_INTERVAL
    assert bench.fetched(fresh := good(2.0)) is fresh
    bench.clock.at += MIN_INTERVAL
    assert bench.hurry() is None


def test_a_list_that_a_scrape_got_is_not_served_to_the_next_as_late(bench: Bench) -> None:
    bench.fetched(good())
    bench.clock.at += MIN_INTERVAL
    assert bench.hurry() is None


def test_a_list_served_within_the_interval_is_not_served_as_late_too(bench: Bench) -> None:
    bench.scrape()
    bench.fetches.begun().end(good())
    assert bench.scrape().done()  # its scrape still waits for another list
    bench.clock.at += MIN_INTERVAL
    assert bench.hurry() is None


def test_a_late_list_is_forgotten_before_prometheus_would_call_it_stale(bench: Bench) -> None:
    bench.scrape()
    bench.fetches.begun().end(good())
    bench.clock.at += 5 * 60
    assert bench.hurry() is None


def test_a_fetch_that_fails_late_is_counted_but_not_served(bench: Bench) -> None:
    bench.scrape()
    bench.fetches.begun().end(Outcome(cause="connection", reason="reset", duration=20.0))
    assert bench.fetcher.ended == {"connection": 1}
    bench.clock.at += MIN_INTERVAL
    assert bench.hurry() is None


def test_a_fetch_that_hangs_is_counted_once_while_another_runs(bench: Bench) -> None:
    stuck = bench.scrape()
    hanging = bench.fetches.begun()
    bench.clock.at += TIMEOUT + GRACE - 0.01
    assert bench.scrape() is stuck
    bench.clock.at += 0.01
    second = bench.scrape()
    assert second is not stuck
    assert bench.fetcher.ended == {"timeout": 1}
    hanging.end(good(1.0))  # its list is not served any more
    stuck.result(10)
    assert (bench.fetcher.ended.total(), bench.fetcher.last.balance if bench.fetcher.last else 0) == (1, None)
    bench.fetches.begun().end(good(2.0))
    assert second.result(10).balance == 2.0
    assert bench.fetcher.ended == {"timeout": 1, None: 1}


def test_no_third_fetch_starts_while_two_hang(bench: Bench) -> None:
    bench.scrape()
    first = bench.fetches.begun()
    bench.clock.at += TIMEOUT + GRACE
    bench.scrape()
    second = bench.fetches.begun()
    bench.clock.at += TIMEOUT + GRACE
    for _ in range(20):
        bench.clock.at += MIN_INTERVAL
        told = bench.scrape()
        assert told.result(0).cause == "timeout"
    assert bench.idle
    assert bench.fetcher.ended == {"timeout": 2}
    first.end(good())
    third = bench.scrape()
    assert not third.done()
    bench.fetches.begun().end(good(3.0))
    assert third.result(10).balance == 3.0
    second.end(good())
    assert bench.fetcher.last
    assert bench.fetcher.last.balance == 3.0


def test_a_fetch_that_waits_for_its_place_does_not_hang_and_its_time_begins_with_it() -> None:
    lanes, place = Lanes(1, 1000.0, moment=1000.0), threading.Event()
    lanes.run("somebody else", place.wait)
    bench = Bench(lanes=lanes)
    waiting = bench.scrape()
    bench.clock.at += 10 * TIMEOUT
    assert bench.scrape() is waiting
    assert bench.fetcher.ended.total() == 0
    place.set()
    running = bench.fetches.begun()
    bench.clock.at += TIMEOUT + GRACE - 0.01
    assert bench.scrape() is waiting
    running.end(good())
    assert waiting.result(10) == good()


def test_a_waiting_fetch_of_a_removed_workspace_sends_no_request() -> None:
    lanes, place = Lanes(1, 1000.0, moment=1000.0), threading.Event()
    lanes.run("somebody else", place.wait)
    bench = Bench(lanes=lanes)
    waiting = bench.scrape()
    bench.fetcher.close()
    place.set()
    assert waiting.result(10).cause == "timeout"
    assert bench.fetches.calls.empty()


def test_a_slow_fetcher_waits_in_the_slow_lane_until_it_is_quick_again() -> None:
    lanes, place = Lanes(1, 1000.0, moment=5.0), threading.Event()
    bench = Bench(min_interval=0.0, lanes=lanes)
    bench.fetched(good(), after=6.0)
    lanes.run("somebody slow", place.wait, slow=True)
    waiting = bench.scrape()
    lanes.run("somebody quick", place.set)
    bench.fetches.begun().end(good())
    assert waiting.result(10) == good()
    place.clear()
    lanes.run("somebody slow", place.wait, slow=True)
    assert bench.fetched(good()) == good()
    place.set()


def test_an_old_success_is_not_served_for_a_fetch_that_hangs_longer_than_it_may() -> None:
    bench = Bench(min_interval=120.0)  # as that of the balance
    bench.fetched(good())
    bench.clock.at += 120
    bench.scrape()
    hanging = bench.fetches.begun()
    bench.clock.at += TIMEOUT + GRACE
    assert bench.scrape().result(0).cause == "timeout"
    assert bench.fetcher.ended == {None: 1, "timeout": 1}
    hanging.end(good())
    assert bench.scrape().result(0).cause == "timeout"


# --- Any sequence of events ----------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("scrape"), st.booleans()),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 5.0, MIN_INTERVAL, TIMEOUT + GRACE, 61.0, 400.0])),
        st.tuples(st.just("good"), st.integers(0, 1)),
        st.tuples(st.just("bad"), st.integers(0, 1)),
        st.tuples(st.just("limited"), st.sampled_from([None, 0.0, 20.0, 100.0])),
    ),
    max_size=30,
)


@given(steps=steps, min_interval=st.sampled_from([0.0, MIN_INTERVAL, 120.0]))
def test_in_any_sequence_of_events_the_api_is_spared_and_each_fetch_counts_once(
    steps: list[tuple[str, float | None]], min_interval: float
) -> None:
    bench = Bench(min_interval=min_interval)
    fetcher, clock = bench.fetcher, bench.clock
    running: list[Call] = []
    started_at, paused_until, begun = float("-inf"), float("-inf"), 0
    for what, detail in steps:
        if what == "scrape":
            served = bench.scrape()
            if not bench.idle:
                running.append(bench.fetches.begun())
                begun += 1
                assert clock.at >= paused_until
                assert clock.at - started_at >= min_interval
                started_at = clock.at
            assert served.done() or running
            if served.done() and detail:
                fetcher.mark_served(served.result())
        elif what == "wait":
            clock.at += detail or 0.0
        elif running:
            call = running.pop(-1 if detail == 1 else 0)
            cause = {"good": None, "bad": "connection", "limited": "rate_limited"}[what]
            outcome = Outcome(cause=cause, retry_after=detail if what == "limited" else None)  # type: ignore[arg-type] # one of the causes
            call.end(outcome)
            if what == "limited" and fetcher.last is outcome:
                paused_until = clock.at + (30.0 if detail is None else detail)  # or longer
        assert len(running) <= 2
        assert begun - len(running) <= fetcher.ended.total() <= begun
    for call in running:
        call.end(good())


def test_a_thread_that_cannot_be_started_costs_one_fetch_and_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exhausted(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as system:
        system.setattr(threading, "Thread", Exhausted)
        for _ in range(3):
            assert bench.scrape().result(0).cause == "connection"
            bench.clock.at += MIN_INTERVAL
    assert bench.fetcher.ended == {"connection": 3}
    assert bench.fetched(good()) == good()


def test_a_fetcher_inherits_the_counts_of_an_earlier_configuration_and_the_pause_of_the_same_account() -> None:
    before, same, other = Bench(), Bench(), Bench()
    before.fetched(limited(600))
    before.clock.at += 700
    before.scrape()
    # A reload during a running fetch: the fetcher that inherits counts the end of the fetch, too.
    for bench, same_account in ((same, True), (other, False)):
        bench.clock.at = before.clock.at
        bench.fetcher.inherit(before.fetcher, same_account=same_account)
        assert bench.fetcher.ended == {"rate_limited": 1}
    before.fetches.begun().end(limited(600))
    for bench in (same, other):
        assert bench.fetcher.ended == {"rate_limited": 2}
    assert same.scrape().done()
    assert not other.scrape().done()
    other.end()


def test_a_list_is_served_during_the_pause_of_the_fetch_before_a_reload() -> None:
    before, after = Bench(), Bench()
    before.scrape()
    after.clock.at = before.clock.at
    after.fetcher.inherit(before.fetcher, same_account=True)
    after.clock.at += MIN_INTERVAL
    after.scrape()
    before.fetches.begun().end(limited(600))
    after.fetches.begun().end(outcome := good())
    after.clock.at += MIN_INTERVAL
    assert after.scrape().result(0) is outcome
    after.clock.at += MAX_STALENESS
    assert after.scrape().result(0).cause == "rate_limited"
    assert after.idle


def test_a_list_that_comes_after_a_reload_is_served_once_as_a_late_one() -> None:
    before, after = Bench(), Bench()
    before.scrape()
    after.clock.at = before.clock.at
    after.fetcher.inherit(before.fetcher, same_account=True)
    late = good()
    before.fetches.begun().end(late)
    after.clock.at += MIN_INTERVAL
    assert after.hurry() is late
    after.end()


def test_the_age_of_a_fetch_counts_from_its_end(bench: Bench) -> None:
    assert bench.fetcher.age == float("inf")
    bench.scrape()
    call = bench.fetches.begun()
    bench.clock.at += 5
    call.end(Outcome())
    bench.clock.at += 400
    assert bench.fetcher.age == 400
