"""Shows the lists as they are now, for troubleshooting. No ledger is read or written."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from contextlib import closing
from typing import Final

from creatify_exporter import fetcher, log, redaction
from creatify_exporter.config.schema import Config, Workspace
from creatify_exporter.creatify.client import Client
from creatify_exporter.creatify.decoder import Decoder
from creatify_exporter.errors import FetchError
from creatify_exporter.exporter import Exporter, rules
from creatify_exporter.fetcher import Outcome
from creatify_exporter.ledger.ledger import Counters, Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.ledger.state import Rules
from creatify_exporter.ledger.table import aligned
from creatify_exporter.lists import TaskList
from creatify_exporter.target import Target

_COUNTED: Final = ("submitted", "finished", "failed", "credits_used")
_HEADER: Final = ("workspace", "list", "result", "seconds", "tasks", *_COUNTED)
# Seconds within which a fetch gets its turn, even if earlier lists have used up the requests of a minute.
_TURN: Final = 61.0


def check(config: Config) -> list[str]:
    """Fetch each list and balance once; print the results, and the counts that a new ledger would have.

    Return a line for each failed fetch, which the log does not repeat.
    """
    ledger = Ledger(SqliteStore(None), rules(config), held_since=0.0)
    with log.silenced(fetcher.__name__), closing(Exporter(config, ledger)) as exporter:
        lines: list[Sequence[str]] = [_HEADER]
        missing = list[str]()
        for target, tickets in exporter.begin_scrape().tickets:
            for api, ticket in tickets.items():
                wait([ticket.future], timeout=config.fetch.timeout + _TURN)
                outcome = ticket.outcome()
                if outcome.cause:
                    missing.append(_why_missing(target.workspace, api, outcome.cause, outcome.reason or ""))
                lines.append((target.workspace.name, api, *_row(target, api, outcome)))
    print(*aligned(lines, names=3), sep="\n")
    print(f"This is what a new ledger would count (history: {config.ledger.effective_history}). None was written.")
    return missing


def _why_missing(workspace: Workspace, api: str, cause: str, reason: str) -> str:
    return log.printable(redaction.mask(f"workspace {workspace.name}, list {api}: {cause}: {reason}"))


def _row(target: Target, api: str, outcome: Outcome) -> tuple[str, ...]:
    seconds = "-" if outcome.duration is None else f"{outcome.duration:.2f}"
    task_list = target.lists.get(api)
    counters = target.counters(api) if task_list else None
    if outcome.cause or not outcome.snapshot or not task_list or not counters:
        return (outcome.cause or "reachable", seconds, *("-" for _ in range(1 + len(_COUNTED))))
    return ("reachable", seconds, f"{outcome.snapshot.tasks:,}", *_counts(task_list, counters))


def _counts(task_list: TaskList, counters: Counters) -> Sequence[str]:
    sums: Counter[str] = Counter()
    for key, value in counters.values.items():
        sums[key.total] += value  # type: ignore[assignment]  # credits have fractions
    return [
        "-" if name == "credits_used" and not task_list.tells_credits else f"{sums[name]:,.12g}" for name in _COUNTED
    ]


def failures(config: Config, missing: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield workspace, list, reason and text of each failed task in the lists.

    Add a line to `missing` for each list that cannot be fetched to its end.
    """
    usual = rules(config)
    for workspace in config.workspaces:
        with closing(Client(workspace, config.fetch, patient=True)) as client:
            for task_list in workspace.task_lists().values():
                try:
                    yield from _failures(config, client, workspace, task_list, usual)
                except FetchError as error:
                    missing.append(_why_missing(workspace, task_list.api, error.cause, str(error)))


def _failures(
    config: Config, client: Client, workspace: Workspace, task_list: TaskList, usual: Rules
) -> Iterator[tuple[str, ...]]:
    classify = usual.of_list(task_list.api).classify
    for batch in client.fetch_list(Decoder(config.fetch.max_task, task_list=task_list)):
        texts = (task.failed_reason or "" for task in batch.tasks if task.status == "failed")
        yield from ((workspace.name, task_list.api, classify(text), text) for text in texts)
