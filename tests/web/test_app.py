"""The routes, called without a network, and behaviour that needs a real connection."""

import asyncio
import gzip
import json
import re
import signal
import socket
import threading
import time
import tomllib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog

from creatify_exporter import signals
from creatify_exporter.config import file
from creatify_exporter.config.credential import Credential
from creatify_exporter.config.load import load
from creatify_exporter.config.plan import Plan
from creatify_exporter.config.schema import Config, Fetch, LedgerSettings, ListSettings, Workspace
from creatify_exporter.errors import ConfigError
from creatify_exporter.exporter import Exporter, rules
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.ledger.store import Day
from creatify_exporter.ledger.transaction import Transaction
from creatify_exporter.simulator import (
    BALANCE_PATH,
    PRODUCTS,
    Account,
    Clock,
    Served,
    Simulator,
    Traffic,
    delayed,
    replied,
)
from creatify_exporter.web import landing_page
from creatify_exporter.web.app import Application, RouteSettings
from creatify_exporter.web.listener import listen
from creatify_exporter.web.middleware import WebMiddleware
from creatify_exporter.web.reloader import Reloader
from processes import ExporterProcess, parsed, running_exporter, total, until, write_config

NOW = 1_760_000_000.0
MARKUP = "<script>alert('1')</script>&\"amp;"


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    account = Account(1, NOW - 600, Traffic(rate=1 / 10, text_bytes=200))
    with Simulator(account, Clock(real=lambda: NOW)) as simulated:
        yield simulated


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def application(exporter: Exporter, load: Callable[[], Config], **settings: Any) -> Application:
    """Return one without a web configuration."""
    middleware = WebMiddleware()
    return Application(exporter, middleware, Reloader(exporter, load, middleware), RouteSettings(**settings))


class Site:
    """A server's routes, called as its connections call them."""

    def __init__(
        self,
        *workspaces: Workspace,
        timeout: float = 10,
        ledger: Callable[..., Ledger] = Ledger,
        load: Callable[[], Config] | None = None,
        **settings: Any,
    ) -> None:
        self.config = Config(
            workspaces=workspaces,
            fetch=Fetch(timeout=timeout, min_interval=1000.0),
            ledger=LedgerSettings(history="count"),
        )
        self.exporter = Exporter(self.config, ledger(SqliteStore(None), rules(self.config)), lambda: NOW)
        self._app = application(self.exporter, load or (lambda: self.config), **settings).app()

    def get(self, target: str, method: str = "GET", host: str = "exporter.example:10081", **headers: str) -> Answer:
        named = [(name.replace("_", "-").lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        return asyncio.run(self._asked(target, method, [(b"host", host.encode("latin-1")), *named]))

    async def _asked(self, target: str, method: str, headers: list[tuple[bytes, bytes]]) -> Answer:
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 10081),
        }
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        found = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], found, b"".join(each.get("body", b"") for each in sent[1:]))


def workspace(simulator: Simulator, name: str = "default", **settings: Any) -> Workspace:
    keys = {"api_id": Credential(simulator.api_id), "api_key": Credential(simulator.api_key)}
    return Workspace(**{"name": name, "base_url": simulator.url, "remaining_credits": False, **keys, **settings})


@pytest.fixture
def site(simulator: Simulator) -> Iterator[Site]:
    one = Site(workspace(simulator), workspace(simulator, "second"))
    yield one
    one.exporter.close()


@pytest.fixture(scope="module")
def idle() -> Iterator[Site]:
    """Make a site that has nothing to fetch."""
    one = Site()
    yield one
    one.exporter.close()


# --- Metrics -------------------------------------------------------------------------------------------------------


def test_probe_answers_for_one_workspace_that_is_configured(site: Site, simulator: Simulator) -> None:
    answer = site.get("/probe?workspace=second")
    assert answer.status == 200
    samples = parsed(answer.text)
    assert {dict(labels)["workspace"] for _, labels in samples} == {"second"}
    assert total(samples, "creatify_up") == 1
    assert len(simulator.listings()) == 1
    for target, status in (
        ("/probe", 400),
        ("/probe?workspace=", 404),
        ("/probe?workspace=SECOND", 404),
        ("/probe?target=http://127.0.0.1/", 400),
        ("/probe?workspace=http://127.0.0.1/", 404),
        ("/probe?workspace=%00%ff", 404),
    ):
        refused = site.get(target)
        assert refused.status == status
        assert len(refused.text.splitlines()) == 1
    assert len(simulator.listings()) == 1


