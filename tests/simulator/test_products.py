import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import examples
from creatify_exporter.simulator import (
    BALANCE_PATH,
    PRODUCTS,
    Account,
    Clock,
    Listing,
    Product,
    Served,
    Simulator,
    Task,
    Traffic,
    Truth,
)
from creatify_exporter.simulator.listing import Encoder

START = 1_760_000_040.0
HOURS = 4 * 3600
KEYS = {"X-API-ID": "simulated-id", "X-API-KEY": "simulated-key"}

DOCUMENTED = {
    "five": {"pending", "in_queue", "running", "failed", "done"},
    "text_generator": {"pending", "running", "done", "failed"},
    "product_to_videos": {
        "initializing", "image_generating", "image_generated", "video_generating", "video_generated", "failed"
    },
    "asset_generator": {"initializing", "generating", "done", "failed"},
    "inspiration_jobs": {"in_queue", "running", "done", "failed"},
    "ai_scripts": {"done"},
}  # fmt: skip
REJECTING = {"aurora", "ai_shorts", "ads_clone", "link_to_videos", "custom_template_jobs", "ai_editing"}
DONE = {"done", "image_generated", "video_generating", "video_generated"}
FAILED = {"failed", "rejected"}

ACCOUNTS = {
    api: Account(5, START, Traffic(rate=1 / 20, text_bytes=100), product=product) for api, product in PRODUCTS.items()
}
ENCODERS = {api: Encoder(account, Listing().style) for api, account in ACCOUNTS.items()}

apis = st.sampled_from(sorted(PRODUCTS))
ages = st.floats(0, HOURS).map(lambda age: round(age, 3))


def listed(api: str, at: float) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(b"".join(ENCODERS[api].array(ACCOUNTS[api].tasks(at), at)))
    return entries


def documented(api: str) -> set[str]:
    return DOCUMENTED.get(api, DOCUMENTED["five"] | ({"rejected"} if api in REJECTING else set()))


def named(product: Product, entry: dict[str, Any]) -> str:
    model: str = entry[product.model_field] if product.model_field else product.api
    return model


def counted(api: str, entries: list[dict[str, Any]]) -> Truth:
    """Count what a list says, knowing only its documentation."""
    truth, product = Truth(), PRODUCTS[api]
    for entry in entries:
        model, waits = named(product, entry), entry["status"] == "pending"
        truth.submitted[model] += 1
        truth.failed[model] += entry["status"] in FAILED
        truth.finished[model] += entry["status"] in FAILED | DONE
        truth.previews[model] += bool(waits and (entry.get("preview") or entry.get("previews")))
        truth.credits_used[model] += entry.get("credits_used") or 0
    return truth


def nonzero(counts: dict[str, float]) -> dict[str, float]:
    return {model: count for model, count in counts.items() if count}


@given(apis, ages)
@settings(max_examples=examples(60), deadline=None)
def test_a_list_says_the_truth_in_its_documented_words_at_any_instant(api: str, age: float) -> None:
    entries, truth = listed(api, START + age), ACCOUNTS[api].truth(START + age)
    seen = counted(api, entries)
    assert {entry["status"] for entry in entries} <= documented(api)
    for name in ("submitted", "finished", "failed", "previews"):
        assert nonzero(getattr(seen, name)) == nonzero(getattr(truth, name)), name
    assert nonzero(seen.credits_used) == nonzero(truth.credits)
    assert not [entry for entry in entries if entry["status"] not in FAILED and entry.get("failed_reason")]
    for dates in ([entry["created_at"], entry["updated_at"]] for entry in entries if PRODUCTS[api].dated):
        created, updated = (datetime.fromisoformat(date).timestamp() for date in dates)
        assert created <= updated <= START + age
    assert len({entry["id"] for entry in entries}) == len(entries)


@given(apis, ages, ages)
@settings(max_examples=examples(30), deadline=None)
def test_no_task_restarts_after_its_end_except_a_video_after_an_image(api: str, one: float, other: float) -> None:
    early, late = sorted((START + one, START + other))
    before = {entry["id"]: entry for entry in listed(api, early)}
    for entry in listed(api, late):
        was = before.get(entry["id"], entry)
        assert named(PRODUCTS[api], was) == named(PRODUCTS[api], entry)
        assert was.get("created_at") == entry.get("created_at")
        assert was["status"] not in FAILED or entry["status"] in FAILED
        assert was["status"] not in DONE or entry["status"] in DONE | (FAILED if api == "product_to_videos" else set())


