"""The firing alerts: workspace, list, model, reason, duration, and a link to the runbook."""

import re
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import table

from creatify_exporter.metrics import FETCH_FAILURES, TASKS_FAILED
from grafana import panels
from grafana.limits import RATIO_STEPS
from grafana.palette import BAD, FAIR, PLAIN
from grafana.panels import RUNBOOKS, Column, Key
from grafana.queries import BALANCE, OF_LIST, OF_MODEL, OF_WORKSPACE, cost, failing_now, known, main, summed, wasted

RULES: Final = Path(__file__).parent.parent / "prometheus" / "rules" / "alerts.yaml"
LOADED: Final = "creatify:threshold:gap_seconds"
"""Exists as soon as Prometheus has evaluated the rules."""
OF_ALERT: Final = "alertname, severity, workspace, api, model"
OF_TASKS: Final = 'alertname=~".*Fail.*"'
"""Alerts whose reason is that of failed tasks, if they have a model …"""
OF_FETCHES: Final = 'alertname=~"Creatify(BalanceUnknown|CredentialsRefused|Down|LedgerFailing|RateLimited)"'
"""… and those whose reason is the cause of failed fetches."""


def names() -> list[str]:
    """Return the names of all alerts."""
    return sorted(set(re.findall(r"- alert: (\w+)", RULES.read_text("utf-8"))))


def select(*matchers: str, state: str = "ALERTS") -> str:
    """Select alerts by the variables. Alerts on a whole workspace have no model, those on its balance no list."""
    ours = 'alertname=~"Creatify.*"'
    chosen = ('workspace=~"$workspace|"', f'api=~"$api|{BALANCE}|"', 'model=~"$model|"')
    return f"{state}{{{', '.join([ours, *matchers, *chosen])}}}"


FIRING: Final = select('alertstate="firing"')


def count() -> str:
    """Count them by workspace; absent if Prometheus has not loaded the rules, so that nothing can fire."""
    none = f"0 * {known(OF_WORKSPACE)} and on () {LOADED}"
    return f"count by (workspace) ({_firing()}) or {none}"


def alerts_table(height: int = 9) -> table.Panel:
    """Show them. A label that an alert does not have is All, which Grafana's variables accept."""
    anchors = {name: (name.lower(), PLAIN) for name in names()}
    short = {name: (name.removeprefix("Creatify"), PLAIN) for name in names()}
    states = {"critical": ("critical", BAD), "warning": ("warning", FAIR)}
    alerts = _with_reasons()
    since = _without_balance(_unnamed(f"min by ({OF_ALERT}) ({select(state='ALERTS_FOR_STATE')})"))
    panel = panels.table(
        "Firing alerts",
        "Alerts that are firing. The reason is the most frequent one of the model's failed tasks, or of the list's"
        " failed fetches, in the last hour; if no task failed in it, in three days. Lost: the cost of the model's"
        " failed tasks. Click an alert for its runbook, or a model for its failures.",
        (
            Key("runbook", "Runbook", 0, words=anchors),
            Key("severity", "Severity", 87, words=states),
            Key("alertname", "Alert", 148, f"{RUNBOOKS}#${{__data.fields.Runbook}}", words=short),
            panels.REASON,
            panels.WORKSPACE,
            panels.LIST,
            panels.MODEL,
        ),
        Column("For", f"time() - ({alerts} * on ({OF_ALERT}) group_left () {since})", "s", 0, 72),
        Column(
            panels.FAILING,
            f"{alerts} * on ({OF_MODEL}) group_left () ({failing_now(OF_MODEL)})",
            "percentunit",
            1,
            87,
            steps=RATIO_STEPS,
        ),
        Column(
            "Lost, 24 h",
            f"{alerts} * on ({OF_MODEL}) group_left (currency) ({cost(summed(OF_MODEL, wasted('1d')))})",
            decimals=2,
            width=87,
        ),
        extra=(panels.CURRENCY,),
        sort=("+Severity", "+For"),
        height=height,
        empty="no alert fires, or Prometheus has not loaded the rules: see Alerts in Workspaces",
    )
    hidden = [panels.option("custom.hidden", value=True), panels.option("custom.hideFrom", {"viz": True})]
    return panel.override_by_name("Runbook", hidden)


def _firing(*matchers: str) -> str:
    firing = select('alertstate="firing"', *matchers)
    named = _unnamed(f"max by ({OF_ALERT}) ({firing})")
    return f'label_replace({named}, "runbook", "$1", "alertname", "(.*)")'


def _unnamed(expression: str) -> str:
    """Add the labels that an alert does not have, because a row has all keys of its table."""
    for label in ("workspace", "api", "model"):
        expression = f'label_replace({expression}, "{label}", "All", "{label}", "")'
    return expression


def _with_reasons() -> str:
    """Return the alerts, each as 1, with a label for the reason if there is one."""
    causes = f'label_replace({main("cause", OF_LIST, FETCH_FAILURES, "1h")}, "reason", "$1", "cause", "(.*)")'
    lately, before = (main("reason", OF_MODEL, TASKS_FAILED, window) for window in ("1h", "3d"))
    reasons = f"({lately} or on ({OF_MODEL}) {before})"
    tasks = f"{_firing(OF_TASKS)} * on ({OF_MODEL}) group_left (reason) ({reasons} > bool 0)"
    fetches = f"{_firing(OF_FETCHES)} * on ({OF_LIST}) group_left (reason) ({causes} > bool 0)"
    return _without_balance(f"{tasks} or ignoring (reason) {fetches} or ignoring (reason) {_firing()}")


def _without_balance(expression: str) -> str:
    """Show an alert on the balance as one on all lists, because a click must not lead to a list without tasks."""
    return f'label_replace({expression}, "api", "All", "api", "{BALANCE}")'
