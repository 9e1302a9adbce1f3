"""The dashboards are sent to a Grafana, here a small one that keeps them."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from grafana.upload import DASHBOARDS, main

SCRIPT: Final = Path(__file__).parents[2] / "grafana/upload.py"


class Grafana(ThreadingHTTPServer):
    """As much of Grafana as the upload asks for, below the path `/grafana`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), GrafanaRequest)
        self.url = f"http://127.0.0.1:{self.server_port}/grafana"
        self.folders: dict[str, str] = {}
        self.dashboards: dict[str, tuple[str, Any]] = {}
        self.provisioned: set[str] = set()


class GrafanaRequest(BaseHTTPRequestHandler):
    server: Grafana

    def do_GET(self) -> None:
        found = [{"uid": uid, "title": title} for uid, title in self.server.folders.items()]
        if self._is_let_in():
            self._answer(200 if self.path == "/grafana/api/folders?limit=1000" else 404, found)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_let_in():
            return
        if self.path == "/grafana/api/folders":
            uid = f"folder-{len(self.server.folders)}"
            self.server.folders[uid] = body["title"]
            self._answer(200, {"uid": uid, **body})
        elif body["folderUid"] in self.server.provisioned:
            self._answer(400, {"message": "Cannot save provisioned dashboard"})
        elif self.path == "/grafana/api/dashboards/db" and body["overwrite"]:
            uid = body["dashboard"]["uid"]
            self.server.dashboards[uid] = (body["folderUid"], body["dashboard"])
            self._answer(200, {"uid": uid, "url": f"/grafana/d/{uid}"})
        else:
            self._answer(404, {})

    def _is_let_in(self) -> bool:
        if self.path.startswith("/moved/"):
            self._answer(302, {}, Location=self.server.url)
        elif self.headers["Authorization"] != "Bearer the-token":
            self._answer(401, {"message": "Invalid API key"})
        else:
            return True
        return False

    def _answer(self, status: int, body: object, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def grafana() -> Iterator[Grafana]:
    with Grafana() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_every_dashboard_is_sent_and_sent_again(grafana: Grafana, capsys: pytest.CaptureFixture[str]) -> None:
    originals = [json.loads(path.read_text("utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))]
    for _ in range(2):
        assert main({"GRAFANA_URL": f"{grafana.url}/", "GRAFANA_TOKEN": "the-token"}) == 0
        said = capsys.readouterr().out.splitlines()
        assert said == [f"{grafana.url}/d/{each['uid']}" for each in originals]
    assert grafana.dashboards == {each["uid"]: ("folder-0", each) for each in originals}
    assert grafana.folders == {"folder-0": "Creatify"}


def test_the_script_needs_nothing_but_pythons_standard_library(grafana: Grafana) -> None:
    environ = {"GRAFANA_URL": grafana.url, "GRAFANA_TOKEN": "the-token", "GRAFANA_FOLDER": "Video & more"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT)], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert grafana.folders == {"folder-0": "Video & more"}


@pytest.mark.parametrize("title", ["Видео", "Video more", "A title of more than the forty characters of a uid"])
def test_dashboards_lie_in_the_folder_of_that_title_whatever_its_uid(grafana: Grafana, title: str) -> None:
    grafana.folders |= {"folder-0": "Video & more", "made-by-hand": "Creatify"}
    for folder, expected in ((title, "folder-2"), ("Creatify", "made-by-hand")):
        assert main({"GRAFANA_URL": grafana.url, "GRAFANA_TOKEN": "the-token\r\n", "GRAFANA_FOLDER": folder}) == 0
        assert {uid for uid, _ in grafana.dashboards.values()} == {expected}


def test_what_goes_wrong_is_one_line_with_a_remedy_and_without_the_token(
    grafana: Grafana, capsys: pytest.CaptureFixture[str]
) -> None:
    for url, token, remedy in (
        (grafana.url, "", "GRAFANA_TOKEN is not set"),
        ("", "", "GRAFANA_URL is not set"),
        ("grafana.example", "a-secret", "give the address that the browser shows"),
        (
            grafana.url,
            "a-secret",
            "401 Unauthorized; GRAFANA_TOKEN has to belong to",
        ),
        (f"{grafana.url}/elsewhere", "the-token", "is GRAFANA_URL the address that the browser shows?"),
        (grafana.url.replace("/grafana", "/moved"), "a-secret", "302 Found; set GRAFANA_URL to the address"),
        ("http://127.0.0.1:1", "a-secret", "Connection refused"),
        (grafana.url, "a-secret\nand more", "GRAFANA_TOKEN has characters"),
    ):
        assert main({"GRAFANA_URL": url, "GRAFANA_TOKEN": token}) == 1
        said = capsys.readouterr()
        assert remedy in said.err
        assert said.err.count("\n") == 1
        assert "a-secret" not in said.err + said.out
    assert grafana.dashboards == {}


def test_what_grafana_says_against_a_dashboard_is_told(grafana: Grafana, capsys: pytest.CaptureFixture[str]) -> None:
    grafana.folders["from-files"] = "Creatify"
    grafana.provisioned.add("from-files")
    assert main({"GRAFANA_URL": grafana.url, "GRAFANA_TOKEN": "the-token"}) == 1
    assert capsys.readouterr().err.endswith("400 Bad Request; Grafana says: Cannot save provisioned dashboard\n")
