"""`rate_limit` of the web configuration: a token bucket, and durations as Go writes them."""

import re
import time
from collections.abc import Callable
from typing import Final, Self

# https://pkg.go.dev/time#ParseDuration
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST: Final = 366 * 24 * 3600.0
_PART: Final = re.compile(rf"(\d+\.?\d*|\.\d+)({'|'.join(_UNITS)})", re.ASCII)


class Interval(float):
    """A time in seconds, written as a duration of Go: `1s`, `1.5h`, `1m30s`, `250ms`, `0`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `text`; ValueError says what is wrong."""
        parts = _PART.findall(text)
        if text.strip() != "0" and (not parts or _PART.sub("", text)):
            raise ValueError("is not a duration; write numbers with units, like 1s, 250ms or 1m30s")
        interval = sum(float(number) * _UNITS[unit] for number, unit in parts)
        if interval > _LONGEST:
            raise ValueError("is longer than a year; write a shorter duration")
        return cls(interval)


class RateLimiter:
    """Allows `burst` requests at once, and one more every `interval` seconds; without an interval, any number.

    With a burst of 0 it allows none, as that of the toolkit does. `clock` returns seconds.
    """

    def __init__(self, interval: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval = interval
        self._burst, self._clock = burst, clock
        self._tokens, self._filled_at = float(burst), clock()

    def allows(self) -> bool:
        """Return whether one more request is within the limit, and count it if it is."""
        if not self.interval:
            return True
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) / self.interval)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
