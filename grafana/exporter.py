"""Exporter: does it see the list, how fresh, how fast, what fails, and is its ledger in order."""

from typing import Final

from grafana_foundation_sdk.builders import bargauge, stat, table, timeseries
from grafana_foundation_sdk.models import dashboard as models

from creatify_exporter import metrics
from grafana import panels
from grafana.frame import framed, row
from grafana.limits import limit
from grafana.panels import BAD, FAIR, GOOD, PLAIN, steps
from grafana.queries import counted, gauge, increase, rate, selector, summed

FEED: Final = "{{workspace}} {{api}}"
OLD: Final = limit("gap_seconds")
OWN: Final = f"and on (instance, job) {metrics.BUILD_INFO.name}"
"""Only processes that are this exporter."""


def build() -> models.Dashboard:
    """Return the dashboard."""
    return framed(
        "creatify-exporter",
        "Exporter",
        "Whether the exporter sees Creatify's list, how fresh it is, what fails, and whether the ledger is in order.",
        row("Now", _up(), _age(), _failing(), _ledger_failing(), _configuration(), _exporters()),
        row("Fetches", _causes(), _freshness(), _fetch_time(), _size()),
        row("List", _entries(), _window(), _invalid(), _unknown()),
        row("Ledger", _tracked(), _vanished(), _ledger_created()),
        row("Process", _memory(), _cpu(), _versions()),
        listing_all=True,
    )


def _up() -> stat.Panel:
    up = panels.stat(
        "Last fetch",
        "Whether the last fetch was complete and counted; a replica that succeeds is enough.",
        panels.now(gauge(metrics.UP), FEED),
    )
    return (
        panels.named(up)
        .mappings(panels.words(_1=("ok", GOOD), _0=("failed", BAD)))
        .thresholds(steps(BAD, (1, GOOD), empty=BAD))
        .no_value("no exporter")
        .links([panels.runbook("CreatifyDown"), panels.runbook("CreatifyExporterAbsent")])
        .span(6)
    )


def _age() -> stat.Panel:
    return (
        panels.stat(
            "Age of the data",
            "Time since a complete list was last received and counted, of the worst workspace. Unknown: none ever was,"
            " or no exporter answers.",
            panels.now(f"time() - min({gauge(metrics.LAST_SUCCESS)})"),
        )
        .unit("s")
        .thresholds(steps(GOOD, (OLD / 2, FAIR), (OLD, BAD), empty=BAD))
        .no_value("unknown")
        .span(3)
    )


def _failing() -> stat.Panel:
    failures, fetches = increase(metrics.FETCH_FAILURES, "1h"), increase(metrics.FETCHES, "1h")
    return (
        panels.stat(
            "Failed fetches, last hour",
            "The share of fetches, the balance's included, that brought no complete answer.",
            panels.now(f"clamp_max(sum({failures}) / (sum({fetches}) > 0), 1)"),
        )
        .unit("percentunit")
        .decimals(1)
        .thresholds(steps(GOOD, (0.05, FAIR), (0.5, BAD)))
        .no_value("none fetched")
        .span(4)
    )


def _ledger_failing() -> stat.Panel:
    return (
        panels.stat(
            "Ledger failures, last hour",
            "Lists that were read, but could not be recorded; counters stand still meanwhile.",
            panels.now(f"""sum({increase(metrics.FETCH_FAILURES, "1h", 'cause="ledger"')})"""),
        )
        .unit("locale")
        .decimals(0)
        .thresholds(steps(GOOD, (1, BAD)))
        .no_value("none fetched")
        .links([panels.runbook("CreatifyLedgerFailing")])
        .span(4)
    )


def _configuration() -> stat.Panel:
    return (
        panels.stat(
            "Configuration",
            "Whether the configuration could be loaded when it was last tried; the old one holds if not.",
            panels.now(f"min({metrics.RELOAD_SUCCESSFUL.name})", "configuration"),
        )
        .mappings(panels.words(_1=("loaded", GOOD), _0=("refused", BAD)))
        .thresholds(steps(BAD, (1, GOOD), empty=BAD))
        .no_value("no exporter")
        .span(4)
    )


def _exporters() -> stat.Panel:
    return (
        panels.stat(
            "Exporters", "Processes that answer.", panels.now(f"count(count by (instance) ({metrics.BUILD_INFO.name}))")
        )
        .unit("locale")
        .thresholds(steps(BAD, (1, PLAIN), empty=BAD))
        .no_value("none")
        .links([panels.runbook("CreatifyExporterAbsent")])
        .span(3)
    )


def _causes() -> timeseries.Panel:
    return (
        panels.bars(
            "Failed fetches, by cause",
            "Each bar counts the fetches since the bar before that brought no complete answer; of several exporters the"
            " worst.",
            panels.query(counted("cause", rate(metrics.FETCH_FAILURES)), "{{cause}}"),
        )
        .unit("short")
        .decimals(0)
        .interval("5m")
        .no_value("no fetch failed in this time")
        .links([panels.runbook("CreatifyCredentialsRefused"), panels.runbook("CreatifyRateLimited")])
    )


def _freshness() -> timeseries.Panel:
    age = panels.graph(
        "Age of the data",
        f"Time since a complete list was last received and counted. Dashed: after {OLD / 60:g} minutes without one,"
        " what comes with the next is not believed to have happened just now.",
        panels.query(f"time() - {gauge(metrics.LAST_SUCCESS)}", FEED),
    )
    return (
        panels.limited(age)
        .unit("s")
        .thresholds(steps(PLAIN, (OLD, BAD)))
        .no_value("no list was recorded, or no exporter answered, in this time")
        .links([panels.runbook("CreatifyDown")])
    )


