"""The landing page in a real browser, with names that would like to be markup."""

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from conftest import tool
from creatify_exporter.simulator import Account, Clock, Listing, Simulator, Traffic, inserted
from processes import ExporterProcess, running_exporter, write_config
from servers import Server

SCRIPT = "<script>document.title = 'taken over'</script>"
HOSTILE = {
    "script": SCRIPT,
    "image": "<img src=x onerror=\"document.title='taken over'\">",
    "attribute": '"><svg onload="document.title=\'taken over\'">',
    "entity": "&lt;b&gt;&#60;script&#62;",
}
PAGES = ("/", "/sd", "/metrics", "/metrics/exporter", "/probe?workspace=default", "/probe?workspace=<script>", "/no")


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExporterProcess]:
    """Serve what an API shows whose models have such names."""
    now = time.time()
    account = Account(5, now - 3600, Traffic(rate=1 / 300, text_bytes=50))
    with Simulator(account, Clock(real=lambda: now), listing=Listing(younger_than=3600)) as simulator:
        config = write_config(tmp_path_factory.mktemp("page") / "config.yml", simulator, fetch={"min_interval": "0s"})
        with running_exporter("--config.file", str(config), "--web.listen-address", "127.0.0.1:0") as running:
            for number, name in enumerate(HOSTILE.values()):
                fields = {"id": b'"hostile-%d"' % number, "model_name": quoted(name), "failed_reason": quoted(name)}
                simulator.faults.next(inserted("", **fields, status=b'"failed"'))
                running.get()
            simulator.faults.always(inserted("", id=b'"hostile-0"', model_name=quoted(SCRIPT)))
            running.get()
            yield running


def quoted(text: str) -> bytes:
    return b'"' + text.replace('"', '\\"').encode() + b'"'


def shown(url: str, folder: Path) -> str:
    """Return the document that Chromium has made of a page, when all its scripts have run."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
    quiet = ("--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}")
    command = [tool("chromium", "chromium"), *flags, *quiet, "--virtual-time-budget=2000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_names_that_look_like_markup_are_shown_as_what_they_are(exporter: ExporterProcess, tmp_path: Path) -> None:
    document = shown(exporter.url + "/", tmp_path)
    assert "<title>Creatify exporter</title>" in document
    assert not re.search("<(script|img|svg)", document)
    for name in HOSTILE.values():
        assert name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in document


class Infected(Server):
    """Passes a page on with a script in it, and with the headers that it came with, or with some of them."""

    def __init__(self, body: str, headers: Mapping[str, str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.replace("</body>", f"{SCRIPT}</body>").encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        super().__init__(Handler)


def test_a_script_that_got_into_the_page_all_the_same_would_not_run(exporter: ExporterProcess, tmp_path: Path) -> None:
    page = exporter.get("/")
    kept = {name: page.headers[name] for name in ("Content-Type", "Content-Security-Policy")}
    with Infected(page.text, kept) as infected:
        assert "<title>Creatify exporter</title>" in shown(infected.url, tmp_path / "kept")
    with Infected(page.text, {"Content-Type": page.headers["Content-Type"]}) as infected:
        assert "<title>taken over</title>" in shown(infected.url, tmp_path / "lost")


@pytest.mark.parametrize("path", PAGES)
def test_no_browser_is_to_guess_what_an_answer_is(exporter: ExporterProcess, path: str) -> None:
    answer = exporter.get(path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "<script" not in answer.text or answer.headers["Content-Type"].startswith("text/plain; version=")


def test_the_page_is_kept_nowhere_and_shown_in_no_frame(exporter: ExporterProcess) -> None:
    headers = exporter.get("/").headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "form-action 'none'" in headers["Content-Security-Policy"]
