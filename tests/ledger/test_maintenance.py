"""Commands on a ledger, and the counters afterwards."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from desk import DAY, STORES, WORKSPACE, Desk, Shared, new_desk

from creatify_exporter.errors import ConfigError, LedgerRefused, LedgerUnavailable
from creatify_exporter.ledger import maintenance
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.ledger.store import Statements
from databases import Postgres


@pytest.fixture(params=STORES)
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    """Tell a story of two models: one settled, one whose hold has not ended."""
    desk = new_desk(request, tmp_path)
    desk.list(desk.task("old", "done", 3.0))
    desk.list(desk.task("b", "running", 1.0, at=desk.now + 2 * DAY), after=2 * DAY)
    desk.list(desk.task("b", "running", 1.0), desk.task("c", "failed", 5.0, at=desk.now, model="pro", reason="quota"))
    yield desk
    desk.ledger.close()


def goes_on(desk: Desk) -> None:
    """Check that a ledger continues the story: no task counts again, no change is lost, the hold stays as long."""
    assert desk.counts("submitted", "finished", "credits_used") == (2, 1, 4)
    assert desk.count("failed", "quota", model="pro") == 0
    assert desk.ledger.counters(*WORKSPACE).failure_runs == {"flash": 0, "pro": 1}
    desk.list(desk.task("b", "done", 2.5), desk.task("c", "failed", 5.0, model="pro", reason="quota"), after=120)
    assert desk.counts("submitted", "finished", "credits_used") == (2, 2, 5.5)
    assert desk.count("failed", "quota", model="pro") == 1
    assert desk.count("credits_used", model="pro") == 5


def opened(path: Path, clock: Desk) -> Desk:
    desk = Desk(path)
    desk.now = clock.now
    return desk


@pytest.mark.slow
def test_a_ledger_is_copied_into_postgresql_and_its_counters_go_on(desk: Desk, postgres: Postgres) -> None:
    shared = Shared(postgres.database(), desk)
    shared.now = desk.now
    maintenance.copy(desk.store, shared.store)
    assert shared.store.days(0, 99_999) == desk.store.days(0, 99_999) != []
    goes_on(shared)
    with pytest.raises(LedgerRefused, match="empty"):
        maintenance.copy(desk.store, shared.store)
    desk.now -= 120
    goes_on(desk)  # as if nothing had happened
    shared.ledger.close()


def test_a_backup_is_a_ledger_that_counts_on(desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backup = tmp_path / "backups" / "[1] ledger.db"
    backup.parent.mkdir()
    transaction = desk.ledger.begin(*WORKSPACE)
    transaction.add([desk.task("late", "done", 9.0)])
    maintenance.backup(desk.store, backup)
    assert capsys.readouterr().out.splitlines() == [
        "copied default (text_generator): 2 models, 2 tracked tasks",
        f"{backup} is written",
    ]
    transaction.close()
    assert [path.name for path in backup.parent.iterdir()] == ["[1] ledger.db"]
    desk.list(desk.task("later", at=desk.now))
    restored = opened(backup, desk)
    restored.now -= 15
    goes_on(restored)
    restored.ledger.close()


def test_a_file_is_copied_beside_the_exporter_that_writes_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "ledger.db")
    desk.list(desk.task("a"))
    with closing(SqliteStore(desk.store.path, read_only=True)) as source:
        maintenance.backup(source, tmp_path / "backup.db")
    assert desk.list(desk.task("b"))
    assert opened(tmp_path / "backup.db", desk).counts("submitted") == (1,)


def test_a_backup_replaces_nothing_and_leaves_no_half(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "ledger.db")
    there = tmp_path / "there.db"
    there.write_text("mine")
    with pytest.raises(ConfigError, match="already exists"):
        maintenance.backup(desk.store, there)
    assert there.read_text() == "mine"
    desk.list(desk.task("a"))
    desk.store.execute("DROP TABLE day")
    before = set(tmp_path.iterdir())
    with pytest.raises(LedgerUnavailable, match="no such table"):
        maintenance.backup(desk.store, tmp_path / "new.db")
    assert set(tmp_path.iterdir()) == before


def test_two_backups_to_one_name_do_not_spoil_each_other(tmp_path: Path) -> None:
    desk, file = Desk(tmp_path / "ledger.db"), tmp_path / "backup.db"
    desk.list(desk.task("a"))

    class Slow(SqliteStore):
        """Lets another backup run while it is read."""

        @contextmanager
        def reading(self) -> Iterator[Statements]:
            maintenance.backup(desk.store, file)
            with super().reading() as sql:
                yield sql

    before = set(tmp_path.iterdir())
    with (
        closing(Slow(desk.store.path, read_only=True)) as source,
        pytest.raises(ConfigError, match=r"backup\.db: already exists"),
    ):
        maintenance.backup(source, file)
    assert set(tmp_path.iterdir()) == {*before, file}
    assert opened(file, desk).counts("submitted") == (1,)


def test_a_backup_removes_what_a_killed_one_has_left_beside_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "ledger.db")
    desk.list(desk.task("a"))
    hidden = tmp_path / ".hidden"
    hidden.mkdir()
    (hidden / "of-another-program.lock").touch()
    before = set(tmp_path.iterdir())

    class Killed(SqliteStore):
        """Leaves the files that a backup has when its process is killed."""

        @contextmanager
        def reading(self) -> Iterator[Statements]:
            [folder] = {*tmp_path.iterdir()} - before
            shutil.copytree(folder, f"{folder}-left")
            maintenance.backup(desk.store, tmp_path / "meanwhile.db")
            assert set(tmp_path.iterdir()) == {*before, folder, tmp_path / "meanwhile.db"}
            with super().reading() as sql:
                yield sql

    with closing(Killed(desk.store.path, read_only=True)) as source:
        maintenance.backup(source, tmp_path / "backup.db")
    assert set(tmp_path.iterdir()) == {*before, tmp_path / "meanwhile.db", tmp_path / "backup.db"}
    assert list(hidden.iterdir()) == [hidden / "of-another-program.lock"]


def test_a_backup_that_has_just_begun_is_not_mistaken_for_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path / "ledger.db")
    desk.list(desk.task("a"))
    take = fcntl.flock

    def take_late(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", take)
        maintenance.backup(desk.store, tmp_path / "other.db")
        take(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", take_late)
    maintenance.backup(desk.store, tmp_path / "backup.db")
    assert opened(tmp_path / "backup.db", desk).counts("submitted") == (1,)


def test_a_backup_does_not_touch_the_targets_of_links_in_its_folder(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "ledger.db")
    other, left = tmp_path / "other", tmp_path / ".creatify-exporter-backup-left"
    other.mkdir()
    (other / "ledger.db").touch()
    left.mkdir()
    (left / "ledger.db").symlink_to(other / "ledger.db")
    (left / "ledger.db.lock").touch()
    maintenance.backup(desk.store, tmp_path / "backup.db")
    assert list(other.iterdir()) == [other / "ledger.db"]
    (other / "ledger.db.lock").touch()
    (tmp_path / ".creatify-exporter-backup-link").symlink_to(other)
    maintenance.backup(desk.store, tmp_path / "second.db")
    assert {*other.iterdir()} == {other / "ledger.db", other / "ledger.db.lock"}


def test_a_backup_that_has_no_folder_says_what_to_do(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "ledger.db")
    with pytest.raises(ConfigError, match=r"ledger\.db/new: cannot be written: .*; name a file in a folder"):
        maintenance.backup(desk.store, tmp_path / "ledger.db" / "new")


def test_show_prints_models_progress_and_tracked_tasks(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    maintenance.show(desk.store)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "default (text_generator)",
        "lists recorded: 3, the last one 2026-11-02 12:00:30 UTC",
        "first list: 2026-10-31 12:00:15 UTC",
        "settled before: 2026-11-01 12:00:30 UTC",
        "tracked tasks: 2",
        "model submitted finished failed vanished credits_used credits_refunded",
        "flash 2 1 0 0 4 0",
        "pro 1 1 1 0 5 0",
    ]


def test_show_has_no_credits_of_a_list_that_reports_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk(tmp_path / "ledger.db")
    transaction = desk.ledger.begin("default", "product_to_videos")
    transaction.add([desk.task("a", "done")])
    assert desk.ledger.commit(transaction, desk.now)
    maintenance.show(desk.store)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["flash", "1", "1", "0", "0", "-", "-"]


def test_an_empty_ledger_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(SqliteStore(tmp_path / "new.db")) as store:
        maintenance.show(store)
    assert capsys.readouterr().out == "The ledger is empty.\n"


def test_a_model_is_forgotten_once_its_tasks_have_settled(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LedgerRefused, match=r"1 tasks of pro .* may still"):
        maintenance.forget_model(desk.store, "pro", maintenance.Scope())
    for _ in range(2):
        desk.list(desk.task("b", "running", 1.0), after=DAY + 1)
    # A list that began while the model existed must not count into series that are gone.
    transaction = desk.ledger.begin(*WORKSPACE)
    transaction.add([desk.task("b", "running", 1.0), desk.task("new", "done", at=desk.now, model="pro")])
    maintenance.forget_model(desk.store, "pro", maintenance.Scope())
    assert "forgot pro in 1 book;" in capsys.readouterr().out
    assert any(day.model == "pro" for day in desk.store.days(0, 99_999))
    with pytest.raises(LedgerRefused, match="no model pro"):
        maintenance.forget_model(desk.store, "pro", maintenance.Scope())
    if desk.store.shared:
        assert desk.ledger.commit(transaction, desk.now) is False
    else:
        desk.restart()  # a file has one owner, which is stopped first
    assert desk.ledger.counters(*WORKSPACE).models == {"flash"}
    desk.list(desk.task("d", "running", 1.0, model="pro", at=desk.now))
    assert desk.count("submitted", model="pro") == 0  # created again, and held
    assert desk.ledger.counters(*WORKSPACE).failure_runs["pro"] == 0
    desk.now += 120
    assert desk.count("submitted", model="pro") == 1


def test_a_model_is_forgotten_in_one_workspace_alone(desk: Desk) -> None:
    for workspace in ("first", "second"):
        with closing(desk.ledger.begin(workspace, "text_generator")) as transaction:
            transaction.add([desk.task("a", "done", 1.0)])
            desk.ledger.commit(transaction, desk.now)
    scope = maintenance.Scope("first", "text_generator")
    # An old task in a first list settles at once.
    maintenance.forget_model(desk.store, "flash", scope)
    left = {book.workspace: book.models for book in desk.store.books()}
    assert left == {"default": {"flash", "pro"}, "first": set(), "second": {"flash"}}
    with pytest.raises(LedgerRefused, match=r"no model flash in the workspace first \(text_generator\)"):
        maintenance.forget_model(desk.store, "flash", scope)


def test_a_workspace_is_forgotten_whole_unless_it_is_configured(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(desk.ledger.begin("left", "text_generator")) as transaction:
        transaction.add([desk.task("a", "running", 1.0)])
        desk.ledger.commit(transaction, desk.now)
    configured, before = [WORKSPACE], desk.store.days(0, 99_999)
    for scope in (maintenance.Scope("default"), maintenance.Scope()):
        with pytest.raises(LedgerRefused, match=r"default \(text_generator\) is configured"):
            maintenance.forget_workspace(desk.store, scope, configured)
    with pytest.raises(LedgerRefused, match=r"nothing in the workspace left \(aurora\)"):
        maintenance.forget_workspace(desk.store, maintenance.Scope("left", "aurora"), configured)
    assert desk.store.days(0, 99_999) == before
    maintenance.forget_workspace(desk.store, maintenance.Scope("left"), configured)
    assert capsys.readouterr().out == "forgot left (text_generator) and its daily totals\n"
    assert [book.workspace for book in desk.store.books()] == ["default"]
    assert desk.store.days(0, 99_999) == [day for day in before if day.workspace == "default"] != before
    desk.restart()
    goes_on(desk)
