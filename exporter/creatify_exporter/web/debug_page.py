"""The debug page: the steps of one probe's fetches, as plain text."""

import json
from collections.abc import Iterator

from creatify_exporter import redaction
from creatify_exporter.exporter import Scrape
from creatify_exporter.fetcher import Fetcher, Outcome
from creatify_exporter.trace import Step


def render(scrape: Scrape) -> str:
    """Return a line for each step of each fetch, and its outcome; secrets are masked, and bodies are left out."""
    return redaction.mask("\n".join(_lines(scrape)))


def _lines(scrape: Scrape) -> Iterator[str]:
    for target, tickets in scrape.tickets:
        for api, ticket in tickets.items():
            yield f"# {target.workspace.name}: {api}"
            yield from _fetch(target.fetchers[api], ticket.outcome())
            yield ""
    yield "# The metrics that this probe returns without debug=true:"
    yield ""


def _fetch(fetcher: Fetcher, outcome: Outcome) -> Iterator[str]:
    yield from (_step(step) for step in outcome.steps)
    if outcome.cause:
        yield f"failed: {outcome.cause}: {outcome.reason}"
    elif outcome.duration is not None:
        yield f"succeeded in {outcome.duration:.3f} s, {fetcher.age:.3f} s ago"


def _step(step: Step) -> str:
    facts = (f"{name}={_value(value)}" for name, value in step.facts.items())
    return " ".join([f"{step.seconds:8.3f} s  {step.event}:", *facts])


def _value(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) else str(value)