def test_metrics_are_of_all_workspaces_and_of_the_exporter_whose_own_cost_no_fetch(
    site: Site, simulator: Simulator
) -> None:
    own = site.get("/metrics/exporter").text
    assert "creatify_exporter_build_info{" in own
    assert "workspace=" not in own
    assert not simulator.requests
    text = site.get("/metrics").text
    assert total(parsed(text), "creatify_up") == 2
    assert "creatify_exporter_build_info{" in text
    assert "process_cpu_seconds_total" in text


def test_the_metrics_of_the_process_can_be_left_out() -> None:
    config = Config()
    one = Exporter(config, Ledger(SqliteStore(None), rules(config)), process_metrics=False)
    with closing(one):
        names = {family.name for family in one.collect(one.begin_scrape([]), own=True).collect()}
    assert "creatify_exporter_build_info" in names
    assert [name for name in names if not name.startswith("creatify_")] == []


def test_the_metrics_can_have_another_path(simulator: Simulator) -> None:
    one = Site(workspace(simulator), telemetry_path="/some/where")
    assert total(parsed(one.get("/some/where").text), "creatify_up") == 1
    assert one.get("/some/where/exporter").status == 200
    assert one.get("/metrics").status == 404
    assert 'href="some/where"' in one.get("/").text
    assert json.loads(one.get("/sd").body)[-1]["labels"]["__metrics_path__"] == "/some/where/exporter"


HOSTILE_TIMEOUTS = (
    "",
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1e308",
    "5e-324",
    "0x10",
    "ten",
    "1,5",
    "\xb2",
    "9" * 5000,
)


@pytest.mark.parametrize("timeout", HOSTILE_TIMEOUTS)
def test_no_scrape_timeout_breaks_a_scrape(site: Site, timeout: str) -> None:
    assert site.get("/metrics", x_prometheus_scrape_timeout_seconds=timeout).status == 200


@pytest.mark.parametrize("path", ["/metrics", "/metrics/exporter", "/probe?workspace=default", "/", "/sd"])
def test_every_route_compresses_for_clients_that_accept_it(site: Site, path: str) -> None:
    plain, compressed = (site.get(path, accept_encoding=accepted) for accepted in ("gzip;q=0, *", "br, gzip;q=0.5"))
    assert "content-encoding" not in plain.headers
    assert "accept-encoding" in plain.headers["vary"].lower()
    if len(plain.body) >= 1000:
        assert compressed.headers["content-encoding"] == "gzip"
        assert len(gzip.decompress(compressed.body)) == pytest.approx(len(plain.body), rel=0.05)


@pytest.mark.parametrize("escaping", ["underscores", "dots", "values", "allow-utf-8"])
@pytest.mark.parametrize("media_type", ["application/openmetrics-text;version=1.0.0", "text/plain;version=1.0.0"])
def test_names_are_the_same_in_every_escaping_scheme(site: Site, media_type: str, escaping: str) -> None:
    answer = site.get("/metrics", accept=f"{media_type};escaping={escaping}")
    plain = site.get("/metrics", accept=media_type)
    assert f"escaping={escaping}" in answer.headers["content-type"]
    names = [
        {line.partition("{")[0].split()[0] for line in text.splitlines() if line[0] != "#"}
        for text in (answer.text, plain.text)
    ]
    assert names[0] == names[1]
    assert "creatify_up" in names[0]
    assert answer.text.startswith(plain.text[:1000])


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0", "0.0.1", "1.5", "2", "99.0.0"])
def test_openmetrics_is_1_0_0_whatever_version_is_asked_for(site: Site, version: str) -> None:
    answer = site.get("/metrics/exporter", accept=f"application/openmetrics-text;version={version}")
    assert answer.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize("timeout", ["300", "0.4", None])
def test_no_scrape_waits_for_a_thread_that_cannot_be_cancelled(simulator: Simulator, timeout: str | None) -> None:
    released = threading.Event()

    class StuckLedger(Ledger):
        """Takes as long to begin as a name lookup without a name server."""

        def begin(self, workspace: str, api: str) -> Transaction:
            released.wait(30)
            return super().begin(workspace, api)

    one = Site(workspace(simulator), timeout=0.2, ledger=StuckLedger)
    began = time.monotonic()
    answer = one.get("/metrics", **({"x_prometheus_scrape_timeout_seconds": timeout} if timeout else {}))
    assert time.monotonic() - began < 2.0
    assert total(parsed(answer.text), "creatify_up") == 0
    released.set()


def test_more_scrapes_at_once_than_allowed_are_refused(simulator: Simulator) -> None:
    one = Site(workspace(simulator), max_requests=1)
    simulator.faults.next(delayed(1))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(one.get, "/metrics")
        until(simulator.listings)
        refused = one.get("/probe?workspace=default")
        assert (refused.status, "limit of 1" in refused.text) == (503, True)
        assert one.get("/-/healthy").status == 200
        assert first.result().status == 200
    assert one.get("/metrics").status == 200


