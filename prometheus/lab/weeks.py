# ruff: noqa: INP001 - a folder that is run by its path, not a package
"""Weeks of a workspace as its exporters would report them: quiet ones, eventful ones, and incidents.

A world is simulated task by task: work follows the hour and the weekday and also arrives in batches, and failures come
in clusters, not independently. Its replicas are scraped once a minute and report what their own ledger recorded with
their last complete list. Everything is derived from a seed.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

MINUTE: Final = 60
HOUR: Final = 3600
DAY: Final = 86400
BEGIN: Final = 2928 * 162 * HOUR  # a Sunday in 2024, and the first second of a block (replay.py)
SCRAPED_AT: Final = 23  # seconds after the full minute, so that scrapes and evaluations do not coincide

MODELS: Final = {"gemini-2.5-flash": 0.6, "gemini-2.5-pro": 0.3, "gemini-3-flash-preview": 0.1}
FLASH, PRO, _ = MODELS
REASONS: Final = ("content_filtered", "internal_error", "timeout")
BUCKETS: Final = (5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
CAUSES: Final = ("auth", "ledger", "rate_limited", "timeout")
COUNTERS: Final = (
    "tasks_submitted_total",
    "tasks_finished_total",
    *(f"tasks_failed_total {reason}" for reason in REASONS),
    "credits_used_total",
    "credits_refunded_total",
    "failed_tasks_credits_used_total",
    "failed_tasks_credits_refunded_total",
    *(f"task_duration_seconds_bucket {le}" for le in (*BUCKETS, "+Inf")),
    "task_duration_seconds_count",
)
FAILURES: Final = frozenset({"CreatifyFailureSpike", "CreatifyFailuresHigh", "CreatifyModelFailing"})
OUT_OF_CREDITS: Final = frozenset({"CreatifyCreditsRunOut", "CreatifyCreditsLow"})


@dataclass
class Episode:
    """Something that happens to a world: when, the expected alerts, and further alerts that are justified."""

    kind: str
    start: int
    end: int
    model: str = ""
    failing: float = 0.0  # share of the model's tasks that fail
    cost: float = 1.0  # factor on credits
    holds: bool = False  # nothing of the model finishes
    drifts: bool = False  # `failing` is reached slowly
    hangs: bool = False  # one task is submitted and finishes with the episode
    drained: bool = False  # nobody tops up the balance
    idle: bool = False  # nothing is submitted
    replica: int | None = None  # the affected exporter; None: all
    expected: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()
    failed_at: list[int] = field(default_factory=list)
    waiting_at: list[int] = field(default_factory=list)
    empty_at: list[int] = field(default_factory=list)

    def share(self, now: int) -> float:
        """Return the share of tasks that it makes fail now."""
        return self.failing * (now - self.start) / (self.end - self.start) if self.drifts else self.failing

    def tenth_failure(self) -> int | None:
        """Return when the tenth task within an hour failed; None if fewer did."""
        failed = sorted(self.failed_at)
        return next((tenth for first, tenth in zip(failed, failed[9:], strict=False) if tenth - first <= HOUR), None)


@dataclass(frozen=True)
class Workspace:
    """A workspace: its name, volume, the time for which it is watched, and what happens to it."""

    name: str
    volume: str
    seed: int
    start: int
    days: int
    episodes: tuple[Episode, ...] = ()
    replicas: int = 1

    @property
    def end(self) -> int:
        """Return the second after the last."""
        return self.start + self.days * DAY


def is_weekend(now: int) -> bool:
    """Return whether this is a Saturday or a Sunday."""
    return (now // DAY + 3) % 7 >= 5  # noqa: PLR2004 - the epoch was a Thursday, 3 when Monday is 0


def around_the_clock(now: int) -> float:
    """Return the activity at this time of day and week; about 1 on average."""
    afternoon = 1 + 0.85 * math.cos(2 * math.pi * ((now % DAY) / DAY - 15 / 24))
    return afternoon * (0.45 if is_weekend(now) else 1.2)


def office_hours(now: int) -> float:
    """Return the activity of people who work from 8 to 18 on weekdays; 1 on average over a weekday."""
    return 2.4 if 8 * HOUR <= now % DAY < 18 * HOUR and not is_weekend(now) else 0.0


@dataclass(frozen=True)
class Volume:
    """How many tasks there are, and when."""

    rate: float  # tasks an hour
    rhythm: Callable[[int], float] = around_the_clock
    batches: float = 4  # a day and model, in the hours of work
    plan: int = 0  # days for which the plan's credits last; 0: there is no plan


VOLUMES: Final = {
    "tiny": Volume(4 / 24, office_hours, batches=0.3, plan=20),
    "small": Volume(20 / 24, office_hours, batches=1, plan=20),
    "modest": Volume(100 / 24, office_hours, plan=20),
    "low": Volume(12),
    "medium": Volume(150),
    "high": Volume(1500),
}


def poisson(rng: random.Random, mean: float) -> int:
    """Draw a Poisson number; for large means the normal distribution is close enough."""
    if mean > 30:  # noqa: PLR2004
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


class Model:
    """A model's running tasks, and the totals of everything that is counted."""

    def __init__(self, name: str, share: float, volume: Volume, rng: random.Random) -> None:
        self.name, self.volume, self.rng = name, volume, rng
        self.rate = rate = share * volume.rate
        self.totals = [0.0] * len(COUNTERS)
        self.finishing: dict[int, list[tuple[int, int, bool, float]]] = {}
        self.running: dict[int, int] = {}
        self.serial = 0
        self.run = 0
        self.cluster = 0
        self.batch = 0
        self.weather = 1.0
        self.clusters = min(0.003, 6 / (24 * rate))  # six a day, or fewer if a day has few tasks

    def arrivals(self, now: int) -> int:
        """Draw how many tasks are submitted in this minute, singly and in batches."""
        if now % HOUR == 0:
            self.weather = self.rng.lognormvariate(-0.125, 0.5)
        rate = self.rate * self.volume.rhythm(now)
        if self.batch == 0 and rate and self.rng.random() < self.volume.batches / 1440:
            self.batch = 1 + round(self.rng.expovariate(4 / max(4.0, self.rate)))
        sent = min(self.batch, 1 + self.batch // 3)
        self.batch -= sent
        return poisson(self.rng, rate / 60) + sent

    def fails(self, share: float) -> bool:
        """Return whether a task fails: by the incident's share, a cluster that continues or begins, or bad luck."""
        if share and self.rng.random() < share:
            return True
        if self.cluster:
            self.cluster -= 1
            return True
        chance = self.rng.random()
        if chance < self.clusters * self.weather:
            self.cluster = min(4, int(self.rng.expovariate(0.5)))
            return True
        return chance < 0.015 * self.weather

    def submit(self, now: int, episodes: list[Episode]) -> None:
        """Create one task and decide when it finishes, how, and for how much."""
        created = now + SCRAPED_AT - self.rng.randrange(MINUTE)
        failed = self.fails(max((e.share(now) for e in episodes), default=0.0))
        finished = created + max(2, int(self.rng.lognormvariate(3.2, 0.7)))
        for episode in episodes:
            if episode.holds or episode.hangs:
                finished = episode.end + self.rng.randrange(600)
                episode.waiting_at.append(created)
            if failed and episode.failing:
                episode.failed_at.append(finished)
        credits_used = round(self.rng.lognormvariate(0.4, 0.5), 1) * max((e.cost for e in episodes), default=1.0)
        self.serial += 1
        self.running[self.serial] = created
        self.totals[0] += 1
        minute = max(now // MINUTE, -(-(finished - SCRAPED_AT) // MINUTE))
        self.finishing.setdefault(minute, []).append((self.serial, finished - created, failed, credits_used))

    def finish(self, now: int) -> None:
        """Count the tasks that have finished by this minute's scrape."""
        totals = self.totals
        finishing = self.finishing.pop(now // MINUTE, [])
        self.run = self.run + len(finishing) if all(failed for _, _, failed, _ in finishing) else 0
        for serial, duration, failed, credits_used in finishing:
            del self.running[serial]
            totals[1] += 1
            totals[5] += credits_used
            if failed:
                totals[2 + self.rng.randrange(len(REASONS))] += 1
                totals[7] += credits_used
                if self.rng.random() < 0.3:  # noqa: PLR2004 - some failed tasks are refunded
                    totals[6] += credits_used
                    totals[8] += credits_used
            for i, le in enumerate(BUCKETS):
                if duration <= le:
                    totals[9 + i] += 1
            totals[-2] += 1
            totals[-1] += 1


class Replica:
    """An exporter with its own ledger: what it has recorded, and the result of its last fetch."""

    def __init__(self, workspace: Workspace, number: int, rng: random.Random) -> None:
        self.number, self.rng = number, rng
        self.target = f'instance="exporter-{number}:10081",job="creatify",workspace="{workspace.name}"'
        self.base: dict[str, list[float]] = {}
        self.shown: dict[str, list[float]] = {}
        self.runs: dict[str, int] = {}
        self.ledger_created = workspace.start - 30 * DAY
        self.last_success = 0
        self.failures = 0
        self.restarting = 0
        self.unlucky = 0

    def is_away(self, episodes: list[Episode]) -> bool:
        """Return whether the scrape fails: an outage of the exporter, or one of the few deployments of a week."""
        if self.restarting == 0 and self.rng.random() < 3 / 10080:
            self.restarting = self.rng.randint(1, 3)
            self.failures = 0
        self.restarting = max(0, self.restarting - 1)
        return self.restarting > 0 or any(e.kind == "exporter outage" for e in episodes)

    def fetch_fails(self, episodes: list[Episode]) -> bool:
        """Return whether the fetch fails: an outage of the API, or one of the few that fail anyway, often together."""
        if self.unlucky == 0 and self.rng.random() < 1 / 100:
            self.unlucky = self.rng.randint(1, 4)
        self.unlucky = max(0, self.unlucky - 1)
        return self.unlucky > 0 or any(e.kind == "API outage" for e in episodes)

    def book(self, now: int, models: dict[str, Model], episodes: list[Episode]) -> None:
        """Record a complete list; a lost or restored ledger changes the values from which the counters count."""
        self.last_success = now
        happens = {e.kind for e in episodes if now - e.start <= MINUTE}
        if "lost ledger" in happens:  # the new one counts the list: here the last fifth of everything
            self.base = {name: [float(int(total * 0.8)) for total in m.totals] for name, m in models.items()}
            self.ledger_created = now
        if "restored ledger" in happens:
            for name, shown in self.shown.items():
                self.base[name] = [b + int(s * 0.1) for b, s in zip(self.base[name], shown, strict=True)]
        for name, model in models.items():
            base = self.base.setdefault(name, [0.0] * len(COUNTERS))
            self.shown[name] = [total - start for total, start in zip(model.totals, base, strict=True)]
            self.runs[name] = model.run


class World:
    """A workspace, minute by minute."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.rng = random.Random(workspace.seed)  # noqa: S311 - a simulation
        self.volume = VOLUMES[workspace.volume]
        self.daily = self.volume.rate * 24 * 1.7  # credits of a day
        self.models = {name: self.model(name, share) for name, share in MODELS.items()}
        self.replicas = [
            Replica(workspace, n, random.Random(workspace.seed * 100 + n))  # noqa: S311
            for n in range(workspace.replicas)
        ]
        self.balance = self.daily * 10
        self.spent = 0.0
        self.names: dict[tuple[str, int], list[str]] = {}

    def model(self, name: str, share: float) -> Model:
        """Return a model with its own stream of random numbers."""
        return Model(name, share, self.volume, random.Random(f"{self.workspace.seed} {name}"))  # noqa: S311

    def minutes(self) -> Iterator[tuple[int, str]]:
        """Yield the time of each scrape and the exporters' responses, as lines of OpenMetrics."""
        for now in range(self.workspace.start, self.workspace.end, MINUTE):
            episodes = [e for e in self.workspace.episodes if e.start <= now < e.end]
            if any(e.kind == "new model" and e.start == now for e in episodes):
                self.models["gemini-3.1-pro-preview"] = self.model("gemini-3.1-pro-preview", 0.3)
            for model in self.models.values():
                mine = [e for e in episodes if e.model in {model.name, "*"}]
                for _ in range(self.submitted(model, now, mine)):
                    model.submit(now, mine)
                model.finish(now)
            self.pay(now, episodes)
            yield now + SCRAPED_AT, "".join(self.scrape(r, now + SCRAPED_AT, episodes) for r in self.replicas)

    def submitted(self, model: Model, now: int, episodes: list[Episode]) -> int:
        """Return how many tasks of a model are submitted in this minute; without credits, none."""
        if self.balance <= 0 or any(e.idle for e in episodes):
            return 0
        if any(e.hangs for e in episodes):
            return sum(e.start == now for e in episodes if e.hangs)
        return model.arrivals(now)

    def pay(self, now: int, episodes: list[Episode]) -> None:
        """Subtract what was spent from the balance, and top it up when four days' worth or half of the plan is left."""
        spent = sum(m.totals[5] - m.totals[6] for m in self.models.values())
        self.balance = max(0.0, self.balance - (spent - self.spent))
        self.spent = spent
        drained = [e for e in episodes if e.drained]
        if self.balance == 0:
            for episode in drained:
                episode.empty_at.append(now)
        if self.balance < self.daily * max(4, self.volume.plan / 2) and now % DAY == 10 * HOUR and not drained:
            self.balance += self.daily * 7

    def scrape(self, replica: Replica, now: int, episodes: list[Episode]) -> str:
        """Return an exporter's response now; empty while it is away."""
        mine = [e for e in episodes if e.replica in {None, replica.number}]
        if replica.is_away(mine):
            return ""
        lines: list[str] = []
        failed = replica.fetch_fails(mine)
        if failed:
            replica.failures += 1
        else:
            replica.book(now, self.models, mine)
            self.add_list(lines, replica, now, mine)
        self.add_counters(lines, replica, now)
        self.add_exporter(lines, replica, now, up=not failed)
        return "".join(lines)

    def add_list(self, lines: list[str], replica: Replica, now: int, episodes: list[Episode]) -> None:
        """Add the gauges of the list; they are absent after a failed fetch."""
        target = f'{replica.target},api="text_generator"'
        for name, model in self.models.items():
            labels = f'{target},model="{name}",status='
            lines.append(f'creatify_tasks{{{labels}"running"}} {len(model.running)} {now}\n')
            lines.append(f'creatify_tasks{{{labels}"pending"}} 0 {now}\n')
            if model.running:
                created = next(iter(model.running.values()))
                lines.append(f'creatify_oldest_task_created_timestamp_seconds{{{labels}"running"}} {created} {now}\n')
        covered = DAY if any(e.kind == "shrinking list" for e in episodes) else 4 * DAY
        lines.append(f"creatify_list_oldest_created_timestamp_seconds{{{target}}} {now - covered} {now}\n")
        lines.append(f'creatify_invalid_tasks{{{target},field="created_at"}} 0 {now}\n')
        lines.append(f"creatify_remaining_credits{{{replica.target}}} {self.balance:.1f} {now}\n")
        if self.volume.plan:
            lines.append(f"creatify_plan_credits{{{replica.target}}} {self.volume.plan * self.daily:.0f} {now}\n")

    def add_counters(self, lines: list[str], replica: Replica, now: int) -> None:
        """Add the counters, as last recorded."""
        for name, values in replica.shown.items():
            names = self.names.get((name, replica.number))
            if names is None:
                names = self.names[name, replica.number] = [counter(c, replica.target, name) for c in COUNTERS]
            lines.extend([f"{n}{v:.10g} {now}\n" for n, v in zip(names, values, strict=True)])
            labels = f'{replica.target},api="text_generator",model="{name}"'
            lines.append(f"creatify_consecutive_failed_tasks{{{labels}}} {replica.runs[name]} {now}\n")

    def add_exporter(self, lines: list[str], replica: Replica, now: int, *, up: bool) -> None:
        """Add the exporter's metrics about itself."""
        target = f'{replica.target},api="text_generator"'
        created = "creatify_exporter_ledger_created_timestamp_seconds"
        lines.append(f"creatify_up{{{target}}} {int(up)} {now}\n")
        lines.append(f'creatify_up{{{replica.target},api="remaining_credits"}} {int(up)} {now}\n')
        lines.append(f"creatify_last_success_timestamp_seconds{{{target}}} {replica.last_success} {now}\n")
        lines.append(f"{created}{{{target}}} {replica.ledger_created} {now}\n")
        lines.append(f"creatify_exporter_build_info{{{replica.target}}} 1 {now}\n")
        for cause in CAUSES:
            count = replica.failures if cause == "timeout" else 0
            lines.append(f'creatify_fetch_failures_total{{{target},cause="{cause}"}} {count} {now}\n')


def counter(name: str, target: str, model: str) -> str:
    """Return the start of a counter's line; a word after the name is its reason or its bucket."""
    metric, _, value = name.partition(" ")
    extra = "" if not value else f',le="{value}"' if metric.endswith("bucket") else f',reason="{value}"'
    return f'creatify_{metric}{{{target},api="text_generator",model="{model}"{extra}}} '


FAIL: Final = {"expected": FAILURES, "allowed": FAILURES | {"CreatifyCreditsWasted"}}
STUCK: Final = frozenset({"CreatifyTasksStuck"})
# The hour in which it begins, counted from a Sunday, and its length in hours.
OFFICE: Final[tuple[tuple[int, int, str, str, dict[str, Any]], ...]] = (
    (34, 4, "all fail for 4 h", FLASH, {"failing": 1.0, **FAIL}),
    (62, 19, "product out for a night", "*", {"failing": 1.0, **FAIL}),
    (106, 6, "half fail for 6 h", FLASH, {"failing": 0.5, **FAIL}),
    (134, 67, "all fail over a weekend", PRO, {"failing": 1.0, **FAIL}),
    (210, 14, "task hangs overnight", FLASH, {"hangs": True, "expected": STUCK, "allowed": STUCK}),
    (226, 72, "all fail for 3 days", FLASH, {"failing": 1.0, **FAIL}),
    (370, 48, "half fail for 2 days", "*", {"failing": 0.5, **FAIL}),
    (444, 96, "product out over a weekend", "*", {"failing": 1.0, **FAIL}),
    (560, 88, "credits run out", "*",
     {"drained": True, "cost": 4, "expected": OUT_OF_CREDITS, "allowed": OUT_OF_CREDITS | {"CreatifyCreditBurnHigh"}}),
    (672, 168, "no task for a week", "*", {"idle": True}),
)  # fmt: skip


def office_incidents(start: int, weeks: int) -> tuple[Episode, ...]:
    """Return the incidents of OFFICE that end within a number of weeks."""
    planned = [
        Episode(kind, start + begin * HOUR, start + (begin + hours) * HOUR, model, **what)
        for begin, hours, kind, model, what in OFFICE
    ]
    return tuple(episode for episode in planned if episode.end <= start + weeks * 7 * DAY)


def incidents(start: int, weeks: int) -> tuple[Episode, ...]:
    """Return the incidents of a number of weeks: each kind at noon, in the evening and at night, with changing models.

    Each fortnight has 27 incidents of failing tasks, eight hours apart, two queues that hang and two runaway burns. An
    odd last week has a slow drift.
    """
    plan: list[Episode] = []
    names = list(MODELS)
    for fortnight in range(weeks // 2):
        begin = start + fortnight * 14 * DAY + 36 * HOUR
        kinds = [(share, minutes) for minutes in (5, 15, 60) for share in (0.3, 0.6, 1.0)]
        for i in range(27):
            share, minutes = kinds[(i + i // 9) % 9]
            model = names[0] if i % 3 != 2 else names[1 + (i // 3 + fortnight) % 2]  # noqa: PLR2004
            plan.append(failing(begin + i * 8 * HOUR, minutes, share, model))
        plan.extend(hanging(begin + (27 * 8 + h) * HOUR, name) for h, name in ((0, FLASH), (8, PRO)))
        plan.extend(burning(begin + (27 * 8 + h) * HOUR) for h in (24, 41))
    if weeks % 2:
        drift = start + (weeks - 1) * 7 * DAY + DAY
        allowed = FAILURES | {"CreatifyCreditsWasted"}
        drifting = Episode("slow drift to 30 %", drift, drift + 5 * DAY, names[0], failing=0.3, drifts=True)
        plan.append(replace(drifting, expected=FAILURES, allowed=allowed))
    return tuple(plan)


def failing(start: int, minutes: int, share: float, model: str) -> Episode:
    """Return an incident in which a share of a model's tasks fail."""
    return Episode(
        f"{share:.0%} fail for {minutes} min".replace("%", " %"),
        start,
        start + minutes * MINUTE,
        model,
        failing=share,
        expected=FAILURES,
        allowed=FAILURES | {"CreatifyCreditsWasted"},
    )


def hanging(start: int, model: str) -> Episode:
    """Return an hour in which tasks of a model wait and none finishes."""
    expected = frozenset({"CreatifyNothingFinishes", "CreatifyTasksStuck"})
    allowed = frozenset({*expected, "CreatifyTasksSlow"})
    return Episode("stuck queue", start, start + HOUR, model, holds=True, expected=expected, allowed=allowed)


def burning(start: int) -> Episode:
    """Return four hours in which every task costs five times as much."""
    expected = frozenset({"CreatifyCreditBurnHigh"})
    allowed = frozenset({*expected, "CreatifyCreditsRunOut"})
    return Episode("credit burn times 5", start, start + 4 * HOUR, "*", cost=5, expected=expected, allowed=allowed)


def events(start: int) -> tuple[Episode, ...]:
    """Return the events of exporters, ledgers and lists in two weeks: most of them must wake nobody."""
    at: Callable[[float], int] = lambda day: start + int(day * DAY)  # noqa: E731 - reads as a table below
    down, shrunk = frozenset({"CreatifyDown"}), frozenset({"CreatifyListShrunk"})
    absent, ledger = frozenset({"CreatifyExporterAbsent"}), frozenset({"CreatifyLedgerFailing"})
    blind = frozenset({"CreatifyDown", "CreatifyBalanceUnknown"})
    return (
        Episode("API outage", at(2.5), at(2.5) + 45 * MINUTE, expected=down, allowed=blind),
        Episode("API outage", at(3.6), at(3.6) + 4 * HOUR, expected=down, allowed=blind),
        Episode("exporter outage", at(4.5), at(4.5) + 2 * HOUR, expected=absent, allowed=absent),
        Episode("exporter outage", at(5.5), at(5.5) + 2 * HOUR, replica=1),
        Episode("lost ledger", at(6.55), at(6.55) + HOUR),
        Episode("lost ledger", at(7.6), at(7.6) + HOUR, replica=0),
        Episode("restored ledger", at(8.6), at(8.6) + HOUR, expected=ledger, allowed=ledger),
        Episode("new model", at(9.5), at(9.5) + HOUR),
        Episode("shrinking list", at(11.5), at(13.9), expected=shrunk, allowed=shrunk),
    )
