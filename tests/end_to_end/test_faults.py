"""Whatever the API does: an answer in time, the right cause, untouched counters, no key anywhere, and whole again."""

import base64
import html
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

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
from servers import Recorder, said

pytestmark = pytest.mark.xdist_group("faults")  # one exporter lives through all of them

API_ID, API_KEY = "canary-id-7c1f09/&", 'canary-key-"9e+2b'
SCRAPE_TIMEOUT = 15.0  # seconds, as a Prometheus would say
FETCH_TIMEOUT = 8  # a busy machine needs a while for a quarter of a million tasks
HOUR = 3600.0
MEBIBYTE = 1 << 20


def _spaces(response: Response) -> Response:
    return replace(response, pieces=[response.pieces[0], *[b" " * MEBIBYTE] * 32, *response.pieces[1:]])


def _quarter_million(response: Response) -> Response:
    """Tasks that settled long ago, so that none of them is counted."""
    task = b'{"id":"%d","model_name":"gemini-2.5-pro","status":"done","created_at":"2020-01-01T00:00:00Z"}'
    blocks = [b",".join(task % (1000 * block + each) for each in range(1000)) + b"," for block in range(250)]
    return replace(response, pieces=[response.pieces[0], *blocks, *response.pieces[1:]])


KEYS = f"{API_ID} {API_KEY}"

# One of each cause, as `tests/creatify/test_client.py` holds the rest, and the keys wherever they may come back.
FAILURES: dict[str, tuple[Fault, str]] = {
    "a refused key": (FAULTS["unauthorized"], "auth"),
    "an error": (FAULTS["server_error"], "http_status"),
    "another origin": (FAULTS["redirect_other_origin"], "redirect"),
    "a page for people": (FAULTS["html"], "invalid_body"),
    "a list that is cut": (FAULTS["truncated"], "connection"),
    "a body that drips": (dripping(1.0), "timeout"),
    "32 MiB of white space": (_spaces, "too_large"),
    "keys in an error": (replied(401, json.dumps({"detail": KEYS}).encode()), "auth"),
    "keys in an object": (replied(200, json.dumps({"detail": KEYS}).encode()), "invalid_body"),
    "keys for a path": (redirected(f"/{KEYS}"), "http_status"),
    "keys for a reply": (said(f"{KEYS}\r\n\r\n".encode()), "connection"),
    "keys for a length": (said(f"HTTP/1.1 200 OK\r\nContent-Length: {KEYS}\r\n\r\n[".encode()), "invalid_body"),
}
# Lists that are taken, with the entries that cannot be read, by field.
SUCCESSES: dict[str, tuple[Fault, dict[str, int]]] = {
    "entries that are no tasks": (FAULTS["not_a_task"], {"task": 3}),
    "text that is none": (FAULTS["lone_surrogates"], {}),
    "credits below nothing": (FAULTS["negative_credits"], {"credits_used": 1}),
    "interim answers": (FAULTS["early_hints"], {}),
    "a quarter of a million tasks": (_quarter_million, {}),
    "keys for a model": (inserted("", model_name=json.dumps(API_KEY).encode()), {}),
    "keys for a reason": (inserted("", failed_reason=json.dumps(API_KEY).encode()), {}),
}


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
        assert more == 0, family
    assert up(scraped(exporter)) == 1
    assert_secret("".join(exporter.log))


def test_an_api_that_has_enough_is_left_in_peace_and_all_is_well_again_when_it_says_so(
    tmp_path: Path, simulator: Simulator
) -> None:
    path = write_config(tmp_path / "config.yml", simulator, fetch={"min_interval": "0s"})
    with running_exporter("--config.file", str(path), "--web.listen-address", "127.0.0.1:0") as exporter:
        before = scraped(exporter)
        simulator.faults.next(replied(429, KEYS.encode(), retry_after="3"))
        during, asked = scraped(exporter), len(simulator.listings())
        later = scraped(exporter)
        assert (up(before), up(during), up(later)) == (1, 0, 0)
        assert failures(later)["rate_limited"] == 1
        assert len(simulator.listings()) == asked
        until(lambda: up(after := scraped(exporter)) == 1 and ledger_counters(after) == ledger_counters(before))
        assert_secret("".join(exporter.log))


def test_a_certificate_of_an_unknown_authority_is_refused(tmp_path: Path, simulator: Simulator) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*Authority(tmp_path).issue("server", "IP:127.0.0.1"))
    path = write_config(tmp_path / "config.yml", simulator)
    document = yaml.safe_load(path.read_text())
    with Recorder(context) as api:
        other = str(Authority(tmp_path, "other").pem)
        document["workspaces"][0].update({"base_url": api.url, "tls_config": {"ca_file": other}})
        path.write_text(yaml.safe_dump(document))
        with running_exporter("--config.file", str(path), "--web.listen-address", "127.0.0.1:0") as exporter:
            samples = scraped(exporter)
            assert_secret("".join(exporter.log))
    assert up(samples) == 0
    assert [cause for cause, count in failures(samples).items() if count] == ["tls"]
    assert api.heads == []  # no key went there


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
