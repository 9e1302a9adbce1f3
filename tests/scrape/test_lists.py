"""The samples of a scrape for each of Creatify's lists, compared with the history of the simulated account."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from accounts import nonzero
from clocks import ManualClock
from creatify_exporter import metrics
from creatify_exporter.config.credential import Credential
from creatify_exporter.config.schema import Config, LedgerSettings, ListSettings, Workspace
from creatify_exporter.config.url import LedgerUrl
from creatify_exporter.creatify import client
from creatify_exporter.exporter import Exporter, rules
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.lists import LISTS
from creatify_exporter.simulator import PRODUCTS, Account, Clock, Served, Simulator, Traffic, Truth
from goldens import assert_golden
from processes import Samples, parsed, total

NOW = datetime(2026, 10, 31, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0
GOLDEN = Path(__file__).with_name("golden") / "lists.txt"


class Site:
    """An exporter of all lists, with a ledger in a file; each look starts a new exporter."""

    def __init__(self, simulator: Simulator, clock: ManualClock, ledger: Path) -> None:
        self.simulator, self.clock, self.ledger = simulator, clock, ledger
        self.reasons: dict[str, str] = {}
        self.causes: dict[str, str | None] = {}

    def look(self) -> str:
        workspace = Workspace(
            name="default",
            api_id=Credential(self.simulator.api_id),
            api_key=Credential(self.simulator.api_key),
            base_url=self.simulator.url,
            lists=tuple(ListSettings(name=api) for api in LISTS),
        )
        url = LedgerUrl(f"sqlite:///{self.ledger}")
        config = Config(workspaces=(workspace,), ledger=LedgerSettings(url=url, new_series_hold=0.0))
        ledger = Ledger(SqliteStore(self.ledger), rules(config), self.clock)
        with closing(Exporter(config, ledger, self.clock)) as exporter:
            scrape = exporter.begin_scrape()
            assert not wait(scrape.futures, timeout=60).not_done
            ends = {api: ticket.outcome() for _, tickets in scrape.tickets for api, ticket in tickets.items()}
            self.causes = {api: outcome.cause for api, outcome in ends.items()}
            self.reasons = {api: outcome.reason or "" for api, outcome in ends.items()}
            return generate_latest(exporter.collect(scrape, own=False)).decode()


@pytest.fixture(scope="module")
def accounts() -> dict[str, Account]:
    return {
        api: Account(1, NOW - HOUR, Traffic(max(product.rate, 1 / 60)), product=product)
        for api, product in PRODUCTS.items()
    }


@pytest.fixture
def site(accounts: dict[str, Account], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(client, "_SPACING", 0.0)
    clock = ManualClock(NOW)
    lists = {api: Served(account) for api, account in accounts.items() if api != "text_generator"}
    with Simulator(accounts["text_generator"], Clock(real=clock), lists=lists) as simulator:
        yield Site(simulator, clock, tmp_path / "ledger.db")


def shown(samples: Samples, family: metrics.Family, api: str) -> dict[str, float]:
    """Return the values that are not 0, by model."""
    sums: dict[str, float] = {}
    for (name, labels), value in samples.items():
        found = dict(labels)
        if name == family.name and found.get("api") == api:
            sums[found["model"]] = sums.get(found["model"], 0.0) + value
    return nonzero(sums)


def seen_finished(account: Account, truth: Truth) -> dict[str, float]:
    """Return the finished tasks, except those that were seen running again, such as videos after their image."""
    end = NOW + HOUR
    again = (each for each in account.tasks(end) if NOW < each.finished <= end and each.step(end).state == "running")
    missed = Counter(task.model for task in again)
    return {model: finished - missed[model] for model, finished in truth.finished.items()}


def test_every_list_has_a_product_of_the_simulated_api() -> None:
    missing, spare = sorted(LISTS.keys() - PRODUCTS.keys()), sorted(PRODUCTS.keys() - LISTS.keys())
    assert not missing, f"add these lists of lists.py to simulator/products.py: {', '.join(missing)}"
    assert not spare, f"add these products of simulator/products.py to lists.py: {', '.join(spare)}"


def test_all_lists_are_as_golden(site: Site) -> None:
    """The file has no zeros, buckets or durations of fetches."""
    unsteady = ("#", "creatify_last_fetch_duration", "creatify_task_duration_seconds_bucket")
    lines = [line for line in site.look().splitlines() if not line.startswith(unsteady) and not line.endswith(" 0.0")]
    assert_golden("".join(f"{line}\n" for line in lines), GOLDEN)


def test_the_counters_of_each_list_match_the_simulated_account(site: Site) -> None:
    site.look()
    site.clock.at += HOUR
    samples = parsed(site.look())
    assert not any(site.causes.values())
    for api, served in site.simulator.served().items():
        truth = served.account.truth(site.clock.at)
        assert sum(truth.finished.values()) > 20, api
        assert shown(samples, metrics.TASKS_SUBMITTED, api) == nonzero(truth.submitted), api
        assert shown(samples, metrics.TASKS_FINISHED, api) == nonzero(seen_finished(served.account, truth)), api
        assert shown(samples, metrics.TASKS_FAILED, api) == nonzero(truth.failed), api
        assert (total(samples, "creatify_tasks", api=api, status="preview") or 0) == sum(truth.previews.values()), api
        used, refunded = (shown(samples, each, api) for each in (metrics.CREDITS_USED, metrics.CREDITS_REFUNDED))
        net = nonzero({model: used.get(model, 0) - refunded.get(model, 0) for model in used | refunded})
        assert net == (nonzero(truth.credits) if LISTS[api].tells_credits else {}), api


def test_a_value_that_a_list_does_not_report_has_no_series(site: Site) -> None:
    samples = parsed(site.look())
    creditless = {api for api, each in LISTS.items() if not each.tells_credits}
    assert creditless
    for family in (metrics.TASKS_CREDITS, metrics.CREDITS_USED, metrics.FAILED_CREDITS_REFUNDED):
        assert {dict(labels)["api"] for name, labels in samples if name == family.name} == LISTS.keys() - creditless
    undated = {api for api, each in LISTS.items() if not each.tells_creation}
    durations = {dict(labels)["api"] for name, labels in samples if name == "creatify_task_duration_seconds_count"}
    assert durations == LISTS.keys() - undated


def test_a_waiting_task_of_an_undated_list_is_dated_by_its_first_sight(site: Site) -> None:
    site.look()
    site.clock.at += 20
    samples = parsed(site.look())
    found = [
        value
        for (name, labels), value in samples.items()
        if name == metrics.OLDEST_TASK.name and dict(labels)["api"] == "link_to_videos"
    ]
    assert found
    assert set(found) <= {NOW, NOW + 20}


def test_a_list_that_is_refused_fails_alone_and_says_what_to_do(site: Site) -> None:
    site.simulator.lists["lipsyncs"].in_plan = False
    site.simulator.lists["aurora"].path = "/api/aurora_2/"
    samples = parsed(site.look())
    failed = {api: cause for api, cause in site.causes.items() if cause}
    assert failed == {"lipsyncs": "auth", "aurora": "http_status"}
    assert "the plan lacks lipsyncs (/api/lipsyncs/): remove it from lists" in site.reasons["lipsyncs"]
    assert "remove aurora from lists, or set its new path" in site.reasons["aurora"]
    assert {
        dict(labels)["api"] for (name, labels), value in samples.items() if name == "creatify_up" and not value
    } == {
        "lipsyncs",
        "aurora",
    }
