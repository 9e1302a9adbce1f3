"""From a failing model to a message and the all-clear: exporter, Prometheus, Alertmanager, webhook.

Prometheus and Alertmanager are configured as by compose.yaml, and with the project's own rules. All of it runs sixty
times as fast: whatever is an hour there is a minute here, and so is it with the tasks. Nothing but addresses is changed
besides.
"""

import json
import re
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import yaml

from conftest import tool
from creatify_exporter.simulator import Account, Clock, Incident, Listing, Model, Simulator, Traffic
from processes import free_port, running_exporter, running_prometheus, until, write_config

ROOT = Path(__file__).parents[2]
RULES, COMPOSE = ROOT / "prometheus/rules", ROOT / "deploy/compose"
FASTER = 60
MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}

SICK, SOUND = "gemini-2.5-pro", "gemini-2.5-flash"
STARTS, LASTS = 25.0, 15.0  # seconds; at full size an incident of a quarter of an hour


def faster(duration: str) -> str:
    return re.sub(r"(\d+)(ms|[smhdw])\b", lambda part: f"{int(part[1]) * MILLISECONDS[part[2]] // FASTER}ms", duration)


def faster_expression(expression: str) -> str:
    """Speed up the durations in brackets and behind `offset`, and the ages in seconds that are compared with."""
    ranges = re.sub(r"\[[^]]+\]|offset \w+", lambda part: faster(part[0]), expression)
    return re.sub(r"(\) < )(\d+)$", lambda part: f"{part[1]}{int(part[2]) / FASTER}", ranges, flags=re.MULTILINE)


