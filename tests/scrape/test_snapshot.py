"""What a snapshot says is a function of the list, however it was cut into batches and in whatever order it came."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import inf
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from creatify_exporter.creatify.task import OTHER, Task, model_label, status_label
from creatify_exporter.snapshot import Cell, Snapshot

BEGIN = datetime(2026, 10, 1, tzinfo=UTC)
LONG = "x" * 500

names = st.sampled_from([None, "", "flash", "pro", " pro\n", "\x00", "\ud800", LONG, LONG + "y", "other", "unknown"])
tasks = st.builds(
    Task,
    id=st.just("same"),
    model_name=names | st.text(max_size=5),
    status=st.sampled_from([None, "", "pending", "running", "done", "failed", "unknown", "in_queue", "DONE"]),
    credits_used=st.none() | st.integers(0, 400).map(lambda quarters: quarters / 4),
    created_at=st.none() | st.integers(-(10**6), 10**6).map(lambda seconds: BEGIN + timedelta(seconds=seconds)),
)


def snapshot_of(*batches: list[Task]) -> Snapshot:
    snapshot = Snapshot()
    for batch in batches:
        snapshot.merge(Snapshot.of(batch))
    return snapshot


def naive(listed: list[Task], models: frozenset[str]) -> dict[str, dict[str, dict[str, Any]]]:
    sums: dict[str, dict[str, dict[str, Any]]] = {model: {} for model in models}
    for task in listed:
        label = model_label(task.model_name)
        model = label if label in models else OTHER
        cell = sums.setdefault(model, {}).setdefault(status_label(task.status), defaultdict(float, created=[]))
        cell["tasks"] += 1
        cell["credits"] += task.credits_used or 0
        cell["created"] += [task.created_at.timestamp()] if task.created_at else []
    return sums


@given(
    listed=st.lists(tasks, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    models=st.frozensets(st.sampled_from(["flash", "pro", "unknown", "absent"])),
    seed=st.randoms(use_true_random=False),
)
def test_the_gauges_are_a_function_of_the_list(listed: list[Task], cuts: list[int], models: Any, seed: Any) -> None:
    shuffled = list(listed)
    seed.shuffle(shuffled)
    edges = sorted({0, len(shuffled), *(min(cut, len(shuffled)) for cut in cuts)})
    snapshot = snapshot_of(*(shuffled[begin:end] for begin, end in pairwise(edges)), [])
    expected = naive(listed, models)
    got = snapshot.by_model(models)
    assert {model: set(cells) for model, cells in got.items()} == {m: set(cells) for m, cells in expected.items()}
    for model, cells in got.items():
        for status, cell in cells.items():
            wanted = expected[model][status]
            assert (cell.tasks, cell.credits_used) == (wanted["tasks"], wanted["credits"])
            if status in ("pending", "running"):
                assert cell.oldest_at == min(wanted["created"], default=inf)
    created = [task.created_at.timestamp() for task in listed if task.created_at]
    assert (snapshot.oldest_at, snapshot.newest_at) == (min(created, default=inf), max(created, default=-inf))


def test_an_entry_that_stands_twice_in_the_list_counts_twice() -> None:
    task = Task(id="a", model_name="pro", status="done", credits_used=2.5)
    cells = snapshot_of([task], [task]).by_model(frozenset({"pro"}))["pro"]
    assert (cells["done"].tasks, cells["done"].credits_used) == (2, 5.0)


def test_moments_of_different_offsets_are_compared_as_moments() -> None:
    west, east = datetime.fromisoformat("2026-10-01T01:00:00-07:00"), datetime.fromisoformat("2026-10-01T07:30:00Z")
    snapshot = snapshot_of([Task(id="a", status="running", created_at=west), Task(id="b", created_at=east)])
    assert (snapshot.oldest_at, snapshot.newest_at) == (east.timestamp(), west.timestamp())


def test_models_that_the_ledger_does_not_know_are_one() -> None:
    listed = [Task(id=str(number), model_name=f"model-{number}", status="done") for number in range(50)]
    cells = snapshot_of(listed).by_model(frozenset({"model-7", "gone"}))
    assert {model: sum(cell.tasks for cell in each.values()) for model, each in cells.items()} == {
        "gone": 0,
        "model-7": 1,
        OTHER: 49,
    }


def test_a_hostile_list_is_counted_whole_in_bounded_memory() -> None:
    hostile = [Task(id="a", model_name=f"{number}-{LONG}", status=f"status {number}") for number in range(12_000)]
    snapshot = snapshot_of(hostile)
    sums = snapshot.by_model(frozenset())
    assert sums == {OTHER: {"unknown": Cell(tasks=12_000)}}
    told_apart = snapshot.by_model(frozenset(model_label(task.model_name) for task in hostile))
    assert sum(bool(cells) for cells in told_apart.values()) <= 10_001
