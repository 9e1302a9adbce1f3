"""The dashboards ask for what exists, and a Prometheus with hours of simulated data has the answers."""

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest
import requests
import yaml
from grafana import alerts, build, limits, panels, queries
from grafana.history import Past
from promql import innermost, selectors, unguarded

from conftest import tool
from creatify_exporter.metrics import FAMILIES, Family

ROOT = Path(__file__).parents[2]
PAGES: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "grafana/dashboards").glob("*.json"))
}
RULES = sorted((ROOT / "prometheus/rules").glob("*.yaml"))
VARIABLES = {"datasource", "workspace", "api", "model"}
TARGET_LABELS = ("job", "instance")
BUILT_IN = {"__rate_interval", "__range", "__interval_ms"}
OTHERS = {
    "ALERTS": "Prometheus makes it",
    "process_cpu_seconds_total": "prometheus_client makes it",
    "process_resident_memory_bytes": "prometheus_client makes it",
}
"""What queries may use beside the contract."""
UNUSED: dict[str, str] = {}
"""Metrics of the contract that no panel and no alert uses, each with the reason."""

SCRAPE = 30  # seconds between two scrapes of the simulated past
HOURS = 6

EMPTY_IS_RIGHT = {
    ("creatify-exporter", "Vanished tasks, by model"): "a task counts as vanished a day after it has left the list",
}
"""(dashboard, panel): why a query of it finds nothing in the simulated past."""


