import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import tool

ROOT = Path(__file__).parents[2]


def lab(name: str) -> Any:
    """Return a module of the laboratory; it is a script's neighbour, not a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"prometheus/lab/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_for_and_keep_firing_for_are_followed_as_prometheus_follows_them(tmp_path: Path) -> None:
    rng = random.Random(7)  # noqa: S311 - an arbitrary but fixed series
    values = [int(rng.random() < (0.9 if i // 20 % 2 else 0.3)) for i in range(240)]
    active = [i * 60 for i, value in enumerate(values) if value]
    spans = list(lab("replay").firing_spans(active, 180, 300))
    rule = {"alert": "A", "expr": "x == 1", "for": "3m", "keep_firing_for": "5m"}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]}))
    looks = [
        {
            "expr": 'count(ALERTS{alertstate="firing"})',
            "eval_time": f"{i}m",
            "exp_samples": [{"labels": "{}", "value": 1}] if any(a <= i * 60 <= b for a, b in spans) else [],
        }
        for i in range(len(values))
    ]
    series = [{"series": "x", "values": " ".join(map(str, values))}]
    case = {"interval": "1m", "input_series": series, "promql_expr_test": looks}
    (tmp_path / "case.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [case]}))
    command = [tool("promtool", "prometheus"), "test", "rules", str(tmp_path / "case.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    assert len(spans) == 3


def test_an_account_of_four_tasks_a_day_works_in_office_hours_and_sees_a_model_fail() -> None:
    weeks = lab("weeks")
    plan = weeks.office_incidents(weeks.BEGIN, 2)
    world = weeks.World(weeks.Workspace("tiny", "tiny", 7, weeks.BEGIN, 14, plan, replicas=0))
    submitted, longest = [0] * (14 * 24), 0
    for now, _ in world.minutes():
        submitted[(now - weeks.BEGIN) // 3600] = sum(int(model.totals[0]) for model in world.models.values())
        longest = max(longest, *(model.run for model in world.models.values()))
    begun = [hour for hour in range(1, len(submitted)) if submitted[hour] > submitted[hour - 1]]
    hung = [int((e.start - weeks.BEGIN) / 3600) for e in plan if e.hangs]
    assert all(8 <= hour % 24 < 18 and 0 < hour // 24 % 7 < 6 for hour in begun if hour not in hung)
    assert 25 <= submitted[-1] <= 65
    assert longest >= 5


def test_the_curve_of_runs_has_a_row_for_a_volume() -> None:
    lab("weeks")
    head, _, row = lab("runs").table(["tiny"], 2, 0).splitlines()
    assert head.count("|") == row.count("|")
    assert row.startswith("| tiny | 0, ")


def test_the_curve_of_spikes_has_a_row_for_each_limit() -> None:
    lab("weeks")
    spikes = lab("spikes")
    head, _, *rows = spikes.table(["low"], 2, 0).splitlines()
    assert len(rows) == len(spikes.LIMITS)
    assert {row.count("|") for row in rows} == {head.count("|")}
    assert any(row.startswith(f"| {spikes.RULE} | 0, ") for row in rows)


@pytest.mark.timeout(1800)
def test_two_weeks_bring_every_incident_and_no_false_alarm() -> None:
    tool("prometheus", "prometheus")
    tool("promtool", "prometheus")
    command = [sys.executable, str(ROOT / "prometheus/lab"), "--weeks", "2", "--volumes", "medium", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["false_alarms"] == []
    # 30 % fail for a quarter of an hour: what chance brings once in 27 weeks (decision 47).
    assert [(score["kind"], score["missed"]) for score in found["scores"] if score["missed"]] == [
        ("30 % fail for 15 min", ["gemini-2.5-flash at Tue 12:00"])
    ]
    assert sum(score["late"] for score in found["scores"]) <= 3
    assert sum(score["detected"] for score in found["scores"]) >= 20
    assert copied(found["scores"]) > 5


def copied(scores: list[dict[str, Any]]) -> int:
    """Check that the copy of CreatifyFailureSpike in Python tells incidents when Prometheus does; return how many."""
    weeks, spikes = lab("weeks"), lab("spikes")
    plan = weeks.incidents(weeks.BEGIN, 2)
    workspace = weeks.Workspace("incidents-medium", "medium", 21, weeks.BEGIN, 14, plan)
    at = spikes.begun(workspace, [spikes.RULE])[spikes.RULE]
    by_copy, by_prometheus = list[float](), list[float]()
    for score in scores:
        if score["alerts"] == ["CreatifyFailureSpike"]:
            delays = spikes.delays([each for each in plan if each.kind == score["kind"]], at)
            by_copy += [delay / 60 for delay in delays if delay is not None]
            by_prometheus += score["delays"]
    assert by_copy == by_prometheus
    return len(by_copy)
