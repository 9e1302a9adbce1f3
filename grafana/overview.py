"""Overview: what now, how much, how fast, which model."""

from typing import Final

from grafana_foundation_sdk.builders import stat, table, timeseries
from grafana_foundation_sdk.models import dashboard as models

from creatify_exporter import metrics
from grafana import panels
from grafana.failures import RATIO_STEPS
from grafana.frame import FIRING, framed, row
from grafana.limits import limit
from grafana.panels import BAD, FAIR, GOOD, PLAIN, steps
from grafana.queries import balance, gauge, increase, quantile, rate, share, spending, spent, summed

LOADED: Final = "creatify:threshold:gap_seconds"
"""Is there as soon as Prometheus has evaluated the rules."""
WAITING: Final = 'status=~"pending|running"'
STUCK, SLOW = limit("tasks_stuck_seconds"), limit("tasks_slow_seconds_floor")
BUCKETS: Final = rate(metrics.TASK_DURATION, part="_bucket")


def build() -> models.Dashboard:
    """Return the dashboard."""
    return framed(
        "creatify-overview",
        "Overview",
        "What Creatify's text generation does for you: what now, how much, how fast, with which model.",
        row("What now", _list(), _alerts(), _waiting(), _oldest(), _failed(), _slow(), _balance()),
        row("How much", _flow(), _queue()),
        row("How fast", _duration(), _duration_by_model()),
        row("Which model", _finished_by_model(), _credits_by_model(), _models()),
    )


def _list() -> stat.Panel:
    lists = gauge(metrics.UP, 'api!="remaining_credits"')
    return (
        panels.stat(
            "List",
            "Whether the list of tasks could be read at the last scrape; of several workspaces the worst.",
            panels.now(f"min({lists})", "list"),
        )
        .mappings(panels.words(_1=("readable", GOOD), _0=("unreadable", BAD)))
        .thresholds(steps(BAD, (1, GOOD), empty=BAD))
        .no_value("no exporter")
        .links([panels.runbook("CreatifyDown"), panels.runbook("CreatifyExporterAbsent")])
        .span(3)
    )


def _alerts() -> stat.Panel:
    return (
        panels.stat(
            "Alerts",
            "Alerts of what is chosen that fire now. No rules: Prometheus has not loaded them, so nothing can fire.",
            panels.now(f"count({FIRING}) or 0 * count({LOADED})"),
        )
        .unit("locale")
        .thresholds(steps(GOOD, (1, BAD), empty=BAD))
        .no_value("no rules")
        .span(3)
    )


def _waiting() -> stat.Panel:
    return (
        panels.stat(
            "Waiting",
            "Tasks that are pending or running now.",
            panels.now(f"sum({gauge(metrics.TASKS, WAITING)})", "waiting"),
        )
        .unit("locale")
        .thresholds(steps(PLAIN))
        .no_value("list unreadable")
        .span(3)
    )


def _oldest() -> stat.Panel:
    return (
        panels.stat(
            "Oldest waiting",
            f"The age of the oldest task that is pending or running; above {STUCK / 60:g} minutes it counts as stuck.",
            panels.now(f"time() - min({gauge(metrics.OLDEST_TASK)}) or 0 * sum({gauge(metrics.TASKS)})"),
        )
        .unit("s")
        .thresholds(steps(GOOD, (STUCK / 2, FAIR), (STUCK, BAD)))
        .mappings(panels.words(_0=("none waits", GOOD)))
        .no_value("list unreadable")
        .links([panels.runbook("CreatifyTasksStuck")])
        .span(4)
    )


def _failed() -> stat.Panel:
    failed, finished = increase(metrics.TASKS_FAILED, "1h"), increase(metrics.TASKS_FINISHED, "1h")
    return (
        panels.stat(
            "Failed, last hour",
            "Of the tasks that finished within the last hour, the share that failed.",
            panels.now(f"clamp_max(sum({failed}) / (sum({finished}) > 0), 1)"),
        )
        .unit("percentunit")
        .decimals(1)
        .thresholds(steps(GOOD, *RATIO_STEPS))
        .no_value("none finished")
        .links([panels.runbook("CreatifyFailureSpike")])
        .span(3)
    )


def _slow() -> stat.Panel:
    return (
        panels.stat(
            "90 % finish within",
            "Nine in ten tasks of the last hour took no longer, from creation to the scrape that saw them finished.",
            panels.now(quantile(0.9, "", increase(metrics.TASK_DURATION, "1h", part="_bucket"))),
        )
        .unit("s")
        .thresholds(steps(GOOD, (SLOW, FAIR), (5 * SLOW, BAD)))
        .no_value("none finished")
        .links([panels.runbook("CreatifyTasksSlow")])
        .span(4)
    )


