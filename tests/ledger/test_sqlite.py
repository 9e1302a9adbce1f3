"""The ledger in a file: files that are refused, files that fail, bits that flip, and processes that die."""

import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import get_args

import pytest
from desk import DAY, HOUR, NOON, TODAY, WORKSPACE, Desk, Killed, When

from creatify_exporter.errors import LedgerRefused, LedgerUnavailable
from creatify_exporter.ledger import checksum, maintenance, sqlite_file
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.ledger.sqlite_file import inspect
from creatify_exporter.ledger.staging import Observation, StagingTable
from creatify_exporter.ledger.state import SeriesKey
from creatify_exporter.ledger.store import Day
from processes import without_rights

FLIPS = int(os.environ.get("LEDGER_FLIPS", "200"))
FILES = Path(__file__).with_name("files")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


def refusal(path: Path) -> str:
    """Return the reason why a file is refused, and check that the file was not touched."""
    before = path.read_bytes()
    with pytest.raises(LedgerRefused) as refused:
        SqliteStore(path)
    assert path.read_bytes() == before
    assert {part.name for part in path.parent.iterdir()} <= {path.name, f"{path.name}.lock"}
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def used(path: Path) -> None:
    desk = Desk(path)
    for number in range(300):
        desk.list(desk.task(f"task {number}" * 5, "done", 1.0))
    desk.ledger.close()


@pytest.mark.parametrize("content", [b"PNG", b"notes\n" * 1000, b"\0" * 4096])
def test_a_file_that_is_not_a_database_is_not_touched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    assert "is not a ledger of this exporter" in refusal(path)


def test_another_programs_database_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE book (title TEXT)")
    assert "is not a ledger of this exporter" in refusal(path)


