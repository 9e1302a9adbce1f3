"""Which work runs and which waits. Work ends when the test says so."""

import queue
import threading
from collections.abc import Iterator

import pytest

from creatify_exporter.lanes import Lanes

LONG, SHORT = 1000.0, 0.01  # seconds: too long for any test, and short enough to wait for


class Crew:
    """Work that reports its start; the events in `ends` let it end."""

    def __init__(self) -> None:
        self.begun: queue.Queue[str] = queue.Queue()
        self.ends: dict[str, threading.Event] = {}

    def run(self, lanes: Lanes, name: str, *, slow: bool = False) -> None:
        self.ends[name] = threading.Event()
        lanes.run(name, lambda: self._work(name), slow=slow)

    def _work(self, name: str) -> None:
        self.begun.put(name)
        self.ends[name].wait(30)

    def began(self, number: int) -> set[str]:
        return {self.begun.get(timeout=10) for _ in range(number)}


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    for end in crew.ends.values():
        end.set()


def test_no_more_work_runs_than_there_are_slots_and_waiting_work_has_no_thread(crew: Crew) -> None:
    lanes = Lanes(2, LONG, moment=LONG)
    for name in "abcd":
        crew.run(lanes, name)
    assert crew.began(2) == {"a", "b"}
    assert not {"c", "d"} & {thread.name for thread in threading.enumerate()}
    crew.ends["b"].set()
    assert crew.began(1) == {"c"}
    assert crew.begun.empty()


def test_any_amount_of_hanging_work_delays_no_other_work(crew: Crew) -> None:
    lanes = Lanes(2, LONG, moment=SHORT)
    for number in range(20):
        crew.run(lanes, f"hanging {number}")
    crew.run(lanes, "healthy")
    assert "healthy" in crew.began(21)


def test_slow_work_waits_only_for_slow_work_and_delays_no_quick_work(crew: Crew) -> None:
    lanes = Lanes(2, LONG, moment=LONG)
    for name in ("slow 1", "slow 2", "slow 3"):
        crew.run(lanes, name, slow=True)
    crew.run(lanes, "healthy")
    assert crew.began(3) == {"slow 1", "slow 2", "healthy"}
    assert crew.begun.empty()
    crew.ends["slow 2"].set()
    assert crew.began(1) == {"slow 3"}


def test_a_thread_that_never_ends_does_not_keep_its_slot_forever(crew: Crew) -> None:
    lanes = Lanes(1, SHORT, moment=SHORT)
    crew.run(lanes, "stuck in a name lookup", slow=True)
    crew.run(lanes, "next", slow=True)
    assert crew.began(2) == {"stuck in a name lookup", "next"}


def test_more_slots_are_taken_at_once(crew: Crew) -> None:
    lanes = Lanes(1, LONG, moment=LONG)
    for name in "abc":
        crew.run(lanes, name)
    assert crew.began(1) == {"a"}
    lanes.resize(3, LONG)
    assert crew.began(2) == {"b", "c"}
