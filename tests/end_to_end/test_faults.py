"""Whatever the API does: an answer in time, the right cause, untouched counters, no key anywhere, and whole again."""

import base64
import html
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from test_client import EXPECTED, ODD, Recorder, said

from authority import Authority
from creatify_exporter.simulator import (
    FAULTS,
    Account,
    Clock,
    Fault,
    Listing,
    Response,
    Simulator,
    Traffic,
    dripping,
    inserted,
    redirected,
    replied,
)
from processes import ExporterProcess, Samples, ledger_counters, parsed, running_exporter, total, until, write_config

pytestmark = pytest.mark.xdist_group("faults")  # one exporter lives through all of them

API_ID, API_KEY = "canary-id-7c1f09/&", 'canary-key-"9e+2b'
SCRAPE_TIMEOUT = 10.0  # seconds, as a Prometheus would say
FETCH_TIMEOUT = 4
HOUR = 3600.0
MEBIBYTE = 1 << 20


def _spaces(response: Response) -> Response:
    return replace(response, pieces=[response.pieces[0], *[b" " * MEBIBYTE] * 300, *response.pieces[1:]])


def _million(response: Response) -> Response:
    """A million tasks that settled long ago, so that none of them is counted."""
    task = b'{"id":"%d","model_name":"gemini-2.5-pro","status":"done","created_at":"2020-01-01T00:00:00Z"}'
    blocks = [b",".join(task % (1000 * block + each) for each in range(1000)) + b"," for block in range(1000)]
    return replace(response, pieces=[response.pieces[0], *blocks, *response.pieces[1:]])


KEYS = f"{API_ID} {API_KEY}"

# What each fault comes to. Not here: those that are none when they come once or take a second, and 429, which makes the
# exporter pause.
FAILURES: dict[str, tuple[Fault, str]] = {
    **{
        name: (FAULTS[name], cause)
        for name, cause in EXPECTED.items()
        if isinstance(cause, str) and cause != "rate_limited" and name not in ("redirect_same_origin", "delayed")
    },
    "300 MB of white space": (_spaces, "too_large"),
    "dripping_headers": (dripping(1.0, headers=True), "timeout"),
    "dripping_body": (dripping(1.0), "timeout"),
    "keys in an error": (replied(401, json.dumps({"detail": KEYS}).encode()), "auth"),
    "keys in a page": (replied(200, f"<html>{KEYS}</html>".encode()), "invalid_body"),
    "keys in an object": (replied(200, json.dumps({"detail": KEYS}).encode()), "invalid_body"),
    "keys for a header": (replied(500, b"[]", x_api_id=API_ID, x_api_key=API_KEY), "http_status"),
    "keys in a redirect": (redirected(f"https://elsewhere.invalid/?{KEYS}"), "redirect"),
    "keys for a path": (redirected(f"/{KEYS}"), "http_status"),
    "keys for a status": (said(f"HTTP/1.1 500 {KEYS}\r\nContent-Length: 0\r\n\r\n".encode()), "http_status"),
    "keys for a reply": (said(f"{KEYS}\r\n\r\n".encode()), "connection"),
    "keys for a length": (said(f"HTTP/1.1 200 OK\r\nContent-Length: {KEYS}\r\n\r\n[".encode()), "invalid_body"),
    "keys for a chunk": (
        said(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEYS}\r\n".encode()),
        "connection",
    ),
}
RATE_LIMITED: dict[str, Fault] = {
    **{name: FAULTS[name] for name in ("rate_limited", "rate_limited_seconds", "rate_limited_date")},
    "keys for a time": replied(429, KEYS.encode(), retry_after=KEYS),
}
# Lists that are taken, with the entries that cannot be read, by field.
SUCCESSES: dict[str, tuple[Fault, dict[str, int]]] = {
    **{name: (FAULTS[name], expected[1]) for name in FAULTS if isinstance(expected := EXPECTED.get(name, ODD), tuple)},
    "once redirected": (FAULTS["redirect_same_origin"], {}),
    "late": (FAULTS["delayed"], {}),
    "a million tasks": (_million, {}),
    **{
        f"keys for {field}": (inserted("", **{field: json.dumps(API_KEY).encode()}), {})
        for field in ("model_name", "status", "failed_reason", "response_text")
    },
}
# Another id is another task.
COUNTED: dict[str, dict[str, int]] = {"wrong_id": {"submitted": 1, "finished": 1}}


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    """Serve an account for which time stands still, so that every good list is the same."""
    now = time.time()
    account = Account(5, now - HOUR, Traffic(rate=1 / 60, text_bytes=200))
    with Simulator(
        account, Clock(real=lambda: now), api_id=API_ID, api_key=API_KEY, listing=Listing(younger_than=HOUR)
    ) as simulated:
        yield simulated


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory, simulator: Simulator) -> Iterator[ExporterProcess]:
    path = write_config(
        tmp_path_factory.mktemp("faults") / "config.yml",
        simulator,
        fetch={"timeout": f"{FETCH_TIMEOUT}s", "min_interval": "0s", "max_body": "1GiB", "max_task": "1MiB"},
    )
    flags = ("--config.file", str(path), "--web.listen-address", "127.0.0.1:0", "--log.level=debug")
    with running_exporter(*flags) as running:
        # The odd task that many faults bring is known from here on, so that none of them is the first sight of it.
        simulator.faults.next(FAULTS["trailing_space"], FAULTS["without_updated_at"])
        scraped(running)
        scraped(running)
        yield running


