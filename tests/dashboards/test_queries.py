"""The dashboards ask for what exists, a real Prometheus has the answers, and no answer is taken for good news."""

import re
import subprocess
import time
from collections.abc import Iterator
from itertools import groupby
from math import inf
from pathlib import Path

import promql_parser
import pytest
import server
import yaml
from grafana import queries
from grafana.history import Past
from grafana.scene import night
from pages import (
    ANNOTATIONS,
    PAGES,
    QUERIES,
    ROOT,
    SCRAPE,
    VARIABLES,
    Asked,
    columns_of,
    panel_of,
    panels_of,
    queries_of,
)
from promql import innermost, selectors, unguarded
from server import RULES, Prometheus

from conftest import tool
from creatify_exporter.metrics import FAMILIES, TASKS_FINISHED, Family

BUILT_IN = {"__rate_interval", "__range", "__interval_ms", "__interval"}
OTHERS = {
    "ALERTS": "Prometheus makes it",
    "ALERTS_FOR_STATE": "Prometheus makes it",
    "process_cpu_seconds_total": "prometheus_client makes it",
    "process_resident_memory_bytes": "prometheus_client makes it",
}
"""What queries may use beside the contract."""
OF_EACH_EXPORTER = {"creatify_last_fetch_duration_seconds", "creatify_last_fetch_response_bytes"}
"""Shown by instance."""
UNGUARDED_IS_RIGHT = {
    ("creatify-overview", "Workspaces"): "a balance that does not fall lasts forever, which is clamped",
    ("creatify-credits", "Workspaces"): "a balance that does not fall lasts forever, which is clamped",
    ("creatify-failures", "Models"): "the rules clamp the limit, so it is never zero",
    ("creatify-failures", "Near a spike"): "the rules clamp the limit, so it is never zero",
}
"""(dashboard, panel): why a denominator of it is not compared with zero."""
NIGHT = pytest.mark.xdist_group("prometheus with a night")
"""One worker asks the one server."""

TARGET = {"instance", "job", "namespace", "team"}
"""Labels of the night's targets."""


def names_of(family: Family) -> set[str]:
    parts = ("bucket", "sum", "count") if family.kind == "histogram" else ()
    return {f"{family.name}_{part}" for part in parts} or {family.name}


SHARED = {name for family in FAMILIES if "workspace" in family.labels for name in names_of(family)} - OF_EACH_EXPORTER
"""What several exporters may tell of the same workspace."""


def rules() -> list[dict[str, str]]:
    documents = [yaml.safe_load(path.read_text("utf-8")) for path in RULES]
    return [rule for document in documents for group in document["groups"] for rule in group["rules"]]


def test_queries_are_promql_over_existing_metrics_and_variables() -> None:
    exported = {name for family in FAMILIES for name in names_of(family)}
    known = exported | {rule["record"] for rule in rules() if "record" in rule} | set(OTHERS)
    for asked in [*QUERIES, *ANNOTATIONS]:
        assert {name for name, _ in selectors(asked.filled())} <= known, asked
        assert set(re.findall(r"\$([a-z_]\w*)", asked.expr)) <= VARIABLES | BUILT_IN, asked
        assert "vector(" not in asked.expr, f"a number is made of nothing: {asked}"


def test_queries_of_alerts_take_those_of_what_is_chosen() -> None:
    for asked in [*QUERIES, *ANNOTATIONS]:
        for selected in re.findall(r"ALERTS\w*\{([^}]*)\}", asked.expr):
            assert all(f"${variable}" in selected for variable in VARIABLES - {"datasource"}), asked


def test_every_metric_of_the_contract_is_used() -> None:
    expressions = [asked.expr for asked in QUERIES] + [rule["expr"] for rule in rules()]
    used = {
        family.name
        for family in FAMILIES
        if any(re.search(rf"\b{name}\b", each) for each in expressions for name in names_of(family))
    }
    assert {family.name for family in FAMILIES} == used


