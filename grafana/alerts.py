"""The alerts that fire or are about to, each with the way to its runbook."""

import re
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.models import dashboard as models

from grafana import panels
from grafana.frame import alerts
from grafana.panels import BAD, FAIR, PLAIN, steps

RULES: Final = Path(__file__).parent.parent / "prometheus" / "rules" / "alerts.yaml"


def names() -> list[str]:
    """Return the alerts that there are."""
    return sorted(set(re.findall(r"- alert: (\w+)", RULES.read_text("utf-8"))))


def alerts_table() -> table.Panel:
    """Show them. The heading of a runbook is the alert's name in small letters, which only a mapping can write."""
    labels = {"alertname": "Alert", "alertstate": "State", "severity": "Severity"} | panels.MODEL
    named = f'label_replace({alerts()}, "runbook", "$1", "alertname", "(.*)")'
    panel = panels.table(
        "Alerts",
        "Alerts of this exporter that fire, or will if what they see lasts. The last column leads to what to do.",
        ("", f"count by ({', '.join(labels)}, runbook) ({named})"),
        keys=labels | {"runbook": "What to do"},
    )
    panel.override_by_name("State", [_words(firing=("firing", BAD), pending=("pending", FAIR)), _colored_text()])
    panel.override_by_name("What to do", [_words(**{name: (name.lower(), PLAIN) for name in names()}), _link()])
    return (
        panel.unit("short")
        .thresholds(steps(PLAIN))
        .no_value("no alert fires, or Prometheus has not loaded the rules")
        .height(6)
    )


def _words(**meanings: tuple[str, str]) -> models.DynamicConfigValue:
    return panels.option("mappings", panels.words(**meanings))


def _colored_text() -> models.DynamicConfigValue:
    return panels.option("custom.cellOptions", {"type": "color-text"})


def _link() -> models.DynamicConfigValue:
    link = {"title": "Runbook", "url": f"{panels.RUNBOOKS}#${{__value.text}}", "targetBlank": True}
    return panels.option("links", [link])
