"""Commands on a ledger: show it, copy it, write a backup, forget a model or a workspace."""

import glob
from collections.abc import Collection
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from creatify_exporter.errors import ConfigError, LedgerRefused
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.ledger.state import Book, Total
from creatify_exporter.ledger.store import Store
from creatify_exporter.ledger.table import aligned

_COLUMNS: Final[tuple[Total, ...]] = ("submitted", "finished", "failed", "vanished", "credits_used", "credits_refunded")


def show(store: Store) -> None:
    """Print the tracked tasks and the counts of each workspace and model."""
    books = list(store.books())
    for workspace, api, book in books:
        print(f"{workspace} ({api})")
        print(f"  lists recorded: {book.progress.version}, the last one {_time(book.progress.recorded_at)}")
        print(f"  first list:     {_time(book.progress.first_recorded_at)}")
        print(f"  settled before: {_time(book.progress.watermark)}")
        print(f"  tracked tasks:  {len(book.rows)}")
        lines = [("model", *_COLUMNS), *((model, *_totals(book, model)) for model in sorted(book.models))]
        for line in aligned(lines, names=1):
            print(f"  {line}")
    if not books:
        print("The ledger is empty.")


def copy(source: Store, target: Store) -> None:
    """Copy a ledger into an empty one, and print what was copied. The source is only read."""
    target.copy_from(source)
    for workspace, api, book in target.books():
        print(f"copied {workspace} ({api}): {len(book.models)} models, {len(book.rows)} tracked tasks")


def backup(source: Store, file: Path) -> None:
    """Write a ledger as it is at one moment to a new file, even while an exporter writes to it."""
    if file.exists():
        raise ConfigError([f"{file}: is there already; name a file that is not"])
    # Under another name until it is whole: half a backup would look like one.
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    try:
        with closing(SqliteStore(part)) as target:
            copy(source, target)
        part.rename(file)
    finally:
        for rest in part.parent.glob(f"{glob.escape(part.name)}*"):
            rest.unlink()


class Scope(NamedTuple):
    """The books that are meant: those of a workspace, of a list, of both; None stands for any."""

    workspace: str | None = None
    api: str | None = None

    def has(self, workspace: str, api: str) -> bool:
        """Return whether a book is meant."""
        return self.workspace in (None, workspace) and self.api in (None, api)

    def __str__(self) -> str:
        parts = [f"in the workspace {self.workspace}" if self.workspace else "", f"({self.api})" if self.api else ""]
        return " ".join(part for part in ("", *parts) if part)


def forget_model(store: Store, model: str, scope: Scope) -> None:
    """Remove the series of a model, and print from how many books; its daily totals stay, for the report."""
    books = store.forget_model(model, scope.has)
    if not books:
        where = f" {scope}".rstrip()
        remedy = "`creatify-exporter ledger show` lists those that it has"
        raise LedgerRefused(f"the ledger has no model {model}{where}; {remedy}")
    print(f"forgot {model} in {books} book{'s' if books > 1 else ''}; its daily totals stay")


def forget_workspace(store: Store, scope: Scope, configured: Collection[tuple[str, str]]) -> None:
    """Remove all that the ledger holds of a workspace, or of a list of it, and print what that was.

    Refused for what is `configured` (workspace and api): its list would be counted again from the beginning.
    """
    for workspace, api in configured:
        if scope.has(workspace, api):
            remedy = "take it out of the configuration first, or its list is counted again"
            raise LedgerRefused(f"{workspace} ({api}) is configured, so that nothing was forgotten; {remedy}")
    forgotten = store.forget_books(scope.has)
    if not forgotten:
        raise LedgerRefused(f"the ledger has nothing {scope}; `creatify-exporter ledger show` lists what it has")
    for workspace, api in forgotten:
        print(f"forgot {workspace} ({api}) and its daily totals")


def _totals(book: Book, model: str) -> list[str]:
    sums = dict.fromkeys(_COLUMNS, 0.0)
    for key, series in book.series.items():
        if key.model == model and key.total in sums:
            sums[key.total] += series.value
    return [f"{value:.12g}" for value in sums.values()]


def _time(moment: float | None) -> str:
    return "never" if moment is None else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"
