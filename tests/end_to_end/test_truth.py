"""Prometheus ends up with the truth: real exporter, real Prometheus, an account that is known to the last task."""

import time
from collections.abc import Iterator

import pytest

from accounts import MINUTE, NEWCOMER, Run, busy_account, nonzero
from conftest import tool
from creatify_exporter.simulator import MODELS, Clock, Listing, Simulator
from processes import ExporterProcess, free_port, running_prometheus, until, wait_until, write_config

pytestmark = pytest.mark.xdist_group("truth")  # one run of it is enough

SPEED = 120.0
LASTING = 90.0  # real seconds: three hours of the account's time
KILLS = (25.0, 45.0, 65.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Let the account live, kill the exporter three times, and wait until the last task has its last credits."""
    binary, folder = tool("prometheus", "prometheus"), tmp_path_factory.mktemp("truth")
    clock = Clock.accelerated(LASTING, SPEED)
    began, port = time.time(), free_port()
    listing = Listing(younger_than=70 * MINUTE, order="shuffled", repeats=True)
    with Simulator(busy_account(clock), clock, listing=listing) as simulator:
        config = write_config(
            folder / "config.yml",
            simulator,
            fetch={"min_interval": "100ms"},
            ledger={"url": f"sqlite:///{folder}/ledger.db", "settle_after": "45m", "new_series_hold": "3s"},
        )
        flags = ("--config.file", str(config), "--web.listen-address", f"127.0.0.1:{port}")
        exporter = ExporterProcess(*flags)
        # On a busy machine the first list may take longer than Prometheus waits: it begins with the second one.
        assert exporter.get().ok
        listed = len(simulator.listings())
        job = {"job_name": "creatify", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        settings = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
        with running_prometheus(binary, folder / "prometheus", settings) as prometheus:
            until(lambda: prometheus.value("creatify_up"))
            first = simulator.listings()[listed].at
            for moment in KILLS:
                wait_until(began + moment)
                exporter.kill()
                exporter = ExporterProcess(*flags)
            wait_until(began + LASTING + 4)
            truth = simulator.account.truth(clock.now()) - simulator.account.truth(first)
            yield Run(prometheus, truth, began)
        exporter.kill()


def test_the_run_was_long_enough_to_mean_something(run: Run) -> None:
    assert sum(run.truth.finished.values()) > 1000
    assert sum(run.truth.failed.values()) > 20


def test_finished_tasks_are_those_that_finished(run: Run) -> None:
    assert nonzero(run.increases("creatify_tasks_finished_total")) == nonzero(run.truth.finished)


def test_failed_tasks_are_those_that_failed(run: Run) -> None:
    assert nonzero(run.increases("creatify_tasks_failed_total")) == nonzero(run.truth.failed)


def test_credits_are_those_that_were_spent(run: Run) -> None:
    used = run.increases("creatify_credits_used_total")
    refunded = run.increases("creatify_credits_refunded_total")
    assert nonzero({model: used[model] - refunded[model] for model in used}) == nonzero(run.truth.credits)


def test_no_counter_is_ever_reset(run: Run) -> None:
    assert len(run.samples("creatify_tasks_finished_total")) == len(MODELS) + 1
    for name in ("tasks_submitted", "tasks_finished", "tasks_failed", "credits_used", "credits_refunded"):
        for series in run.prometheus.query(f"resets(creatify_{name}_total[10m])"):
            assert series["value"][1] == "0", series["metric"]


def test_increase_is_true_within_two_scrape_intervals(run: Run) -> None:
    seconds = int(time.time() - run.began)
    [series] = run.prometheus.query(f"sum(increase(creatify_tasks_finished_total[{seconds}s]))")
    assert float(series["value"][1]) == pytest.approx(sum(run.truth.finished.values()), rel=4 / LASTING)


def test_a_model_whose_very_first_tasks_fail_is_visible_in_increase(run: Run) -> None:
    failures = f'sum(increase(creatify_tasks_failed_total{{model="{NEWCOMER}"}}[10m]))'
    assert run.prometheus.value(failures) == pytest.approx(4, abs=0.5)
