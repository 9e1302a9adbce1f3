"""A night with several workspaces, lists and models, as their exporters would report it; for tests and pictures.

Everything is invented except names and labels, which are those of the metrics. It is written as OpenMetrics with
timestamps, which promtool converts to blocks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from random import Random
from typing import Final, TextIO

from creatify_exporter import metrics
from creatify_exporter.metrics import Family

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
REASONS: Final = ("rate_limited", "content_filtered", "invalid_request", "model_unavailable", "timeout", "other")
CAUSES: Final = ("auth", "rate_limited", "timeout", "connection", "http_status", "ledger")
BUCKETS: Final = (5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, float("inf"))
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Incident:
    """From `ago` seconds before the end on, a share of the tasks fails for a reason."""

    ago: float
    ratio: float
    reason: str


@dataclass(frozen=True)
class Model:
    """Tasks an hour, typical seconds and credits of a task (0: the list reports none), and the share that fails."""

    name: str
    hourly: float
    seconds: float
    credits: float
    failing: float = 0.02
    reason: str = "invalid_request"
    incident: Incident | None = None
    waiting: int = 1
    stuck: float = 0
    """Seconds that the oldest task has waited at the end."""


@dataclass(frozen=True)
class List:
    """A list of tasks; if its fetches fail, the cause and for how many seconds before the end."""

    name: str
    models: Sequence[Model] = ()
    cause: str = ""
    failing_for: float = DAY


@dataclass(frozen=True)
class Workspace:
    """A workspace with its balance at the end, and the credits that it loses an hour, including unexplained ones."""

    name: str
    lists: Sequence[List]
    balance: float | None = 10_000
    hourly: float = 20
    plan: float | None = None
    price: float | None = None
    currency: str = "USD"
    instances: Sequence[str] = ("exporter-0:10081",)
    bought_ago: float = 0
    """Seconds before the end at which the balance rose by half of its final value."""


@dataclass
class Counts:
    """The totals of a model."""

    submitted: float = 0
    finished: float = 0
    failed: dict[str, float] = field(default_factory=lambda: dict.fromkeys(REASONS, 0.0))
    in_a_row: int = 0
    used: float = 0
    wasted: float = 0


@dataclass(frozen=True)
class Scene:
    """Workspaces, scraped every `step` seconds for some hours until `end` (epoch seconds)."""

    workspaces: Sequence[Workspace]
    end: float
    hours: float = 3
    step: float = 60

    def write(self, file: TextIO) -> None:
        """Write the samples of all scrapes."""
        draw = Random(7)  # noqa: S311 - no secret
        instants = [self.end - self.step * number for number in range(int(self.hours * HOUR / self.step), -1, -1)]
        for instance in sorted({instance for workspace in self.workspaces for instance in workspace.instances}):
            file.writelines(self._exporter(instance, instants))
        for workspace in self.workspaces:
            for sample in self._workspace(workspace, instants, draw):
                file.writelines(_told_by(workspace.instances, sample))
        file.write("# EOF\n")

    def _exporter(self, instance: str, instants: Sequence[float]) -> Iterator[str]:
        build = {"version": "0.1.0", "revision": "5e1f0c7", "python": "3.11.2"}
        for at in instants:
            uptime = at - self.end + 2 * DAY
            yield from _told_by([instance], _sample(metrics.BUILD_INFO, build, 1, at))
            yield from _told_by([instance], _sample(metrics.RELOAD_SUCCESSFUL, {}, 1, at))
            yield from _told_by([instance], _sample(metrics.WEB_CONFIG_RELOAD_SUCCESSFUL, {}, 1, at))
            yield from _told_by([instance], _sample(metrics.RELOAD_TIME, {}, self.end - 2 * DAY, at))
            yield from _told_by([instance], ("process_resident_memory_bytes", {}, 6.2e7, at))
            yield from _told_by([instance], ("process_cpu_seconds_total", {}, 0.02 * uptime, at))

    def _workspace(self, workspace: Workspace, instants: Sequence[float], draw: Random) -> Iterator["Sample"]:
        own = {"workspace": workspace.name}
        for at in instants:
            yield from self._money(workspace, own, at)
        balance = List("remaining_credits", cause="" if workspace.balance is not None else "rate_limited")
        yield from self._fetches(balance, own | {"api": balance.name}, instants)
        for each in workspace.lists:
            labels = own | {"api": each.name}
            yield from self._fetches(each, labels, instants)
            yield from self._list(each, labels, instants)
            for model in each.models:
                yield from self._model(each, model, labels | {"model": model.name}, instants, draw)

    def _money(self, workspace: Workspace, own: Labels, at: float) -> Iterator["Sample"]:
        ago = self.end - at
        if workspace.balance is not None:
            bought = workspace.balance / 2 if ago > workspace.bought_ago > 0 else 0
            yield _sample(
                metrics.REMAINING_CREDITS, own, workspace.balance + workspace.hourly * ago / HOUR - bought, at
            )
        if workspace.plan:
            yield _sample(metrics.PLAN_CREDITS, own, workspace.plan, at)
            yield _sample(metrics.PLAN_RENEWAL, own, self.end + 9 * DAY, at)
        if workspace.price:
            yield _sample(metrics.CREDIT_PRICE, {**own, "currency": workspace.currency}, workspace.price, at)

    def _readable(self, each: List, at: float) -> bool:
        return not each.cause or self.end - at > each.failing_for

    def _fetches(self, each: List, labels: Labels, instants: Sequence[float]) -> Iterator["Sample"]:
        failures = dict.fromkeys(CAUSES, 0)
        for number, at in enumerate(instants):
            readable = self._readable(each, at)
            if not readable:
                failures[each.cause] += 1
            yield _sample(metrics.UP, labels, int(readable), at)
            yield _sample(metrics.FETCHES, labels, number, at)
            yield _sample(metrics.FETCH_DURATION, labels, 0.8, at)
            if readable or each.failing_for < self.hours * HOUR:
                yield _sample(
                    metrics.LAST_SUCCESS, labels, min(at, self.end - each.failing_for) if each.cause else at, at
                )
            for cause, count in failures.items():
                yield _sample(metrics.FETCH_FAILURES, {**labels, "cause": cause}, count, at)

    def _list(self, each: List, labels: Labels, instants: Sequence[float]) -> Iterator["Sample"]:
        for at in instants:
            if each.models:
                yield _sample(metrics.LEDGER_TASKS, labels, 340, at)
                yield _sample(metrics.LEDGER_CREATED, labels, self.end - 40 * DAY, at)
            if self._readable(each, at):
                yield _sample(metrics.FETCH_BYTES, labels, 1.2e6, at)
                yield _sample(metrics.LIST_OLDEST, labels, at - 3 * DAY, at)
                yield _sample(metrics.LIST_NEWEST, labels, at - 20, at)
                yield _sample(metrics.INVALID_TASKS, {**labels, "field": "credits_used"}, 0, at)

    def _model(
        self, each: List, model: Model, labels: Labels, instants: Sequence[float], draw: Random
    ) -> Iterator["Sample"]:
        counts = Counts()
        for at in instants:
            if self._readable(each, at):
                _happen(counts, model, self.step, self.end - at, draw)
                yield from self._listed(model, labels, counts, at, draw)
            yield from _counters(model, labels, counts, at)

    def _listed(self, model: Model, labels: Labels, counts: Counts, at: float, draw: Random) -> Iterator["Sample"]:
        waiting = draw.randint(0, model.waiting) + (3 if model.stuck > self.end - at else 0)
        entries = {"pending": 0, "running": waiting, "done": 300, "failed": min(60, sum(counts.failed.values()))}
        for status, number in entries.items():
            of_status = {**labels, "status": status}
            yield _sample(metrics.TASKS, of_status, number, at)
            if model.credits:
                yield _sample(metrics.TASKS_CREDITS, of_status, number * model.credits, at)
        if waiting:
            oldest = self.end - model.stuck if model.stuck > self.end - at else at - 20
            yield _sample(metrics.OLDEST_TASK, {**labels, "status": "running"}, oldest, at)


Sample = tuple[str, Labels, float, float]


def night() -> tuple[Workspace, ...]:
    """Return workspaces: two with incidents, one partly and one completely unreadable, and one quiet."""
    text = (
        Model("gemini-2.5-flash", 160, 5, 0.5),
        Model("gemini-2.5-pro", 60, 25, 2.5, incident=Incident(1500, 0.87, "rate_limited")),
        Model("gemini-3.1-flash-lite-preview", 40, 3, 0.25, failing=0.05, reason="timeout"),
    )
    calm = (Model("gemini-2.5-flash", 160, 5, 0.5), Model("gemini-2.5-pro", 60, 25, 2.5))
    lipsyncs = (Model("lipsyncs_v2", 12, 240, 15, stuck=5400),)
    videos = (Model("veo-3", 20, 200, 40), Model("seedance-2.0", 14, 150, 30))
    assets = (
        Model("sora-2", 30, 180, 35, incident=Incident(3 * HOUR, 0.75, "content_filtered")),
        Model("nano-banana-pro", 45, 20, 4),
    )
    quiet = (
        List("text_generator", (Model("gemini-2.5-flash", 160, 5, 0.5, failing=0),)),
        List("ai_scripts", (Model("ai_scripts", 30, 5, 1, failing=0),)),
        List("text_to_speech", (Model("text_to_speech", 25, 10, 1, failing=0),)),
        List("product_to_videos", (Model("image", 5, 60, 0, failing=0),)),
    )
    return (
        Workspace(
            "tokyo",
            (List("text_generator", text), List("lipsyncs_v2", lipsyncs)),
            balance=61,
            hourly=440,
            plan=20_000,
            price=0.12,
            instances=("exporter-0:10081", "exporter-1:10081"),
        ),
        Workspace(
            "berlin",
            (
                List("text_generator", calm),
                List("asset_generator", assets),
                List("link_to_videos", (Model("veo-3", 4, 200, 40),), cause="rate_limited", failing_for=3000),
            ),
            balance=48_230,
            hourly=1700,
            plan=50_000,
            price=0.095,
            currency="EUR",
            bought_ago=1.5 * HOUR,
        ),
        Workspace(
            "lagos",
            (List("text_generator", calm), List("link_to_videos", videos, cause="auth", failing_for=2400)),
            balance=197_873,
            hourly=1700,
        ),
        Workspace("quiet", quiet, 5_000, 140),
        Workspace("dark", (List("text_generator", cause="connection"),), balance=None),
    )


def _happen(counts: Counts, model: Model, step: float, ago: float, draw: Random) -> None:
    """Submit and finish the tasks of one step."""
    incident = model.incident if model.incident and ago < model.incident.ago else None
    ratio, reason = (incident.ratio, incident.reason) if incident else (model.failing, model.reason)
    for _ in range(int(model.hourly * step / HOUR + draw.random())):
        counts.submitted += 1
        counts.finished += 1
        counts.used += model.credits
        if draw.random() < ratio:
            counts.failed[reason] += 1
            counts.in_a_row += 1
            counts.wasted += model.credits
        else:
            counts.in_a_row = 0


def _counters(model: Model, labels: Labels, counts: Counts, at: float) -> Iterator[Sample]:
    yield _sample(metrics.TASKS_SUBMITTED, labels, counts.submitted, at)
    yield _sample(metrics.TASKS_FINISHED, labels, counts.finished, at)
    for reason, failed in counts.failed.items():
        yield _sample(metrics.TASKS_FAILED, {**labels, "reason": reason}, failed, at)
    yield _sample(metrics.TASKS_VANISHED, labels, 0, at)
    yield _sample(metrics.CONSECUTIVE_FAILED_TASKS, labels, counts.in_a_row, at)
    if model.credits:
        yield _sample(metrics.CREDITS_USED, labels, counts.used, at)
        yield _sample(metrics.CREDITS_REFUNDED, labels, 0, at)
        yield _sample(metrics.FAILED_CREDITS_USED, labels, counts.wasted, at)
        yield _sample(metrics.FAILED_CREDITS_REFUNDED, labels, 0, at)
    name = metrics.TASK_DURATION.name
    for bucket in BUCKETS:
        below = int(counts.finished * (1 - exp(-((bucket / model.seconds) ** 2))))
        bound = "+Inf" if bucket == BUCKETS[-1] else f"{bucket:g}"
        yield f"{name}_bucket", {**labels, "le": bound}, below, at
    yield f"{name}_count", labels, counts.finished, at
    yield f"{name}_sum", labels, counts.finished * model.seconds, at


def _sample(family: Family, labels: Labels, value: float, at: float) -> Sample:
    return family.name, labels, value, at


def _told_by(instances: Sequence[str], sample: Sample) -> Iterator[str]:
    """Write a sample as each exporter would serve it, with a target's labels, including one of the site's own."""
    name, labels, value, at = sample
    for instance in instances:
        target = {"instance": instance, "job": "creatify-exporter", "namespace": "live", "team": "video", **labels}
        written = ",".join(f'{label}="{text}"' for label, text in target.items())
        yield f"{name}{{{written}}} {value:.10g} {at:.3f}\n"
