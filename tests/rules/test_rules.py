import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from promql import innermost, selectors, unguarded

from creatify_exporter.metrics import FAMILIES

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "prometheus/rules").glob("*.yaml"))
CASES = sorted((ROOT / "prometheus/tests").glob("*.yaml"))
GRAFANA = {"creatify-overview", "creatify-failures", "creatify-credits", "creatify-exporter"}
ENVIRONMENT = {"cluster", "environment", "namespace"}

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
    "CreatifyFailuresHigh",
    "CreatifyInvalidTasks",
    "CreatifyLedgerFailing",
    "CreatifyListShrunk",
    "CreatifyModelFailing",
    "CreatifyNothingFinishes",
    "CreatifyRateLimited",
    "CreatifyReloadFailed",
    "CreatifyRulesIncomplete",
    "CreatifyTasksSlow",
    "CreatifyTasksStuck",
    "CreatifyUnknownStatus",
}


RUNBOOKS = dict(
    re.findall(
        r"^## (Creatify\w+)\n(.*?)(?=^## |\Z)", (ROOT / "docs/runbooks.md").read_text(), re.MULTILINE | re.DOTALL
    )
)
OF_ONE_SEVERITY = {
    'cause:creatify_fetch_failures:increase10m{cause="ledger"} > 0': "critical",
    "resets(creatify_tasks_submitted_total[1h]) > 0": "warning",
}
"""Queries of a runbook of two alerts, which tell of one of them."""


@cache
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


def promtool(path: str, *arguments: str) -> str:
    """Return what promtool complains of, nothing if it is content."""
    result = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    return (result.stdout + result.stderr)[-6000:] if result.returncode else ""