def faster_rules(folder: Path) -> list[str]:
    paths = []
    for path in sorted(RULES.glob("*.yaml")):
        document = yaml.safe_load(path.read_text())
        for group in document["groups"]:
            group["interval"] = faster(group["interval"])
            for rule in group["rules"]:
                rule["expr"] = faster_expression(str(rule["expr"]))
                if rule.get("record", "").endswith("_seconds"):
                    rule["expr"] = f"({rule['expr']}) / {FASTER}"
                rule.update({key: faster(rule[key]) for key in ("for", "keep_firing_for") if key in rule})
        paths.append(str(folder / path.name))
        (folder / path.name).write_text(yaml.safe_dump(document))
    return paths


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Receive what Alertmanager sends; yield the URL and the alerts so far."""
    alerts: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            alerts.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", alerts
        server.shutdown()


def faster_route(receiver: str) -> dict[str, Any]:
    """Return the configuration of Alertmanager, with the way that it asks the reader to give to its receiver."""
    document: dict[str, Any] = yaml.safe_load((RULES.parent / "alertmanager.yml").read_text())
    for each in document["receivers"]:
        each["webhook_configs"] = [{"url": receiver, "send_resolved": True}]
    defaults = {"group_wait": "30s", "group_interval": "5m", "repeat_interval": "4h"}  # as Alertmanager has them
    for route in (document["route"], *document["route"]["routes"]):
        given = {**(defaults if route is document["route"] else {}), **route}
        route.update({key: faster(given[key]) for key in defaults if key in given})
    return document


def faster_scrapes(exporter: str, alertmanager: str, rules: list[str]) -> dict[str, Any]:
    """Return the configuration of Prometheus, with the addresses that its peers have here."""
    text = (COMPOSE / "prometheus.yml").read_text()
    document: dict[str, Any] = yaml.safe_load(
        text.replace("exporter:10081", exporter).replace("alertmanager:9093", alertmanager)
    )
    for section in (document["global"], *document["scrape_configs"]):
        durations = {key: value for key, value in section.items() if key.endswith(("_interval", "_timeout"))}
        section.update({key: faster(value) for key, value in durations.items()})
    return {**document, "rule_files": rules}


@contextmanager
def alertmanager(binary: str, folder: Path, receiver: str) -> Iterator[str]:
    """Run Alertmanager; yield its address."""
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(faster_route(receiver)))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "alertmanager.log").open("w") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'alertmanager.yml'}",
                f"--storage.path={folder / 'alertmanager'}",
                f"--web.listen-address={address}",
                "--cluster.listen-address=",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield address
        finally:
            process.terminate()
            process.wait(30)


def sick_account(clock: Clock) -> Account:
    """Two models with four tasks a second each; four of five tasks of one of them fail for a while."""
    now = clock.now()
    models = tuple(Model(name, weight=1, seconds=0.2, failure_ratio=0.01, credits=1) for name in (SICK, SOUND))
    incident = Incident(now + STARTS, now + STARTS + LASTS, SICK, failure_ratio=0.8, reason="model_unavailable")
    traffic = Traffic(rate=8, rhythm=0, burst_ratio=0, models=models, incidents=(incident,), text_bytes=200)
    return Account(11, now - 30, traffic)


def test_a_failing_model_is_told_to_the_webhook_and_so_is_its_recovery(
    tmp_path: Path, prometheus_tool: Callable[[str], str]
) -> None:
    clock = Clock()
    with (
        Simulator(sick_account(clock), clock, listing=Listing(younger_than=60)) as simulator,
        webhook() as (receiver, alerts),
        alertmanager(prometheus_tool("prometheus-alertmanager"), tmp_path, receiver) as address,
    ):
        ledger = {"url": f"sqlite:///{tmp_path}/ledger.db", "new_series_hold": "2s"}
        config = write_config(tmp_path / "config.yml", simulator, fetch={"min_interval": "0s"}, ledger=ledger)
        with running_exporter("--config.file", str(config), "--web.listen-address", "127.0.0.1:0") as exporter:
            settings = faster_scrapes(exporter.url.removeprefix("http://"), address, faster_rules(tmp_path))
            with running_prometheus(prometheus_tool("prometheus"), tmp_path / "prometheus", settings) as prometheus:
                until(lambda: spikes(alerts, "firing"), 90)
                for expression in expressions(settings["rule_files"]):
                    prometheus.query(expression)
                until(lambda: all(prometheus.query(query) for query in runbook("CreatifyFailureSpike")))
                until(lambda: spikes(alerts, "resolved"), 90)
    [labels] = {tuple(sorted(alert["labels"].items())) for alert in spikes(alerts, "firing")}
    assert dict(labels) == {
        "alertname": "CreatifyFailureSpike",
        "api": "text_generator",
        "model": SICK,
        "severity": "critical",
        "workspace": "default",
    }
    annotations = spikes(alerts, "firing")[0]["annotations"]
    assert (
        annotations["summary"] == f"Tasks of text_generator (model {SICK}) fail more than usual in workspace default."
    )
    assert annotations["runbook_url"].endswith("docs/runbooks.md#creatifyfailurespike")


def expressions(paths: list[str]) -> Iterator[str]:
    """Yield the expressions of rule files: whatever Prometheus remarks on one of them fails its query."""
    for path in paths:
        for group in yaml.safe_load(Path(path).read_text())["groups"]:
            yield from (rule["expr"] for rule in group["rules"])


def runbook(alert: str) -> list[str]:
    """Return the queries of a runbook; their workspace and model are those of this test."""
    text = (ROOT / "docs/runbooks.md").read_text().partition(f"## {alert}\n")[2]
    queries = text.partition("```promql\n")[2].partition("```")[0].splitlines()
    assert queries, f"the runbook of {alert} has no query"
    return queries


def spikes(alerts: list[dict[str, Any]], status: str) -> list[dict[str, Any]]:
    kind = (status, "CreatifyFailureSpike")
    return [alert for alert in alerts if (alert["status"], alert["labels"]["alertname"]) == kind]


LIST = {"workspace": "default", "api": "lipsyncs", "namespace": "prod"}
REFUSED = {"alertname": "CreatifyCredentialsRefused", "severity": "critical", **LIST}
DOWN = {"alertname": "CreatifyDown", "severity": "critical", **LIST}


def states(folder: Path, *alerts: dict[str, str]) -> set[str]:
    """Return what Alertmanager makes of the last of these alerts."""
    binary = tool("prometheus-alertmanager", "prometheus-alertmanager")
    with alertmanager(binary, folder, "http://127.0.0.1:9/") as address:
        url = f"http://{address}/api/v2/alerts"
        body = json.dumps([{"labels": labels} for labels in alerts]).encode()
        post = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        until(lambda: answered(post), 30)
        until(lambda: len(shown(url)) == len(alerts), 30)
        return {each["status"]["state"] for each in shown(url) if each["labels"] == alerts[-1]}


def answered(request: urllib.request.Request) -> bool:
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310  Alertmanager of this test
            return bool(answer.status == HTTPStatus.OK)
    except URLError:
        return False


def shown(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(url) as answer:  # noqa: S310  Alertmanager of this test
        found: list[dict[str, Any]] = json.load(answer)
    return found


def test_an_alert_is_kept_quiet_by_its_cause(tmp_path: Path) -> None:
    assert states(tmp_path, REFUSED, DOWN) == {"suppressed"}


@pytest.mark.parametrize(
    "other",
    [
        {"api": "text_generator"},
        {"namespace": "staging"},
        {"alertname": "CreatifyRateLimited", "severity": "warning"},
        {"alertname": "CreatifyLedgerFailing", "severity": "warning"},
    ],
    ids=lambda other: "-".join(other.values()),
)
def test_an_alert_is_not_kept_quiet_by_another_list_environment_or_a_warning(
    other: dict[str, str], tmp_path: Path
) -> None:
    assert states(tmp_path, {**REFUSED, **other}, DOWN) == {"active"}
