import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from itertools import pairwise
from pathlib import Path

import pytest
import requests

from conftest import Here
from creatify_exporter.simulator import FAIL_PATH, LIST_PATH, PRODUCTS, Account, Clock, Listing, Served, Simulator
from creatify_exporter.simulator.account import DAY
from creatify_exporter.simulator.scenes import (
    AGENCY,
    HOUR,
    PACKAGE,
    QUIET,
    TIMETABLE,
    Occurrence,
    demo_simulator,
    incidents,
    workspace,
)
from processes import parsed, total

NOON = 1_760_011_200.0
KEYS = {"X-API-ID": "me", "X-API-KEY": "mine"}


def shares(account: Account, model: str, since: float, until: float) -> float:
    """Return the share of a model's tasks created in a span that fail in the end."""
    tasks = [task for task in account.tasks(until, since) if task.model == model]
    return sum(task.failed for task in tasks) / len(tasks)


@pytest.fixture(scope="module")
def agency() -> dict[str, Account]:
    """Return a day of everything."""
    return workspace(1, NOON - DAY, AGENCY, text_bytes=100)


def test_somebody_who_watches_sees_numbers_change_within_15_seconds(agency: dict[str, Account]) -> None:
    assert 10_000 < len(agency["text_generator"].tasks(NOON)) < 40_000
    truths = [[each.truth(NOON + s, NOON - HOUR) for each in agency.values()] for s in range(0, 600, 15)]
    assert all(before != after for before, after in pairwise(truths))


def test_somebody_who_watches_sees_trouble_within_10_minutes(agency: dict[str, Account]) -> None:
    assert all(incidents(agency.values(), NOON + 60 * minute, within=600) for minute in range(24 * 60))


def test_the_timetable_says_what_happens(agency: dict[str, Account]) -> None:
    text = agency["text_generator"]
    told = incidents(agency.values(), NOON)
    assert [str(each) for each in told] == [
        "12:05 to 12:15 UTC: 70% of the tasks of gemini-2.5-flash (text_generator) fail (rate_limited)",
        "12:25 to 12:35 UTC: the queue of text_generator is stuck",
        "12:45 to 12:55 UTC: the queue of link_to_videos is stuck",
    ]
    outage, stuck, _ = told
    assert incidents([text], outage.end - 1, within=0) == [outage]
    assert incidents([text], outage.end, within=0) == []
    assert shares(text, "gemini-2.5-flash", outage.start, outage.end) > 0.6
    assert shares(text, "gemini-2.5-flash", outage.end, outage.end + 600) < 0.2
    assert not [task for task in text.tasks(stuck.end) if stuck.start <= task.finished < stuck.end]


@pytest.mark.parametrize("hour", range(0, 24, 3))
def test_the_first_incident_of_the_demo_is_an_alert_and_so_is_each_other_one_of_a_model_of_texts(hour: int) -> None:
    began = NOON + hour * HOUR + 777
    demo = demo_simulator(clock=Clock(real=lambda: began))
    accounts = [served.account for served in demo.served().values()]
    failing = [each for each in incidents(accounts, began, within=3 * HOUR) if "(text_generator) fail" in each.sentence]
    assert failing[0].start == began + QUIET
    assert [excess(demo.account, each) >= SPIKE for each in failing] == [True] * 3
    # A window of five minutes counts as early as that, and is enough for the most frequent model.
    first = failing[0]
    assert excess(demo.account, first._replace(end=first.start + 300)) >= SPIKE


# As in prometheus/rules/thresholds.yaml, for a model that fails rarely: the failed tasks above this share of all.
SPIKE, TOLERATED = 9, 0.2 * 0.6


def excess(account: Account, during: Occurrence) -> float:
    """Return how many tasks fail during an incident of a model, beyond those that the rules tolerate."""
    model = during.sentence.partition("the tasks of ")[2].split()[0]
    tasks = [task for task in account.tasks(during.end, during.start) if task.model == model]
    return sum(task.failed for task in tasks) - TOLERATED * len(tasks)


def test_what_the_timetable_touches_exists() -> None:
    models = {api: {None, *(model.name for model in PRODUCTS[api].models)} for api in AGENCY}
    assert not [each for api, some in TIMETABLE.items() for each in some if each.model not in models[api]]
    assert not [each for some in TIMETABLE.values() for each in some if DAY % each.every or each.end - each.start > 600]


def test_the_agency_has_credits_of_very_different_size_and_spends_about_a_package_a_day(
    agency: dict[str, Account],
) -> None:
    texts, clones = (
        [task.bills[-1][1] for task in agency[api].tasks(NOON) if task.bills] for api in ("text_generator", "ads_clone")
    )
    assert (min(texts) <= 0.5, max(clones) > 84) == (True, True)
    spent = sum(sum(account.truth(NOON).credits.values()) for account in agency.values())
    assert 0.7 * PACKAGE < spent < 1.1 * PACKAGE