@given(apis, ages, st.integers(0, 10**6))
@settings(max_examples=examples(16), deadline=None)
def test_a_list_is_the_same_after_a_restart(api: str, age: float, earlier: int) -> None:
    again = Account(5, START - earlier % 900, Traffic(rate=1 / 20, text_bytes=100), product=PRODUCTS[api])
    at = START + age
    assert again.tasks(at, START) != [] or age < 900
    without_numbers = [task._replace(number=0) for task in again.tasks(at, START)]
    assert without_numbers == [task._replace(number=0) for task in ACCOUNTS[api].tasks(at, START)]


@pytest.fixture(scope="module")
def lists() -> dict[str, list[dict[str, Any]]]:
    return {api: listed(api, START + HOURS) for api in PRODUCTS}


def test_every_documented_status_is_used_and_no_other() -> None:
    said = {
        api: {step.status for task in account.tasks(START + HOURS) for step in task.steps}
        for api, account in ACCOUNTS.items()
    }
    assert said == {api: documented(api) for api in PRODUCTS}


def test_the_lists_have_the_traps_of_the_real_ones(lists: dict[str, list[dict[str, Any]]]) -> None:
    undated = {api for api, entries in lists.items() if not any("created_at" in entry for entry in entries)}
    untold = {api for api, entries in lists.items() if not any("credits_used" in entry for entry in entries)}
    assert (undated, untold) == ({"link_to_videos"}, {"product_to_videos", "inspiration_jobs"})
    for api, entries in lists.items():
        assert all("not a reason" in json.dumps(entry[name]) for entry in entries for name in PRODUCTS[api].nested)
        assert api in undated or "-07:00" in {entry["created_at"][-6:] for entry in entries}
    assert {type(entry["video_length"]) for entry in lists["aurora"]} == {int, str, float, type(None)}
    halves = {api for api, entries in lists.items() for entry in entries if (entry.get("credits_used") or 0) % 1 == 0.5}
    assert halves == {"text_generator", "lipsyncs", "text_to_speech", "boreal"}
    waiting = {json.dumps(entry.get("credits_used", "absent")) for entry in lists["lipsyncs_v2"]}
    assert {"null", "6"} <= waiting
    assert {"credits_used" in entry for entry in lists["text_to_speech"]} == {True, False}
    reasons = {
        api: {e.get("failed_reason", "absent") for e in some if e["status"] == "done"} for api, some in lists.items()
    }
    assert reasons["text_generator"] == {None, ""}
    assert (reasons["ai_shorts"], reasons["asset_generator"], reasons["aurora"]) == ({"absent"}, {""}, {None})


def one(api: str, wanted: Callable[[Task], object] = bool) -> Task:
    return next(task for task in ACCOUNTS[api].tasks(START + HOURS) if wanted(task))


def test_credits_come_when_each_product_charges_them() -> None:
    clone = one("ads_clone", lambda task: not task.failed and task.credits(START + HOURS) > 60)
    running = next(step.at for step in clone.steps if step.status == "running")
    assert clone.credits(running) == 0 < clone.credits(clone.finished - 1)
    image = one("iab_images", lambda task: not task.failed)
    assert (image.credits(image.created), image.charged(image.created)) == (0, image.credits(image.finished))
    script = one("ai_scripts")
    assert script.credits(script.created) == script.charged(script.created) > 0
    free = one("inspiration_jobs")
    assert free.credits(START + HOURS) == 0 < free.charged(free.created)
    late = [task for task in ACCOUNTS["ai_shorts"].tasks(START + HOURS) if task.bills and task.settled > task.finished]
    assert late


def test_refunded_credits_are_reported_as_0_and_not_left_out(lists: dict[str, list[dict[str, Any]]]) -> None:
    for api in ("lipsyncs_v2", "text_to_speech"):
        told = {entry["id"]: entry.get("credits_used") for entry in lists[api]}
        tasks = [task for task in ACCOUNTS[api].tasks(START + HOURS) if task.settled <= START + HOURS]
        assert {told[task.id] for task in tasks if task.bills and not task.bills[-1][1]} == {0}
        assert {told[task.id] for task in tasks if not task.bills} == {None}


