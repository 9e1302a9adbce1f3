"""A scrape: refreshes the fetchers of its workspaces, and puts their outcomes and the counters into families."""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from itertools import accumulate, chain
from math import isfinite
from typing import Final, NamedTuple

from prometheus_client import PlatformCollector, ProcessCollector

from creatify_exporter import __revision__, __version__, metrics
from creatify_exporter.config.plan import Plan
from creatify_exporter.config.schema import Config, Fetch, Labels, Workspace
from creatify_exporter.creatify.reasons import Classifier
from creatify_exporter.creatify.task import FIELDS, STATUS_LABELS, STATUSES
from creatify_exporter.errors import CAUSES, ConfigError, LedgerUnavailable
from creatify_exporter.fetcher import Fetcher, Outcome, Ticket
from creatify_exporter.forecast import RECENT_DAYS
from creatify_exporter.lanes import Lanes
from creatify_exporter.ledger.ledger import Counters, Ledger
from creatify_exporter.ledger.state import DAY, DURATION_BOUNDS, BookName, Rules, SeriesKey, Total
from creatify_exporter.ledger.store import Day
from creatify_exporter.lists import TaskList
from creatify_exporter.metrics import Family, ScrapeRegistry
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

Sample = tuple[Family, tuple[str, ...], *tuple[object, ...]]
"""The arguments of `ScrapeRegistry.add`: a family, label values, and a value or a histogram."""

_OF_CREDITS: Final = (
    metrics.TASKS_CREDITS,
    metrics.CREDITS_USED,
    metrics.CREDITS_REFUNDED,
    metrics.FAILED_CREDITS_USED,
    metrics.FAILED_CREDITS_REFUNDED,
)


class Scrape(NamedTuple):
    """One scrape of some workspaces: tickets for the fetches that it started or joined, by the label `api`."""

    tickets: list[tuple[Target, dict[str, Ticket]]]

    @property
    def futures(self) -> list[Future[Outcome]]:
        """The futures of the fetches, for the scrape to wait for."""
        return [ticket.future for _, tickets in self.tickets for ticket in tickets.values()]

    @property
    def failed(self) -> bool:
        """Whether a fetch failed or is still running."""
        return any(ticket.outcome().cause for _, tickets in self.tickets for ticket in tickets.values())


