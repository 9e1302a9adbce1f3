"""One workspace: what is fetched for it, and where that goes."""

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Final

import msgspec
import structlog

from creatify_exporter import redaction, trace
from creatify_exporter.config.schema import Fetch, Workspace
from creatify_exporter.creatify.chunk_cache import ChunkCache
from creatify_exporter.creatify.client import Client
from creatify_exporter.creatify.decoder import Batch, Decoder
from creatify_exporter.creatify.task import API
from creatify_exporter.errors import Cause, ExporterError, FetchError, LedgerUnavailable, RateLimited
from creatify_exporter.fetcher import Fetcher, Outcome
from creatify_exporter.lanes import Lanes
from creatify_exporter.ledger.ledger import Counters, Ledger, Transaction
from creatify_exporter.snapshot import Snapshot, Tally

BALANCE: Final = "remaining_credits"
# Seconds; with a list every 15 s it keeps a workspace under 5 requests a minute.
_BALANCE_INTERVAL: Final = 120.0

_log = structlog.get_logger()


class Target:
    """A workspace with its fetchers, by the value of the label `api`."""

    def __init__(  # noqa: PLR0913 - all that a fetch needs
        self,
        workspace: Workspace,
        fetch: Fetch,
        ledger: Ledger,
        lanes: Lanes,
        clock: Callable[[], float],
        *,
        before: "Target | None" = None,
    ) -> None:
        """Make a target; `before` is the one of the same name whose counts it inherits."""
        self.workspace = workspace
        self._ledger, self._lanes, self._clock = ledger, lanes, clock
        self._max_task = fetch.max_task
        # Two clients, since the list and the balance are fetched side by side.
        self._list_client, self._balance_client = Client(workspace, fetch, clock), Client(workspace, fetch, clock)
        # Replaced as a whole: an abandoned fetch may end beside the one that took its place.
        self._cache = ChunkCache()
        self.fetchers = {API: self._fetcher(API, self._fetch_list, fetch, fetch.min_interval)}
        if workspace.remaining_credits:
            interval = max(fetch.min_interval, _BALANCE_INTERVAL)
            self.fetchers[BALANCE] = self._fetcher(BALANCE, self._fetch_balance, fetch, interval)
        for api, fetcher in self.fetchers.items():
            if before and api in before.fetchers:
                fetcher.inherit(before.fetchers[api], same_account=_identity(workspace) == _identity(before.workspace))

    def counters(self) -> Counters | None:
        """Return what the ledger has committed for this workspace, None if it cannot be read."""
        try:
            return self._ledger.counters(self.workspace.name, API)
        except LedgerUnavailable:
            return None

    def close(self) -> None:
        """Close the idle connections; those of a fetch under way close at its end."""
        for fetcher in self.fetchers.values():
            fetcher.close()
        self._list_client.close()
        self._balance_client.close()

    def _fetcher(self, api: str, fetch: Callable[[], Outcome], limits: Fetch, min_interval: float) -> Fetcher:
        names = (self.workspace.name, api)
        return Fetcher(
            names, lambda: _safely(fetch, names), self._lanes, min_interval=min_interval, timeout=limits.timeout
        )

    def _fetch_list(self) -> Outcome:
        began = time.monotonic()
        snapshot: Snapshot | None = None
        failure: ExporterError | None = None
        with closing(self._ledger.begin(self.workspace.name, API)) as transaction:
            cache = self._cache.successor(transaction.settled_in)
            decoder = Decoder(self._max_task, cache=cache)
            try:
                snapshot, date = read_list(self._list_client.fetch_list(decoder), transaction, cache)
                trace.step("list", tasks=snapshot.tasks, invalid=sum(decoder.invalid.values()))
                self._cache = cache
                # A clock that is ahead must not settle the future.
                transaction.commit(self._clock() if date is None else min(self._clock(), date))
            except (FetchError, LedgerUnavailable) as error:
                failure = error
        # A list that only the ledger did not take is whole; one that must not be believed is nothing.
        whole = None if isinstance(failure, FetchError) else snapshot
        return _outcome(failure, began, decoder.received, snapshot=whole, invalid=dict(decoder.invalid))

    def _fetch_balance(self) -> Outcome:
        began = time.monotonic()
        try:
            balance = self._balance_client.fetch_balance()
        except FetchError as error:
            return _outcome(error, began, None)
        return _outcome(None, began, None, balance=balance)


def read_list(batches: Iterable[Batch], transaction: Transaction, cache: ChunkCache) -> tuple[Snapshot, float | None]:
    """Read a list to its end; return what it says now, and the date of the answer.

    The transaction learns of the tasks that may be news to the ledger, the cache of the chunks that never will be.
    """
    tally, date = Tally(), None
    for batch in batches:
        date = batch.date if date is None else date
        if batch.summary is not None:
            tally.merge(Snapshot.unpacked(batch.summary))
            transaction.skip()
            continue
        sums, settled = tally.add(batch.tasks), transaction.add(batch.tasks)
        if sums and settled and batch.chunk:
            cache.store(batch.chunk, sums.packed())
    if tally.has_copies:
        # Which of two chunks with the same task counts it, depends on both.
        cache.discard()
    return tally.snapshot(), date


def _identity(workspace: Workspace) -> tuple[object, ...]:
    """Return what tells one Creatify account from another."""
    return workspace.base_url, workspace.api_id, workspace.api_key


def _outcome(failure: ExporterError | None, began: float, received: int | None, **facts: object) -> Outcome:
    cause: Cause | None = "ledger" if failure else None
    if isinstance(failure, FetchError):
        cause = failure.cause
    return Outcome(
        cause=cause,
        reason=redaction.mask(str(failure)) if failure else None,
        duration=time.monotonic() - began,
        received=received,
        retry_after=failure.retry_after if isinstance(failure, RateLimited) else None,
        **facts,  # type: ignore[arg-type] # the rest of its fields
    )


def _safely(fetch: Callable[[], Outcome], names: tuple[str, str]) -> Outcome:
    """Turn whatever a fetch raises into its failure: no defect here may take the counters off the page."""
    began = time.monotonic()
    with trace.tracing(*names) as steps:
        try:
            outcome = fetch()
        except Exception as error:  # noqa: BLE001 - the one boundary
            _log.exception("fetch broke", workspace=names[0], api=names[1])
            outcome = _outcome(FetchError("invalid_body", f"unexpected {type(error).__name__}"), began, None)
        return msgspec.structs.replace(outcome, steps=tuple(steps))
