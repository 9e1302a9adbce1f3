import json
import re
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from promql import innermost, selectors, unguarded

from conftest import tool
from creatify_exporter.metrics import FAMILIES

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "prometheus/rules").glob("*.yaml"))
CASES = sorted((ROOT / "prometheus/tests").glob("*.yaml"))
GRAFANA = {"creatify-overview", "creatify-failures", "creatify-credits", "creatify-exporter"}
REPLICA = {"instance", "job", "pod", "container", "endpoint", "service", "node"}

# The contract: what the exporter exposes and the rules may use.
CONTRACT = {
    name
    for family in FAMILIES
    for name in (
        (f"{family.name}_bucket", f"{family.name}_sum", f"{family.name}_count")
        if family.kind == "histogram"
        else (family.name,)
    )
}
ALERTS = {
    "CreatifyBalanceUnknown",
    "CreatifyCredentialsRefused",
    "CreatifyCreditBurnHigh",
    "CreatifyCreditsLow",
    "CreatifyCreditsRunOut",
    "CreatifyCreditsWasted",
    "CreatifyDown",
    "CreatifyExporterAbsent",
    "CreatifyFailureSpike",
    "CreatifyInvalidTasks",
    "CreatifyLedgerFailing",
    "CreatifyListShrunk",
    "CreatifyModelFailing",
    "CreatifyNothingFinishes",
    "CreatifyRateLimited",
    "CreatifyTasksSlow",
    "CreatifyTasksStuck",
    "CreatifyUnknownStatus",
}


def groups() -> list[dict[str, Any]]:
    return [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]


def rules(kind: str) -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"] if kind in rule]


def cases() -> list[dict[str, Any]]:
    return [case for file in CASES for case in yaml.safe_load(file.read_text())["tests"]]


def names_in(expression: str) -> set[str]:
    """Return the names of the series that an expression reads, matched text in quotes left aside."""
    return set(re.findall(r"(?:[a-z_]+:)?creatify[a-z0-9_:]*", re.sub(r'"[^"]*"', '""', expression)))


def alert_tests(name: str) -> list[tuple[str, str, bool]]:
    """Return test, time and whether it must fire, for each time at which an alert is looked at."""
    return [
        (case["name"], str(each["eval_time"]), bool(each.get("exp_alerts")))
        for case in cases()
        for each in case.get("alert_rule_test", ())
        if each["alertname"] == name
    ]


def seconds(duration: str) -> int:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([smhd])", duration))


