"""What workspaces cost: memory, time, threads, connections.

    python bench/workspaces.py [--workspaces 1000] [--hanging 100] [postgresql://USER@HOST/DATABASE]

The exporter and the API run as separate processes. For each workspace the API answers with a list of ten tasks of
today, or never answers if the workspace is one of those that hang. Prints the results.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from email.utils import formatdate
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from statistics import median
from typing import Final

TASKS: Final = 10
HANGING: Final = b"hanging"


class _Api(ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 1024
    allow_reuse_address = True


class _Answers(BaseRequestHandler):
    def handle(self) -> None:
        received = b""
        with suppress(OSError):
            while piece := self.request.recv(65536):
                received += piece
                while b"\r\n\r\n" in received:
                    head, _, received = received.partition(b"\r\n\r\n")
                    if HANGING in head:
                        threading.Event().wait()
                    self.request.sendall(_answer(head))


def _answer(head: bytes) -> bytes:
    body: object = {"remaining_credits": 5}
    if b"/sse/" in head:
        now = datetime.now(UTC).isoformat()
        task = {"model_name": "gemini-2.5-pro", "status": "done", "credits_used": 1, "created_at": now}
        body = [{"id": f"{number:036}", **task} for number in range(TASKS)]
    content = json.dumps(body).encode()
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: {formatdate(usegmt=True)}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    ).encode() + content


def _serve(pipe: Connection) -> None:
    with _Api(("127.0.0.1", 0), _Answers) as api:
        pipe.send(api.server_address[1])
        api.serve_forever()


class Exporter:
    """A running exporter; `started` is the number of seconds until it was ready."""

    def __init__(self, folder: Path, settings: str, ledger: str) -> None:
        (folder / "config.yml").write_text(settings)
        command = [sys.executable, "-m", "creatify_exporter", "--config.file", str(folder / "config.yml")]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, "--web.listen-address", "127.0.0.1:0"],
            stderr=subprocess.PIPE, text=True, env={**os.environ, "CREATIFY_LEDGER_URL": ledger},
        )  # fmt: skip
        assert self.process.stderr
        line = next(line for line in self.process.stderr if "listening" in line)
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.address = line.split("address=")[1].split()[0]
        self.get("/-/ready")
        self.started = time.perf_counter() - began

    def get(self, path: str, method: str = "GET") -> str:
        """Return the body of the answer, with a scrape timeout of 14 s."""
        connection = http.client.HTTPConnection(self.address, timeout=600)
        try:
            connection.request(method, path, headers={"X-Prometheus-Scrape-Timeout-Seconds": "14"})
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def told(self, what: str) -> str:
        """Return memory, threads and open files."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
        resident, threads = int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"])
        files = len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))
        return f"{what}: {resident:.0f} MiB, {threads} threads, {files} files"

    def cpu(self) -> float:
        """Return the seconds of CPU so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that the work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure one exporter, and print results as they arrive."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ledger", nargs="?")
    parser.add_argument("--workspaces", type=int, default=1000)
    parser.add_argument("--hanging", type=int, default=0)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number in range(arguments.workspaces):
            (folder / f"keys/w{number:04}").mkdir(parents=True)
            (folder / f"keys/w{number:04}/api-id").write_text(f"id-{number:04}")
            secret = HANGING.decode() if number < arguments.hanging else "key"
            (folder / f"keys/w{number:04}/api-key").write_text(f"{secret}-{number:04}-0123456789abcdef")
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        api = context.Process(target=_serve, args=(theirs,), daemon=True)
        api.start()
        stack.callback(api.kill)
        settings = {"directory": str(folder / "keys"), "base_url": f"http://127.0.0.1:{ours.recv()}"}
        exporter = Exporter(
            folder, json.dumps({"workspaces_from": [settings]}), arguments.ledger or f"sqlite:///{folder}/ledger.db"
        )
        stack.callback(exporter.process.kill)
        measure(exporter, arguments.workspaces, arguments.hanging)


def measure(exporter: Exporter, workspaces: int, hanging: int) -> None:
    """Print an exporter's use of resources, before and after its fetches."""
    print(f"ready after {exporter.started:.1f} s")
    print(exporter.told("idle"))
    print(f"/sd: {1e3 * median(timed(lambda: exporter.get('/sd')) for _ in range(5)):.0f} ms")
    for what in ("first", "second", "third"):
        before, most = exporter.cpu(), [""]
        scraping = threading.Event()

        def look(most: list[str] = most, scraping: threading.Event = scraping) -> None:
            while not scraping.wait(0.1):
                most.append(exporter.told("while it fetches"))

        threading.Thread(target=look).start()
        began = time.perf_counter()
        answer = exporter.get("/metrics")
        seconds = time.perf_counter() - began
        scraping.set()
        up = 'creatify_up{api="text_generator"'
        good = sum(line.startswith(up) and line.endswith(" 1.0") for line in answer.split("\n"))
        print(
            f"{what} /metrics: {seconds:.1f} s, {exporter.cpu() - before:.1f} s of CPU, {good} up, "
            f"{len(answer) / 2**20:.1f} MiB; {max(most, key=lambda told: int(told.split()[5]) if told else 0)}"
        )
        time.sleep(14)
    print(exporter.told("after fetches"))
    before = exporter.cpu()
    names = [f"w{number:04}" for number in range(workspaces)]
    probes = sorted(timed(partial(exporter.get, f"/probe?workspace={name}")) for name in names[hanging:])
    print(
        f"/probe, one after the other: median {1e3 * median(probes):.1f} ms, "
        f"99 % within {1e3 * probes[len(probes) * 99 // 100]:.0f} ms, "
        f"{1e3 * (exporter.cpu() - before) / len(probes):.1f} ms of CPU each"
    )
    print(f"reload: {timed(lambda: exporter.get('/-/reload', 'POST')):.2f} s")
    print(exporter.told("at the end"))


if __name__ == "__main__":
    main()
