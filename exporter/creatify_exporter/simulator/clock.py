"""Simulated time, which never runs ahead of real time."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Simulated now, in epoch seconds.

    Until `end` it runs at `speed` and so catches up with real time at `end`; after that it runs at speed 1. An
    accelerated run starts in the past, because tasks created in the future would break any ledger.
    """

    end: float = 0.0
    speed: float = 1.0
    real: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        if self.speed < 1:
            raise ValueError(f"speed must be at least 1, not {self.speed}")

    @classmethod
    def behind(cls, seconds: float, speed: float, real: Callable[[], float] = time.time) -> "Clock":
        """Start `seconds` in the past and catch up with real time after `seconds / (speed - 1)` real seconds."""
        if speed <= 1:
            raise ValueError(f"catching up takes a speed above 1, not {speed}")
        return cls(real() + seconds / (speed - 1), speed, real)

    @classmethod
    def accelerated(cls, lasting: float, speed: float, real: Callable[[], float] = time.time) -> "Clock":
        """Simulate `lasting * speed` seconds in the next `lasting` real seconds."""
        return cls(real() + lasting, speed, real)

    def now(self) -> float:
        """Return the simulated instant."""
        real = self.real()
        return real if real >= self.end else self.end - (self.end - real) * self.speed
