"""How many fetches run at the same time, and which of them wait.

A fetch takes a place among the quick ones. If it takes longer than a moment it is network-bound: it keeps running but
frees its place. A fetcher whose last fetch was that slow takes a place among the slow ones the next time, and
keeps it to the end: slow fetches wait for each other only.
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
    """Runs work in threads of its own, `places` at a time among the quick and as many among the slow.

    Work that waits has no thread. Quick work frees its place after `moment` seconds, slow work after `longest`, when
    its fetcher has abandoned it too: nothing can end a thread that hangs in a name lookup.
    """

    def __init__(self, places: int, longest: float, *, moment: float = _MOMENT) -> None:
        self.moment, self.longest = moment, longest
        self._places = places
        self._lock = threading.Lock()
        # In the order in which they came.
        self._quick, self._slow = deque["_Job"](), deque["_Job"]()
        self._running: set[_Job] = set()
        self._timer: threading.Timer | None = None

    def run(self, name: str, work: Callable[[], object], *, slow: bool = False) -> None:
        """Run `work` in a thread of that name, when there is a place. Does not block.

        Raises RuntimeError, and forgets `work`, if the system has no more threads just now.
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

    def resize(self, places: int, longest: float) -> None:
        """Change the bounds; work that runs goes on."""
        with self._lock:
            self._places, self.longest = places, longest
            self._try_to_advance()

    def advance(self) -> None:
        """Start the work that there is a place for. Does not block."""
        with self._lock:
            self._try_to_advance()

    def _advance(self) -> None:
        """Start the work that there is a place for; if some has to wait, look again in a moment."""
        now = time.monotonic()
        self._running = {job for job in self._running if job.began > now - self.longest}
        slow = sum(job.slow or job.began <= now - self.moment for job in self._running)
        for waiting, taken in ((self._quick, len(self._running) - slow), (self._slow, slow)):
            for _ in range(min(len(waiting), self._places - taken)):
                self._start(waiting, now)
        if (self._quick or self._slow) and not self._timer:
            timer = threading.Timer(self.moment, self._look_again)
            timer.daemon = True
            timer.start()
            self._timer = timer

    def _try_to_advance(self) -> None:
        # If there are no more threads just now, the next work that ends or comes tries again.
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
    """Runs work in lanes one at a time, in its order; `delay` returns after how many seconds the next may begin.

    Work that hangs keeps its turn a moment longer than `lanes.longest`.
    """

    def __init__(self, lanes: Lanes, delay: Callable[[], float]) -> None:
        self.moment = lanes.moment
        self._lanes, self._delay = lanes, delay
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        # The job whose turn it is or was last, and until when no other begins.
        self._current: _Job | None = None
        self._busy_until = -inf

    def run(self, name: str, work: Callable[[], object], *, slow: bool = False) -> None:
        """Run `work` after all that came before. Does not block."""
        with self._lock:
            self._waiting.append(_Job(name, work, slow=slow))
            self._advance()

    def advance(self) -> None:
        """Start the next work if its turn has come. Does not block."""
        self._lanes.advance()
        with self._lock:
            self._advance()

    def _advance(self) -> None:
        if not self._waiting or time.monotonic() < self._busy_until:
            return
        delay = self._delay()
        if delay > 0:
            self._advance_in(delay)
            return
        job = self._current = self._waiting.popleft()
        # As long as it waits for a place.
        self._busy_until = inf
        try:
            self._lanes.run(job.name, lambda: self._work(job), slow=job.slow)
        except RuntimeError:
            # The system has no more threads just now.
            self._waiting.appendleft(job)
            self._advance_in(self.moment)

    def _advance_in(self, seconds: float) -> None:
        self._busy_until = time.monotonic() + seconds
        timer = threading.Timer(seconds, self.advance)
        timer.daemon = True
        # If the system has no more threads just now, the `advance` of a scrape comes instead.
        with suppress(RuntimeError):
            timer.start()

    def _work(self, job: _Job) -> None:
        with self._lock:
            self._busy_until = time.monotonic() + self._lanes.longest + self.moment
        try:
            job.work()
        finally:
            with self._lock:
                # Unless it has hung, and the turn is another's.
                if self._current is job:
                    self._busy_until = -inf
                    self._advance()