def test_all_routes_can_have_a_prefix(simulator: Simulator) -> None:
    one = Site(workspace(simulator), route_prefix="/exporter")
    for path in ("/metrics", "/metrics/exporter", "/probe?workspace=default", "/sd", "/-/healthy", "/-/ready", "/"):
        assert one.get(f"/exporter{path}").status == 200
        assert one.get(path).status == (307 if path == "/" else 404)
    assert 'href="metrics"' in one.get("/exporter/").text
    labels = [group["labels"] for group in json.loads(one.get("/exporter/sd").body)]
    assert [each["__metrics_path__"] for each in labels] == ["/exporter/probe", "/exporter/metrics/exporter"]


@pytest.mark.parametrize(
    ("settings", "target", "location"),
    [
        ({}, "/metrics/", "/metrics"),
        ({}, "/probe/?workspace=a%20b", "/probe?workspace=a%20b"),
        ({"telemetry_path": "/m/"}, "/m", "/m/"),
        ({"route_prefix": "/p"}, "/", "/p/"),
        ({"route_prefix": "/p"}, "/p", "/p/"),
        ({"route_prefix": "/p"}, "/p/sd/", "/p/sd"),
        ({"external_url": "https://x.example/creatify/"}, "/metrics/", "https://x.example/creatify/metrics"),
        ({"external_url": "https://x.example", "route_prefix": "/p"}, "/p/sd/", "https://x.example/sd"),
    ],
)
def test_a_redirect_leads_to_the_route_as_the_client_reaches_it(
    settings: dict[str, Any], target: str, location: str
) -> None:
    answer = Site(**settings).get(target)
    assert (answer.status, answer.headers["location"]) == (307, location)


# --- For people and for Prometheus ---------------------------------------------------------------------------------


def test_the_landing_page_escapes_external_text(simulator: Simulator) -> None:
    task = {"id": "1", "model_name": MARKUP, "status": "done", "credits_used": 1234567.25}
    simulator.faults.next(replied(200, json.dumps([task]).encode()))
    simulator.faults.always(replied(200, MARKUP.encode()))
    simulator.faults.always(replied(200, b'{"remaining_credits":1234567.5}'), path=BALANCE_PATH)
    one = Site(workspace(simulator, MARKUP, remaining_credits=True), workspace(simulator, "a/b?c=d&e#f"))
    one.get(f"/probe?workspace={MARKUP.replace('&', '%26')}")
    one.get("/probe?workspace=a/b?c=d%26e%23f")
    answer = one.get("/")
    assert "<script" not in answer.text
    assert answer.text.count("&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;&amp;") >= 2  # its name and its model
    assert "the last fetch failed (invalid_body)" in answer.text
    assert 'href="probe?workspace=a%2Fb%3Fc%3Dd%26e%23f"' in answer.text
    assert "1,234,567.5 credits" in answer.text
    assert "<td>1,234,567.25</td>" in answer.text
    assert len(simulator.requests) == 3


def test_the_landing_page_shows_data_before_the_first_scrape_and_costs_the_api_one_fetch(simulator: Simulator) -> None:
    simulator.faults.always(replied(200, json.dumps([listed(1, 0)]).encode()))
    one = Site(workspace(simulator))
    pages = [one.get("/").text for _ in range(3)]
    assert all("the last fetch took" in page and '<td class="name">pro</td>' in page for page in pages)
    assert not any("refresh" in page for page in pages)
    assert total(parsed(one.get("/metrics").text), "creatify_tasks", status="done") == 1
    assert len(simulator.requests) == 1


def test_reloading_the_landing_page_does_not_fetch_again_from_an_api_that_is_down(
    simulator: Simulator,
) -> None:
    simulator.faults.always(replied(403, b""))
    one = Site(workspace(simulator))
    pages = [one.get("/").text for _ in range(3)]
    assert all("the last fetch failed (auth)" in page for page in pages)
    assert len(simulator.requests) == 1


def test_the_landing_page_does_not_wait_for_a_slow_first_fetch_but_refreshes_itself(
    simulator: Simulator,
) -> None:
    simulator.faults.always(delayed(4))
    one = Site(workspace(simulator))
    page = one.get("/").text
    assert "not fetched yet; the first fetch is in progress" in page
    assert '<meta http-equiv="refresh" content="2">' in page
    until(lambda: "the last fetch took" in one.get("/").text)
    assert len(simulator.requests) == 1


