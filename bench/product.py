"""The exporter in a separate process, with its own ledger."""

import json
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Self

from cost import Cost, Meter


class Exporter:
    """A running exporter of one workspace whose API is at `upstream`.

    `started` is the number of seconds until it was ready.
    """

    def __init__(self, upstream: str, min_interval: str = "0s") -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name)
        workspace = {"name": "default", "api_id": "benchmark", "api_key": "benchmark-key", "base_url": upstream}
        configuration = {
            "workspaces": [{**workspace, "remaining_credits": False}],
            "fetch": {"timeout": "10m", "min_interval": min_interval},
            "ledger": {"url": f"sqlite:///{path}/ledger.db"},
        }
        (path / "config.yml").write_text(json.dumps(configuration))  # JSON is YAML, too
        command = [sys.executable, "-m", "creatify_exporter", "--config.file", str(path / "config.yml")]
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, "--web.listen-address", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr
        address = self._process.stderr.readline().split("address=")[1].split()[0]
        self._connection = HTTPConnection(address, timeout=600)
        self.get("/-/ready")
        self.started = time.perf_counter() - began
        self.get("/metrics/exporter")  # triggers lazy imports
        self.meter = Meter(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.wait()
        assert self._process.stderr
        self._process.stderr.close()
        self._folder.cleanup()

    def get(self, path: str) -> str:
        """Return the body of the answer."""
        self._connection.request("GET", path)
        return self._connection.getresponse().read().decode()

    def scrape(self) -> Cost:
        """Scrape once, from the request to the last byte of the answer."""
        answers: list[str] = []
        cost = self.meter.cost(lambda: answers.append(self.get("/metrics")))
        assert 'creatify_up{api="text_generator",workspace="default"} 1.0' in answers[0], answers[0]
        return cost
