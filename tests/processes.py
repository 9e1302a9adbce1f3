"""Real processes for end-to-end tests: the exporter as a user starts it, and Prometheus."""

import importlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from creatify_exporter.simulator import Simulator

COMMAND = str(Path(sys.executable).with_name("creatify-exporter"))

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_until(moment: float) -> None:
    """Wait for a time of the clock, in seconds since the epoch."""
    time.sleep(max(0.0, moment - time.time()))


def reset(connection: socket.socket) -> None:
    """Reset a connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextmanager
def without_rights() -> Iterator[None]:
    """Be no root for a while."""
    # Python itself may be where only root can read.
    for name in ("concurrent.futures.thread", "creatify_exporter.commands"):
        importlib.import_module(name)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Return the first true value of `condition`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not so within {seconds} s: {condition}")


class ExporterProcess:
    """A running `creatify-exporter`; `log` collects its standard error, `prefix` is a command that executes it."""

    def __init__(self, *arguments: str, environ: Mapping[str, str] | None = None, prefix: Sequence[str] = ()) -> None:
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [*prefix, COMMAND, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environ or {})},
        )
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._follower.start()
        self.url = until(self._address)

    def _follow(self) -> None:
        assert self.process.stderr
        with self.process.stderr as lines:
            self.log.extend(lines)

    def _address(self) -> str | None:
        assert self.process.poll() is None, "".join(self.log)
        found = re.search(r"msg=listening .*address=(\S+)", "".join(self.log))
        return f"http://127.0.0.1:{found[1].rpartition(':')[2]}" if found else None

    def get(self, path: str = "/metrics", **headers: str) -> requests.Response:
        return requests.get(self.url + path, headers=headers, timeout=60)

    def samples(self, path: str = "/metrics") -> Samples:
        return parsed(self.get(path).text)

    def value(self, name: str, path: str = "/metrics", **labels: str) -> float | None:
        """Return the sum of the samples with at least these labels, None if there are none."""
        return total(self.samples(path), name, **labels)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._follower.join(10)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float | None:
    values = [
        value for (each, those), value in samples.items() if each == name and labels.items() <= dict(those).items()
    ]
    return sum(values) if values else None


def ledger_counters(samples: Samples) -> Samples:
    """Return the samples that come from the ledger and must never go down."""
    names = ("creatify_tasks_", "creatify_task_duration_", "creatify_credits_", "creatify_failed_tasks_")
    ends = ("_total", "_bucket", "_count", "_sum")
    return {key: value for key, value in samples.items() if key[0].startswith(names) and key[0].endswith(ends)}


@contextmanager
def running_exporter(
    *arguments: str, environ: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
) -> Iterator[ExporterProcess]:
    exporter = ExporterProcess(*arguments, environ=environ, prefix=prefix)
    try:
        yield exporter
    finally:
        exporter.kill()


class Prometheus:
    """A running Prometheus; `query` answers as its HTTP API does."""

    def __init__(self, binary: str, folder: Path, config: Mapping[str, Any]) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        folder.mkdir(exist_ok=True)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(config)))
        self._log = (folder / "prometheus.log").open("w")
        self.process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def query(self, expression: str, **parameters: Any) -> list[dict[str, Any]]:
        path = "/api/v1/query_range" if "start" in parameters else "/api/v1/query"
        answer = requests.get(self.url + path, params={"query": expression, **parameters}, timeout=30).json()
        assert answer["status"] == "success", answer
        assert not answer.get("warnings", []) + answer.get("infos", []), answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, expression: str) -> float | None:
        """Return the one value of an instant query, None if it is empty or Prometheus does not answer yet."""
        with suppress(requests.ConnectionError, json.JSONDecodeError):
            result = self.query(expression)
            if result:
                return float(result[0]["value"][1])
        return None

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._log.close()


@contextmanager
def running_prometheus(binary: str, folder: Path, config: Mapping[str, Any]) -> Iterator[Prometheus]:
    prometheus = Prometheus(binary, folder, config)
    try:
        yield prometheus
    finally:
        prometheus.stop()


def write_config(path: Path, simulator: Simulator, **sections: Any) -> Path:
    """Write a configuration for the simulated API; the keys lie in files beside it."""
    (path.parent / "api-id").write_text(f"{simulator.api_id}\n")
    (path.parent / "api-key").write_text(f"{simulator.api_key}\n")
    workspace = {"name": "default", "api_id_file": "api-id", "api_key_file": "api-key", "base_url": simulator.url}
    document = {"workspaces": [workspace], "ledger": {"url": f"sqlite:///{path.parent}/ledger.db"}, **sections}
    path.write_text(yaml.safe_dump(document))
    return path
