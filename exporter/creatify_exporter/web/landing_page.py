"""The landing page: what a person sees who opens the exporter in a browser."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from html import escape
from typing import Final
from urllib.parse import quote

from creatify_exporter import __version__
from creatify_exporter.config.schema import Labels
from creatify_exporter.creatify.task import STATUS_LABELS
from creatify_exporter.exporter import Exporter
from creatify_exporter.snapshot import Cell
from creatify_exporter.target import BALANCE, Target

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --good: #2e7d32; --bad: #c62828; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
.state { border-left: 4px solid; padding-left: .6rem; }
.good { border-color: var(--good); } .bad { border-color: var(--bad); } .none { border-color: var(--line); }
nav a { margin-right: 1rem; }
@media (prefers-color-scheme: dark) { :root { --good: #81c784; --bad: #ef9a9a; } }
"""


def render(exporter: Exporter, telemetry_path: str) -> str:
    """Return the page; it shows the last fetches and starts none. All that comes from elsewhere is escaped."""
    targets = list(exporter.targets.values())
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
<title>Creatify exporter</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Creatify exporter</h1>
<nav>{" ".join(_link(path.lstrip("/"), name) for path, name in links.items())}</nav>
{"".join(_workspace(target, exporter.config.labels) for target in targets)}
<p><small>Version {escape(__version__)}. This page shows the last fetches; it starts none.</small></p>
</body>
</html>
"""


def _workspace(target: Target, labels: Labels) -> str:
    name = target.workspace.name
    probe = f"probe?workspace={quote(name, safe='')}"
    return "\n".join(
        [
            f"<section><h2>{escape(name)}</h2>",
            *_states(target),
            *(line for api in target.lists for line in _tasks(target, api, labels)),
            f"<p>{_link(probe, 'Metrics of this workspace')}</p></section>",
        ]
    )


def _states(target: Target) -> Iterator[str]:
    for api, fetcher in target.fetchers.items():
        outcome = fetcher.last
        if outcome is None:
            yield _state("none", api, "not fetched yet; the first scrape does it")
        elif outcome.cause:
            yield _state("bad", api, f"the last fetch failed ({outcome.cause}): {outcome.reason}")
        elif api == BALANCE and outcome.balance is not None:
            yield _state("good", api, f"{outcome.balance:,.12g} credits")
        else:
            yield _state(
                "good", api, f"the last fetch took {outcome.duration or 0:.2f} s, {outcome.received or 0:,} bytes"
            )


def _tasks(target: Target, api: str, labels: Labels) -> Iterator[str]:
    outcome, counters = target.fetchers[api].last, target.counters(api)
    yield f"<h3>{escape(api)}</h3>"
    if counters and counters.progress.recorded_at is not None:
        moment = datetime.fromtimestamp(counters.progress.recorded_at, UTC)
        yield f"<p>Last list counted: {moment:%Y-%m-%d %H:%M:%S} UTC; {counters.tracked:,} tasks tracked.</p>"
    if not outcome or not outcome.snapshot or not counters:
        return
    yield "<table><caption>Tasks in the list</caption>"
    yield _row("th", ["Model", *STATUS_LABELS, "credits used"])
    for model, cells in outcome.snapshot.by_model(counters.models, labels).items():
        counts = (f"{cells.get(status, Cell()).tasks:,}" for status in STATUS_LABELS)
        yield _row("td", [model, *counts, f"{sum(cell.credits_used for cell in cells.values()):,.12g}"])
    yield "</table>"


def _state(kind: str, api: str, text: str) -> str:
    return f'<p class="state {kind}"><b>{escape(api)}</b>: {escape(text)}</p>'


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _link(target: str, text: str) -> str:
    return f'<a href="{escape(target or ".")}">{escape(text)}</a>'
