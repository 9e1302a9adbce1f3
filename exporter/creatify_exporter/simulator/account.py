"""One account's tasks as a function of simulated time: a seed and the traffic determine everything."""

import bisect
import math
import random
import threading
from collections import Counter
from dataclasses import replace
from itertools import accumulate

from creatify_exporter.simulator import texts
from creatify_exporter.simulator.life import Life, milliseconds
from creatify_exporter.simulator.products import TEXT_GENERATOR, Product
from creatify_exporter.simulator.task import Task, Truth, created
from creatify_exporter.simulator.traffic import Incident, Model, Traffic

MINUTE = 60.0
DAY = 86400.0


class Account:
    """The endless tasks of one list of a workspace since `start` (epoch seconds), drawn only as far as needed.

    Each minute of the clock has a separate random generator. So the same seed, product and traffic give the same tasks,
    whenever the account starts and in whatever steps it is read; `start` only leaves out older tasks.
    """

    def __init__(
        self,
        seed: int,
        start: float,
        traffic: Traffic | None = None,
        package: float = 10_000,
        product: Product = TEXT_GENERATOR,
    ) -> None:
        self.seed = seed
        self.start = start
        self.traffic = traffic or Traffic(rate=product.rate)
        self.package = package
        self.product = product
        self._models = [model for model in self.traffic.models or product.models if model.weight > 0]
        self._weights = list(accumulate(model.weight for model in self._models))
        self._complete = max((model.since for model in self._models), default=math.inf)
        self._tasks: list[Task] = []
        self._lock = threading.Lock()
        self._minute = start // MINUTE * MINUTE
        self._born: Counter[str] = Counter()

    @property
    def models(self) -> list[str]:
        """The names of all models that its tasks have or will have."""
        return [model.name for model in self._models]

    def tasks(self, at: float, since: float = -math.inf) -> list[Task]:
        """Return the tasks created after `since` and up to `at`, in order of creation."""
        with self._lock:
            while self._minute <= at:
                self._draw_minute()
            first = bisect.bisect_right(self._tasks, since, key=created)
            return self._tasks[first : bisect.bisect_right(self._tasks, at, key=created)]

    def truth(self, at: float, since: float = -math.inf) -> Truth:
        """Return the totals at `at` of all tasks created after `since`, even those that no list contains any more.

        A list fetched at `at` (`Request.at`) shows each task exactly as it is counted here: an event at the instant
        itself has happened. So counters fed with lists fetched at a and b must have risen by `truth(b) - truth(a)`,
        provided that no task left the list before its last change (`Task.settled`).
        """
        truth = Truth()
        for task in self.tasks(at, since):
            truth.add(task, at)
        return truth

    def remaining_credits(self, at: float) -> float:
        """Return the balance, which is refilled to `package` at midnight UTC and whenever it is used up.

        It does not depend on the account's start, if that is before midnight and before all tasks unsettled then.
        """
        return self.package - self.spent(at) % self.package

    def spent(self, at: float) -> float:
        """Return the credits charged since midnight UTC."""
        midnight = at // DAY * DAY
        return sum(task.charged(at) - task.charged(midnight) for task in self.tasks(at) if task.settled > midnight)

    def fail(self, model: str, ratio: float, since: float) -> None:
        """Make tasks of a model created from `since` on fail at this ratio, regardless of other incidents."""
        incident = Incident(since, math.inf, model, failure_ratio=ratio, reason="model_unavailable")
        with self._lock:
            self.traffic = replace(self.traffic, incidents=(incident, *self.traffic.incidents))
            self._draw_again(since)

    def _draw_again(self, since: float) -> None:
        """Discard the tasks from the minute of `since` on; those before that instant are drawn the same again."""
        self._minute = min(self._minute, since // MINUTE * MINUTE)
        del self._tasks[bisect.bisect_left(self._tasks, self._minute, key=created) :]
        self._born = Counter(task.model for task in self._tasks)

    def _draw_minute(self) -> None:
        """Draw the tasks of one more minute: a Poisson process at a constant rate."""
        # Draws have to be reproducible; nothing here is a secret.
        rng = random.Random(f"{self.seed}/{self.product.api}/{self._minute:.0f}")  # noqa: S311
        rate, end = self._rate(rng), self._minute + MINUTE
        at = self._minute + (rng.expovariate(rate) if rate > 0 else math.inf)
        while at < end:
            task = self._draw(rng, milliseconds(at))
            if task.created >= self.start:
                self._tasks.append(task)
                self._born[task.model] += 1
            at += rng.expovariate(rate)
        self._minute = end

    def _rate(self, rng: random.Random) -> float:
        """Return the tasks per second of the next minute: fewest at 03:00 UTC, most at 15:00."""
        minute = self._minute
        day = 1 + self.traffic.rhythm * math.sin((minute % DAY / DAY - 9 / 24) * 2 * math.pi)
        burst = 8 if texts.chance(rng, self.traffic.burst_ratio) else 1
        unusual = math.prod(each.arrivals for each in self.traffic.incidents if each.occurrence(minute))
        return self.traffic.rate * day * burst * unusual

    def _draw(self, rng: random.Random, at: float) -> Task:
        model = self._choose(rng, at)
        life = Life(rng, self.product, model, self.traffic.incidents, at)
        fate = life.fate(certain=self._born[model.name] < model.first_failures)
        price = life.price(failing=bool(fate.kind))
        bills = life.bills(self.product.reported, price, fate)
        charges = bills if self.product.charges is None else life.bills(self.product.charges, price, fate)
        last_bills = [instant for instant, _ in (*bills[-1:], *charges[-1:])]
        return Task(
            number=len(self._tasks),
            id=_uuid(rng.getrandbits(128)),
            model=model.name,
            created=at,
            steps=fate.steps,
            finished=fate.finished,
            kind=fate.kind,
            reason=fate.reason,
            bills=bills,
            charges=charges,
            settled=max([fate.steps[-1].at, *last_bills]),
            style=rng.getrandbits(32),
        )

    def _choose(self, rng: random.Random, at: float) -> Model:
        """Draw the model of a task from those that exist at an instant."""
        if at >= self._complete:
            return rng.choices(self._models, cum_weights=self._weights)[0]
        models = [model for model in self._models if model.since <= at]
        return rng.choices(models, [model.weight for model in models])[0]


def _uuid(bits: int) -> str:
    digits = f"{bits:032x}"
    variant = "89ab"[bits >> 60 & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
