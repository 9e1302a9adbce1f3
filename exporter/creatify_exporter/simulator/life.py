"""Draws the lives of tasks: their steps, reasons of failure, costs, and when these are reported."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from creatify_exporter.simulator import texts
from creatify_exporter.simulator.products import Product, When
from creatify_exporter.simulator.task import Bills, State, Step
from creatify_exporter.simulator.traffic import Incident, Model

PREVIEW_RATIO = 1 / 6
RENDERED_RATIO = 0.4
RENDERED_AFTER = 900.0
"""Average seconds that a preview waits until somebody renders it."""
SECOND_RATIO = 0.5
SECOND_AFTER = 600.0
"""Average seconds between an image and the video made from it."""


class Fate(NamedTuple):
    """The course of a task, and why it fails if it does."""

    steps: tuple[Step, ...]
    started: float
    """When it first runs; if it never runs, when it ends."""
    finished: float
    """When it is first done or failed; infinite for a preview that nobody renders."""
    kind: str = ""
    """Empty if it does not fail in the end."""
    reason: str = ""


class Price(NamedTuple):
    """What a task costs."""

    whole: float
    half: float
    free: bool
    """It failed, and this failure is free: credits charged before are refunded."""
    refund: tuple[float, float] | None
    """(seconds after the end, credits from then on); None: no refund."""


@dataclass
class Life:
    """One task to be drawn. The order in which the methods are called is the order of the random numbers."""

    rng: random.Random
    product: Product
    model: Model
    incidents: Sequence[Incident]
    """All of the account's."""
    created: float

    def __post_init__(self) -> None:
        self.current = [each for each in self.incidents if each.covers(self.created, self.model.name)]

    def fate(self, *, certain: bool) -> Fate:
        """Draw the course of the task; if `certain`, it fails."""
        kind, reason = self._failure(certain=certain)
        status = self.rng.choice(self.product.failures) if kind else ""
        if status == "rejected":
            kind, reason = status, self.rng.choice(texts.REJECTIONS)
        steps = self._steps(status)
        last = steps[-1]
        if last.state == "preview":
            return Fate(tuple(steps), math.inf, math.inf)
        started = next((step.at for step in steps if step.state == "running"), last.at)
        if not status and self.product.second and texts.chance(self.rng, SECOND_RATIO):
            kind, reason = self._failure()
            steps += self._second_steps(last.at, failing=bool(kind))
        return Fate(tuple(steps), started, last.at, kind, reason)

    def price(self, *, failing: bool) -> Price:
        """Draw the price; free failures, three in ten other failures and a few other tasks get a refund."""
        rng, unit = self.rng, self.product.unit
        cost = self.model.credits * rng.lognormvariate(0, 0.4) * math.prod(each.burn for each in self.current)
        half = _rounded(cost / 2, unit)
        free = failing and not texts.chance(rng, 0.4)
        refund = None
        if free or texts.chance(rng, 0.3 if failing else 0.02):
            refund = (rng.uniform(30, 600), 0.0 if free else rng.choice((0.0, half)))
        return Price(_rounded(cost, unit), half, free, refund)

    def bills(self, when: When, price: Price, fate: Fate) -> Bills:
        """Draw the instants at which the price is reported, or charged."""
        late = when in {"finished", "later"}
        if when == "never" or math.isinf(fate.finished) or (price.free and late):
            return ()
        due = self._due(when, fate)
        bills = [(due, price.whole)]
        if when == "later" and texts.chance(self.rng, 0.3):
            bills.insert(0, (fate.started + (fate.finished - fate.started) / 2, price.half))
        if price.refund:
            bills.append((max(due, fate.finished) + price.refund[0], price.refund[1]))
        return tuple([(milliseconds(instant), value) for instant, value in bills])

    def _failure(self, *, certain: bool = False) -> tuple[str, str]:
        """Draw the kind and text of the reason of a failure; both are empty if the task does not fail."""
        outage = next((each for each in self.current if each.failure_ratio is not None), None)
        ratio = self.model.failure_ratio if outage is None else outage.failure_ratio
        if not certain and not texts.chance(self.rng, ratio or 0):
            return "", ""
        return texts.reason(self.rng, self.product.reasons, outage.reason if outage else None)

    def _steps(self, failing: str) -> list[Step]:
        """Draw the steps up to the first end; `failing` is the status of the failure, empty if there is none."""
        product = self.product
        if not product.working:
            return [self._end(self.created, failing)]
        started = self._held(self.created + self.rng.expovariate(1 / product.queue))
        steps = _spread(product.waiting, "pending", self.created, started)
        if product.previews and texts.chance(self.rng, PREVIEW_RATIO):
            steps.append(Step(started, product.waiting[0], "preview"))
            if not texts.chance(self.rng, RENDERED_RATIO):
                return steps
            started = self._held(started + self.rng.expovariate(1 / RENDERED_AFTER))
        if failing == "rejected":
            return [*steps, self._end(started, failing)]
        finished = self._ran(started)
        return [*steps, *_spread(product.working, "running", started, finished), self._end(finished, failing)]

    def _second_steps(self, finished: float, *, failing: bool) -> list[Step]:
        """Draw the steps from the first to the second end."""
        working, ended = self.product.second
        started = self._held(finished + self.rng.expovariate(1 / SECOND_AFTER))
        finished = self._ran(started)
        last = self._end(finished, self.product.failures[0]) if failing else Step(finished, ended, "done")
        return [Step(started, working, "running"), last]

    def _end(self, at: float, failing: str) -> Step:
        return Step(at, failing, "failed") if failing else Step(at, self.product.ended, "done")

    def _due(self, when: When, fate: Fate) -> float:
        """Draw the instant at which the whole price is billed."""
        if when == "created":
            return self.created
        if when == "running":
            return fate.started + (fate.finished - fate.started) / 4
        late = when == "later" and not texts.chance(self.rng, 0.7)
        return fate.finished + (self.rng.uniform(2, 120) if late else 0.0)

    def _ran(self, started: float) -> float:
        return self._held(started + self.model.seconds * self.rng.lognormvariate(0, 0.5))

    def _held(self, due: float) -> float:
        """Return when a step due at an instant happens: if the queue is stuck then, after it gets unstuck."""
        for incident in self.incidents:
            stuck = incident.stuck and incident.model in {None, self.model.name} and incident.occurrence(due)
            if stuck:
                due = stuck[1] + self.rng.uniform(0, 30)
        return milliseconds(due)


def milliseconds(instant: float) -> float:
    """Round down, so that no shown time is later than the real one."""
    return math.floor(instant * 1000) / 1000


def _rounded(value: float, unit: float) -> float:
    """Round to a multiple of the unit, at least one."""
    return max(1, round(value / unit)) * unit


def _spread(words: Sequence[str], state: State, start: float, end: float) -> list[Step]:
    """Divide the time from `start` to `end` equally among these words."""
    if len(words) == 1:
        return [Step(start, words[0], state)]
    part = (end - start) / max(1, len(words))
    return [Step(milliseconds(start + number * part), word, state) for number, word in enumerate(words)]
