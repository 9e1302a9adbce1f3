"""All exported metrics: the contract with everyone who writes queries."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Final, Literal

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

Kind = Literal["gauge", "counter", "histogram"]


class Family(msgspec.Struct, frozen=True):
    """A metric family; `name` is the name in queries."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


FAMILIES: Final[list[Family]] = []
"""All families, in the order of the exposition."""


def _family(kind: Kind, name: str, labels: tuple[str, ...], text: str) -> Family:
    family = Family(name, kind, labels, text)
    FAMILIES.append(family)
    return family


_gauge = partial(_family, "gauge")
_counter = partial(_family, "counter")
_histogram = partial(_family, "histogram")

_BY_API: Final = ("workspace", "api")
_BY_MODEL: Final = ("workspace", "api", "model")
_BY_STATUS: Final = ("workspace", "api", "model", "status")

# From the snapshot: the list as it is now. Absent while the last fetch failed.
TASKS = _gauge("creatify_tasks", _BY_STATUS, "Tasks in the list.")
TASKS_CREDITS = _gauge(
    "creatify_tasks_credits",
    _BY_STATUS,
    "Credits used by the tasks in the list; what has been spent over time is creatify_credits_used_total.",
)
OLDEST_TASK = _gauge(
    "creatify_oldest_task_created_timestamp_seconds",
    _BY_STATUS,
    "When the oldest pending or running task in the list was created.",
)
LIST_OLDEST = _gauge(
    "creatify_list_oldest_created_timestamp_seconds", _BY_API, "When the oldest task in the list was created."
)
LIST_NEWEST = _gauge(
    "creatify_list_newest_created_timestamp_seconds", _BY_API, "When the newest task in the list was created."
)
INVALID_TASKS = _gauge(
    "creatify_invalid_tasks",
    (*_BY_API, "field"),
    "Entries of the list that cannot be read, by the field at fault; task if the entry is not an object.",
)
REMAINING_CREDITS = _gauge("creatify_remaining_credits", ("workspace",), "Balance of the workspace.")

# From the configuration; absent without a plan.
PLAN_CREDITS = _gauge("creatify_plan_credits", ("workspace",), "Credits in the configured plan.")
PLAN_RENEWAL = _gauge(
    "creatify_plan_renewal_timestamp_seconds", ("workspace",), "When the configured plan renews next (UTC)."
)
CREDIT_PRICE = _gauge(
    "creatify_credit_price", ("workspace", "currency"), "Configured price of one credit, in the currency."
)

# From the ledger: the counts so far. Each task is counted once, even across restarts.
TASKS_SUBMITTED = _counter("creatify_tasks_submitted_total", _BY_MODEL, "Tasks seen for the first time.")
TASKS_FINISHED = _counter("creatify_tasks_finished_total", _BY_MODEL, "Tasks that reached done or failed.")
TASKS_FAILED = _counter(
    "creatify_tasks_failed_total",
    (*_BY_MODEL, "reason"),
    "Tasks that reached failed, by the reason that was given first.",
)
TASKS_VANISHED = _counter(
    "creatify_tasks_vanished_total",
    _BY_MODEL,
    "Tasks that left the list unfinished, counted once they have been absent for ledger.settle_after.",
)
CONSECUTIVE_FAILED_TASKS = _gauge(
    "creatify_consecutive_failed_tasks",
    _BY_MODEL,
    "Tasks that have failed since one was last done; 0 after a list with a newly done task.",
)
CREDITS_USED = _counter(
    "creatify_credits_used_total",
    _BY_MODEL,
    "Increases of the tasks' credits_used; what was spent is used less refunded.",
)
CREDITS_REFUNDED = _counter("creatify_credits_refunded_total", _BY_MODEL, "Decreases of the tasks' credits_used.")
FAILED_CREDITS_USED = _counter(
    "creatify_failed_tasks_credits_used_total",
    _BY_MODEL,
    "The part of the credits used that went into tasks that failed.",
)
FAILED_CREDITS_REFUNDED = _counter(
    "creatify_failed_tasks_credits_refunded_total",
    _BY_MODEL,
    "The part of the credits refunded that came from tasks that failed.",
)
TASK_DURATION = _histogram(
    "creatify_task_duration_seconds",
    _BY_MODEL,
    "From a task's creation to the fetch that first saw it finished; its resolution is the scrape interval.",
)

# About the exporter.
UP = _gauge("creatify_up", _BY_API, "Whether the last fetch was complete, in time for the scrape, and counted.")
LAST_SUCCESS = _gauge(
    "creatify_last_success_timestamp_seconds", _BY_API, "When a complete list was last received and counted."
)
FETCH_DURATION = _gauge("creatify_last_fetch_duration_seconds", _BY_API, "How long the last fetch took.")
FETCH_BYTES = _gauge("creatify_last_fetch_response_bytes", _BY_API, "Size of the last answer, decoded.")
FETCHES = _counter("creatify_fetches_total", _BY_API, "Fetches that have ended.")
FETCH_FAILURES = _counter(
    "creatify_fetch_failures_total",
    (*_BY_API, "cause"),
    "Fetches that brought no complete answer, or one that could not be counted, by cause.",
)
BUILD_INFO = _gauge(
    "creatify_exporter_build_info",
    ("version", "revision", "python"),
    "Always 1; the exporter's version, its revision and Python's version.",
)
LEDGER_TASKS = _gauge("creatify_exporter_ledger_tasks", _BY_API, "Tasks that the ledger tracks.")
LEDGER_CREATED = _gauge(
    "creatify_exporter_ledger_created_timestamp_seconds", _BY_API, "When the first list ever was recorded."
)
RELOAD_SUCCESSFUL = _gauge(
    "creatify_exporter_config_last_reload_successful",
    (),
    "Whether the last attempt to load the configuration succeeded.",
)
RELOAD_TIME = _gauge(
    "creatify_exporter_config_last_reload_success_timestamp_seconds",
    (),
    "When the configuration was last loaded successfully.",
)

WEB_CONFIG_RELOAD_SUCCESSFUL = _gauge(
    "creatify_exporter_web_config_last_reload_successful",
    (),
    "Whether the web configuration file was read successfully when it last changed.",
)


class ScrapeRegistry:
    """Collects samples and yields them as families, in the order of `FAMILIES`; families without samples are left out.

    For `prometheus_client` it is a registry, made for one answer.
    """

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}
        self._others: list[Metric] = []

    def add(self, family: Family, labels: Sequence[str], *values: object) -> None:
        """Add a sample: a value, or the cumulative buckets of a histogram, the last one `+Inf`, and its sum."""
        made = self._families.get(family.name)
        if made is None:
            made = self._families[family.name] = _KINDS[family.kind](family.name, family.help, labels=family.labels)
        made.add_metric(labels, *values)  # type: ignore[union-attr]  # all three kinds have it

    def include(self, metrics: Iterable[Metric]) -> None:
        """Add the families of another collector."""
        self._others.extend(metrics)

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        yield from (self._families[family.name] for family in FAMILIES if family.name in self._families)
        yield from self._others


_KINDS: Final = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