def test_a_debugged_probe_shows_a_whole_fetch_without_keys_and_without_texts(
    simulator: Simulator,
) -> None:
    # An API that redirects, and repeats what it was sent.
    moved = f"{simulator.url}/moved/?id={simulator.api_id}&key={simulator.api_key}"
    task = listed(1, 0, status="failed", failed_reason=f"a secret prompt {simulator.api_key}")
    simulator.faults.next(replied(302, b"", location=moved))
    simulator.faults.always(replied(200, json.dumps([task]).encode()))
    simulator.faults.always(replied(200, json.dumps([task]).encode()), path="/moved/")
    simulator.faults.always(replied(404, b""), path=BALANCE_PATH)
    one = Site(workspace(simulator, remaining_credits=True))
    answer = one.get("/probe?workspace=default&debug=true")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    steps, _, samples = answer.text.partition("# The metrics that this probe returns without debug=true:\n")
    numberless = re.sub(r"[0-9]+\.[0-9]+", "N", steps)
    lines = [re.sub("^ *N s  ", "", line) for line in numberless.splitlines() if line]
    url = simulator.url.replace("127.0.0.1", "N.N")
    assert lines == [
        "# default: text_generator",
        f'request: url="{url}/sse/text_generator/" status=302 bytes=0 seconds=N',
        f'request: url="{url}/sse/text_generator/" status=200 bytes={len(json.dumps([task]))} seconds=N',
        "list: tasks=1 invalid=0",
        "commit: recorded=True tasks_changed=1 series_changed=3",
        "succeeded in N s, N s ago",
        "# default: remaining_credits",
        f'request: url="{url}{BALANCE_PATH}" status=404 bytes=0 seconds=N',
        f"failed: http_status: the API answered 404 Not Found for {BALANCE_PATH}",
    ]
    assert total(parsed(samples), "creatify_tasks", status="failed") == 1
    for secret in (simulator.api_id, simulator.api_key, "prompt", "moved"):
        assert secret not in steps


BOTH = ("text_generator", "lipsyncs")


def listed(number: int, days_ago: float, **fields: Any) -> dict[str, Any]:
    created_at = datetime.fromtimestamp(NOW - 86400 * days_ago, UTC).isoformat()
    return {"id": str(number), "model_name": "pro", "status": "done", "created_at": created_at, **fields}


def test_the_landing_page_says_how_long_the_credits_last_and_what_failed_lately_and_why(simulator: Simulator) -> None:
    tasks = [
        *(listed(n, 3, status="failed", failed_reason="429 too many requests", credits_used=20) for n in range(2)),
        listed(3, 2, status="failed", failed_reason="the dog ate it"),
        listed(4, 1, credits_used=135.0),
        listed(5, 30, status="failed", failed_reason="long ago", credits_used=999),
    ]
    simulator.faults.always(replied(200, json.dumps(tasks).encode()))
    simulator.faults.always(replied(200, b'{"remaining_credits":412}'), path=BALANCE_PATH)
    plan = Plan(credits=500, renews_on_day=1)
    one = Site(workspace(simulator, remaining_credits=True, plan=plan))
    one.get("/metrics")
    page = one.get("/").text
    # 175 credits in 7.37 days are 24 a day, because the list contains all of them; it is 9 October, 08:53.
    assert "412 of 500 credits, last until 26 October, renewal 1 November: 125 short" in page
    failures = page.partition("Failed in the last 7 days")[2].partition("</table>")[0]
    cells = re.findall("<td[^>]*>(.*?)</td>", failures.replace("_<wbr>", "_"))
    assert cells == [*("rate_limited", "pro", "text_generator", "2"), *("other", "pro", "text_generator", "1")]


def test_on_the_first_day_the_credits_go_as_fast_as_in_the_day_that_the_list_covers(simulator: Simulator) -> None:
    # Started in the last minutes of a UTC day; NOW is 08:53.
    tasks = [listed(1, 1.36, credits_used=1200), listed(2, 0.2, credits_used=160)]
    simulator.faults.always(replied(200, json.dumps(tasks).encode()))
    simulator.faults.always(replied(200, b'{"remaining_credits":412}'), path=BALANCE_PATH)
    one = Site(workspace(simulator, remaining_credits=True))
    one.get("/metrics")
    assert "412 credits, last about 10 hours, until 18:46 UTC" in one.get("/").text


def test_without_lists_the_fall_of_the_balance_tells_how_long_the_credits_last(simulator: Simulator) -> None:
    simulator.faults.always(replied(200, b'{"remaining_credits":412}'), path=BALANCE_PATH)
    one = Site(workspace(simulator, remaining_credits=True, lists=()))
    one.exporter.targets["default"].balance_fall.note(500, NOW - 2 * 86400)
    assert "500" not in one.get("/").text
    one.get("/metrics")
    # 88 credits in two days.
    assert "412 credits, last until 18 October" in one.get("/").text