def _balance() -> stat.Panel:
    return (
        panels.stat(
            "Balance",
            f"Credits left, all chosen workspaces together; red below {limit('credits_low_credits'):g}. Unknown: none"
            " could be read for a quarter of an hour.",
            panels.now(f"sum({balance()})", "credits"),
        )
        .unit("locale")
        .decimals(0)
        .thresholds(steps(BAD, (limit("credits_low_credits"), PLAIN)))
        .no_value("unknown")
        .links([panels.runbook("CreatifyCreditsLow")])
        .span(4)
    )


def _flow() -> timeseries.Panel:
    flow = panels.graph(
        "Tasks a minute",
        "Tasks seen for the first time, tasks that finished, and those of them that failed. While more are submitted"
        " than finish, a queue builds up.",
        panels.query(f"60 * sum({rate(metrics.TASKS_SUBMITTED)})", "submitted"),
        panels.query(f"60 * sum({rate(metrics.TASKS_FINISHED)})", "finished"),
        panels.query(f"60 * sum({rate(metrics.TASKS_FAILED)})", "failed"),
    )
    panels.colored(flow, submitted="blue", finished="green", failed="red")
    return flow.unit("short").no_value("no task was counted in this time")


def _queue() -> timeseries.Panel:
    queue = panels.area(
        "Waiting tasks",
        "Entries of the list that are pending or running. A gap: the list could not be read.",
        panels.query(summed("status", gauge(metrics.TASKS, WAITING)), "{{status}}"),
    )
    panels.colored(queue, pending="yellow", running="blue")
    return (
        queue.unit("short")
        .no_value("the list was unreadable in this time")
        .links([panels.runbook("CreatifyNothingFinishes")])
    )


def _duration() -> timeseries.Panel:
    return (
        panels.graph(
            "Duration of tasks",
            "From a task's creation to the scrape that first saw it finished, so its resolution is the scrape interval."
            " A gap: none finished.",
            panels.query(quantile(0.99, "", BUCKETS), "99 % within"),
            panels.query(quantile(0.9, "", BUCKETS), "90 % within"),
            panels.query(quantile(0.5, "", BUCKETS), "half within"),
        )
        .unit("s")
        .interval("5m")
        .no_value("no task finished in this time")
    )


def _duration_by_model() -> timeseries.Panel:
    duration = panels.graph(
        "90 % finish within, by model",
        f"The 90th percentile of each model's durations, in steps of 15 minutes. Dashed: below {SLOW / 60:g} minutes no"
        " model counts as slow.",
        panels.query(quantile(0.9, "model", BUCKETS), "{{model}}"),
    )
    return (
        panels.limited(duration)
        .unit("s")
        .interval("15m")
        .thresholds(steps(PLAIN, (SLOW, FAIR)))
        .no_value("no task finished in this time")
        .links([panels.runbook("CreatifyTasksSlow")])
    )


def _finished_by_model() -> timeseries.Panel:
    return (
        panels.area(
            "Finished a minute, by model",
            "Tasks that reached done or failed.",
            panels.query(f"60 * {summed('model', rate(metrics.TASKS_FINISHED))}", "{{model}}"),
        )
        .unit("short")
        .no_value("no task finished in this time")
    )


def _credits_by_model() -> timeseries.Panel:
    return (
        panels.area(
            "Credits an hour, by model",
            "Credits used less credits refunded.",
            panels.query(f"clamp_min(3600 * {summed('model', spending())}, 0)", "{{model}}"),
        )
        .unit("short")
        .no_value("no credits were used in this time")
        .links([panels.runbook("CreatifyCreditBurnHigh")])
    )


def _models() -> table.Panel:
    key = "workspace, model"
    submitted = summed(key, increase(metrics.TASKS_SUBMITTED, "$__range"))
    finished, failed = (increase(family, "$__range") for family in (metrics.TASKS_FINISHED, metrics.TASKS_FAILED))
    durations = increase(metrics.TASK_DURATION, "$__range", part="_bucket")
    credit = summed(key, spent("$__range"))
    models_table = panels.table(
        "Models",
        "Each model in the time shown; how many wait is as of now.",
        ("Submitted", submitted),
        ("Finished", summed(key, finished)),
        ("Failed", summed(key, failed)),
        ("Failure ratio", share(key, failed, finished)),
        ("Half within", quantile(0.5, key, durations)),
        ("90 % within", quantile(0.9, key, durations)),
        ("Waiting", summed(key, gauge(metrics.TASKS, WAITING))),
        ("Credits", credit),
        ("Credits a task", f"{credit} / ({summed(key, finished)} > 0)"),
        keys=panels.MODEL,
    )
    panels.column(models_table, "Failure ratio", "percentunit", 1, steps(PLAIN, *RATIO_STEPS))
    panels.column(models_table, "Half within", "s", 1)
    panels.column(models_table, "90 % within", "s", 1)
    panels.column(models_table, "Credits a task", panels.DIGITS, 2)
    return (
        panels.sorted_by(models_table, "Submitted")
        .unit("locale")
        .decimals(0)
        .thresholds(steps(PLAIN))
        .no_value("no model is known in this time")
    )
