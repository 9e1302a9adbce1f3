"""For any history, and any sequence of lists drawn from it, the ledger counts the truth."""

import os
import shutil

import pytest
from hypothesis import Phase, given, settings
from world import History, SharedWorld, World, histories

from conftest import examples
from databases import Postgres

HISTORIES = int(os.environ.get("LEDGER_HISTORIES", "300"))

PHASES = set(Phase) - {Phase.explain}


@settings(max_examples=examples(HISTORIES // 8), phases=PHASES)
@given(history=histories(on_disk=False))
def test_a_ledger_in_memory_counts_the_truth(history: History) -> None:
    World(history, None).play()


@pytest.mark.slow
@settings(max_examples=HISTORIES, phases=PHASES)
@given(history=histories(on_disk=True))
def test_a_ledger_in_a_file_counts_the_truth_through_kills_and_restarts(
    history: History, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("history")
    World(history, folder).play()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared_url(postgres: Postgres) -> str:
    return postgres.database()


@pytest.mark.slow
@settings(max_examples=HISTORIES // 8, phases=PHASES)
@given(history=histories(on_disk=True, shared=True))
def test_exporters_that_share_a_database_count_the_truth(history: History, shared_url: str) -> None:
    SharedWorld(history, shared_url).play()
