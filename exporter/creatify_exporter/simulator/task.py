"""One task's life, and what has happened to many of them."""

import operator
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

State = Literal["pending", "preview", "running", "done", "failed"]
"""What a list means by its word for a status; `preview` waits for a person."""

Bills = tuple[tuple[float, float], ...]
"""(instant, credits from then on), in order; 0 before the first."""


class Step(NamedTuple):
    """From an instant (epoch seconds) on a task has this `status`, which means this state."""

    at: float
    status: str
    state: State


class Task(NamedTuple):
    """The whole life of one task, drawn when it is created. Instants are epoch seconds, whole milliseconds."""

    number: int
    id: str
    model: str
    created: float
    steps: tuple[Step, ...]
    """In order, the first at its creation."""
    finished: float
    """When it was first done or failed; infinite for a preview that nobody has rendered."""
    kind: str
    """Of the failure reason, a key of `Product.reasons` or `rejected`; empty unless it fails in the end."""
    reason: str
    bills: Bills
    """`credits_used`, as the list tells it. Multiples of a quarter, so that sums are exact."""
    charges: Bills
    """What the balance has lost."""
    settled: float
    """After this instant nothing about it changes."""
    style: int
    """32 random bits that decide on what does not count: texts, notations."""

    @property
    def failed(self) -> bool:
        """Whether it fails in the end."""
        return bool(self.kind)

    def step(self, at: float) -> Step:
        """Return its latest step at an instant not before its creation."""
        return next(step for step in reversed(self.steps) if step.at <= at)

    def status(self, at: float) -> str:
        """Return `status` at an instant not before its creation."""
        return self.step(at).status

    def credits(self, at: float) -> float:
        """Return `credits_used` at an instant."""
        return _latest(self.bills, at)

    def charged(self, at: float) -> float:
        """Return what the balance has lost for it at an instant."""
        return _latest(self.charges, at)


created = operator.attrgetter("created")


def _latest(bills: Bills, at: float) -> float:
    return next((value for instant, value in reversed(bills) if instant <= at), 0.0)


def _tally() -> dict[str, float]:
    return defaultdict(float)


@dataclass
class Truth:
    """What has happened up to an instant, per model. Two of them subtract to what happened in between.

    Credits used are all increases and credits refunded all decreases of `credits_used`, seen or not. A rise and fall
    between two looks at the list goes unseen; `credits` = used - refunded is right all the same.
    """

    submitted: dict[str, float] = field(default_factory=_tally)
    finished: dict[str, float] = field(default_factory=_tally)
    failed: dict[str, float] = field(default_factory=_tally)
    credits_used: dict[str, float] = field(default_factory=_tally)
    credits_refunded: dict[str, float] = field(default_factory=_tally)
    failed_credits: dict[str, float] = field(default_factory=_tally)
    """Net credits of the tasks that have failed, what they had cost before they failed included."""
    kinds: dict[str, float] = field(default_factory=_tally)
    """Failures by the kind of their reason, over all models."""
    previews: dict[str, float] = field(default_factory=_tally)
    """Tasks that wait with a preview at the instant itself."""

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
        """Count what has happened to a task up to an instant."""
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
