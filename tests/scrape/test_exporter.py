"""The samples of a scrape, from the list in the API to the exposition."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from clocks import ManualClock
from conftest import examples
from creatify_exporter import metrics
from creatify_exporter.config import schema as config
from creatify_exporter.config.credential import Credential
from creatify_exporter.config.plan import Plan
from creatify_exporter.config.schema import Config, Workspace
from creatify_exporter.config.url import LedgerUrl
from creatify_exporter.creatify.reasons import DEFAULT_RULES
from creatify_exporter.creatify.task import FIELDS, STATUSES
from creatify_exporter.errors import CAUSES, ConfigError
from creatify_exporter.exporter import Exporter, Scrape, rules
from creatify_exporter.lanes import Lanes
from creatify_exporter.ledger.ledger import Counters, Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.simulator import BALANCE_PATH, Account, Clock, Simulator, Traffic, delayed, replied
from creatify_exporter.target import Target
from goldens import assert_golden
from processes import Samples, parsed, total

NOW = datetime(2026, 10, 31, 12, tzinfo=UTC).timestamp()
GOLDEN = Path(__file__).with_name("golden")
GAUGES_OF_THE_LIST = (
    "creatify_tasks",
    "creatify_tasks_credits",
    "creatify_oldest_task_created_timestamp_seconds",
    "creatify_list_oldest_created_timestamp_seconds",
    "creatify_list_newest_created_timestamp_seconds",
    "creatify_invalid_tasks",
)


def entry(number: int, status: str | None = "done", model: str | None = "pro", **fields: Any) -> dict[str, Any]:
    """Make a task that is `number` minutes old at `NOW`, unless `fields` has another time."""
    created_at = datetime.fromtimestamp(NOW - 60 * number, UTC).isoformat()
    return {"id": f"task-{number}", "model_name": model, "status": status, "created_at": created_at, **fields}


class Api(AbstractContextManager["Api"]):
    """An API; the test sets its list."""

    def __init__(self, clock: ManualClock) -> None:
        account = Account(1, NOW - 60, Traffic(rate=0.0))
        self.simulator = Simulator(account, Clock(real=clock))

    def __enter__(self) -> "Api":
        self.simulator.__enter__()
        self.lists([])
        return self

    def __exit__(self, *_: object) -> None:
        self.simulator.__exit__(None, None, None)

    def lists(self, tasks: list[Any]) -> None:
        self.simulator.faults.always(replied(200, json.dumps(tasks).encode()))

    def fails(self, fault: str = "unauthorized", path: str | None = None) -> None:
        self.simulator.faults.always(fault, path=path)

    def workspace(self, name: str = "default", **settings: Any) -> Workspace:
        keys = {"api_id": Credential(self.simulator.api_id), "api_key": Credential(self.simulator.api_key)}
        return Workspace(**{"name": name, "base_url": self.simulator.url, **keys, **settings})


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def api(clock: ManualClock) -> Iterator[Api]:
    with Api(clock) as served:
        yield served


class Bench:
    """An exporter with its own ledger."""

    def __init__(self, clock: ManualClock, folder: Path, *workspaces: Workspace, **sections: Any) -> None:
        self.clock, self.path = clock, folder / "ledger.db"
        self.config = self.configuration(*workspaces, **sections)
        ledger = Ledger(SqliteStore(self.config.ledger.url.path), rules(self.config), clock)
        self.exporter = Exporter(self.config, ledger, clock)

    def configuration(self, *workspaces: Workspace, **sections: Any) -> Config:
        sections = {"fetch": config.Fetch(min_interval=0.0, timeout=5.0), **sections}
        sections = {"ledger": config.LedgerSettings(url=LedgerUrl(f"sqlite:///{self.path}")), **sections}
        return Config(workspaces=workspaces, **sections)

    def fetched(self, *names: str) -> Scrape:
        scrape = self.exporter.begin_scrape(names or None)
        wait(scrape.futures, timeout=10)
        return scrape

    def text(self, *names: str, own: bool = False) -> str:
        return generate_latest(self.exporter.collect(self.fetched(*names), own=own)).decode()

    def scrape(self, *names: str) -> Samples:
        return parsed(self.text(*names))


@pytest.fixture
def bench(clock: ManualClock, api: Api, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    with ExitStack() as stack:

        def made(*workspaces: Workspace, **sections: Any) -> Bench:
            one = Bench(clock, tmp_path, *(workspaces or [api.workspace()]), **sections)
            stack.callback(one.exporter.close)
            return one

        yield made


Make = Callable[..., Bench]


def labels(samples: Samples, name: str, label: str) -> set[str]:
    return {dict(those)[label] for each, those in samples if each == name}


# --- The list ------------------------------------------------------------------------------------------------------


def test_every_model_that_the_ledger_knows_has_all_four_statuses(api: Api, bench: Make) -> None:
    one = bench()
    api.lists([entry(1, "pending", credits_used=0.5), entry(2, "done", "flash", credits_used=2)])
    samples = one.scrape()
    for name, value in (("creatify_tasks", 1), ("creatify_tasks_credits", 0.5)):
        assert total(samples, name, model="pro", status="pending") == value
        assert len([each for each, _ in samples if each == name]) == 2 * len(STATUSES)
    assert total(samples, "creatify_oldest_task_created_timestamp_seconds") == NOW - 60
    assert total(samples, "creatify_list_newest_created_timestamp_seconds") == NOW - 60
    assert total(samples, "creatify_list_oldest_created_timestamp_seconds") == NOW - 120
    api.lists([])
    samples = one.scrape()
    assert total(samples, "creatify_tasks") == 0
    assert labels(samples, "creatify_tasks", "model") == {"pro", "flash"}
    assert total(samples, "creatify_oldest_task_created_timestamp_seconds") is None
    assert total(samples, "creatify_list_newest_created_timestamp_seconds") is None


@settings(max_examples=examples(25))
@given(
    listed=st.lists(
        st.builds(
            entry,
            st.integers(1, 30),
            st.sampled_from(["pending", "running", "done", "failed", "in_queue", None, 7]),
            st.sampled_from(["pro", "flash", "", None, 7, "a\nb"]),
            credits_used=st.sampled_from([None, 0, 2.5, "1.5", -1, "many"]),
        )
        | st.sampled_from([None, 17, [], "task", {}]),
        max_size=12,
    )
)
def test_the_gauges_are_what_a_naive_reader_counts(listed: list[Any]) -> None:
    """On a real ledger and through a real connection; each list is the first one of its ledger."""
    listed = [
        {**each, "id": f"task-{number}"} if isinstance(each, dict) and "id" in each else each
        for number, each in enumerate(listed)
    ]
    clock = ManualClock(NOW)
    with Api(clock) as api, tempfile.TemporaryDirectory() as folder:
        api.lists(listed)
        one = Bench(clock, Path(folder), api.workspace(remaining_credits=False))
        samples = one.scrape()
        one.exporter.close()
    read = [each for each in listed if isinstance(each, dict)]
    assert total(samples, "creatify_up") == 1
    assert (total(samples, "creatify_tasks") or 0) == len(read)
    for status in STATUSES:
        count = sum(each.get("status") == status for each in read)
        assert (total(samples, "creatify_tasks", status=status) or 0) == count
    worth = {2.5: 2.5, "1.5": 1.5}
    assert (total(samples, "creatify_tasks_credits") or 0) == sum(
        worth.get(each.get("credits_used"), 0) for each in read
    )
    faults = {
        "task": len(listed) - len(read),
        "id": sum("id" not in each for each in read),
        "status": sum(each.get("status") == 7 for each in read),
        "model_name": sum(each.get("model_name") == 7 for each in read),
        "credits_used": sum(each.get("credits_used") in (-1, "many") for each in read),
    }
    for field in FIELDS:
        assert total(samples, "creatify_invalid_tasks", field=field) == faults.get(field, 0)


def test_after_a_failure_the_gauges_of_the_list_are_absent_and_the_counters_stay(api: Api, bench: Make) -> None:
    one = bench()
    api.lists([entry(1, "pending"), entry(2, credits_used=2)])
    before = one.scrape()
    assert all(total(before, name) is not None for name in GAUGES_OF_THE_LIST)
    api.fails()
    after = one.scrape()
    assert [name for name in GAUGES_OF_THE_LIST if total(after, name) is not None] == []
    assert total(after, "creatify_up", api="text_generator") == 0
    for name in (
        "creatify_tasks_submitted_total",
        "creatify_credits_used_total",
        "creatify_task_duration_seconds_count",
    ):
        assert total(after, name) == total(before, name)
    assert total(after, "creatify_last_success_timestamp_seconds") == NOW
    api.lists([entry(1)])
    assert total(one.scrape(), "creatify_tasks", status="done") == 1


def test_every_cause_has_a_series_at_0_from_the_first_scrape(bench: Make) -> None:
    samples = bench().scrape()
    for fetcher in ("text_generator", "remaining_credits"):
        causes = {
            dict(those)["cause"]
            for name, those in samples
            if name == "creatify_fetch_failures_total" and ("api", fetcher) in those
        }
        assert causes == set(CAUSES)
    assert total(samples, "creatify_fetch_failures_total") == 0


def test_all_unknown_statuses_share_a_series_that_exists_only_while_one_is_listed(api: Api, bench: Make) -> None:
    one = bench()
    api.lists([entry(1, "in_queue"), entry(2, "rejected"), entry(3, None)])
    assert total(one.scrape(), "creatify_tasks", status="unknown") == 3
    api.lists([entry(1)])
    assert labels(one.scrape(), "creatify_tasks", "status") == set(STATUSES)


def test_models_beyond_the_limit_are_other_in_gauges_and_counters_alike(api: Api, bench: Make) -> None:
    one = bench(labels=config.Labels(max_models=3, models=("promised",)))
    api.lists([entry(number, "done", f"model-{number}") for number in range(1, 9)])
    samples = one.scrape()
    assert labels(samples, "creatify_tasks", "model") == {"model-8", "model-7", "other"}  # the oldest come first
    for name in ("creatify_tasks", "creatify_tasks_finished_total"):
        assert total(samples, name, model="other") == 6
    api.lists([entry(10, "done", "promised"), entry(11, "done", "another")])
    samples = one.scrape()
    assert total(samples, "creatify_tasks", model="promised") == 1
    assert total(samples, "creatify_tasks", model="other") == 1


def test_a_model_has_about_45_series(api: Api, bench: Make) -> None:
    def series(samples: Samples) -> int:
        return sum(("model", "pro") in those for _, those in samples)

    one = bench()
    api.lists([entry(1)])
    assert 35 <= series(one.scrape()) <= 45
    api.lists([entry(1, "pending"), entry(2, "running"), entry(3, "in_queue"), entry(4, "failed", failed_reason="x")])
    samples = one.scrape()
    assert 35 <= series(samples) <= 45
    reasons = labels(samples, "creatify_tasks_failed_total", "reason")
    assert reasons == {*(rule.reason for rule in DEFAULT_RULES), "other", "unspecified"}


def test_a_task_on_two_pages_counts_once_in_gauges_and_counters(api: Api, bench: Make) -> None:
    one = bench()
    b = entry(2, credits_used=2)
    odd = {**entry(4), "status": 7}
    pages = [{"results": [entry(1), odd, b], "next": "?page=2"}, {"results": [b, entry(3), odd], "next": None}]
    api.simulator.faults.next(*(replied(200, json.dumps(page).encode()) for page in pages))
    samples = one.scrape()
    assert total(samples, "creatify_tasks") == total(samples, "creatify_tasks_submitted_total") == 4
    assert total(samples, "creatify_tasks_credits") == total(samples, "creatify_credits_used_total") == 2
    assert total(samples, "creatify_invalid_tasks") == 1


def test_the_model_of_an_old_uncounted_task_is_in_the_gauges_while_there_is_room(api: Api, bench: Make) -> None:
    one = bench(labels=config.Labels(max_models=2))
    api.lists([entry(1)])
    one.scrape()
    old = 60 * 24 * 30
    api.lists([entry(1), entry(old, model="flash"), entry(old + 1, model="lite")])
    samples = one.scrape()
    assert total(samples, "creatify_tasks_submitted_total") == 1
    counts = {
        model: total(samples, "creatify_tasks", model=model) for model in labels(samples, "creatify_tasks", "model")
    }
    assert counts == {"pro": 1, "flash": 1, "other": 1}


# --- The ledger ----------------------------------------------------------------------------------------------------


def test_a_ledger_that_cannot_be_written_keeps_the_gauges_and_says_so(api: Api, bench: Make) -> None:
    one = bench()
    api.lists([entry(1)])
    one.scrape()
    away = one.path.with_name("away.db")
    one.path.rename(away)
    api.lists([entry(1), entry(2)])
    samples = one.scrape()
    assert total(samples, "creatify_up", api="text_generator") == 0
    assert total(samples, "creatify_fetch_failures_total", cause="ledger") == 1
    assert total(samples, "creatify_fetch_failures_total") == 1
    assert total(samples, "creatify_tasks") == 2
    assert total(samples, "creatify_tasks_submitted_total") == 1
    away.rename(one.path)
    samples = one.scrape()
    assert total(samples, "creatify_up", api="text_generator") == 1
    assert total(samples, "creatify_tasks_submitted_total") == 2


def test_a_fetch_that_ends_while_the_scrape_is_written_is_not_shown_in_part(
    api: Api, clock: ManualClock, bench: Make
) -> None:
    """In part would be: gauges without counters, all models as `other`, or `creatify_up 1` without a gauge."""

    class Slow(Target):
        """Reads the ledger just before the fetch is recorded, and waits until it is."""

        def counters(self, api: str) -> Counters | None:
            counters = super().counters(api)
            wait(scrape.futures, timeout=10)
            return counters

    one = bench()
    api.lists([entry(1)])
    api.simulator.faults.next(lambda response: delayed(0.3)(replied(200, json.dumps([entry(1)]).encode())(response)))
    ledger = Ledger(SqliteStore(None), rules(one.config), clock)
    target = Slow(api.workspace(remaining_credits=False), one.config.fetch, ledger, Lanes(1, 30), clock)
    one.exporter.targets = {"default": target}
    scrape = one.exporter.begin_scrape()
    samples = parsed(generate_latest(one.exporter.collect(scrape, own=False)).decode())
    assert total(samples, "creatify_up") == 0
    assert [name for name in GAUGES_OF_THE_LIST if total(samples, name) is not None] == []
    again = one.exporter.begin_scrape()
    samples = parsed(generate_latest(one.exporter.collect(again, own=False)).decode())
    assert total(samples, "creatify_up") == 1  # the late list, completely
    assert total(samples, "creatify_tasks", model="pro") == total(samples, "creatify_tasks_submitted_total") == 1
    wait(again.futures, timeout=10)
    target.close()


# --- Workspaces, balance, plan -------------------------------------------------------------------------------------


def test_two_workspaces_share_a_page_and_nothing_else(api: Api, clock: ManualClock, bench: Make) -> None:
    with Api(clock) as second:
        one = bench(api.workspace("one"), second.workspace("two"))
        api.lists([entry(1)])
        second.lists([entry(1), entry(2, "failed", "flash")])
        samples = one.scrape()
        assert total(samples, "creatify_tasks_submitted_total", workspace="one") == 1
        assert total(samples, "creatify_tasks_submitted_total", workspace="two") == 2
        assert total(samples, "creatify_tasks", workspace="one", model="flash") is None
        second.fails()
        samples = one.scrape()
        assert total(samples, "creatify_up", workspace="one", api="text_generator") == 1
        assert total(samples, "creatify_up", workspace="two", api="text_generator") == 0
        assert {dict(those)["workspace"] for _, those in one.scrape("two")} == {"two"}


def test_the_balance_fails_alone_and_its_sample_is_then_absent(api: Api, bench: Make) -> None:
    one = bench()
    api.fails("server_error", path=BALANCE_PATH)
    samples = one.scrape()
    assert total(samples, "creatify_remaining_credits") is None
    assert total(samples, "creatify_up", api="remaining_credits") == 0
    assert total(samples, "creatify_fetch_failures_total", api="remaining_credits", cause="http_status") == 1
    assert total(samples, "creatify_up", api="text_generator") == 1
    assert total(samples, "creatify_fetch_failures_total", api="text_generator") == 0


def test_the_balance_is_shown_also_when_the_list_fails_and_asked_for_every_two_minutes(api: Api, bench: Make) -> None:
    one = bench()
    api.fails("server_error", path="/sse/text_generator/")
    assert total(one.scrape(), "creatify_remaining_credits") == api.simulator.account.remaining_credits(NOW)
    assert total(one.scrape(), "creatify_remaining_credits") is not None
    asked = [request.path for request in api.simulator.requests]
    assert asked.count(BALANCE_PATH) == 1


def test_without_the_balance_it_has_no_series(api: Api, bench: Make) -> None:
    text = bench(api.workspace(remaining_credits=False)).text()
    assert "remaining_credits" not in text
    assert BALANCE_PATH not in {request.path for request in api.simulator.requests}


def day(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("on", "now", "next_time"),
    [
        (1, "2026-10-31T12:00", "2026-11-01"),
        (15, "2026-10-14T23:59:59", "2026-10-15"),
        (15, "2026-10-15T00:00", "2026-11-15"),
        (1, "2026-12-31T23:59:59", "2027-01-01"),
        (1, "2026-12-01T00:00", "2027-01-01"),
        (31, "2026-12-31T00:00", "2027-01-31"),
        (31, "2026-11-02T00:00", "2026-11-30"),
        (31, "2026-11-30T00:00", "2026-12-31"),
        (31, "2027-01-31T10:00", "2027-02-28"),
        (29, "2027-02-01T00:00", "2027-02-28"),
        (29, "2028-02-01T00:00", "2028-02-29"),
        (30, "2028-02-29T00:00:01", "2028-03-30"),
    ],
)
def test_a_plan_renews_at_midnight_utc_on_its_day_or_the_last_of_a_shorter_month(
    on: int, now: str, next_time: str
) -> None:
    assert Plan(renews_on_day=on).renews_at(day(now)) == day(next_time)


@given(on=st.integers(1, 31), now=st.integers(0, 4_000_000_000))
def test_a_renewal_is_ahead_and_no_more_than_a_month(on: int, now: int) -> None:
    assert 0 < (Plan(renews_on_day=on).renews_at(now) or 0) - now <= 31 * 24 * 3600


def test_a_plan_shows_what_is_configured_of_it(api: Api, bench: Make) -> None:
    priced = Plan(price_per_credit=0.15, currency="EUR")
    full = Plan(credits=2000.0, renews_on_day=1, price_per_credit=0.0, currency="USD")
    samples = bench(
        api.workspace("none"), api.workspace("priced", plan=priced), api.workspace("full", plan=full)
    ).scrape()
    plans = {name: value for name, value in samples.items() if "plan" in name[0] or "price" in name[0]}
    assert plans == {
        ("creatify_credit_price", frozenset({"workspace": "priced", "currency": "EUR"}.items())): 0.15,
        ("creatify_credit_price", frozenset({"workspace": "full", "currency": "USD"}.items())): 0.0,
        ("creatify_plan_credits", frozenset({"workspace": "full"}.items())): 2000,
        ("creatify_plan_renewal_timestamp_seconds", frozenset({"workspace": "full"}.items())): day("2026-11-01"),
    }


# --- Reload --------------------------------------------------------------------------------------------------------


def test_a_reload_keeps_all_counts_and_starts_new_workspaces_at_0(api: Api, bench: Make) -> None:
    kept, changed, dropped = api.workspace("kept"), api.workspace("changed"), api.workspace("dropped")
    one = bench(kept, changed, dropped)
    api.lists([entry(1)])
    one.scrape()
    other = api.workspace("changed", plan=Plan(credits=1.0))
    one.exporter.reload(one.configuration(api.workspace("kept"), other, api.workspace("added")))
    samples = one.scrape()
    assert labels(samples, "creatify_up", "workspace") == {"kept", "changed", "added"}
    fetches = {
        name: total(samples, "creatify_fetches_total", workspace=name, api="text_generator")
        for name in ("kept", "changed", "added")
    }
    assert fetches == {"kept": 2, "changed": 2, "added": 1}
    assert total(samples, "creatify_tasks_submitted_total", workspace="changed") == 1
    assert total(samples, "creatify_plan_credits", workspace="changed") == 1


def test_a_fetch_under_way_survives_the_reload_that_removes_its_workspace(api: Api, bench: Make) -> None:
    one = bench(api.workspace("kept"), api.workspace("dropped", remaining_credits=False))
    api.simulator.faults.always(lambda response: delayed(0.3)(replied(200, json.dumps([entry(1)]).encode())(response)))
    scrape = one.exporter.begin_scrape(["dropped"])
    one.exporter.reload(one.configuration(api.workspace("kept")))
    wait(scrape.futures, timeout=10)
    samples = parsed(generate_latest(one.exporter.collect(scrape, own=False)).decode())
    assert total(samples, "creatify_up", workspace="dropped") == 1


def test_no_answer_is_older_than_the_newest_task_in_it(api: Api, bench: Make) -> None:
    one = bench(api.workspace())
    for date, recorded in (("Thu, 01 Jan 1970 00:00:00 GMT", NOW - 120), ("Sat, 31 Oct 2026 11:59:30 GMT", NOW - 30)):
        api.simulator.faults.next(replied(200, json.dumps([entry(3), entry(2)]).encode(), date=date))
        assert total(one.scrape(), "creatify_last_success_timestamp_seconds") == recorded


def test_a_reload_with_another_ledger_is_refused_and_changes_nothing(api: Api, bench: Make) -> None:
    one = bench()
    elsewhere = one.configuration(api.workspace("another"), ledger=config.LedgerSettings())
    with pytest.raises(ConfigError, match=r"ledger\.url: .*restart"):
        one.exporter.reload(elsewhere)
    assert list(one.exporter.targets) == ["default"]
    assert one.exporter.config is one.config


def test_the_result_and_the_time_of_the_last_reload_are_exported(api: Api, clock: ManualClock, bench: Make) -> None:
    one = bench()

    def told() -> tuple[float | None, float | None]:
        samples = parsed(one.text(own=True))
        name = "creatify_exporter_config_last_reload"
        return total(samples, f"{name}_successful"), total(samples, f"{name}_success_timestamp_seconds")

    assert told() == (1, NOW)
    clock.at += 60
    one.exporter.reload_failed()
    assert told() == (0, NOW)
    one.exporter.reload(one.configuration(api.workspace()))
    assert told() == (1, NOW + 60)


# --- The whole exposition ------------------------------------------------------------------------------------------


def golden_bench(api: Api, clock: ManualClock, bench: Make) -> Bench:
    """Make every family appear: two lists, ten seconds apart, of an account with a plan."""
    plan = Plan(credits=2000.0, renews_on_day=1, price_per_credit=0.15, currency="USD")
    one = bench(api.workspace(plan=plan))
    first = [
        entry(1, "pending", "gemini-2.5-pro", credits_used=0),
        entry(2, "running", "gemini-2.5-pro", credits_used=1.25),
        entry(3, "done", "gemini-2.5-pro", credits_used=2.5),
        entry(4, "failed", "gemini-2.5-flash", credits_used=0.5, failed_reason="429 Too Many Requests"),
        entry(5, "in_queue", 'a "quoted" \\ name\n'),
        entry(6, "done", None, credits_used="many"),
        17,
    ]
    api.lists(first)
    one.scrape()
    clock.at += 10
    second = [
        entry(1, "failed", "gemini-2.5-pro", failed_reason="The model is overloaded.", credits_used=0.25),
        entry(2, "done", "gemini-2.5-pro", credits_used=1),
        *first[2:],
        entry(0, "running", "gemini-3-flash-preview"),
    ]
    api.lists(second)
    return one


@pytest.mark.parametrize(
    ("name", "accept"),
    [("metrics.txt", ""), ("metrics.openmetrics.txt", "application/openmetrics-text; version=1.0.0")],
)
def test_the_exposition_is_as_golden(api: Api, clock: ManualClock, bench: Make, name: str, accept: str) -> None:
    """A difference is a change for users."""
    one = golden_bench(api, clock, bench)
    encode, _ = choose_encoder(accept)
    text = encode(one.exporter.collect(one.fetched(), own=False)).decode()
    text = re.sub(r"(?m)^(creatify_last_fetch_duration_seconds\{.*\}) .*", r"\1 0.25", text)
    assert_golden(text, GOLDEN / name)


def test_the_golden_exposition_passes_promtool_and_shows_every_family(promtool: str) -> None:
    text = (GOLDEN / "metrics.txt").read_text()
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    openmetrics = (GOLDEN / "metrics.openmetrics.txt").read_text()
    families = list(text_string_to_metric_families(openmetrics))  # type: ignore[no-untyped-call] # prometheus_client's
    assert len(families) == text.count("# TYPE ")
    own = {"creatify_exporter_build_info"} | {
        each.name for each in metrics.FAMILIES if "_config_last_reload" in each.name
    }
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# HELP ")} == {
        each.name for each in metrics.FAMILIES
    } - own
    assert "_created{" not in text + openmetrics


def test_every_family_is_in_the_list_of_exposed_families() -> None:
    assert [each for each in vars(metrics).values() if isinstance(each, metrics.Family)] == list(metrics.FAMILIES)


def test_the_exporters_own_metrics_pass_promtool_too(bench: Make, promtool: str) -> None:
    one = bench()
    text = generate_latest(one.exporter.collect(one.exporter.begin_scrape([]), own=True)).decode()
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert "creatify_exporter_build_info{" in text
    assert "process_resident_memory_bytes" in text or not shutil.which("ps")
    assert "workspace=" not in text
