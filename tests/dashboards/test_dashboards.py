"""What the dashboards' JSON says: it is what the code builds, fits its page, and keeps its promises to readers."""

import json
import re
from typing import Any

import pytest
import yaml
from grafana import alerts, build, palette, panels
from grafana.limits import limit
from pages import PAGES, ROOT, VARIABLES, columns_of, panel_of, panels_of

from creatify_exporter.creatify.reasons import DEFAULT_RULES, UNSPECIFIED
from creatify_exporter.creatify.task import OTHER, STATUSES
from creatify_exporter.errors import CAUSES

TARGET_LABELS = ("job", "instance")
ALL_PANELS = [(name, panel) for name, page in PAGES.items() for panel in panels_of(page)]

# A screen 1400 pixels wide, less the docked menu, the margins of the page and its scrollbar; all in pixels.
SCROLLBAR = 11
PAGE_WIDTH, GAP = 1068 - SCROLLBAR, 8
PADDING = 14
ARROW = 16
BORDER = 18
"""Of a heading: its margins, and the arrow of a sorted column; of a panel: its border and margins."""
EDGE = 7
"""Of a cell: the border and the one margin that its text must not reach."""
ICON, MENU = 24, 32
"""Of a title: each of the icons for the description and the links, and the menu that a pointer brings."""
LETTERS = {
    4: " !,.:Iijl",
    5: "()/;ft",
    6: "1r",
    7: "-",
    8: "7FJLaceksvxyz",
    10: "ACDKVXY",
    11: "GHNOQU",
    13: "Mmw≤",
    14: "%W",
}
"""Width → the letters that have it, in the font of Grafana's titles and headings; all others have 9."""


def width_of_text(text: str) -> float:
    return sum(next((width for width, letters in LETTERS.items() if letter in letters), 9) for letter in text)


def width_of(panel: dict[str, Any]) -> float:
    columns: int = panel["gridPos"]["w"]
    return columns * (PAGE_WIDTH + GAP) / 24 - GAP


def test_the_committed_dashboards_are_what_the_code_builds() -> None:
    stale = [path.name for path, text in build.files().items() if path.read_text("utf-8") != text]
    assert not stale, "run: python -m grafana.build"
    assert {path.stem for path in build.files()} == set(PAGES)


def test_the_four_dashboards_keep_their_addresses() -> None:
    pages = {"creatify-overview", "creatify-failures", "creatify-credits", "creatify-exporter"}
    assert {page["uid"] for page in PAGES.values()} == pages


def test_a_dashboard_can_be_provisioned_as_it_is_and_changed_in_code_only() -> None:
    for page in PAGES.values():
        assert "__inputs" not in page
        assert "${DS_" not in json.dumps(page)
        assert page.get("id") is None
        assert page["editable"] is False


def test_panels_and_queries_can_be_told_apart() -> None:
    for page in PAGES.values():
        numbers = [panel["id"] for panel in page["panels"]]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
    for _, panel in ALL_PANELS:
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == [chr(ord("A") + number) for number in range(len(letters))]


def test_panels_do_not_overlap_and_fill_their_rows() -> None:
    for page in PAGES.values():
        cells = [cell for panel in page["panels"] for cell in cells_of(panel["gridPos"])]
        assert len(cells) == len(set(cells))
        widths = {y: sum(1 for _, row in cells if row == y) for y in {y for _, y in cells}}
        assert set(widths.values()) == {24}


def cells_of(place: dict[str, int]) -> list[tuple[int, int]]:
    return [(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])]


# --- What a reader sees.


def test_every_panel_says_what_it_shows_and_what_empty_means() -> None:
    silent = [
        (name, panel["title"])
        for name, panel in ALL_PANELS
        if not panel["title"]
        or not panel["description"].endswith(".")
        or panel["fieldConfig"]["defaults"].get("noValue", "-") == "-"
    ]
    assert not silent


