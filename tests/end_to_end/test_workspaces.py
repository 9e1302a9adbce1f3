"""Many workspaces whose keys lie in a directory, scraped by several Prometheus servers that share them."""

import copy
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import tool
from creatify_exporter.simulator import Account, Clock, Simulator, Traffic
from processes import ExporterProcess, Prometheus, running_exporter, running_prometheus, until

pytestmark = pytest.mark.xdist_group("workspaces")

EXAMPLE = Path(__file__).parents[2] / "prometheus/sharded.yml"
SHARDS = 3
HEALTHY = [f"w{number:03}" for number in range(60)]
SILENT = [f"silent {number}" for number in range(6)]
TASKS = "creatify_tasks_submitted_total"


class Stage:
    """An exporter of the workspaces, of which some ask an API that never answers."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        now = time.time()
        account = Account(1, now - 600, Traffic(rate=1 / 60, text_bytes=50))
        self.simulator = stack.enter_context(Simulator(account, Clock()))
        self.keys = folder / "keys"
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        for name in HEALTHY:
            self.add(name)
        for name in SILENT:
            self.add(name, "silent")
        groups = [
            {"directory": "keys", "base_url": self.simulator.url},
            {"directory": "silent", "base_url": f"http://127.0.0.1:{silent.getsockname()[1]}"},
        ]
        fetch = {"max_concurrent": 2, "min_interval": "0s", "timeout": "5s"}
        ledger = {"url": f"sqlite:///{folder}/ledger.db"}
        settings = {"workspaces_from": groups, "fetch": fetch, "ledger": ledger}
        (folder / "config.yml").write_text(yaml.safe_dump(settings))
        arguments = ("--config.file", str(folder / "config.yml"), "--web.listen-address", "127.0.0.1:0")
        self.exporter: ExporterProcess = stack.enter_context(running_exporter(*arguments))

    def add(self, name: str, directory: str = "keys") -> None:
        folder = self.keys.with_name(directory) / name
        folder.mkdir(parents=True)
        (folder / "api-id").write_text(self.simulator.api_id)
        (folder / "api-key").write_text(self.simulator.api_key)

    def reload(self) -> None:
        reloads = self.reloads()
        self.exporter.process.send_signal(signal.SIGHUP)
        until(lambda: self.reloads() > reloads)

    def reloads(self) -> int:
        return "".join(self.exporter.log).count("configuration reloaded")

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.exporter.process.pid}/fd").iterdir()))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(tmp_path_factory.mktemp("workspaces"), stack)


def shard(url: str, number: int) -> dict[str, Any]:
    """Return the example for one of the servers, faster, and asking the exporter at `url`."""
    config: dict[str, Any] = copy.deepcopy(yaml.safe_load(EXAMPLE.read_text()))
    config["global"] = {"scrape_interval": "2s", "scrape_timeout": "2s"}
    del config["rule_files"]
    [job] = config["scrape_configs"]
    del job["scrape_timeout"]
    [discovery] = job["http_sd_configs"]
    discovery |= {"url": f"{url}/sd", "refresh_interval": "1s"}
    hashmod, keep = job["relabel_configs"]
    assert (hashmod["modulus"], keep["regex"]) == (SHARDS, "0")
    keep["regex"] = str(number)
    return config


def workspaces(server: Prometheus, expression: str) -> list[str]:
    return [each["metric"]["instance"].partition("/")[2] for each in server.query(expression)]


def test_each_workspace_is_scraped_by_exactly_one_shard_and_those_that_hang_hold_up_no_other(
    stage: Stage, tmp_path: Path, stack: ExitStack
) -> None:
    binary = tool("prometheus", "prometheus")
    servers = [
        stack.enter_context(running_prometheus(binary, tmp_path / str(number), shard(stage.exporter.url, number)))
        for number in range(SHARDS)
    ]
    everybody = {"": 1} | dict.fromkeys([*HEALTHY, *SILENT], 1)  # the first is the exporter itself
    up = 'max_over_time(creatify_up{api="text_generator"}[1h])'
    until(lambda: all(server.value("vector(1)") for server in servers))

    def seen(expression: str) -> Counter[str]:
        return Counter(name for server in servers for name in workspaces(server, expression))

    until(lambda: seen("up == 1") == everybody, 60)
    assert all(workspaces(server, "up") for server in servers), "each has its part"
    until(lambda: seen(f"{up} == 1") == dict.fromkeys(HEALTHY, 1), 60)
    stage.add("new")
    shutil.rmtree(stage.keys / HEALTHY[0])
    stage.reload()
    until(lambda: seen(f"{up} == 1")["new"] and seen("up == 1")["new"], 60)
    until(lambda: not seen("up")[HEALTHY[0]], 60)
    assert not [line for line in stage.exporter.log if "uncaught exception" in line]
    shutil.rmtree(stage.keys / "new")
    stage.add(HEALTHY[0])
    stage.reload()


def test_a_workspace_that_is_removed_leaves_nothing_running_and_counts_on_when_it_comes_back(stage: Stage) -> None:
    exporter, name = stage.exporter, HEALTHY[1]
    counted = until(lambda: exporter.value(TASKS, f"/probe?workspace={name}"))
    exporter.get()
    until(lambda: exporter.value("creatify_up", workspace=HEALTHY[-1], api="text_generator"))
    files = stage.files()
    aside = stage.keys.with_name("aside")
    aside.mkdir()
    for each in HEALTHY[1:]:
        (stage.keys / each).rename(aside / each)
    stage.reload()
    until(lambda: stage.files() <= files - len(HEALTHY[1:]))
    assert exporter.get(f"/probe?workspace={name}").status_code == 404
    assert not [key for key in exporter.samples() if ("workspace", name) in key[1]]
    for each in HEALTHY[1:]:
        (aside / each).rename(stage.keys / each)
    stage.reload()
    again = until(lambda: exporter.value(TASKS, f"/probe?workspace={name}"))
    assert again >= counted


def test_a_directory_with_a_mistake_changes_nothing(stage: Stage) -> None:
    (stage.keys / "halfway").mkdir()
    answer = stage.exporter.get("/sd").json()
    stage.exporter.process.send_signal(signal.SIGHUP)
    told = "folder 'halfway': api-id cannot be read: No such file or directory"
    until(lambda: told in "".join(stage.exporter.log))
    assert stage.exporter.get("/sd").json() == answer
    (stage.keys / "halfway").rmdir()
