"""An account that is known to the last task, and what Prometheus holds of it after a while."""

import time
from typing import Any

from creatify_exporter.simulator import MODELS, Account, Clock, Incident, Model, Traffic, Truth
from processes import Prometheus, Samples, total

MINUTE = 60.0
NEWCOMER = "gemini-4-flash-preview"


def busy_account(clock: Clock) -> Account:
    """Two hours of the past, and those to come; a model whose very first tasks fail; at the end all goes quiet."""
    now = clock.now()
    newcomer = Model(
        NEWCOMER, weight=10, seconds=5, failure_ratio=0.0, credits=1, since=now + 80 * MINUTE, first_failures=4
    )
    quiet = Incident(clock.end - 30 * MINUTE, clock.end + 60 * MINUTE, arrivals=0)
    traffic = Traffic(rate=1 / 3, rhythm=0.2, models=(*MODELS, newcomer), incidents=(quiet,), text_bytes=300)
    return Account(7, now - 120 * MINUTE, traffic)


class Run:
    """What Prometheus holds after the run, and what was true between its first and its last sample."""

    def __init__(self, prometheus: Prometheus, truth: Truth, began: float) -> None:
        self.prometheus, self.truth, self.began = prometheus, truth, began

    def increases(self, metric: str) -> dict[str, float]:
        """Return the last raw sample less the first one, by model; no function of Prometheus touches them."""
        sums: dict[str, float] = {}
        for series in self.samples(metric):
            values = [float(value) for _, value in series["values"]]
            model = series["metric"]["model"]
            sums[model] = sums.get(model, 0.0) + values[-1] - values[0]
        return sums

    def samples(self, metric: str) -> list[dict[str, Any]]:
        return self.prometheus.query(f"{metric}[{int(time.time() - self.began) + 5}s]")


def nonzero(counts: dict[str, float]) -> dict[str, float]:
    return {model: count for model, count in counts.items() if count}


def risen(before: Samples, after: Samples, name: str) -> dict[str, float]:
    """Return by how much a counter has risen, by model; without those that have not."""
    models = {dict(labels)["model"] for each, labels in after if each == name}
    return nonzero({m: (total(after, name, model=m) or 0) - (total(before, name, model=m) or 0) for m in models})


def assert_true(truth: Truth, before: Samples, after: Samples, least: int) -> None:
    """See that counters have risen by what has happened, which are so many finished tasks at least."""
    assert sum(truth.finished.values()) >= least
    assert risen(before, after, "creatify_tasks_submitted_total") == nonzero(truth.submitted)
    assert risen(before, after, "creatify_tasks_finished_total") == nonzero(truth.finished)
    assert risen(before, after, "creatify_tasks_failed_total") == nonzero(truth.failed)
    used = risen(before, after, "creatify_credits_used_total")
    refunded = risen(before, after, "creatify_credits_refunded_total")
    models = used.keys() | refunded.keys()
    assert nonzero({each: used.get(each, 0) - refunded.get(each, 0) for each in models}) == nonzero(truth.credits)