def scraped(exporter: ExporterProcess) -> Samples:
    """Scrape as a Prometheus does; no key may be in the answer."""
    began = time.monotonic()
    answer = exporter.get(**{"X-Prometheus-Scrape-Timeout-Seconds": str(SCRAPE_TIMEOUT)})
    assert time.monotonic() - began < SCRAPE_TIMEOUT
    assert_secret(answer.text)
    return parsed(answer.text)


def assert_secret(text: str) -> None:
    """No key in it, nor half of one, however it is spelt."""
    plain = html.unescape(unquote(text)).replace("\\", "")
    encoded = [base64.b64encode(key.encode()).decode()[:12] for key in (API_ID, API_KEY)]
    for word in ("canary", "7c1f09", "9e+2b", *encoded):
        assert word not in text
        assert word not in plain


def failures(samples: Samples) -> dict[str, float]:
    return {
        dict(labels)["cause"]: value
        for (name, labels), value in samples.items()
        if name == "creatify_fetch_failures_total" and dict(labels)["api"] == "text_generator"
    }


def up(samples: Samples) -> float | None:
    return total(samples, "creatify_up", api="text_generator")


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_fetch_has_its_cause_and_touches_no_counter(
    exporter: ExporterProcess, simulator: Simulator, name: str
) -> None:
    fault, cause = FAILURES[name]
    before = scraped(exporter)
    simulator.faults.always(fault)
    during = scraped(exporter)
    simulator.faults.clear()
    assert (up(before), up(during)) == (1, 0)
    assert total(during, "creatify_tasks") is None
    more = {which: count - failures(before)[which] for which, count in failures(during).items()}
    assert more == {**dict.fromkeys(more, 0), cause: 1}
    assert ledger_counters(during) == ledger_counters(before)
    after = scraped(exporter)
    assert up(after) == 1
    assert ledger_counters(after) == ledger_counters(before)
    assert total(after, "creatify_tasks") == total(before, "creatify_tasks")
    for path in ("/", "/sd", "/probe?workspace=default", "/probe?workspace=<script>", "/metrics/exporter"):
        assert_secret(exporter.get(path).text)
    assert_secret("".join(exporter.log))


@pytest.mark.parametrize("name", SUCCESSES)
def test_what_costs_one_task_at_most_is_no_failure(exporter: ExporterProcess, simulator: Simulator, name: str) -> None:
    fault, invalid = SUCCESSES[name]
    before = scraped(exporter)
    simulator.faults.next(fault)
    during = scraped(exporter)
    assert up(during) == 1
    found = {dict(labels)["field"]: n for (each, labels), n in during.items() if each == "creatify_invalid_tasks" and n}
    assert found == invalid
    for family in ("submitted", "finished", "failed", "vanished"):
        counted = f"creatify_tasks_{family}_total"
        more = (total(during, counted) or 0) - (total(before, counted) or 0)
        assert more == COUNTED.get(name, {}).get(family, 0), family
    assert up(scraped(exporter)) == 1
    assert_secret("".join(exporter.log))


