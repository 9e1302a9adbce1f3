"""The landing page, for people who open the exporter in a browser."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final
from urllib.parse import quote

from creatify_exporter import __version__
from creatify_exporter.config.schema import Labels
from creatify_exporter.creatify.task import STATUS_LABELS, STATUSES
from creatify_exporter.exporter import Exporter
from creatify_exporter.fetcher import MAX_STALENESS
from creatify_exporter.forecast import NO_PLAN, RECENT_DAYS, Spending, outlook
from creatify_exporter.ledger.state import FAILED_BY
from creatify_exporter.ledger.store import Day
from creatify_exporter.snapshot import Cell
from creatify_exporter.target import BALANCE, Target

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}

DOCUMENTATION: Final = "https://github.com/creatify-exporter/creatify-exporter/tree/main/docs"

# For an incomplete page: lists that can wait are fetched one after the other, a second apart.
_REFRESH: Final = '<meta http-equiv="refresh" content="2">\n'

# Maximum number of rows in a table of failures.
_MAX_FAILURES: Final = 10

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --good: #2e7d32; --bad: #c62828; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-top: .6rem; white-space: nowrap; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
th.name, td.name { text-align: left; overflow-wrap: anywhere; min-width: 8rem; }
p { overflow-wrap: anywhere; }
.state { border-left: 4px solid; padding-left: .6rem; }
.good { border-color: var(--good); } .bad { border-color: var(--bad); } .none { border-color: var(--line); }
nav a { margin-right: 1rem; }
@media (max-width: 30rem) {
  body { padding: 0 .5rem; } table { font-size: .75rem; } th { font-weight: 600; }
  th, td { padding: .3rem .2rem; } th.name, td.name { min-width: 5rem; }
}
@media (prefers-color-scheme: dark) { :root { --good: #81c784; --bad: #ef9a9a; } }
"""


