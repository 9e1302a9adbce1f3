"""Exporter: which lists it reads, how fresh and how fast, what fails, and whether its ledger is in order."""

from typing import Final

from grafana_foundation_sdk.builders import table, timeseries
from grafana_foundation_sdk.models import dashboard as models

from creatify_exporter.metrics import (
    BUILD_INFO,
    FETCH_BYTES,
    FETCH_DURATION,
    FETCH_FAILURES,
    FETCHES,
    INVALID_TASKS,
    LAST_SUCCESS,
    LEDGER_CREATED,
    LEDGER_TASKS,
    LIST_NEWEST,
    LIST_OLDEST,
    RELOAD_SUCCESSFUL,
    RELOAD_TIME,
    TASKS,
    TASKS_VANISHED,
    UP,
    WEB_CONFIG_RELOAD_SUCCESSFUL,
)
from grafana import panels
from grafana.frame import framed, row
from grafana.limits import AGE_STEPS, NONE_STEPS, limit
from grafana.palette import BAD, FAIR, GOOD, OTHERS, PLAIN
from grafana.panels import CAUSE, FETCHED, LIST, LIST_LINE, UNREAD, WORKSPACE, Column, Key, Line, steps
from grafana.queries import (
    AT_END,
    OF_LIST,
    OF_MODEL,
    counted,
    gauge,
    increase,
    known,
    main,
    others,
    rate,
    read,
    selector,
    share,
    summed,
    top,
)

OLD: Final = limit("gap_seconds")
OWN: Final = f"and on (instance, job) {BUILD_INFO.name}"
"""Only processes that are this exporter."""
LOADED: Final = {"1": ("loaded", GOOD), "0": ("refused", BAD)}
NO_EXPORTER: Final = "no exporter answered"
NOTHING_READ: Final = "no list was read, or no exporter answered"


def build() -> models.Dashboard:
    """Return the dashboard."""
    return framed(
        "exporter",
        "Which of Creatify's lists the exporter reads, how fresh they are, what fails, and whether the ledger is in"
        " order.",
        row("", _lists(), _exporters()),
        row("Fetches", _causes(), _age(), _duration(), _size()),
        row("Lists", _entries(), _reach(), _invalid(), _unknown()),
        row("Ledger", _tracked(), _vanished()),
        row("Process", _memory(), _cpu()),
    )


def _lists() -> table.Panel:
    oldest = f"min by ({OF_LIST}) ({gauge(LAST_SUCCESS, window='6h')})"
    ledger = increase(FETCH_FAILURES, "1h", 'cause="ledger"')
    return panels.table(
        "Lists",
        "Each list and balance that an exporter reported in the last six hours. Read: whether any fetch of the last"
        " five minutes was complete and counted. Cause: that of most failed fetches of an hour. Ledger: lists that were"
        " read but could not be recorded, while the counters stand still. Since: when the ledger recorded its first"
        " list; if that is later than you set it up, the ledger was lost.",
        (WORKSPACE, FETCHED),
        Column(
            "Read",
            f"min by ({OF_LIST}) ({read()} or 0 * {gauge(UP, window='6h')})",
            decimals=None,
            width=64,
            words={"1": ("yes", GOOD), "0": ("no", BAD)},
        ),
        Column("Age", f"time() - {oldest}", "s", 0, 80, steps=AGE_STEPS, empty="never"),
        Column(
            "Failed, 1 h",
            share(OF_LIST, increase(FETCH_FAILURES, "1h"), increase(FETCHES, "1h")),
            "percentunit",
            1,
            98,
            steps=steps(PLAIN, (0.05, FAIR), (0.5, BAD)),
        ),
        Column("", main("cause", OF_LIST, FETCH_FAILURES, "1h")),
        Column("Ledger, 1 h", summed(OF_LIST, ledger), width=90, steps=steps(PLAIN, (1, BAD))),
        Column("Tracked", summed(OF_LIST, gauge(LEDGER_TASKS)), width=80),
        Column("Since", f"1000 * max by ({OF_LIST}) ({gauge(LEDGER_CREATED)})", "dateTimeFromNow", None, 120),
        extra=(CAUSE,),
        sort=("+Read", "Failed, 1 h"),
        known=known(OF_LIST),
        empty="no exporter has reported a list for six hours",
        height=9,
        runbooks=("CreatifyDown", "CreatifyCredentialsRefused", "CreatifyRateLimited", "CreatifyLedgerFailing"),
    )


def _exporters() -> table.Panel:
    key = "instance, version, revision, python"
    return panels.table(
        "Exporters",
        "Processes that answer, and when each last loaded its configuration; if the last attempt was refused, the"
        " previous configuration stays in effect.",
        (
            Key("version", "Version", 110),
            Key("revision", "Revision", 110),
            Key("python", "Python", 90),
            Key("instance", "Instance", 150),
        ),
        Column("", f"count by ({key}) ({BUILD_INFO.name})"),
        Column(
            "Configuration",
            f"min by (instance) ({RELOAD_SUCCESSFUL.name})",
            decimals=None,
            width=110,
            words=LOADED,
        ),
        Column(
            "Web configuration",
            f"min by (instance) ({WEB_CONFIG_RELOAD_SUCCESSFUL.name})",
            decimals=None,
            width=145,
            words=LOADED,
        ),
        Column("Loaded", f"1000 * max by (instance) ({RELOAD_TIME.name})", "dateTimeFromNow", None, 130),
        empty=NO_EXPORTER,
        height=6,
        runbooks=("CreatifyExporterAbsent",),
    )


