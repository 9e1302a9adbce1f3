"""Hours of a simulated account, scraped at once: the exporter's responses with the times of the scrapes.

The real exporter and ledger run on a simulated clock against the simulated API. Every scrape is written as OpenMetrics
with a timestamp, twice, as two replicas with one ledger would answer.
"""

from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Final, TextIO
from unittest.mock import patch

from prometheus_client.openmetrics.exposition import generate_latest

from creatify_exporter.config.credential import Credential
from creatify_exporter.config.plan import Plan
from creatify_exporter.config.schema import Config, Fetch, Workspace
from creatify_exporter.exporter import Exporter, rules
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.simulator import MODELS, Account, Clock, Fault, Incident, Listing, Simulator, Traffic, replied

HOUR: Final = 3600
CREDITS: Final = 250_000
TROUBLE: Final[dict[int, tuple[str | Fault, ...]]] = {
    97: ("server_error",),
    211: (replied(429, retry_after="0"), "truncated"),
    3: ("negative_credits",),
    50: ("unknown_status",),
}
"""Number of scrapes → the faults of the next fetches each time that many have passed."""
REPLICAS: Final = ("exporter-0:10081", "exporter-1:10081")


@dataclass
class Past:
    """A history that ends at `end` (epoch seconds); `step` is the scrape interval in seconds."""

    end: float
    hours: float = 6
    step: float = 30
    rate: float = 1 / 10
    """Tasks a second."""
    newest: int = 400
    """Length of the list."""

    @property
    def start(self) -> float:
        """The time of the first scrape."""
        return self.end - self.hours * HOUR

    def account(self) -> Account:
        """Return an account with failures, a stuck queue, a credit burn, and an incident that continues."""
        end = self.end
        incidents = (
            Incident(end - 0.75 * self.hours * HOUR, end - 0.7 * self.hours * HOUR, stuck=True),
            Incident(end - 0.5 * self.hours * HOUR, end - 0.42 * self.hours * HOUR, burn=4),
            Incident(
                end - 0.25 * self.hours * HOUR,
                end - 0.2 * self.hours * HOUR,
                "gemini-3-flash-preview",
                failure_ratio=0.8,
                reason="model_unavailable",
            ),
            Incident(end - 900, end, "gemini-2.5-pro", failure_ratio=0.9, reason="rate_limited"),
        )
        traffic = Traffic(rate=self.rate, rhythm=0.4, models=MODELS, incidents=incidents, text_bytes=200)
        return Account(7, self.start - HOUR, traffic, package=CREDITS)

    def write(self, file: TextIO) -> None:
        """Scrape every `step` seconds and write the samples of all scrapes."""
        instant = [self.start]
        clock = Clock(real=lambda: instant[0])
        simulator = Simulator(self.account(), clock, listing=Listing(newest=self.newest))
        with simulator, _no_time_passes(), closing(_exporter(simulator, clock)) as exporter:
            for number in range(int((self.end - self.start) / self.step) + 1):
                instant[0] = self.start + number * self.step
                _trouble(simulator, number)
                file.writelines(_scrape(exporter, instant[0]))
        file.write("# EOF\n")


def _trouble(simulator: Simulator, number: int) -> None:
    """Make some fetches fail and some entries invalid."""
    for every, faults in TROUBLE.items():
        if number and number % every == 0:
            simulator.faults.next(*faults)


def _no_time_passes() -> AbstractContextManager[object]:
    """Fetch the balance at every scrape: its interval is measured in real time, which stands still here."""
    return patch("creatify_exporter.target._BALANCE_INTERVAL", 0.0)


def _exporter(simulator: Simulator, clock: Clock) -> Exporter:
    workspace = Workspace(
        name="default",
        api_id=Credential(simulator.api_id),
        api_key=Credential(simulator.api_key),
        base_url=simulator.url,
        plan=Plan(credits=CREDITS, renews_on_day=1, price_per_credit=0.15, currency="USD"),
    )
    config = Config(workspaces=(workspace,), fetch=Fetch(min_interval=0.0))
    ledger = Ledger(SqliteStore(None), rules(config), clock.now)
    return Exporter(config, ledger, clock.now)


def _scrape(exporter: Exporter, at: float) -> Iterator[str]:
    """Scrape once, and yield the samples as each replica would serve them."""
    scrape = exporter.begin_scrape()
    wait(scrape.futures)
    text = generate_latest(exporter.collect(scrape, own=True)).decode()  # type: ignore[no-untyped-call]
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    for replica in REPLICAS:
        yield from (_told_by(replica, sample, at) for sample in samples)


def _told_by(replica: str, sample: str, at: float) -> str:
    """Add the target's labels, as Prometheus does, and the time."""
    target = f'instance="{replica}",job="creatify-exporter"'
    name, brace, labelled = sample.partition("{")
    if brace:
        return f"{name}{{{target},{labelled} {at:.3f}\n"
    name, _, value = sample.partition(" ")
    return f"{name}{{{target}}} {value} {at:.3f}\n"
