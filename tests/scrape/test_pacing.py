"""How requests are spread. The clock stands still unless a test moves it."""

import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clocks import ManualClock
from creatify_exporter.creatify.client import Pacer
from creatify_exporter.lanes import Lanes, Queue

MINUTE = 60.0


class Traffic:
    """Some minutes of patient requests, each sent as soon as it may be, and of the requests of scrapes."""

    def __init__(self, max_per_minute: int, scrapes: list[float], end: float = 5 * MINUTE) -> None:
        self.clock = ManualClock()
        self.pacer = Pacer(max_per_minute, self.clock)
        self.patient: list[float] = []
        self.prompt: list[float] = []
        for at in sorted(scrapes):
            self._until(at)
            self.pacer.note(patient=False)
            self.prompt.append(at)
        self._until(end)

    def _until(self, end: float) -> None:
        while self.clock.at + (delay := self.pacer.request_turn()) < end:
            self.clock.at += delay
            if self.pacer.request_turn() <= 1e-9:
                self.pacer.note(patient=True)
                self.patient.append(self.clock.at)
        self.clock.at = end

    def most(self, seconds: float) -> int:
        """Return the highest number of requests in any period of `seconds`."""
        sent = sorted(self.patient + self.prompt)
        return max(sum(at <= each < at + seconds for each in sent) for at in sent)


@pytest.mark.parametrize("max_per_minute", [7, 30, 120])
def test_any_minute_is_bounded_beside_a_scrape_every_15_seconds(max_per_minute: int) -> None:
    traffic = Traffic(max_per_minute, [15.0 * number for number in range(20)])
    assert traffic.most(MINUTE - 1e-6) <= max_per_minute
    assert traffic.most(1 - 1e-6) <= 2
    assert len(traffic.patient) >= 4 * min(max_per_minute - 6, 50)


@given(
    st.integers(1, 60),
    st.lists(st.floats(0, 5 * MINUTE, allow_nan=False).map(lambda at: round(at, 2)), max_size=60),
)
def test_requests_that_can_wait_come_at_most_once_a_second_and_fill_what_scrapes_leave(
    max_per_minute: int, scrapes: list[float]
) -> None:
    traffic = Traffic(max_per_minute, scrapes)
    assert all(
        later - earlier >= 1 - 1e-6 for earlier, later in zip(traffic.patient, traffic.patient[1:], strict=False)
    )
    for at in traffic.patient:
        patient, prompt = (
            sum(at - MINUTE + 1e-6 < each <= at for each in sent) for sent in (traffic.patient, traffic.prompt)
        )
        assert patient == 1 or patient + max(6, prompt) <= max_per_minute


@pytest.mark.parametrize("every", [0.1, 0.5, 2.0])
def test_scrapes_that_leave_no_room_do_not_delay_patient_requests_forever(every: float) -> None:
    traffic = Traffic(30, [every * number for number in range(int(5 * MINUTE / every))])
    assert len(traffic.patient) >= 4


class Work:
    """Work that records its order and checks that no two run at once; some of it fails."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._alone = threading.Lock()
        self.finished = threading.Semaphore(0)

    def __call__(self, name: str, *, fails: bool = False) -> Callable[[], None]:
        def work() -> None:
            assert self._alone.acquire(blocking=False)
            self.done.append(name)
            self._alone.release()
            self.finished.release()
            if fails:
                raise RuntimeError(name)

        return work


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_queue_runs_its_work_in_order_one_at_a_time_despite_failures() -> None:
    queue, work = Queue(Lanes(50, 30.0), lambda: 0.0), Work()
    names = [f"list {number}" for number in range(20)]
    for name in names:
        queue.run(name, work(name, fails=name.endswith("3")))
    assert all(work.finished.acquire(timeout=10) for _ in names)
    assert work.done == names
    # An exception of a thread is reported at its end, and must not be attributed to the next test.
    for thread in threading.enumerate():
        if thread.name in names:
            thread.join(10)


def test_work_of_a_queue_begins_when_its_delay_is_over() -> None:
    delays = [0.01, 0.01, 0.0]
    queue, work = Queue(Lanes(50, 30.0), lambda: delays.pop(0)), Work()
    queue.run("list", work("list"))
    assert work.done == []
    assert work.finished.acquire(timeout=10)
    assert delays == []


def test_work_that_hangs_keeps_its_turn_no_longer_than_a_fetch_may_take() -> None:
    queue, work, hung = Queue(Lanes(50, 0.05, moment=0.05), lambda: 0.0), Work(), threading.Event()
    queue.run("hangs in a name lookup", lambda: hung.wait(20))
    queue.run("list", work("list"))
    while not work.finished.acquire(timeout=0.02):
        queue.advance()  # like each scrape that waits for the list
    hung.set()
    assert work.done == ["list"]


def test_a_queue_continues_if_a_timer_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    delays = [0.01, 0.0]
    queue, work = Queue(Lanes(50, 30.0), lambda: delays.pop(0)), Work()
    with monkeypatch.context() as context:
        context.setattr(threading.Timer, "start", refuse)
        queue.run("list", work("list"))
    while not work.finished.acquire(timeout=0.02):
        queue.advance()
    assert work.done == ["list"]


class Exhausted(Lanes):
    """Lanes of a system that cannot start a thread for the first work."""

    refused = False

    def run(self, name: str, work: Callable[[], object], *, slow: bool = False) -> None:
        if not self.refused:
            self.refused = True
            raise RuntimeError("can't start new thread")
        super().run(name, work, slow=slow)


def test_a_queue_tries_again_if_the_system_has_no_thread_left() -> None:
    work = Work()
    Queue(Exhausted(50, 30.0, moment=0.01), lambda: 0.0).run("list", work("list"))
    assert work.finished.acquire(timeout=10)
