"""Failures: how many of the tasks, is it a spike, why, of which model, and what to do."""

from typing import Final

from grafana_foundation_sdk.builders import bargauge, stat, table, timeseries
from grafana_foundation_sdk.models import dashboard as models

from creatify_exporter import metrics
from grafana import panels
from grafana.alerts import alerts_table
from grafana.frame import framed, row
from grafana.limits import limit, percent
from grafana.panels import BAD, FAIR, GOOD, PLAIN, steps
from grafana.queries import counted, increase, rate, recorded, share, summed

FAILED: Final = increase(metrics.TASKS_FAILED, "$__range")
FINISHED: Final = increase(metrics.TASKS_FINISHED, "$__range")
SPIKE: Final = "failure_spike_ratio_floor"
"""Below it nothing is a spike for CreatifyFailureSpike."""
RATIO_STEPS: Final = ((limit(SPIKE) / 4, FAIR), (limit(SPIKE), BAD))


def build() -> models.Dashboard:
    """Return the dashboard."""
    return framed(
        "creatify-failures",
        "Failures",
        "Which tasks fail, whether that is unusual, why, and what to do about it.",
        row("Now", _last_hour(), _last_day(), _failed(), _worst_model(), _main_reason(), _vanished()),
        row("Is it a spike?", _ratio_by_model(), _near_the_limit(), alerts_table()),
        row("Why?", _by_reason(), _reasons()),
        row("Which model?", _by_model(), _models_and_reasons()),
    )


def _ratio(window: str) -> str:
    failed, finished = increase(metrics.TASKS_FAILED, window), increase(metrics.TASKS_FINISHED, window)
    return f"clamp_max(sum({failed}) / (sum({finished}) > 0), 1)"


def _last_hour() -> stat.Panel:
    return (
        panels.stat(
            "Failed, last hour",
            "Of the tasks that finished within the last hour, the share that failed.",
            panels.now(_ratio("1h")),
        )
        .unit("percentunit")
        .decimals(1)
        .thresholds(steps(GOOD, *RATIO_STEPS))
        .no_value("none finished")
    )


def _last_day() -> stat.Panel:
    return (
        panels.stat("Failed, last 24 h", "The same over a day: what the hour compares with.", panels.now(_ratio("1d")))
        .unit("percentunit")
        .decimals(1)
        .thresholds(steps(GOOD, *RATIO_STEPS))
        .no_value("none finished")
    )


def _failed() -> stat.Panel:
    return (
        panels.stat("Failed tasks", "Tasks that failed in the time shown.", panels.now(f"sum({FAILED})"))
        .unit("locale")
        .decimals(0)
        .thresholds(steps(PLAIN))
        .no_value("none counted")
    )


def _worst_model() -> stat.Panel:
    enough = f"{summed('model', FINISHED)} >= 10"
    worst = panels.stat(
        "Worst model",
        "The model with the largest share of failed tasks in the time shown, among those that finished ten or more."
        " None: of those nothing failed, or no model finished as many.",
        panels.now(f"topk(1, ({share('model', FAILED, FINISHED)} and {enough}) > 0)", "{{model}}"),
    )
    return (
        panels.named(worst)
        .unit("percentunit")
        .decimals(1)
        .thresholds(steps(GOOD, *RATIO_STEPS))
        .no_value("none")
        .links([panels.runbook("CreatifyModelFailing")])
    )


def _main_reason() -> stat.Panel:
    reason = panels.stat(
        "Main reason",
        "The class of reasons behind most of the failures in the time shown, and how many there were of it.",
        panels.now(f"topk(1, {summed('reason', FAILED)} > 0)", "{{reason}}"),
    )
    return panels.named(reason).unit("locale").decimals(0).thresholds(steps(PLAIN)).no_value("none counted")


def _vanished() -> stat.Panel:
    return (
        panels.stat(
            "Vanished tasks",
            "Tasks that left the list unfinished: nobody will know how they ended. Booked a day after they left.",
            panels.now(f"sum({increase(metrics.TASKS_VANISHED, '$__range')})"),
        )
        .unit("locale")
        .decimals(0)
        .thresholds(steps(GOOD, (1, FAIR)))
        .no_value("none counted")
    )


