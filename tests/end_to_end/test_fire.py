"""The ledger of a real exporter under fire: kills at any instant, and everything that can become of its file."""

import os
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest
import requests

from accounts import nonzero
from creatify_exporter.simulator import Account, Clock, Listing, Simulator, Traffic
from processes import COMMAND, Exporter, Samples, total, write_config

KILLS = int(os.environ.get("FIRE_KILLS", "30"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
COUNTERS = ("creatify_tasks_", "creatify_task_duration_", "creatify_credits_", "creatify_failed_tasks_")


def counters(samples: Samples) -> Samples:
    """Return those that come from the ledger."""
    ends = ("_total", "_bucket", "_count", "_sum")
    return {key: value for key, value in samples.items() if key[0].startswith(COUNTERS) and key[0].endswith(ends)}


def by_model(samples: Samples, name: str) -> dict[str, float]:
    models = {dict(labels)["model"] for each, labels in samples if each == name}
    return {model: total(samples, name, model=model) or 0.0 for model in models}


# --- Kills ----------------------------------------------------------------------------------------------------------


class Victim:
    """Starts, scrapes and kills; sees that no counter ever goes back."""

    def __init__(self, config: Path) -> None:
        self.flags = ("--config.file", str(config), "--web.listen-address", "127.0.0.1:0")
        self.random = random.Random(SEED)  # noqa: S311 - reproducible draws are the point
        self.seen: Samples = {}
        self.scrapes = self.lost = 0

    def look(self, exporter: Exporter) -> Samples:
        samples = exporter.samples()
        for key, value in self.seen.items():
            assert samples.get(key, -1.0) >= value, (key, value, samples.get(key))
        self.seen = counters(samples)
        self.scrapes += 1
        return samples

    def killed_at_work(self) -> None:
        """Scrape as fast as it goes until the kill."""
        exporter = Exporter(*self.flags)
        end = threading.Timer(self.random.uniform(0, 0.4), exporter.process.kill)
        end.start()
        while exporter.process.poll() is None:
            try:
                self.look(exporter)
            except requests.RequestException:
                self.lost += 1
        end.join()
        exporter.kill()
        assert "Traceback" not in "".join(exporter.log)

    def killed_while_it_starts(self) -> None:
        process = subprocess.Popen([COMMAND, *self.flags], stderr=subprocess.DEVNULL)
        time.sleep(self.random.uniform(0.05, 0.5))
        process.kill()
        process.wait(10)


@pytest.mark.timeout(0)
def test_a_process_that_is_killed_at_any_instant_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    clock = Clock.accelerated(60 + 2.0 * KILLS, 120)
    account = Account(SEED, clock.now() - 6000, Traffic(rate=1.0, rhythm=0.0, text_bytes=100))
    with Simulator(account, clock, listing=Listing(newest=5000)) as simulator:
        config = write_config(
            tmp_path / "config.yml",
            simulator,
            fetch={"min_interval": "0s"},
            ledger={"url": f"sqlite:///{tmp_path}/ledger.db", "settle_after": "30m", "new_series_hold": "1s"},
        )
        victim = Victim(config)
        exporter = Exporter(*victim.flags)
        before, first = victim.look(exporter), simulator.listings()[-1].at
        exporter.kill()
        for number in range(KILLS):
            victim.killed_while_it_starts() if number % 5 == 4 else victim.killed_at_work()
        exporter = Exporter(*victim.flags)
        after, last = victim.look(exporter), simulator.listings()[-1].at
        assert exporter.terminate() == 0
    print(f"seed {SEED}: {KILLS} kills, {victim.scrapes} scrapes, {victim.lost} of them lost")
    truth = account.truth(last) - account.truth(first)

    def risen(name: str) -> dict[str, float]:
        old = by_model(before, name)
        return nonzero({model: value - old.get(model, 0.0) for model, value in by_model(after, name).items()})

    assert sum(truth.finished.values()) > 10 * KILLS
    assert risen("creatify_tasks_submitted_total") == nonzero(truth.submitted)
    assert risen("creatify_tasks_finished_total") == nonzero(truth.finished)
    assert risen("creatify_tasks_failed_total") == nonzero(truth.failed)
    used, refunded = risen("creatify_credits_used_total"), risen("creatify_credits_refunded_total")
    assert nonzero({model: used[model] - refunded.get(model, 0.0) for model in used}) == nonzero(truth.credits)
