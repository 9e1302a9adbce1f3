"""A plan: of a workspace in the configuration, or in a file of its own beside the keys."""

from calendar import monthrange
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from creatify_exporter.config import document
from creatify_exporter.config.reader import Reader, Settings
from creatify_exporter.config.values import Amount, Currency


class Plan(Settings, frozen=True, kw_only=True):
    """What the API does not tell: credits for each period, the day of the month it starts, the price of a credit."""

    credits: Amount | None = None
    renews_on_day: Annotated[int, msgspec.Meta(ge=1, le=31)] | None = None
    price_per_credit: Amount | None = None
    currency: Currency | None = None

    def validate(self) -> Iterator[tuple[str, str]]:
        """Ask for a currency: a price without one is a number without a unit."""
        if self.price_per_credit is not None and self.currency is None:
            yield "price_per_credit", "has no currency; add currency, like USD"

    def renews_at(self, now: float) -> float | None:
        """Return when it renews next: 00:00 UTC on its day of a month, on the last day of a shorter one."""
        if self.renews_on_day is None:
            return None
        first = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        moments = [_on_day(month, self.renews_on_day) for month in (first, (first + timedelta(days=31)).replace(day=1))]
        return next(moment for moment in moments if moment > now)


def _on_day(month: datetime, day: int) -> float:
    last = monthrange(month.year, month.month)[1]
    return month.replace(day=min(day, last)).timestamp()


def read(path: Path) -> Plan:
    """Read a plan from a file with nothing else in it; ConfigError has every mistake, with its line."""
    found = document.read(path, "it")
    return Reader(found, {}).build(Plan, found.content)
