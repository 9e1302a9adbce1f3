"""The committed dashboards, read as Grafana reads them, for the tests."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PAGES: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "grafana/dashboards").glob("*.json"))
}
VARIABLES = {"datasource", "workspace", "api", "model"}
SCRAPE = 60
"""Seconds between two scrapes of what the queries are asked of."""
TOLD = 15
"""What Grafana takes for that, unless its data source tells otherwise."""
HOURS = 3
"""How long the time shown is."""


class Asked(NamedTuple):
    """A query, and where it stands."""

    page: str
    panel: str
    expr: str
    instant: bool = False
    interval: str = ""
    least_step: str = ""

    def __str__(self) -> str:
        return f"{self.page}: {self.panel}: {self.expr}"

    def filled(self, workspace: str = ".*", api: str = ".*", model: str = ".*") -> str:
        """Return it as Grafana would send it, with this chosen."""
        step = max(minutes(self.interval), minutes(self.least_step)) or TOLD
        scrape = minutes(self.least_step) or TOLD
        values = {
            "__rate_interval": f"{max(step + scrape, 4 * scrape)}s",
            "__interval_ms": str(step * 1000),
            "__interval": f"{step}s",
            "__range": f"{HOURS}h",
            "workspace": workspace,
            "api": api,
            "model": model,
        }
        return re.sub(r"\$([a-z_]+)", lambda found: values[found[1]], self.expr)


def minutes(interval: str) -> int:
    """Return the seconds of an interval in minutes, 0 without one."""
    return int(interval.removesuffix("m") or 0) * 60


def panels_of(page: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels of a dashboard without the titles of its rows."""
    return [panel for panel in page["panels"] if panel["type"] != "row"]


def panel_of(page: str, title: str) -> dict[str, Any]:
    """Return one panel."""
    [found] = [panel for panel in panels_of(PAGES[f"creatify-{page}"]) if panel["title"] == title]
    return found


def queries_of(page: str, panel: dict[str, Any]) -> list[Asked]:
    """Return the queries of a panel."""
    return [
        Asked(
            page,
            panel["title"],
            target["expr"],
            target.get("instant", False),
            panel.get("interval", ""),
            target.get("interval", ""),
        )
        for target in panel["targets"]
    ]


def columns_of(panel: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options of a table's columns by their headings."""
    columns: dict[str, dict[str, Any]] = {}
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["id"] == "byName":
            options = {each["id"]: each.get("value") for each in override["properties"]}
            columns.setdefault(override["matcher"]["options"], {}).update(options)
    return columns


QUERIES = [asked for name, page in PAGES.items() for panel in panels_of(page) for asked in queries_of(name, panel)]
ANNOTATIONS = [
    Asked(name, "annotations", each["target"]["expr"], interval=each["target"]["interval"])
    for name, page in PAGES.items()
    for each in page["annotations"]["list"]
]