def test_a_ledger_of_a_newer_version_is_not_touched(path: Path) -> None:
    used(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    assert "has version 99" in refusal(path)


def test_a_damaged_ledger_is_not_touched(path: Path) -> None:
    used(path)
    content = bytearray(path.read_bytes())
    content[4096 : len(content) - 4096] = b"\x55" * (len(content) - 8192)
    path.write_bytes(content)
    assert "ledger" in refusal(path)


def test_a_ledger_that_has_lost_its_end_is_not_touched(path: Path) -> None:
    used(path)
    path.write_bytes(path.read_bytes()[:-4096])
    assert "ledger" in refusal(path)


@pytest.mark.slow
def test_a_bit_that_flips_in_a_ledger_is_noticed_or_changes_nothing(path: Path) -> None:
    used(path)
    good, draw = path.read_bytes(), random.Random(1)  # noqa: S311 - reproducible draws are the point
    with closing(SqliteStore(path)) as store:
        books, booked = list(store.books()), store.days(0, TODAY + 2)
    refused = 0
    for _ in range(FLIPS):
        flipped = bytearray(good)
        flipped[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            store = SqliteStore(path)
        except LedgerRefused as error:
            assert "\n" not in str(error)  # noqa: PT017 - it may, and need not, be raised
            assert path.read_bytes() == flipped
            refused += 1
            continue
        with closing(store):
            assert (list(store.books()), store.days(0, TODAY + 2)) == (books, booked)
    assert refused > FLIPS / 10


@pytest.mark.slow
def test_a_bit_that_flips_in_the_log_is_noticed_unless_it_is_in_the_last_recording(path: Path) -> None:
    """Damage in the last commit looks like a power failure during it, and is treated as one."""
    desk = Desk(path)
    for number in range(40):
        desk.list(*(desk.task(f"task {number} {each}", "done", 1.0) for each in range(5)))
    left = path.with_name("left")
    desk.store.leave(left)
    good, draw = (left / "ledger.db-wal").read_bytes(), random.Random(1)  # noqa: S311 - as above
    places = [*range(32), *(draw.randrange(len(good)) for _ in range(FLIPS))]
    for number, place in enumerate(places):
        copy = path.with_name(str(number))
        shutil.copytree(left, copy)
        (copy / "ledger.db-shm").unlink(missing_ok=True)
        flipped = bytearray(good)
        flipped[place] ^= 1 << draw.randrange(8)
        (copy / "ledger.db-wal").write_bytes(flipped)
        link = path.with_name("link.db")
        link.unlink(missing_ok=True)
        link.symlink_to(copy / "ledger.db")
        try:
            store = SqliteStore(link if number % 2 else copy / "ledger.db")
        except LedgerRefused:
            assert (copy / "ledger.db-wal").read_bytes() == flipped
        else:
            with closing(store):
                assert store.load(*WORKSPACE).progress.version >= 39
        shutil.rmtree(copy)


def test_remains_of_failed_commits_in_the_log_are_not_damage(path: Path) -> None:
    """A commit that cannot be synced to disk leaves its frames, and a later shorter one does not overwrite them all."""
    desk = Desk(path)
    desk.list(desk.task("a", "done", 1.0))
    log = path.with_name("ledger.db-wal")
    end = log.stat().st_size
    for pages in (9, 3, 1):

        def fail(sql: str, when: When, pages: int = pages) -> None:
            if sql == "COMMIT" and when == "before":
                if log.stat().st_size:
                    leave_frames(log, end, pages)
                raise sqlite3.OperationalError("disk I/O error")

        desk.store.tap.watcher = fail
        with pytest.raises(LedgerUnavailable, match="disk I/O error"):
            desk.list(desk.task("b", "done", 1.0))
    desk.store.heal()
    desk.store.leave(path.with_name("killed"))
    left = Desk(path.with_name("killed") / path.name)
    assert left.counts("submitted", "finished") == (1, 1)
    assert left.list(desk.task("b", "done", 1.0))
    left.ledger.close()
    assert desk.list(desk.task("b", "done", 1.0))
    assert desk.counts("submitted", "finished") == (2, 2)


def leave_frames(log: Path, end: int, pages: int) -> None:
    """Write the frames of a commit behind the end of a log, as sqlite.org/fileformat.html describes them."""
    with log.open("r+b") as opened:
        salts = opened.read(24)[16:]
        opened.seek(end)
        for page in range(1, pages + 1):
            size_after_commit = 9 if page == pages else 0
            opened.write(page.to_bytes(4) + size_after_commit.to_bytes(4) + salts + bytes(8 + 4096))


def test_a_book_that_was_damaged_under_a_running_exporter_is_not_read_again(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a", "done", 1.0))
    with closing(sqlite3.connect(path)) as damage:
        damage.execute("UPDATE series SET value = value + 64 WHERE total = 'finished'")
        damage.commit()
    desk.store.fail(0, "before")
    with pytest.raises(LedgerUnavailable):
        desk.list(desk.task("b", "done", 2.0))
    desk.store.heal()
    with pytest.raises(LedgerUnavailable, match="damaged"):
        desk.list(desk.task("b", "done", 2.0))
    assert desk.counts("submitted", "finished") == (1, 1)


def test_a_book_that_was_damaged_before_its_first_reading_is_not_read(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a", "done", 1.0))
    desk.restart()
    with closing(sqlite3.connect(path)) as damage:
        damage.execute("UPDATE series SET value = value + 64 WHERE total = 'finished'")
        damage.commit()
    with pytest.raises(LedgerUnavailable, match="damaged"):
        desk.counts("finished")


def test_a_reader_of_the_log_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "LOCK_TIMEOUT", 1000.0)
    desk = Desk(path)
    desk.list(desk.task("a", "done", 1.0))
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM book").fetchall()
        desk.store.fail(0, "before")
        with pytest.raises(LedgerUnavailable):
            desk.list(desk.task("b", "done", 1.0))
        desk.store.heal()
        assert desk.list(desk.task("b", "done", 1.0))
    assert desk.list(desk.task("c", "done", 1.0))
    assert desk.counts("submitted") == (3,)


def test_years_of_daily_totals_are_read_only_once(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a", "done", 1.0))
    desk.restart()
    assert desk.counts("submitted") == (1,)
    told = desk.store.statements()
    for number, when in enumerate(get_args(When)):
        new = desk.task(f"task {number}", "done", 1.0)
        desk.store.fail(0, when)
        with pytest.raises(LedgerUnavailable):
            desk.list(new)
        told += desk.store.statements()
        assert desk.list(new)
        assert desk.counts("submitted") == (number + 2,)
    assert [sql for sql in told if "SELECT day" in sql] == []
    desk.restart()
    assert desk.counts("submitted") == (3,)


OPEN = """
import sys
from pathlib import Path
from creatify_exporter.ledger.sqlite import SqliteStore
SqliteStore(Path(sys.argv[1]))
"""


def test_a_ledger_in_use_is_refused_and_free_after_its_end(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task())
    other = subprocess.run([sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "in use by another exporter; stop that one first" in other.stderr
    with pytest.raises(LedgerRefused, match="in use by another exporter"):
        SqliteStore(path)
    assert desk.list(desk.task())
    desk.restart()
    assert desk.count("submitted") == 1


def test_a_link_to_a_ledger_is_that_ledger(path: Path) -> None:
    with closing(SqliteStore(path)):
        link = path.with_name("link.db")
        link.symlink_to(path)
        with pytest.raises(LedgerRefused, match="in use by another exporter"):
            SqliteStore(link)


def test_a_link_that_leads_back_to_itself_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "ledger.db"
    link.symlink_to(link)
    with pytest.raises(LedgerRefused, match="symbolic links"):
        SqliteStore(link)
    with pytest.raises(LedgerRefused, match="symbolic links"):
        inspect(link)
    with pytest.raises(LedgerRefused, match="no ledger"):
        SqliteStore(link, read_only=True)
    assert list(tmp_path.iterdir()) == [link]


def test_a_file_of_no_length_is_taken_as_new(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    desk = Desk(path)
    assert desk.list(desk.task())
    desk.restart()
    assert desk.count("submitted") == 1


def test_a_folder_that_cannot_be_made_or_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerRefused, match="cannot be opened"):
        SqliteStore(tmp_path / "file" / "ledger.db")
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.geteuid() != 0:  # root may write everywhere
        with pytest.raises(LedgerRefused, match="cannot be opened"):
            SqliteStore(tmp_path / "closed" / "ledger.db")


def test_a_refused_file_can_be_replaced_and_opened_in_the_same_process(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"notes")
    refusal(path)
    path.unlink()
    assert Desk(path).list()


def test_a_new_ledger_is_private(path: Path) -> None:
    desk = Desk(path)
    assert desk.list()
    modes = {part.stat().st_mode & 0o077 for part in (path.parent, *path.parent.iterdir())}
    assert modes == {0}


@contextmanager
def full_database(desk: Desk) -> Iterator[None]:
    """Keep the database from growing by a page."""
    desk.store.execute("PRAGMA max_page_count = 1")
    yield
    desk.store.execute("PRAGMA max_page_count = 1000000")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the size of the files that this process writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_disk(desk: Desk) -> AbstractContextManager[None]:
    """Limit the size of files to little more than that of the ledger's log."""
    log = desk.store.path.with_name(f"{desk.store.path.name}-wal")
    return files_of_at_most(log.stat().st_size + 5000)


@contextmanager
def read_only(desk: Desk) -> Iterator[None]:
    desk.store.execute("PRAGMA query_only = ON")
    yield
    desk.store.execute("PRAGMA query_only = OFF")


@contextmanager
def locked(desk: Desk) -> Iterator[None]:
    """Hold the file's lock on another connection for longer than the ledger waits."""
    desk.store.execute("PRAGMA busy_timeout = 20")
    with pytest.MonkeyPatch.context() as now, closing(sqlite3.connect(desk.store.path, isolation_level=None)) as other:
        now.setattr(sqlite_file, "LOCK_TIMEOUT", 0.02)
        other.execute("BEGIN IMMEDIATE")
        yield


@pytest.mark.parametrize("trouble", [full_database, full_disk, read_only, locked])
def test_a_ledger_that_cannot_be_written_serves_what_is_committed_and_recovers(
    path: Path, trouble: Callable[[Desk], AbstractContextManager[None]]
) -> None:
    desk = Desk(path)
    desk.list(desk.task("a", "running", 1.0))
    tasks = [desk.task(f"task {number}", "done", 1.0) for number in range(400)]
    with trouble(desk):
        for _ in range(3):
            with pytest.raises(LedgerUnavailable):
                desk.list(*tasks)
            assert desk.counts("submitted", "finished", "credits_used") == (1, 0, 1)
    assert desk.list(*tasks)
    assert desk.counts("submitted", "finished", "credits_used") == (401, 400, 401)
    desk.restart()
    assert desk.counts("submitted", "finished", "credits_used") == (401, 400, 401)


def test_a_list_without_room_for_its_temporary_file_says_where_to_make_some() -> None:
    many = (Observation(f"{number:0250}", "done", 1.0, "flash", "", NOON) for number in range(30_000))
    told = r"temporary file: .*; make room .* SQLITE_TMPDIR"
    with closing(StagingTable()) as table, files_of_at_most(2**20), pytest.raises(LedgerUnavailable, match=told):
        table.add(many)


def test_a_ledger_that_another_program_has_changed_is_read_again_before_anything_is_counted(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a"))
    with closing(sqlite3.connect(path)) as somebody:
        somebody.execute("UPDATE book SET generation = generation + 1")
        checksum.write(somebody, *WORKSPACE)
        somebody.commit()
    assert desk.list(desk.task("a"), desk.task("b")) is False
    assert desk.count("submitted") == 1
    assert desk.list(desk.task("a"), desk.task("b"))
    assert desk.count("submitted") == 2


def test_no_answer_waits_while_the_ledger_is_busy(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a"))
    with closing(sqlite3.connect(path, isolation_level=None)) as somebody:
        somebody.execute("BEGIN IMMEDIATE")
        transaction = desk.ledger.begin(*WORKSPACE)
        transaction.add([desk.task("b")])
        committing = threading.Thread(target=desk.ledger.commit, args=(transaction, desk.now))
        committing.start()
        assert desk.count("submitted") == 1
        assert committing.is_alive()  # so the counters were served first
        somebody.execute("ROLLBACK")
    committing.join()
    assert desk.count("submitted") == 2


def test_waiting_for_a_lock_takes_at_most_5_seconds(path: Path) -> None:
    assert Desk(path).store.execute("PRAGMA busy_timeout") == [(5000,)]


@pytest.mark.parametrize("replaced_by", [None, b""])
def test_a_ledger_whose_file_was_deleted_or_replaced_is_not_written(path: Path, replaced_by: bytes | None) -> None:
    desk = Desk(path)
    desk.list(desk.task("a", "done", 1.0))
    path.unlink()
    if replaced_by is not None:
        path.write_bytes(replaced_by)
    with pytest.raises(LedgerUnavailable, match="deleted or replaced"):
        desk.list(desk.task("b", "done", 1.0))
    assert desk.counts("submitted", "finished") == (1, 1)


@pytest.mark.parametrize("number", [0, 1, 2, 12, 24])
@pytest.mark.parametrize("torn", [0.0, 0.5, 1.0])
def test_a_process_killed_while_it_ends_a_hold_has_shown_nothing_yet(path: Path, number: int, torn: float) -> None:
    desk = Desk(path)
    desk.list(desk.task("a"))
    desk.list(desk.task("b", "done", 5.0, model="pro"))
    desk.now += 120
    desk.store.kill(number, torn, path.parent / "copy")
    with pytest.raises(Killed):
        desk.ledger.counters(*WORKSPACE)
    desk.ledger.close()
    desk.open(path.parent / "copy" / path.name)
    held = {desk.ledger.counters(*WORKSPACE).values[SeriesKey("pro", "credits_used")]}
    assert held in ({0.0}, {5.0})
    desk.now += 120
    assert desk.counts("submitted") == (1,)
    assert desk.count("credits_used", model="pro") == 5
    assert desk.store.execute("SELECT DISTINCT held FROM series") == [(0,)]  # all holds of a model end together


DIE = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from desk import NOON, Desk
desk = Desk(Path(sys.argv[1]))
statements = 0
def watch(sql, now):
    global statements
    statements += now == "before"
    if statements == int(sys.argv[2]):
        os._exit(9)
desk.now = NOON + 60
desk.store.tap.watcher = watch
desk.list(desk.task("a", "done", 2.0), desk.task("b", "failed", 3.0, model="pro"))
os._exit(0)
"""


@pytest.mark.slow
def test_a_process_that_dies_at_any_statement_loses_nothing_and_repeats_nothing(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a", "running", 1.0))
    desk.ledger.close()
    ends = []
    for number in (1, 2, 3, 5, 20, 40, 1000):
        command = [sys.executable, "-c", DIE, str(path), str(number), *sys.path]
        ends.append(subprocess.run(command, check=False).returncode)
        desk.open(path)
        counted = desk.counts("submitted", "finished", "credits_used")
        assert counted == ((1, 0, 1) if ends[-1] else (1, 1, 2))
        desk.ledger.close()
    assert ends == [9] * 6 + [0]


# --- Earlier versions: the files were written by the exporter of that time -------------------------------------------


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_ledger_of_an_earlier_version_opens_and_goes_on_counting(path: Path, version: int) -> None:
    path.parent.mkdir()
    shutil.copy(FILES / f"version-{version}.db", path)
    desk = Desk(path)
    desk.now = NOON + 60
    assert desk.counts("submitted", "finished", "credits_used", "credits_refunded") == (4, 2, 6, 0.5)
    assert desk.count("failed", "quota") == 1
    assert desk.ledger.counters(*WORKSPACE).failure_runs == {"flash": 0, "pro": 0}
    settled = desk.task("settled", "failed", 9.0, at=NOON - 3 * DAY)
    running, failed = desk.task("a", "done", 2.5), desk.task("b", "failed", 1.5, at=NOON - HOUR, reason="quota")
    desk.list(settled, running, failed, desk.task("c", "done", 0.5, model="pro"), desk.task("new"))
    assert desk.counts("submitted", "finished", "credits_used", "credits_refunded") == (5, 3, 7.5, 0.5)
    assert desk.count("credits_used", model="pro") == 0  # still held
    desk.restart()
    desk.now += 120
    assert desk.count("credits_used", model="pro") == 0.5
    for _ in range(2):
        desk.list(running, failed, desk.task("new"), after=DAY / 2)
    assert desk.count("vanished") == 1
    desk.ledger.close()
    with closing(SqliteStore(path, read_only=True)) as store:
        assert [day.value for day in store.days(0, 99_999) if day.model == "pro"] == [0.5, 1, 1]


def test_a_ledger_of_an_earlier_version_is_not_migrated_by_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    shutil.copy(FILES / "version-2.db", path)
    with pytest.raises(LedgerRefused, match="version 2"):
        SqliteStore(path, read_only=True)
    assert path.read_bytes() == (FILES / "version-2.db").read_bytes()


# --- Reading only ---------------------------------------------------------------------------------------------------


def days(path: Path) -> list[Day]:
    """Read the daily totals as `report` does."""
    with closing(SqliteStore(path, read_only=True)) as store:
        return store.days(0, 99_999)


@pytest.mark.parametrize("content", [None, b"", b"not a ledger"])
def test_a_file_that_is_not_a_ledger_is_not_read_and_none_is_created(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ledger.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LedgerRefused):
        days(path)
    assert not path.exists() if content is None else path.read_bytes() == content


def test_a_ledger_can_be_read_while_it_is_being_written(path: Path) -> None:
    desk = Desk(path)
    desk.list(desk.task("a"))
    with closing(SqliteStore(path, read_only=True)) as reader:
        assert len(reader.days(0, 99_999)) == 1
        desk.list(desk.task("a", "done"))
        assert len(reader.days(0, 99_999)) == 2


@contextmanager
def reader_only(folder: Path) -> Iterator[None]:
    """Let this process read the folder but write nothing there; root gives up its privileges for that time."""
    for part in [folder, *folder.iterdir()]:
        part.chmod(0o555 if part.is_dir() else 0o444)
    try:
        with without_rights():
            yield
    finally:
        folder.chmod(0o755)


def written(folder: Path) -> dict[str, bytes]:
    """Return the files and their content, except the log's index, in which a reader notes its position."""
    files = (part for part in folder.iterdir() if part.is_file() and not part.name.endswith("-shm"))
    return {file.name: file.read_bytes() for file in files}


def test_reading_a_ledger_that_nobody_has_open_leaves_no_file_beside_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "ledger.db")
    desk.list(desk.task("a", "done", 2.0))
    maintenance.backup(desk.store, tmp_path / "backups" / "ledger.db")
    assert [day.total for day in days(tmp_path / "backups" / "ledger.db")] == ["credits_used", "finished", "submitted"]
    assert [path.name for path in (tmp_path / "backups").iterdir()] == ["ledger.db"]
    desk.ledger.close()


@pytest.mark.parametrize("named_by", ["ledger.db", "link.db"])
@pytest.mark.parametrize("left", ["closed", "running", "killed", "killed, without the log's index"])
def test_reading_needs_no_right_to_write(left: str, named_by: str) -> None:
    # Not in pytest's folder, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="ledger-") as home:
        Path(home).chmod(0o755)
        desk = Desk(Path(home, "ledger.db"))
        desk.list(desk.task("a", "done", 2.0))
        read = Path(home, "read")
        if left == "closed":
            desk.ledger.close()
        if left == "running":
            read = Path(home)
        else:
            desk.store.leave(read)
        if "index" in left:
            (read / "ledger.db-shm").unlink()
        (read / "link.db").symlink_to(read / "ledger.db")
        before = written(read)
        with reader_only(read):
            assert [day.total for day in days(read / named_by)] == ["credits_used", "finished", "submitted"]
        assert written(read) == before
        desk.ledger.close()
