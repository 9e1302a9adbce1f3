"""One workspace: its fetches, and their way into snapshots and the ledger."""

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from typing import Final

import structlog
from msgspec.structs import replace

from creatify_exporter import redaction, trace
from creatify_exporter.config.schema import Fetch, Workspace
from creatify_exporter.creatify.chunk_cache import ChunkCache
from creatify_exporter.creatify.client import Client, Pacer
from creatify_exporter.creatify.decoder import Batch, Decoder
from creatify_exporter.errors import ExporterError, FetchError, LedgerUnavailable, RateLimited
from creatify_exporter.fetcher import Fetcher, Outcome
from creatify_exporter.forecast import BalanceFall
from creatify_exporter.lanes import Lanes, Queue
from creatify_exporter.ledger.ledger import Counters, Ledger
from creatify_exporter.ledger.transaction import Basis, Comparison, Transaction
from creatify_exporter.lists import TaskList
from creatify_exporter.snapshot import Snapshot, Tally

BALANCE: Final = "remaining_credits"
# Seconds. With a list fetched every 15 s, a workspace stays under 5 requests a minute.
_BALANCE_INTERVAL: Final = 120.0
# Seconds: the shortest time for which a list that can wait is served while it is fetched again.
_MIN_STALENESS: Final = 120.0

_log = structlog.get_logger()


class Target:
    """A workspace and its fetchers, by the value of the label `api`."""

    def __init__(  # noqa: PLR0913 - everything that a fetch needs
        self,
        workspace: Workspace,
        fetch: Fetch,
        ledger: Ledger,
        lanes: Lanes,
        clock: Callable[[], float],
        *,
        before: "Target | None" = None,
    ) -> None:
        """Make a target; it inherits the counts of `before`, the earlier target of the same name."""
        self.workspace = workspace
        self.lists = workspace.task_lists()
        self._ledger, self._clock, self._limits = ledger, clock, fetch
        same = before if before and _identity(workspace) == _identity(before.workspace) else None
        per_minute = fetch.max_requests_per_minute
        self.pacer: Pacer = same.pacer if same and same.pacer.max_per_minute == per_minute else Pacer(per_minute)
        self.balance_fall: BalanceFall = same.balance_fall if same else BalanceFall()
        self._lanes, self._queue = lanes, Queue(lanes, self.pacer.request_turn)
        # The lists that can wait share a client, because they are fetched one after the other.
        self._clients: list[Client] = []
        self._patient_client = self._client(patient=True)
        # A fetch replaces its cache as a whole: a fetch that hangs may end at the same time as its successor.
        self._caches = {api: ChunkCache() for api in self.lists}
        self.fetchers = {api: self._list_fetcher(task_list) for api, task_list in self.lists.items()}
        if workspace.remaining_credits:
            self.fetchers[BALANCE] = self._balance_fetcher()
        for api, fetcher in self.fetchers.items():
            if before and api in before.fetchers:
                fetcher.inherit(before.fetchers[api], same_account=bool(same))

    def counters(self, api: str) -> Counters | None:
        """Return the counters of a list of this workspace as committed, None if the ledger cannot be read."""
        try:
            return self._ledger.counters(self.workspace.name, api)
        except LedgerUnavailable:
            return None

    def close(self) -> None:
        """Close the idle connections; those of a running fetch close when it ends."""
        for fetcher in self.fetchers.values():
            fetcher.close()
        for client in self._clients:
            client.close()

    def _client(self, *, patient: bool = False) -> Client:
        client = Client(self.workspace, self._limits, self._clock, pacer=self.pacer, patient=patient)
        self._clients.append(client)
        return client

    def _list_fetcher(self, task_list: TaskList) -> Fetcher:
        """Return the fetcher of a list: it fetches for each scrape.

        A patient list is fetched in its turn, while scrapes get the previous snapshot.
        """
        interval = task_list.min_interval
        if interval is None:
            fetch = partial(self._fetch_list, task_list, self._client())
            return self._fetcher(task_list.api, fetch, self._lanes, self._limits.min_interval)
        fetch = partial(self._fetch_list, task_list, self._patient_client)
        stale = max(_MIN_STALENESS, 2 * interval)
        return self._fetcher(task_list.api, fetch, self._queue, interval, serve_stale_for=stale)

    def _balance_fetcher(self) -> Fetcher:
        interval = max(self._limits.min_interval, _BALANCE_INTERVAL)
        return self._fetcher(BALANCE, partial(self._fetch_balance, self._client()), self._lanes, interval)

    def _fetcher(
        self,
        api: str,
        fetch: Callable[[], Outcome],
        runner: Lanes | Queue,
        min_interval: float,
        serve_stale_for: float = 0.0,
    ) -> Fetcher:
        names = (self.workspace.name, api)
        return Fetcher(
            names,
            partial(_safely, fetch, names),
            runner,
            min_interval=min_interval,
            timeout=self._limits.timeout,
            serve_stale_for=serve_stale_for,
        )

    def _fetch_list(self, task_list: TaskList, client: Client) -> Outcome:
        snapshot: Snapshot | None = None
        ended = Outcome()
        with closing(self._ledger.begin(self.workspace.name, task_list.api)) as transaction:
            cache = self._caches[task_list.api].successor(transaction.holds)
            decoder = Decoder(self._limits.max_task, cache=cache, task_list=task_list)
            try:
                snapshot = read_list(client.fetch_list(decoder), transaction, cache)
                trace.step("list", tasks=snapshot.tasks, invalid=sum(decoder.invalid.values()))
                # Kept even if the commit fails: `Transaction.holds` checks each basis again.
                self._caches[task_list.api] = cache
                now = completed_at(self._clock(), decoder.answered_at, snapshot.newest_at)
                # A list that another one has overtaken is not counted, but its snapshot is good: the fetch succeeded.
                self._ledger.commit(transaction, now)
            except FetchError as error:
                # No part of the list can be trusted.
                snapshot, ended = None, _failed(error)
            except LedgerUnavailable as error:
                # The list itself is complete.
                ended = _failed(error)
        return replace(ended, snapshot=snapshot, received=decoder.received, invalid=dict(decoder.invalid))

    def _fetch_balance(self, client: Client) -> Outcome:
        try:
            balance = client.fetch_balance()
        except FetchError as error:
            return _failed(error)
        self.balance_fall.note(balance, self._clock())
        return Outcome(balance=balance)


