"""The bare download, and exporters that one would write in an hour: each call is one scrape.

    python bench/others.py METHOD URL WARMUP_URL

runs one scrape in this process and prints its cost. All methods sum up in plain dictionaries before they touch a gauge,
which is fast, and read only the fields that they need.
"""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import requests

from cost import Meter, children_cost

_PIECE: Final = 256 * 1024

Row = tuple[str, str, float, str]
"""Model, status, credits, reason."""


def _download() -> Callable[[str], object]:
    def scrape(url: str) -> None:
        with requests.get(url, stream=True, timeout=600) as response:
            while response.raw.read(_PIECE):
                pass

    return scrape


def _unpack() -> Callable[[str], object]:
    def scrape(url: str) -> None:
        with requests.get(url, stream=True, timeout=600) as response:
            while response.raw.read(_PIECE, decode_content=True):
                pass

    return scrape


def _small() -> Callable[[str], object]:
    from small_exporter import scrape

    return scrape


def _script() -> Callable[[str], object]:
    script, folder = Path(__file__).with_name("textfile.sh"), tempfile.mkdtemp()
    return lambda url: subprocess.run(["/bin/bash", str(script), url, f"{folder}/tasks.prom"], check=True)


def _socket() -> Callable[[str], object]:
    def scrape(url: str) -> None:
        parts, buffer = urlsplit(url), bytearray(_PIECE)
        request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
        with socket.create_connection((parts.hostname or "", parts.port or 80)) as connection:
            connection.sendall(request)
            received = connection.recv(_PIECE, socket.MSG_PEEK)
            head = received.partition(b"\r\n\r\n")[0]
            left = len(head) + 4 + int(head.lower().partition(b"content-length: ")[2].split()[0])
            while left > 0:
                left -= connection.recv_into(buffer)

    return scrape


def _json() -> Callable[[str], object]:
    return lambda url: _exposed(map(_row, requests.get(url, timeout=600).json()))


def _orjson() -> Callable[[str], object]:
    import orjson

    return lambda url: _exposed(map(_row, orjson.loads(requests.get(url, timeout=600).content)))


def _pydantic() -> Callable[[str], object]:
    from datetime import datetime

    from pydantic import BaseModel, TypeAdapter, create_model

    fields: dict[str, Any] = {"id": str, "model_name": str, "status": str, "created_at": datetime}
    fields |= {"failed_reason": (str | None, None), "credits_used": (float | None, None)}
    task: type[BaseModel] = create_model("Task", **fields)
    tasks = TypeAdapter(list[task])  # type: ignore[valid-type] # a type created at run time

    def scrape(url: str) -> bytes:
        return _exposed(map(_row_of, tasks.validate_json(requests.get(url, timeout=600).content)))

    return scrape


def _ijson() -> Callable[[str], object]:
    import ijson

    def scrape(url: str) -> bytes:
        with requests.get(url, stream=True, timeout=600) as response:
            response.raw.decode_content = True
            return _exposed(map(_row, ijson.items(response.raw, "item", use_float=True)))

    return scrape


def _msgspec() -> Callable[[str], object]:
    import msgspec

    from creatify_exporter.creatify.task import Task

    return lambda url: _exposed(
        map(_row_of, msgspec.json.decode(requests.get(url, timeout=600).content, type=list[Task]))
    )


UNPACKED: Final = "bare download, decompressed"
SCRIPT: Final = "bash + curl + jq"
METHODS: Final[dict[str, Callable[[], Callable[[str], object]]]] = {
    "bare download, requests": _download,
    "bare download, socket": _socket,
    "an exporter of 40 lines": _small,
    "msgspec, typed, whole body": _msgspec,
    "ijson": _ijson,
    "orjson": _orjson,
    "pydantic": _pydantic,
    "requests + json": _json,
    **({SCRIPT: _script} if shutil.which("jq") and shutil.which("curl") else {}),
}


def _row(task: dict[str, Any]) -> Row:
    return task["model_name"], task["status"], task.get("credits_used") or 0.0, task.get("failed_reason") or ""


def _row_of(task: Any) -> Row:  # noqa: ANN401 - of either library
    return task.model_name, task.status, task.credits_used or 0.0, task.failed_reason or ""


def _exposed(rows: Iterable[Row]) -> bytes:
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    counts: Counter[tuple[str, str]] = Counter()
    used: Counter[str] = Counter()
    failures: Counter[tuple[str, str]] = Counter()
    for model, status, spent, reason in rows:
        counts[model, status] += 1
        used[model] += spent  # type: ignore[assignment] # a Counter of floats
        if status == "failed":
            failures[model, reason] += 1
    registry = CollectorRegistry()
    tasks = Gauge("tasks", "Tasks.", ["model", "status"], registry=registry)
    failed = Gauge("tasks_failed", "Failed tasks.", ["model", "reason"], registry=registry)
    total = Gauge("credits_used", "Credits.", ["model"], registry=registry)
    for labels, number in counts.items():
        tasks.labels(*labels).set(number)
    for labels, number in failures.items():
        failed.labels(*labels).set(number)
    for name, amount in used.items():
        total.labels(name).set(amount)
    return generate_latest(registry)


def main(name: str, url: str, warmup: str) -> None:
    """Print the cost of this process' second scrape; the first is the warm-up."""
    scrape = _unpack() if name == UNPACKED else METHODS[name]()
    scrape(warmup)
    cost = children_cost if name == SCRIPT else Meter().cost
    print(json.dumps(cost(lambda: scrape(url))))


if __name__ == "__main__":
    main(*sys.argv[1:])
