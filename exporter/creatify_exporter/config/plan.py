"""The plan of a workspace, in the configuration or in a separate file beside the keys."""

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
    """Facts that the API does not report: credits per period, the day of the month it starts, the price of a credit."""

    credits: Amount | None = None
    renews_on_day: Annotated[int, msgspec.Meta(ge=1, le=31)] | None = None
    price_per_credit: Amount | None = None
    currency: Currency | None = None

    def validate(self) -> Iterator[tuple[str, str]]:
        """Require a currency: a price without one has no unit."""
        if self.price_per_credit is not None and self.currency is None:
            yield "price_per_credit", "has no currency; add currency, like USD"

    def renews_at(self, now: float) -> float | None:
        """Return the next renewal: 00:00 UTC on its day of the month, or on the last day of a shorter month."""
        if self.renews_on_day is None:
            return None
        first = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        moments = [_on_day(month, self.renews_on_day) for month in (first, (first + timedelta(days=31)).replace(day=1))]
        return next(moment for moment in moments if moment > now)


def _on_day(month: datetime, day: int) -> float:
    last = monthrange(month.year, month.month)[1]
    return month.replace(day=min(day, last)).timestamp()


def read(path: Path) -> Plan:
    """Read a file that contains only a plan; ConfigError lists every error with its line."""
    found = document.read(path, "it")
    return Reader(found, {}).build(Plan, found.content)
