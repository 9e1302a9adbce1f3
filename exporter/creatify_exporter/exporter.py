"""A scrape: refreshes the feeds of the workspaces it asks for, and puts what they say into families."""

import calendar
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from itertools import accumulate
from math import isfinite
from typing import Final

from prometheus_client import PlatformCollector, ProcessCollector

from creatify_exporter import __revision__, __version__, metrics
from creatify_exporter.config.schema import Config, Plan
from creatify_exporter.creatify.reasons import Classifier
from creatify_exporter.creatify.task import API, FIELDS, STATUSES
from creatify_exporter.errors import CAUSES, ConfigError
from creatify_exporter.fetcher import Feed, Outcome
from creatify_exporter.lanes import Lanes
from creatify_exporter.ledger.ledger import Account, Ledger, Rules
from creatify_exporter.ledger.state import DURATION_BOUNDS, Key, Total
from creatify_exporter.metrics import Exposition, Family
from creatify_exporter.snapshot import Cell
from creatify_exporter.target import BALANCE, Target

_COUNTERS: Final[dict[Total, Family]] = {
    "submitted": metrics.TASKS_SUBMITTED,
    "finished": metrics.TASKS_FINISHED,
    "failed": metrics.TASKS_FAILED,
    "vanished": metrics.TASKS_VANISHED,
    "credits_used": metrics.CREDITS_USED,
    "credits_refunded": metrics.CREDITS_REFUNDED,
    "failed_credits_used": metrics.FAILED_CREDITS_USED,
    "failed_credits_refunded": metrics.FAILED_CREDITS_REFUNDED,
}


class Visit:
    """One scrape's part in the fetches of one workspace, by the value of the label `api`."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._turns = {api: feed.refresh() for api, feed in target.feeds.items()}

    @property
    def futures(self) -> list[Future[Outcome]]:
        """What the scrape may wait for."""
        return [turn.future for turn in self._turns.values()]

    @property
    def identity(self) -> tuple[object, ...]:
        """What is the same for visits that would be answered alike, as long as all of them are kept."""
        ends = (turn.future.result() if turn.future.done() else turn.future for turn in self._turns.values())
        return (self.target.workspace.name, *map(id, ends))

    def outcome(self, api: str) -> Outcome:
        """Return how the fetch ended; to a scrape that can wait no longer, the late list or that there is none."""
        future, late = self._turns[api]
        if not future.done():
            return late or Outcome(cause="timeout", reason="the fetch goes on, but the scrape could not wait for it")
        outcome = future.result()
        self.target.feeds[api].served(outcome)
        return outcome


class Collector:
    """Holds the targets of a configuration. `clock` returns seconds since the epoch."""

    def __init__(self, config: Config, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self.targets: dict[str, Target] = {}
        self._ledger, self._clock = ledger, clock
        self._lanes = Lanes(config.fetch.max_concurrent, config.fetch.timeout)
        self._own = [ProcessCollector(registry=None), PlatformCollector(registry=None)]
        self._reload_successful, self._loaded_at = True, clock()
        self._take(config)

    def visit(self, names: Iterable[str] | None = None) -> list[Visit]:
        """Start, or join, the fetches of the workspaces named, of all by default; return without waiting for them."""
        targets = self.targets
        return [Visit(targets[name]) for name in (targets if names is None else names)]

    def exposition(self, visits: Sequence[Visit], *, own: bool) -> Exposition:
        """Put what is known into families; `own` adds the exporter's. May wait for the ledger, for seconds."""
        exposition = Exposition()
        for visit in visits:
            self._add_target(exposition, visit)
        if own:
            self._add_own(exposition)
        return exposition

    def reload(self, config: Config) -> None:
        """Go over to another configuration; raise `ConfigError`, and change nothing, where only a restart can."""
        if config.ledger.place != self.config.ledger.place:
            raise ConfigError(["ledger.url: another ledger needs another start; restart the exporter"])
        self._take(config)
        self._reload_successful, self._loaded_at = True, self._clock()

    def ready(self) -> bool:
        """Return whether the ledger has been opened, so that counters can be served. May take seconds."""
        return self._ledger.ready()

    def reload_failed(self) -> None:
        """Show that the last attempt to load the configuration failed."""
        self._reload_successful = False

    def close(self) -> None:
        """Close connections and ledger, when a commit under way has ended."""
        for target in self.targets.values():
            target.close()
        self._ledger.close()

    def _take(self, config: Config) -> None:
        """Keep the targets that have not changed, with their fetches; the others carry on with their counts."""
        before, fetch_before = self.targets, self.config.fetch
        self._ledger.rules = rules(config)
        self._lanes.resize(config.fetch.max_concurrent, config.fetch.timeout)
        self.targets = {
            workspace.name: kept
            if (kept := before.get(workspace.name)) and (kept.workspace, fetch_before) == (workspace, config.fetch)
            else Target(workspace, config.fetch, self._ledger, self._lanes, self._clock, before=kept)
            for workspace in config.workspaces
        }
        self.config = config
        for target in before.values():
            if self.targets.get(target.workspace.name) is not target:
                target.close()
        for name in before.keys() - self.targets.keys():
            self._ledger.put_away(name, API)

    def _add_target(self, exposition: Exposition, visit: Visit) -> None:
        target = visit.target
        # Once, and before the ledger is read: a fetch that ends meanwhile must not show half of itself.
        outcomes = {api: visit.outcome(api) for api in target.feeds}
        account = target.account()
        names = (target.workspace.name, API)
        _add_snapshot(exposition, names, outcomes[API], account)
        if account:
            _add_account(exposition, names, account)
        for api, feed in target.feeds.items():
            _add_feed(exposition, (target.workspace.name, api), feed, outcomes[api])
        if BALANCE in outcomes and (balance := outcomes[BALANCE].balance) is not None:
            exposition.add(metrics.REMAINING_CREDITS, names[:1], balance)
        if target.workspace.plan:
            _add_plan(exposition, names[:1], target.workspace.plan, self._clock())

    def _add_own(self, exposition: Exposition) -> None:
        exposition.add(metrics.BUILD_INFO, (__version__, __revision__, platform.python_version()), 1)
        exposition.add(metrics.RELOAD_SUCCESSFUL, (), self._reload_successful)
        exposition.add(metrics.RELOAD_TIME, (), self._loaded_at)
        for collector in self._own:
            exposition.include(collector.collect())