def test_there_is_no_forecast_before_every_list_has_been_counted() -> None:
    account = Account(1, NOW - 600, Traffic(rate=1 / 10, text_bytes=200))
    video = Served(Account(1, NOW - 600, Traffic(rate=1 / 10), product=PRODUCTS["lipsyncs"]))
    with Simulator(account, Clock(real=lambda: NOW), lists={"lipsyncs": video}) as simulator:
        tasks = [listed(1, 3), listed(2, 1, credits_used=60)]
        simulator.faults.always(replied(200, json.dumps(tasks).encode()))
        simulator.faults.always(replied(200, b'{"remaining_credits":412}'), path=BALANCE_PATH)
        simulator.faults.always(delayed(3), path="/api/lipsyncs/")
        one = Site(workspace(simulator, remaining_credits=True, lists=tuple(ListSettings(name=api) for api in BOTH)))
        one.get("/probe?workspace=default&api=text_generator")
        one.get("/probe?workspace=default&api=remaining_credits")
        assert "412 credits</p>" in one.get("/").text
        until(lambda: "412 credits, last until 25 October (without lipsyncs: not known)" in one.get("/").text)


def test_the_forecast_names_a_list_that_does_not_report_credits() -> None:
    account = Account(1, NOW - 600, Traffic(rate=1 / 10, text_bytes=200))
    silent = Served(Account(1, NOW - 600, Traffic(rate=1 / 10), product=PRODUCTS["product_to_videos"]))
    with Simulator(account, Clock(real=lambda: NOW), lists={"product_to_videos": silent}) as simulator:
        simulator.faults.always(replied(200, json.dumps([listed(1, 3), listed(2, 1, credits_used=60)]).encode()))
        simulator.faults.always(replied(200, b'{"remaining_credits":412}'), path=BALANCE_PATH)
        lists = tuple(ListSettings(name=api) for api in ("text_generator", "product_to_videos"))
        one = Site(workspace(simulator, remaining_credits=True, lists=lists))
        one.get("/metrics")
        page = one.get("/").text
        assert "last until 25 October (without product_to_videos: not known)" in page
        # Only the table of the other list has a column for them.
        assert (page.count("Tasks in the list"), page.count("<th>credits used</th>")) == (2, 1)


def test_during_a_commit_there_is_no_forecast_and_the_page_refreshes_itself(simulator: Simulator) -> None:
    class Committing(Ledger):
        def days(self, since: int, before: int) -> list[Day] | None:  # noqa: ARG002 - as the ledger has it
            return None

    simulator.faults.always(replied(200, json.dumps([listed(1, 3), listed(2, 1, credits_used=60)]).encode()))
    simulator.faults.always(replied(200, b'{"remaining_credits":412}'), path=BALANCE_PATH)
    one = Site(workspace(simulator, remaining_credits=True), ledger=Committing)
    one.get("/metrics")
    page = one.get("/").text
    assert "412 credits</p>" in page
    assert 'http-equiv="refresh"' in page


def test_a_table_of_failures_says_how_many_rows_it_leaves_out(simulator: Simulator) -> None:
    tasks = [listed(n, 1, status="failed", model_name=f"model-{n % 12}") for n in range(36)]
    simulator.faults.always(replied(200, json.dumps(tasks).encode()))
    one = Site(workspace(simulator))
    assert "<p>and 2 more rows with 6 failed tasks</p>" in one.get("/").text


def test_a_table_of_tasks_has_the_statuses_that_there_are_and_names_break_at_underscores(simulator: Simulator) -> None:
    simulator.faults.next(replied(200, json.dumps([listed(1, 0, model_name="a_<b")]).encode()))
    simulator.faults.next(replied(200, json.dumps([listed(1, 0, status="new")]).encode()))
    names = ["pending", "running", "done", "failed"]
    for more in ([], ["unknown"]):
        page = Site(workspace(simulator)).get("/").text
        assert re.findall("<th>(.*?)</th>", page) == [*names, *more, "credits used"]
        assert more or '<td class="name">a_<wbr>&lt;b</td>' in page


def test_a_balance_is_not_green_while_the_list_cannot_be_fetched(simulator: Simulator) -> None:
    simulator.faults.always(replied(200, b'{"remaining_credits":412}'), path=BALANCE_PATH)
    kinds = []
    for status in (200, 503):
        simulator.faults.always(replied(status, b"[]"))
        one = Site(workspace(simulator, remaining_credits=True))
        one.get("/metrics")
        kinds.append(re.findall('class="state ([a-z]+)"', one.get("/").text))
    assert kinds == [["good", "good"], ["bad", "none"]]


def test_the_documentation_that_the_page_leads_to_is_that_of_the_package() -> None:
    urls = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Documentation"] == landing_page.DOCUMENTATION


