"""Overview: which workspace, list and model fails, why, since when, what it costs, and whether the balance lasts."""

from dataclasses import replace

from grafana_foundation_sdk.builders import table, timeseries
from grafana_foundation_sdk.models import dashboard as models

from creatify_exporter.metrics import TASK_DURATION, TASKS, TASKS_FAILED, TASKS_FINISHED, TASKS_SUBMITTED
from grafana import alerts, panels
from grafana.frame import framed, row
from grafana.limits import BALANCE_STEPS, LASTS_STEPS, NONE_STEPS, RATIO_STEPS, SLOW_STEPS, STUCK_STEPS, limit
from grafana.palette import FAIR, OTHERS, PLAIN
from grafana.panels import (
    CURRENCY,
    FAILING,
    LIST,
    LIST_LINE,
    MODEL,
    MODEL_LINE,
    UNCOUNTED,
    UNREAD,
    WORKSPACE,
    Column,
    Line,
)
from grafana.queries import (
    AT_END,
    OF_LIST,
    OF_MODEL,
    OF_WORKSPACE,
    WAITING,
    balance,
    cost,
    down,
    failed_ratio,
    failing_now,
    gauge,
    increase,
    known,
    lasts,
    lists,
    oldest_waiting,
    others,
    per_task,
    quantile,
    rate,
    spent,
    summed,
    top,
)

MOST_SUBMITTED = increase(TASKS_SUBMITTED, "$__range", at=AT_END)
MOST_FINISHED = increase(TASKS_FINISHED, "$__range", at=AT_END)
NONE_WAITS = {"0": ("none", PLAIN)}


def build() -> models.Dashboard:
    """Return the dashboard."""
    return framed(
        "overview",
        "Which workspace, list and model fails, why, since when, what it costs, and whether the balance lasts.",
        row("", _workspaces(), _cost(), alerts.alerts_table(height=12), _lists()),
        row("How much", _flow(), _queue()),
        row("How fast", _duration_by_list(), _duration_by_model()),
        row("Models", _finished_by_model(), _models()),
    )


def _workspaces() -> table.Panel:
    return panels.table(
        "Workspaces",
        "A row for each workspace that an exporter reported in the last six hours, the one with the most alerts first."
        " Failed: failure ratio of the worst model, over 15 minutes if five tasks finished in them, otherwise over an"
        " hour. Waits: how long the oldest waiting task has been waiting; unread if no list was read for five minutes."
        " Down: lists not read for five minutes. Lasts for: at the rate of the last 24 hours; unknown if no balance"
        " could be read for a quarter of an hour.",
        (WORKSPACE,),
        Column("Alerts", alerts.count(), width=71, steps=NONE_STEPS, empty="no rules"),
        Column(FAILING, failing_now(OF_WORKSPACE), "percentunit", 1, 87, steps=RATIO_STEPS),
        Column("Waits", oldest_waiting(OF_WORKSPACE), "s", 0, 72, steps=STUCK_STEPS, words=NONE_WAITS, empty="unread"),
        Column("Down", down(), width=55, steps=NONE_STEPS),
        Column("Balance", balance(), width=78, steps=BALANCE_STEPS, empty="unknown"),
        Column("Lasts for", lasts(), "s", 1, 83, steps=LASTS_STEPS, empty="unknown"),
        known=known(OF_WORKSPACE),
        sort=("Alerts",),
        empty="no exporter has reported a workspace for six hours",
        span=13,
        height=7,
        runbooks=("CreatifyExporterAbsent", "CreatifyDown", "CreatifyCreditsLow", "CreatifyCreditsRunOut"),
    )


def _cost() -> table.Panel:
    return panels.table(
        "Cost, 24 h",
        "The cost of each model's tasks in the last 24 hours, minus refunds: in the currency of the workspace's plan,"
        " or in credits if the configuration has no price. Rounded; the tables below show cents.",
        (WORKSPACE, replace(LIST, width=117), replace(MODEL, width=110)),
        Column("24 h", cost(summed(OF_MODEL, spent("1d"))), width=78),
        extra=(CURRENCY,),
        sort=("24 h",),
        empty=UNCOUNTED,
        span=11,
        height=7,
        runbooks=("CreatifyCreditBurnHigh",),
    )


def _by_day(labels: str) -> tuple[Column, ...]:
    """Return the columns for lists and models."""
    durations = increase(TASK_DURATION, "1d", part="_bucket")
    return (
        Column(FAILING, failing_now(labels), "percentunit", 1, 103, steps=RATIO_STEPS),
        Column("Waiting", summed(labels, gauge(TASKS, WAITING)), width=67, empty="unread"),
        Column("Waits", oldest_waiting(labels), "s", 0, 72, steps=STUCK_STEPS, words=NONE_WAITS, empty="unread"),
        Column("Tasks, 24 h", summed(labels, increase(TASKS_SUBMITTED, "1d")), width=94),
        Column("Failed, 24 h", failed_ratio(labels, "1d"), "percentunit", 1, 94, steps=RATIO_STEPS),
        Column("90 % within", quantile(0.9, labels, durations), "s", 0, 98, steps=SLOW_STEPS),
        Column("Credits, 24 h", summed(labels, spent("1d")), width=103),
        Column("Each", per_task(labels, "1d"), panels.DIGITS, 2, 60),
        Column("Cost, 24 h", cost(summed(labels, spent("1d"))), decimals=2, width=87),
    )