def _ratio_by_model() -> timeseries.Panel:
    ratio = panels.graph(
        "Failure ratio, by model",
        f"Failed of finished tasks, in steps of 15 minutes. Dashed: below {percent(SPIKE)} nothing counts as a spike. A"
        " gap: none finished.",
        panels.query(share("model", rate(metrics.TASKS_FAILED), rate(metrics.TASKS_FINISHED)), "{{model}}"),
    )
    return (
        panels.limited(ratio)
        .unit("percentunit")
        .interval("15m")
        .max(1)
        .thresholds(steps(PLAIN, RATIO_STEPS[1]))
        .no_value("no task finished in this time")
        .links([panels.runbook("CreatifyFailureSpike"), panels.runbook("CreatifyModelFailing")])
    )


def _near_the_limit() -> timeseries.Panel:
    ratio, allowed = (
        recorded("model:creatify_tasks_failed:ratio15m"),
        recorded("model:creatify_tasks_failed:ratio_limit"),
    )
    near = panels.graph(
        "How near to a spike, by model",
        "The failure ratio of 15 minutes, divided by the model's own limit, which the recording rules derive from its"
        f" last day. Above 100 % it is a spike, if {limit('failure_spike_excess_tasks'):g} tasks more failed than"
        f" {percent('failure_spike_tolerated_share')} of the limit.",
        panels.query(f"max by (model) ({ratio} / {allowed})", "{{model}}"),
    )
    return (
        panels.limited(near)
        .unit("percentunit")
        .thresholds(steps(PLAIN, (1, BAD)))
        .no_value("nothing finished in this time, or Prometheus has not loaded the recording rules")
        .links([panels.runbook("CreatifyFailureSpike")])
    )


def _by_reason() -> timeseries.Panel:
    return (
        panels.bars(
            "Failed tasks, by reason",
            "Each bar counts the failures since the bar before, by the class of the reason that was given. Which text"
            " belongs to which class is configured as failure_reasons; creatify-exporter classify shows it.",
            panels.query(counted("reason", rate(metrics.TASKS_FAILED)), "{{reason}}"),
        )
        .unit("short")
        .decimals(0)
        .interval("5m")
        .no_value("no task failed in this time")
    )


def _reasons() -> bargauge.Panel:
    return (
        panels.bar_gauge(
            "Failed in all, by reason",
            "Failed tasks in the time shown. Much under other: texts that no class knows yet.",
            panels.now(f"sort_desc({summed('reason', FAILED)} > 0)", "{{reason}}"),
        )
        .unit("locale")
        .decimals(0)
        .thresholds(steps("orange"))
        .no_value("no task failed in this time")
    )


def _by_model() -> timeseries.Panel:
    return (
        panels.bars(
            "Failed tasks, by model",
            "Each bar counts the failures since the bar before.",
            panels.query(counted("model", rate(metrics.TASKS_FAILED)), "{{model}}"),
        )
        .unit("short")
        .decimals(0)
        .interval("5m")
        .no_value("no task failed in this time")
    )


def _models_and_reasons() -> table.Panel:
    key = "workspace, model, reason"
    whole = f"on (workspace, model) group_left () ({summed('workspace, model', FAILED)} > 0)"
    models_table = panels.table(
        "Failed in all, by model and reason",
        "Failed tasks in the time shown, and the share of the reason in the failures of the model.",
        ("Failed", f"{summed(key, FAILED)} > 0"),
        ("Share", f"({summed(key, FAILED)} > 0) / {whole}"),
        keys=panels.MODEL | {"reason": "Reason"},
    )
    panels.column(models_table, "Share", "percentunit")
    return (
        panels.sorted_by(models_table, "Failed")
        .span(12)
        .unit("locale")
        .decimals(0)
        .thresholds(steps(PLAIN))
        .no_value("no task failed in this time")
    )
