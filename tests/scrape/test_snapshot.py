"""A snapshot is a function of the list, however the list was cut into batches, and in any order."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import inf
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from creatify_exporter.config.schema import Labels
from creatify_exporter.creatify.task import OTHER, STATUSES, Task, model_label, status_label
from creatify_exporter.snapshot import Cell, Snapshot, Tally

BEGIN = datetime(2026, 10, 1, tzinfo=UTC)
LONG = "x" * 500
FULL = Labels(max_models=0)  # only the places that the ledger has assigned

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
    got = snapshot.by_model(models, FULL)
    assert {model: set(cells) for model, cells in got.items()} == {m: set(cells) for m, cells in expected.items()}
    for model, cells in got.items():
        for status, cell in cells.items():
            wanted = expected[model][status]
            assert (cell.tasks, cell.credits_used) == (wanted["tasks"], wanted["credits"])
            if status in ("pending", "running"):
                assert cell.oldest_at == min(wanted["created"], default=inf)
    created = [task.created_at.timestamp() for task in listed if task.created_at]
    assert (snapshot.oldest_at, snapshot.newest_at) == (min(created, default=inf), max(created, default=-inf))


def test_an_id_counts_once_as_the_copy_with_the_most_progress() -> None:
    tally = Tally()
    listed = [
        [task("a", "running", 1.0), task("b", "done", 2.0), task("", "done"), task("", "done")],
        [task("b", "done", 2.0), task("c", "pending"), task("c", "running"), task("c", "pending", 9.0)],
        [task("a", "failed", 1.5), task("c", None), task("", "done"), task("d", "pending", 1.0)],
        [task("d", "pending", 2.5), task("d", "pending"), task("a", "running", 7.0), task("b", "running")],
    ]
    for batch in listed:
        tally.add(batch)
    cells = tally.snapshot(lambda _: None).by_model(frozenset({"pro"}), FULL)["pro"]
    assert {status: (cell.tasks, cell.credits_used) for status, cell in cells.items()} == {
        "done": (4, 2.0),
        "failed": (1, 1.5),
        "running": (1, 0.0),
        "pending": (1, 2.5),
    }
    assert tally.has_copies


def task(name: str, status: str | None, credits_used: float | None = None) -> Task:
    return Task(name, "pro", status, None, credits_used, BEGIN)


@given(batches=st.lists(st.lists(st.builds(task, st.sampled_from("abcdefgh"), st.sampled_from(STATUSES)), max_size=6)))
def test_any_overlap_of_batches_counts_each_id_once(batches: list[list[Task]]) -> None:
    tally = Tally()
    for batch in batches:
        tally.add(batch)
    listed = [each for batch in batches for each in batch]
    cells = tally.snapshot(lambda _: None).by_model(frozenset(), FULL).get(OTHER, {})
    assert sum(cell.tasks for cell in cells.values()) == len({each.id for each in listed})
    assert tally.has_copies == (len(listed) > len({each.id for each in listed}))


def test_a_list_of_any_length_is_tallied_in_bounded_memory_and_nearby_copies_are_recognised() -> None:
    tally = Tally()
    for start in range(0, 250_000, 10_000):
        first = max(0, start - 100)
        tally.add([Task(str(number), "x" * 1000, "pending") for number in range(first, start + 10_000)])
    assert tally.snapshot(lambda _: None).cells == {("x" * 400, "pending"): Cell(tasks=250_000)}
    assert sum(map(len, (tally._recent, tally._older))) <= 220_000  # noqa: SLF001 - the bound is what is tested


def test_models_of_old_tasks_have_their_own_label_while_there_is_room() -> None:
    listed = [Task(name, name, "done") for name in ("old-b", "old-a", "promised", "other", "known")]
    shown = snapshot_of(listed).by_model(frozenset({"known", "gone"}), Labels(max_models=4, models=("promised",)))
    assert set(shown) == {"known", "gone", "promised", "old-a", OTHER}
    shown = snapshot_of(listed).by_model(frozenset({"known", OTHER}), Labels(max_models=100))
    assert set(shown) == {"known", "promised", "old-a", "old-b", OTHER}


def test_times_with_different_offsets_are_compared_as_moments() -> None:
    west, east = datetime.fromisoformat("2026-10-01T01:00:00-07:00"), datetime.fromisoformat("2026-10-01T07:30:00Z")
    snapshot = snapshot_of([Task(id="a", status="running", created_at=west), Task(id="b", created_at=east)])
    assert (snapshot.oldest_at, snapshot.newest_at) == (east.timestamp(), west.timestamp())


def test_models_that_the_ledger_does_not_know_are_one() -> None:
    listed = [Task(id=str(number), model_name=f"model-{number}", status="done") for number in range(50)]
    cells = snapshot_of(listed).by_model(frozenset({"model-7", "gone"}), FULL)
    assert {model: sum(cell.tasks for cell in each.values()) for model, each in cells.items()} == {
        "gone": 0,
        "model-7": 1,
        OTHER: 49,
    }


def test_a_hostile_list_is_counted_whole_in_bounded_memory() -> None:
    hostile = [Task(id="a", model_name=f"{number}-{LONG[:100]}", status=f"status {number}") for number in range(12_000)]
    snapshot = snapshot_of(hostile)
    sums = snapshot.by_model(frozenset(), FULL)
    assert sums == {OTHER: {"unknown": Cell(tasks=12_000)}}
    told_apart = snapshot.by_model(frozenset(model_label(task.model_name) for task in hostile), FULL)
    assert sum(bool(cells) for cells in told_apart.values()) <= 10_001
