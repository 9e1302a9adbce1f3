"""The traffic of an account, as data: its models, its rate of tasks, its incidents."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """One model: its share of tasks, typical run time in seconds, share of failures, and typical cost in credits."""

    name: str
    weight: float
    seconds: float
    failure_ratio: float
    credits: float
    since: float = 0.0
    """It has no task before this instant (epoch seconds)."""
    first_failures: int = 0
    """How many of the account's first tasks of this model fail for certain."""


MODELS = (
    Model("gemini-2.5-flash", weight=50, seconds=4, failure_ratio=0.01, credits=0.5),
    Model("gemini-2.5-pro", weight=20, seconds=25, failure_ratio=0.03, credits=2.5),
    Model("gemini-3-flash-preview", weight=15, seconds=6, failure_ratio=0.02, credits=1),
    Model("gemini-3.1-pro-preview", weight=8, seconds=45, failure_ratio=0.06, credits=4),
    Model("gemini-3.1-flash-lite-preview", weight=7, seconds=2, failure_ratio=0.01, credits=0.25),
)


@dataclass(frozen=True)
class Incident:
    """Unusual traffic from `start` to before `end` (epoch seconds), of one model or (None) of all."""

    start: float
    end: float
    model: str | None = None
    failure_ratio: float | None = None
    """The share of tasks created in this time that fail …"""
    reason: str = "internal_error"
    """… for a reason of this kind (a key of `texts.REASONS`)."""
    stuck: bool = False
    """No task starts or finishes in this time; steps that were due happen within half a minute after `end`."""
    burn: float = 1.0
    """A factor on the cost of tasks created in this time."""
    arrivals: float = 1.0
    """A factor on the rate of arrivals (of all models, by the minute of the clock); 0: none arrive."""
    every: float = 0.0
    """It recurs at this interval in seconds, both before and after `start`; 0: it happens once."""

    def occurrence(self, instant: float) -> tuple[float, float] | None:
        """Return start and end of the occurrence that contains an instant, None if there is none."""
        shift = (instant - self.start) // self.every * self.every if self.every else 0.0
        start, end = self.start + shift, self.end + shift
        return (start, end) if start <= instant < end else None

    def covers(self, instant: float, model: str) -> bool:
        """Return whether it affects this model at this instant."""
        return self.model in (None, model) and self.occurrence(instant) is not None


@dataclass(frozen=True)
class Traffic:
    """How tasks arrive: a Poisson process whose rate follows the time of day, with bursts of a minute each."""

    rate: float = 1 / 4
    """Tasks per second, averaged over a day without bursts."""
    rhythm: float = 0.6
    """How much the rate varies around its average: 0: not at all; 1: down to zero at 03:00 UTC."""
    burst_ratio: float = 1 / 120
    """The share of minutes in which eight times as many tasks arrive."""
    models: Sequence[Model] = ()
    """At least one exists from the start; empty: the models of the account's product."""
    incidents: Sequence[Incident] = ()
    """If several have a failure ratio for a task, the first one counts."""
    text_bytes: int = 3000
    """Approximate bytes of JSON text in a done task."""