def test_counters_are_read_by_rate_and_two_replicas_are_folded_at_once() -> None:
    for asked in QUERIES:
        for function, selected, window in re.findall(r"(\w+)\(([\w:]+)\{[^}]*\}\[([^\]]+)\]", asked.expr):
            if function == "rate":
                assert window == "$__rate_interval", asked
            if selected.endswith(("_total", "_bucket")):
                assert function in ("rate", "increase"), asked
        for match in re.finditer(r"\b(?:rate|increase)\((?!process_)", asked.expr):
            assert asked.expr[: match.start()].endswith(f"max without ({queries.REPLICA}) ("), asked
        for name, above in selectors(asked.filled()):
            assert name not in SHARED or str(innermost(promql_parser.AggregateExpr, above).op) == "max", asked


def test_denominators_are_not_zero() -> None:
    found = {(asked.page, asked.panel) for asked in QUERIES if unguarded(asked.filled())}
    assert found == set(UNGUARDED_IS_RIGHT)


LOADED = {"creatify:threshold:gap_seconds": "300x60"}
KNOWN = {f'creatify_up{{workspace="{name}",api="text_generator"}}': "1x60" for name in ("a", "b")}
ONLY_BALANCE = {'creatify_up{workspace="c",api="remaining_credits"}': "1x60"}
FIRE = {
    'ALERTS{alertname="CreatifyDown",alertstate="firing",workspace="a",api="text_generator"}': "1x60",
    'ALERTS{alertname="CreatifyCreditsLow",alertstate="firing",workspace="a"}': "1x60",
    'ALERTS{alertname="CreatifyExporterAbsent",alertstate="firing"}': "1x60",
    'ALERTS{alertname="CreatifyTasksSlow",alertstate="pending",workspace="b"}': "1x60",
    'ALERTS{alertname="Watchdog",alertstate="firing"}': "1x60",
}
FAILING = {
    'creatify_tasks_finished_total{workspace="a",api="x",model="m"}': "0+1x60",
    'creatify_tasks_finished_total{workspace="a",api="y",model="m"}': "0+1x60",
    'creatify_tasks_failed_total{workspace="a",api="x",model="m",reason="other"}': "0x44 0+1x15",
    'creatify_tasks_failed_total{workspace="a",api="y",model="m",reason="other"}': "0x60",
}
TWO_ENVIRONMENTS = {
    'creatify_up{namespace="test",workspace="a",api="x"}': "1x60",
    'creatify_up{namespace="live",workspace="a",api="x"}': "1x40 0x20",
    'creatify_tasks_finished_total{namespace="test",workspace="a",api="x",model="m"}': "0+1x60",
    'creatify_tasks_finished_total{namespace="live",workspace="a",api="x",model="m"}': "0+1x60",
    'creatify_tasks_failed_total{namespace="test",workspace="a",api="x",model="m",reason="other"}': "0x60",
    'creatify_tasks_failed_total{namespace="live",workspace="a",api="x",model="m",reason="other"}': "0+1x60",
    'creatify_remaining_credits{namespace="test",workspace="a"}': "9000x60",
    'creatify_remaining_credits{namespace="live",workspace="a"}': "70-1x60",
}
"""Workspaces of one name. Of the second all tasks fail, its list is down, and its balance lasts ten minutes."""


