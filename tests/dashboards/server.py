"""A real Prometheus with a night of several workspaces, whose rules are in a hurry."""

import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from grafana.scene import Scene, night
from pages import HOURS, ROOT, SCRAPE, Asked, panel_of, queries_of

from conftest import tool

RULES = sorted((ROOT / "prometheus/rules").glob("*.yaml"))
Series = list[dict[str, Any]]


class Prometheus(NamedTuple):
    """A server; its last scrapes were at `end` (epoch seconds)."""

    url: str
    end: float

    def ask(self, path: str, **parameters: str | float) -> Any:
        """Return the data of an answer."""
        answer = requests.get(f"{self.url}/api/v1/{path}", parameters, timeout=30).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def series(self, asked: Asked, at: float = 0, **chosen: str) -> Series:
        """Return what Grafana would get, in the hours that end at `at`, or now."""
        until = at or time.time()
        if asked.instant:
            found: Series = self.ask("query", query=asked.filled(**chosen), time=until)["result"]
        else:
            span = {"start": until - HOURS * 3600, "end": until, "step": SCRAPE}
            found = self.ask("query_range", query=asked.filled(**chosen), **span)["result"]
        return found

    def values(self, asked: Asked, at: float = 0, **chosen: str) -> list[float]:
        """Return all values of an answer that are finite numbers."""
        pairs = [pair for each in self.series(asked, at, **chosen) for pair in each.get("values") or [each["value"]]]
        return [number for _, text in pairs if isfinite(number := float(text))]


@contextmanager
def with_a_night(folder: Path) -> Iterator[Prometheus]:
    """Serve the night that ends now."""
    end = float(int(time.time()))
    with (folder / "night.txt").open("w", encoding="utf-8") as file:
        Scene(night(), end, HOURS, SCRAPE).write(file)
    table = queries_of("creatify-overview", panel_of("overview", "Firing alerts"))
    with with_samples(folder, folder / "night.txt", end) as prometheus:
        _wait(lambda: all(prometheus.values(asked) for asked in table), "there are not all alerts of the night")
        yield prometheus


@contextmanager
def with_samples(folder: Path, samples: Path, end: float) -> Iterator[Prometheus]:
    """Serve the samples of an OpenMetrics file."""
    promtool, server = tool("promtool", "prometheus"), tool("prometheus", "prometheus")
    blocks = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(samples), f"{folder}/data"]
    subprocess.run(blocks, check=True, capture_output=True)
    (folder / "prometheus.yml").write_text(f"rule_files: [{folder}/rules/*.yaml]\n", encoding="utf-8")
    _hurry_rules(folder / "rules")
    yield from _serving(server, folder, end)


def _hurry_rules(folder: Path) -> None:
    """Copy the rules so that they are evaluated every second and alerts fire at once."""
    folder.mkdir()
    for path in RULES:
        text = re.sub(r"^( +interval: )1m$", r"\g<1>1s", path.read_text("utf-8"), flags=re.MULTILINE)
        (folder / path.name).write_text(
            re.sub(r"^( +for: )\w+$", r"\g<1>1s", text, flags=re.MULTILINE), encoding="utf-8"
        )


def _serving(server: str, folder: Path, end: float) -> Iterator[Prometheus]:
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
            prometheus = Prometheus(f"http://127.0.0.1:{port}", end)
            _wait(lambda: requests.get(f"{prometheus.url}/-/ready", timeout=30).ok, "Prometheus is not ready")
            yield prometheus
        finally:
            process.terminate()


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(requests.ConnectionError):
            if condition():
                return
        time.sleep(0.5)
    pytest.fail(otherwise)