def test_no_title_is_longer_than_its_panel_can_show() -> None:
    cut = [
        (name, panel["title"])
        for name, panel in ALL_PANELS
        if width_of_text(panel["title"]) + PADDING + ICON * (1 + bool(panel.get("links"))) + MENU > width_of(panel)
        or len(panel["title"].split()) > 4
    ]
    assert not cut


def test_no_table_is_wider_than_its_panel_and_no_heading_than_its_column() -> None:
    wide, cut = [], []
    for name, panel in tables():
        widths = {
            heading: column.get("custom.width") or column.get("custom.minWidth") or 0
            for heading, column in columns_of(panel).items()
            if not column.get("custom.hidden")
        }
        if sum(widths.values()) > width_of(panel) - BORDER - SCROLLBAR:
            wide.append((name, panel["title"], sum(widths.values())))
        ordered = {each["displayName"] for each in panel["options"]["sortBy"]}
        needed = {heading: width_of_text(heading) + PADDING + ARROW * (heading in ordered) for heading in widths}
        cut += [(name, panel["title"], heading) for heading in widths if needed[heading] > widths[heading]]
    assert not wide
    assert not cut


LONGEST: dict[tuple[object, object], str] = {
    ("s", 0): "24 hours",
    ("s", 1): "23.9 hours",
    ("percentunit", 0): "999%",
    ("percentunit", 1): "100.0%",
    ("locale", 0): "9,999,999",
    ("locale", 2): "999,999.99",
    ("none", 2): "999.99",
    ("none", 3): "9.999",
}
"""Unit and decimals → what a column of them must be able to show: a number that is cut at its left is another one."""
FEW = {"Alerts": "99", "Down": "999", "Waiting": "9,999", "In a row": "9,999"}
"""Columns whose numbers are never as large."""


def test_no_column_is_narrower_than_its_numbers() -> None:
    cut = []
    for name, panel in tables():
        for heading, column in columns_of(panel).items():
            shown = [column.get("noValue") or "", *words_of(column)]
            shown.append(FEW.get(heading) or LONGEST.get((column.get("unit"), column.get("decimals")), ""))
            width = column.get("custom.width") or width_of(panel)
            cut += [(name, panel["title"], heading, each) for each in shown if width_of_text(each) + EDGE > width]
    assert not cut


def words_of(column: dict[str, Any]) -> list[str]:
    return [meaning["text"] for meaning in (column.get("mappings") or [{"options": {}}])[0]["options"].values()]


def tables() -> list[tuple[str, dict[str, Any]]]:
    return [(name, panel) for name, panel in ALL_PANELS if panel["type"] == "table"]


def test_a_table_is_sorted_by_columns_that_it_has_and_sorts_its_columns_of_numbers_alike() -> None:
    for name, panel in tables():
        columns = columns_of(panel)
        assert {each["displayName"] for each in panel["options"]["sortBy"]} <= set(columns), (name, panel["title"])
        for heading, column in columns.items():
            if heading.startswith(("Cost", "Credits", "Balance", "Tasks", "Lost")) and column["unit"] != "percentunit":
                assert column["unit"] == "locale", f"{name}: {heading} has no thousands separators"


def test_one_number_is_that_of_now_and_not_the_last_that_was_known() -> None:
    assert all(target.get("instant") for _, panel in tables() for target in panel["targets"])


def test_statuses_reasons_and_causes_have_a_colour_of_their_own() -> None:
    reasons = {rule.reason for rule in DEFAULT_RULES} | {OTHER, UNSPECIFIED}
    for names, colors in ((STATUSES, palette.STATUSES), (reasons, palette.REASONS), (CAUSES, palette.CAUSES)):
        assert set(names) <= set(colors)
        assert len(set(colors.values())) == len(colors)


