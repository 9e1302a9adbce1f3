"""One account's tasks as a function of simulated time: everything follows from a seed and the traffic."""

import bisect
import math
import operator
import random
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from creatify_exporter.simulator import texts
from creatify_exporter.simulator.traffic import Incident, Model, Traffic

MINUTE = 60.0
DAY = 86400.0

Status = Literal["pending", "running", "done", "failed"]


class Task(NamedTuple):
    """The whole life of one task, drawn when it is created. Instants are epoch seconds, whole milliseconds."""

    number: int
    id: str
    model: str
    created: float
    started: float
    finished: float
    failed: bool
    kind: str
    """Of the failure reason, a key of `texts.REASONS`; empty unless it fails."""
    reason: str
    bills: tuple[tuple[float, float], ...]
    """(instant, `credits_used` from then on), in order; 0 before the first. Quarters, so that sums are exact."""
    settled: float
    """After this instant nothing about it changes."""
    style: int
    """32 random bits that decide on what does not count: texts, notations."""

    def status(self, at: float) -> Status:
        """Return its status at an instant not before its creation."""
        if at < self.started:
            return "pending"
        if at < self.finished:
            return "running"
        return "failed" if self.failed else "done"

    def credits(self, at: float) -> float:
        """Return `credits_used` at an instant."""
        return next((value for instant, value in reversed(self.bills) if instant <= at), 0.0)


_created = operator.attrgetter("created")


def _tally() -> dict[str, float]:
    return defaultdict(float)