def test_the_landing_page_may_load_and_run_nothing(site: Site) -> None:
    headers = site.get("/").headers
    assert headers["content-type"] == "text/html; charset=utf-8"
    policy = headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"} <= set(policy)
    assert "script-src" not in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("external", "scheme", "address", "prefix"),
    [
        (None, "http", "exporter.example:10081", ""),
        ("https://metrics.example", "https", "metrics.example", ""),
        ("https://metrics.example:8443/creatify/", "https", "metrics.example:8443", "/creatify"),
        ("http://[2001:db8::1]:10081", "http", "[2001:db8::1]:10081", ""),
    ],
)
def test_discovery_names_a_target_for_each_workspace_and_one_for_the_exporter(
    simulator: Simulator, external: str | None, scheme: str, address: str, prefix: str
) -> None:
    one = Site(workspace(simulator), workspace(simulator, "a b/c"), external_url=external)
    answer = one.get("/sd")
    assert answer.headers["content-type"] == "application/json"
    common = {"__scheme__": scheme}
    assert json.loads(answer.body) == [
        *(
            {
                "targets": [address],
                "labels": {
                    **common,
                    "__metrics_path__": f"{prefix}/probe",
                    "__param_workspace": name,
                    "instance": f"{address}/{name}",
                },
            }
            for name in ("default", "a b/c")
        ),
        {
            "targets": [address],
            "labels": {**common, "__metrics_path__": f"{prefix}/metrics/exporter", "instance": address},
        },
    ]
    assert not simulator.requests


def test_discovery_by_list_names_a_target_for_each_list_and_the_balance_and_each_of_them_answers() -> None:
    account = Account(1, NOW - 60, product=PRODUCTS["lipsyncs"])
    text = Account(1, NOW - 60, Traffic(rate=0.0))
    with Simulator(text, Clock(real=lambda: NOW), lists={"lipsyncs": Served(account)}) as simulator:
        lists = (ListSettings(name="text_generator"), ListSettings(name="lipsyncs"))
        plan = Plan(credits=500)
        one = Site(workspace(simulator, lists=lists, remaining_credits=True, plan=plan))
        *targets, own = json.loads(one.get("/sd?by=list").body)
        apis = [target["labels"]["__param_api"] for target in targets]
        assert apis == ["text_generator", "lipsyncs", "remaining_credits"]
        assert [target["labels"]["instance"].rpartition("/")[2] for target in targets] == apis
        assert "__param_api" not in own["labels"]
        shown = {api: parsed(one.get(f"/probe?workspace=default&api={api}").text) for api in apis}
        one.exporter.close()
    for api, samples in shown.items():
        assert {dict(labels).get("api", api) for _, labels in samples} == {api}
        assert total(samples, "creatify_up") == 1
    # Metrics that belong to no list are there once.
    assert [api for api in apis if total(shown[api], "creatify_plan_credits")] == ["remaining_credits"]


def test_a_list_that_is_not_configured_is_not_found_and_other_parts_than_lists_are_refused(site: Site) -> None:
    assert site.get("/probe?workspace=default&api=lipsyncs").status == 404
    assert site.get("/probe?workspace=default&api=").status == 404
    assert site.get("/sd?by=model").status == 400


HOSTILE_HOSTS = (
    "",
    "[",
    "]",
    "a:b:c",
    "evil.example/path?x#y",
    "\xff",
    "x y",
    "//",
    "a@b",
    ":",
    ":99999",
    "[::1",
    "[v9.x]:1",
)


@pytest.mark.parametrize("host", HOSTILE_HOSTS)
@pytest.mark.parametrize("path", ["/sd", "/", "/metrics/exporter", "/nowhere", "/-/reload/", "//"])
def test_no_host_header_breaks_an_answer(idle: Site, host: str, path: str) -> None:
    assert idle.get(path, host=host).status < 500


def test_liveness_and_readiness_fetch_nothing(site: Site, simulator: Simulator) -> None:
    simulator.faults.always("server_error")
    site.get("/metrics")
    asked = len(simulator.requests)
    for path in ("/-/healthy", "/-/ready"):
        assert site.get(path).status == 200
    assert len(simulator.requests) == asked


def test_a_reload_that_raises_is_reported_and_does_not_prevent_the_next_one(simulator: Simulator) -> None:
    faults = [KeyError("a bug in the exporter")]

    def load() -> Config:
        if faults:
            raise faults.pop()
        return Config(workspaces=(workspace(simulator, "reloaded"),), ledger=LedgerSettings())

    one = Site(workspace(simulator), load=load)
    reply = one.get("/-/reload", "POST")
    assert (reply.status, "the exporter's log says why" in reply.text) == (500, True)
    assert "creatify_exporter_config_last_reload_successful 0.0" in one.get("/metrics").text
    assert one.get("/-/reload", "POST").status == 200
    assert list(one.exporter.targets) == ["reloaded"]


