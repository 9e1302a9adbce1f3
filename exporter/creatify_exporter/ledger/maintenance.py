"""Commands on a ledger: show it, copy it, write a backup, forget a model or a workspace."""

import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator, Sized
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from creatify_exporter.errors import ConfigError, LedgerRefused
from creatify_exporter.ledger import sqlite_file
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.ledger.state import Book, BookName, Total
from creatify_exporter.ledger.store import Store
from creatify_exporter.ledger.table import aligned
from creatify_exporter.lists import tells_credits

_COLUMNS: Final[tuple[Total, ...]] = ("submitted", "finished", "failed", "vanished", "credits_used", "credits_refunded")
# Prefix of the folders of unfinished backups.
_UNFINISHED: Final = ".creatify-exporter-backup-"


def show(store: Store) -> None:
    """Print the tracked tasks and the counts of each workspace and model."""
    books = list(store.books())
    for book in books:
        print(f"{book.workspace} ({book.api})")
        print(f"  lists recorded: {book.progress.version}, the last one {_time(book.progress.recorded_at)}")
        print(f"  first list:     {_time(book.progress.first_recorded_at)}")
        print(f"  settled before: {_time(book.progress.watermark)}")
        print(f"  tracked tasks:  {len(book.rows)}")
        lines = [("model", *_COLUMNS), *_totals(book)]
        for line in aligned(lines, names=1):
            print(f"  {line}")
    if not books:
        print("The ledger is empty.")


def copy(source: Store, target: Store) -> None:
    """Copy a ledger into an empty one, and print what was copied. The source is only read."""
    target.copy_from(source)
    for book in target.books():
        models, tasks = _number(book.models, "model"), _number(book.rows, "tracked task")
        print(f"copied {book.workspace} ({book.api}): {models}, {tasks}")


def backup(source: Store, file: Path) -> None:
    """Write a ledger as of one moment to a new file, even while an exporter writes to the ledger."""
    _refuse_to_replace(file)
    _remove_left(file.parent)
    # Half a backup would look like a whole one, so it is written elsewhere first. Each backup has its own folder, also
    # if another one with the same name is running.
    with _folder_beside(file) as folder:
        part = Path(folder, file.name)
        with closing(SqliteStore(part)) as target:
            copy(source, target)
        _refuse_to_replace(file)
        part.rename(file)
    print(f"{file} is written")


def _refuse_to_replace(file: Path) -> None:
    if file.exists():
        raise ConfigError([f"{file}: already exists; name a new file"])


def _remove_left(folder: Path) -> None:
    """Remove what killed backups have left in a folder; their locks are free."""
    for lock in folder.glob(f"{_UNFINISHED}*/*.lock"):
        ledger = lock.with_suffix("")
        # A backup that has just begun has no ledger yet and is about to take its lock. No backup consists of links.
        if not ledger.exists() or any(each.is_symlink() for each in (lock.parent, lock, ledger)):
            continue
        with suppress(LedgerRefused):
            os.close(sqlite_file.lock(ledger))
            shutil.rmtree(lock.parent, ignore_errors=True)


def _folder_beside(file: Path) -> TemporaryDirectory[str]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return TemporaryDirectory(prefix=_UNFINISHED, dir=file.parent)
    except OSError as error:
        remedy = "name a file in a folder that this user may write to"
        raise ConfigError([f"{file}: cannot be written: {error.strerror}; {remedy}"]) from None


class Scope(NamedTuple):
    """The books that a command applies to: those of a workspace, of a list, or of both; None means any."""

    workspace: str | None = None
    api: str | None = None

    def has(self, workspace: str, api: str) -> bool:
        """Return whether a book is in this scope."""
        return self.workspace in (None, workspace) and self.api in (None, api)

    def __str__(self) -> str:
        parts = [self.workspace and f"in the workspace {self.workspace}", self.api and f"({self.api})"]
        return " ".join(part for part in parts if part)


def forget_model(store: Store, model: str, scope: Scope) -> None:
    """Remove the series of a model, and print from how many books; its daily totals stay for the report."""
    books = store.forget_model(model, scope.has)
    if not books:
        where = f" {scope}".rstrip()
        remedy = "`creatify-exporter ledger show` lists its models"
        raise LedgerRefused(f"the ledger has no model {model}{where}; {remedy}")
    print(f"forgot {model} in {books} book{'s' if books > 1 else ''}; its daily totals stay")


def forget_workspace(store: Store, scope: Scope, configured: Collection[BookName]) -> None:
    """Remove everything that the ledger holds of a workspace, or of one of its lists, and print what was removed.

    Refused for books that are `configured`: their lists would be counted again from the beginning.
    """
    for workspace, api in configured:
        if scope.has(workspace, api):
            remedy = "remove it from the configuration first, or its list will be counted again"
            raise LedgerRefused(f"{workspace} ({api}) is configured, so nothing was forgotten; {remedy}")
    forgotten = store.forget_books(scope.has)
    if not forgotten:
        raise LedgerRefused(f"the ledger has nothing {scope}; `creatify-exporter ledger show` lists its content")
    for workspace, api in forgotten:
        print(f"forgot {workspace} ({api}) and its daily totals")


def _totals(book: Book) -> Iterator[tuple[str, ...]]:
    """Yield each model with its totals; credits that the list does not report are "-", not 0."""
    has_credits = tells_credits(book.api)
    sums: defaultdict[tuple[str, str], float] = defaultdict(float)
    for key, series in book.series.items():
        sums[key.model, key.total] += series.value
    for model in sorted(book.models):
        yield (
            model,
            *("-" if "credits" in total and not has_credits else f"{sums[model, total]:.12g}" for total in _COLUMNS),
        )


def _number(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _time(moment: float | None) -> str:
    return "never" if moment is None else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"