@dataclass
class Truth:
    """What has happened up to an instant, per model. Two of them subtract to what happened in between.

    Credits used are all increases and credits refunded all decreases of `credits_used`, seen or not: who looks now
    and then misses a rise and fall between two looks, but always has `credits` = used - refunded right.
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
            if task.failed:
                self.failed[task.model] += 1
                self.kinds[task.kind] += 1
                self.failed_credits[task.model] += task.credits(at)
        before = 0.0
        for instant, value in task.bills:
            if instant <= at:
                side = self.credits_used if value > before else self.credits_refunded
                side[task.model] += abs(value - before)
                before = value


class Account:
    """The tasks of one workspace since `start` (epoch seconds), endless; drawn as far as somebody has looked.

    Each minute of the clock is drawn by a generator of its own. So the same seed and traffic give the same tasks,
    whenever the account starts and in whatever steps one looks; `start` only leaves out what is older.
    """

    def __init__(self, seed: int, start: float, traffic: Traffic | None = None, package: float = 10_000) -> None:
        self.seed = seed
        self.start = start
        self.traffic = traffic or Traffic()
        self.package = package
        self._tasks: list[Task] = []
        self._lock = threading.Lock()
        self._minute = start // MINUTE * MINUTE
        self._born: dict[str, int] = defaultdict(int)
        self._models = [model for model in self.traffic.models if model.weight > 0]

    def tasks(self, at: float, since: float = -math.inf) -> list[Task]:
        """Return the tasks created after `since` and not after `at`, in the order of their creation."""
        with self._lock:
            while self._minute <= at:
                self._draw_minute()
            first = bisect.bisect_right(self._tasks, since, key=_created)
            return self._tasks[first : bisect.bisect_right(self._tasks, at, key=_created)]

    def truth(self, at: float, since: float = -math.inf) -> Truth:
        """Return the totals at `at` of all tasks created after `since`, whether any list still holds them or not.

        A list fetched at `at` (`Request.at`) shows each task exactly as it is counted here: what happens at the
        instant itself has happened. So counters fed with lists fetched at a and b must have risen by
        `truth(b) - truth(a)`, provided that no task's last change (`Task.settled`) came after it had left the list.
        """
        truth = Truth()
        for task in self.tasks(at, since):
            truth.add(task, at)
        return truth

    def remaining_credits(self, at: float) -> float:
        """Return the balance, filled up to `package` at midnight UTC and whenever it is used up.

        It does not depend on the start of an account that starts before that midnight and the tasks unsettled then.
        """
        return self.package - self.spent(at) % self.package

    def spent(self, at: float) -> float:
        """Return the credits spent since midnight UTC."""
        midnight = at // DAY * DAY
        return sum(task.credits(at) - task.credits(midnight) for task in self.tasks(at) if task.settled > midnight)

    def _draw_minute(self) -> None:
        """Draw the tasks of one more minute: a Poisson process of one rate."""
        # Reproducible draws are the point; nothing here is a secret.
        rng = random.Random(f"{self.seed}/{self._minute:.0f}")  # noqa: S311
        rate, end = self._rate(rng), self._minute + MINUTE
        at = self._minute + (rng.expovariate(rate) if rate > 0 else math.inf)
        while at < end:
            task = self._draw(rng, _milliseconds(at))
            if task.created >= self.start:
                self._tasks.append(task)
            at += rng.expovariate(rate)
        self._minute = end

    def _rate(self, rng: random.Random) -> float:
        """Return the tasks a second of the next minute: lowest at 03:00 UTC, highest at 15:00."""
        minute = self._minute
        day = 1 + self.traffic.rhythm * math.sin((minute % DAY / DAY - 9 / 24) * 2 * math.pi)
        burst = 8 if texts.chance(rng, self.traffic.burst_ratio) else 1
        unusual = math.prod(each.arrivals for each in self.traffic.incidents if each.occurrence(minute))
        return self.traffic.rate * day * burst * unusual

    def _draw(self, rng: random.Random, created: float) -> Task:
        models = [model for model in self._models if model.since <= created]
        model = rng.choices(models, [model.weight for model in models])[0]
        self._born[model.name] += 1
        incidents = [incident for incident in self.traffic.incidents if incident.covers(created, model.name)]
        started = self._held(rng, created + rng.expovariate(1 / 1.5), model)
        finished = self._held(rng, started + model.seconds * rng.lognormvariate(0, 0.5), model)
        kind, reason = self._failure(rng, model, incidents)
        bills = _bills(rng, model, incidents, started, finished, kind)
        return Task(
            number=len(self._tasks),
            id=_uuid(rng.getrandbits(128)),
            model=model.name,
            created=created,
            started=started,
            finished=finished,
            failed=bool(kind),
            kind=kind,
            reason=reason,
            bills=bills,
            settled=max(finished, bills[-1][0]) if bills else finished,
            style=rng.getrandbits(32),
        )

    def _held(self, rng: random.Random, due: float, model: Model) -> float:
        """Return when a step that is due at an instant is taken: after the end of a queue that is stuck then."""
        for incident in self.traffic.incidents:
            stuck = incident.stuck and incident.model in (None, model.name) and incident.occurrence(due)
            if stuck:
                due = stuck[1] + rng.uniform(0, 30)
        return _milliseconds(due)

    def _failure(self, rng: random.Random, model: Model, incidents: list[Incident]) -> tuple[str, str]:
        """Draw the kind and text of a failure's reason, both empty for a task that will be done."""
        outage = next((incident for incident in incidents if incident.failure_ratio is not None), None)
        ratio = model.failure_ratio if outage is None else outage.failure_ratio
        if self._born[model.name] > model.first_failures and not texts.chance(rng, ratio or 0):
            return "", ""
        return texts.reason(rng, outage.reason if outage else None)


def _bills(  # noqa: PLR0913, PLR0917 - what a bill depends on
    rng: random.Random, model: Model, incidents: list[Incident], started: float, finished: float, kind: str
) -> tuple[tuple[float, float], ...]:
    """Draw how `credits_used` is filled in: in stages, late, and sometimes partly paid back."""
    cost = model.credits * rng.lognormvariate(0, 0.4) * math.prod(incident.burn for incident in incidents)
    cost = _quarters(cost) if not kind or texts.chance(rng, 0.4) else 0.0
    if not cost:
        return ()
    stages = []
    if texts.chance(rng, 0.3):
        stages.append((started + (finished - started) / 2, _quarters(cost / 2)))
    due = finished if texts.chance(rng, 0.7) else finished + rng.uniform(2, 120)
    stages.append((due, cost))
    if texts.chance(rng, 0.3 if kind else 0.02):
        stages.append((due + rng.uniform(30, 600), rng.choice((0.0, _quarters(cost / 2)))))
    return tuple((_milliseconds(instant), value) for instant, value in stages)


def _milliseconds(instant: float) -> float:
    """Round down, so that what is shown is never later than what is."""
    return math.floor(instant * 1000) / 1000


def _quarters(value: float) -> float:
    """Round to a multiple of a quarter, at least one."""
    return max(1, round(value * 4)) / 4


def _uuid(bits: int) -> str:
    digits = f"{bits:032x}"
    variant = "89ab"[bits >> 60 & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
