"""Failures: which model fails, why, whether it is a spike, and since when."""

from grafana_foundation_sdk.builders import table, timeseries
from grafana_foundation_sdk.models import dashboard as models

from creatify_exporter.metrics import CONSECUTIVE_FAILED_TASKS, TASKS_FAILED, TASKS_FINISHED
from grafana import panels
from grafana.alerts import alerts_table
from grafana.frame import framed, row
from grafana.limits import RATIO_STEPS, limit, percent
from grafana.palette import BAD, FAIR, OTHERS, PLAIN
from grafana.panels import LIST, LIST_LINE, MODEL, MODEL_LINE, REASON, UNCOUNTED, WORKSPACE, Column, Line
from grafana.queries import (
    AT_END,
    OF_LIST,
    OF_MODEL,
    counted,
    failed_ratio,
    gauge,
    increase,
    main,
    others,
    rate,
    recorded,
    share,
    summed,
    top,
)

SPIKE = "failure_spike_ratio_floor"
"""Below it nothing is a spike for CreatifyFailureSpike."""
MOST_FAILED = increase(TASKS_FAILED, "$__range", at=AT_END)


def build() -> models.Dashboard:
    """Return the dashboard."""
    return framed(
        "failures",
        "Which tasks fail, whether that is unusual, why, and what to do about it.",
        row("", _models(), alerts_table()),
        row("Is it a spike?", _ratio(), _nearness()),
        row("Why?", _by_reason(), _reasons()),
        row("Where?", _by_list(), _by_model()),
    )


def _models() -> table.Panel:
    return panels.table(
        "Models",
        "Each model, the one with the most failed tasks in the last hour first, and their most frequent reason. In a"
        " row: tasks that failed since one was last done. Near a spike: from 100 % on, CreatifyFailureSpike fires.",
        (WORKSPACE, LIST, MODEL),
        Column("Failed, 1 h", summed(OF_MODEL, increase(TASKS_FAILED, "1h")), width=98),
        Column("In a row", _in_a_row(), width=72, steps=panels.steps(PLAIN, (2, FAIR), (4, BAD))),
        Column("15 min", failed_ratio(OF_MODEL, "15m"), "percentunit", 1, 62, steps=RATIO_STEPS),
        Column("1 h", failed_ratio(OF_MODEL, "1h"), "percentunit", 1, 62, steps=RATIO_STEPS),
        Column("", main("reason", OF_MODEL, TASKS_FAILED, "1h")),
        Column("Near a spike", _near_a_spike(), "percentunit", 0, 100, steps=panels.steps(PLAIN, (1, BAD))),
        Column("24 h", failed_ratio(OF_MODEL, "1d"), "percentunit", 1, 62, steps=RATIO_STEPS),
        extra=(REASON,),
        sort=("Failed, 1 h", "24 h"),
        empty=UNCOUNTED,
        height=9,
        runbooks=("CreatifyModelFailing", "CreatifyFailureSpike", "CreatifyFailuresHigh"),
    )


def _in_a_row() -> str:
    """Return how many tasks have failed since one was last done, whatever the window and volume."""
    return f"max by ({OF_MODEL}) ({gauge(CONSECUTIVE_FAILED_TASKS)})"


def _near_a_spike() -> str:
    """Return how close each model is to an alert, in the closest of its four windows.

    The alert requires both the ratio and the number of failed tasks, so the farther of the two counts.
    """
    windows = " or ".join(
        f'label_replace({_near_in(window)}, "window", "{window}", "", "")' for window in ("5m", "15m", "30m", "1h")
    )
    return f"max by ({OF_MODEL}) ({windows})"


def _near_in(window: str) -> str:
    limits = recorded("model:creatify_tasks_failed:ratio_limit")
    ratio = f"({recorded(f'model:creatify_tasks_failed:ratio{window}')} / {limits})"
    excess = recorded(f"model:creatify_tasks_failed:excess{window}")
    enough = f"(clamp_min({excess}, 0) / {limit('failure_spike_lasting_excess_tasks')})"
    return f"({ratio} < {enough} or {enough})"


def _ratio() -> timeseries.Panel:
    ratio = share(OF_MODEL, rate(TASKS_FAILED), rate(TASKS_FINISHED))
    return panels.graph(
        "Failure ratio",
        "Share of finished tasks that failed, for the ten models with the most failures, in steps of five minutes or"
        f" more. Dashed: below {percent(SPIKE)} nothing counts as a spike. A gap: none finished.",
        Line(top(ratio, OF_MODEL, MOST_FAILED), MODEL_LINE),
        unit="percentunit",
        interval="5m",
        most=1,
        limit=(limit(SPIKE), BAD),
        empty=UNCOUNTED,
        runbooks=("CreatifyFailureSpike", "CreatifyModelFailing"),
    )


def _nearness() -> timeseries.Panel:
    return panels.graph(
        "Near a spike",
        "How close each model is to CreatifyFailureSpike, by the lesser of two shares: its failure ratio as a share of"
        " its limit, which the recording rules derive from its last day; and its failed tasks beyond"
        f" {percent('failure_spike_tolerated_share')} of that limit as a share of the required"
        f" {limit('failure_spike_lasting_excess_tasks'):g}. The alert fires at 100 % for five minutes, or at once with"
        f" {limit('failure_spike_excess_tasks'):g} failed tasks too many.",
        Line(top(_near_a_spike(), OF_MODEL, MOST_FAILED), MODEL_LINE),
        unit="percentunit",
        limit=(1, BAD),
        empty="nothing finished, or Prometheus has not loaded the rules",
        runbooks=("CreatifyFailureSpike",),
    )


def _by_reason() -> timeseries.Panel:
    return panels.bars(
        "By reason",
        "Failed tasks by the class of the given reason; each bar counts since the bar before. The setting"
        " failure_reasons assigns texts to classes; creatify-exporter classify shows them.",
        Line(counted("reason", rate(TASKS_FAILED)), "{{reason}}"),
        empty=UNCOUNTED,
        span=10,
    )


def _reasons() -> table.Panel:
    failed = summed(f"{OF_MODEL}, reason", increase(TASKS_FAILED, "1d"))
    return panels.table(
        "Reasons, 24 h",
        "Failed tasks of the last 24 hours. Many under other: texts that no class matches yet.",
        (REASON, WORKSPACE, LIST, MODEL),
        Column("24 h", f"{failed} > 0.5 or topk(1, 0 * {failed})", width=78),
        sort=("24 h",),
        empty=UNCOUNTED,
        span=14,
        height=10,
    )


def _by_list() -> timeseries.Panel:
    failed = counted(OF_LIST, rate(TASKS_FAILED))
    return panels.bars(
        "By list",
        "Failed tasks of the ten lists that fail the most, and of all others; each bar counts since the bar before.",
        Line(top(failed, OF_LIST, MOST_FAILED), LIST_LINE),
        Line(others(failed, OF_LIST, MOST_FAILED), OTHERS),
        empty=UNCOUNTED,
    )


def _by_model() -> timeseries.Panel:
    failed = counted(OF_MODEL, rate(TASKS_FAILED))
    return panels.bars(
        "By model",
        "Failed tasks of the ten models that fail the most, and of all others; each bar counts since the bar before.",
        Line(top(failed, OF_MODEL, MOST_FAILED), MODEL_LINE),
        Line(others(failed, OF_MODEL, MOST_FAILED), OTHERS),
        empty=UNCOUNTED,
    )