def test_an_image_may_rest_forever_or_start_again_as_a_video_that_may_fail() -> None:
    tasks = ACCOUNTS["product_to_videos"].tasks(START + HOURS)
    assert {task.steps[-1].status for task in tasks} == {"image_generated", "video_generated", "failed"}
    failed = one("product_to_videos", lambda task: task.failed and len(task.steps) > 3)
    assert [step.status for step in failed.steps][2:] == ["image_generated", "video_generating", "failed"]
    assert failed.finished == failed.steps[2].at


def test_most_previews_wait_forever_and_others_are_rendered() -> None:
    for api in ("link_to_videos", "lipsyncs", "ai_shorts", "ai_editing", "custom_template_jobs"):
        previews = [
            task for task in ACCOUNTS[api].tasks(START + HOURS) if any(s.state == "preview" for s in task.steps)
        ]
        waiting = [task for task in previews if math.isinf(task.finished)]
        assert len(previews) > len(waiting) > len(previews) / 3


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    others = {api: Served(account) for api, account in ACCOUNTS.items() if api != "text_generator"}
    with Simulator(ACCOUNTS["text_generator"], Clock(real=lambda: START + 1800), lists=others) as simulator:
        yield simulator


def get(simulator: Simulator, path: str, **keys: str) -> requests.Response:
    return requests.get(simulator.url + path, headers=KEYS | keys, timeout=5, allow_redirects=False)


def test_each_list_is_on_its_path_with_its_tasks_and_without_a_slash_redirects_there(simulator: Simulator) -> None:
    for api in PRODUCTS:
        path = simulator.list_path(api)
        entries = get(simulator, path).json()
        assert entries == listed(api, START + 1800)[::-1]
        assert get(simulator, f"{path}{entries[0]['id']}/").json() == entries[0]
        bare = get(simulator, path.removesuffix("/"))
        assert (bare.status_code, bare.headers["Location"]) == (301, path)
        assert [request.path for request in simulator.listings(api)] == [path]


def test_errors_are_worded_as_each_list_words_them(simulator: Simulator) -> None:
    refused = {api: get(simulator, simulator.list_path(api), **{"X-API-KEY": "no"}) for api in PRODUCTS}
    assert {reply.status_code for reply in refused.values()} == {401}
    assert refused["aurora"].json() == {"detail": "Invalid API credentials."}
    assert refused["iab_images"].json() == ["Invalid API credentials."]
    assert refused["link_to_videos"].json() == {"non_field_errors": ["Invalid API credentials."]}


def test_a_list_can_be_outside_of_the_plan_or_move_or_have_pages(simulator: Simulator) -> None:
    simulator.lists["ads_clone"].in_plan = False
    simulator.lists["aurora"].path = "/api/v2/aurora/"
    simulator.lists["lipsyncs"].listing = Listing(page_size=10)
    assert get(simulator, "/api/ads_clone/").status_code == 403
    assert get(simulator, "/api/aurora/").status_code == 404
    assert get(simulator, simulator.list_path("aurora")).json() == listed("aurora", START + 1800)[::-1]
    page = get(simulator, "/api/lipsyncs/?page=2").json()
    assert (len(page["results"]), page["next"]) == (10, f"{simulator.url}/api/lipsyncs/?page=3")
    del simulator.lists["boreal"]
    assert get(simulator, "/api/boreal/").status_code == 404


def test_the_balance_falls_by_what_all_lists_cost(simulator: Simulator) -> None:
    tasks = [task for account in ACCOUNTS.values() for task in account.tasks(START + 1800)]
    told, charged = (sum(each(task, START + 1800) for task in tasks) for each in (Task.credits, Task.charged))
    balance = get(simulator, BALANCE_PATH).json()["remaining_credits"]
    assert balance == 10_000 - charged % 10_000
    assert told < charged


def test_the_products_in_the_decision_have_its_grades_and_models() -> None:
    """A list that is newer than the decision needs no row there."""
    page = (Path(__file__).parents[2] / "docs/decisions/0037-simulated-lists-are-data.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w) \| (?:`(\w+)`|none)", page, re.MULTILINE)
    decided = {api for api, *_ in rows}
    assert rows == [(api, each.grade, each.model_field) for api, each in PRODUCTS.items() if api in decided]
    assert decided