def _fetch_time() -> timeseries.Panel:
    return (
        panels.graph(
            "Duration of the last fetch",
            "From the request to the end of the answer, decoded and recorded, of each exporter.",
            panels.query(selector(metrics.FETCH_DURATION), f"{{{{instance}}}} {FEED}"),
        )
        .unit("s")
        .no_value("nothing was fetched in this time")
    )


def _size() -> timeseries.Panel:
    return (
        panels.graph(
            "Size of the last list",
            "Decoded bytes, of each exporter. Beyond fetch.max_body a fetch fails with the cause too_large.",
            panels.query(selector(metrics.FETCH_BYTES), f"{{{{instance}}}} {FEED}"),
        )
        .unit("bytes")
        .no_value("nothing was fetched in this time")
    )


def _entries() -> timeseries.Panel:
    entries = panels.area(
        "Tasks in the list",
        "Entries of the list by status. A gap: the list could not be read.",
        panels.query(summed("status", gauge(metrics.TASKS)), "{{status}}"),
    )
    panels.colored(entries, done="green", failed="red", pending="yellow", running="blue", unknown="purple")
    return entries.unit("short").no_value("the list was unreadable in this time")


def _window() -> timeseries.Panel:
    return (
        panels.graph(
            "How far the list reaches back",
            "The age of the oldest and of the newest task in the list. What leaves the list unseen is never counted, so"
            " the oldest must be much older than the scrape interval.",
            panels.query(f"time() - {gauge(metrics.LIST_OLDEST)}", "{{workspace}} oldest"),
            panels.query(f"time() - {gauge(metrics.LIST_NEWEST)}", "{{workspace}} newest"),
        )
        .unit("s")
        .no_value("the list was empty or unreadable in this time")
        .links([panels.runbook("CreatifyListShrunk")])
    )


def _invalid() -> bargauge.Panel:
    return (
        panels.bar_gauge(
            "Unreadable entries in the list",
            "Entries that cannot be read, or not fully, by the field at fault; task where the entry is no object.",
            panels.now(summed("field", gauge(metrics.INVALID_TASKS)), "{{field}}"),
        )
        .unit("locale")
        .thresholds(steps(GOOD, (1, BAD)))
        .no_value("the list is unreadable")
        .links([panels.runbook("CreatifyInvalidTasks")])
        .span(16)
    )


def _unknown() -> stat.Panel:
    unknown = gauge(metrics.TASKS, 'status="unknown"')
    return (
        panels.stat(
            "Tasks with an undocumented status",
            "Entries of the list whose status is none of pending, running, done and failed; they count as unfinished.",
            panels.now(f"sum({unknown}) or 0 * sum({gauge(metrics.TASKS)})"),
        )
        .unit("locale")
        .thresholds(steps(GOOD, (1, FAIR)))
        .no_value("the list is unreadable")
        .links([panels.runbook("CreatifyUnknownStatus")])
        .span(8)
        .height(8)
    )


def _tracked() -> timeseries.Panel:
    return (
        panels.graph(
            "Tasks that the ledger tracks",
            "About those of the last 24 hours (ledger.settle_after), and whatever is listed unfinished.",
            panels.query(gauge(metrics.LEDGER_TASKS), FEED),
        )
        .unit("short")
        .span(9)
        .no_value("the ledger was unreadable in this time")
        .links([panels.runbook("CreatifyLedgerFailing")])
    )


def _vanished() -> timeseries.Panel:
    return (
        panels.bars(
            "Vanished tasks, by model",
            "Each bar counts the tasks that left the list unfinished; they are booked a day after they left.",
            panels.query(counted("model", rate(metrics.TASKS_VANISHED)), "{{model}}"),
        )
        .unit("short")
        .decimals(0)
        .interval("5m")
        .span(9)
        .no_value("no task vanished in this time")
    )


def _ledger_created() -> stat.Panel:
    return (
        panels.stat(
            "Counting since",
            "When the ledger recorded its first list. If that is later than you set it up, the ledger was lost."
            " Unknown: it never recorded one, or no exporter answers.",
            panels.now(f"1000 * {gauge(metrics.LEDGER_CREATED)}", FEED),
        )
        .unit("dateTimeFromNow")
        .thresholds(steps(PLAIN))
        .no_value("unknown")
        .span(6)
        .height(8)
    )


def _memory() -> timeseries.Panel:
    return (
        panels.graph(
            "Memory",
            "Resident memory of each exporter; it does not grow with the list.",
            panels.query(f"process_resident_memory_bytes {OWN}", "{{instance}}"),
        )
        .unit("bytes")
        .span(7)
        .no_value("no exporter in this time")
    )


def _cpu() -> timeseries.Panel:
    return (
        panels.graph(
            "Processor",
            "Cores used by each exporter.",
            panels.query(f"rate(process_cpu_seconds_total[$__rate_interval]) {OWN}", "{{instance}}"),
        )
        .unit("percentunit")
        .span(7)
        .no_value("no exporter in this time")
    )


def _versions() -> table.Panel:
    key = "instance, version, revision, python"
    versions = panels.table(
        "Versions",
        "What runs where, and when it last loaded its configuration.",
        ("", f"count by ({key}) ({metrics.BUILD_INFO.name})"),
        ("Configured", f"1000 * max by (instance) ({metrics.RELOAD_TIME.name})"),
        keys={"instance": "Instance", "version": "Version", "revision": "Revision", "python": "Python"},
    )
    panels.column(versions, "Configured", "dateTimeFromNow")
    return versions.unit("locale").thresholds(steps(PLAIN)).no_value("no exporter").span(10)
