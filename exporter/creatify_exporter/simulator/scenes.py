"""Ready-made accounts: one to look at, one to work against."""

import signal
import threading
import time
from dataclasses import replace
from types import FrameType

from creatify_exporter.simulator.account import Account
from creatify_exporter.simulator.clock import Clock
from creatify_exporter.simulator.listing import Listing
from creatify_exporter.simulator.server import Simulator
from creatify_exporter.simulator.traffic import MODELS, Incident, Traffic

HOUR = 3600
DAY = 24 * HOUR


def lively(now: float) -> Traffic:
    """Return traffic of a task every 3 to 6 s, with something to see in the day before `now` and the hour after."""
    newcomer = replace(MODELS[2], name="gemini-4-flash-preview", since=now + 180, first_failures=3)
    incidents = (
        Incident(now - 9 * HOUR, now - 8.5 * HOUR, burn=5),
        Incident(now - 5 * HOUR, now - 4.8 * HOUR, stuck=True),
        Incident(now - 2 * HOUR, now - 1.8 * HOUR, "gemini-2.5-pro", failure_ratio=0.8, reason="model_unavailable"),
        Incident(now + 300, now + 900, "gemini-2.5-flash", failure_ratio=0.7, reason="rate_limited"),
        Incident(now + 1500, now + 2100, stuck=True),
        Incident(now + 2700, now + 3300, burn=5),
    )
    return Traffic(rate=1 / 4, rhythm=0.3, models=(*MODELS, newcomer), incidents=incidents, text_bytes=1000)


def demo_simulator(seed: int = 1) -> Simulator:
    """Return a simulator of an account with a day behind it, in real time, whose list holds the last day."""
    now = time.time()
    return Simulator(Account(seed, now - DAY, lively(now)), Clock(), listing=Listing(younger_than=DAY))


def serve(listen: str, *, seed: int, speed: float, tasks: int, api_id: str, api_key: str) -> None:  # noqa: PLR0913 - one for each flag of the command
    """Serve an account on `host:port` until SIGTERM or SIGINT; its list holds the newest `tasks` tasks from the start.

    Above speed 1 it starts a day ago and goes on at that speed until it has caught up with real time.
    """
    clock = Clock.behind(DAY, speed) if speed > 1 else Clock(speed=speed)
    now = clock.now()
    traffic = replace(lively(now), text_bytes=3000)
    # A day more than the average rate needs: nights are slow.
    account = Account(seed, now - DAY - tasks / traffic.rate, traffic)
    stopped = _signalled()
    host, _, port = listen.rpartition(":")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104 - what an empty host means everywhere
    with Simulator(account, clock, host, int(port), api_id, api_key, Listing(newest=tasks)) as simulator:
        print(f"Simulated Creatify API on {simulator.url}", flush=True)
        stopped.wait()


def _signalled() -> threading.Event:
    """Return what SIGINT and SIGTERM set from now on."""
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopped
