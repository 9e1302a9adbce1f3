"""Ready-made accounts: one to look at, one to work against."""

import signal
import threading
import time
from types import FrameType

from creatify_exporter.simulator.account import Account
from creatify_exporter.simulator.clock import Clock
from creatify_exporter.simulator.listing import Listing
from creatify_exporter.simulator.server import Simulator
from creatify_exporter.simulator.traffic import Incident, Traffic

HOUR = 3600
DAY = 24 * HOUR

PACKAGE = 100_000
"""Credits that a ready-made account has at midnight UTC; a usual day costs a third of them."""

TIMETABLE = (
    Incident(5 * 60, 15 * 60, "gemini-2.5-flash", failure_ratio=0.7, reason="rate_limited", every=2 * HOUR),
    Incident(65 * 60, 75 * 60, "gemini-2.5-pro", failure_ratio=0.7, reason="model_unavailable", every=2 * HOUR),
    Incident(25 * 60, 35 * 60, stuck=True, every=HOUR),
    Incident(45 * 60, 55 * 60, burn=5, every=HOUR),
)
"""What happens to a ready-made account, by the clock (UTC): nothing depends on when somebody starts it."""


def traffic(text_bytes: int) -> Traffic:
    """Return traffic of a task every 3 to 6 s, with something to see within minutes."""
    return Traffic(rate=1 / 4, rhythm=0.3, incidents=TIMETABLE, text_bytes=text_bytes)


def demo_simulator(seed: int = 1) -> Simulator:
    """Return a simulator of an account with a day behind it, in real time, whose list holds the last day."""
    account = Account(seed, _first_day(time.time() - DAY), traffic(1000), PACKAGE)
    return Simulator(account, Clock(), listing=Listing(younger_than=DAY))


def serve(listen: str, *, seed: int, speed: float, tasks: int, api_id: str, api_key: str) -> None:  # noqa: PLR0913 - one for each flag of the command
    """Serve an account on `host:port` until SIGTERM or SIGINT; its list holds the newest `tasks` tasks from the start.

    Above speed 1 it starts a day ago and goes on at that speed until it has caught up with real time.
    """
    clock = Clock.behind(DAY, speed) if speed > 1 else Clock(speed=speed)
    pattern = traffic(3000)
    # A day more than the average rate needs: nights are slow.
    account = Account(seed, _first_day(clock.now() - DAY - tasks / pattern.rate), pattern, PACKAGE)
    # Drawing the past takes a second or two, which the first request should not wait for.
    account.tasks(clock.now())
    stopped = _signalled()
    host, _, port = listen.rpartition(":")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104 - what an empty host means everywhere
    with Simulator(account, clock, host, int(port), api_id, api_key, Listing(newest=tasks)) as simulator:
        print(f"Simulated Creatify API on {simulator.url}", flush=True)
        stopped.wait()


def _first_day(instant: float) -> float:
    """Return the midnight (UTC) before an instant, so that the balance of today is known from midnight on."""
    return instant // DAY * DAY


def _signalled() -> threading.Event:
    """Return what SIGINT and SIGTERM set from now on."""
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopped
