"""Reads a whole list: into what it says now, and into what the ledger follows."""

from creatify_exporter.creatify.chunk_cache import Stretch, Stretches
from creatify_exporter.creatify.client import Listing
from creatify_exporter.ledger.ledger import Transaction
from creatify_exporter.ledger.state import Book
from creatify_exporter.snapshot import Snapshot


class Census:
    """Reads the lists of one workspace, one after the other; each teaches the next what need not be decoded."""

    def __init__(self) -> None:
        # One value, since a fetch that was left behind may end beside the one that took its place.
        self._last: tuple[Book | None, Stretches] = (None, Stretches())

    @property
    def stretches(self) -> Stretches:
        """Those that the last whole list had."""
        return self._last[1]

    def take(self, listing: Listing, transaction: Transaction) -> Snapshot:
        """Read a list to its end, in batches or stretches of settled tasks; raise `FetchError` where it has none."""
        listing.decoder.stretches = stretches = self._known_to(transaction)
        snapshot, recalled = Snapshot(), False
        for batch in listing:
            if isinstance(batch, Stretch):
                part = Snapshot.unpacked(batch.summary)
                recalled = True
            else:
                part = Snapshot.of(batch)
                if transaction.add(batch):
                    listing.decoder.remember(part.packed)
            snapshot.merge(part)
        if recalled:
            transaction.skip()
        self._last = transaction.settled_in, stretches
        return snapshot

    def _known_to(self, transaction: Transaction) -> Stretches:
        """Return the stretches of the list before, if their tasks have settled for this transaction too."""
        settled_in, stretches = self._last
        return Stretches(stretches if settled_in and settled_in is transaction.settled_in else None)