def rules(config: Config) -> Rules:
    """Return what the ledger has to know of a configuration."""
    classifier = Classifier(config.failure_reasons)
    return Rules(
        reasons=classifier.reasons,
        classify=classifier.classify,
        history=config.ledger.history,
        settle_after=config.ledger.settle_after,
        new_series_hold=config.ledger.new_series_hold,
        max_models=config.labels.max_models,
        models=frozenset(config.labels.models),
    )


def _add_snapshot(exposition: Exposition, names: tuple[str, str], outcome: Outcome, account: Account | None) -> None:
    snapshot = outcome.snapshot
    if snapshot is None:
        return
    for field in FIELDS:
        exposition.add(metrics.INVALID_TASKS, (*names, field), outcome.invalid.get(field, 0))
    if isfinite(snapshot.oldest):
        exposition.add(metrics.LIST_OLDEST, names, snapshot.oldest)
        exposition.add(metrics.LIST_NEWEST, names, snapshot.newest)
    if account is None:
        return  # without the ledger, nobody knows which models have a name of their own
    for model, cells in snapshot.by_model(account.models).items():
        for status in (*STATUSES, "unknown") if "unknown" in cells else STATUSES:
            cell = cells.get(status, Cell())
            exposition.add(metrics.TASKS, (*names, model, status), cell.tasks)
            exposition.add(metrics.TASKS_CREDITS, (*names, model, status), cell.credits)
            if isfinite(cell.oldest):
                exposition.add(metrics.OLDEST_TASK, (*names, model, status), cell.oldest)


def _add_account(exposition: Exposition, names: tuple[str, str], account: Account) -> None:
    values = dict(account.values)
    for key, value in sorted(values.items()):
        if family := _COUNTERS.get(key.total):
            exposition.add(family, (*names, key.model, *([key.label] if key.label else [])), value)
    for model in sorted(account.models):
        counts = accumulate(values[Key(model, "duration_bucket", bound)] for bound in DURATION_BOUNDS)
        buckets = list(zip(DURATION_BOUNDS, counts, strict=True))
        exposition.add_histogram(metrics.TASK_DURATION, (*names, model), buckets, values[Key(model, "duration_sum")])
    exposition.add(metrics.LEDGER_TASKS, names, account.tracked)
    if account.marks.created_at is not None and account.marks.recorded_at is not None:
        exposition.add(metrics.LEDGER_CREATED, names, account.marks.created_at)
        exposition.add(metrics.LAST_SUCCESS, names, account.marks.recorded_at)


def _add_feed(exposition: Exposition, names: tuple[str, str], feed: Feed, outcome: Outcome) -> None:
    exposition.add(metrics.UP, names, outcome.cause is None)
    if feed.last and feed.last.duration is not None:
        exposition.add(metrics.FETCH_DURATION, names, feed.last.duration)
    if feed.last and feed.last.received is not None:
        exposition.add(metrics.FETCH_BYTES, names, feed.last.received)
    exposition.add(metrics.FETCHES, names, feed.fetches)
    for cause in CAUSES:
        exposition.add(metrics.FETCH_FAILURES, (*names, cause), feed.failures[cause])


def _add_plan(exposition: Exposition, names: tuple[str, ...], plan: Plan, now: float) -> None:
    if plan.credits is not None:
        exposition.add(metrics.PLAN_CREDITS, names, plan.credits)
    if plan.renews_on_day is not None:
        exposition.add(metrics.PLAN_RENEWAL, names, renewal(plan.renews_on_day, now))
    if plan.price_per_credit is not None and plan.currency is not None:
        exposition.add(metrics.CREDIT_PRICE, (*names, plan.currency), plan.price_per_credit)


def renewal(day: int, now: float) -> float:
    """Return when a plan renews next: 00:00 UTC on that day of a month, on the last day of a shorter one."""
    today = datetime.fromtimestamp(now, UTC)
    year, month = today.year, today.month
    moment = _day_of_month(year, month, day)
    if moment <= now:
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)  # noqa: PLR2004 - December
        moment = _day_of_month(year, month, day)
    return moment


def _day_of_month(year: int, month: int, day: int) -> float:
    last = calendar.monthrange(year, month)[1]
    return datetime(year, month, min(day, last), tzinfo=UTC).timestamp()
