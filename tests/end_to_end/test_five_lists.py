"""Five lists of a workspace live for an hour: a real exporter counts what has happened in each of them."""

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest

from accounts import MINUTE, nonzero
from creatify_exporter.simulator import PRODUCTS, Account, Clock, Incident, Served, Simulator, Traffic
from processes import ExporterProcess, Samples, total, until, write_config

pytestmark = pytest.mark.xdist_group("five lists")  # one run of it is enough

LISTS = ("text_generator", "link_to_videos", "lipsyncs", "asset_generator", "ads_clone")
REFUSED = ("aurora", "boreal")
SPEED, LASTING = 120.0, 30.0


class Run(NamedTuple):
    exporter: ExporterProcess
    simulator: Simulator
    samples: Samples


def account(api: str, clock: Clock) -> Account:
    """Make an account that is quiet in the end, until all that it has begun is over."""
    quiet = Incident(clock.end - 30 * MINUTE, clock.end + 60 * MINUTE, arrivals=0)
    traffic = Traffic(max(PRODUCTS[api].rate, 1 / 30), incidents=(quiet,), text_bytes=300)
    return Account(3, clock.now() - 30 * MINUTE, traffic, product=PRODUCTS[api])


def counted(samples: Samples, name: str, api: str) -> dict[str, float]:
    models = {found["model"] for each, labels in samples if each == name and (found := dict(labels))["api"] == api}
    return nonzero({model: total(samples, name, api=api, model=model) or 0 for model in models})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    clock = Clock.accelerated(LASTING, SPEED)
    text, *others = LISTS
    lists = {api: Served(account(api, clock)) for api in (*others, *REFUSED)}
    lists["aurora"].in_plan, lists["boreal"].path = False, "/api/boreal_2/"
    with Simulator(account(text, clock), clock, lists=lists) as simulator:
        folder = tmp_path_factory.mktemp("lists")
        config = write_config(
            folder / "config.yml",
            simulator,
            ledger={"url": f"sqlite:///{folder}/ledger.db", "new_series_hold": "0s"},
            fetch={"min_interval": "500ms", "max_requests_per_minute": 600},
        )
        settings = config.read_text().replace("\n  name: default", "\n  name: default\n  lists: LISTS")
        named = ", ".join([text, *(f"{{name: {api}, min_interval: 1s}}" for api in lists)])
        config.write_text(settings.replace("LISTS", f"[{named}]"))
        exporter = ExporterProcess("--config.file", str(config), "--web.listen-address", "127.0.0.1:0")
        while clock.now() < clock.end:
            exporter.samples()
            time.sleep(0.5)
        served = {api: simulator.served()[api].account for api in LISTS}

        def over() -> Samples | None:
            samples, now = exporter.samples(), clock.now()
            finished = "creatify_tasks_finished_total"
            ended = {api: counted(samples, finished, api) == nonzero(served[api].truth(now).finished) for api in LISTS}
            return samples if all(ended.values()) else None

        until(over, 60)
        # Once more, for credits that were told late.
        time.sleep(2 * len(lists))
        yield Run(exporter, simulator, until(over))
        exporter.kill()


def test_each_list_counts_what_has_happened_in_it(run: Run) -> None:
    for api in LISTS:
        truth = run.simulator.served()[api].account.truth(time.time())
        assert sum(truth.finished.values()) > 30, api
        assert counted(run.samples, "creatify_tasks_submitted_total", api) == nonzero(truth.submitted), api
        assert counted(run.samples, "creatify_tasks_finished_total", api) == nonzero(truth.finished), api
        assert counted(run.samples, "creatify_tasks_failed_total", api) == nonzero(truth.failed), api
        used, refunded = (counted(run.samples, f"creatify_credits_{each}_total", api) for each in ("used", "refunded"))
        net = nonzero({model: used.get(model, 0) - refunded.get(model, 0) for model in used | refunded})
        assert net == nonzero(truth.credits), api


def test_lists_that_are_refused_fail_alone_and_the_log_says_what_to_do(run: Run) -> None:
    up = {dict(labels)["api"]: value for (name, labels), value in run.samples.items() if name == "creatify_up"}
    assert up == {**dict.fromkeys([*LISTS, "remaining_credits"], 1), **dict.fromkeys(REFUSED, 0)}
    assert (total(run.samples, "creatify_fetch_failures_total", api="aurora", cause="auth") or 0) > 0
    assert (total(run.samples, "creatify_fetch_failures_total", api="boreal", cause="http_status") or 0) > 0
    failures = [line for line in run.exporter.log if 'msg="fetch failed"' in line]
    assert len(failures) == len(REFUSED)
    for api in REFUSED:
        [line] = [line for line in failures if f"api={api}" in line]
        assert f"remove {api} from lists" in line or f"lacks {api} (/api/{api}/): remove it from lists" in line


def test_requests_for_lists_that_can_wait_are_at_least_a_second_apart(run: Run) -> None:
    # In simulated seconds; after the end of the accelerated time they are real ones.
    paths = {served.path for api, served in run.simulator.served().items() if api != "text_generator"}
    waited = [each.at for each in run.simulator.requests if each.path in paths]
    gaps = [later - earlier for earlier, later in pairwise(waited)]
    assert len(gaps) > 20
    assert min(gaps) > 0.9
