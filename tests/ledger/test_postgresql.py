"""The ledger on a real PostgreSQL: several exporters, odd settings, and databases that fail."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import msgspec
import psycopg
import pytest
from desk import WORKSPACE, Shared, WatchedPostgresql, When
from psycopg import sql
from structlog.testing import capture_logs

from creatify_exporter.config.schema import Config, LedgerSettings
from creatify_exporter.config.url import LedgerUrl
from creatify_exporter.errors import LedgerRefused, LedgerUnavailable
from creatify_exporter.exporter import Exporter, rules
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.postgresql import PostgresqlStore
from creatify_exporter.ledger.state import Changes, SeriesKey
from creatify_exporter.ledger.store import Conflict, Statements
from databases import PASSWORD, Postgres
from processes import until

pytestmark = pytest.mark.slow


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.database()


@pytest.fixture
def one(url: str) -> Iterator[Shared]:
    one = Shared(url)
    yield one
    one.ledger.close()


@pytest.fixture
def other(one: Shared) -> Iterator[Shared]:
    other = Shared(one.url, one)
    yield other
    other.ledger.close()


def test_an_exporter_serves_at_once_what_another_one_has_counted(one: Shared, other: Shared) -> None:
    one.list(one.task("a"))
    assert other.counts("submitted", "finished") == (1, 0)
    other.list(one.task("a", "done", 2.0), one.task("b"))
    assert one.counts("submitted", "finished", "credits_used") == (2, 1, 2)
    assert one.tracked() == 2


def test_changes_of_others_are_read_without_loading_the_book(one: Shared, other: Shared) -> None:
    one.list(*(one.task(f"task {number}") for number in range(100)))
    assert other.tracked() == 100
    one.list(*(one.task(f"task {number}") for number in range(100)), one.task("b"))
    told = other.store.statements()
    assert other.tracked() == 101
    assert ["journal" in sql for sql in told] == [False, False, True]
    told.clear()
    assert other.tracked() == 101
    assert len(told) == 1


@pytest.mark.parametrize("lists", [99, 100, 101, 130])
def test_an_exporter_that_is_far_behind_loads_the_book(one: Shared, other: Shared, lists: int) -> None:
    one.list()
    assert other.tracked() == 0
    for number in range(lists):
        one.list(*(one.task(f"task {each}") for each in range(number + 1)))
    assert other.counts("submitted") == (lists,)
    assert other.tracked() == lists


def test_a_change_too_large_for_the_journal_is_loaded(one: Shared, other: Shared) -> None:
    one.list(one.task("a"))
    assert other.tracked() == 1
    one.list(*(one.task(f"{number} {'x' * 240}") for number in range(5000)))
    assert other.tracked() == 5001
    one.list(one.task("one more"))
    assert other.count("submitted") == 5002


def test_nothing_is_written_on_top_of_changes_that_are_no_longer_in_the_journal(one: Shared, other: Shared) -> None:
    one.list(one.task("a"))
    book = other.store.load(*WORKSPACE)
    one.list(one.task("a", "done"))
    with psycopg.connect(one.url) as connection:
        connection.execute("DELETE FROM creatify_exporter.journal")
    with pytest.raises(Conflict):
        other.store.write(book, Changes(released=[next(iter(book.series))]))
    assert other.store.load(*WORKSPACE).progress.version == book.progress.version + 1


def test_changes_written_by_an_earlier_version_are_read_with_the_book(one: Shared, other: Shared) -> None:
    one.list(one.task("a"))
    assert other.count("submitted") == 1
    entry = Path(__file__).with_name("files").joinpath("journal-entry.msgpack").read_bytes()
    with psycopg.connect(one.url) as earlier:
        earlier.execute("SET search_path = creatify_exporter")
        earlier.execute("UPDATE series SET value = value + 7 WHERE total = 'submitted'")
        earlier.execute("UPDATE book SET revision = revision + 1, generation = generation + 1")
        earlier.execute("INSERT INTO journal SELECT number, revision, %s FROM book", (entry,))
    assert (one.count("submitted"), other.count("submitted")) == (8, 8)
    one.list(one.task("a"), one.task("b"))
    assert (one.count("submitted"), other.count("submitted")) == (9, 9)


@pytest.mark.parametrize("entry", ["a new total", "no MessagePack", "not UTF-8"])
def test_changes_that_a_newer_version_wrote_are_read_with_the_book(one: Shared, other: Shared, entry: str) -> None:
    one.list(one.task("a"))
    assert other.count("submitted") == 1
    one.list(one.task("a"), one.task("b"))
    with psycopg.connect(one.url) as newer:
        newer.execute("SET search_path = creatify_exporter")
        newer.execute("INSERT INTO series SELECT number, 'flash', 'retried', '', 1, 0, false FROM book")
        [(written,)] = newer.execute("SELECT changes FROM journal ORDER BY revision DESC LIMIT 1").fetchall()
        changes = msgspec.msgpack.decode(written)
        changes["totals"]["flash", "retried", ""] = 1.0
        encoded = {
            "a new total": msgspec.msgpack.encode(changes),
            "no MessagePack": written[:-1],
            "not UTF-8": written.replace(b"flash", b"\xfflash"),
        }[entry]
        newer.execute("UPDATE journal SET changes = %s WHERE changes = %s", (encoded, written))
    assert (other.count("submitted"), other.tracked()) == (2, 2)
    # The next list is recorded too, on top of the new series.
    assert other.list(one.task("a"), one.task("b"), one.task("c"))
    assert one.count("submitted") == other.count("submitted") == 3


def test_a_book_that_could_not_be_brought_up_to_date_is_read_again(one: Shared, other: Shared) -> None:
    one.list(one.task("a"))
    assert other.count("submitted") == 1
    one.list(one.task("a"), one.task("b"))
    with psycopg.connect(one.url) as damage:
        rows = damage.execute("SELECT changes FROM creatify_exporter.journal ORDER BY revision DESC LIMIT 1").fetchall()
        changes = msgspec.msgpack.decode(rows[0][0], type=Changes)
        changes.totals[SeriesKey("flash", "submitted", "no such series")] = 1.0
        damage.execute("UPDATE creatify_exporter.journal SET changes = %s", (msgspec.msgpack.encode(changes),))
    with suppress(KeyError):
        other.count("submitted")
    assert other.count("submitted") == 2


def test_a_list_that_was_fetched_while_another_exporter_recorded_one_is_not_recorded(
    one: Shared, other: Shared
) -> None:
    one.list(one.task("a"))
    transaction = other.ledger.begin(*WORKSPACE)
    transaction.add([one.task("a"), one.task("b")])
    one.list(one.task("a"), one.task("b", "done", 1.0))
    assert other.ledger.commit(transaction, one.now) is False
    assert other.counts("submitted", "finished") == one.counts("submitted", "finished") == (2, 1)


def test_two_lists_that_are_committed_at_once_count_once(one: Shared, other: Shared) -> None:
    one.list(one.task("a"))
    ledgers = one.ledger, other.ledger
    lists = [ledger.begin(*WORKSPACE) for ledger in ledgers]
    for transaction in lists:
        transaction.add([one.task(f"task {number}", "done", 1.0) for number in range(200)])
    with ThreadPoolExecutor() as pool:
        recorded = list(pool.map(lambda ledger, transaction: ledger.commit(transaction, one.now), ledgers, lists))
    assert sorted(recorded) == [False, True]
    assert one.counts("submitted", "finished", "credits_used") == other.counts("submitted", "finished", "credits_used")
    assert one.counts("submitted", "finished", "credits_used") == (201, 200, 200)


def test_a_ledger_is_closed_when_the_commits_under_way_have_ended(one: Shared, other: Shared) -> None:
    transaction = one.ledger.begin(*WORKSPACE)
    transaction.add([one.task("a")])
    with ThreadPoolExecutor() as pool, psycopg.connect(one.url) as somebody:
        somebody.execute("LOCK TABLE creatify_exporter.book")
        commit = pool.submit(one.ledger.commit, transaction, one.now)
        until(one.ledger._locks[WORKSPACE].locked)  # noqa: SLF001 - it shows nowhere else
        close = pool.submit(one.ledger.close)
        assert wait([close], timeout=0.2).not_done
        somebody.rollback()
        assert commit.result(30) is True
        close.result(30)
    assert other.counts("submitted") == (1,)


def test_a_hold_that_one_exporter_has_ended_is_over_for_all(one: Shared, other: Shared) -> None:
    one.list(one.task("a"))
    other.list(one.task("a"), one.task("b", "done", 5.0, model="pro"))
    assert one.count("credits_used", model="pro") == other.count("credits_used", model="pro") == 0
    one.now += 120
    late = Shared(one.url, one)  # by its own start, it would hold for as long again
    assert one.count("credits_used", model="pro") == 5
    assert late.count("credits_used", model="pro") == other.count("credits_used", model="pro") == 5
    late.ledger.close()


def test_the_hold_is_timed_by_the_clock_of_the_database(url: str) -> None:
    store = PostgresqlStore(lambda: url)
    with psycopg.connect(url) as connection:
        (now,) = connection.execute("SELECT extract(epoch FROM now())::float8").fetchone() or (0.0,)
    assert 0 <= store.clock() - now < 60
    store.close()


def test_an_exporter_that_stops_in_its_transaction_keeps_the_others_out_for_a_while_only(
    one: Shared, other: Shared
) -> None:
    one.list(one.task("a"))
    with psycopg.connect(one.url) as stopped:
        stopped.execute("UPDATE creatify_exporter.book SET generation = generation")
        with pytest.raises(LedgerUnavailable, match="lock timeout"):
            other.list(one.task("a"), one.task("b"))
        stopped.rollback()
    assert other.list(one.task("a"), one.task("b"))
    assert one.count("submitted") == 2


@pytest.mark.parametrize("table", ["book", "journal"])
def test_an_answer_waits_for_the_lock_of_another_session_for_a_while_only(
    one: Shared, other: Shared, table: str
) -> None:
    one.list(one.task("a"))
    assert other.tracked() == 1
    one.list(one.task("b"))
    with psycopg.connect(one.url) as session:
        session.execute(f"LOCK TABLE creatify_exporter.{table}")
        with pytest.raises(LedgerUnavailable, match="lock timeout"):
            other.tracked()
    assert other.tracked() == 2


def test_a_start_waits_for_the_lock_of_another_session_for_a_while_only(url: str) -> None:
    with psycopg.connect(url) as session, capture_logs() as told:
        session.execute("SELECT pg_advisory_xact_lock(hashtext('creatify_exporter'))")
        store = PostgresqlStore(lambda: url)
    assert [entry["event"] for entry in told] == ["the ledger cannot be opened yet"]
    assert told[0]["reason"] == "the ledger cannot be used: canceling statement due to lock timeout"
    assert until(store.ready)
    store.close()
    with psycopg.connect(url) as session:
        session.execute("LOCK TABLE creatify_exporter.version")
        with pytest.raises(LedgerUnavailable, match="lock timeout"):
            PostgresqlStore(lambda: url, read_only=True)


def test_the_database_ends_a_transaction_in_which_nothing_happens(one: Shared) -> None:
    with one.store.writing() as sql:
        settings = ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout")
        told = [list(sql.execute(f"SHOW {setting}")) for setting in settings]
    assert told == [[("10s",)], [("5s",)], [("30s",)]]


class Observed(WatchedPostgresql):
    """A store whose transaction in progress can be asked how long it may stay idle."""

    @contextmanager
    def _connection(self) -> Iterator[Statements]:
        with super()._connection() as self.connection:
            yield self.connection

    def may_idle(self) -> str:
        [(told,)] = self.connection.execute("SHOW idle_in_transaction_session_timeout")
        return str(told)


def test_a_copy_waits_for_the_other_ledger_however_large_a_book_is(postgres: Postgres, one: Shared) -> None:
    one.list(one.task("a"))
    may_idle = []
    with closing(Observed(one.url)) as source, closing(Observed(postgres.database())) as target:

        def watch(sql: str, when: When) -> None:
            if when == "after" and "INSERT INTO task" in sql:
                may_idle.extend([source.may_idle(), target.may_idle()])

        target.tap.watcher = watch
        target.copy_from(source)
    assert may_idle == ["0", "0"]


def test_a_copy_holds_one_book_at_a_time_in_memory(postgres: Postgres, one: Shared) -> None:
    one.store.load("other", "workspace")
    order = []

    def watch(name: str, sql: str) -> None:
        if "FROM day" in sql or "INSERT INTO book" in sql:
            order.append(name)

    with closing(WatchedPostgresql(postgres.database())) as target:
        one.list(one.task("a"))
        one.store.tap.watcher = lambda sql, _when: watch("read", sql)
        target.tap.watcher = lambda sql, _when: watch("written", sql)
        target.copy_from(one.store)
        one.store.heal()
    assert [each for each, _ in groupby(order)] == ["written", "read"] * 2


def test_a_copy_is_refused_if_an_exporter_starts_meanwhile(postgres: Postgres, one: Shared) -> None:
    one.list(one.task("a"))
    with (
        closing(WatchedPostgresql(postgres.database())) as target,
        closing(PostgresqlStore(lambda: target.url)) as late,
    ):

        def watch(sql: str, when: When) -> None:
            if when == "after" and sql == "SELECT number FROM book":
                late.load(*WORKSPACE)

        target.tap.watcher = watch
        with pytest.raises(LedgerRefused, match="empty one, so nothing was written"):
            target.copy_from(one.store)
        assert [len(book.rows) for book in target.books()] == [0]


def test_served_counts_survive_a_crash_of_a_database_with_careless_settings(postgres: Postgres, url: str) -> None:
    with postgres.admin() as connection:
        connection.execute(f"ALTER DATABASE {url.rsplit('/', 1)[1]} SET synchronous_commit = off")
    with closing(WatchedPostgresql(url)) as store, store.writing() as sql:
        assert list(sql.execute("SHOW synchronous_commit")) == [("on",)]


# --- Settings of the server, the role and the environment -----------------------------------------------------------


def altered(postgres: Postgres, url: str, setting: str) -> None:
    with postgres.admin() as connection:
        connection.execute(f"ALTER ROLE {url.rsplit('/', 1)[1]} SET {setting}")


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_exporters_take_turns_whatever_isolation_is_the_default(postgres: Postgres, url: str, isolation: str) -> None:
    altered(postgres, url, f"default_transaction_isolation = '{isolation}'")
    with ThreadPoolExecutor() as pool:
        desks = list(pool.map(lambda _: Shared(url), range(4)))
        desks[0].list(desks[0].task("a"))

        def record(desk: Shared) -> list[bool]:
            return [desk.list(desk.task("a", "running", float(number))) for number in range(10)]

        recorded = [each for answers in pool.map(record, desks) for each in answers]
    assert len(recorded) == 40  # no commit has failed
    assert len({desk.counts("submitted", "credits_used", "credits_refunded") for desk in desks}) == 1
    for desk in desks:
        desk.ledger.close()


def test_a_role_that_only_reads_by_default_writes_all_the_same(postgres: Postgres, url: str) -> None:
    altered(postgres, url, "default_transaction_read_only = on")
    desk = Shared(f"{url}?target_session_attrs=any")
    assert desk.list(desk.task("a"))
    desk.ledger.close()


@pytest.mark.parametrize("by", ["environment", "role", "url"])
def test_names_in_any_script_are_stored_whatever_encoding_the_client_is_set_to(
    postgres: Postgres, url: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    elif by == "role":
        altered(postgres, url, "client_encoding = 'LATIN1'")
    desk = Shared(f"{url}?client_encoding=LATIN1" if by == "url" else url)
    assert desk.list(desk.task("a", model="日本"))
    assert desk.count("submitted", model="日本") == 1
    desk.ledger.close()


# --- Databases that fail --------------------------------------------------------------------------------------------


def test_a_connection_that_was_cut_costs_nothing(postgres: Postgres, one: Shared) -> None:
    one.list(one.task("a"))
    postgres.disconnect(one.url)
    assert one.list(one.task("a"), one.task("b"))
    assert one.count("submitted") == 2


@pytest.mark.parametrize("lists", [1, 2, 6])
def test_lists_that_a_database_has_lost_in_a_failover_are_lost_for_all_exporters(
    postgres: Postgres, one: Shared, other: Shared, lists: int
) -> None:
    one.list(one.task("a", "running"))
    assert other.count("submitted") == 1
    standby = postgres.copy(one.url)
    one.list(one.task("a", "done", 3.0))
    assert one.counts("finished", "credits_used") == (1, 3)
    postgres.replace(one.url, standby)
    for number in range(lists):
        other.list(other.task("a", "running"), *(other.task(f"{each}", "done", 7.0) for each in range(number + 1)))
    counted = other.counts("submitted", "finished", "credits_used")
    assert counted == one.counts("submitted", "finished", "credits_used") == (lists + 1, lists, 7 * lists)
    one.list(one.task("a", "done", 3.0), one.task("0", "done", 7.0))
    counted = one.counts("submitted", "finished", "credits_used")
    assert counted == other.counts("submitted", "finished", "credits_used") == (lists + 1, lists + 1, 7 * lists + 3)


def test_a_list_that_was_fetched_before_a_failover_and_another_one_is_not_recorded(
    postgres: Postgres, one: Shared, other: Shared
) -> None:
    one.list(one.task("a", "running"))
    standby = postgres.copy(one.url)
    one.list(one.task("a", "done", 3.0))
    transaction = one.ledger.begin(*WORKSPACE)
    transaction.add([one.task("a", "done", 3.0)])  # no change to the known state, and soon lost
    postgres.replace(one.url, standby)
    other.list(other.task("a", "running"))
    assert one.ledger.commit(transaction, one.now) is False
    assert one.list(one.task("a", "done", 3.0))
    assert other.counts("submitted", "finished", "credits_used") == (1, 1, 3)


def test_a_database_that_is_created_again_counts_each_workspace_separately(
    postgres: Postgres, one: Shared, other: Shared
) -> None:
    one.list(one.task("a", "done", 1.0))
    transaction = other.ledger.begin("second", "text_generator")
    postgres.replace(one.url)
    PostgresqlStore(lambda: one.url).close()  # an exporter that starts
    transaction.add([other.task("b", "done", 100.0)])
    assert other.ledger.commit(transaction, other.now)
    for desk in (one, other):
        assert desk.list(desk.task("a", "done", 1.0), desk.task("c", "done", 1.0))
        assert desk.counts("submitted", "credits_used") == (2, 2)
        second = desk.ledger.counters("second", "text_generator").values
        assert second[SeriesKey("flash", "credits_used")] == 100


def test_a_database_that_is_replaced_by_an_empty_one_is_prepared_again(postgres: Postgres, one: Shared) -> None:
    one.list(one.task("a"))
    postgres.replace(one.url)
    with pytest.raises(LedgerUnavailable, match="does not exist"):
        one.list(one.task("a"))
    assert one.list(one.task("a"), one.task("b"))
    assert one.count("submitted") == 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_a_database_that_goes_down_costs_scrapes_but_no_counts(
    postgres: Postgres, one: Shared, signum: signal.Signals
) -> None:
    one.list(one.task("a", "done", 1.0))
    transaction = one.ledger.begin(*WORKSPACE)
    transaction.add([one.task("a", "done", 1.0), one.task("b", "done", 1.0)])
    postgres.stop(signum)
    try:
        for _ in range(3):
            with pytest.raises(LedgerUnavailable):
                one.count("submitted")
        with pytest.raises(LedgerUnavailable):
            one.ledger.commit(transaction, one.now)
        late = Shared(one.url, one)
        assert not late.ledger.store.ready()
    finally:
        postgres.start()
    assert until(lambda: _counted(one)) == (1, 1, 1)
    assert one.ledger.commit(transaction, one.now)
    assert until(lambda: _counted(late)) == (2, 2, 2)
    assert late.ledger.store.ready()
    late.ledger.close()


def _counted(desk: Shared) -> tuple[float, ...] | None:
    try:
        return desk.counts("submitted", "finished", "credits_used")
    except LedgerUnavailable:
        return None


def refusal(url: str) -> str:
    with pytest.raises(LedgerRefused) as refused:
        PostgresqlStore(lambda: url)
    assert PASSWORD not in str(refused.value)
    return str(refused.value)


def test_databases_that_are_not_a_ledger_are_refused(postgres: Postgres) -> None:
    assert "UTF8" in refusal(postgres.database("LATIN1"))
    foreign, newer = postgres.database(), postgres.database()
    with psycopg.connect(foreign) as connection:
        connection.execute("CREATE SCHEMA creatify_exporter CREATE TABLE book (number INTEGER)")
    assert "something else" in refusal(foreign)
    PostgresqlStore(lambda: newer).close()
    with psycopg.connect(newer) as connection:
        connection.execute("INSERT INTO creatify_exporter.version VALUES (99)")
    assert "version 99" in refusal(newer)
    assert "is not a PostgreSQL URL" in refusal(f"postgresql://ledger:{quote(PASSWORD)}@host/ledger?sslmod=require")


def test_a_ledger_that_is_read_before_there_is_one_is_not_made(url: str) -> None:
    with pytest.raises(LedgerRefused, match="has no ledger"):
        PostgresqlStore(lambda: url, read_only=True)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT oid FROM pg_namespace WHERE nspname = 'creatify_exporter'").fetchall() == []


def test_a_schema_that_was_made_for_the_exporter_is_enough(postgres: Postgres, url: str) -> None:
    name = url.rsplit("/", 1)[1]
    with postgres.admin(name) as connection:
        connection.execute(f"CREATE SCHEMA creatify_exporter AUTHORIZATION {name}")
        connection.execute(f"ALTER DATABASE {name} OWNER TO postgres")
    desk = Shared(url)
    assert desk.list(desk.task("a"))
    desk.ledger.close()


def test_a_role_that_may_not_use_the_schema_gets_a_reason_and_can_try_again(postgres: Postgres, url: str) -> None:
    database = url.rsplit("/", 1)[1]
    with closing(PostgresqlStore(lambda: url)):
        pass
    other = postgres.database()
    login = other.rpartition("@")[0]
    stranger = f"{login}@127.0.0.1:{postgres.port}/{database}"
    with pytest.raises(LedgerUnavailable, match="permission denied for schema creatify_exporter"):
        PostgresqlStore(lambda: stranger, read_only=True)
    with capture_logs() as logs, closing(PostgresqlStore(lambda: stranger)) as store:
        assert not store.ready()
        assert "permission denied for schema creatify_exporter" in logs[0]["reason"]
        with postgres.admin(database) as connection:
            role = sql.Identifier(other.rsplit("/", 1)[1])
            for grant in ("GRANT USAGE ON SCHEMA {0} TO {1}", "GRANT ALL ON ALL TABLES IN SCHEMA {0} TO {1}"):
                connection.execute(sql.SQL(grant).format(sql.Identifier("creatify_exporter"), role))
        until(store.ready)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_exporters_that_start_at_once_make_one_ledger(postgres: Postgres, url: str, isolation: str) -> None:
    altered(postgres, url, f"default_transaction_isolation = '{isolation}'")
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with ThreadPoolExecutor() as pool, psycopg.connect(url, autocommit=True) as first:
        first.execute("SELECT pg_advisory_lock(hashtext('creatify_exporter'))")
        starting = [pool.submit(PostgresqlStore, lambda: url) for _ in range(3)]
        until(lambda: first.execute(waiting).fetchone() == (3,))
        first.execute("SELECT pg_advisory_unlock(hashtext('creatify_exporter'))")
        stores = [each.result() for each in starting]
    assert all(store._opened for store in stores)  # noqa: SLF001 - `ready` would try again, and hide it
    for store in stores:
        store.close()


def change_password(postgres: Postgres, url: str) -> str:
    """Give the role another password, and end its connections; return the new URL."""
    name = url.rsplit("/", 1)[1]
    with postgres.admin() as connection:
        connection.execute(f"ALTER ROLE {name} PASSWORD 'new'")
    postgres.disconnect(url)
    return f"postgresql://{name}:new@127.0.0.1:{postgres.port}/{name}"


def test_a_password_that_changes_is_asked_for_with_each_connection(postgres: Postgres, url: str) -> None:
    urls = [url]
    store = PostgresqlStore(lambda: urls[-1])
    urls.append(change_password(postgres, url))
    assert store.clock()
    store.close()


def test_a_password_that_a_reload_brings_holds_for_new_connections(postgres: Postgres, url: str) -> None:
    def configured(text: str) -> Config:
        return Config(ledger=LedgerSettings(url=LedgerUrl.parse(text)))

    ledger = Ledger(PostgresqlStore(lambda: url), rules(configured(url)))
    with closing(Exporter(configured(url), ledger)) as exporter:
        new = change_password(postgres, url)
        exporter.reload(configured(new))
        assert ledger.counters("default", "text_generator").tracked == 0