@pytest.mark.parametrize(
    ("letter", "series", "answer"),
    [
        pytest.param("A", KNOWN, {"a": -inf, "b": -inf}, id="no alert is counted if no rule is loaded"),
        pytest.param("A", ONLY_BALANCE | LOADED, {"c": 0}, id="none fires of a workspace without lists"),
        pytest.param("A", KNOWN | LOADED, {"a": 0, "b": 0}, id="none fires"),
        pytest.param("A", KNOWN | LOADED | FIRE, {"a": 2, "b": 0, "All": 1}, id="those that fire"),
        pytest.param("B", FAILING, {"a": 1}, id="the worst model of the last 15 minutes"),
        pytest.param("B", TWO_ENVIRONMENTS, {"a": 1}, id="the worst environment fails"),
        pytest.param("C", KNOWN, {"a": -inf, "b": -inf}, id="lists that were not read may have tasks that wait"),
        pytest.param("D", TWO_ENVIRONMENTS, {"a": 1}, id="the worst environment is down"),
        pytest.param("E", TWO_ENVIRONMENTS, {"a": 10}, id="the worst environment's balance"),
        pytest.param("F", TWO_ENVIRONMENTS, {"a": 600}, id="the worst environment's balance lasts shortest"),
        pytest.param(
            "D",
            {'creatify_up{workspace="a",api="x"}': "1x60", 'creatify_up{workspace="a",api="y"}': "1x57 0x2"},
            {"a": 0},
            id="one failed fetch is not a list that is down",
        ),
        pytest.param(
            "D",
            {'creatify_up{workspace="a",api="x"}': "1x50", 'creatify_up{workspace="a",api="y"}': "1x40 0x20"},
            {"a": 2},
            id="lists of which nobody tells are down",
        ),
        pytest.param("E", KNOWN, {"a": -inf, "b": -inf}, id="a column of which nothing is known is there"),
        pytest.param("F", {'creatify_remaining_credits{workspace="a"}': "0x60"}, {"a": 0}, id="used up"),
        pytest.param(
            "F",
            {'creatify_remaining_credits{workspace="a"}': "9x60"},
            {"a": 315360000},
            id="not used",
        ),
        pytest.param(
            "F",
            {'creatify_remaining_credits{workspace="a"}': "_x59 9"},
            {},
            id="a balance that is just known",
        ),
    ],
)
def test_a_column_of_workspaces_says_what_is_so(
    tmp_path: Path, letter: str, series: dict[str, str], answer: dict[str, float]
) -> None:
    asked = queries_of("creatify-overview", panel_of("overview", "Workspaces"))[ord(letter) - ord("A")]
    after_an_hour(tmp_path, asked, series, {f'{{workspace="{name}"}}': value for name, value in answer.items()})


@pytest.mark.parametrize(
    ("prices", "answer"),
    [
        pytest.param({"USD": "3x60"}, {"USD": 180}, id="what is configured"),
        pytest.param({"USD": "3x50", "EUR": "_x51 2x9"}, {"USD": 180}, id="one after a change of the currency"),
        pytest.param({"USD": "3x30", "EUR": "_x31 2x29"}, {"EUR": 120}, id="the new one later"),
        pytest.param({"USD": "3x30"}, {"USD": 180}, id="the last one while no exporter answers"),
        pytest.param({}, {"credits": 60}, id="none"),
    ],
)
def test_a_cost_has_one_price(tmp_path: Path, prices: dict[str, str], answer: dict[str, float]) -> None:
    [asked] = queries_of("creatify-overview", panel_of("overview", "Cost, 24 h"))
    labels = 'workspace="a",api="x",model="m"'
    series = {
        f"creatify_credits_used_total{{{labels}}}": "0+1x60",
        f"creatify_credits_refunded_total{{{labels}}}": "0x60",
    }
    series |= {f'creatify_credit_price{{workspace="a",currency="{name}"}}': values for name, values in prices.items()}
    after_an_hour(tmp_path, asked, series, {f'{{{labels},currency="{name}"}}': cost for name, cost in answer.items()})


def test_an_alert_of_tasks_that_failed_yesterday_has_their_reason(tmp_path: Path) -> None:
    asked = queries_of("creatify-overview", panel_of("overview", "Firing alerts"))[1]
    labels = 'workspace="a",api="x",model="m"'
    of_alert = f'alertname="CreatifyModelFailing",severity="critical",{labels}'
    series = {
        f'ALERTS{{{of_alert},alertstate="firing"}}': "1x1800",
        f'creatify_tasks_failed_total{{{labels},reason="timeout"}}': "0x5 1x1795",
        f"creatify_tasks_finished_total{{{labels}}}": "0+1x1800",
    }
    answer = {f'{{{of_alert},reason="timeout",runbook="CreatifyModelFailing"}}': 0.0}
    after_an_hour(tmp_path, asked, series, answer, hours=30)


