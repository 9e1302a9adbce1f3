"""The ledger of a real exporter under fire: kills at any instant, and everything that can become of its file."""

import os
import random
import resource
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import requests

from accounts import assert_true
from creatify_exporter.simulator import Account, Clock, Listing, Simulator, Traffic, Truth
from processes import COMMAND, ExporterProcess, Samples, ledger_counters, parsed, total, until, write_config

KILLS = int(os.environ.get("FIRE_KILLS", "30"))
SEED = int(os.environ.get("SOAK_SEED", "1"))


# --- Kills ----------------------------------------------------------------------------------------------------------


class Victim:
    """Starts, scrapes and kills; sees that no counter ever goes back."""

    def __init__(self, config: Path, simulator: Simulator) -> None:
        self.simulator = simulator
        self.counted_at: list[float] = []
        self.flags = ("--config.file", str(config), "--web.listen-address", "127.0.0.1:0")
        self.random = random.Random(SEED)  # noqa: S311 - reproducible draws are the point
        self.seen: Samples = {}
        self.scrapes = self.lost = 0

    def look(self, exporter: ExporterProcess) -> Samples:
        samples = exporter.samples()
        for key, value in self.seen.items():
            assert samples.get(key, -1.0) >= value, (key, value, samples.get(key))
        self.seen = ledger_counters(samples)
        self.scrapes += 1
        if total(samples, "creatify_up", api="text_generator") == 1:
            self.counted_at.append(self.simulator.listings()[-1].at)
        return samples

    @property
    def longest_gap(self) -> float:
        """Return for how long nothing was counted, in seconds of the account's time."""
        return max(after - before for before, after in pairwise(self.counted_at))

    def killed_at_work(self, *, after: int) -> None:
        """Scrape as fast as it goes until the kill, which comes after so many whole scrapes and a moment."""
        exporter = ExporterProcess(*self.flags)
        for _ in range(after):
            self.look(exporter)
        end = threading.Timer(self.random.uniform(0, 0.4), exporter.process.kill)
        end.start()
        while exporter.process.poll() is None:
            try:
                self.look(exporter)
            except requests.RequestException:
                self.lost += 1
        end.join()
        exporter.kill()
        assert "Traceback" not in "".join(exporter.log)

    def killed_while_it_starts(self) -> None:
        process = subprocess.Popen([COMMAND, *self.flags], stderr=subprocess.DEVNULL)
        time.sleep(self.random.uniform(0.05, 0.5))
        process.kill()
        process.wait(10)


