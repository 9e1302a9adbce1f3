"""The command as a user starts it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from conftest import tool
from creatify_exporter.simulator import Account, Clock, Listing, Simulator, Traffic, delayed
from processes import COMMAND, ExporterProcess, parsed, running_exporter, running_prometheus, total, until, write_config

DAY = 24 * 3600


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    clock = Clock()
    account = Account(3, clock.now() - DAY, Traffic(rate=1 / 60, text_bytes=300))
    with Simulator(account, clock, listing=Listing(younger_than=DAY / 2)) as simulated:
        yield simulated


@pytest.fixture
def config(tmp_path: Path, simulator: Simulator) -> Path:
    return write_config(tmp_path / "config.yml", simulator)


@pytest.fixture
def exporter(config: Path) -> Iterator[ExporterProcess]:
    with running_exporter("--config.file", str(config), "--web.listen-address", "127.0.0.1:0") as running:
        yield running


def test_the_demo_needs_no_key_and_no_file_and_passes_promtool(promtool: str) -> None:
    with running_exporter("--demo", "--web.listen-address", "127.0.0.1:0") as demo:
        text = demo.get().text
    assert total(parsed(text), "creatify_up", api="text_generator") == 1
    assert (total(parsed(text), "creatify_tasks_finished_total") or 0) > 1000
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_openmetrics_is_served_to_who_asks_and_neither_format_has_created_series(
    exporter: ExporterProcess,
) -> None:
    openmetrics = exporter.get(Accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.text.endswith("# EOF\n")
    classic = exporter.get()
    assert classic.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "_created{" not in openmetrics.text + classic.text


def test_sigterm_answers_the_scrape_in_flight_and_exits_0(exporter: ExporterProcess, simulator: Simulator) -> None:
    simulator.faults.next(delayed(1.5))
    answers: list[requests.Response] = []
    scrape = threading.Thread(target=lambda: answers.append(exporter.get()))
    scrape.start()
    until(simulator.listings)
    assert exporter.terminate() == 0
    scrape.join()
    assert total(parsed(answers[0].text), "creatify_up", api="text_generator") == 1


def test_sigterm_answers_a_scrape_whose_fetch_hangs(exporter: ExporterProcess, simulator: Simulator) -> None:
    simulator.faults.always("silence")
    answers: list[requests.Response] = []
    scrape = threading.Thread(target=lambda: answers.append(exporter.get()))  # it says nothing of its patience
    scrape.start()
    until(simulator.listings)
    assert exporter.terminate() == 0
    scrape.join()
    assert answers[0].status_code == 200
    assert total(parsed(answers[0].text), "creatify_up", api="text_generator") == 0


def test_counters_go_on_after_a_restart(config: Path, exporter: ExporterProcess) -> None:
    before = exporter.value("creatify_tasks_finished_total")
    assert before
    exporter.kill()
    with running_exporter("--config.file", str(config), "--web.listen-address", "127.0.0.1:0") as again:
        after = again.value("creatify_tasks_finished_total") or 0
    assert before <= after < before + 5


class FirstProcess:
    """An exporter that is process 1 of its own namespace, as in a container; `pid` is its number outside."""

    def __init__(self, *arguments: str) -> None:
        as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        unshare = [tool("unshare", "util-linux"), *as_root, "--pid", "--fork", "--mount-proc"]
        self.outer = subprocess.Popen([*unshare, COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
        self.pid = until(self._child)

    def _child(self) -> int | None:
        children = Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def holds(self, number: signal.Signals) -> bool:
        """Return whether it catches or ignores a signal."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        masks = re.findall(r"^Sig(?:Cgt|Ign):\t([0-9a-f]+)$", status, re.MULTILINE)
        return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self) -> tuple[int, str]:
        """Return its exit code and its log; one that does not end is killed."""
        try:
            _, log = self.outer.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            raise
        return self.outer.returncode, log


def test_the_signals_are_held_before_anything_heavy_is_imported() -> None:
    program = (
        "import sys; before = set(sys.modules); import creatify_exporter.__main__; print(*set(sys.modules) - before)"
    )
    found = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True).stdout
    heavy = {"argparse", "asyncio", "msgspec", "requests", "ssl", "structlog", "typing", "yaml"}
    assert set(found.split()) & heavy == set()


# Seconds after the signals are held: while the parser and all else are imported, while it starts, when it serves.
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1, 0.3, 0.6, 1.0, 1.5, 3.0])
def test_process_1_exits_0_on_sigterm_from_its_first_moments_on(config: Path, delay: float) -> None:
    process = FirstProcess("--config.file", str(config), "--web.listen-address", "127.0.0.1:0")
    until(lambda: process.holds(signal.SIGTERM))
    time.sleep(delay)
    process.send(signal.SIGTERM)
    code, log = process.end()
    assert code == 0, log
    assert "Traceback" not in log