def names_of(family: Family) -> set[str]:
    return (
        {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        if family.kind == "histogram"
        else {family.name}
    )


OF_EACH_EXPORTER = {"creatify_last_fetch_duration_seconds", "creatify_last_fetch_response_bytes"}
"""Shown by instance."""
SHARED = {name for family in FAMILIES if "workspace" in family.labels for name in names_of(family)} - OF_EACH_EXPORTER
"""What several exporters may tell of the same workspace."""
UNGUARDED_IS_RIGHT = {
    ("creatify-credits", "Lasts for"): "a balance that does not fall lasts for ever, which is clamped",
    ("creatify-failures", "How near to a spike, by model"): "the rules clamp the limit, so it is never zero",
}
"""(dashboard, panel): why a denominator of it is not compared with zero."""


class Asked(NamedTuple):
    """A query, and where it stands."""

    page: str
    panel: str
    expr: str
    instant: bool = False
    interval: str | None = None

    def filled(self) -> str:
        """Return it as Grafana would send it, with everything selected."""
        return filled(self.expr, self.interval)


def filled(expr: str, interval: str | None = None) -> str:
    step = int(interval.removesuffix("m")) * 60 if interval else 15
    expr = expr.replace("$__rate_interval", f"{max(step + SCRAPE, 4 * SCRAPE)}s").replace("$__range", f"{HOURS}h")
    expr = expr.replace("$__interval_ms", str(step * 1000))
    return re.sub(r"\$(workspace|api|model)", ".*", expr)


def panels_of(page: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in page["panels"] if panel["type"] != "row"]


QUERIES = [
    Asked(name, panel["title"], target["expr"], target.get("instant", False), panel.get("interval"))
    for name, page in PAGES.items()
    for panel in panels_of(page)
    for target in panel["targets"]
]
VARIABLE_QUERIES = [
    (name, variable["name"], variable["query"]["query"])
    for name, page in PAGES.items()
    for variable in page["templating"]["list"]
    if variable["type"] == "query"
]
ANNOTATIONS = [
    Asked(name, "annotations", each["target"]["expr"])
    for name, page in PAGES.items()
    for each in page["annotations"]["list"]
]


@pytest.fixture(params=PAGES, scope="session")
def page(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = PAGES[request.param]
    return found


def test_the_committed_dashboards_are_what_the_code_builds() -> None:
    stale = [path.name for path, text in build.files().items() if path.read_text("utf-8") != text]
    assert not stale, "run: python -m grafana.build"
    assert {path.stem for path in build.files()} == set(PAGES)


def test_the_four_dashboards_keep_their_addresses() -> None:
    assert {page["uid"] for page in PAGES.values()} == {
        "creatify-overview",
        "creatify-failures",
        "creatify-credits",
        "creatify-exporter",
    }


def test_a_dashboard_can_be_provisioned_as_it_is(page: dict[str, Any]) -> None:
    assert "__inputs" not in page
    assert "${DS_" not in json.dumps(page)
    assert page.get("id") is None


def test_panels_and_queries_can_be_told_apart(page: dict[str, Any]) -> None:
    numbers = [panel["id"] for panel in page["panels"]]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    for panel in panels_of(page):
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
        assert letters[0] == "A"


def test_panels_do_not_overlap_and_fill_their_rows(page: dict[str, Any]) -> None:
    cells = [cell for panel in page["panels"] for cell in cells_of(panel["gridPos"])]
    assert len(cells) == len(set(cells))
    widths = {y: sum(1 for _, row in cells if row == y) for y in {y for _, y in cells}}
    assert set(widths.values()) == {24}


def cells_of(place: dict[str, int]) -> list[tuple[int, int]]:
    return [(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])]


def test_dashboards_lead_to_each_other_with_time_and_variables(page: dict[str, Any]) -> None:
    siblings = next(link for link in page["links"] if link["type"] == "dashboards")
    assert siblings["keepTime"]
    assert siblings["includeVars"]
    assert set(siblings["tags"]) <= set(page["tags"])


def test_links_lead_to_headings_of_the_runbooks() -> None:
    text = (ROOT / "docs/runbooks.md").read_text("utf-8")
    headings = {heading.lower() for heading in re.findall(r"^## (\w+)$", text, re.MULTILINE)}
    linked = {
        link["url"].removeprefix(f"{panels.RUNBOOKS}#")
        for page in PAGES.values()
        for panel in panels_of(page)
        for link in panel.get("links") or []
    }
    assert linked | {name.lower() for name in alerts.names()} == headings


def test_every_panel_says_what_it_shows_and_what_empty_means(page: dict[str, Any]) -> None:
    for panel in panels_of(page):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"], panel["id"]
        assert panel["description"].endswith("."), panel["title"]
        assert defaults.get("noValue"), panel["title"]
        assert defaults.get("unit") or defaults.get("mappings"), panel["title"]
        assert defaults["thresholds"]["steps"], panel["title"]


def test_one_number_is_that_of_now_and_not_the_last_that_was_known(page: dict[str, Any]) -> None:
    for panel in panels_of(page):
        if panel["type"] in ("stat", "bargauge", "table"):
            assert all(target.get("instant") for target in panel["targets"]), panel["title"]


def test_each_model_has_its_burn_an_hour_a_day_and_a_month_in_credits_and_in_money() -> None:
    [panel] = [each for each in panels_of(PAGES["creatify-credits"]) if each["title"] == "Credits, by model"]
    asked = [target["expr"] for target in panel["targets"]]
    for window in ("[1h]", "[1d]", "[30d]"):
        burns = [expr for expr in asked if expr.startswith("sum by (workspace, model)") and window in expr]
        assert any("creatify_credit_price" in expr for expr in burns)
        assert any("creatify_credit_price" not in expr for expr in burns)


def test_unknown_is_said_why(page: dict[str, Any]) -> None:
    for panel in panels_of(page):
        if panel["fieldConfig"]["defaults"]["noValue"] == "unknown":
            assert "Unknown" in panel["description"], panel["title"]


@pytest.mark.parametrize(
    ("board", "title", "threshold"),
    [
        ("overview", "Oldest waiting", "tasks_stuck_seconds"),
        ("overview", "Failed, last hour", "failure_spike_ratio_floor"),
        ("overview", "90 % finish within", "tasks_slow_seconds_floor"),
        ("overview", "90 % finish within, by model", "tasks_slow_seconds_floor"),
        ("overview", "Balance", "credits_low_credits"),
        ("failures", "Failed, last hour", "failure_spike_ratio_floor"),
        ("failures", "Failed, last 24 h", "failure_spike_ratio_floor"),
        ("failures", "Worst model", "failure_spike_ratio_floor"),
        ("failures", "Failure ratio, by model", "failure_spike_ratio_floor"),
        ("credits", "Balance", "credits_low_credits"),
        ("credits", "Of the plan", "credits_low_plan_ratio"),
        ("credits", "Lasts for", "credits_run_out_seconds"),
        ("credits", "Share wasted", "credits_wasted_ratio"),
        ("credits", "Share wasted, 6 h", "credits_wasted_ratio"),
        ("exporter", "Age of the data", "gap_seconds"),
    ],
)
def test_a_panel_changes_its_colour_where_its_alert_has_its_limit(board: str, title: str, threshold: str) -> None:
    [value] = [
        float(rule["expr"].partition(" * ")[0])
        for rule in rules()
        if rule.get("record") == f"creatify:threshold:{threshold}"
    ]
    found = [panel for panel in panels_of(PAGES[f"creatify-{board}"]) if panel["title"] == title]
    steps = [panel["fieldConfig"]["defaults"]["thresholds"]["steps"] for panel in found]
    assert any(value in [step["value"] for step in each] for each in steps)


def test_sentences_name_the_limits_that_the_alerts_have() -> None:
    said = {panel["title"]: panel["description"] for panel in panels_of(PAGES["creatify-failures"])}
    assert f"below {limits.percent('failure_spike_ratio_floor')} nothing counts" in said["Failure ratio, by model"]
    enough = f"{limits.limit('failure_spike_excess_tasks')} tasks more failed than"
    assert enough in said["How near to a spike, by model"]


# --- The rules of grafana/dashboard-linter. `grafana/dashboards/.lint` tells its own program the exceptions.


def test_the_data_source_is_a_variable(page: dict[str, Any]) -> None:
    first = page["templating"]["list"][0]
    assert (first["type"], first["name"], first["label"], first["query"]) == (
        "datasource",
        "datasource",
        "Data source",
        "prometheus",
    )
    for panel in panels_of(page):
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source["uid"] == "${datasource}" for source in sources), panel["title"]


