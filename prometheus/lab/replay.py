# ruff: noqa: INP001 - a folder that is run by its path, not a package
"""Evaluate the real rules over simulated weeks, with a real Prometheus, faster than real time.

Samples are written as blocks. Range queries evaluate the recording rules once a minute, level by level; their results
are written as blocks too. Then come the alert expressions, with `for` and `keep_firing_for` applied here as Prometheus
does. The lookback is shorter than an evaluation interval, so a series ends where Prometheus would have marked it stale.
"""

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

STEP: Final = 60
# Blocks are 2 h times a power of 3 long; this is the longest with fewer steps than a query may have.
BLOCK: Final = 162 * 3600
RULES: Final = Path(__file__).parent.parent / "rules"
SERIES: Final = re.compile(r"[a-z_]+:[a-zA-Z0-9_:]+")
"""The name of a recorded series."""
# Both programs produce much garbage: collecting it less often, up to a limit, saves a fifth of their time.
ENVIRON: Final = {"GOGC": "400", "GOMEMLIMIT": "4GiB", **os.environ}


@dataclass(frozen=True)
class Firing:
    """An alert from its first to its last firing evaluation."""

    alert: str
    labels: dict[str, str]
    start: int
    end: int


class Replay:
    """A folder of blocks and the server that reads them."""

    def __init__(self, folder: Path, start: int, end: int) -> None:
        self.data = folder / "data"
        self.text = folder / "samples.om"
        self.log = folder / "prometheus.log"
        self.start, self.end = start - start % BLOCK, end
        self.config = folder / "prometheus.yml"
        self.config.write_text("global: {evaluation_interval: 1m}\n")

    def windows(self) -> Iterator[tuple[int, int]]:
        """Yield the bounds of each block, the last second included."""
        for begin in range(self.start, self.end, BLOCK):
            yield begin, min(begin + BLOCK, self.end) - 1

    def write(self, blocks: Iterable[Iterable[str]]) -> None:
        """Add samples, block by block: each is stored while the next one is written."""
        with ThreadPoolExecutor(1) as storing:
            stored = storing.submit(lambda: None)
            for number, texts in enumerate(blocks):
                path = self.exposed(texts, number)
                stored.result()
                stored = storing.submit(self.store, path)
            stored.result()

    def exposed(self, texts: Iterable[str], number: int) -> Path:
        """Write the samples of a block to a file."""
        path = self.text.with_suffix(f".{number}")
        with path.open("w") as file:
            file.writelines(texts)
            file.write("# EOF\n")
        return path

    def store(self, path: Path) -> None:
        """Convert the samples in a file to a block, and remove the file."""
        command = ["promtool", "tsdb", "create-blocks-from", f"--max-block-duration={BLOCK}s", "openmetrics", "--quiet"]
        command += [str(path), str(self.data)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRON)  # noqa: S603
        path.unlink()
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    @contextmanager
    def server(self) -> Iterator[str]:
        """Serve the blocks written so far."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [
            "prometheus",
            f"--config.file={self.config}",
            f"--storage.tsdb.path={self.data}",
            "--storage.tsdb.retention.time=100y",
            f"--query.lookback-delta={STEP - 1}s",
            "--query.max-samples=500000000",
            "--query.timeout=20m",
            f"--web.listen-address={address}",
        ]
        with (
            self.log.open("a") as log,
            subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRON) as process,  # noqa: S603
        ):
            try:
                self.wait_until_ready(address, process)
                yield f"http://{address}"
            finally:
                process.terminate()

    def wait_until_ready(self, address: str, process: subprocess.Popen[bytes]) -> None:
        """Wait for the server; raise RuntimeError with the end of its log if it gives up."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise RuntimeError(self.log.read_text()[-2000:])

    def query(self, url: str, expression: str, begin: int, end: int) -> list[dict[str, Any]]:
        """Evaluate an expression at each step."""
        form = {"query": expression, "start": begin, "end": end, "step": STEP}
        request = urllib.request.Request(f"{url}/api/v1/query_range", urllib.parse.urlencode(form).encode())  # noqa: S310
        with urllib.request.urlopen(request, timeout=1200) as response:  # noqa: S310
            result: list[dict[str, Any]] = msgspec.json.decode(response.read())["data"]["result"]
        return result

    def record(self, rules: list[dict[str, Any]]) -> None:
        """Evaluate the recording rules, dependencies first."""
        for level in by_level(rules):
            with self.server() as url, ThreadPoolExecutor(os.cpu_count()) as pool:
                texts = [self.recorded(url, level, *window) for window in self.windows()]
                files = list(pool.map(self.exposed, texts, range(len(texts))))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(self.store, files))

    def recorded(self, url: str, rules: list[dict[str, Any]], begin: int, end: int) -> Iterator[str]:
        """Yield the samples of several recording rules."""
        for rule in rules:
            yield from self.evaluated(url, rule, begin, end)

    def evaluated(self, url: str, rule: dict[str, Any], begin: int, end: int) -> Iterator[str]:
        """Yield the samples of one recording rule; one side of an `or` may still have its metric's name."""
        samples: dict[str, list[list[tuple[int, str]]]] = {}
        for series in self.query(url, rule["expr"], begin, end):
            labels = {**series["metric"], **rule.get("labels", {})}
            labels.pop("__name__", None)
            text = ",".join(f"{name}={json.dumps(value)}" for name, value in sorted(labels.items()))
            samples.setdefault(f"{rule['record']}{{{text}}}", []).append(series["values"])
        for prefix, parts in samples.items():
            values = parts[0] if len(parts) == 1 else sorted(chain(*parts))
            yield "".join([f"{prefix} {value} {at}\n" for at, value in values])

    def fire(self, rules: list[dict[str, Any]]) -> list[Firing]:
        """Evaluate the alert rules."""
        with self.server() as url, ThreadPoolExecutor(os.cpu_count()) as pool:
            firings = chain(*pool.map(lambda rule: list(self.fired(url, rule)), rules))
            return sorted(firings, key=lambda f: f.start)

    def fired(self, url: str, rule: dict[str, Any]) -> Iterator[Firing]:
        """Yield the periods in which an alert fired."""
        active: dict[str, list[int]] = {}
        for begin, end in self.windows():
            for series in self.query(url, rule["expr"], begin, end):
                labels = {k: v for k, v in series["metric"].items() if k != "__name__"}
                key = json.dumps({**labels, **rule["labels"]}, sort_keys=True)
                active.setdefault(key, []).extend(at for at, _ in series["values"])
        for key, times in active.items():
            for span in firing_spans(times, seconds(rule.get("for")), seconds(rule.get("keep_firing_for"))):
                yield Firing(rule["alert"], json.loads(key), *span)