def test_a_reload_warns_about_a_configuration_that_is_probably_a_mistake(simulator: Simulator) -> None:
    twice = Config(workspaces=(workspace(simulator), workspace(simulator, name="again")))
    one = Site(workspace(simulator), load=lambda: twice)
    with structlog.testing.capture_logs() as logs:
        assert one.get("/-/reload", "POST").status == 200
    assert [line["warning"] for line in logs if line["event"] == "configuration warning"] == list(twice.warnings)
    assert twice.warnings


def test_only_a_post_reloads(simulator: Simulator) -> None:
    loads: list[Config] = []

    def load() -> Config:
        if len(loads) == 1:
            raise ConfigError(["config.yml: workspaces: is not a list", "config.yml: fetch: is not a mapping"])
        loads.append(Config(workspaces=(workspace(simulator, "reloaded"),), ledger=LedgerSettings()))
        return loads[-1]

    one = Site(workspace(simulator), load=load)
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        assert one.get("/-/reload", method).status == 405
    assert not loads
    assert one.get("/-/reload", "POST").status == 200
    assert list(one.exporter.targets) == ["reloaded"]
    refused = one.get("/-/reload", "POST")
    assert refused.status == 500
    assert "workspaces: is not a list\nconfig.yml: fetch: is not a mapping\n" in refused.text
    assert list(one.exporter.targets) == ["reloaded"]
    assert total(parsed(one.get("/metrics/exporter").text), "creatify_exporter_config_last_reload_successful") == 0


@pytest.mark.parametrize("path", ["/nowhere", "/metrics/nowhere", "/-/quit", "/../etc/passwd", "/sd/x", "/debug/pprof"])
def test_an_unknown_path_is_404(idle: Site, path: str) -> None:
    assert idle.get(path).status == 404
    assert idle.get("/metrics", "POST").status == 405


# --- Over a real connection ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExporterProcess]:
    account = Account(1, NOW - 600, Traffic(rate=1 / 10, text_bytes=200))
    with Simulator(account, Clock(real=lambda: NOW)) as simulated:
        path = write_config(tmp_path_factory.mktemp("server") / "config.yml", simulated)
        with running_exporter("--config.file", str(path), "--web.listen-address", "[::1]:0") as running:
            running.url = running.url.replace("127.0.0.1", "[::1]")
            yield running
            assert "Traceback" not in "".join(running.log)


