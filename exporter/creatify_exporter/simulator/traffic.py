"""What happens to an account, as data: its models, its rate of tasks, its incidents."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """One model: its share of the tasks, its typical run time in seconds, its failures, its typical cost in credits."""

    name: str
    weight: float
    seconds: float
    failure_ratio: float
    credits: float
    since: float = 0.0
    """No task before this instant (epoch seconds)."""
    first_failures: int = 0
    """So many of the first tasks that the account draws for this model fail."""


MODELS = (
    Model("gemini-2.5-flash", weight=50, seconds=4, failure_ratio=0.01, credits=0.5),
    Model("gemini-2.5-pro", weight=20, seconds=25, failure_ratio=0.03, credits=2.5),
    Model("gemini-3-flash-preview", weight=15, seconds=6, failure_ratio=0.02, credits=1),
    Model("gemini-3.1-pro-preview", weight=8, seconds=45, failure_ratio=0.06, credits=4),
    Model("gemini-3.1-flash-lite-preview", weight=7, seconds=2, failure_ratio=0.01, credits=0.25),
)


@dataclass(frozen=True)
class Incident:
    """Something unusual from `start` until before `end` (epoch seconds), for one model or (None) for all of them."""

    start: float
    end: float
    model: str | None = None
    failure_ratio: float | None = None
    """Tasks created meanwhile fail at this ratio …"""
    reason: str = "internal_error"
    """… for a reason of this kind (a key of `texts.REASONS`)."""
    stuck: bool = False
    """No task starts or finishes meanwhile; what was due comes within half a minute after `end`."""
    burn: float = 1.0
    """Tasks created meanwhile cost so many times the credits."""
    arrivals: float = 1.0
    """So many times the usual tasks arrive (of all models, by the minute of the clock); 0 for silence."""
    every: float = 0.0
    """It recurs every so many seconds, before `start` as well as after it; 0: it happens once."""

    def occurrence(self, instant: float) -> tuple[float, float] | None:
        """Return start and end of the occurrence that an instant lies in, None if it lies in none."""
        shift = (instant - self.start) // self.every * self.every if self.every else 0.0
        start, end = self.start + shift, self.end + shift
        return (start, end) if start <= instant < end else None

    def covers(self, instant: float, model: str) -> bool:
        """Tell whether it touches this model at this instant."""
        return self.model in (None, model) and self.occurrence(instant) is not None


@dataclass(frozen=True)
class Traffic:
    """How tasks arrive: a Poisson process whose rate follows the day and has bursts, each of a minute."""

    rate: float = 1 / 4
    """Tasks a second, averaged over a day without bursts."""
    rhythm: float = 0.6
    """How much the rate swings around its average: 0 not at all, 1 down to nothing at 03:00 UTC."""
    burst_ratio: float = 1 / 120
    """The share of minutes in which eight times the tasks arrive."""
    models: Sequence[Model] = ()
    """At least one of them from the start; empty: those of the account's product."""
    incidents: Sequence[Incident] = ()
    """If several of them let a task fail, the first one counts."""
    text_bytes: int = 3000
    """About so much JSON text has a task that is done."""
