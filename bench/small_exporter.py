"""An exporter that one would write in an hour, with `requests` and `prometheus_client`; it listens on port 9000.

    API_URL=https://api.creatify.ai/sse/text_generator/ python bench/small_exporter.py

It counts the tasks in the current list, so its counters fall when the list forgets a task.
"""

import os
import time
from collections.abc import Iterator
from functools import partial

import requests
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Tasks(Collector):
    """Fetches the list at each scrape."""

    def __init__(self, url: str) -> None:
        self._get = partial(requests.get, url, headers={"X-API-KEY": os.environ.get("API_KEY", "")}, timeout=600)

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        counts: dict[tuple[str, str], int] = {}
        used: dict[str, float] = {}
        for task in self._get().json():
            model = task["model_name"]
            counts[model, task["status"]] = counts.get((model, task["status"]), 0) + 1
            used[model] = used.get(model, 0.0) + (task.get("credits_used") or 0.0)
        tasks = GaugeMetricFamily("creatify_tasks", "Tasks in the list.", labels=["model", "status"])
        for labels, number in counts.items():
            tasks.add_metric(labels, number)
        total = CounterMetricFamily("creatify_credits_used", "Credits.", labels=["model"])
        for model, amount in used.items():
            total.add_metric([model], amount)
        yield from (tasks, total)


def scrape(url: str) -> bytes:
    """Return one answer."""
    registry = CollectorRegistry()
    registry.register(Tasks(url))
    return generate_latest(registry)


if __name__ == "__main__":
    REGISTRY.register(Tasks(os.environ["API_URL"]))
    start_http_server(9000)
    time.sleep(float("inf"))