def test_the_variables_are_the_labels_of_the_contract(page: dict[str, Any]) -> None:
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
    folder = ROOT / "grafana/provisioning"
    provider = yaml.safe_load((folder / "dashboards/creatify.yaml").read_text("utf-8"))["providers"][0]
    source = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text("utf-8"))["datasources"][0]
    assert provider["type"] == "file"
    assert provider["options"]["path"]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"]


def test_a_dashboard_is_changed_in_code_only(page: dict[str, Any]) -> None:
    assert page["editable"] is False


@pytest.mark.parametrize("asked", [*QUERIES, *ANNOTATIONS], ids=lambda asked: f"{asked.page}: {asked.panel}")
def test_a_query_makes_no_number_of_nothing(asked: Asked) -> None:
    assert "vector(" not in asked.expr


@pytest.mark.parametrize(
    "asked", [asked for asked in [*QUERIES, *ANNOTATIONS] if "ALERTS" in asked.expr], ids=lambda asked: asked.page
)
def test_alerts_are_those_of_what_is_chosen(asked: Asked) -> None:
    assert all(f"${variable}|" in asked.expr for variable in VARIABLES - {"datasource"})


@pytest.mark.parametrize("asked", [*QUERIES, *ANNOTATIONS], ids=lambda asked: f"{asked.page}: {asked.panel}")
def test_a_query_is_promql_over_existing_metrics(asked: Asked) -> None:
    unknown = {name for name, _ in selectors(asked.filled()) if name not in known_names()}
    assert not unknown
    unselected = (
        set(re.findall(r"\$([a-z_]\w*)", asked.expr)) - VARIABLES - {"__rate_interval", "__range", "__interval_ms"}
    )
    assert not unselected


@pytest.mark.parametrize("asked", QUERIES, ids=lambda asked: f"{asked.page}: {asked.panel}")
def test_a_query_counts_as_it_should(asked: Asked) -> None:
    for function, selected, window in re.findall(r"(\w+)\(([\w:]+)\{[^}]*\}\[([^\]]+)\]", asked.expr):
        if function in ("rate", "irate"):
            assert window == "$__rate_interval"
        if selected.endswith(("_total", "_bucket")):
            assert function in ("rate", "increase")
    # Two replicas must not double a number: each rate is folded before anything else happens to it.
    for match in re.finditer(r"\b(?:rate|increase)\((?!process_)", asked.expr):
        assert asked.expr[: match.start()].endswith(f"max without ({queries.REPLICA}) (")
    for name, above in selectors(asked.filled()):
        assert name not in SHARED or str(innermost(promql_parser.AggregateExpr, above).op) == "max", name
    assert bool(unguarded(asked.filled())) == ((asked.page, asked.panel) in UNGUARDED_IS_RIGHT)


