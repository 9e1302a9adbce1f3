"""What tests of several modules share: real servers, real processes and the tools that must be there."""

import io
import logging
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest
import structlog
from hypothesis import HealthCheck, settings

from creatify_exporter import redaction
from creatify_exporter.cli import main
from databases import Postgres, programs

PROMETHEUS_3 = Path(__file__).parents[1] / ".venv/prometheus-3/usr/bin"

# Everybody's run is the same; `make check` tries fewer examples, `make soak` looks further and prints its seed.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("soak", parent=settings.get_profile("repeatable"), derandomize=False, print_blob=True)
settings.register_profile("quick", parent=settings.get_profile("repeatable"), max_examples=25)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "repeatable")
settings.load_profile(PROFILE)


# Prometheus and its kin are rarely short of memory here, but of time: let them collect their garbage less often.
os.environ.setdefault("GOGC", "400")

# By turns what computes and what waits, so that both go on side by side.
BEGIN_FIRST = (
    "rules/test_lab.py::test_two_weeks_bring_every_incident_and_no_false_alarm",
    "end_to_end/test_truth.py",
    "ledger/test_oracle.py",
    "end_to_end/test_replicas.py",
    "fuzz/test_fuzz.py::test_a_list_broken_at_random",
    "end_to_end/test_soak.py",
    "fuzz/test_fuzz.py::test_a_request_broken_at_random",
    "end_to_end/test_alerting.py::test_a_failing_model",
    "fuzz/test_fuzz.py::test_a_configuration_broken_at_random",
    "end_to_end/test_fire.py::test_a_process_that_is_killed_at_any_instant",
    "dashboards/test_queries.py",
    "end_to_end/test_five_lists.py",
    "rules/test_rules.py::test_alerts_fire_stay_quiet_and_resolve",
    "end_to_end/test_hostile.py::test_probes_are_answered",
    "end_to_end/test_workspaces.py",
    "end_to_end/test_faults.py",
)
"""What the names of the tests that take longest begin with."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take longest, so that in the end no process works on one while the others are done."""
    items.sort(
        key=lambda item: next((at for at, name in enumerate(BEGIN_FIRST) if name in item.nodeid), len(BEGIN_FIRST))
    )


def examples(usual: int) -> int:
    """Return how many examples a property is tried with that has a number of its own."""
    return usual // 4 if PROFILE == "quick" else usual


def pytest_xdist_auto_num_workers() -> int | None:
    """Start more processes than there are cores: unit tests wait a third of the time, those of processes even more."""
    cores = os.cpu_count() or 1
    at_length = PROFILE == "soak" or "FUZZ_SECONDS" in os.environ  # which do nothing but compute
    return None if at_length else cores + 1 if PROFILE == "quick" else 2 * cores


def tool(name: str, package: str) -> str:
    """Return the path of a program that is not installed by this project.

    A user's machine may lack it; where `REQUIRE_TOOLS` is set, as in CI, that is a failure.
    """
    return shutil.which(name) or _missing(name, package)


def _missing(name: str, package: str) -> NoReturn:
    _skip(f"{name} is not installed; on Debian and Ubuntu: apt-get install {package}")


def _skip(reason: str) -> NoReturn:
    if os.environ.get("REQUIRE_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)


def _sets(curve: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ecdh_curve(curve)
    except ssl.SSLError:
        return False
    return True


needs_x25519 = pytest.mark.skipif(
    not _sets("X25519"), reason="Python's ssl is too old to choose X25519, as that of Debian 12 is; take Python 3.11.7"
)


@pytest.fixture
def promtool() -> str:
    return tool("promtool", "prometheus")


@pytest.fixture
def prometheus() -> str:
    return tool("prometheus", "prometheus")


@pytest.fixture(params=["installed", "3"])
def prometheus_tool(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return how to find a program of Prometheus: the one that is installed, then that of Prometheus 3."""
    if request.param == "installed":
        return lambda name: tool(name, "prometheus-alertmanager" if "alertmanager" in name else "prometheus")
    return _of_prometheus_3


@pytest.fixture
def prometheus_3() -> str:
    return _of_prometheus_3("prometheus")


def _of_prometheus_3(name: str) -> str:
    if not (PROMETHEUS_3 / name).exists():
        _skip("Prometheus 3 is not there; on Debian: .ci/prometheus-3")
    return str(PROMETHEUS_3 / name)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Start a server for all tests of a process; who stops it starts it again."""
    folder = programs()
    if folder is None:
        _missing("initdb", "postgresql")
    # Not in pytest's own folder, which nobody but root may enter, while the server must not be root's.
    with tempfile.TemporaryDirectory(prefix="postgres-") as home:
        server = Postgres(Path(home), folder)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)  # without writing what nobody will read


@pytest.fixture(autouse=True)
def forgotten_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test begin without the keys of others: a short one would blot out half of what is logged later."""
    forget_secrets(monkeypatch)


def forget_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_secrets", frozenset())
    monkeypatch.setattr(redaction, "_forms", None)


Here = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Give the process its own logging back."""
    root = logging.getLogger()
    handlers, level, hooks = list(root.handlers), root.level, (sys.excepthook, threading.excepthook)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def here(own_logging: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:  # noqa: ARG001
    """Run a command in this process, where it costs less."""
    for name in list(os.environ):
        if name.startswith("CREATIFY_"):
            monkeypatch.delenv(name)

    def ran(*arguments: object, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = main(words)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, printed.out, printed.err)

    return ran