def render(exporter: Exporter, telemetry_path: str) -> str:
    """Return the page, which shows the last fetches. All external text is escaped."""
    days = exporter.recent_days()
    targets = list(exporter.targets.values())
    is_complete = days is not None and all(fetcher.last for target in targets for fetcher in target.fetchers.values())
    sections = (_workspace(target, exporter, days) for target in targets)
    links = {
        telemetry_path: "Metrics",
        f"{telemetry_path.rstrip('/')}/exporter": "Exporter metrics",
        "/sd": "Service discovery",
        "/-/healthy": "Health",
        "/-/ready": "Readiness",
    }
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{"" if is_complete else _REFRESH}<title>Creatify exporter</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Creatify exporter</h1>
<nav>{" ".join(_link(path.lstrip("/"), name) for path, name in links.items())}</nav>
{"".join(sections)}
<p><small>Version {escape(__version__)}, {_link(DOCUMENTATION, "documentation")}. This page shows the last fetches; it
starts only those that have never run. Dates are in UTC.</small></p>
</body>
</html>
"""


def _workspace(target: Target, exporter: Exporter, all_days: Sequence[Day] | None) -> str:
    name = target.workspace.name
    days = None if all_days is None else [day for day in all_days if day.workspace == name]
    probe = f"probe?workspace={quote(name, safe='')}"
    return "\n".join(
        [
            f"<section><h2>{escape(name)}</h2>",
            *_states(target, exporter, days),
            *_failures(days or ()),
            *(line for api in target.lists for line in _tasks(target, api, exporter.config.labels)),
            f"<p>{_link(probe, 'Metrics of this workspace')}</p></section>",
        ]
    )


def _states(target: Target, exporter: Exporter, days: Iterable[Day] | None) -> Iterator[str]:
    is_down = any(fetcher.last and fetcher.last.cause for fetcher in target.fetchers.values())
    for api, fetcher in target.fetchers.items():
        outcome, kind = fetcher.last, "none" if fetcher.age > MAX_STALENESS else "good"
        if outcome is None:
            kind, text = "none", "not fetched yet; the first fetch is in progress"
        elif outcome.cause:
            kind, text = "bad", f"the last fetch failed ({outcome.cause}): {outcome.reason}"
        elif api == BALANCE and outcome.balance is not None:
            # The balance is fetched less often than the lists, whose failures show sooner that the API is down.
            kind, text = "none" if is_down else kind, _outlook(target, exporter, outcome.balance, days)
        else:
            text = f"the last fetch took {outcome.duration or 0:.2f} s, {outcome.received or 0:,} bytes"
        minutes = int(fetcher.age // 60) if outcome else 0
        ago = f" ({minutes} min ago)" if minutes else ""
        yield f'<p class="state {kind}"><b>{escape(api)}</b>: {escape(text + ago)}</p>'


def _outlook(target: Target, exporter: Exporter, balance: float, days: Iterable[Day] | None) -> str:
    """Return a sentence on how many credits are left, and how long they last."""
    now = exporter.now()
    rates = _rates(target, exporter, days) if target.lists else {BALANCE: target.balance_fall.daily_rate(now)}
    known = [rate for rate in rates.values() if rate is not None]
    missing = [api for api, rate in rates.items() if rate is None]
    return outlook(balance, sum(known) if known else None, now, target.workspace.plan or NO_PLAN, missing)


def _rates(target: Target, exporter: Exporter, days: Iterable[Day] | None) -> dict[str, float | None]:
    """Return the credits that each list uses per day, None if that is not known.

    Empty until every list has been tried, and while the daily totals cannot be read.
    """
    if days is None:
        return {}
    net: defaultdict[str, defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
    for day in days:
        net[day.api][day.day] += {"credits_used": day.value, "credits_refunded": -day.value}.get(day.total, 0.0)
    rates: dict[str, float | None] = {}
    for api, task_list in target.lists.items():
        last, counters = target.fetchers[api].last, target.counters(api)
        since = counters.progress.first_recorded_at if counters else None
        if last is None and since is None:
            return {}
        snapshot = last.snapshot if last else None
        spending = None if since is None else Spending(net[api], since, snapshot)
        rates[api] = spending.daily_rate(exporter.now()) if spending and task_list.tells_credits else None
    return rates


def _failures(days: Iterable[Day]) -> Iterator[str]:
    """Yield a table of recent failures by reason, model and list, the most frequent first."""
    failed: Counter[tuple[str, str, str]] = Counter()
    for day in days:
        if day.total.startswith(FAILED_BY):
            failed[day.total.removeprefix(FAILED_BY), day.model, day.api] += int(day.value)
    most = failed.most_common()
    if most:
        rows = [[*names, f"{count:,}"] for names, count in most[:_MAX_FAILURES]]
        yield from _table(f"Failed in the last {RECENT_DAYS} days", ["Reason", "Model", "List", "tasks"], rows, names=3)
    if left := [count for _, count in most[_MAX_FAILURES:]]:
        yield f"<p>and {len(left):,} more rows with {sum(left):,} failed tasks</p>"


def _tasks(target: Target, api: str, labels: Labels) -> Iterator[str]:
    outcome, counters = target.fetchers[api].last, target.counters(api)
    yield f"<h3>{escape(api)}</h3>"
    if counters and counters.progress.recorded_at is not None:
        moment = datetime.fromtimestamp(counters.progress.recorded_at, UTC)
        yield f"<p>Last list counted: {moment:%Y-%m-%d %H:%M:%S} UTC; {counters.tracked:,} tasks tracked.</p>"
    if not outcome or not outcome.snapshot or not counters:
        return
    models = outcome.snapshot.by_model(counters.models, labels)
    there = {status for cells in models.values() for status in cells}
    statuses = [status for status in STATUS_LABELS if status in STATUSES or status in there]
    # The last column is left out if the list does not report credits: unknown is not 0.
    columns = len(statuses) + (2 if target.lists[api].tells_credits else 1)
    rows = ([model, *_counts(cells, statuses)][:columns] for model, cells in models.items())
    yield from _table("Tasks in the list", ["Model", *statuses, "credits used"][:columns], rows, names=1)


def _counts(cells: Mapping[str, Cell], statuses: Iterable[str]) -> Iterator[str]:
    yield from (f"{cells.get(status, Cell()).tasks:,}" for status in statuses)
    yield f"{sum(cell.credits_used for cell in cells.values()):,.12g}"


def _table(caption: str, header: list[str], rows: Iterable[list[str]], *, names: int) -> Iterator[str]:
    """Yield a table that scrolls on a narrow screen; its first `names` columns hold text."""
    yield f'<div class="table"><table><caption>{escape(caption)}</caption>'
    yield _row("th", header, names)
    yield from (_row("td", row, names) for row in rows)
    yield "</table></div>"


def _row(tag: str, cells: Iterable[str], names: int) -> str:
    name = f'{tag} class="name"'
    columns = (f"<{name if number < names else tag}>{_breakable(cell)}</{tag}>" for number, cell in enumerate(cells))
    return f"<tr>{''.join(columns)}</tr>"


def _breakable(name: str) -> str:
    """Escape a name, and allow a line break after each underscore."""
    return escape(name).replace("_", "_<wbr>")


def _link(target: str, text: str) -> str:
    return f'<a href="{escape(target or ".")}">{escape(text)}</a>'
