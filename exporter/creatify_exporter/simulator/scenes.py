"""Ready-made workspaces: one for the demo, one to develop against."""

import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from creatify_exporter.simulator.account import DAY, Account
from creatify_exporter.simulator.clock import Clock
from creatify_exporter.simulator.listing import Listing
from creatify_exporter.simulator.products import PRODUCTS, TEXT_GENERATOR, Product
from creatify_exporter.simulator.server import Served, Simulator
from creatify_exporter.simulator.traffic import Incident, Traffic

MINUTE = 60
HOUR = 3600

PACKAGE = 100_000
"""Credits of a ready-made workspace at midnight UTC; a usual day costs most of them."""

AGENCY = ("text_generator", "link_to_videos", "lipsyncs", "asset_generator", "ads_clone")
"""The lists of the demo."""


TIMETABLE: Mapping[str, Sequence[Incident]] = {
    "text_generator": (
        Incident(5 * MINUTE, 15 * MINUTE, "gemini-2.5-flash", 0.7, "rate_limited", every=3 * HOUR),
        Incident(65 * MINUTE, 75 * MINUTE, "gemini-2.5-pro", 0.9, "model_unavailable", every=3 * HOUR),
        Incident(125 * MINUTE, 135 * MINUTE, "gemini-3-flash-preview", 0.9, "timeout", every=3 * HOUR),
        Incident(25 * MINUTE, 35 * MINUTE, stuck=True, every=2 * HOUR),
        Incident(85 * MINUTE, 95 * MINUTE, burn=5, every=2 * HOUR),
    ),
    "link_to_videos": (Incident(45 * MINUTE, 55 * MINUTE, stuck=True, every=4 * HOUR),),
    "lipsyncs": (Incident(105 * MINUTE, 115 * MINUTE, "aurora_v1_fast", 0.8, "internal_error", every=4 * HOUR),),
    "asset_generator": (Incident(165 * MINUTE, 175 * MINUTE, "flux-2", 0.7, "content_filtered", every=4 * HOUR),),
    "ads_clone": (Incident(225 * MINUTE, 235 * MINUTE, burn=3, every=4 * HOUR),),
}
"""Incidents by list; times in seconds since midnight UTC, or in the demo, since a quiet period after its start.

The rarer the model of a text, the more of its tasks fail, so that each incident fires an alert even at night.
"""

QUIET = 15 * MINUTE
"""Seconds from the start of the demo until its first model fails: alerts ignore the first minutes of a ledger."""


class Occurrence(NamedTuple):
    """An incident of a ready-made workspace from `start` until `end` (epoch seconds), as a sentence."""

    start: float
    end: float
    sentence: str

    def __str__(self) -> str:
        start, end = (f"{datetime.fromtimestamp(each, UTC):%H:%M}" for each in (self.start, self.end))
        return f"{start} to {end} UTC: {self.sentence}"


def incidents(accounts: Iterable[Account], now: float, within: float = HOUR) -> list[Occurrence]:
    """Return the incidents that are active at `now` or begin within `within` seconds, in order."""
    return sorted(occurrence for account in accounts for occurrence in _occurrences(account, now, within))


def _occurrences(account: Account, now: float, within: float) -> Iterator[Occurrence]:
    for incident in account.traffic.incidents:
        # Failures requested by somebody do not recur.
        if not incident.every:
            continue
        ended = (now - incident.end) // incident.every
        start = incident.start + (ended + 1) * incident.every
        if start <= now + within:
            yield Occurrence(start, start + incident.end - incident.start, _sentence(account.product.api, incident))


def _sentence(api: str, incident: Incident) -> str:
    if incident.failure_ratio is not None:
        return f"{incident.failure_ratio:.0%} of the tasks of {incident.model} ({api}) fail ({incident.reason})"
    if incident.stuck:
        return f"the queue of {api} is stuck"
    return f"new tasks of {api} cost {incident.burn:g} times the credits"


def demo_simulator(seed: int = 1, clock: Clock | None = None) -> Simulator:
    """Return a simulator of an agency's workspace, in real time, with lists of the last day.

    Its timetable starts with the simulator, not at midnight: see `QUIET`.
    """
    clock = clock or Clock()
    now = clock.now()
    first = min(incident.start for incident in TIMETABLE[TEXT_GENERATOR.api])
    accounts = workspace(seed, _early(now, DAY), AGENCY, text_bytes=1000, since=now + QUIET - first)
    return _simulator(accounts, clock, Listing(younger_than=DAY))


def workspace(seed: int, start: float, apis: Iterable[str], text_bytes: int, since: float = 0.0) -> dict[str, Account]:
    """Return an account for each list; texts are created every 3 to 6 s, other tasks less often.

    The timetable counts from `since`, by default midnight UTC.
    """
    return {
        api: Account(seed, start, _traffic(PRODUCTS[api], text_bytes, since), PACKAGE, PRODUCTS[api]) for api in apis
    }


def serve(  # noqa: PLR0913 - one for each flag of the command
    listen: str,
    *,
    seed: int,
    speed: float,
    tasks: int,
    api_id: str,
    api_key: str,
    fail: Mapping[str, float] | None = None,
) -> None:
    """Serve all lists on `host:port` until SIGTERM or SIGINT.

    Text generation's list contains the newest `tasks` tasks, the other lists those of the last day. Above speed 1, time
    starts a day ago and runs at that speed until it has caught up. `fail` maps models to failure ratios from now on.

    Raises:
        ValueError: `fail` names an unknown model, or a ratio is not between 0 and 1.
        OSError: the address cannot be listened on.

    """
    clock = Clock.behind(DAY, speed) if speed > 1 else Clock(speed=speed)
    # A day more than needed at the average rate: nights are slow.
    accounts = workspace(seed, _early(clock.now(), DAY), PRODUCTS, text_bytes=3000)
    accounts |= workspace(seed, _early(clock.now(), DAY + tasks / TEXT_GENERATOR.rate), (TEXT_GENERATOR.api,), 3000)
    stopped = _signalled()
    host, _, port = listen.rpartition(":")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104 - the usual meaning of an empty host
    simulator = _simulator(accounts, clock, Listing(newest=tasks))
    simulator.host, simulator.port = host, int(port)
    simulator.api_id, simulator.api_key = api_id, api_key
    for model, ratio in (fail or {}).items():
        simulator.fail(model, ratio)
    with simulator:
        print(
            f"Simulated Creatify API on {simulator.url}",
            *incidents(accounts.values(), clock.now()),
            sep="\n",
            flush=True,
        )
        stopped.wait()


def _simulator(accounts: dict[str, Account], clock: Clock, listing: Listing) -> Simulator:
    """Return a simulator of these accounts; `listing` is the behaviour of text generation's list."""
    others = {
        api: Served(account, Listing(younger_than=DAY))
        for api, account in accounts.items()
        if api != TEXT_GENERATOR.api
    }
    return Simulator(accounts[TEXT_GENERATOR.api], clock, listing=listing, lists=others)


def _traffic(product: Product, text_bytes: int, since: float) -> Traffic:
    incidents = [
        replace(incident, start=since + incident.start, end=since + incident.end)
        for incident in TIMETABLE.get(product.api, ())
    ]
    return Traffic(product.rate, rhythm=0.3, incidents=incidents, text_bytes=text_bytes)


def _early(now: float, past: float) -> float:
    """Return a start `past` seconds ago, but before yesterday's tasks that today's balance still pays for."""
    return min(now - past, now // DAY * DAY - 6 * HOUR)


def _signalled() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set from now on."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped
