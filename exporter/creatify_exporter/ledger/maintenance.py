"""Commands on a ledger: show it, copy it, write a backup, forget a model."""

import glob
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

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


def forget(store: Store, model: str) -> None:
    """Remove the series of a model, and print from how many workspaces."""
    books = store.forget(model)
    if not books:
        raise LedgerRefused(f"the ledger has no model {model}; `creatify-exporter ledger show` lists those that it has")
    print(f"forgot {model} in {books} workspace{'s' if books > 1 else ''}; its daily totals stay")


def _totals(book: Book, model: str) -> list[str]:
    sums = dict.fromkeys(_COLUMNS, 0.0)
    for key, series in book.series.items():
        if key.model == model and key.total in sums:
            sums[key.total] += series.value
    return [f"{value:.12g}" for value in sums.values()]


def _time(moment: float | None) -> str:
    return "never" if moment is None else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"