def _causes() -> timeseries.Panel:
    return panels.bars(
        "Failed fetches",
        "Fetches that returned no complete answer, by cause; of several exporters the worst. Each bar counts since the"
        " bar before.",
        Line(counted("cause", rate(FETCH_FAILURES)), "{{cause}}"),
        empty=NO_EXPORTER,
        runbooks=("CreatifyCredentialsRefused", "CreatifyRateLimited"),
    )


def _age() -> timeseries.Panel:
    return panels.graph(
        "Age of the data",
        f"Time since a complete list was last received and counted. Dashed: after {OLD / 60:g} minutes without one, the"
        " rules do not trust the next increases of the counters.",
        Line(f"time() - {gauge(LAST_SUCCESS)}", LIST_LINE),
        unit="s",
        limit=(OLD, BAD),
        empty=NOTHING_READ,
        runbooks=("CreatifyDown",),
    )


def _duration() -> timeseries.Panel:
    return panels.graph(
        "Fetch duration",
        "From the request to the end of the answer, decoded and recorded, by exporter.",
        Line(selector(FETCH_DURATION), f"{LIST_LINE} · {{{{instance}}}}"),
        unit="s",
        empty=NO_EXPORTER,
    )


def _size() -> timeseries.Panel:
    return panels.graph(
        "List size",
        "Decoded bytes, by exporter. Above fetch.max_body a fetch fails with the cause too_large.",
        Line(selector(FETCH_BYTES), f"{LIST_LINE} · {{{{instance}}}}"),
        unit="bytes",
        empty=NOTHING_READ,
    )


def _entries() -> timeseries.Panel:
    return panels.graph(
        "Tasks listed",
        "Entries of the lists by status, with the number of lists read and the number of all lists.",
        Line(summed("status", gauge(TASKS)), "{{status}}"),
        *panels.LISTS_READ,
        unit="short",
        empty=UNREAD,
        stacked=True,
    )


def _reach() -> timeseries.Panel:
    return panels.graph(
        "Reach of the list",
        "The age of the oldest and the newest task in the list. A task that leaves the list before it is seen is never"
        " counted, so the oldest must be much older than the scrape interval.",
        Line(f"time() - {gauge(LIST_OLDEST)}", f"{LIST_LINE} oldest"),
        Line(f"time() - {gauge(LIST_NEWEST)}", f"{LIST_LINE} newest"),
        unit="s",
        empty="no list was read, or all were empty",
        runbooks=("CreatifyListShrunk",),
    )


def _invalid() -> table.Panel:
    return panels.table(
        "Unreadable entries",
        "Entries of the list with an unreadable field, by field; task if the entry is not an object.",
        (WORKSPACE, LIST, Key("field", "Field", 120)),
        Column("Entries", summed(f"{OF_LIST}, field", gauge(INVALID_TASKS)), steps=NONE_STEPS),
        sort=("Entries",),
        empty=UNREAD,
        span=12,
        runbooks=("CreatifyInvalidTasks",),
    )


def _unknown() -> table.Panel:
    unknown = summed(OF_LIST, gauge(TASKS, 'status="unknown"'))
    return panels.table(
        "Undocumented status",
        "Entries of the list with a status that Creatify does not document; they count as unfinished.",
        (WORKSPACE, LIST),
        Column(
            "Entries",
            f"{unknown} or 0 * {summed(OF_LIST, gauge(TASKS))}",
            steps=steps(PLAIN, (1, FAIR)),
        ),
        sort=("Entries",),
        empty=UNREAD,
        span=12,
        runbooks=("CreatifyUnknownStatus",),
    )


def _tracked() -> timeseries.Panel:
    return panels.graph(
        "Tracked tasks",
        "Tasks that the ledger tracks: about those of the last 24 hours (ledger.settle_after), and all unfinished tasks"
        " in the list.",
        Line(gauge(LEDGER_TASKS), LIST_LINE),
        unit="short",
        empty=NOTHING_READ,
        runbooks=("CreatifyLedgerFailing",),
    )


def _vanished() -> timeseries.Panel:
    vanished, total = counted(OF_MODEL, rate(TASKS_VANISHED)), increase(TASKS_VANISHED, "$__range", at=AT_END)
    return panels.bars(
        "Vanished tasks",
        "Tasks that left the list unfinished, counted a day after they left; each bar counts since the bar before.",
        Line(top(vanished, OF_MODEL, total), panels.MODEL_LINE),
        Line(others(vanished, OF_MODEL, total), OTHERS),
        empty=NOTHING_READ,
    )


def _memory() -> timeseries.Panel:
    return panels.graph(
        "Memory",
        "Resident memory of each exporter; it does not grow with the list.",
        Line(f"process_resident_memory_bytes {OWN}", "{{instance}}"),
        unit="bytes",
        empty=NO_EXPORTER,
    )


def _cpu() -> timeseries.Panel:
    return panels.graph(
        "Processor",
        "Cores used by each exporter.",
        Line(f"rate(process_cpu_seconds_total[$__rate_interval]) {OWN}", "{{instance}}"),
        unit="percentunit",
        empty=NO_EXPORTER,
    )