def said(exporter: ExporterProcess, raw: bytes) -> bytes:
    """Return everything that a server answers to raw bytes until it closes."""
    port = int(exporter.url.rpartition(":")[2])
    with socket.create_connection(("::1", port), timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_head_has_the_headers_of_get_and_no_body(exporter: ExporterProcess) -> None:
    for path in ("/metrics", "/metrics/exporter", "/probe?workspace=default", "/sd", "/-/healthy", "/-/ready", "/"):
        head = said(exporter, f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        lines, _, body = head.partition(b"\r\n\r\n")
        assert lines.startswith(b"HTTP/1.1 200")
        assert b"content-type: " in lines.lower()
        assert body == b""


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"GET /probe?workspace=%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /%ff%fe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /sd HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n",
        b"GET http://elsewhere.example/metrics/exporter HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
    ids=lambda raw: raw[:40].decode("latin-1"),
)
def test_nothing_that_a_client_sends_causes_a_500_or_a_traceback(exporter: ExporterProcess, raw: bytes) -> None:
    try:
        answer = said(exporter, raw)
    except OSError:  # a request that is too long is not read to its end
        answer = b""
    assert not answer.startswith(b"HTTP/1.1 5")
    assert exporter.get("/-/healthy").status_code == 200
    assert "Traceback" not in "".join(exporter.log)


def test_an_http_1_0_client_without_a_host_discovers_too(exporter: ExporterProcess) -> None:
    answer = said(exporter, b"GET /sd HTTP/1.0\r\n\r\n")
    groups = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert groups[-1]["targets"] == [exporter.url.removeprefix("http://")]


def test_the_landing_page_is_for_a_browser(exporter: ExporterProcess, tmp_path: Path) -> None:
    page = exporter.get("/", Accept="text/html", **{"Accept-Encoding": "gzip"})
    assert page.headers["Content-Encoding"] == "gzip"
    (tmp_path / "page.html").write_text(page.text)
    assert page.text.startswith("<!DOCTYPE html>")
    assert '<a href="metrics">' in page.text


def serve_until_stopped(site: Site, meanwhile: Callable[[threading.Event], Awaitable[None]]) -> bool:
    """Serve while something is done that has to stop the server; return whether the configuration was reloaded."""
    reloaded = threading.Event()

    def load() -> Config:
        reloaded.set()
        return site.config

    async def serve() -> None:
        serving = asyncio.create_task(application(site.exporter, load).run(listen(["127.0.0.1:0"])))
        await asyncio.sleep(0)
        await meanwhile(reloaded)
        async with asyncio.timeout(30):
            await serving

    asyncio.run(serve())
    return reloaded.is_set()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_signal_is_lost_while_the_pipe_that_wakes_the_loop_is_full(idle: Site, signum: signal.Signals) -> None:
    async def signalled(reloaded: threading.Event) -> None:
        for _ in range(10_000):  # each is a byte in the pipe, as from a thread that has ended
            asyncio.get_running_loop().call_soon_threadsafe(int)
        signal.raise_signal(signum)
        if signum is signal.SIGHUP:
            assert await asyncio.to_thread(reloaded.wait, 30)
            signal.raise_signal(signal.SIGTERM)

    serve_until_stopped(idle, signalled)


@pytest.mark.parametrize("hangups", [0, 2])
def test_a_sighup_between_reading_the_configuration_and_serving_it_is_a_reload(
    idle: Site, monkeypatch: pytest.MonkeyPatch, hangups: int
) -> None:
    async def stopped(reloaded: threading.Event) -> None:
        assert not hangups or await asyncio.to_thread(reloaded.wait, 30)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(signals, "_hangup", None)
    monkeypatch.setattr(signals, "_received", set())
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signals.hold()
        # Nothing has been read yet.
        signal.raise_signal(signal.SIGHUP)
        signals.release(serving=True)
        for _ in range(hangups):
            signal.raise_signal(signal.SIGHUP)
        assert serve_until_stopped(idle, stopped) == bool(hangups)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_a_changed_configuration_is_reloaded_and_a_refused_one_is_logged_once_and_retried(
    simulator: Simulator, tmp_path: Path
) -> None:
    path = tmp_path / "config.yml"
    group = {"directory": "keys", "base_url": simulator.url, "remaining_credits": False}
    path.write_text(json.dumps({"workspaces_from": [group], "ledger": {"url": "memory:"}}))

    def write(folder: str, file: str, text: str) -> None:
        (tmp_path / "keys" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "keys" / folder / file).write_text(text)

    for name in ("api-id", "api-key"):
        write("acme", name, f"simulated-{name}")
    refused: list[ConfigError] = []

    def loaded() -> Config:
        try:
            return load(path, {})
        except ConfigError as error:
            refused.append(error)
            raise

    state = file.state(path)
    first = load(path, {})
    exporter = Exporter(first, Ledger(SqliteStore(None), rules(first)))
    # A change while the ledger is being opened counts, too.
    path.write_text(json.dumps({"workspaces_from": [group], "fetch": {"timeout": "7s"}, "ledger": {"url": "memory:"}}))

    async def change() -> None:
        middleware = WebMiddleware()
        reloader = Reloader(exporter, loaded, middleware, path, state, interval=0.01)
        serving = asyncio.create_task(
            Application(exporter, middleware, reloader, RouteSettings()).run(listen(["127.0.0.1:0"]))
        )
        await asyncio.to_thread(until, lambda: exporter.config.fetch.timeout == 7.0)
        write("acme", "plan.yml", "credits: 700")
        await asyncio.to_thread(until, lambda: exporter.targets["acme"].workspace.plan == Plan(credits=700.0))
        write("globex", "api-id", "simulated-id-of-globex")
        write("globex", "api-key", "")
        await asyncio.to_thread(until, lambda: len(refused) >= 3)
        assert list(exporter.targets) == ["acme"]
        # A check cannot see that there was a file before.
        write("globex", "api-key", "simulated-key-of-globex")
        await asyncio.to_thread(until, lambda: list(exporter.targets) == ["acme", "globex"])
        (tmp_path / "keys/initech").mkdir()
        await asyncio.to_thread(until, lambda: "initech" in str(refused[-1]))
        assert not reloaded()
        (tmp_path / "keys/initech").rmdir()
        await asyncio.to_thread(until, reloaded)
        signal.raise_signal(signal.SIGTERM)
        await serving

    def reloaded() -> bool:
        families = {each.name: each for each in exporter.collect(exporter.begin_scrape([]), own=True).collect()}
        return bool(families["creatify_exporter_config_last_reload_successful"].samples[0].value)

    with closing(exporter), structlog.testing.capture_logs() as logs:
        asyncio.run(change())
    told = [
        line["problem"] for line in logs if line["event"] == "configuration not reloaded, the old one stays in effect"
    ]
    assert told
    assert len(told) == len(set(told)), "each mistake is told once"