def after_an_hour(folder: Path, asked: Asked, series: dict[str, str], answer: dict[str, float], hours: int = 1) -> None:
    """Ask an hour, or more, after the first sample; `answer` has the values by their labels."""
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": asked.filled(),
                "eval_time": f"{hours}h",
                "exp_samples": [{"labels": labels, "value": value} for labels, value in answer.items()],
            }
        ],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}), "utf-8")
    command = [tool("promtool", "prometheus"), "test", "rules", f"{folder}/test.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


# --- Against a real Prometheus.


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with server.with_a_night(tmp_path_factory.mktemp("night")) as prometheus:
        yield prometheus


@NIGHT
def test_the_night_has_all_that_the_contract_tells_of_a_workspace(prometheus: Prometheus) -> None:
    for family in FAMILIES:
        for name in names_of(family):
            found = prometheus.ask("query", query=name, time=prometheus.end)["result"]
            assert found, name
            labels = {label for each in found for label in each["metric"]} - {"__name__", "le", *TARGET}
            assert labels == set(family.labels), name


@NIGHT
def test_every_query_finds_data_of_several_workspaces_and_lists(prometheus: Prometheus) -> None:
    at = time.time()
    assert [str(asked) for asked in [*QUERIES, *ANNOTATIONS] if not prometheus.values(asked, at)] == []


@NIGHT
def test_a_table_has_no_columns_but_its_own(prometheus: Prometheus) -> None:
    """Labels of targets would be columns without a heading or a place."""
    for name, page in PAGES.items():
        for panel in (each for each in panels_of(page) if each["type"] == "table"):
            columns = set(panel["transformations"][1]["options"]["indexByName"])
            for asked in queries_of(name, panel):
                assert {label for each in prometheus.series(asked) for label in each["metric"]} <= columns, asked


@NIGHT
def test_variables_offer_lists_and_on_the_page_of_the_exporter_the_balance(prometheus: Prometheus) -> None:
    lists = {each.name for workspace in night() for each in workspace.lists}
    expected = {
        "workspace": {workspace.name for workspace in night()},
        "api": lists,
        "model": {model.name for workspace in night() for each in workspace.lists for model in each.models},
    }
    for name, page in PAGES.items():
        for variable in page["templating"]["list"][1:]:
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", re.sub(r"\$\w+", ".*", variable["query"]["query"]))
            assert found, name
            values = set(prometheus.ask(f"label/{found[2]}/values", **{"match[]": found[1]}))
            more = {"remaining_credits"} if (name, found[2]) == ("creatify-exporter", "api") else set()
            assert values == expected[found[2]] | more, name


@NIGHT
def test_the_table_of_alerts_has_as_many_rows_as_are_counted(prometheus: Prometheus) -> None:
    at = time.time()
    counted = prometheus.values(queries_of("creatify-overview", panel_of("overview", "Workspaces"))[0], at)
    rows = prometheus.series(queries_of("creatify-overview", panel_of("overview", "Firing alerts"))[0], at)
    assert sum(counted) == len(rows) > 4
    spike = next(row["metric"] for row in rows if row["metric"]["model"] == "gemini-2.5-pro")
    assert (spike["workspace"], spike["api"], spike["model"]) == ("tokyo", "text_generator", "gemini-2.5-pro")
    of_balance = [row["metric"] for row in rows if row["metric"]["alertname"] == "CreatifyRateLimited"]
    assert {(each["workspace"], each["api"], each["reason"]) for each in of_balance} == {
        ("berlin", "link_to_videos", "rate_limited"),
        ("dark", "All", "rate_limited"),
    }


SITUATIONS = {
    "a quiet workspace": {"workspace": "quiet"},
    "its fetches only fail": {"workspace": "dark"},
    "nothing at all": {"workspace": "nobody"},
}
AFTER = {"no exporter for 20 minutes": 1200.0, "no exporter for a day": 86400.0}
"""Situations that come in so many seconds."""
ANSWERS = ROOT / "tests/dashboards/answers.md"


@NIGHT
def test_what_each_panel_says_in_each_situation_has_been_read(prometheus: Prometheus) -> None:
    """What is written was read by a human eye: a panel that has nothing must not look like good news."""
    answers = answered(prometheus)
    if not ANSWERS.exists():
        ANSWERS.write_text(answers, "utf-8")
        pytest.fail(f"read what has been written to {ANSWERS}")
    assert answers == ANSWERS.read_text("utf-8"), "if the new answers are right, remove the file and run this again"


def answered(prometheus: Prometheus) -> str:
    """Return a table of panels and situations: what a panel without data says, else how many queries have it."""
    lines = [
        "# What each panel says in each situation",
        "",
        "A number tells how many of a panel's queries find something, words what it shows if none does.",
        "No rule has been evaluated.",
        "",
        f"| panel | {' | '.join((*SITUATIONS, *AFTER))} |",
        f"|---|{'---|' * (len(SITUATIONS) + len(AFTER))}",
    ]
    for (page, title), asked in groupby(QUERIES, key=lambda each: (each.page, each.panel)):
        together = list(asked)
        quiet = [said(prometheus, together, prometheus.end, **chosen) for chosen in SITUATIONS.values()]
        later = [said(prometheus, together, prometheus.end + seconds) for seconds in AFTER.values()]
        lines.append(f"| {page.removeprefix('creatify-')}: {title} | {' | '.join(quiet + later)} |")
    return "\n".join(lines) + "\n"


def said(prometheus: Prometheus, together: list[Asked], at: float, **chosen: str) -> str:
    # A graph without a point of the last minutes has an old line; what counts is whether it goes on.
    ends = [each._replace(instant=True) for each in together if "ALERTS" not in each.expr]
    panel = panel_of(together[0].page.removeprefix("creatify-"), together[0].panel)
    if having := sum(bool(prometheus.values(each, at, **chosen)) for each in ends):
        return f"{having} of {len(together)}"
    if any(prometheus.series(each, at, **chosen) for each in ends):
        words = {column["noValue"] for column in columns_of(panel).values() if column.get("noValue", "-") != "-"}
        return f"rows of: {', '.join(sorted(words))}"
    return str(panel["fieldConfig"]["defaults"]["noValue"])


@NIGHT
def test_what_is_not_counted_is_no_good_news(prometheus: Prometheus) -> None:
    """A number that is there although nobody counts is one that lies."""
    for asked in QUERIES:
        if "$workspace" in asked.expr and "ALERTS" not in asked.expr:
            assert not prometheus.values(asked, prometheus.end, workspace="nobody"), asked


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Past]]:
    """An hour that a real exporter told of a simulated account, twice, as two replicas would."""
    folder = tmp_path_factory.mktemp("exported")
    past = Past(end=float(int(time.time())), hours=1, step=SCRAPE)
    with (folder / "past.txt").open("w", encoding="utf-8") as file:
        past.write(file)
    with server.with_samples(folder, folder / "past.txt", past.end) as prometheus:
        yield prometheus, past


@NIGHT
def test_two_replicas_are_counted_as_one(exported: tuple[Prometheus, Past]) -> None:
    prometheus, past = exported
    truth = past.account().truth(past.end) - past.account().truth(past.end - 3600)
    submitted = Asked("", "", f"sum by (model) ({queries.increase(TASKS_FINISHED, '1h')})", instant=True)
    counted = {each["metric"]["model"]: float(each["value"][1]) for each in prometheus.series(submitted, past.end)}
    assert counted == pytest.approx({model: truth.finished[model] for model in counted}, rel=0.05, abs=3)
