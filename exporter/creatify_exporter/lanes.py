"""How many fetches run at the same time, and which of them wait.

A fetch takes a place among the quick ones. Who is not back after a moment waits for the network and not for this
machine: it runs on, but its place goes to the next. A fetcher whose last fetch was as slow as that takes a place
among the slow ones the next time, and keeps it to the end: they wait for each other only.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_MOMENT: Final = 1.0  # seconds


class Lanes:
    """Runs work in threads of its own, `places` at a time among the quick and as many among the slow.

    Work that waits has no thread. `moment` is how many seconds quick work may take, `longest` is when slow work is
    given up by everybody, and its place too: nothing can end a thread that hangs in a name lookup.
    """

    def __init__(self, places: int, longest: float, *, moment: float = _MOMENT) -> None:
        self.moment = moment
        self._places, self._longest = places, longest
        self._lock = threading.Lock()
        self._quick, self._slow = _Lane(), _Lane()
        self._alarm: threading.Timer | None = None

    def run(self, name: str, work: Callable[[], object], *, slow: bool = False) -> None:
        """Run `work` in a thread of that name, when there is a place. Does not block.

        Raises RuntimeError where there is a place, but the system has no more threads just now.
        """
        job, lane = _Job(name, work), self._slow if slow else self._quick
        with self._lock:
            lane.waiting.append(job)
            try:
                self._advance()
            except RuntimeError:
                if job in lane.waiting:
                    lane.waiting.remove(job)
                    raise

    def resize(self, places: int, longest: float) -> None:
        """Have other bounds from now on; what runs goes on."""
        with self._lock:
            self._places, self._longest = places, longest
            self._try_to_advance()

    def _advance(self) -> None:
        """Start what may start; where something has to wait, look again in a moment."""
        now = time.monotonic()
        self._slow.running |= self._quick.leave(now - self.moment)
        self._slow.leave(now - self._longest)
        for lane in (self._quick, self._slow):
            while lane.waiting and len(lane.running) < self._places:
                self._start(lane, now)
        if (self._quick.waiting or self._slow.waiting) and not self._alarm:
            alarm = threading.Timer(self.moment, self._ring)
            alarm.daemon = True
            alarm.start()
            self._alarm = alarm

    def _try_to_advance(self) -> None:
        with suppress(RuntimeError):  # no more threads just now: whoever ends or comes next tries again
            self._advance()

    def _start(self, lane: "_Lane", now: float) -> None:
        job = lane.waiting[0]
        job.began = now
        threading.Thread(target=self._work, args=(job,), name=job.name, daemon=True).start()
        lane.running.add(lane.waiting.popleft())

    def _work(self, job: "_Job") -> None:
        try:
            job.work()
        finally:
            with self._lock:
                self._quick.running.discard(job)
                self._slow.running.discard(job)
                self._try_to_advance()

    def _ring(self) -> None:
        with self._lock:
            self._alarm = None
            self._try_to_advance()


class _Lane:
    """Work that waits, in the order in which it came, and work that has a place."""

    def __init__(self) -> None:
        self.waiting: deque[_Job] = deque()
        self.running: set[_Job] = set()

    def leave(self, began_by: float) -> "set[_Job]":
        """Take their places from those that began by then; return them."""
        gone = {job for job in self.running if job.began <= began_by}
        self.running -= gone
        return gone


class _Job:
    def __init__(self, name: str, work: Callable[[], object]) -> None:
        self.name, self.work = name, work
        self.began = 0.0


class Queue:
    """Runs work in lanes one at a time, in its order; `delay` returns after how many seconds the next may begin."""

    def __init__(self, lanes: Lanes, delay: Callable[[], float]) -> None:
        self.moment = lanes.moment
        self._lanes, self._delay = lanes, delay
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, Callable[[], object], bool]] = deque()
        self._busy = False

    def run(self, name: str, work: Callable[[], object], *, slow: bool = False) -> None:
        """Run `work` after all that came before. Does not block."""
        with self._lock:
            self._waiting.append((name, work, slow))
            self._advance()

    def _advance(self) -> None:
        if self._busy or not self._waiting:
            return
        self._busy = True
        delay = self._delay()
        if delay > 0:
            self._retry_after(delay)
            return
        name, work, slow = self._waiting.popleft()
        try:
            self._lanes.run(name, lambda: self._work(work), slow=slow)
        except RuntimeError:
            # The system has no more threads just now.
            self._waiting.appendleft((name, work, slow))
            self._retry_after(self._lanes.moment)

    def _retry_after(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._release)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:
            # Whatever comes next tries again.
            self._busy = False

    def _work(self, work: Callable[[], object]) -> None:
        try:
            work()
        finally:
            self._release()

    def _release(self) -> None:
        with self._lock:
            self._busy = False
            self._advance()