@pytest.mark.parametrize(
    ("board", "panel", "series", "answer"),
    [
        pytest.param("overview", "Alerts", {}, None, id="no alert is counted where no rule is loaded"),
        pytest.param("overview", "Alerts", {"creatify:threshold:gap_seconds": "300x60"}, 0, id="none fires"),
        pytest.param(
            "overview",
            "Alerts",
            {
                "creatify:threshold:gap_seconds": "300x60",
                'ALERTS{alertname="CreatifyDown",alertstate="firing",workspace="a",api="text_generator"}': "1x60",
                'ALERTS{alertname="CreatifyCreditsLow",alertstate="firing",workspace="a"}': "1x60",
                'ALERTS{alertname="CreatifyExporterAbsent",alertstate="firing"}': "1x60",
                'ALERTS{alertname="CreatifyTasksSlow",alertstate="pending",workspace="a"}': "1x60",
                'ALERTS{alertname="Watchdog",alertstate="firing"}': "1x60",
            },
            3,
            id="those that fire",
        ),
        pytest.param("credits", "Lasts for", {'creatify_remaining_credits{workspace="a"}': "0x60"}, 0, id="used up"),
        pytest.param(
            "credits", "Lasts for", {'creatify_remaining_credits{workspace="a"}': "9x60"}, 315360000, id="not used"
        ),
        pytest.param(
            "credits", "Lasts for", {'creatify_remaining_credits{workspace="a"}': "_x59 9"}, None, id="just known"
        ),
        pytest.param(
            "exporter",
            "Exporters",
            {f'creatify_exporter_build_info{{instance="a",job="{job}"}}': "1x60" for job in ("creatify", "probe")},
            1,
            id="one that is scraped twice",
        ),
    ],
)
def test_a_panel_says_what_is_so(
    tmp_path: Path, board: str, panel: str, series: dict[str, str], answer: float | None
) -> None:
    [asked] = [each for each in QUERIES if (each.page, each.panel) == (f"creatify-{board}", panel)]
    samples = [] if answer is None else [{"labels": '{workspace="a"}' if board == "credits" else "{}", "value": answer}]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": asked.filled(), "eval_time": "1h", "exp_samples": samples}],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}), "utf-8")
    command = [tool("promtool", "prometheus"), "test", "rules", f"{tmp_path}/test.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def rules() -> list[dict[str, str]]:
    documents = [yaml.safe_load(path.read_text("utf-8")) for path in RULES]
    return [rule for document in documents for group in document["groups"] for rule in group["rules"]]


def known_names() -> set[str]:
    exported = {name for family in FAMILIES for name in names_of(family)}
    return exported | {rule["record"] for rule in rules() if "record" in rule} | set(OTHERS)


def test_every_metric_of_the_contract_is_used() -> None:
    expressions = [asked.expr for asked in QUERIES] + [rule["expr"] for rule in rules()]
    used = {
        family.name
        for family in FAMILIES
        if any(re.search(rf"\b{name}\b", e) for e in expressions for name in names_of(family))
    }
    assert {family.name for family in FAMILIES} - used == set(UNUSED)


# --- Against a real Prometheus.

one_server = pytest.mark.xdist_group("prometheus with a past")  # which takes a while to make


class Prometheus(NamedTuple):
    """A server that holds the simulated past, whose last scrape was at `end`."""

    url: str
    end: float

    def ask(self, path: str, **parameters: str | float) -> Any:
        response = requests.get(f"{self.url}/api/v1/{path}", parameters, timeout=30)
        answer = response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, asked: Asked) -> list[float]:
        """Return all values of an answer that are numbers."""
        if asked.instant:
            found = self.ask("query", query=asked.filled(), time=time.time())["result"]
            numbers = [float(series["value"][1]) for series in found]
        else:
            until = time.time()
            start = until - HOURS * 3600
            found = self.ask("query_range", query=asked.filled(), start=start, end=until, step=60)["result"]
            numbers = [float(value) for series in found for _, value in series["values"]]
        return [number for number in numbers if number == number]  # noqa: PLR0124 - not NaN


