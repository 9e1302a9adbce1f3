"""The report: daily and monthly totals from the ledger, which explain a month's credits and their cost."""

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from math import inf
from typing import Final

from creatify_exporter.config.plan import Plan
from creatify_exporter.errors import ConfigError
from creatify_exporter.ledger.state import DAY, DAY_TOTALS, FAILED_BY, BookName
from creatify_exporter.ledger.store import Day, Store
from creatify_exporter.ledger.table import aligned
from creatify_exporter.lists import tells_credits

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


def write(store: Store, plans: Mapping[str, Plan | None], month: str | None, *, as_csv: bool) -> None:
    """Print a month's totals by day, workspace, list and model, and their sums; `month` is like 2026-10.

    Without `month` it is the current one. `plans` are those of the workspaces. No sum spans workspaces, so each has one
    currency.
    """
    since, before = _month(month)
    totals = store.days(since.toordinal() - _EPOCH, before.toordinal() - _EPOCH)
    notes = list(_notes(totals, store.first_lists()))
    daily = _sums(totals, lambda total: (_day(total), total.api, total.model))
    if as_csv:
        lines = (_without_formulas(sums.line(plans.get(sums.workspace), rounded=False)) for sums in daily)
        csv.writer(sys.stdout, lineterminator="\n").writerows([_COLUMNS, *lines])
        print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
        return
    monthly = _sums(totals, lambda total: (f"{since:%Y-%m}", total.api, total.model))
    by_list = _sums(totals, lambda total: (f"{since:%Y-%m}", total.api, "all models"))
    whole = _sums(totals, lambda _: (f"{since:%Y-%m}", "all lists", "all models"))
    table = [sums.line(plans.get(sums.workspace), rounded=True) for sums in (*daily, *monthly, *by_list, *whole)]
    print(*aligned([_COLUMNS, *table], names=len(_NAMES)), *notes, sep="\n")
    if not totals:
        print(f"The ledger has no totals for {since:%Y-%m}.")


def _month(text: str | None) -> tuple[date, date]:
    """Return the first day of a month and of the next one."""
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
    """The totals of a period, workspace, list and model, which are its `names`."""

    def __init__(self, names: _Line) -> None:
        self._names = names
        self.workspace = names[1]
        self._values = dict.fromkeys(DAY_TOTALS, Decimal())
        self._explained = Decimal()
        self._tells_credits = False

    def add(self, total: Day) -> None:
        """Add a daily total; failures with a reason count as explained."""
        self._tells_credits |= tells_credits(total.api)
        # The ledger holds binary floats; 12 digits restore the decimal number that was meant.
        value = Decimal(f"{total.value:.12g}")
        if total.total in self._values:
            self._values[total.total] += value
        elif total.total.startswith(FAILED_BY):
            self._explained += value

    def line(self, plan: Plan | None, *, rounded: bool) -> _Line:
        """Return the cells of a line; unknown values are empty."""
        tasks = [self._values[total] for total in ("submitted", "finished", "failed")]
        used, refunded, net, failed_net = self._credits()
        counts = map(_plain, [*tasks, used, refunded, net, failed_net])
        return (*self._names, *counts, *_cost(net, plan, rounded=rounded))

    def _credits(self) -> tuple[Decimal | None, ...]:
        """Return the credits used, refunded, net, and net of failed tasks; None for unknown values."""
        if not self._tells_credits:
            return None, None, None, None
        values = self._values
        used, refunded = values["credits_used"], values["credits_refunded"]
        failed_net = values["failed_credits_used"] - values["failed_credits_refunded"]
        # Days counted by earlier versions have neither the reasons nor the credits of failed tasks.
        return used, refunded, used - refunded, failed_net if self._explained >= values["failed"] else None


def _sums(totals: Iterable[Day], names: Callable[[Day], tuple[str, str, str]]) -> list[_Sums]:
    """Sum up the totals by workspace and `names`, which returns period, list and model; sort by all four."""
    sums: dict[_Line, _Sums] = {}
    for total in totals:
        period, api, model = names(total)
        name = (period, total.workspace, api, model)
        sums.setdefault(name, _Sums(name)).add(total)
    return [sums[name] for name in sorted(sums)]


def _cost(net: Decimal | None, plan: Plan | None, *, rounded: bool) -> tuple[str, str]:
    """Return the cost of credits and its currency; both are empty without a price."""
    if plan is None or plan.price_per_credit is None or plan.currency is None:
        return "", ""
    if net is None:
        return "", plan.currency
    cost = net * Decimal(str(plan.price_per_credit))
    if not rounded:
        return _plain(cost), plan.currency
    unit = Decimal(1).scaleb(-_DECIMALS.get(plan.currency, 2))
    return f"{cost.quantize(unit, ROUND_HALF_UP) + 0:f}", plan.currency


def _plain(value: Decimal | None) -> str:
    """Format a number without an exponent or trailing zeros; None becomes empty."""
    return "" if value is None else f"{value.normalize() + 0:f}"


def _without_formulas(line: _Line) -> _Line:
    """Escape names that a spreadsheet would treat as formulas; the API names the models."""
    names, numbers = line[: len(_NAMES)], line[len(_NAMES) :]
    return (*(f"'{name}" if name.startswith(("=", "+", "-", "@")) else name for name in names), *numbers)


def _notes(totals: Iterable[Day], first_lists: Mapping[BookName, float]) -> Iterator[str]:
    """Say when counting began, if these days include a first list, and where the history before it is booked."""
    earliest: dict[BookName, int] = {}
    for total in totals:
        name = (total.workspace, total.api)
        earliest[name] = min(total.day, earliest.get(name, total.day))
    # Lists of a workspace that began at the same time share a line.
    began: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for (workspace, api), recorded_at in first_lists.items():
        if earliest.get((workspace, api), inf) <= recorded_at // DAY:
            began[workspace, f"{datetime.fromtimestamp(recorded_at, UTC):%Y-%m-%d at %H:%M}"].append(api)
    for (workspace, moment), lists in sorted(began.items()):
        yield f"{workspace} ({', '.join(lists)}): counting began on {moment} UTC."
    if began:
        yield (
            "Everything before that comes from the first list, booked under the day on which a task was created, or "
            "under the day of that list if the task has no date."
        )
