"""How the cost of a scrape grows, counted in calls, statements and instructions, not in seconds."""

import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

import pytest
from desk import DAY, NOON, WORKSPACE, Desk, moment
from scrapes import body
from test_decoder import Pieces

from conftest import tool
from creatify_exporter.creatify.decoder import Decoder
from creatify_exporter.creatify.task import Task
from creatify_exporter.snapshot import Snapshot
from processes import ExporterProcess, running_exporter
from servers import Recorder

PIECE = 64 * 1024


@contextmanager
def calls() -> Iterator[list[int]]:
    """Count the calls of functions, Python's and C's, that the block makes."""
    counted = [0]

    def count(_frame: FrameType, event: str, _arg: object) -> None:
        counted[0] += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield counted
    finally:
        sys.setprofile(before)


def tasks(number: int, at: float) -> list[Task]:
    return [Task(f"task {each}", "flash", "done", None, 1.0, moment(at)) for each in range(number)]


def listed(number: int) -> bytes:
    """Return the body of a list; every tenth task has a text that looks like the beginning of another task."""
    entry = b'{"id": "%d", "model_name": "flash", "status": "done", "output": "%s", "credits_used": 1.0}'
    text = b"x" * 400
    return (
        b"["
        + b", ".join(entry % (each, b'}, {\\"id\\": ' * 9 if each % 10 == 0 else text) for each in range(number))
        + b"]"
    )


def steady(path: Path, settled: int) -> Desk:
    """Return a ledger with so many settled tasks, and one that it still tracks."""
    desk = Desk(path)
    desk.list(*tasks(settled, NOON - 3 * DAY), desk.task("young", "running"))
    assert desk.tracked() == 1
    return desk


@pytest.mark.parametrize("settled", [100, 10_000])
def test_one_new_task_costs_as_many_statements_however_long_the_list_is(tmp_path: Path, settled: int) -> None:
    desk, told = steady(tmp_path / "ledger.db", settled), list[str]()
    desk.store.tap.watcher = lambda sql, when: told.append(sql) if when == "after" else None
    desk.list(*tasks(settled, NOON - 3 * DAY), desk.task("young", "running"), desk.task("new", "done", 2.0))
    assert desk.counts("submitted") == (settled + 2,)
    assert len(told) == 15, told
    desk.ledger.close()


def cost_of_a_list(settled: int) -> int:
    """Return the calls that it takes to record a list with one new task."""
    desk = Desk()
    with closing(desk.ledger):
        listing = [*tasks(settled, NOON - 3 * DAY), desk.task("young", "running")]
        desk.list(*listing)
        transaction = desk.ledger.begin(*WORKSPACE)
        with calls() as counted:
            for start in range(0, len(listing), 100):
                transaction.add(listing[start : start + 100])
            transaction.add([desk.task("new", "done", 2.0)])
            assert desk.ledger.commit(transaction, desk.now)
        return counted[0]


def test_a_settled_task_costs_the_ledger_only_a_lookup() -> None:
    short, long = cost_of_a_list(1_000), cost_of_a_list(11_000)
    assert (long - short) / 10_000 < 2  # calls for each task


def cost_of_a_first_commit(settled: int) -> int:
    """Return the calls that it takes to commit a first list."""
    desk = Desk()
    with closing(desk.ledger), closing(desk.ledger.begin(*WORKSPACE)) as transaction:
        transaction.add(tasks(settled, NOON - 3 * DAY))
        with calls() as counted:
            assert desk.ledger.commit(transaction, desk.now)
        assert desk.counts("submitted", "finished", "credits_used") == (settled,) * 3
        return counted[0]


def test_the_settled_tasks_of_a_first_list_are_summed_up_and_not_visited() -> None:
    assert cost_of_a_first_commit(1_000) == cost_of_a_first_commit(100)


def cost_of_decoding(number: int) -> int:
    decoder, snapshot = Decoder(2**20), Snapshot()
    body = listed(number)
    with calls() as counted:
        for batch in decoder.batches(Pieces(body, [PIECE])):
            snapshot.merge(Snapshot.of(batch.tasks))
    return counted[0]


def test_decoding_takes_as_many_calls_for_each_task_at_any_length() -> None:
    costs = {number: cost_of_decoding(number) / number for number in (5_000, 10_000, 20_000)}
    assert costs[20_000] < 1.1 * costs[10_000] < 1.1 * 1.1 * costs[5_000]


def page_faults(exporter: ExporterProcess) -> int:
    """Return how many pages of memory a process has got so far: minflt in proc(5), /proc/PID/stat."""
    return int(Path(f"/proc/{exporter.process.pid}/stat").read_text().rpartition(")")[2].split()[7])


@pytest.mark.slow
def test_a_scrape_allocates_one_buffer_and_not_one_for_each_piece(tmp_path: Path) -> None:
    settings = {
        "workspaces": [{"name": "a", "api_id": "id", "api_key": "key-of-a", "remaining_credits": False}],
        "fetch": {"min_interval": "0s"},
        "ledger": {"url": f"sqlite:///{tmp_path}/ledger.db"},
    }
    listed, config = body(30_000), tmp_path / "config.yml"
    with Recorder(body=listed) as api:
        settings["workspaces"][0]["base_url"] = api.url  # type: ignore[index] # a list
        config.write_text(json.dumps(settings))
        with running_exporter("--config.file", str(config), "--web.listen-address", "127.0.0.1:0") as exporter:
            for _ in range(3):
                assert exporter.value("creatify_up", api="text_generator") == 1
            before = page_faults(exporter)
            for _ in range(5):
                exporter.get()
            each = (page_faults(exporter) - before) / 5
    assert each < len(listed) / mmap.PAGESIZE / 2, each


@pytest.mark.slow
def test_twice_as_long_a_list_takes_twice_as_many_instructions(tmp_path: Path) -> None:
    """Counts instructions of the processor, which also show a scan that one call in C repeats too often."""
    sizes = (500, 1_000, 2_000)
    program, output = Path(__file__).with_name("scrapes.py"), tmp_path / "calls"
    valgrind = [tool("valgrind", "valgrind"), "--tool=callgrind", "--dump-before=getloadavg"]
    done = subprocess.run(
        [*valgrind, f"--callgrind-out-file={output}", sys.executable, str(program), *map(str, sizes)],
        capture_output=True,
        text=True,
        # `make coverage` must not add its own instructions.
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")} | {"PYTHONHASHSEED": "0"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    short, middle, long = (instructions(output.with_name(f"calls.{part}")) for part in (2, 3, 4))
    # 2 if it is linear, 4 if it is quadratic.
    assert long - middle < 2.5 * (middle - short), (short, middle, long)


def instructions(dump: Path) -> int:
    """Return how many instructions a part of a program took."""
    found = re.search(r"^totals: (\d+)", dump.read_text(), re.MULTILINE)
    assert found
    return int(found[1])
