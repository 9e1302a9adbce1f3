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


def replay() -> Any:
    """Return the laboratory's module; it is a script's neighbour, not a package."""
    spec = importlib.util.spec_from_file_location("replay", ROOT / "prometheus/lab/replay.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["replay"] = module
    spec.loader.exec_module(module)
    return module


def test_for_and_keep_firing_for_are_followed_as_prometheus_follows_them(tmp_path: Path) -> None:
    rng = random.Random(7)  # noqa: S311 - an arbitrary but fixed series
    values = [int(rng.random() < (0.9 if i // 20 % 2 else 0.3)) for i in range(240)]
    active = [i * 60 for i, value in enumerate(values) if value]
    spans = list(replay().firing_spans(active, 180, 300))
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


@pytest.mark.timeout(600)
def test_two_weeks_bring_every_incident_and_no_false_alarm() -> None:
    tool("prometheus", "prometheus")
    tool("promtool", "prometheus")
    command = [sys.executable, str(ROOT / "prometheus/lab"), "--weeks", "2", "--volumes", "medium", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["false_alarms"] == []
    for score in found["scores"]:
        assert score["missed"] == [], score["kind"]
        assert score["late"] == 0, score["kind"]
    assert sum(score["detected"] for score in found["scores"]) >= 20
