"""How long the credits last at the rate of the last days. Times are in seconds since the epoch."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import inf, isfinite
from typing import Final, NamedTuple

from creatify_exporter.config.plan import Plan
from creatify_exporter.snapshot import Snapshot

RECENT_DAYS: Final = 7
"""The whole UTC days before today that the rate is based on."""

_HOUR: Final = 3600.0
_DAY: Final = 24 * _HOUR
_YEAR: Final = 365 * _DAY

NO_PLAN: Final = Plan()

# Days; less than 1, because the oldest task in a list of one day is a little younger than that.
_ENOUGH: Final = 0.9


class Spending(NamedTuple):
    """The known credits of the tasks of one list.

    `net_by_day` are the credits used less those refunded by UTC day; day 0 is 1970-01-01. `counted_since` is when the
    first list was recorded; unless it was skipped, its tasks count on the days of their creation. `snapshot` is the
    current list, if known.
    """

    net_by_day: Mapping[int, float]
    counted_since: float
    snapshot: Snapshot | None = None

    def daily_rate(self, now: float) -> float | None:
        """Return the credits used per day in the last days and today, or in the list; None if neither is enough."""
        today = int(now // _DAY)
        since = max(today - RECENT_DAYS, self._complete_since())
        elapsed = now / _DAY - since
        if elapsed >= _ENOUGH:
            return sum(net for day, net in self.net_by_day.items() if day >= int(since)) / elapsed
        return self._listed_rate(now)

    def _complete_since(self) -> float:
        """Return the first day with complete daily totals."""
        began = [self.counted_since // _DAY, *map(float, self.net_by_day)]
        # A total of a day before the first list shows that this list was not skipped: all days that it covered count.
        if min(began) < began[0] and self.snapshot and isfinite(self.snapshot.oldest_at):
            began.append(self.snapshot.oldest_at // _DAY)
        # The first day itself is incomplete: the time at which its totals begin is not known.
        return min(began) + 1

    def _listed_rate(self, now: float) -> float | None:
        """Return the credits used per day by the tasks in the list; None if it covers less than about a day."""
        if self.snapshot is None:
            return None
        if not self.snapshot.tasks:
            return 0.0
        days = (now - self.snapshot.oldest_at) / _DAY
        return self.snapshot.credits_used / days if days >= _ENOUGH else None


class BalanceFall:
    """The decreases of a workspace's balance by UTC day; purchases are ignored.

    It shows how fast credits are used if no list is fetched. It is kept in memory, and starts empty with each process.
    """

    def __init__(self) -> None:
        self._since = inf
        self._last = -inf
        self._fallen_by_day: dict[int, float] = {}

    def note(self, balance: float, now: float) -> None:
        """Note a balance that was read."""
        self._since = min(self._since, now)
        if balance < self._last:
            day = int(now // _DAY)
            recent = {each: fallen for each, fallen in self._fallen_by_day.items() if each >= day - RECENT_DAYS}
            self._fallen_by_day = {**recent, day: recent.get(day, 0.0) + self._last - balance}
        self._last = balance

    def daily_rate(self, now: float) -> float | None:
        """Return the credits used per day in the last days and today; None before a day is known."""
        first = int(now // _DAY) - RECENT_DAYS
        elapsed = now / _DAY - max(first, self._since / _DAY)
        fallen = sum(fallen for day, fallen in self._fallen_by_day.items() if day >= first)
        return fallen / elapsed if elapsed >= _ENOUGH else None


def outlook(balance: float, rate: float | None, now: float, plan: Plan = NO_PLAN, without: Sequence[str] = ()) -> str:
    """Describe how many credits are left, of how many in the plan, and whether they last until it renews.

    `rate` is in credits per day; if it is None or no credits are used, only the balance and the renewal are included.
    `without` are the lists that are missing in the rate, for any reason.
    """
    renews_at = plan.renews_at(now)
    left = f"{balance:,.12g}" + (f" of {plan.credits:,.12g} credits" if plan.credits is not None else " credits")
    if balance <= 0:
        left += ", used up"
    renewal = f", renewal {_date(renews_at)}" if renews_at is not None else ""
    if rate is None or rate <= 0 or balance <= 0:
        return left + renewal
    missing = f" (without {', '.join(without)}: not known)" if without else ""
    ends_at = now + balance / rate * _DAY
    if renews_at is None:
        return f"{left}, {_end(ends_at, now)}{missing}"
    spare = balance - rate * (renews_at - now) / _DAY
    if round(spare) >= 0:
        return f"{left}, last until the renewal {_date(renews_at)}: {spare:,.0f} left over{missing}"
    return f"{left}, {_end(ends_at, now)}{renewal}: {-spare:,.0f} short{missing}"


def _end(moment: float, now: float) -> str:
    """Describe when the credits end: the sooner, the more precisely."""
    left = moment - now
    if left >= _YEAR:
        return "last for more than a year"
    if left >= 2 * _DAY:
        return f"last until {_date(moment)}"
    number, unit = (left / _HOUR, "hour") if left >= _HOUR else (left / 60, "minute")
    at = f"{datetime.fromtimestamp(moment, UTC):%H:%M} UTC"
    day = "" if moment // _DAY == now // _DAY else f"{_date(moment)}, "
    return f"last about {number:.0f} {unit}{'' if round(number) == 1 else 's'}, until {day}{at}"


def _date(moment: float) -> str:
    day = datetime.fromtimestamp(moment, UTC)
    return f"{day.day} {day:%B}"
