"""One task's life, and totals over many tasks."""

import operator
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

State = Literal["pending", "preview", "running", "done", "failed"]
"""The meaning of a list's status; a task in `preview` waits for a person."""

Bills = tuple[tuple[float, float], ...]
"""(instant, credits from then on), in order; 0 before the first one."""


class Step(NamedTuple):
    """From this instant (epoch seconds) on, a task has this `status`, which means this state."""

    at: float
    status: str
    state: State


class Task(NamedTuple):
    """The whole life of one task, drawn at its creation. Instants are epoch seconds in whole milliseconds."""

    number: int
    id: str
    model: str
    created: float
    steps: tuple[Step, ...]
    """In order, the first at its creation."""
    finished: float
    """When it was first done or failed; infinite for a preview that nobody renders."""
    kind: str
    """The kind of failure, a key of `Product.reasons` or `rejected`; empty unless it fails in the end."""
    reason: str
    bills: Bills
    """`credits_used` as the list reports it: multiples of a quarter, so that sums are exact."""
    charges: Bills
    """The credits taken from the balance."""
    settled: float
    """The instant of its last change."""
    style: int
    """32 random bits that choose what is not counted: texts and notations."""

    @property
    def failed(self) -> bool:
        """Whether it fails in the end."""
        return bool(self.kind)

    def step(self, at: float) -> Step:
        """Return its latest step at an instant, which must not be before its creation."""
        return next(step for step in reversed(self.steps) if step.at <= at)

    def credits(self, at: float) -> float:
        """Return `credits_used` at an instant."""
        return _latest(self.bills, at)

    def charged(self, at: float) -> float:
        """Return the credits taken from the balance at an instant."""
        return _latest(self.charges, at)


created = operator.attrgetter("created")


def _latest(bills: Bills, at: float) -> float:
    return next((value for instant, value in reversed(bills) if instant <= at), 0.0)


def _tally() -> dict[str, float]:
    return defaultdict(float)


@dataclass
class Truth:
    """Totals per model up to an instant. The difference of two of them is what happened in between.

    Credits used are all increases, and credits refunded all decreases, of `credits_used`, whether or not a list shows
    them. A rise and fall between two fetches goes unseen; `credits` = used - refunded is correct all the same.
    """

    submitted: dict[str, float] = field(default_factory=_tally)
    finished: dict[str, float] = field(default_factory=_tally)
    failed: dict[str, float] = field(default_factory=_tally)
    credits_used: dict[str, float] = field(default_factory=_tally)
    credits_refunded: dict[str, float] = field(default_factory=_tally)
    failed_credits: dict[str, float] = field(default_factory=_tally)
    """Net credits of failed tasks, including those charged before the failure."""
    kinds: dict[str, float] = field(default_factory=_tally)
    """Failures by kind, over all models."""
    previews: dict[str, float] = field(default_factory=_tally)
    """Tasks waiting with a preview at this instant."""

    @property
    def credits(self) -> dict[str, float]:
        """Credits used less credits refunded, per model."""
        return {model: self.credits_used[model] - self.credits_refunded[model] for model in self.submitted}

    def __sub__(self, earlier: "Truth") -> "Truth":
        difference = Truth()
        for name, tally in vars(self).items():
            getattr(difference, name).update({key: value - getattr(earlier, name)[key] for key, value in tally.items()})
        return difference

    def add(self, task: Task, at: float) -> None:
        """Add the events of a task up to an instant."""
        self.submitted[task.model] += 1
        if task.finished <= at:
            self.finished[task.model] += 1
        elif task.step(at).state == "preview":
            self.previews[task.model] += 1
        if task.failed and task.steps[-1].at <= at:
            self.failed[task.model] += 1
            self.kinds[task.kind] += 1
            self.failed_credits[task.model] += task.credits(at)
        self._add_bills(task, at)

    def _add_bills(self, task: Task, at: float) -> None:
        before = 0.0
        for instant, value in task.bills:
            if instant <= at:
                side = self.credits_used if value > before else self.credits_refunded
                side[task.model] += abs(value - before)
                before = value