def test_a_name_has_one_colour_in_all_panels() -> None:
    colors: dict[str, set[str]] = {}
    for _, panel in ALL_PANELS:
        for name, column in columns_of(panel).items():
            if color := column.get("color"):
                colors.setdefault(name, set()).add(color["fixedColor"])
            for value, meaning in ((column.get("mappings") or [{"options": {}}])[0]["options"]).items():
                if value in palette.REASONS | palette.CAUSES:
                    colors.setdefault(value, set()).add(meaning["color"])
    assert {name: found for name, found in colors.items() if len(found) > 1} == {}
    assert {*palette.STATUSES, *palette.REASONS, *palette.CAUSES} <= set(colors)
    graphs = [panel for _, panel in ALL_PANELS if panel["type"] == "timeseries"]
    assert {panel["fieldConfig"]["defaults"]["color"]["mode"] for panel in graphs} == {"palette-classic-by-name"}


def test_a_model_has_one_name_in_all_legends() -> None:
    legends = {
        target["legendFormat"] for _, panel in ALL_PANELS for target in panel["targets"] if "legendFormat" in target
    }
    assert {legend for legend in legends if "{{model}}" in legend} == {panels.MODEL_LINE}
    assert all(legend.startswith(panels.LIST_LINE) for legend in legends if "{{api}}" in legend)


def test_bars_and_ratios_stay_readable_over_a_month() -> None:
    unbounded = [
        (name, panel["title"])
        for name, panel in ALL_PANELS
        if panel["type"] == "timeseries"
        and any("__interval_ms" in target["expr"] or " / " in target["expr"] for target in panel["targets"])
        and "$__rate_interval" in panel["targets"][0]["expr"]
        and not (panel.get("maxDataPoints", 1000) <= panels.MOST_BARS and panel["interval"] == "5m")
    ]
    assert not unbounded


def test_a_graph_of_single_hours_has_a_point_for_each_hour_of_a_month() -> None:
    hourly = [panel for _, panel in ALL_PANELS if panel["type"] == "timeseries" and panel["title"].endswith(", 1 h")]
    assert [panel["title"] for panel in hourly if panel.get("maxDataPoints", 0) < 30 * 24] == []
    assert len(hourly) > 1


def test_alerts_mark_only_their_start_and_only_if_asked_for() -> None:
    for page in PAGES.values():
        [annotation] = page["annotations"]["list"]
        assert not annotation["enable"]
        firing, _, before = annotation["target"]["expr"].partition(" unless ")
        assert before == f"{firing} offset $__interval"


def test_each_model_has_its_burn_an_hour_a_day_and_a_month_in_credits_and_in_money() -> None:
    asked = [target["expr"] for target in panel_of("credits", "Models")["targets"]]
    for window in ("[1h]", "[1d]", "[30d]"):
        burns = [expr for expr in asked if expr.startswith("sum by (workspace, api, model)") and window in expr]
        assert {"creatify_credit_price" in expr for expr in burns} == {True, False}


def test_unknown_is_said_why() -> None:
    for name, panel in tables():
        if any(column.get("noValue") == "unknown" for column in columns_of(panel).values()):
            explained = "Unknown" in panel["description"] or "unknown" in panel["description"]
            assert explained, (name, panel["title"])


@pytest.mark.parametrize(
    ("board", "title", "heading", "threshold"),
    [
        ("overview", "Workspaces", panels.FAILING, "failure_spike_ratio_floor"),
        ("overview", "Workspaces", "Waits", "tasks_stuck_seconds"),
        ("overview", "Workspaces", "Balance", "credits_low_credits"),
        ("overview", "Workspaces", "Lasts for", "credits_run_out_seconds"),
        ("overview", "Lists", "90 % within", "tasks_slow_seconds_floor"),
        ("overview", "90 %, by model", "", "tasks_slow_seconds_floor"),
        ("failures", "Models", "1 h", "failure_spike_ratio_floor"),
        ("failures", "Failure ratio", "", "failure_spike_ratio_floor"),
        ("credits", "Workspaces", "Of the plan", "credits_low_plan_ratio"),
        ("credits", "Lists", "Wasted, 30 d", "credits_wasted_ratio"),
        ("credits", "Wasted share, 6 h", "", "credits_wasted_ratio"),
        ("exporter", "Lists", "Age", "gap_seconds"),
    ],
)
def test_a_panel_changes_its_colour_at_the_limit_of_its_alert(
    board: str, title: str, heading: str, threshold: str
) -> None:
    panel = panel_of(board, title)
    found = columns_of(panel)[heading]["thresholds"] if heading else panel["fieldConfig"]["defaults"]["thresholds"]
    assert limit(threshold) in [step["value"] for step in found["steps"]]