@pytest.mark.parametrize("name", RATE_LIMITED)
def test_an_api_that_has_enough_is_left_in_peace(tmp_path: Path, simulator: Simulator, name: str) -> None:
    path = write_config(tmp_path / "config.yml", simulator, fetch={"min_interval": "0s"})
    with running_exporter("--config.file", str(path), "--web.listen-address", "127.0.0.1:0") as exporter:
        before = scraped(exporter)
        simulator.faults.always(RATE_LIMITED[name])
        during = scraped(exporter)
        simulator.faults.clear()
        asked = len(simulator.listings())
        later = scraped(exporter)
        assert (up(before), up(during), up(later)) == (1, 0, 0)
        assert failures(later)["rate_limited"] == 1
        assert ledger_counters(later) == ledger_counters(before)
        assert len(simulator.listings()) == asked
        assert_secret("".join(exporter.log))


def test_after_the_time_that_the_api_asks_for_all_is_well_again(tmp_path: Path, simulator: Simulator) -> None:
    path = write_config(tmp_path / "config.yml", simulator, fetch={"min_interval": "0s"})
    with running_exporter("--config.file", str(path), "--web.listen-address", "127.0.0.1:0") as exporter:
        before = scraped(exporter)
        simulator.faults.next(replied(429, b"[]", retry_after="1"))
        assert up(scraped(exporter)) == 0
        until(lambda: up(after := scraped(exporter)) == 1 and ledger_counters(after) == ledger_counters(before))


UNREACHABLE = {
    "a name that is none": ("http://creatify.invalid", "connection"),
    "a port where nobody is": ("http://127.0.0.1:9", "connection"),
}


@pytest.mark.parametrize("name", UNREACHABLE)
def test_an_api_that_cannot_be_reached_has_its_cause(tmp_path: Path, simulator: Simulator, name: str) -> None:
    url, cause = UNREACHABLE[name]
    assert broken_at(tmp_path, simulator, {"base_url": url, "allow_insecure": True}) == cause


@pytest.mark.parametrize("flaw", ["unknown authority", "another name", "expired"])
def test_a_certificate_that_proves_nothing_is_refused(tmp_path: Path, simulator: Simulator, flaw: str) -> None:
    authority = Authority(tmp_path)
    names = "DNS:elsewhere.example" if flaw == "another name" else "IP:127.0.0.1"
    pair = authority.issue("server", names, days=-1 if flaw == "expired" else 2)
    trusted = Authority(tmp_path, "other") if flaw == "unknown authority" else authority
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    with Recorder(context) as api:
        settings = {"base_url": api.url, "tls_config": {"ca_file": str(trusted.pem)}}
        assert broken_at(tmp_path, simulator, settings) == "tls"
    assert api.heads == []  # no key went there


def broken_at(folder: Path, simulator: Simulator, settings: Mapping[str, object]) -> str:
    """Return the one cause for which an exporter with these settings of its workspace fails."""
    path = write_config(folder / "config.yml", simulator)
    document = yaml.safe_load(path.read_text())
    document["workspaces"][0].update(settings)
    path.write_text(yaml.safe_dump(document))
    with running_exporter("--config.file", str(path), "--web.listen-address", "127.0.0.1:0") as exporter:
        samples = scraped(exporter)
        assert up(samples) == 0
        assert_secret("".join(exporter.log))
    [cause] = [cause for cause, count in failures(samples).items() if count]
    return cause


def test_the_memory_that_a_giant_task_took_goes_back_to_the_system(tmp_path: Path, simulator: Simulator) -> None:
    path = write_config(tmp_path / "config.yml", simulator, fetch={"min_interval": "0s"})
    with running_exporter("--config.file", str(path), "--web.listen-address", "127.0.0.1:0") as exporter:
        scraped(exporter)
        before = resident(exporter)
        for _ in range(5):
            simulator.faults.next("giant_task", "trailing_space")
            assert (up(scraped(exporter)), up(scraped(exporter))) == (0, 1)
        assert resident(exporter) - before < 16  # which is what one of them took


def resident(exporter: ExporterProcess) -> float:
    """Return MiB."""
    status = Path(f"/proc/{exporter.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
