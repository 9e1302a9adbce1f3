"""Bounds how many fetches run at the same time, and decides which of them wait.

A fetch takes one of the quick slots. If it takes longer than a moment, it is network-bound: it keeps running but frees
its slot. The next fetch of the same fetcher then takes one of the slow slots and keeps it to the end. Slow fetches
therefore wait only for each other. From a scrape to the request, a fetch passes through:

    Fetcher.refresh ──────────> Lanes.run ──> thread ──> Fetcher._run ──> Target._fetch_list or _fetch_balance
          └──────> Queue.run ──────┘
            (lists that can wait)
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Final

# Seconds.
_MOMENT: Final = 1.0


class Lanes:
    """Runs each piece of work in its own thread; there are `slots` for quick work, and as many for slow work.

    Waiting work has no thread. Quick work counts as slow after `moment` seconds. All work frees its slot after
    `longest` seconds: it is about to count as hanging, and nothing can end a thread that hangs in a name lookup.
    """

    def __init__(self, slots: int, longest: float, *, moment: float = _MOMENT) -> None:
        self.moment, self.longest = moment, longest
        self._slots = slots
        self._lock = threading.Lock()
        # In order of arrival.
        self._quick, self._slow = deque["_Job"](), deque["_Job"]()
        self._running: set[_Job] = set()
        self._timer: threading.Timer | None = None

    def run(self, name: str, work: Callable[[], object], *, slow: bool = False) -> None:
        """Run `work` in a thread called `name` as soon as a slot is free. Does not block.

        Raises RuntimeError and forgets `work` if the system cannot start another thread right now.
        """
        job, waiting = _Job(name, work, slow=slow), self._slow if slow else self._quick
        with self._lock:
            waiting.append(job)
            try:
                self._advance()
            except RuntimeError:
                if job in waiting:
                    waiting.remove(job)
                    raise

    def resize(self, slots: int, longest: float) -> None:
        """Change the bounds; running work continues."""
        with self._lock:
            self._slots, self.longest = slots, longest
            self._try_to_advance()

    def advance(self) -> None:
        """Start waiting work while slots are free. Does not block."""
        with self._lock:
            self._try_to_advance()

    def _advance(self) -> None:
        """Start waiting work while slots are free; if some is left, look again after a moment."""
        now = time.monotonic()
        self._running = {job for job in self._running if job.began > now - self.longest}
        slow = sum(job.slow or job.began <= now - self.moment for job in self._running)
        for waiting, taken in ((self._quick, len(self._running) - slow), (self._slow, slow)):
            for _ in range(min(len(waiting), self._slots - taken)):
                self._start(waiting, now)
        if (self._quick or self._slow) and not self._timer:
            timer = threading.Timer(self.moment, self._look_again)
            timer.daemon = True
            timer.start()
            self._timer = timer

    def _try_to_advance(self) -> None:
        # If no thread can be started right now, the next work that arrives or ends tries again.
        with suppress(RuntimeError):
            self._advance()

    def _start(self, waiting: "deque[_Job]", now: float) -> None:
        job = waiting[0]
        job.began = now
        threading.Thread(target=self._work, args=(job,), name=job.name, daemon=True).start()
        self._running.add(waiting.popleft())

    def _work(self, job: "_Job") -> None:
        try:
            job.work()
        finally:
            with self._lock:
                self._running.discard(job)
                self._try_to_advance()

    def _look_again(self) -> None:
        with self._lock:
            self._timer = None
            self._try_to_advance()


class _Job:
    def __init__(self, name: str, work: Callable[[], object], *, slow: bool) -> None:
        self.name, self.work, self.slow = name, work, slow
        self.began = 0.0


class Queue:
    """Runs work in `lanes` in order, one piece at a time; `request_turn` returns the seconds until the next may begin.

    Work that hangs keeps its turn a moment longer than `lanes.longest`.
    """

    def __init__(self, lanes: Lanes, request_turn: Callable[[], float]) -> None:
        self.moment = lanes.moment
        self._lanes, self._request_turn = lanes, request_turn
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        # The current or last job, and the time until which no other begins.
        self._current: _Job | None = None
        self._busy_until = -inf

    def run(self, name: str, work: Callable[[], object], *, slow: bool = False) -> None:
        """Run `work` after all earlier work. Does not block."""
        with self._lock:
            self._waiting.append(_Job(name, work, slow=slow))
            self._advance()

    def advance(self) -> None:
        """Start the next work if it is its turn. Does not block."""
        self._lanes.advance()
        with self._lock:
            self._advance()

    def _advance(self) -> None:
        if not self._waiting or time.monotonic() < self._busy_until:
            return
        delay = self._request_turn()
        if delay > 0:
            self._advance_in(delay)
            return
        job = self._current = self._waiting.popleft()
        # While the job waits for a slot.
        self._busy_until = inf
        try:
            self._lanes.run(job.name, lambda: self._work(job), slow=job.slow)
        except RuntimeError:
            # The system cannot start another thread right now.
            self._waiting.appendleft(job)
            self._advance_in(self.moment)

    def _advance_in(self, seconds: float) -> None:
        self._busy_until = time.monotonic() + seconds
        timer = threading.Timer(seconds, self.advance)
        timer.daemon = True
        # If the system cannot start another thread right now, the next scrape calls `advance` instead.
        with suppress(RuntimeError):
            timer.start()

    def _work(self, job: _Job) -> None:
        with self._lock:
            self._busy_until = time.monotonic() + self._lanes.longest + self.moment
        try:
            job.work()
        finally:
            with self._lock:
                # Not if the job hung and lost its turn to another.
                if self._current is job:
                    self._busy_until = -inf
                    self._advance()
