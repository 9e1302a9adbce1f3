"""Reads a whole list: into what it says now, and into what the ledger follows."""

from creatify_exporter.client import Listing
from creatify_exporter.ledger import Recording
from creatify_exporter.snapshot import Snapshot
from creatify_exporter.stretch import Stretch, Stretches


class Census:
    """Reads the lists of one workspace, one after the other.

    `stretches` are those of the last whole list that the next one need not decode.
    """

    def __init__(self) -> None:
        self.stretches = Stretches()
        self._settled_in: object = None

    def take(self, listing: Listing, recording: Recording) -> Snapshot:
        """Read a list to its end, in batches or stretches of settled tasks; raise `FetchError` where it has none."""
        listing.decoder.stretches = stretches = self._known_to(recording)
        snapshot, recalled = Snapshot(), False
        for batch in listing:
            if isinstance(batch, Stretch):
                part = Snapshot.unpacked(batch.summary)
                recalled = True
            else:
                part = Snapshot.of(batch)
                if recording.add(batch):
                    listing.decoder.remember(part.packed)
            snapshot.merge(part)
        if recalled:
            recording.pass_over()
        self._settled_in, self.stretches = recording.settled_in, stretches
        return snapshot

    def _known_to(self, recording: Recording) -> Stretches:
        """Return the stretches of the list before, if their tasks have settled for this recording too."""
        same = recording.settled_in is not None and recording.settled_in is self._settled_in
        return Stretches(self.stretches if same else None)