def load(kind: str) -> list[dict[str, Any]]:
    """Return all rules of a kind, `record` or `alert`, from the rule files."""
    groups = [group for file in sorted(RULES.glob("*.yaml")) for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def needed(alerts: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the recording rules that these alerts depend on, and their own rules; without alerts, those of all."""
    wanted = [rule for rule in load("alert") if rule["alert"] in alerts or not alerts]
    recorded = {rule["record"]: rule for rule in load("record")}
    names, found = {rule["expr"] for rule in wanted}, set[str]()
    while names:
        read = {name for text in names for name in SERIES.findall(text) if name in recorded} - found
        found |= read
        names = {recorded[name]["expr"] for name in read}
    return [rule for name, rule in recorded.items() if name in found], wanted


def by_level(rules: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Sort recording rules so that each level needs only those before it."""
    names = {rule["record"] for rule in rules}
    needs = {name: set[str]() for name in names}
    for rule in rules:
        needs[rule["record"]] |= {n for n in SERIES.findall(rule["expr"]) if n in names}
    levels: list[list[dict[str, Any]]] = []
    known: set[str] = set()
    while known < names:
        ready = {name for name in names - known if needs[name] <= known}
        if not ready:
            raise ValueError(f"circular recording rules: {sorted(names - known)}")
        levels.append([rule for rule in rules if rule["record"] in ready])
        known |= ready
    return levels


def seconds(duration: str | None) -> int:
    """Return the seconds of a duration such as 10m."""
    if duration is None:
        return 0
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]


def firing_spans(times: list[int], wait: int, keep: int) -> Iterator[tuple[int, int]]:
    """Follow one alert through its active evaluations, as Prometheus does: pending, firing, kept, resolved."""
    since = last = fired = None
    for now in sorted(times):
        if last is not None and now - last > STEP and (fired is None or now - last > keep + STEP):
            if fired is not None:
                yield fired, last + keep
            since = fired = None
        since = now if since is None else since
        if fired is None and now - since >= wait:
            fired = now
        last = now
    if fired is not None and last is not None:
        yield fired, last + keep
