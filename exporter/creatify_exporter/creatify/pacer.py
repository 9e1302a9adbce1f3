"""How soon the next request of a workspace may be sent: Creatify publishes no limit, and has many lists."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_MINUTE: Final = 60.0
# Seconds from one request to the next that can wait.
_SPACING: Final = 1.0
# Requests a minute that are kept for those that cannot wait: a list every 14 s, the balance, a retry.
_RESERVED: Final = 6


class Pacer:
    """Counts the requests of one workspace, and tells those that can wait ("patient") for how long.

    A patient request is sent a second after any other. In no minute are there more than `max_per_minute` requests, as
    long as those that cannot wait leave room: if they leave none, one patient request a minute is sent all the same.
    `monotonic` returns seconds.
    """

    def __init__(self, max_per_minute: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.max_per_minute, self._monotonic = max_per_minute, monotonic
        self._lock = threading.Lock()
        self._patient, self._prompt = (deque[float](maxlen=max_per_minute) for _ in range(2))
        self._waiting_since: float | None = None

    def note(self, *, patient: bool) -> None:
        """Note that a request is sent now; a patient one has waited for `delay`."""
        with self._lock:
            (self._patient if patient else self._prompt).append(self._monotonic())
            if patient:
                self._waiting_since = None

    def delay(self) -> float:
        """Return for how many seconds a patient request has to wait."""
        with self._lock:
            now = self._monotonic()
            for sent in (self._patient, self._prompt):
                while sent and sent[0] <= now - _MINUTE:
                    sent.popleft()
            return max(0.0, self._spaced_from(now) - now, self._room_from(now) - now)

    def _spaced_from(self, now: float) -> float:
        if self._waiting_since is None:
            self._waiting_since = now
        patient, prompt = (sent[-1] + _SPACING if sent else now for sent in (self._patient, self._prompt))
        # Requests that come more often than once a second must not hold a patient one up for ever.
        return max(patient, min(prompt, self._waiting_since + 2 * _SPACING))

    def _room_from(self, now: float) -> float:
        room = max(1, self.max_per_minute - max(_RESERVED, len(self._prompt)))
        return self._patient[-room] + _MINUTE if len(self._patient) >= room else now