@pytest.mark.timeout(0)
def test_a_process_that_is_killed_at_any_instant_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    clock = Clock.accelerated(60 + 2.0 * KILLS, 60)
    account = Account(SEED, clock.now() - 6000, Traffic(rate=1.0, rhythm=0.0, text_bytes=100))
    with Simulator(account, clock, listing=Listing(newest=5000)) as simulator:
        config = write_config(
            tmp_path / "config.yml",
            simulator,
            fetch={"min_interval": "0s"},
            ledger={"url": f"sqlite:///{tmp_path}/ledger.db", "settle_after": "30m", "new_series_hold": "1s"},
        )
        victim = Victim(config, simulator)
        exporter = ExporterProcess(*victim.flags)
        before, first = victim.look(exporter), simulator.listings()[-1].at
        exporter.kill()
        for number in range(KILLS):
            if number % 5 == 4:
                victim.killed_while_it_starts()
            else:
                victim.killed_at_work(after=number % 5 // 3)  # so that a busy machine counts now and then
        exporter = ExporterProcess(*victim.flags)
        after, last = victim.look(exporter), simulator.listings()[-1].at
        assert exporter.terminate() == 0
    print(f"seed {SEED}: {KILLS} kills, {victim.scrapes} scrapes, {victim.lost} of them lost")
    assert victim.longest_gap < 3000, "the machine is too slow: tasks change when the list holds them no longer"
    assert_true(account.truth(last) - account.truth(first), before, after, 5 * KILLS)


# --- Trouble that passes --------------------------------------------------------------------------------------------

NOBODY = 65534


class Scene:
    """An exporter that owns nothing but its folder, and an account that has tasks all the time."""

    def __init__(self, folder: Path, simulator: Simulator) -> None:
        self.folder, self.simulator, self.state = folder, simulator, folder / "state"
        self.state.mkdir()
        self.ledger = self.state / "ledger.db"
        url = f"sqlite:///{self.ledger}"
        settings = {"url": url, "new_series_hold": "1s", "settle_after": "30m"}
        config = write_config(folder / "config.yml", simulator, fetch={"min_interval": "0s"}, ledger=settings)
        self.flags = ("--config.file", str(config), "--web.listen-address", "127.0.0.1:0")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        # Root may do everything, so that nothing could be taken from it.
        self.prefix: tuple[str, ...] = ()
        if os.geteuid() == 0:
            self.prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
            os.chown(self.state, NOBODY, NOBODY)

    @contextmanager
    def running(self) -> Iterator[ExporterProcess]:
        exporter = ExporterProcess(*self.flags, prefix=self.prefix)
        try:
            yield exporter
        finally:
            exporter.kill()
        assert "Traceback" not in "".join(exporter.log)

    def at(self) -> Truth:
        """Return what was true at the last list."""
        return self.simulator.account.truth(self.simulator.listings()[-1].at)

    def refusal(self) -> str:
        """Return the one line of an exporter that does not start."""
        command = [*self.prefix, COMMAND, *self.flags]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert ended.returncode == 1, ended.stderr
        [line] = ended.stderr.splitlines()
        return line


@pytest.fixture
def scene() -> Iterator[Scene]:
    clock = Clock.accelerated(200, 60)
    account = Account(SEED, clock.now() - 3000, Traffic(rate=1.0, rhythm=0.0, text_bytes=100))
    # Not in pytest's own folder, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory(prefix="fire-") as folder, Simulator(account, clock) as simulator:
        yield Scene(Path(folder), simulator)


def told(exporter: ExporterProcess) -> str:
    """Return the one line that tells of the failure, however many scrapes have met it."""
    lines = until(lambda: [line for line in exporter.log if "fetch failed" in line])
    assert len(lines) == 1
    return str(lines[0])


Trouble = Callable[[Scene, ExporterProcess], AbstractContextManager[None]]


@contextmanager
def full_disk(_scene: Scene, exporter: ExporterProcess) -> Iterator[None]:
    """Let the exporter write to no file any more."""
    pid = exporter.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def folder_out_of_reach(scene: Scene, _exporter: ExporterProcess) -> Iterator[None]:
    scene.state.chmod(0)
    yield
    scene.state.chmod(0o755)


@contextmanager
def file_moved_away(scene: Scene, _exporter: ExporterProcess) -> Iterator[None]:
    away = scene.ledger.rename(scene.folder / "away.db")
    yield
    away.rename(scene.ledger)


@contextmanager
def locked(scene: Scene, _exporter: ExporterProcess) -> Iterator[None]:
    with closing(sqlite3.connect(scene.ledger, isolation_level=None)) as somebody:
        somebody.execute("BEGIN IMMEDIATE")
        yield


@pytest.mark.parametrize("trouble", [full_disk, folder_out_of_reach, file_moved_away, locked])
def test_a_ledger_that_cannot_be_written_is_said_and_made_up_for_without_a_restart(
    scene: Scene, trouble: Trouble
) -> None:
    if trouble is full_disk:
        scene.prefix = ()  # the limits of another user's process are not ours to change
    with scene.running() as exporter:
        before, then = exporter.samples(), scene.at()
        assert total(before, "creatify_up", api="text_generator") == 1
        time.sleep(1.1)  # a minute of the account's
        committed = exporter.samples()
        with trouble(scene, exporter):
            for _ in range(3 if trouble is not locked else 1):
                time.sleep(0.5)
                failing = exporter.samples()
                assert total(failing, "creatify_up", api="text_generator") == 0
                assert ledger_counters(failing) == ledger_counters(committed)  # no hold ended, nothing went back
                assert total(failing, "creatify_tasks")
            assert (total(failing, "creatify_fetch_failures_total", cause="ledger") or 0) >= 1
            assert total(failing, "creatify_fetch_failures_total") == total(
                failing, "creatify_fetch_failures_total", cause="ledger"
            )
        assert "cause=ledger" in told(exporter)
        after = exporter.samples()
        assert total(after, "creatify_up", api="text_generator") == 1
        now = scene.at()
    assert_true(now - then, before, after, 10)


@contextmanager
def small_disk(scene: Scene) -> Iterator[None]:
    """Put the ledger on a file system of its own, of 1 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size=1m,uid={NOBODY},mode=0755", "ledger", str(scene.state)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system, and not in every container")
    try:
        yield
    finally:
        subprocess.run(["umount", str(scene.state)], check=True)  # noqa: S607 - where mount was


def test_a_disk_without_space_is_said_and_made_up_for_without_a_restart(scene: Scene) -> None:
    with small_disk(scene), scene.running() as exporter:
        before, then = exporter.samples(), scene.at()
        ballast = scene.state / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(b" " * (1 << 20))
        while total(failing := exporter.samples(), "creatify_up", api="text_generator"):
            time.sleep(0.2)  # until the space that its log already has is used up
        seen = ledger_counters(failing)
        assert total(failing, "creatify_fetch_failures_total", cause="ledger") == 1
        assert "cause=ledger" in told(exporter)
        time.sleep(1.1)  # a minute of the account's, lest there be nothing to make up for
        ballast.unlink()
        after, now = exporter.samples(), scene.at()
        assert total(after, "creatify_up", api="text_generator") == 1
        assert all(after[key] >= value for key, value in seen.items())
    assert_true(now - then, before, after, 10)


# --- Trouble that stays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_deleted_or_replaced_is_not_written_and_a_restart_takes_what_is_there(
    scene: Scene, replaced: bool
) -> None:
    with scene.running() as exporter:
        exporter.samples()
        copy = scene.folder / "copy.db"
        with closing(sqlite3.connect(scene.ledger)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        time.sleep(1.1)
        committed = ledger_counters(exporter.samples())
        for part in scene.state.glob("ledger.db*"):
            part.unlink()
        if replaced:
            shutil.copy(copy, scene.ledger)
        failing = exporter.samples()
        assert total(failing, "creatify_up", api="text_generator") == 0
        assert ledger_counters(failing) == committed
        assert "restart the exporter" in told(exporter)
        assert scene.ledger.exists() is replaced
        assert not replaced or scene.ledger.read_bytes() == copy.read_bytes()
    if replaced and scene.prefix:
        os.chown(scene.ledger, NOBODY, NOBODY)
    with scene.running() as exporter:
        assert total(exporter.samples(), "creatify_up", api="text_generator") == 1


def test_of_two_exporters_on_one_file_the_second_says_so_and_ends(scene: Scene) -> None:
    with scene.running() as exporter:
        assert exporter.value("creatify_up", api="text_generator") == 1
        assert "is in use by another exporter" in scene.refusal()
        assert exporter.value("creatify_up", api="text_generator") == 1


# --- Files that are refused -----------------------------------------------------------------------------------------


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << 3
    path.write_bytes(content)


def header(scene: Scene) -> None:
    flipped(scene.ledger, 5)


def page_in_the_middle(scene: Scene) -> None:
    """Let 1.0 and the like be other numbers, of which SQLite says nothing."""
    content = scene.ledger.read_bytes()
    flipped(scene.ledger, content.index(b"gemini-2.5-flash", len(content) // 2) + 3)


def log(scene: Scene) -> None:
    flipped(scene.ledger.with_name("ledger.db-wal"), 5000)


def truncated(scene: Scene) -> None:
    os.truncate(scene.ledger, scene.ledger.stat().st_size // 2)


def newer(scene: Scene) -> None:
    with closing(sqlite3.connect(scene.ledger)) as database:
        database.execute("PRAGMA user_version = 99")


def unreadable(scene: Scene) -> None:
    scene.ledger.chmod(0)


def read_only(scene: Scene) -> None:
    for path in scene.state.iterdir():
        path.chmod(0o444)
    scene.state.chmod(0o555)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (header, "is not a ledger"),
        (page_in_the_middle, "is damaged"),
        (log, "is damaged"),
        (truncated, "malformed"),
        (newer, "has version 99"),
        (unreadable, "cannot be opened"),
        (read_only, "cannot be opened"),
    ],
)
def test_a_ledger_that_must_not_be_used_is_refused_in_one_line_and_left_as_it_is(
    scene: Scene, trouble: Callable[[Scene], None], words: str
) -> None:
    with scene.running() as exporter:
        for _ in range(5):
            exporter.samples()
            time.sleep(0.2)
        if trouble is not log:  # which only a killed process leaves behind
            assert exporter.terminate() == 0
    trouble(scene)
    before = {path.name: path.stat().st_size for path in scene.state.iterdir() if not path.name.endswith("-shm")}
    content = scene.ledger.read_bytes() if os.access(scene.ledger, os.R_OK) else b""
    line = scene.refusal()
    assert words in line
    assert str(scene.ledger) in line
    scene.state.chmod(0o755)
    assert before.items() <= {path.name: path.stat().st_size for path in scene.state.iterdir()}.items()
    assert content == (scene.ledger.read_bytes() if content else b"")


@pytest.mark.parametrize("trouble", [page_in_the_middle, truncated, log])
def test_what_is_damaged_under_a_running_exporter_never_makes_its_counters_wrong(
    scene: Scene, trouble: Callable[[Scene], None]
) -> None:
    with scene.running() as exporter:
        before, then = exporter.samples(), scene.at()
        with closing(sqlite3.connect(scene.ledger)) as somebody:
            somebody.execute("PRAGMA wal_checkpoint")
        time.sleep(1.1)
        seen = exporter.samples()
        trouble(scene)
        for _ in range(5):
            time.sleep(0.3)
            samples = exporter.samples()
            assert all(samples[key] >= value for key, value in ledger_counters(seen).items())
            seen = samples
            if total(samples, "creatify_up", api="text_generator") == 1:
                assert_true(scene.at() - then, before, samples, 0)
            else:
                assert (total(samples, "creatify_fetch_failures_total", cause="ledger") or 0) > 0
    command = [*scene.prefix, COMMAND, "dump", *scene.flags[:2]]
    dumped = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if dumped.stdout:  # the damage was written over before the kill
        assert_true(scene.at() - then, before, parsed(dumped.stdout), 0)
    else:
        [line] = dumped.stderr.splitlines()
        assert "is damaged" in line
        assert dumped.returncode == 1