def test_promtool_accepts_the_rules(prometheus_tool: Callable[[str], str]) -> None:
    assert not promtool(prometheus_tool("promtool"), "check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES))


def test_promtool_accepts_the_example_configuration(prometheus_tool: Callable[[str], str]) -> None:
    assert not promtool(prometheus_tool("promtool"), "check", "config", str(ROOT / "prometheus/prometheus.yml"))


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_alerts_fire_stay_quiet_and_resolve(file: Path, prometheus_tool: Callable[[str], str], tmp_path: Path) -> None:
    """Whatever is asked in the runbook of an alert that begins to fire has an answer."""
    document = yaml.safe_load(file.read_text())
    loaded = [
        group for path in document["rule_files"] for group in yaml.safe_load((file.parent / path).read_text())["groups"]
    ]
    # 0x60 is a series of zeros for promtool and a number for YAML.
    plain = yaml.load(file.read_text(), yaml.BaseLoader)["tests"]  # noqa: S506 - makes nothing but strings
    written = []
    for number, (case, as_text) in enumerate(zip(document["tests"], plain, strict=True)):
        case["input_series"] = as_text["input_series"]
        answers = [
            {"expr": f"group({query})", "eval_time": at, "exp_samples": [{"labels": "{}", "value": 1}]}
            for at, query in runbook_queries(case)
        ]
        case["promql_expr_test"] = [*case.get("promql_expr_test", ()), *answers]
        rules, alone = tmp_path / f"{number}-rules.yaml", tmp_path / f"{number}.yaml"
        rules.write_text(yaml.safe_dump({"groups": looked_at(case, loaded)}))
        alone.write_text(yaml.safe_dump({**document, "rule_files": [str(rules)], "tests": [case]}))
        written.append(str(alone))
    assert not promtool(prometheus_tool("promtool"), "test", "rules", *written)


def looked_at(case: dict[str, Any], loaded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return groups without the rules that a case neither asks for nor needs for others: a fifth of the time.

    The laboratory evaluates all rules together, over weeks with replicas.
    """
    looks = [*case.get("alert_rule_test", ()), *case["promql_expr_test"]]
    texts, needed = [str(look.get("alertname") or look["expr"]) for look in looks], list[dict[str, Any]]()
    while texts:
        # One that ends in a colon is the beginning of the names that a matcher asks for.
        words = {word for text in texts for word in re.findall(r"[A-Za-z_:][\w:]*", text)}
        found = [
            rule
            for group in loaded
            for rule in group["rules"]
            if rule not in needed and not words.isdisjoint(beginnings(rule.get("record") or rule["alert"]))
        ]
        needed += found
        texts = [text for rule in found for text in (str(rule["expr"]), *rule.get("annotations", {}).values())]
    kept = [{**group, "rules": [rule for rule in group["rules"] if rule in needed]} for group in loaded]
    return [group for group in kept if group["rules"]]


def beginnings(name: str) -> set[str]:
    """Return a name and what it begins with, up to each of its colons."""
    return {name, *(name[: found.end()] for found in re.finditer(":", name))}


def runbook_queries(case: dict[str, Any]) -> set[tuple[str, str]]:
    """Return times at which an alert has begun to fire with queries of its runbook about series of the case."""
    asked, begun = set(), set()
    told = {str(each["series"]).partition("{")[0] for each in case["input_series"]}
    for test in case.get("alert_rule_test", ()):
        for labels in (alert["exp_labels"] for alert in test.get("exp_alerts", ())):
            if (alert := (test["alertname"], *sorted(labels.items()))) in begun:
                continue
            begun.add(alert)
            looking = RUNBOOKS[test["alertname"]].partition("**How to look.**")[2].partition("**What to do.**")[0]
            for query in re.findall(r"[`\n]([^`\n]*creatify[_:][^`\n]*)(?=[`\n])", looking):
                about = query.replace('"default"', f'"{labels["workspace"]}"') if "workspace" in labels else query
                about = about.replace('"gemini-2.5-pro"', f'"{labels.get("model")}"')
                if measured(query) <= told and OF_ONE_SEVERITY.get(query, labels["severity"]) == labels["severity"]:
                    asked.add((test["eval_time"], about))
    return asked


@cache
def measured(expression: str) -> set[str]:
    """Return the names of the exporter's series that an expression reads, itself or by those recorded of them."""
    read: set[str] = set()
    # What is recorded of an instance says which counters are not believed: it is absent if all is well.
    for name in filter(lambda each: not each.startswith("instance:"), names_in(expression)):
        sources = [str(rule["expr"]) for rule in rules("record") if rule["record"] == name]
        read |= set().union(*map(measured, sources)) if sources else {name}
    return read


BALANCE = """
rule_files: [thresholds.yaml, {rules}/credits.yaml, {rules}/alerts.yaml]
tests:
  - interval: 1m
    input_series:
      - {{series: 'creatify_up{{workspace="small",api="remaining_credits"}}', values: 1x30}}
      - {{series: 'creatify_up{{workspace="other",api="remaining_credits"}}', values: 1x30}}
      - {{series: 'creatify_remaining_credits{{workspace="small"}}', values: 50x30}}
      - {{series: 'creatify_remaining_credits{{workspace="other"}}', values: 50x30}}
    promql_expr_test:
      - expr: count by (workspace) (ALERTS{{alertname="CreatifyCreditsLow",alertstate="firing"}})
        eval_time: 25m
        exp_samples: [{{labels: '{{workspace="other"}}', value: 1}}]
"""


def test_a_workspace_can_have_a_threshold_of_its_own(prometheus_tool: Callable[[str], str], tmp_path: Path) -> None:
    released = (ROOT / "prometheus/rules/thresholds.yaml").read_text()
    of_all = "expr: 100 * workspace:creatify_list:known\n"
    own = of_all.replace("expr: ", 'expr: 30 * workspace:creatify_list:known{workspace="small"} or ')
    assert of_all in released
    (tmp_path / "thresholds.yaml").write_text(released.replace(of_all, own))
    (tmp_path / "case.yaml").write_text(BALANCE.format(rules=ROOT / "prometheus/rules"))
    assert not promtool(prometheus_tool("promtool"), "test", "rules", str(tmp_path / "case.yaml"))


def test_promtool_evaluates_the_groups_in_the_order_in_which_they_lean_on_each_other() -> None:
    groups_of = {file.name: [g["name"] for g in yaml.safe_load(file.read_text())["groups"]] for file in RULES}
    for file in CASES:
        case = yaml.safe_load(file.read_text())
        loaded = [Path(path).name for path in case["rule_files"]]
        assert case["group_eval_order"] == [name for each in loaded for name in groups_of[each]], file.name


def test_all_alerts_are_there() -> None:
    assert {rule["alert"] for rule in rules("alert")} == ALERTS


def test_each_alert_has_a_runbook_that_says_what_it_means_harms_and_how_to_look_and_act() -> None:
    parts = ("**Meaning.**", "**Impact.**", "**How to look.**", "**What to do.**")
    assert not [(name, part) for name in ALERTS for part in parts if part not in RUNBOOKS.get(name, "")]


def test_each_alert_has_a_firing_test_a_quiet_test_and_one_that_resolves() -> None:
    lacking = []
    for name in ALERTS:
        tests = alert_tests(name)
        firing = {(case, at) for case, at, fires in tests if fires}
        quiet = {case for case, _, _ in tests} - {case for case, _ in firing}
        resolved = [
            case
            for case, at, fires in tests
            if not fires and any(c == case and seconds(t) < seconds(at) for c, t in firing)
        ]
        lacking += [
            (name, kind) for kind, found in (("fires", firing), ("quiet", quiet), ("ends", resolved)) if not found
        ]
    assert not lacking


COUNTED = {
    "CreatifyCredentialsRefused",
    "CreatifyCreditBurnHigh",
    "CreatifyCreditsWasted",
    "CreatifyFailureSpike",
    "CreatifyFailuresHigh",
    "CreatifyLedgerFailing",
    "CreatifyModelFailing",
    "CreatifyNothingFinishes",
    "CreatifyRateLimited",
    "CreatifyTasksSlow",
    "CreatifyTasksStuck",
}
"""Alerts that rest on counters."""
ELSEWHERE = {
    "CreatifyTasksStuck": "its counters only keep it quiet: a week's median of what CreatifyTasksSlow is tested with",
    "CreatifyCreditBurnHigh": "it is quiet in its first week; the laboratory has replicas, restarts and lost ledgers",
}
"""Why an alert of these has no test with replicas of which one restarts."""


def has_replicas_of_which_one_restarts(case: dict[str, Any]) -> bool:
    named = [re.search(r'instance="([^"]+)"', each["series"]) for each in case["input_series"]]
    ledgers = [str(each["values"]) for each in case["input_series"] if "ledger_created" in each["series"]]
    return len({found[1] for found in named if found}) > 1 and any(" " in values for values in ledgers)


def test_alerts_on_counters_are_right_with_replicas_of_which_one_restarts() -> None:
    looked: dict[str, set[bool]] = {}
    for case in cases():
        if has_replicas_of_which_one_restarts(case):
            for test in case.get("alert_rule_test", ()):
                looked.setdefault(test["alertname"], set()).add(bool(test.get("exp_alerts")))
    assert not [name for name in COUNTED - set(ELSEWHERE) if looked.get(name) != {True, False}]


def test_it_is_known_which_alerts_rest_on_counters() -> None:
    expressions = {rule["record"]: str(rule["expr"]) for rule in rules("record")}

    def counts(expression: str) -> bool:
        read = {name for name, _ in selectors(expression)}
        return any(name.endswith(("_total", "_bucket")) or counts(expressions.get(name, "0")) for name in read)

    assert {rule["alert"] for rule in rules("alert") if counts(str(rule["expr"]))} == COUNTED


def test_each_alert_says_how_bad_what_where_and_what_to_do() -> None:
    for rule in rules("alert"):
        name, notes = rule["alert"], rule["annotations"]
        assert rule["labels"]["severity"] in {"critical", "warning"}, name
        assert set(notes) == {"summary", "description", "runbook_url", "dashboard_url"}, name
        assert notes["runbook_url"].endswith(f"/docs/runbooks.md#{name.lower()}"), name
        assert notes["dashboard_url"].removeprefix("/d/").partition("?")[0].partition("{")[0] in GRAFANA, name


def test_one_line_of_the_documents_makes_all_links_to_dashboards_absolute(tmp_path: Path) -> None:
    [line] = re.findall(r"^sed -i .*dashboard_url.*$", (ROOT / "docs/alerts.md").read_text("utf-8"), re.MULTILINE)
    (tmp_path / "prometheus").mkdir()
    shutil.copytree(ROOT / "prometheus/rules", tmp_path / "prometheus/rules")
    subprocess.run(line, shell=True, cwd=tmp_path, check=True)  # noqa: S602  as the page says
    changed = yaml.safe_load((tmp_path / "prometheus/rules/alerts.yaml").read_text("utf-8"))
    links = [rule["annotations"]["dashboard_url"] for group in changed["groups"] for rule in group["rules"]]
    assert links == [f"https://grafana.example{rule['annotations']['dashboard_url']}" for rule in rules("alert")]


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


def test_descriptions_query_only_metrics_of_the_contract_and_recorded_series() -> None:
    known = CONTRACT | {rule["record"] for rule in rules("record")}
    for rule in rules("alert"):
        asked = {
            name
            for text in re.findall(r'printf "(.*?)"', rule["annotations"]["description"])
            for name in names_in(text)
        }
        assert asked <= known, f"the description of {rule['alert']} reads {asked - known}"


def test_every_recorded_series_is_read_by_something() -> None:
    readers = [rule["expr"] for rule in rules("record") + rules("alert")]
    texts = [rule["annotations"]["description"] for rule in rules("alert")]
    for rule in rules("record"):
        name = rule["record"]
        assert any(re.search(rf"{re.escape(name)}\b(?!:)", text) for text in readers + texts), name


def test_recorded_names_are_level_metric_operations() -> None:
    for rule in rules("record"):
        assert re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", rule["record"]), rule["record"]


def misfolded(rule: dict[str, Any]) -> list[str]:
    """Return the series of exporters that a rule does not fold after rates and before anything else."""
    found = []
    for name, above in selectors(str(rule["expr"])):
        call = innermost(promql_parser.Call, above)
        fold = innermost(promql_parser.AggregateExpr, above)
        of_one = rule.get("record", "").startswith("instance:") or (call and call.func.name == "absent_over_time")
        if name not in CONTRACT:
            continue
        if name.endswith(("_total", "_bucket")) and call.func.name not in {"increase", "resets"}:
            found.append(f"{name} is folded raw")
        if not of_one and not (
            fold
            and str(fold.op) in {"max", "min", "group"}
            and fold.modifier.type == promql_parser.AggModifierType.By
            and set(fold.modifier.labels) >= ENVIRONMENT
        ):
            found.append(f"{name} is not folded by the labels that tell environments apart")
    return found


def test_replicas_are_folded_after_rates_and_before_anything_else() -> None:
    found = {rule.get("record") or rule["alert"]: misfolded(rule) for rule in rules("record") + rules("alert")}
    assert not {name: faults for name, faults in found.items() if faults}


def test_denominators_are_guarded_and_ratios_clamped() -> None:
    assert not [rule for rule in rules("record") + rules("alert") if unguarded(str(rule["expr"]))]
    ratios = [rule for rule in rules("record") if re.search(r":ratio\d+[mh]$", rule["record"])]
    assert ratios
    outermost: dict[str, Any] = {rule["record"]: promql_parser.parse(rule["expr"]) for rule in ratios}
    assert not [name for name, node in outermost.items() if node.func.name != "clamp_max"]


def test_mimir_takes_each_group_by_its_default_limit() -> None:
    # `-ruler.max-rules-per-rule-group`; Mimir also wants the groups of a namespace to have different names.
    assert {group["name"]: len(group["rules"]) for group in groups() if len(group["rules"]) > 20} == {}


def test_each_threshold_is_constant_used_and_documented() -> None:
    text = (ROOT / "docs/alerts.md").read_text()
    others = " ".join(rule["expr"] for rule in rules("record") + rules("alert"))
    thresholds = {rule["record"]: rule for rule in rules("record") if rule["record"].startswith("creatify:threshold:")}
    assert set(re.findall(r"creatify:threshold:[a-z_]+", others)) == set(thresholds)
    for name, rule in thresholds.items():
        value = re.fullmatch(r"([0-9.]+) \* workspace:creatify_list:known", rule["expr"])
        assert value, name
        assert f"| `{name}` | {value.group(1)} |" in text, f"{name} is not in docs/alerts.md with its value"


def test_an_alert_watches_that_each_threshold_is_there_once() -> None:
    [rule] = [rule for rule in rules("alert") if rule["alert"] == "CreatifyRulesIncomplete"]
    thresholds = [rule for rule in rules("record") if rule["record"].startswith("creatify:threshold:")]
    assert rule["expr"].endswith(f"== {len(thresholds)}\n")


def test_no_number_hides_in_an_alert() -> None:
    for rule in rules("alert"):
        compared = re.findall(r"(?:[<>]=?|==)\s*([0-9.]+)", rule["expr"])
        assert set(compared) <= {"0", "30", "3660"}, f"{rule['alert']} compares with {compared}"


def test_runbooks_name_only_series_that_exist() -> None:
    known = {rule["record"] for rule in rules("record")} | CONTRACT
    text = (ROOT / "docs/runbooks.md").read_text()
    named = set(
        re.findall(r"\b(?:[a-z_]+:)?creatify_[a-z_]+(?::[a-z0-9_]+)?(?![\w:(])|creatify:threshold:[a-z_]+", text)
    )
    assert {name for name in named if not name.endswith("_")} <= known, json.dumps(sorted(named - known))