@pytest.fixture(scope="session")
def prometheus_with_a_past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    promtool, server = tool("promtool", "prometheus"), tool("prometheus", "prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    past = Past(end=float(int(time.time())), hours=HOURS, step=SCRAPE)
    with (folder / "past.txt").open("w", encoding="utf-8") as file:
        past.write(file)
    blocks = [promtool, "tsdb", "create-blocks-from", "openmetrics", f"{folder}/past.txt", f"{folder}/data"]
    subprocess.run(blocks, check=True, capture_output=True)
    (folder / "prometheus.yml").write_text(f"rule_files: [{folder}/rules/*.yaml]\n", encoding="utf-8")
    hurry_rules(folder / "rules")
    yield from serving(server, folder, past.end)


def hurry_rules(folder: Path) -> None:
    """Copy the rules so that they are evaluated every second and alerts fire at once."""
    folder.mkdir()
    for path in RULES:
        text = re.sub(r"^( +interval: )1m$", r"\g<1>1s", path.read_text("utf-8"), flags=re.MULTILINE)
        (folder / path.name).write_text(
            re.sub(r"^( +for: )\w+$", r"\g<1>1s", text, flags=re.MULTILINE), encoding="utf-8"
        )


def serving(server: str, folder: Path, end: float) -> Iterator[Prometheus]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [
        server,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield ready(Prometheus(f"http://127.0.0.1:{port}", end))
        finally:
            process.terminate()


def ready(prometheus: Prometheus) -> Prometheus:
    """Wait until it answers and its alerts fire."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if prometheus.values(ANNOTATIONS[0]):
                return prometheus
        except requests.ConnectionError:
            pass
        time.sleep(0.5)
    pytest.fail("no alert fired within a minute")


@one_server
@pytest.mark.parametrize("asked", [*QUERIES, *ANNOTATIONS], ids=lambda asked: f"{asked.page}: {asked.panel}")
def test_a_query_finds_data(prometheus_with_a_past: Prometheus, asked: Asked) -> None:
    assert bool(prometheus_with_a_past.values(asked)) != ((asked.page, asked.panel) in EMPTY_IS_RIGHT)


@one_server
@pytest.mark.parametrize(("name", "variable", "query"), VARIABLE_QUERIES)
def test_a_variable_finds_values(prometheus_with_a_past: Prometheus, name: str, variable: str, query: str) -> None:
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", filled(query))
    assert match, name
    values = prometheus_with_a_past.ask(f"label/{variable}/values", **{"match[]": match[1]})
    assert (
        values
        == {
            "workspace": ["default"],
            "api": ["remaining_credits", "text_generator"] if name == "creatify-exporter" else ["text_generator"],
            "model": sorted({*values, "gemini-2.5-flash", "gemini-2.5-pro"}),
        }[variable]
    )


@one_server
def test_two_replicas_are_counted_as_one(prometheus_with_a_past: Prometheus) -> None:
    end = prometheus_with_a_past.end
    account = Past(end=end, hours=HOURS, step=SCRAPE).account()
    truth = account.truth(end) - account.truth(end - HOURS * 3600)
    submitted = next(asked for asked in QUERIES if asked.panel == "Models")
    rows = prometheus_with_a_past.ask("query", query=submitted.filled(), time=end)["result"]
    counted = {row["metric"]["model"]: float(row["value"][1]) for row in rows}
    assert counted == pytest.approx({model: truth.submitted[model] for model in counted}, rel=0.02, abs=2)


@one_server
def test_the_balance_lasts_as_long_as_its_fall_says(prometheus_with_a_past: Prometheus) -> None:
    credit = [asked for asked in QUERIES if asked.page == "creatify-credits"]
    balance, falls, lasts = (
        next(prometheus_with_a_past.values(asked)[-1] for asked in credit if asked.panel == panel)
        for panel in ("Balance", "Falls by, a day", "Lasts for")
    )
    assert falls > 0
    assert lasts == pytest.approx(balance / falls * 86400, rel=0.01)
