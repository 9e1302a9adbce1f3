"""One endpoint of one workspace: when it is fetched, which scrapes share the fetch, and how the fetch ended.

Overlapping scrapes share one fetch (*singleflight*). A fetch that outlives its scrape continues; a later scrape that
cannot wait either gets the *late* list of that fetch. Of a list that can wait, a scrape gets the last version while the
next one is fetched (*stale-while-revalidate*).
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from math import inf
from typing import Final

import msgspec
import structlog

from creatify_exporter.errors import Cause
from creatify_exporter.lanes import Lanes, Queue
from creatify_exporter.snapshot import Snapshot
from creatify_exporter.trace import Step

GRACE: Final = 1.0
"""Seconds that a fetch may take to notice that its deadline has passed."""
# Seconds; doubled by each 429 without a Retry-After.
_FIRST_PAUSE: Final = 30.0
_MAX_PAUSE: Final = 15 * 60.0
MAX_STALENESS: Final = 5 * 60.0
"""Seconds for which Prometheus, too, treats a sample as current."""

_log = structlog.get_logger()


class Outcome(msgspec.Struct, frozen=True):
    """How a fetch ended. `cause` and `reason` say why it failed; both are None if it succeeded.

    A complete list that could not be counted has both a snapshot and a cause. `duration` is in seconds, `received` in
    decoded bytes; both are None if nothing was fetched.
    """

    snapshot: Snapshot | None = None
    invalid: dict[str, int] = {}
    balance: float | None = None
    cause: Cause | None = None
    reason: str | None = None
    duration: float | None = None
    received: int | None = None
    retry_after: float | None = None
    steps: tuple[Step, ...] = ()


class Ticket:
    """The claim of one or more scrapes to one fetch.

    `late` is the outcome of the previous fetch if it is recent but came too late for every scrape; a scrape that cannot
    wait for this fetch gets it. A fetch that still runs at `hangs_at`, on the monotonic clock, hangs; that time is
    infinite while the fetch waits for a slot.
    """

    def __init__(self, late: Outcome | None = None) -> None:
        self.future: Future[Outcome] = Future()
        self.late = late
        self.hangs_at = inf

    def outcome(self) -> Outcome:
        """Return how the fetch ended; if it still runs, the late list, or a timeout if there is none."""
        if self.future.done():
            return self.future.result()
        return self.late or Outcome(cause="timeout", reason="the fetch still runs; the scrape could not wait for it")


class Fetcher:
    """Shares fetches between scrapes.

    `fetch` runs in its own thread, once `runner` has a slot for it, and must not raise. Nothing waits for that thread,
    because nothing can end a thread that hangs in a name lookup. While one fetch hangs, another one may start; while
    two hang, none may.
    """

    def __init__(  # noqa: PLR0913 - everything that a fetch needs
        self,
        names: tuple[str, str],
        fetch: Callable[[], Outcome],
        runner: Lanes | Queue,
        *,
        min_interval: float,
        timeout: float,
        serve_stale_for: float = 0.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names, self._fetch, self._runner, self._monotonic = names, fetch, runner, monotonic
        self._min_interval, self._timeout = min_interval, timeout
        self._serve_stale_for = serve_stale_for
        self._lock = threading.Lock()
        self.ended: Counter[Cause | None] = Counter()
        """How many fetches have ended, by the cause of their failure, None for success."""
        self._state = _State()
        self._running: Ticket | None = None
        self._hanging: set[Ticket] = set()
        self._closed = False

    def refresh(self) -> Ticket:
        """Start a fetch, join the running one, or return the last outcome if no fetch may start. Does not block.

        A list that arrived less than `serve_stale_for` seconds ago is returned at once, while the fetch runs.
        """
        with self._lock:
            now = self._monotonic()
            if self._running and now >= self._running.hangs_at:
                self._time_out(self._running)
            if self._running:
                # The fetch may still wait for a slot, and the timer that would start it may have failed for want of a
                # thread. So each scrape looks for a free slot again.
                self._runner.advance()
            elif served_again := self._instead_of_fetch(now):
                # Here too, not only in `mark_served`: before this scrape is answered, another one may start a fetch
                # and would get this outcome as its late list.
                self._state.unserved = False
                return _resolved(served_again)
            ticket = self._running or self._start(now)
            # A fetch that could not be started is the last one now, and has failed.
            last = self.last
            if last and not last.cause and now - self._state.ended_at < self._serve_stale_for:
                return _resolved(last)
            return ticket

    def _instead_of_fetch(self, now: float) -> Outcome | None:
        """Return the outcome to serve because no fetch may start now; None if one may."""
        last, state = self.last, self._state
        if not last:
            return None
        if now < state.paused_until:
            # After a reload, the last fetch of the old fetcher shares this state: it may have been told to pause after
            # this fetcher got a list.
            if last.cause in (None, "ledger") and now - state.ended_at < MAX_STALENESS:
                return last
            # Without the list and the steps of the last fetch: the pause may outlast them by minutes.
            return Outcome(cause=last.cause or "rate_limited", reason=last.reason or "the API asked for a pause")
        is_early = now - state.started_at < self._min_interval
        return last if is_early or len(self._hanging) > 1 else None

    @property
    def last(self) -> Outcome | None:
        """How the last fetch ended."""
        return self._state.last

    @property
    def age(self) -> float:
        """How many seconds ago the last fetch ended; infinite before there is one."""
        return self._monotonic() - self._state.ended_at

    def mark_served(self, outcome: Outcome) -> None:
        """Note that a scrape was answered with an outcome, so that no later scrape gets it as a late list."""
        with self._lock:
            if outcome is self.last:
                self._state.unserved = False

    def inherit(self, before: "Fetcher", *, same_account: bool) -> None:
        """Share the counts of an earlier configuration's fetcher, whose last fetch may still run.

        What earlier fetches have shown (`_State`) is shared only if the account is the same. A running fetch stays with
        `before` and is not joined; it records its outcome in the shared state.
        """
        self._lock, self.ended = before._lock, before.ended  # noqa: SLF001 - of the same class
        if same_account:
            self._state = before._state  # noqa: SLF001 - as above

    def close(self) -> None:
        """Let a fetch that still waits for a slot end without a request; a running fetch continues."""
        self._closed = True

    def _start(self, now: float) -> Ticket:
        state = self._state
        is_recent = now - state.ended_at < MAX_STALENESS
        ticket = self._running = Ticket(state.last if state.unserved and is_recent else None)
        state.unserved, state.started_at = False, now
        try:
            self._runner.run("/".join(self._names), lambda: self._run(ticket), slow=state.slow)
        except RuntimeError as error:
            # The system cannot start another thread right now.
            self._running = None
            self._record(failure := Outcome(cause="connection", reason=str(error)))
            return _resolved(failure)
        return ticket

    def _run(self, ticket: Ticket) -> None:
        if self._closed:
            ticket.future.set_result(Outcome(cause="timeout", reason="a reload cancelled the fetch before it began"))
            return
        with self._lock:
            # Set again, because the fetch may have waited for a slot.
            began = self._state.started_at = self._monotonic()
            ticket.hangs_at = began + self._timeout + GRACE
        outcome = self._fetch()
        with self._lock:
            self._state.slow = self._monotonic() - began >= self._runner.moment
            self._hanging.discard(ticket)
            if self._running is ticket:
                self._running = None
                self._record(outcome)
        ticket.future.set_result(outcome)

    def _time_out(self, ticket: Ticket) -> None:
        """Count a fetch that hangs as failed, however it ends later."""
        self._hanging.add(ticket)
        self._running = None
        self._state.slow = True
        reason = f"still running after {self._timeout:g} s"
        self._record(Outcome(cause="timeout", reason=reason, duration=self._timeout))

    def _record(self, outcome: Outcome) -> None:
        """Count a fetch that has ended."""
        # The time before the outcome, because readers of `last` and `age` do not hold the lock.
        self._state.ended_at = self._monotonic()
        before, self._state.last = self.last, outcome
        self.ended[outcome.cause] += 1
        self._state.unserved = not outcome.cause
        if not outcome.cause:
            self._state.pause = _FIRST_PAUSE
        if outcome.cause == "rate_limited":
            self._pause_for(outcome.retry_after)
        self._log_change(before.cause if before else None, outcome)

    def _pause_for(self, retry_after: float | None) -> None:
        pause = retry_after
        if pause is None:
            pause, self._state.pause = self._state.pause, min(2 * self._state.pause, _MAX_PAUSE)
        self._state.paused_until = self._monotonic() + min(pause, _MAX_PAUSE)

    def _log_change(self, cause_before: Cause | None, outcome: Outcome) -> None:
        if outcome.cause == cause_before:
            return
        workspace, api = self._names
        log = _log.bind(workspace=workspace, api=api)
        if outcome.cause:
            log.warning("fetch failed", cause=outcome.cause, reason=outcome.reason)
        else:
            log.info("fetch succeeded again", cause_before=cause_before)


class _State:
    """The results of the fetches of one endpoint of one account. Times are on the monotonic clock."""

    def __init__(self) -> None:
        self.last: Outcome | None = None
        # Whether the last fetch succeeded, and no scrape has been answered with its outcome.
        self.unserved = False
        # Whether the last fetch took longer than a moment: see `lanes`.
        self.slow = False
        self.started_at = self.ended_at = self.paused_until = -inf
        # Seconds of the next pause without a Retry-After.
        self.pause = _FIRST_PAUSE


def _resolved(outcome: Outcome) -> Ticket:
    ticket = Ticket()
    ticket.future.set_result(outcome)
    return ticket