def simulated(seed: int, started: float, at: float) -> Simulator:
    """Return a simulator at an instant, of a workspace that was started somewhat earlier."""
    accounts = workspace(seed, started - HOUR, ["text_generator"], text_bytes=100)
    return Simulator(accounts["text_generator"], Clock(real=lambda: at), listing=Listing(newest=300))


def dump(here: Here, folder: Path, simulator: Simulator) -> str:
    """Scrape once with the ledger of this folder, and stop."""
    keys = {"api_id": simulator.api_id, "api_key": simulator.api_key}
    workspaces = [{"name": "default", "base_url": simulator.url, **keys}]
    settings = {"workspaces": workspaces, "ledger": {"url": f"sqlite:///{folder}/ledger.db"}}
    (folder / "config.yml").write_text(json.dumps(settings))
    return here("dump", "--config.file", folder / "config.yml").stdout


def test_a_restart_of_the_simulator_counts_nothing_twice(here: Here, tmp_path: Path) -> None:
    now = time.time()
    seen: dict[str, str] = {}
    for restart in (0.0, 1.0, 5.0):
        with simulated(7, now - 3600 + restart, now + restart) as simulator:
            metrics = parsed(dump(here, tmp_path, simulator))
            [request] = simulator.listings()
            seen |= {task.id: task.model for task in simulator.listing.tasks(simulator.account, request.at)}
        assert total(metrics, "creatify_tasks_submitted_total") == len(seen)


@pytest.fixture
def running() -> Iterator[list[str]]:
    """Run the command, and yield its first lines."""
    code = (
        "from creatify_exporter.simulator import serve\n"
        "serve('127.0.0.1:0', seed=1, speed=60, tasks=50, api_id='me', api_key='mine', fail={'gemini-2.5-pro': 1.0})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.slow
def test_the_command_serves_all_lists_tells_its_timetable_and_lets_models_fail(running: list[str]) -> None:
    url = running[0].split()[-1]
    assert all(" UTC: " in line for line in running[1:])
    for product in PRODUCTS.values():
        reply = requests.get(url + product.path, headers=KEYS, timeout=30)
        assert reply.status_code == 200
        assert len(reply.json()) > 40, product.api
    asked = time.time()
    reply = requests.get(url + LIST_PATH, headers=KEYS, timeout=30)
    assert len(reply.json()) == 50
    assert asked - DAY - 1 < parsedate_to_datetime(reply.headers["Date"]).timestamp() < asked
    time.sleep(2)  # two minutes of the account's time
    tasks = requests.get(url + LIST_PATH, headers=KEYS, timeout=30).json()
    assert {t["status"] for t in tasks[:20] if t["model_name"] == "gemini-2.5-pro"} <= {"pending", "running", "failed"}
    failing = requests.post(f"{url}{FAIL_PATH}?model=aurora_v1&ratio=0.5", timeout=30)
    assert (failing.status_code, failing.json()) == (200, {"model": "aurora_v1", "ratio": "0.5"})


@pytest.fixture
def workshop() -> Iterator[Simulator]:
    accounts = workspace(3, NOON - HOUR, ["text_generator", "lipsyncs"], text_bytes=100)
    others = {"lipsyncs": Served(accounts["lipsyncs"])}
    with Simulator(accounts["text_generator"], Clock(real=lambda: NOON), lists=others) as simulator:
        yield simulator


def test_a_model_that_is_made_to_fail_fails_from_then_on_and_the_past_stays(workshop: Simulator) -> None:
    text, video = workshop.account, workshop.lists["lipsyncs"].account
    before = {account: [task for task in account.tasks(NOON + 900) if task.created < NOON] for account in (text, video)}
    workshop.fail("gemini-2.5-pro", 1)
    workshop.fail("aurora_v1_fast", 1)
    for account, tasks in before.items():
        assert [task for task in account.tasks(NOON + 900) if task.created < NOON] == tasks
    assert shares(text, "gemini-2.5-pro", NOON, NOON + 900) == 1
    assert shares(video, "aurora_v1_fast", NOON, NOON + 9000) > 0.8, "a preview does not fail"
    workshop.fail("gemini-2.5-pro", 0)
    assert shares(text, "gemini-2.5-pro", NOON, NOON + 900) == 0


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("model=gemini-2.5-pr0&ratio=1", "the closest names are gemini-2.5-pro"),
        ("model=gemini-2.5-pro&ratio=2", "the ratio must be a number between 0 and 1, not 2.0"),
        ("model=gemini-2.5-pro&ratio=much", "the ratio must be a number between 0 and 1, not nan"),
        ("", "no model is called ''"),
    ],
)
def test_an_impossible_failure_is_refused(workshop: Simulator, query: str, told: str) -> None:
    reply = requests.post(f"{workshop.url}{FAIL_PATH}?{query}", timeout=5)
    assert reply.status_code == 400
    assert told in reply.json()["detail"]
    assert requests.post(workshop.url + LIST_PATH, timeout=5).status_code == 404
    assert workshop.command(FAIL_PATH, NOON, local=False).status == 403
    assert math.isclose(shares(workshop.account, "gemini-2.5-pro", NOON, NOON + 600), 0.05, abs_tol=0.1)
