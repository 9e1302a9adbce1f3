"""Daily and monthly totals from the ledger, to explain last month's credits and what they cost."""

import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from math import inf
from typing import Final, NamedTuple

from creatify_exporter.errors import ConfigError
from creatify_exporter.ledger.state import DAY, DAY_TOTALS, FAILED_BY
from creatify_exporter.ledger.store import Day, Store
from creatify_exporter.ledger.table import aligned

_NAMES: Final = ("day", "workspace", "api", "model")
_COUNTS: Final = ("submitted", "finished", "failed", "used", "refunded", "net", "failed_net")
_COLUMNS: Final = (*_NAMES, *_COUNTS, "cost", "currency")

_EPOCH: Final = date(1970, 1, 1).toordinal()

# Currencies whose smallest unit is not a hundredth (ISO 4217).
_DECIMALS: Final = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV"), 0),
    **dict.fromkeys(("XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}

_Line = tuple[str, ...]


class Price(NamedTuple):
    """The price of one credit, and its currency, such as USD."""

    per_credit: float
    currency: str


def write(store: Store, prices: Mapping[str, Price], month: str | None, *, as_csv: bool) -> None:
    """Print a month's totals by day, workspace, list and model, and sums; `month` is like 2026-10, by default this.

    `prices` are those of the workspaces that have one. A sum is that of one workspace, so that it has one currency.
    """
    since, before = _month(month)
    totals = store.days(since.toordinal() - _EPOCH, before.toordinal() - _EPOCH)
    notes = list(_notes(totals, store.first_lists()))
    daily = _sums(totals, lambda total: (_day(total), total.api, total.model))
    if as_csv:
        lines = (sums.line(prices.get(sums.workspace), rounded=False) for sums in daily)
        csv.writer(sys.stdout, lineterminator="\n").writerows([_COLUMNS, *lines])
        print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
        return
    monthly = _sums(totals, lambda total: (f"{since:%Y-%m}", total.api, total.model))
    by_list = _sums(totals, lambda total: (f"{since:%Y-%m}", total.api, "all models"))
    whole = _sums(totals, lambda _: (f"{since:%Y-%m}", "all lists", "all models"))
    table = [sums.line(prices.get(sums.workspace), rounded=True) for sums in (*daily, *monthly, *by_list, *whole)]
    print(*aligned([_COLUMNS, *table], names=len(_NAMES)), *notes, sep="\n")
    if not totals:
        print(f"The ledger has no totals for {since:%Y-%m}.")


def _month(text: str | None) -> tuple[date, date]:
    """Return the first day of a month and of the next."""
    text = f"{datetime.now(UTC):%Y-%m}" if text is None else text
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}", text):
        raise ConfigError([f"--month {text}: not a month; write it like 2026-10"])
    try:
        first = date.fromisoformat(f"{text}-01")
        return first, (first + timedelta(days=31)).replace(day=1)
    except (ValueError, OverflowError):
        raise ConfigError([f"--month {text}: there is no such month; write it like 2026-10"]) from None


def _day(total: Day) -> str:
    return date.fromordinal(total.day + _EPOCH).isoformat()


class _Sums:
    """The totals of what some names tell: a period, workspace, list and model."""

    def __init__(self, names: _Line) -> None:
        self._names = names
        self.workspace = names[1]
        self._values = dict.fromkeys(DAY_TOTALS, Decimal())
        self._explained = Decimal()

    def add(self, total: Day) -> None:
        """Add a daily total; `failed` by reason is counted as explained."""
        # What the ledger holds is binary: 12 digits are what was meant.
        value = Decimal(f"{total.value:.12g}")
        if total.total in self._values:
            self._values[total.total] += value
        elif total.total.startswith(FAILED_BY):
            self._explained += value

    def line(self, price: Price | None, *, rounded: bool) -> _Line:
        """Return the cells of a line; one is empty if its value is not known."""
        values = self._values
        net = values["credits_used"] - values["credits_refunded"]
        failed_net = values["failed_credits_used"] - values["failed_credits_refunded"]
        counts = [*(values[total] for total in DAY_TOTALS[:5]), net]
        # Days of earlier versions have neither the reasons nor the credits of failed tasks.
        wasted = _plain(failed_net) if self._explained >= values["failed"] else ""
        return (*self._names, *map(_plain, counts), wasted, *_cost(net, price, rounded=rounded))


def _sums(totals: Iterable[Day], names: Callable[[Day], tuple[str, str, str]]) -> list[_Sums]:
    """Sum the totals up by workspace and by what `names` tells: period, list and model."""
    sums: dict[_Line, _Sums] = {}
    for total in totals:
        period, api, model = names(total)
        name = (period, total.workspace, api, model)
        sums.setdefault(name, _Sums(name)).add(total)
    return list(sums.values())


def _cost(net: Decimal, price: Price | None, *, rounded: bool) -> tuple[str, str]:
    """Return what credits cost, and the currency."""
    if price is None:
        return "", ""
    cost = net * Decimal(str(price.per_credit))
    if not rounded:
        return _plain(cost), price.currency
    unit = Decimal(1).scaleb(-_DECIMALS.get(price.currency, 2))
    return f"{cost.quantize(unit, ROUND_HALF_UP) + 0:f}", price.currency


def _plain(value: Decimal) -> str:
    """Write a number without an exponent and without zeros at its end."""
    return f"{value.normalize() + 0:f}"


def _notes(totals: Iterable[Day], first_lists: Mapping[tuple[str, str], float]) -> Iterator[str]:
    """Say of each list if these days include the first one, under which, or before which, its history stands."""
    earliest: dict[tuple[str, str], int] = {}
    for total in totals:
        name = (total.workspace, total.api)
        earliest[name] = min(total.day, earliest.get(name, total.day))
    for (workspace, api), recorded_at in first_lists.items():
        if earliest.get((workspace, api), inf) <= recorded_at // DAY:
            moment = datetime.fromtimestamp(recorded_at, UTC)
            yield (
                f"{workspace} ({api}): counting began on {moment:%Y-%m-%d at %H:%M} UTC. What happened before comes "
                "from the first list, under the day on which a task was created, or under that day if it has no date."
            )