# --- Where a click leads.


def test_dashboards_lead_to_each_other_with_time_and_what_is_chosen() -> None:
    for name, page in PAGES.items():
        links = {link["url"].partition("?")[0]: link for link in page["links"] if link["url"].startswith("/d/")}
        assert set(links) == {f"/d/{other}" for other in PAGES if other != name}
        for link in links.values():
            kept = set(re.findall(r"\$\{(\w+):queryparam\}", link["url"]))
            # Among the lists of the exporter's page is the balance, for which the others have no panel.
            assert kept == (VARIABLES if name != "creatify-exporter" else {"datasource", "workspace"})
            assert link["keepTime"]


def test_a_click_on_a_cell_leads_to_a_dashboard_limited_to_it() -> None:
    for name, panel in tables():
        columns = columns_of(panel)
        for heading, column in columns.items():
            for link in column.get("links", []):
                fields = re.findall(r"var-(\w+)=\$\{__data\.fields\.(\w+):percentencode\}", link["url"])
                assert {field for _, field in fields} <= set(columns), (name, panel["title"], heading)
                assert {variable for variable, _ in fields} <= VARIABLES
                assert link["url"].startswith(panels.RUNBOOKS) or link["url"].partition("?")[0][3:] in PAGES


def test_runbooks_are_linked_by_their_headings() -> None:
    text = (ROOT / "docs/runbooks.md").read_text("utf-8")
    headings = {heading.lower() for heading in re.findall(r"^## (\w+)$", text, re.MULTILINE)}
    linked = {
        link["url"].removeprefix(f"{panels.RUNBOOKS}#") for _, panel in ALL_PANELS for link in panel.get("links") or []
    }
    assert linked <= headings
    anchors = columns_of(panel_of("overview", "Firing alerts"))["Runbook"]["mappings"][0]["options"]
    assert {anchor["text"] for anchor in anchors.values()} == {name.lower() for name in alerts.names()} <= headings


# --- The rules of grafana/dashboard-linter. `grafana/dashboards/.lint` lists the exceptions for its program.


def test_the_data_source_is_a_variable() -> None:
    for name, page in PAGES.items():
        first = page["templating"]["list"][0]
        assert first["type"] == first["name"] == "datasource"
        assert (first["label"], first["query"]) == ("Data source", "prometheus")
        for panel in panels_of(page):
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert all(source["uid"] == "${datasource}" for source in sources), (name, panel["title"])


def test_the_variables_are_the_labels_of_the_contract() -> None:
    for page in PAGES.values():
        listed = page["templating"]["list"]
        assert {each["name"] for each in listed} == VARIABLES
        for variable in listed[1:]:
            assert variable["refresh"] == 2, "a label value that is new in the time shown would be missing"
            assert variable["datasource"]["uid"] == "${datasource}"
            assert re.fullmatch(r"label_values\(creatify_.+, (workspace|api|model)\)", variable["query"]["query"])


def test_exceptions_have_reasons() -> None:
    exclusions = yaml.safe_load((ROOT / "grafana/dashboards/.lint").read_text("utf-8"))["exclusions"]
    assert set(exclusions) == {f"{what}-{label}-rule" for what in ("template", "target") for label in TARGET_LABELS}
    assert all(exclusion["reason"] for exclusion in exclusions.values())


def test_provisioning_names_a_prometheus_and_a_folder() -> None:
    files = {
        "grafana/provisioning/dashboards/creatify.yaml": "providers",
        "deploy/compose/datasource.yml": "datasources",
    }
    [provider], [source] = (yaml.safe_load((ROOT / path).read_text("utf-8"))[key] for path, key in files.items())
    assert provider["type"] == "file"
    assert provider["options"]["path"]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"]