def _lists() -> table.Panel:
    return panels.table(
        "Lists",
        "Each list of tasks, the one with the worst failures first, then the one with the longest wait. Failed: failure"
        " ratio of the worst model, over 15 minutes if five tasks finished in them, otherwise over an hour. Waits: how"
        " long the oldest waiting task has been waiting. 90 % within: the time in which nine in ten tasks of 24 hours"
        " finished. Unread: no fetch has read the list for five minutes.",
        (WORKSPACE, LIST),
        *(column for column in _by_day(OF_LIST) if column.heading != "Each"),
        known=f"count by ({OF_LIST}) ({lists()})",
        extra=(CURRENCY,),
        sort=(FAILING, "Waits"),
        empty=UNCOUNTED,
        runbooks=("CreatifyTasksStuck", "CreatifyNothingFinishes", "CreatifyTasksSlow"),
    )


def _models() -> table.Panel:
    columns = [column for column in _by_day(OF_MODEL) if column.heading not in ("Credits, 24 h", "Waits")]
    return panels.table(
        "Models",
        "Each model, the one with the worst failures first. Each: credits per finished task. Unread: no fetch has read"
        " its list for five minutes.",
        (WORKSPACE, LIST, MODEL),
        *columns,
        known=f"count by ({OF_MODEL}) ({increase(TASKS_SUBMITTED, '1d')})",
        extra=(CURRENCY,),
        sort=(FAILING,),
        empty=UNCOUNTED,
        height=12,
    )


def _flow() -> timeseries.Panel:
    return panels.graph(
        "Tasks a minute",
        "Tasks seen for the first time, tasks that finished, and tasks among these that failed, with the number of"
        " lists read and the number of all lists. A queue builds up while more tasks are submitted than finish.",
        Line(f"60 * sum({rate(TASKS_SUBMITTED)})", "submitted"),
        Line(f"60 * sum({rate(TASKS_FINISHED)})", "finished"),
        Line(f"60 * sum({rate(TASKS_FAILED)})", "failed"),
        *panels.LISTS_READ,
        unit="short",
        empty=UNCOUNTED,
    )


def _queue() -> timeseries.Panel:
    waiting = summed(OF_LIST, gauge(TASKS, WAITING))
    return panels.graph(
        "Waiting tasks",
        "Pending and running entries of the ten lists with the most tasks, and of all others together. A gap: the list"
        " could not be read for five minutes.",
        Line(top(waiting, OF_LIST, MOST_SUBMITTED), LIST_LINE),
        Line(others(waiting, OF_LIST, MOST_SUBMITTED), OTHERS),
        unit="short",
        empty=UNREAD,
        stacked=True,
        runbooks=("CreatifyNothingFinishes",),
    )


def _slow(labels: str) -> str:
    return quantile(0.9, labels, rate(TASK_DURATION, part="_bucket"))


def _duration_by_list() -> timeseries.Panel:
    return panels.graph(
        "90 %, by list",
        "The time in which nine in ten tasks finished, from their creation to the scrape that saw them finished, for"
        " the ten lists that finish the most tasks. A gap: none finished.",
        Line(top(_slow(OF_LIST), OF_LIST, MOST_FINISHED), LIST_LINE),
        unit="s",
        interval="5m",
        empty=UNCOUNTED,
    )


def _duration_by_model() -> timeseries.Panel:
    slow = limit("tasks_slow_seconds_floor")
    return panels.graph(
        "90 %, by model",
        f"The same for the ten models that finish the most tasks. Dashed: below {slow / 60:g} minutes no model counts"
        " as slow.",
        Line(top(_slow(OF_MODEL), OF_MODEL, MOST_FINISHED), MODEL_LINE),
        unit="s",
        interval="5m",
        limit=(slow, FAIR),
        empty=UNCOUNTED,
        runbooks=("CreatifyTasksSlow",),
    )


def _finished_by_model() -> timeseries.Panel:
    finished = f"60 * {summed(OF_MODEL, rate(TASKS_FINISHED))}"
    return panels.graph(
        "Finished a minute",
        "Tasks that reached done or failed, of the ten models that finish the most, and of all others together.",
        Line(top(finished, OF_MODEL, MOST_FINISHED), MODEL_LINE),
        Line(others(finished, OF_MODEL, MOST_FINISHED), OTHERS),
        unit="short",
        empty=UNCOUNTED,
        stacked=True,
        span=24,
    )
