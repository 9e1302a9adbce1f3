"""Daily and monthly totals from the ledger, to explain last month's credits."""

import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final

from creatify_exporter.errors import ConfigError
from creatify_exporter.ledger.state import DAY_TOTALS
from creatify_exporter.ledger.store import Day, Store
from creatify_exporter.ledger.table import aligned

_COLUMNS: Final = ("day", "workspace", "api", "model", "submitted", "finished", "failed", "used", "refunded", "net")

_EPOCH: Final = date(1970, 1, 1).toordinal()

_Line = tuple[str, ...]


def write(store: Store, month: str | None, *, as_csv: bool) -> None:
    """Print the totals of a month (like 2026-10; by default this one) by day, workspace, list and model, and sums."""
    since, before = _month(month)
    totals = store.days(since.toordinal() - _EPOCH, before.toordinal() - _EPOCH)
    daily = list(_lines(totals, lambda total: (_day(total), total.api, total.model)))
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([_COLUMNS, *daily])
        return
    monthly = _lines(totals, lambda total: (f"{since:%Y-%m}", total.api, total.model))
    by_list = _lines(totals, lambda total: (f"{since:%Y-%m}", total.api, "all models"))
    by_workspace = _lines(totals, lambda _: (f"{since:%Y-%m}", "all lists", "all models"))
    print(*aligned([_COLUMNS, *daily, *monthly, *by_list, *by_workspace], names=4), sep="\n")
    if not totals:
        print(f"The ledger has no totals for {since:%Y-%m}.")


def _month(text: str | None) -> tuple[date, date]:
    """Return the first day of a month and of the next."""
    text = text or f"{datetime.now(UTC):%Y-%m}"
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}", text):
        raise ConfigError([f"--month {text}: not a month; write it like 2026-10"])
    try:
        first = date.fromisoformat(f"{text}-01")
        return first, (first + timedelta(days=31)).replace(day=1)
    except (ValueError, OverflowError):
        raise ConfigError([f"--month {text}: there is no such month; write it like 2026-10"]) from None


def _day(total: Day) -> str:
    return date.fromordinal(total.day + _EPOCH).isoformat()


def _lines(totals: Iterable[Day], names: Callable[[Day], tuple[str, str, str]]) -> Iterator[_Line]:
    """Sum the totals up by workspace and what `names` tells (period, list, model), and yield a line for each."""
    sums: dict[_Line, dict[str, float]] = {}
    for total in totals:
        period, *name = names(total)
        values = sums.setdefault((period, total.workspace, *name), dict.fromkeys(DAY_TOTALS, 0.0))
        values[total.total] += total.value
    for line, values in sums.items():
        net = values["credits_used"] - values["credits_refunded"]
        yield (*line, *(f"{value:.12g}" for value in (*values.values(), net)))