def test_promtool_accepts_the_rules() -> None:
    command = [tool("promtool", "prometheus"), "check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_accepts_the_example_configuration() -> None:
    command = [tool("promtool", "prometheus"), "check", "config", str(ROOT / "prometheus/prometheus.yml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_alerts_fire_stay_quiet_and_resolve(file: Path) -> None:
    command = [tool("promtool", "prometheus"), "test", "rules", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]


def test_promtool_evaluates_the_groups_in_the_order_in_which_they_lean_on_each_other() -> None:
    order = ["creatify-thresholds", "creatify-recording", "creatify-tasks", "creatify-credits", "creatify-exporter"]
    assert {group["name"] for group in groups()} == set(order)
    for file in CASES:
        assert yaml.safe_load(file.read_text())["group_eval_order"] == order, file.name


def test_all_alerts_are_there() -> None:
    assert {rule["alert"] for rule in rules("alert")} == ALERTS


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_each_alert_has_a_runbook_a_firing_test_a_quiet_test_and_one_that_resolves(name: str) -> None:
    section = re.search(
        rf"^## {name}\n(.*?)(?=^## |\Z)", (ROOT / "docs/runbooks.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert section, "no heading in docs/runbooks.md"
    for part in ("**Meaning.**", "**Impact.**", "**How to look.**", "**What to do.**"):
        assert part in section.group(1)
    tests = alert_tests(name)
    firing = {(case, at) for case, at, fires in tests if fires}
    assert firing, "no firing test"
    assert any(case not in {c for c, _ in firing} for case, _, _ in tests), "no test in which it stays quiet throughout"
    resolved = [
        case
        for case, at, fires in tests
        if not fires and any(c == case and seconds(t) < seconds(at) for c, t in firing)
    ]
    assert resolved, "no test in which it resolves"


COUNTED = {
    "CreatifyCredentialsRefused",
    "CreatifyCreditBurnHigh",
    "CreatifyCreditsWasted",
    "CreatifyFailureSpike",
    "CreatifyLedgerFailing",
    "CreatifyModelFailing",
    "CreatifyNothingFinishes",
    "CreatifyRateLimited",
    "CreatifyTasksSlow",
}
"""Alerts that rest on counters."""
ELSEWHERE = {
    "CreatifyCreditBurnHigh": "it is quiet in its first week; the laboratory has replicas, restarts and lost ledgers",
}
"""Why an alert of these has no test with replicas of which one restarts."""


def has_replicas_of_which_one_restarts(case: dict[str, Any]) -> bool:
    named = [re.search(r'instance="([^"]+)"', each["series"]) for each in case["input_series"]]
    ledgers = [str(each["values"]) for each in case["input_series"] if "ledger_created" in each["series"]]
    return len({found[1] for found in named if found}) > 1 and any(" " in values for values in ledgers)


@pytest.mark.parametrize("name", sorted(COUNTED - set(ELSEWHERE)))
def test_an_alert_on_counters_is_right_with_replicas_of_which_one_restarts(name: str) -> None:
    looked = [
        bool(test.get("exp_alerts"))
        for case in cases()
        if has_replicas_of_which_one_restarts(case)
        for test in case.get("alert_rule_test", ())
        if test["alertname"] == name
    ]
    assert set(looked) == {True, False}


def test_it_is_known_which_alerts_rest_on_counters() -> None:
    expressions = {rule["record"]: str(rule["expr"]) for rule in rules("record")}

    def counts(expression: str) -> bool:
        read = {name for name, _ in selectors(expression)}
        return any(name.endswith(("_total", "_bucket")) or counts(expressions.get(name, "0")) for name in read)

    assert {rule["alert"] for rule in rules("alert") if counts(str(rule["expr"]))} == COUNTED


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: rule["alert"] + "-" + rule["labels"]["severity"])
def test_each_alert_says_how_bad_what_where_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert rule["annotations"]["runbook_url"].endswith(f"/docs/runbooks.md#{rule['alert'].lower()}")
    assert re.match(r"/d/([a-z-]+)", rule["annotations"]["dashboard_url"])[1] in GRAFANA  # type: ignore[index]
    assert "for" in rule


def test_links_to_dashboards_choose_what_the_alert_is_about_and_nothing_that_it_does_not_name() -> None:
    for case in cases():
        for test in case.get("alert_rule_test", ()):
            for alert in test.get("exp_alerts", ()):
                chosen = dict(re.findall(r"[?&]var-(\w+)=([^&]*)", alert["exp_annotations"]["dashboard_url"]))
                about = {name: alert["exp_labels"].get(name) for name in ("workspace", "api", "model")}
                assert chosen == {name: value for name, value in about.items() if value}, test["alertname"]


def test_rules_use_only_metrics_of_the_contract() -> None:
    recorded = {rule["record"] for rule in rules("record")}
    for rule in rules("record") + rules("alert"):
        unknown = names_in(rule["expr"]) - recorded - CONTRACT
        assert not unknown, f"{rule.get('record') or rule['alert']} reads {unknown}"


def test_descriptions_query_only_recorded_series() -> None:
    recorded = {rule["record"] for rule in rules("record")}
    for rule in rules("alert"):
        asked = {
            name
            for text in re.findall(r'printf "(.*?)"', rule["annotations"]["description"])
            for name in names_in(text)
        }
        assert asked <= recorded, rule["alert"]


def test_every_recorded_series_is_read_by_something() -> None:
    readers = [rule["expr"] for rule in rules("record") + rules("alert")]
    texts = [rule["annotations"]["description"] for rule in rules("alert")]
    for rule in rules("record"):
        name = rule["record"]
        assert any(re.search(rf"{re.escape(name)}\b(?!:)", text) for text in readers + texts), name


def test_recorded_names_are_level_metric_operations() -> None:
    for rule in rules("record"):
        assert re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", rule["record"]), rule["record"]


@pytest.mark.parametrize("rule", rules("record") + rules("alert"), ids=lambda rule: rule.get("record") or rule["alert"])
def test_replicas_are_folded_after_rates_and_before_anything_else(rule: dict[str, Any]) -> None:
    for name, above in selectors(str(rule["expr"])):
        if name not in CONTRACT:
            continue
        call = innermost(promql_parser.Call, above)
        if name.endswith(("_total", "_bucket")):
            assert call.func.name in {"increase", "resets"}, f"{name} is folded raw"
        if rule.get("record", "").startswith("instance:") or (call and call.func.name == "absent_over_time"):
            continue
        fold = innermost(promql_parser.AggregateExpr, above)
        assert str(fold.op) in {"max", "group"}, f"{name} is not folded first"
        assert fold.modifier.type == promql_parser.AggModifierType.Without
        assert set(fold.modifier.labels) >= REPLICA


@pytest.mark.parametrize("rule", rules("record") + rules("alert"), ids=lambda rule: rule.get("record") or rule["alert"])
def test_denominators_are_guarded_and_ratios_clamped(rule: dict[str, Any]) -> None:
    assert not unguarded(str(rule["expr"]))
    if re.search(r":ratio\d+[mh]$", rule.get("record", "")):
        outermost: Any = promql_parser.parse(rule["expr"])
        assert outermost.func.name in {"clamp", "clamp_max"}


def test_each_threshold_is_constant_used_and_documented() -> None:
    text = (ROOT / "docs/alerts.md").read_text()
    others = " ".join(rule["expr"] for rule in rules("record") + rules("alert"))
    thresholds = {rule["record"]: rule for rule in rules("record") if rule["record"].startswith("creatify:threshold:")}
    assert set(re.findall(r"creatify:threshold:[a-z_]+", others)) == set(thresholds)
    for name, rule in thresholds.items():
        value = re.fullmatch(r"vector\(([0-9.]+)\)", rule["expr"])
        assert value, name
        assert f"scalar({name})" in others, name
        assert f"| `{name}` | {value.group(1)} |" in text, f"{name} is not in docs/alerts.md with its value"


def test_no_number_hides_in_an_alert() -> None:
    for rule in rules("alert"):
        compared = re.findall(r"(?:[<>]=?|==)\s*([0-9.]+)", rule["expr"])
        assert set(compared) <= {"0", "3660"}, f"{rule['alert']} compares with {compared}"


def test_runbooks_name_only_series_that_exist() -> None:
    known = {rule["record"] for rule in rules("record")} | CONTRACT
    text = (ROOT / "docs/runbooks.md").read_text()
    named = set(re.findall(r"\b(?:[a-z_]+:)?creatify_[a-z_]+(?::[a-z0-9_]+)?|creatify:threshold:[a-z_]+", text))
    assert {name for name in named if not name.endswith("_")} <= known, json.dumps(sorted(named - known))