def read_list(batches: Iterable[Batch], transaction: Transaction, cache: ChunkCache) -> Snapshot:
    """Read a list to its end; return its snapshot.

    A batch has decoded tasks, or a chunk, whose bytes the previous list had too. A chunk brings its sums (`summary`)
    and the reason why the ledger need not see its tasks (`basis`). The cache gets the chunks to skip next time.
    """
    tally = Tally()
    for batch in batches:
        if batch.chunk:
            part, basis = Snapshot.unpacked(batch.chunk.summary), batch.chunk.basis
            tally.merge(part, basis.ids)
            transaction.skip(basis, has_dates=part.has_dates)
            continue
        sums = tally.add(batch.tasks)
        comparison = transaction.add(batch.tasks)
        if batch.content:
            _remember(batch.content, comparison, sums, cache)
    # A task in two chunks counts in only one of them, so neither summary is valid without the other chunk.
    if tally.has_copies or cache.is_fragmented:
        cache.discard()
    return tally.snapshot(transaction.first_seen_at)


def completed_at(clock: float, date: float | None, newest_at: float) -> float:
    """Return the time of a list: the earlier of the `Date` of its first answer and the clock at its end.

    So a clock that is ahead does not settle tasks too early. But no list is older than its newest task, unless that
    task is in the future by both.
    """
    if date is None:
        return clock
    earlier, later = sorted((clock, date))
    return earlier if newest_at > later else max(earlier, newest_at)


def _remember(content: memoryview, comparison: Comparison, sums: Snapshot, cache: ChunkCache) -> None:
    """Store a batch in the cache as far as it holds no news; `sums` sums up its tasks without copies."""
    tasks = comparison.batch

    def describe(begin: int, end: int) -> tuple[bytes, Basis]:
        # The sums can be reused if the chunk is the whole batch and none of its tasks was left out.
        is_summed_up = end - begin == len(tasks) == sums.tasks
        summary = sums if is_summed_up else Snapshot.of(tasks[begin:end])
        return summary.packed(), comparison.basis(begin, end)

    cache.store_batch(content, len(tasks), comparison.changing, describe)


def _identity(workspace: Workspace) -> tuple[object, ...]:
    """Return the values that identify a Creatify account."""
    return workspace.base_url, workspace.api_id, workspace.api_key


def _failed(error: ExporterError) -> Outcome:
    return Outcome(
        cause=error.cause if isinstance(error, FetchError) else "ledger",
        reason=redaction.mask(str(error)),
        retry_after=error.retry_after if isinstance(error, RateLimited) else None,
    )


def _safely(fetch: Callable[[], Outcome], names: tuple[str, str]) -> Outcome:
    """Turn any exception of a fetch into its failure: a defect must not take the counters off the page."""
    began = time.monotonic()
    with trace.tracing(*names) as steps:
        try:
            outcome = fetch()
        except Exception as error:  # noqa: BLE001 - the boundary of a fetch
            _log.exception("unexpected error in a fetch", workspace=names[0], api=names[1])
            reason = f"the exporter failed ({type(error).__name__}); see the traceback in its log"
            outcome = _failed(FetchError("invalid_body", reason))
        return replace(outcome, duration=time.monotonic() - began, steps=tuple(steps))