def test_sighup_never_kills_a_process_that_is_still_starting(config: Path) -> None:
    with subprocess.Popen(
        [COMMAND, "--config.file", config, "--web.listen-address", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    ) as process:
        status = Path(f"/proc/{process.pid}/status")
        until(lambda: re.search(r"^SigIgn:\t\w+[13579bdf]$", status.read_text(), re.MULTILINE))
        hanging_up = threading.Event()

        def hang_up() -> None:
            while not hanging_up.wait(0.02):
                process.send_signal(signal.SIGHUP)

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert process.stderr
        lines: list[str] = []
        while "msg=listening" not in "".join(lines):
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        hanging_up.set()
        thread.join()
        process.terminate()
        assert process.wait(30) == 0


def test_a_command_that_does_not_serve_dies_of_sigterm_as_any_other(config: Path, simulator: Simulator) -> None:
    simulator.faults.always(delayed(30), path=None)
    process = subprocess.Popen([COMMAND, "dump", "--config.file", config])
    until(lambda: simulator.requests)
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    first = FirstProcess("dump", "--config.file", str(config))
    until(lambda: first.holds(signal.SIGTERM))
    first.send(signal.SIGTERM)
    assert first.end()[0] == 128 + signal.SIGTERM


def test_two_exporters_do_not_share_a_ledger_file(config: Path, exporter: ExporterProcess) -> None:
    assert exporter.get("/-/ready").ok
    second = subprocess.run(
        [COMMAND, "--config.file", config, "--web.listen-address", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert second.returncode == 1
    assert "in use by another exporter" in second.stderr
    assert len(second.stderr.splitlines()) == 1


def test_a_pair_of_prometheus_servers_costs_the_api_one_fetch(exporter: ExporterProcess, simulator: Simulator) -> None:
    first, second = exporter.samples(), exporter.samples()
    assert len(simulator.listings()) == 1
    assert total(first, "creatify_tasks") == total(second, "creatify_tasks")


def test_scrapes_at_one_time_share_one_fetch(exporter: ExporterProcess, simulator: Simulator) -> None:
    simulator.faults.always(delayed(0.5))
    scrapes = [threading.Thread(target=exporter.get) for _ in range(64)]
    for scrape in scrapes:
        scrape.start()
    for scrape in scrapes:
        scrape.join()
    assert len(simulator.listings()) == 1


def test_an_impatient_scrape_gets_the_counters_and_the_list_is_there_for_the_next(
    exporter: ExporterProcess, simulator: Simulator
) -> None:
    simulator.faults.next(delayed(2.0))
    began = time.monotonic()
    impatient = parsed(exporter.get(**{"X-Prometheus-Scrape-Timeout-Seconds": "1"}).text)
    assert time.monotonic() - began < 1.5
    assert total(impatient, "creatify_up", api="text_generator") == 0
    assert total(impatient, "creatify_tasks") is None
    assert total(impatient, "creatify_fetch_failures_total") == 0
    until(lambda: exporter.value("creatify_fetches_total", "/probe?workspace=default", api="text_generator"))
    assert exporter.value("creatify_tasks")
    assert len(simulator.listings()) == 1


def test_a_failed_fetch_is_counted_and_shows_no_list(exporter: ExporterProcess, simulator: Simulator) -> None:
    simulator.faults.always("unauthorized", path=None)
    samples = exporter.samples()
    assert total(samples, "creatify_up") == 0
    assert total(samples, "creatify_fetch_failures_total", api="text_generator", cause="auth") == 1
    assert total(samples, "creatify_fetch_failures_total", api="text_generator") == 1
    assert total(samples, "creatify_tasks") is None
    assert total(samples, "creatify_remaining_credits") is None


def test_prometheus_discovers_a_target_for_each_workspace_and_the_exporter(
    exporter: ExporterProcess, tmp_path: Path
) -> None:
    job = {"job_name": "creatify", "http_sd_configs": [{"url": f"{exporter.url}/sd", "refresh_interval": "1s"}]}
    settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
    with running_prometheus(tool("prometheus", "prometheus"), tmp_path / "prometheus", settings) as prometheus:
        until(lambda: prometheus.value("count(up == 1)") == 2)
        until(lambda: prometheus.value('creatify_up{api="text_generator",workspace="default"}') == 1)
        assert prometheus.value("count(creatify_exporter_build_info)") == 1


def test_a_reload_takes_a_good_file_and_keeps_the_old_configuration_beside_a_bad_one(
    exporter: ExporterProcess, config: Path
) -> None:
    good = config.read_text()
    config.write_text(good.replace("workspaces:", "workspacse:"))
    refused = requests.post(f"{exporter.url}/-/reload", timeout=10)
    assert refused.status_code == 500
    assert "workspacse" in refused.text
    assert exporter.value("creatify_exporter_config_last_reload_successful") == 0
    assert exporter.value("creatify_up", api="text_generator") == 1

    config.write_text(good.replace("name: default", "name: renamed"))
    exporter.process.send_signal(signal.SIGHUP)
    until(lambda: exporter.value("creatify_exporter_config_last_reload_successful") == 1)
    assert exporter.get("/probe?workspace=default").status_code == 404
    assert exporter.value("creatify_up", "/probe?workspace=renamed", workspace="renamed", api="text_generator") == 1


def test_dump_prints_a_scrape_and_fails_when_a_fetch_failed(config: Path, simulator: Simulator) -> None:
    good = subprocess.run([COMMAND, "dump", "--config.file", config], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    assert total(parsed(good.stdout), "creatify_up", api="text_generator") == 1
    assert "process_" not in good.stdout
    simulator.faults.always("unavailable")
    bad = subprocess.run([COMMAND, "dump", "--config.file", config], capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert total(parsed(bad.stdout), "creatify_up", api="text_generator") == 0
    assert (total(parsed(bad.stdout), "creatify_tasks_finished_total") or 0) > 0
