"""How long the credits last, if they go as they went in the last days. Times are in seconds since the epoch."""

from datetime import UTC, datetime
from typing import Final

RECENT_DAYS: Final = 7
"""The whole UTC days before today that tell how fast the credits go."""

_DAY: Final = 24 * 3600.0
_YEAR: Final = 365 * _DAY


def daily_rate(net_by_day: dict[int, float], counted_since: float, now: float) -> float | None:
    """Return the credits that go in a day, on the average of the last days and of today; None before a day is known.

    `net_by_day` are the credits used less those refunded by UTC day, 0 being 1970-01-01. Counting began at
    `counted_since`, but a first list tells of days before.
    """
    today = int(now // _DAY)
    since = max(today - RECENT_DAYS, min([counted_since / _DAY, *map(float, net_by_day)]))
    elapsed = now / _DAY - since
    if elapsed < 1:
        return None
    return sum(credits_ for day, credits_ in net_by_day.items() if day >= int(since)) / elapsed


def outlook(
    balance: float, rate: float | None, now: float, *, plan: float | None = None, renews_at: float | None = None
) -> str:
    """Say how many credits are left, of how many in the `plan`, and whether they last until it renews.

    `rate` is in credits a day; without one, or if no credits go, only the balance and the renewal are told.
    """
    left = f"{balance:,.12g}" + (f" of {plan:,.12g} credits" if plan is not None else " credits")
    renewal = f", renewal {_date(renews_at)}" if renews_at is not None else ""
    if rate is None or rate <= 0:
        return left + renewal
    ends_at = now + max(balance, 0.0) / rate * _DAY
    if renews_at is None:
        return left + (f", last until {_date(ends_at)}" if ends_at - now < _YEAR else ", last for more than a year")
    spare = balance - rate * (renews_at - now) / _DAY
    if spare >= 0:
        return f"{left}, last until the renewal {_date(renews_at)}: {spare:,.0f} left over"
    return f"{left}, last until {_date(ends_at)}{renewal}: {-spare:,.0f} short"


def _date(moment: float) -> str:
    day = datetime.fromtimestamp(moment, UTC)
    return f"{day.day} {day:%B}"