class Exporter:
    """Holds the targets of a configuration. `clock` returns seconds since the epoch."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        clock: Callable[[], float] = time.time,
        *,
        process_metrics: bool = True,
    ) -> None:
        self.config = config
        self.targets: dict[str, Target] = {}
        self._ledger, self._clock = ledger, clock
        self._lanes = Lanes(config.fetch.max_concurrent, config.fetch.timeout)
        self._own = [ProcessCollector(registry=None), PlatformCollector(registry=None)] if process_metrics else []
        self._reload_successful, self._loaded_at = True, clock()
        self._apply(config)

    def begin_scrape(self, names: Iterable[str] | None = None, api: str | None = None) -> Scrape:
        """Start or join the fetches of the named workspaces, by default of all; return without waiting for them.

        With `api`, only the fetches of that list or of the balance.
        """
        targets = self.targets
        scraped = [targets[name] for name in (targets if names is None else names)]
        return Scrape([(target, _refresh(target, api)) for target in scraped])

    def begin_first_fetches(self) -> list[Future[Outcome]]:
        """Start or join the fetches of everything not fetched yet, as a scrape does; return their futures."""
        fetchers = [fetcher for target in list(self.targets.values()) for fetcher in target.fetchers.values()]
        return [fetcher.refresh().future for fetcher in fetchers if fetcher.last is None]

    def collect(self, scrape: Scrape, *, own: bool) -> ScrapeRegistry:
        """Put the current values into families; `own` adds the exporter's own. May wait seconds for the ledger."""
        registry = ScrapeRegistry()
        for target, tickets in scrape.tickets:
            self._add_target(registry, target, tickets)
        if own:
            self._add_own(registry)
        return registry

    def recent_days(self) -> list[Day] | None:
        """Return the daily totals of the last days; None if the ledger cannot be read right now."""
        today = int(self._clock() // DAY)
        try:
            return self._ledger.days(today - RECENT_DAYS, today + 1)
        except LedgerUnavailable:
            return None

    def now(self) -> float:
        """Return the time in seconds since the epoch, by the clock that the metrics use."""
        return self._clock()

    def reload(self, config: Config) -> None:
        """Apply another configuration; raise `ConfigError` and change nothing if it needs a restart."""
        if config.ledger.url.identity != self.config.ledger.url.identity:
            raise ConfigError(["ledger.url: a reload cannot change the ledger; restart the exporter"])
        if config.ledger.conninfo:
            self._ledger.store.connect_by(config.ledger.conninfo)
        self._apply(config)
        self._reload_successful, self._loaded_at = True, self._clock()

    def ready(self) -> bool:
        """Return whether the ledger is open, so that counters can be served. May take seconds."""
        return self._ledger.store.ready()

    def reload_failed(self) -> None:
        """Record that the last attempt to load the configuration failed."""
        self._reload_successful = False

    def close(self) -> None:
        """Close the connections and the ledger, after a running commit has ended."""
        for target in self.targets.values():
            target.close()
        self._ledger.close()

    def _apply(self, config: Config) -> None:
        before = self.targets
        self._ledger.rules = rules(config)
        self._lanes.resize(config.fetch.max_concurrent, config.fetch.timeout)
        self.targets = {
            workspace.name: self._target(workspace, config.fetch, before.get(workspace.name))
            for workspace in config.workspaces
        }
        self.config = config
        for target in before.values():
            if self.targets.get(target.workspace.name) is not target:
                target.close()
        for workspace, api in _books(before) - _books(self.targets):
            self._ledger.evict(workspace, api)

    def _target(self, workspace: Workspace, fetch: Fetch, before: Target | None) -> Target:
        """Return the earlier target with its fetches if nothing has changed, or a new one that inherits its counts."""
        if before and (before.workspace, self.config.fetch) == (workspace, fetch):
            return before
        return Target(workspace, fetch, self._ledger, self._lanes, self._clock, before=before)

    def _add_target(self, registry: ScrapeRegistry, target: Target, tickets: Mapping[str, Ticket]) -> None:
        # Once, and before the ledger is read: a fetch that ends in between must not be shown in part.
        outcomes = {api: ticket.outcome() for api, ticket in tickets.items()}
        workspace = target.workspace.name
        for api, outcome in outcomes.items():
            target.fetchers[api].mark_served(outcome)
            if api in target.lists:
                self._add_list(registry, target, target.lists[api], outcome)
            _add_fetcher(registry, (workspace, api), target.fetchers[api], outcome)
        if BALANCE in outcomes and (balance := outcomes[BALANCE].balance) is not None:
            registry.add(metrics.REMAINING_CREDITS, (workspace,), balance)
        # The plan belongs to no list. The scrape of the last fetcher shows it, so that it appears once if each `api`
        # has its own scrape.
        if target.workspace.plan and [*target.fetchers][-1] in outcomes:
            _add_plan(registry, (workspace,), target.workspace.plan, self._clock())

    def _add_list(self, registry: ScrapeRegistry, target: Target, task_list: TaskList, outcome: Outcome) -> None:
        counters = target.counters(task_list.api)
        names = (target.workspace.name, task_list.api)
        # Values that a list does not report are absent, never 0.
        hidden = set() if task_list.tells_credits else set(_OF_CREDITS)
        if not task_list.tells_creation and not (counters and counters.progress.has_dates):
            hidden.add(metrics.TASK_DURATION)
        samples = chain(
            _snapshot_samples(names, outcome, counters, self.config.labels),
            _counter_samples(names, counters) if counters else (),
        )
        for family, labels, *values in samples:
            if family not in hidden:
                registry.add(family, labels, *values)

    def _add_own(self, registry: ScrapeRegistry) -> None:
        registry.add(metrics.BUILD_INFO, (__version__, __revision__, platform.python_version()), 1)
        registry.add(metrics.RELOAD_SUCCESSFUL, (), self._reload_successful)
        registry.add(metrics.RELOAD_TIME, (), self._loaded_at)
        for collector in self._own:
            registry.include(collector.collect())


def _refresh(target: Target, api: str | None) -> dict[str, Ticket]:
    return {name: fetcher.refresh() for name, fetcher in target.fetchers.items() if api in (None, name)}


def _books(targets: Mapping[str, Target]) -> set[BookName]:
    return {(target.workspace.name, api) for target in targets.values() for api in target.lists}


def rules(config: Config) -> Rules:
    """Return the part of a configuration that the ledger needs."""
    classifier = Classifier(config.failure_reasons)
    return Rules(
        reasons=classifier.reasons,
        classify=classifier.classify,
        history=config.ledger.effective_history,
        settle_after=config.ledger.settle_after,
        new_series_hold=config.ledger.new_series_hold,
        max_models=config.labels.max_models,
        models=frozenset(config.labels.models),
    )


def _snapshot_samples(
    names: tuple[str, str], outcome: Outcome, counters: Counters | None, labels: Labels
) -> Iterator[Sample]:
    snapshot = outcome.snapshot
    if snapshot is None:
        return
    for field in FIELDS:
        yield metrics.INVALID_TASKS, (*names, field), outcome.invalid.get(field, 0)
    if isfinite(snapshot.oldest_at):
        yield metrics.LIST_OLDEST, names, snapshot.oldest_at
        yield metrics.LIST_NEWEST, names, snapshot.newest_at
    if counters is None:
        # Only the ledger knows which models have their own label.
        return
    for model, cells in snapshot.by_model(counters.models, labels).items():
        for status in (each for each in STATUS_LABELS if each in STATUSES or each in cells):
            cell = cells.get(status, Cell())
            yield metrics.TASKS, (*names, model, status), cell.tasks
            yield metrics.TASKS_CREDITS, (*names, model, status), cell.credits_used
            if isfinite(cell.oldest_at):
                yield metrics.OLDEST_TASK, (*names, model, status), cell.oldest_at


def _counter_samples(names: tuple[str, str], counters: Counters) -> Iterator[Sample]:
    values = counters.values
    for key, value in sorted(values.items()):
        if family := _COUNTERS.get(key.total):
            yield family, (*names, key.model, *([key.label] if key.label else [])), value
    for model in sorted(counters.models):
        counts = accumulate(values[SeriesKey(model, "duration_bucket", bound)] for bound in DURATION_BOUNDS)
        buckets = list(zip(DURATION_BOUNDS, counts, strict=True))
        yield metrics.TASK_DURATION, (*names, model), buckets, values[SeriesKey(model, "duration_sum")]
    for model, failures in sorted(counters.failure_runs.items()):
        yield metrics.CONSECUTIVE_FAILED_TASKS, (*names, model), failures
    yield metrics.LEDGER_TASKS, names, counters.tracked
    if counters.progress.first_recorded_at is not None and counters.progress.recorded_at is not None:
        yield metrics.LEDGER_CREATED, names, counters.progress.first_recorded_at
        yield metrics.LAST_SUCCESS, names, counters.progress.recorded_at


def _add_fetcher(registry: ScrapeRegistry, names: tuple[str, str], fetcher: Fetcher, outcome: Outcome) -> None:
    registry.add(metrics.UP, names, outcome.cause is None)
    # Read once: a fetch of another scrape may end at any time.
    last = fetcher.last
    if last and last.duration is not None:
        registry.add(metrics.FETCH_DURATION, names, last.duration)
    if last and last.received is not None:
        registry.add(metrics.FETCH_BYTES, names, last.received)
    registry.add(metrics.FETCHES, names, fetcher.ended.total())
    for cause in CAUSES:
        registry.add(metrics.FETCH_FAILURES, (*names, cause), fetcher.ended[cause])


def _add_plan(registry: ScrapeRegistry, names: tuple[str, ...], plan: Plan, now: float) -> None:
    if plan.credits is not None:
        registry.add(metrics.PLAN_CREDITS, names, plan.credits)
    if (renews_at := plan.renews_at(now)) is not None:
        registry.add(metrics.PLAN_RENEWAL, names, renews_at)
    if plan.price_per_credit is not None and plan.currency is not None:
        registry.add(metrics.CREDIT_PRICE, (*names, plan.currency), plan.price_per_credit)
