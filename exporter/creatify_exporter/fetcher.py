"""One endpoint of one workspace: when it is fetched, by whom the fetch is shared, and how that went."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, NamedTuple

import msgspec
import structlog

from creatify_exporter.errors import Cause
from creatify_exporter.lanes import Lanes
from creatify_exporter.snapshot import Snapshot

_GRACE: Final = 1.0  # seconds that a fetch may need beyond its deadline to notice it
_FIRST_PAUSE: Final = 30.0  # seconds; doubled by each 429 that does not say how long to wait
_LONGEST_PAUSE: Final = 15 * 60.0
_LONGEST_LATE: Final = 5 * 60.0  # seconds for which Prometheus, too, takes a sample for current

_log = structlog.get_logger()


class Outcome(msgspec.Struct, frozen=True):
    """How a fetch ended. `cause` and `reason` tell why it failed, None where it did not.

    A list that is complete, but could not be counted, has both a snapshot and a cause. `duration` is in seconds,
    `received` in decoded bytes; both are None where nothing was fetched.
    """

    snapshot: Snapshot | None = None
    invalid: dict[str, int] = {}
    balance: float | None = None
    cause: Cause | None = None
    reason: str | None = None
    duration: float | None = None
    received: int | None = None
    retry_after: float | None = None


class Turn(NamedTuple):
    """A scrape's part in a fetch: the fetch's end, and a list that came too late for the scrapes before.

    The late list is for a scrape that cannot wait for the fetch; it is None where there is none, or none that is
    recent enough.
    """

    future: "Future[Outcome]"
    late: Outcome | None = None


class Fetcher:
    """Shares fetches between scrapes.

    `fetch` runs in a thread of its own, when the lanes have a place for it, and raises nothing. Nobody waits for that
    thread, since nothing can end one that hangs in a name lookup: it is left behind, one at most.
    """

    def __init__(  # noqa: PLR0913 - all that a fetch needs
        self,
        names: tuple[str, str],
        fetch: Callable[[], Outcome],
        lanes: Lanes,
        *,
        min_interval: float,
        timeout: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fetches = 0
        self.failures: Counter[Cause] = Counter()
        self.last: Outcome | None = None
        self._names, self._fetch, self._lanes, self._monotonic = names, fetch, lanes, monotonic
        self._min_interval, self._timeout = min_interval, timeout
        self._lock = threading.Lock()
        self._running: _Fetch | None = None
        self._left_behind: _Fetch | None = None
        self._late: tuple[float, Outcome] | None = None
        self._slow = self._closed = False
        self._started_at = float("-inf")
        self._paused_until = float("-inf")
        self._pause = _FIRST_PAUSE

    def refresh(self) -> "Turn":
        """Start a fetch, or join the one that runs, or return what there is if it is fresh enough. Does not block."""
        with self._lock:
            now = self._monotonic()
            if self._running:
                if now < self._running.overdue_at:
                    return self._running.turn
                self._give_up(self._running)
            if now < self._paused_until and self.last:
                return _at_hand(Outcome(cause=self.last.cause, reason=self.last.reason))
            if self.last and now - self._started_at < self._min_interval:
                self._late = None
                return _at_hand(self.last)
            if self._running and not self._leave_behind(self._running):
                return _at_hand(self.last or Outcome(cause="timeout", reason="the fetches hang"))
            return self._start(now)

    def served(self, outcome: Outcome) -> None:
        """Tell that a scrape has been answered with an outcome, so that no later one is given it as news."""
        with self._lock:
            if self._late and self._late[1] is outcome:
                self._late = None

    def carry_on(self, before: "Fetcher", *, same_account: bool) -> None:
        """Count on from the fetcher of an earlier configuration; a pause holds for the keys that it was given to."""
        with before._lock:  # noqa: SLF001 - of the same class
            self.fetches, self.failures = before.fetches, before.failures.copy()
            if same_account:
                self._paused_until, self._pause = before._paused_until, before._pause  # noqa: SLF001 - as above
                self.last, self._started_at = before.last, before._started_at  # noqa: SLF001 - as above
                self._slow = before._slow  # noqa: SLF001 - as above

    def close(self) -> None:
        """Let a fetch that still waits for its place end without asking the API; one under way goes on."""
        self._closed = True

    def _start(self, now: float) -> "Turn":
        late, self._late = self._late, None
        turn = Turn(Future(), late[1] if late and now - late[0] < _LONGEST_LATE else None)
        fetch = self._running = _Fetch(turn)
        self._started_at = now
        try:
            self._lanes.run("/".join(self._names), lambda: self._run(fetch), slow=self._slow)
        except RuntimeError as error:  # the system has no more threads just now
            self._running = None
            self._conclude(failure := Outcome(cause="connection", reason=str(error)))
            return _at_hand(failure)
        return turn

    def _run(self, fetch: "_Fetch") -> None:
        if self._closed:
            fetch.turn.future.set_result(Outcome(cause="timeout", reason="a reload came before the fetch began"))
            return
        with self._lock:  # it may have waited
            began = self._started_at = self._monotonic()
            fetch.overdue_at = began + self._timeout + _GRACE
        outcome = self._fetch()
        with self._lock:
            self._slow = self._monotonic() - began >= self._lanes.moment
            if self._left_behind is fetch:
                self._left_behind = None
            elif self._running is fetch:
                self._running = None
                if not fetch.given_up:
                    self._conclude(outcome)
        fetch.turn.future.set_result(outcome)

    def _give_up(self, fetch: "_Fetch") -> None:
        """Count a fetch that is overdue as failed, whatever becomes of it."""
        if not fetch.given_up:
            fetch.given_up = self._slow = True
            self._conclude(Outcome(cause="timeout", reason=f"no end after {self._timeout:g} s", duration=self._timeout))

    def _leave_behind(self, fetch: "_Fetch") -> bool:
        """Make room for another fetch beside one that hangs; return whether there is any."""
        if self._left_behind:
            return False
        self._left_behind, self._running = fetch, None
        return True

    def _conclude(self, outcome: Outcome) -> None:
        """Count a fetch that has ended, and say so where it changes the state."""
        self.fetches += 1
        before = self.last.cause if self.last else None
        self.last = outcome
        workspace, api = self._names
        log = _log.bind(workspace=workspace, api=api)
        if outcome.cause:
            self.failures[outcome.cause] += 1
            if outcome.cause != before:
                log.warning("fetch failed", cause=outcome.cause, reason=outcome.reason)
        else:
            self._late = (self._monotonic(), outcome)
            self._pause = _FIRST_PAUSE
            if before:
                log.info("fetch succeeded again", cause_before=before)
        if outcome.cause == "rate_limited":
            pause = outcome.retry_after
            if pause is None:
                pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            self._paused_until = self._monotonic() + min(pause, _LONGEST_PAUSE)


class _Fetch:
    """A fetch under way, or waiting for its place, which is not overdue."""

    def __init__(self, turn: "Turn") -> None:
        self.turn = turn
        self.overdue_at = float("inf")
        self.given_up = False


def _at_hand(outcome: Outcome) -> "Turn":
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return Turn(future)
