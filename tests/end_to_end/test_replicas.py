"""Several exporters on one PostgreSQL behind one address: each of two Prometheus servers ends up with the truth."""

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from accounts import MINUTE, NEWCOMER, Run, busy_account, nonzero
from conftest import tool
from creatify_exporter.simulator import MODELS, Account, Clock, Fault, Listing, Simulator, Traffic, Truth, replied
from databases import Postgres
from processes import ExporterProcess, Samples, free_port, running_prometheus, total, until, wait_until, write_config

pytestmark = pytest.mark.xdist_group("replicas")  # one run of it is enough

SPEED = 120.0
LASTING = 62.0  # real seconds: two hours of the account's time
PROMETHEUS = ("first", "second")
FINISHED = "creatify_tasks_finished_total"


class Service(ThreadingHTTPServer):
    """One address for several exporters: each request goes to any of those that listen, by a die of its own."""

    daemon_threads = True

    def __init__(self, ports: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.ports, self.dice = ports, random.Random(7)  # noqa: S311 - a die
        self.answered = dict.fromkeys(ports, 0)


class _Forward(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        for port in self.server.dice.sample(self.server.ports, len(self.server.ports)):
            try:
                headers = {name: self.headers[name] for name in ("Accept", "X-Prometheus-Scrape-Timeout-Seconds")}
                answer = requests.get(f"http://127.0.0.1:{port}{self.path}", headers=headers, timeout=(0.5, 2))
            except requests.ConnectionError:  # nobody listens there now
                continue
            except requests.Timeout:
                return
            self.server.answered[port] += 1
            with suppress(ConnectionError):  # Prometheus waits for no more than a second
                self.send_response(answer.status_code)
                self.send_header("Content-Type", answer.headers["Content-Type"])
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)
            return

    def log_request(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(ports: list[int]) -> Iterator[Service]:
    with Service(ports) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.shutdown()


class Outcome:
    """What each Prometheus holds after the run, and the counters through the service before and after it."""

    def __init__(self, runs: dict[str, Run], before: Samples, after: Samples, truth: Truth) -> None:
        self.runs, self.before, self.after, self.truth = runs, before, after, truth

    def increases(self, name: str) -> dict[str, float]:
        """Return by model how far a counter has come."""
        models = (*(model.name for model in MODELS), NEWCOMER)
        return {
            model: (total(self.after, name, model=model) or 0) - (total(self.before, name, model=model) or 0)
            for model in models
        }


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Outcome]:
    """Let the account live; one replica is killed, one paused in mid-fetch, and PostgreSQL stops twice."""
    binary, folder = tool("prometheus", "prometheus"), tmp_path_factory.mktemp("replicas")
    clock = Clock.accelerated(LASTING, SPEED)
    began, ports = time.time(), [free_port() for _ in range(3)]
    listing = Listing(younger_than=70 * MINUTE, order="shuffled", repeats=True)
    with ExitStack() as stack:
        simulator = stack.enter_context(Simulator(busy_account(clock), clock, listing=listing))
        config = write_config(
            folder / "config.yml",
            simulator,
            fetch={"min_interval": "100ms"},
            ledger={"url": postgres.database(), "settle_after": "45m", "new_series_hold": "3s"},
        )
        replicas = {port: started(config, port) for port in ports}
        stack.callback(end, replicas)
        before = replicas[ports[0]].samples()
        first = simulator.account.truth(simulator.listings()[0].at)
        service = stack.enter_context(serving(ports))
        job = {"job_name": "creatify", "static_configs": [{"targets": [f"127.0.0.1:{service.server_port}"]}]}
        settings = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
        servers = {
            name: stack.enter_context(running_prometheus(binary, folder / name, settings)) for name in PROMETHEUS
        }
        wait_until(began + 15)
        replicas[ports[0]].kill()
        replicas[ports[0]] = started(config, ports[0])
        wait_until(began + 22)
        replicas[ports[1]].process.send_signal(signal.SIGSTOP)
        wait_until(began + 28)
        replicas[ports[1]].process.send_signal(signal.SIGCONT)
        for moment, signum in ((32, signal.SIGINT), (40, signal.SIGQUIT)):
            wait_until(began + moment)
            postgres.stop(signum)
            time.sleep(5)  # in which somebody asks
            postgres.start()
        wait_until(began + LASTING + 4)
        assert min(service.answered.values()) > 5
        after = replicas[ports[2]].samples()
        truth = simulator.account.truth(clock.now()) - first
        runs = {name: Run(server, truth, began) for name, server in servers.items()}
        yield Outcome(runs, before, after, truth)


def started(config: Path, port: int) -> ExporterProcess:
    return ExporterProcess("--config.file", str(config), "--web.listen-address", f"127.0.0.1:{port}")


def end(replicas: dict[int, ExporterProcess]) -> None:
    for replica in replicas.values():
        replica.kill()


def test_what_all_have_counted_together_is_the_truth(outcome: Outcome) -> None:
    assert sum(outcome.truth.finished.values()) > 1000
    assert nonzero(outcome.increases("creatify_tasks_finished_total")) == nonzero(outcome.truth.finished)
    assert nonzero(outcome.increases("creatify_tasks_failed_total")) == nonzero(outcome.truth.failed)
    used, refunded = (outcome.increases(f"creatify_credits_{name}_total") for name in ("used", "refunded"))
    assert nonzero({model: used[model] - refunded[model] for model in used}) == nonzero(outcome.truth.credits)


@pytest.mark.parametrize("name", PROMETHEUS)
def test_each_prometheus_sees_the_truth_and_no_counter_ever_goes_back(outcome: Outcome, name: str) -> None:
    run = outcome.runs[name]
    for counter in ("tasks_submitted", "tasks_finished", "tasks_failed", "credits_used", "credits_refunded"):
        for series in run.samples(f"creatify_{counter}_total"):
            values = [float(value) for _, value in series["values"]]
            assert values == sorted(values), series["metric"]
            labels = {key: series["metric"][key] for key in ("model", "reason") if key in series["metric"]}
            assert values[-1] == total(outcome.after, f"creatify_{counter}_total", **labels)
    seconds = int(time.time() - run.began)
    [increase] = run.prometheus.query(f"sum(increase(creatify_tasks_finished_total[{seconds}s]))")
    first = run.prometheus.query(f"creatify_tasks_finished_total[{seconds}s]")
    missed = sum(float(series["values"][0][1]) for series in first) - (total(outcome.before, FINISHED) or 0)
    truth = sum(outcome.truth.finished.values()) - missed
    assert float(increase["value"][1]) == pytest.approx(truth, rel=4 / LASTING)


@pytest.mark.parametrize("name", PROMETHEUS)
def test_a_model_whose_very_first_tasks_fail_is_visible_across_replicas(outcome: Outcome, name: str) -> None:
    failures = f'sum(increase(creatify_tasks_failed_total{{model="{NEWCOMER}"}}[10m]))'
    assert outcome.runs[name].prometheus.value(failures) == pytest.approx(4, abs=0.5)


@pytest.mark.parametrize("name", PROMETHEUS)
def test_a_database_that_was_down_is_told_as_such(outcome: Outcome, name: str) -> None:
    prometheus, up = outcome.runs[name].prometheus, 'creatify_up{api="text_generator"}'
    assert prometheus.value(f"min_over_time({up}[10m])") == 0
    assert prometheus.value(up) == 1
    assert prometheus.value('max(max_over_time(creatify_fetch_failures_total{cause="ledger"}[10m]))')


def listed(number: int) -> Fault:
    """Return a list of so many tasks, the same ones each time."""
    task = {"model_name": "pro", "status": "done", "credits_used": 1, "created_at": datetime.now(UTC).isoformat()}
    return replied(200, json.dumps([{"id": f"task-{each}", **task} for each in range(number)]).encode())


def test_a_replica_stopped_in_the_very_transaction_of_its_commit_changes_nothing(
    postgres: Postgres, tmp_path: Path, stack: ExitStack
) -> None:
    simulator = stack.enter_context(Simulator(Account(1, time.time() - 60, Traffic(rate=0.0)), Clock()))
    url = postgres.database()
    config = write_config(tmp_path / "config.yml", simulator, fetch={"min_interval": "0s"}, ledger={"url": url})
    stopped, other = replicas = [started(config, free_port()) for _ in range(2)]
    stack.callback(end, dict(enumerate(replicas)))
    simulator.faults.always(listed(3))
    assert [each.value(FINISHED) for each in replicas] == [3, 3]
    simulator.faults.always(listed(5))
    admin = stack.enter_context(postgres.admin(url.rpartition("/")[2]))
    state = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid() AND "

    def found(what: str) -> bool:
        return bool(admin.execute(f"{state}{what}").fetchall())

    with postgres.admin(url.rpartition("/")[2]) as ahead, ahead.transaction():
        ahead.execute("SELECT number FROM creatify_exporter.book FOR UPDATE")
        threading.Thread(target=lambda: suppressed(stopped.get), daemon=True).start()
        until(lambda: found("wait_event_type = 'Lock'"))
        stopped.process.send_signal(signal.SIGSTOP)
    until(lambda: found("state = 'idle in transaction' AND backend_xid IS NOT NULL"))  # now it holds the lock itself
    until(lambda: other.value(FINISHED) == 5, 60)
    stopped.process.send_signal(signal.SIGCONT)
    until(lambda: stopped.value(FINISHED) == 5)
    assert stopped.value("creatify_fetch_failures_total", cause="ledger") == 1
    assert [each.value(FINISHED) for each in replicas] == [5, 5]


def suppressed(ask: Callable[[], object]) -> None:
    with suppress(requests.RequestException):
        ask()
