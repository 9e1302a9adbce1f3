"""The command line: each command as a process, each error as one line."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from conftest import Here
from creatify_exporter import __version__
from creatify_exporter.cli import main
from creatify_exporter.config.load import load
from creatify_exporter.config.plan import Plan
from creatify_exporter.config.schema import Config, LedgerSettings
from creatify_exporter.creatify.task import Task
from creatify_exporter.exporter import rules
from creatify_exporter.ledger.ledger import Ledger
from creatify_exporter.ledger.sqlite import SqliteStore
from creatify_exporter.lists import TEXT_GENERATOR
from creatify_exporter.simulator import (
    LIST_PATH,
    Account,
    Clock,
    Listing,
    Simulator,
    Traffic,
    delayed,
    inserted,
    replied,
)
from processes import COMMAND, free_port, parsed, running_exporter, total, until, without_rights, write_config

NOW = 1_760_000_000.0
CANARY = "canary-key-3b1f"


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    account = Account(1, NOW - 600, Traffic(rate=1 / 10, text_bytes=200))
    with Simulator(account, Clock(real=lambda: NOW), listing=Listing(newest=20), api_key=CANARY) as simulated:
        yield simulated


@pytest.fixture
def config(tmp_path: Path, simulator: Simulator) -> Path:
    return write_config(tmp_path / "config.yml", simulator)


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CREATIFY_")}
    return {**kept, **extra}


def run(*arguments: object, stdin: str | bytes = b"", **extra: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        check=False,
        timeout=60,
        env=environment(**extra),
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def shell(line: str) -> "subprocess.CompletedProcess[str]":
    """Run a line as a user's shell would; `$X` is the command."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],  # noqa: S607  the shell of the user
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(X=COMMAND),
    )


def rewritten(config: Path, **sections: Any) -> Path:
    document = yaml.safe_load(config.read_text()) | sections
    config.write_text(yaml.safe_dump(document))
    return config


# --- Flags ---------------------------------------------------------------------------------------------------------


def test_the_version_is_one_line() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"creatify-exporter {__version__}\n", "")
    as_module = subprocess.run(
        [sys.executable, "-m", "creatify_exporter", "--version"], capture_output=True, text=True, check=False
    )
    assert as_module.stdout == done.stdout


def test_help_is_on_standard_output_and_names_every_command() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("serve", "check", "dump", "report", "classify", "simulate", "--config.file", "--web.external-url"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("serve", ["info", "logfmt", "0s", ":10081", "/metrics", "/", "0"]),
        ("init", ["info", "logfmt", "default"]),
        ("report", ["info", "logfmt", "this month"]),
        ("simulate", ["info", "logfmt", "127.0.0.1:10082", "1", "1.0", "10000", "demo-id", "demo-key"]),
    ],
)
def test_help_shows_defaults_in_one_format(
    capsys: pytest.CaptureFixture[str], command: str, defaults: list[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert re.findall(r"\(default: (.*?)\)", text) == defaults
    assert text.count("default") == len(defaults) + text.count("(default: default)") + text.count("(the default)")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense"], "--nonsense"),
        (["--config"], "--config"),
        (["--config.fil=x"], "--config.fil"),
        (["--web.listen=:0"], "--web.listen"),
        (["--web.telemetry-pathh", "40"], "unknown flag --web.telemetry-pathh; did you mean --web.telemetry-path?"),
        (["--web.nothing-like-it=40"], "unknown flag --web.nothing-like-it\n"),
        (["-config.file", "x"], "unknown flag -config.file; did you mean --config.file?"),
        (["--config.file", "x", "--mnth", "2026-10", "report"], "unknown flag --mnth"),
        (["--month", "2026-10", "report"], "unknown flag --month; put it after the command report"),
        (["ledger", "copy", "a", "b", "--force", "yes"], "unknown flag --force"),
        (["ledger", "backup", ""], "FILE: '' is empty; specify a file"),
        (["ledger", "forget", ""], "MODEL: '' is empty; write a name"),
        (["ledger", "forget", "", "--workspace", "a"], "MODEL: '' is empty"),
        (["ledger", "forget", "flux-2", "--workspace="], "--workspace: '' is empty"),
        (["ledger", "forget", "flux-2", "--api", ""], "--api: '' is empty"),
        (["--config.file=~somebody/x"], "--config.file"),
        (["nonsense"], "unknown command 'nonsense'; known commands: serve, init, check,"),
        (["servee"], "unknown command 'servee'; did you mean serve?\n"),
        (["--log.level", "info", "chek"], "unknown command 'chek'; did you mean check?\n"),
        (["ledger", "shw"], "unknown command 'shw'; did you mean show?\n"),
        (["check", "--csv"], "--csv"),
        (["check", "--web.listen-address", ":0"], "--web.listen-address"),
        (["report", "--live"], "--live"),
        (["--log.level", "loud"], "--log.level"),
        (["--log.format", "xml"], "--log.format"),
        (["--web.telemetry-path", "metrics"], "--web.telemetry-path"),
        (["--web.telemetry-path", "/"], "--web.telemetry-path"),
        (["--web.telemetry-path", "/probe"], "--web.telemetry-path"),
        (["--web.telemetry-path", "/sd/"], "--web.telemetry-path"),
        (["--web.telemetry-path", "/-/ready"], "--web.telemetry-path"),
        (["--web.telemetry-path", "//"], "--web.telemetry-path"),
        (["--web.external-url", "exporter.example"], "--web.external-url"),
        (["--web.external-url", "http://["], "--web.external-url"),
        (["--web.external-url", "http://x:99999"], "--web.external-url"),
        (["--web.external-url", "http://user:pw@x/"], "--web.external-url"),
        (["init", "--credits", "2,000"], "--credits: '2,000' is not a number; write thousands without commas"),
        (["simulate", "--speed", "fast"], "--speed"),
        (["simulate", "--tasks", "many"], "--tasks"),
        (["simulate", "--speed", "0"], "--speed"),
        (["simulate", "--speed", "nan"], "--speed"),
        (["simulate", "--listen", "127.0.0.1:http"], "--listen"),
        (["simulate", "--listen", "10082"], "--listen"),
        (["simulate", "--listen", ":99999"], "--listen"),
    ],
)
def test_a_wrong_flag_or_command_is_named_on_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    told, where_help_is = printed.err.splitlines(keepends=True)
    assert said in told
    assert told.startswith("creatify-exporter")
    assert ": error: " in told
    assert " _" not in told, "it names a private function"
    assert re.fullmatch(r"Try 'creatify-exporter( [a-z]+)* --help'\.\n", where_help_is)


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--config.file", "{config}", "--ledger.url", "memory:"],
        ["--config.file", "{config}", "--ledger.url", "memory:", "check"],
        ["--ledger.url", "memory:", "check", "--config.file", "{config}"],
        ["--config.file", "/nowhere", "--ledger.url=memory:", "check", "--config.file={config}"],
    ],
)
def test_flags_are_accepted_before_and_after_the_command(here: Here, config: Path, arguments: list[str]) -> None:
    rewritten(config, ledger={"history": "count"})  # which causes a warning with a ledger in memory
    done = here(*(each.format(config=config) for each in arguments))
    assert (done.returncode, done.stderr) == (0, "")
    assert "warning: ledger.url memory: with history: count" in done.stdout


def test_flags_are_understood_as_prometheus_spells_them(here: Here, config: Path) -> None:
    given = ("--config.file", config, "--web.config.file=", "--log.level=WARN")
    assert here("check", *given).returncode == 0
    quiet = run("dump", "--config.file=", "--ledger.url=memory:", "--log.level=warn", CREATIFY_API_ID="x")
    assert "CREATIFY_API_KEY" in quiet.stderr, "no file is read"


def test_check_of_only_a_web_configuration_needs_no_keys(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "web.yml").write_text(
        "basic_auth_users: {alice: $2b$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG}"
    )
    done = here("check", "--web.config.file", tmp_path / "web.yml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "the web configuration is valid: TLS off, users: 1"
    assert "the configuration is valid" not in done.stdout
    monkeypatch.setenv("CREATIFY_API_ID", "canary-id")
    (line,) = mistaken(here("check", "--web.config.file", tmp_path / "web.yml"))
    assert "CREATIFY_API_KEY" in line


def test_the_exporter_listens_on_every_address(config: Path) -> None:
    port = free_port()
    with running_exporter(
        "serve",
        "--config.file",
        str(config),
        "--web.listen-address",
        "127.0.0.1:0",
        "--web.listen-address",
        f"[::1]:{port}",
    ) as exporter:
        assert exporter.get("/-/healthy").status_code == 200
        assert requests.get(f"http://[::1]:{port}/-/healthy", timeout=10).status_code == 200
    for line in [line for line in exporter.log if "msg=listening" in line]:
        assert f"config={config} ledger=sqlite:///" in line


# --- Errors --------------------------------------------------------------------------------------------------------


def mistaken(done: "subprocess.CompletedProcess[str]", lines: int = 1) -> list[str]:
    """Return the lines of an error, which are the only output."""
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert len(said) == lines
    assert all(line.startswith("creatify-exporter: ") for line in said)
    return said


def test_check_reports_all_errors_at_once(here: Here, config: Path) -> None:
    rewritten(config, fetch={"timeout": 30, "max_body": "4 gigs"}, ledgre={})
    done = here("check", "--config.file", config)
    said = "\n".join(mistaken(done, 3))
    assert done.stdout == ""
    for key in ("fetch.timeout", "fetch.max_body", "ledgre"):
        assert key in said


def test_check_warns_and_accepts(here: Here, config: Path) -> None:
    document = yaml.safe_load(config.read_text())
    (first,) = document["workspaces"]
    rewritten(config, workspaces=[first, {**first, "name": "twin"}], ledger={"url": "memory:", "history": "count"})
    done = here("check", "--config.file", config)
    assert (done.returncode, done.stderr) == (0, "")
    *warnings, verdict, ledger = done.stdout.splitlines()
    assert verdict == "the configuration is valid: default, twin"
    assert ledger == "ledger: memory:"
    assert len(warnings) == 2
    assert all(line.startswith("warning: ") for line in warnings)
    assert CANARY not in done.stdout


@pytest.mark.parametrize("locked", ["folder", "folder/ledger.db", "folder/ledger.db.lock"])
def test_check_reports_a_ledger_that_its_user_may_not_write_and_changes_nothing(
    here: Here, simulator: Simulator, locked: str
) -> None:
    # Not in pytest's own folder, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="ledger-") as home:
        Path(home).chmod(0o755)
        # Missing folders are created at the start.
        place = "folder/more/ledger.db" if locked == "folder" else "folder/ledger.db"
        config = write_config(Path(home, "config.yml"), simulator, ledger={"url": f"sqlite:///{home}/{place}"})
        Path(home, "folder").mkdir()
        if locked != "folder":
            SqliteStore(Path(home, place)).close()
        for path in (Path(home, "folder"), *Path(home, "folder").iterdir()):
            path.chmod(0o777)
        Path(home, locked).chmod(0o555)
        before = {path: path.stat().st_mtime_ns for path in Path(home).rglob("*")}
        with without_rights():
            (line,) = mistaken(here("check", "--config.file", config))
        assert f"may not write to {home}/{locked}; grant write permission, or name another ledger" in line
        assert {path: path.stat().st_mtime_ns for path in Path(home).rglob("*")} == before
        if locked == "folder/ledger.db":
            Path(home, locked).chmod(0)
            with without_rights():
                (line,) = mistaken(here("check", "--config.file", config))
            assert "Permission denied" in line
            assert "let this user open it, or name another ledger" in line
        Path(home, locked).chmod(0o777)
        with without_rights():
            assert here("check", "--config.file", config).returncode == 0


def test_check_reports_errors_of_the_ledger_and_of_the_web_configuration_at_once(
    here: Here, config: Path, tmp_path: Path
) -> None:
    foreign, web = tmp_path / "notes.txt", tmp_path / "web.yml"
    foreign.write_text("not a ledger\n" * 50)
    web.write_text("tls: on")
    given = ("--config.file", config, "--ledger.url", f"sqlite:///{foreign}", "--web.config.file", web)
    ledger, rest = mistaken(here("check", *given), 2)
    assert "notes.txt is not a ledger of this exporter; it was not touched" in ledger
    assert "web.yml" in rest


COUNTED = ("submitted", "finished", "failed", "credits_used")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://me:canary-pw@db.example/ledger", "postgresql://<hidden>@db.example/ledger"),
        ("sqlite:///{folder}/ledger.db", "sqlite:///{folder}/ledger.db"),
        (
            "sqlite:///{folder}/no/dir/x.db",
            "sqlite:///{folder}/no/dir/x.db (its folder {folder}/no/dir is created at the start)",
        ),
        ("sqlite:///nodir/x.db", "sqlite:///nodir/x.db (its folder {folder}/nodir is created at the start)"),
    ],
)
def test_check_prints_which_ledger_is_used(
    here: Here, config: Path, monkeypatch: pytest.MonkeyPatch, url: str, told: str
) -> None:
    monkeypatch.chdir(config.parent)
    rewritten(config, ledger={"url": url.format(folder=config.parent)})
    said = here("check", "--config.file", config).stdout.splitlines()
    assert said[-1] == "ledger: " + told.format(folder=config.parent)
    warned = [line for line in said if "is relative to the working directory" in line]
    assert len(warned) == (url == "sqlite:///nodir/x.db")
    assert not (config.parent / "nodir").exists()


@pytest.mark.parametrize("level", ["info", "error"])
def test_check_live_prints_for_each_list_whether_it_is_reachable_and_what_would_count(
    here: Here, config: Path, simulator: Simulator, level: str
) -> None:
    document = yaml.safe_load(config.read_text())
    (first,) = document["workspaces"]
    whole = {**first, "lists": ["text_generator", "product_to_videos"]}
    (config.parent / "old-key").write_text("expired-0123456789")
    other = {**first, "name": "other", "api_key_file": "old-key", "remaining_credits": False}
    rewritten(config, workspaces=[whole, other])
    tasks = [
        {"id": "1", "status": "failed", "failed_reason": "429", "credits_used": 1234.5},
        {"id": "2", "status": "running"},
        {"id": "3", "status": "done", "credits_used": 2},
    ]
    simulator.faults.always(replied(200, json.dumps(tasks).encode()), path="/api/product_to_videos/")
    listed = replied(200, json.dumps(tasks).encode())
    simulator.faults.always(lambda answer: listed(answer) if answer.status == 200 else answer)
    done = here("check", "--live", "--config.file", config, "--log.level", level)
    (line,) = mistaken(done)
    assert line.startswith("creatify-exporter: workspace other, list text_generator: auth: ")
    assert "check the API id and key" in line
    *_, header, text, video, balance, refused, last = done.stdout.splitlines()
    assert header.split() == ["workspace", "list", "result", "seconds", "tasks", *COUNTED]
    cells = [re.sub(r" \d+\.\d\d ", " ", each).split() for each in (text, video, balance, refused)]
    assert cells == [
        ["default", "text_generator", "reachable", "3", "3", "2", "1", "1,236.5"],
        ["default", "product_to_videos", "reachable", "3", "3", "2", "1", "-"],
        ["default", "remaining_credits", "reachable", *"-----"],
        ["other", "text_generator", "auth", *"-----"],
    ]
    assert last == "This is what a new ledger would count (history: count). None was written."
    assert not (config.parent / "ledger.db").exists()
    rewritten(config, workspaces=[{**first, "lists": ["product_to_videos"]}])
    assert here("check", "--live", "--config.file", config).returncode == 0


def test_check_creates_no_ledger_and_sends_no_requests(here: Here, config: Path, simulator: Simulator) -> None:
    assert here("check", "--config.file", config).returncode == 0
    assert not (config.parent / "ledger.db").exists()
    assert not simulator.requests


@pytest.mark.parametrize("command", [[], ["serve"], ["check"], ["dump"], ["classify", "--live"]])
def test_without_a_key_every_command_that_needs_one_says_how_to_set_it(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (line,) = mistaken(here(*command))
    assert "CREATIFY_API_ID" in line
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_cannot_be_listened_on_is_one_line(here: Here, config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for address in ("10081", "no such host:1", f"127.0.0.1:{taken.getsockname()[1]}"):
            commands: list[list[object]] = [["--config.file", config, "--web.listen-address", address]]
            commands += [["simulate", "--listen", address]] if ":" in address else []
            for command in commands:
                (line,) = mistaken(here(*command))
                assert address in line
    assert not (config.parent / "ledger.db").exists()


def test_an_unusable_ledger_is_one_line_and_is_not_changed(here: Here, config: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "notes.txt"
    foreign.write_text("not a ledger\n" * 50)
    with_foreign = ("--config.file", config, "--ledger.url", f"sqlite:///{foreign}")
    for done in (
        here("check", *with_foreign),
        here("dump", *with_foreign),
        here("report", *with_foreign),
        run("serve", *with_foreign, "--web.listen-address", "127.0.0.1:0"),
    ):
        (line,) = mistaken(done)
        assert "notes.txt" in line
    assert foreign.read_text() == "not a ledger\n" * 50
    for command in ("check", "dump"):
        mistaken(here(command, "--config.file", config, "--ledger.url", f"sqlite:///{foreign}/ledger.db"))
    mistaken(here("dump", "--config.file", config, "--ledger.url", "redis://nowhere"))
    mistaken(here("report", "--config.file", config, "--ledger.url", "memory:"))


# --- A first configuration -----------------------------------------------------------------------------------------


def test_init_writes_a_configuration_that_check_accepts(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "my first.yml"
    done = here("init", "--config.file", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"creatify-exporter check --config.file '{path}'" in done.stdout
    monkeypatch.setenv("CREATIFY_API_ID", CANARY)
    monkeypatch.setenv("CREATIFY_API_KEY", CANARY)
    verdict, ledger = here("check", "--config.file", path).stdout.splitlines()
    assert verdict == "the configuration is valid: default"
    assert re.fullmatch("ledger: sqlite:////.*/ledger.db.*", ledger)
    assert "  export CREATIFY_API_ID=... CREATIFY_API_KEY=...\n" in done.stdout
    assert f"  creatify-exporter check --live --config.file '{path}'\n" in done.stdout
    done = here("init", "--config.file", tmp_path / "second.yml", "--api-id-file", path)
    assert "  export CREATIFY_API_KEY=...\n" in done.stdout


def test_without_a_name_init_writes_the_file_that_the_documents_name(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Wrote creatify-exporter.yml. Next:" in here("init").stdout
    written = (tmp_path / "creatify-exporter.yml").read_text()
    # The examples in the comments must be valid too.
    (tmp_path / "creatify-exporter.yml").write_text(re.sub(r"# (?=(lists|plan|ledger|labels): )", "", written))
    keys = {"CREATIFY_API_ID": CANARY, "CREATIFY_API_KEY": CANARY}
    loaded = load(tmp_path / "creatify-exporter.yml", keys)
    [workspace] = loaded.workspaces
    assert {"text_generator", "link_to_videos"} < set(workspace.task_lists())
    assert workspace.plan
    assert loaded.ledger.url.path
    assert loaded.labels.models


def test_init_writes_the_answers_into_the_file(here: Here, tmp_path: Path) -> None:
    path, key = tmp_path / "c.yml", tmp_path / 'a "k\x85y"'
    key.write_text(CANARY)
    keys = ("--api-id-file", key, "--api-key-file", key)
    plan = ("--credits", 2000, "--renews-on-day", 15, "--price-per-credit", 0.00001, "--currency", "EUR")
    told = ("--workspace", "Émil 🎬: ${X} & Co", *keys, *plan, "--ledger.url", "memory:")
    done = here("init", "--config.file", path, *told)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  export " not in done.stdout
    assert "    credits: 2000\n" in path.read_text()
    loaded = load(path, {})
    [workspace] = loaded.workspaces
    assert (workspace.name, workspace.api_id.read(), loaded.ledger.url) == ("Émil 🎬: ${X} & Co", CANARY, "memory:")
    assert workspace.plan == Plan(credits=2000, renews_on_day=15, price_per_credit=0.00001, currency="EUR")


def test_init_warns_about_key_files_that_do_not_exist_yet(here: Here, tmp_path: Path) -> None:
    path, key = tmp_path / "c.yml", tmp_path / "key"
    done = here("init", "--config.file", path, "--api-id-file", key, "--api-key-file", key)
    assert (done.returncode, path.exists()) == (0, True)
    assert done.stderr == f"creatify-exporter: warning: {key} does not exist yet; put the key into it\n"


def test_an_unused_configuration_in_the_working_directory_is_suggested(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here("init")
    for command in ([], ["check"], ["dump"], ["classify", "--live"]):
        (line,) = mistaken(here(*command))
        assert line.endswith("; did you mean --config.file creatify-exporter.yml?")


def test_init_overwrites_nothing_and_writes_nothing_invalid(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    (line,) = mistaken(here("init", "--config.file", path, "--price-per-credit", 1))
    assert "plan.price_per_credit: has no currency; " in line
    wrong = ("--workspace", " ", "--credits", -1, "--renews-on-day", 32, "--currency", "euro")
    said = mistaken(here("init", "--config.file", path, *wrong), 4)
    assert all(name in line for name, line in zip(("--workspace", "credits", "renews", "currency"), said, strict=True))
    mistaken(here("init", "--config.file", path, "--ledger.url", "redis://x"))
    said = mistaken(here("init", "--config.file", path, "--api-id-file", CANARY * 2, "--api-key-file", CANARY * 2), 2)
    for line, name in zip(said, ("api-id", "api-key"), strict=True):
        assert f"--{name}-file: there is no such file; " in line
        assert f"set CREATIFY_{name.upper().replace('-', '_')}" in line
        assert CANARY not in line
    assert not path.exists()
    path.write_text("mine")
    (line,) = mistaken(here("init", "--config.file", path))
    assert f"{path} already exists; " in line
    assert path.read_text() == "mine"
    (line,) = mistaken(here("init", "--config.file", tmp_path / "none/c.yml"))
    assert "No such file or directory" in line


# --- Commands ------------------------------------------------------------------------------------------------------


def test_report_prints_the_month_of_the_configured_ledger(here: Here, config: Path, tmp_path: Path) -> None:
    moment = datetime(2026, 10, 7, 12, tzinfo=UTC)
    counting = rules(Config(ledger=LedgerSettings(history="count")))
    with (
        closing(Ledger(SqliteStore(tmp_path / "ledger.db"), counting)) as ledger,
        closing(ledger.begin("default", TEXT_GENERATOR.api)) as r,
    ):
        r.add([Task(id="a", model_name="pro", status="done", credits_used=2.5, created_at=moment)])
        ledger.commit(r, moment.timestamp())
    plan = {"price_per_credit": 0.15, "currency": "USD"}
    config.write_text(config.read_text().replace("workspaces:\n- ", f"workspaces:\n- plan: {json.dumps(plan)}\n  "))
    done = here("report", "--config.file", config, "--month", "2026-10", "--csv")
    assert done.returncode == 0
    assert done.stderr.startswith("default (text_generator): counting began on 2026-10-07")
    assert done.stdout.splitlines()[1:] == ["2026-10-07,default,text_generator,pro,1,1,0,2.5,0,2.5,0,0.375,USD"]
    without_keys = here("report", "--ledger.url", f"sqlite:///{tmp_path}/ledger.db", "--month", "2026-10")
    assert without_keys.returncode == 0
    assert "2026-10-07  default    text_generator  pro" in without_keys.stdout
    for month in ("2026-13", "9999-12", "october"):
        (line,) = mistaken(here("report", "--config.file", config, "--month", month))
        assert f"--month {month}" in line


def test_commands_on_the_ledger_need_no_keys(here: Here, config: Path, tmp_path: Path) -> None:
    here("dump", "--config.file", config)
    directory = tmp_path / "keys"
    (directory / "another").mkdir(parents=True)
    access = {
        "api_id_file": "${CREDENTIALS_DIRECTORY}/api-id",
        "api_key": "${CREDENTIALS}",
        "proxy_url": "http://user:${PASSWORD}@proxy.example",
        "tls_config": {"cert_file": "missing.pem", "key_file": "missing.key"},
    }
    plan = {"price_per_credit": 1, "currency": "USD"}
    rewritten(
        config,
        workspaces=[{"name": "default", "plan": plan, **access}],
        workspaces_from=[{"directory": str(directory)}],
    )
    assert "  USD\n" in here("report", "--config.file", config, "--month", "2025-10").stdout
    for command in (["show"], ["backup", tmp_path / "backup.db"], ["forget", "gemini-2.5-pro"]):
        done = here("ledger", *command, "--config.file", config)
        assert "CREDENTIALS" not in done.stderr
        assert done.stdout or "may still change" in done.stderr, done.stderr
    (line,) = mistaken(here("ledger", "forget", "--workspace", "another", "--config.file", config))
    assert "is configured" in line
    said = "\n".join(mistaken(here("check", "--config.file", config), 7))
    for missing in ("CREDENTIALS_DIRECTORY", "CREDENTIALS ", "PASSWORD", "cert_file", "key_file", "api-id", "api-key"):
        assert missing in said


def test_forget_requires_a_model_or_a_workspace_that_is_no_longer_configured(
    here: Here, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here("dump", "--config.file", config)
    (line,) = mistaken(here("ledger", "forget", "--api", TEXT_GENERATOR.api, "--config.file", config))
    assert "specify a model, or a workspace" in line
    (line,) = mistaken(here("ledger", "forget", "--workspace", "default", "--config.file", config))
    assert "is configured" in line
    ledger = f"sqlite:///{config.parent}/ledger.db"
    with monkeypatch.context() as environment:
        environment.setenv("CREATIFY_API_ID", "an-id")
        environment.setenv("CREATIFY_API_KEY_FILE", "/nowhere")
        (line,) = mistaken(here("ledger", "forget", "--workspace", "default", "--ledger.url", ledger))
        assert "is configured" in line
    done = here("ledger", "forget", "--workspace", "default", "--ledger.url", ledger)
    assert (done.returncode, done.stdout) == (0, f"forgot default ({TEXT_GENERATOR.api}) and its daily totals\n")


def test_classify_reads_texts_from_standard_input(tmp_path: Path) -> None:
    texts = "429 Too Many Requests\n429 Too Many Requests\n\nthe dog ate it\n  deadline\texceeded \n"
    done = run("classify", stdin=texts, HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "count\treason\ttext",
        "2\trate_limited\t429 Too Many Requests",
        "1\tunspecified\t",
        "1\tother\tthe dog ate it",
        "1\ttimeout\tdeadline exceeded",
    ]
    assert list(tmp_path.iterdir()) == []


def test_classify_uses_the_rules_of_the_configuration(here: Here, config: Path) -> None:
    rewritten(config, failure_reasons=[{"reason": "pets", "match": "dog|cat"}])
    assert (
        here("classify", "--config.file", config, stdin="the dog ate it\n429\n").stdout
        == "count\treason\ttext\n1\tpets\tthe dog ate it\n1\tother\t429\n"
    )


def test_classify_reads_any_bytes() -> None:
    done = run("classify", stdin=b"caf\xe9 timed out\n\xff\xfe\x00\n", PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("count\treason\ttext\n1\ttimeout\tcaf")


def test_classify_shows_the_failures_in_the_current_lists(here: Here, config: Path, simulator: Simulator) -> None:
    tasks = [
        {"id": "1", "status": "failed", "failed_reason": "The model is overloaded.\nTry again."},
        {"id": "2", "status": "failed", "failed_reason": None},
        {"id": "3", "status": "done", "failed_reason": "429"},
    ]
    simulator.faults.next(replied(200, json.dumps(tasks).encode()))
    done = here("classify", "--live", "--config.file", config)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "count\tworkspace\tlist\treason\ttext",
        "1\tdefault\ttext_generator\tmodel_unavailable\tThe model is overloaded. Try again.",
        "1\tdefault\ttext_generator\tunspecified\t",
    ]
    assert not (config.parent / "ledger.db").exists()


def test_classify_knows_the_reasons_of_each_list_as_the_metrics_do(
    here: Here, config: Path, simulator: Simulator
) -> None:
    config.write_text(config.read_text().replace("workspaces:\n- ", "workspaces:\n- lists: [link_to_videos]\n  "))
    simulator.faults.next(replied(200, b'[{"id": "1", "status": "rejected"}]'), path=None)
    done = here("classify", "--live", "--config.file", config)
    assert done.stdout.splitlines()[1:] == ["1\tdefault\tlink_to_videos\trejected\trejected"]


def test_classify_escapes_texts_for_the_terminal_and_masks_keys(config: Path, simulator: Simulator) -> None:
    text = f'"\\ud83d {CANARY} \\u001b[2J timed out"'
    simulator.faults.always(inserted(status=b'"failed"', failed_reason=text.encode()))
    done = run("classify", "--live", "--config.file", config)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = (line for line in done.stdout.splitlines() if "ud83d" in line)
    assert line.endswith("\ttimeout\t\\ud83d <hidden> \\x1b[2J timed out")


def test_classify_says_why_a_list_cannot_be_fetched_and_masks_keys(
    here: Here, config: Path, simulator: Simulator
) -> None:
    simulator.faults.always(replied(200, f"your key is {CANARY}".encode()))
    (line,) = mistaken(here("classify", "--live", "--config.file", config))
    assert "workspace default, list text_generator: invalid_body: " in line
    assert "expected a list of tasks" in line
    assert CANARY not in line


def test_classify_shows_the_other_lists_if_one_workspace_is_refused(
    here: Here, config: Path, simulator: Simulator
) -> None:
    (first,) = yaml.safe_load(config.read_text())["workspaces"]
    refused = {**first, "name": "refused", "lists": ["text_generator", "lipsyncs"]}
    rewritten(config, workspaces=[refused, first])
    task = {"id": "1", "status": "failed", "failed_reason": "429"}
    simulator.faults.next(replied(403, b""), replied(200, json.dumps([task]).encode()))
    simulator.faults.next(replied(403, b""), path="/api/lipsyncs/")
    done = here("classify", "--live", "--config.file", config)
    assert done.stdout.splitlines()[1:] == ["1\tdefault\ttext_generator\trate_limited\t429"]
    for api, line in zip(refused["lists"], mistaken(done, 2), strict=True):
        assert line.startswith(f"creatify-exporter: workspace refused, list {api}: auth: ")


def test_dump_writes_utf_8_whatever_the_encoding_of_the_terminal(config: Path, simulator: Simulator) -> None:
    simulator.faults.always(inserted(model_name='"modèle-λ"'.encode()))
    done = run("dump", "--config.file", config, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0
    assert total(parsed(done.stdout), "creatify_tasks", model="modèle-λ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["dump", "report"])
def test_a_reader_that_closes_the_pipe_is_not_an_error(config: Path, command: str) -> None:
    run("dump", "--config.file", config)
    done = shell(f"printf 'a\\nb\\n' | $X {command} --config.file {config} | true")
    assert done.stderr == ""
    done = shell(f"printf 'a\\nb\\n' | $X {command} --config.file {config} | head -n 1")
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("command", ["dump", "report"])
def test_output_that_cannot_be_written_is_one_line(config: Path, command: str) -> None:
    run("dump", "--config.file", config)
    done = shell(f"$X {command} --config.file {config} > /dev/full")
    assert done.returncode == 1
    assert re.fullmatch("creatify-exporter: .*No space left on device\n", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_partly_written_output_is_not_a_success(config: Path, tmp_path: Path, unbuffered: str) -> None:
    limits = f"trap '' XFSZ; ulimit -f 2; export PYTHONUNBUFFERED={unbuffered}"
    done = shell(f"{limits}; $X dump --config.file {config} --ledger.url memory: > {tmp_path}/out")
    assert (tmp_path / "out").stat().st_size in (1024, 2048)
    assert done.returncode == 1
    assert re.search("creatify-exporter: .*File too large\n", done.stderr)


@pytest.mark.slow
def test_dump_waits_for_a_slow_api_no_longer_than_the_timeout_of_a_fetch(config: Path, simulator: Simulator) -> None:
    rewritten(config, fetch={"timeout": "500ms"})
    simulator.faults.always("silence", path=None)
    began = time.monotonic()
    done = run("dump", "--config.file", config)
    assert time.monotonic() - began < 10
    assert done.returncode == 1
    assert total(parsed(done.stdout), "creatify_up") == 0
    assert total(parsed(done.stdout), "creatify_fetch_failures_total", cause="timeout") == 2
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_simulated_api_is_a_process_with_its_own_keys(stack: ExitStack) -> None:
    port = free_port()
    command = [COMMAND, "simulate", "--listen", f"127.0.0.1:{port}", "--tasks", "50", "--api-id", "me"]
    process = stack.enter_context(
        subprocess.Popen([*command, "--api-key", "mine"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    )
    # If it does not end by itself, it must not disturb other tests.
    stack.callback(process.kill)
    assert process.stdout
    assert process.stdout.readline() == f"Simulated Creatify API on http://127.0.0.1:{port}\n"
    url = f"http://127.0.0.1:{port}{LIST_PATH}"
    assert len(requests.get(url, headers={"X-API-ID": "me", "X-API-KEY": "mine"}, timeout=10).json()) == 50
    assert requests.get(url, headers={"X-API-ID": "me", "X-API-KEY": "yours"}, timeout=10).status_code == 401
    process.send_signal(signal.SIGINT)
    _timetable, errors = process.communicate(timeout=10)
    assert (errors, process.returncode) == ("", 0)


# --- Signals -------------------------------------------------------------------------------------------------------


def variables_of_the_dump_unit(page: str, keys: Path, credentials: Path) -> dict[str, str]:
    """Return the variables that systemd sets for the documented unit, with copies of the keys that it loads."""
    unit = page.partition("creatify-dump.service\n")[2].partition("```")[0]
    loaded = re.findall(r"^LoadCredential=(.+):/etc/creatify-exporter/(.+)$", unit, re.MULTILINE)
    credentials.mkdir()
    for name, file in loaded:
        (credentials / name).write_text((keys / file).read_text())
    path = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return {**path, "CREDENTIALS_DIRECTORY": str(credentials)} if loaded else path


def dump_script(page: str, folder: Path, config: Path, command: str) -> str:
    """Return the documented script, with this command and with the paths of a test."""
    [script] = [
        str(block) for block in re.findall(r"^```sh\n(#!.*?)^```", page, re.DOTALL | re.MULTILINE) if "dump" in block
    ]
    for documented, here in (
        ("/var/lib/prometheus/node-exporter", str(folder)),
        ("/etc/creatify-exporter.yml", str(config)),
        ("/var/lib/creatify-dump", str(folder)),
        ("/opt/creatify-exporter/bin/creatify-exporter", command),
    ):
        assert documented in script
        script = script.replace(documented, here)
    return script


def test_the_script_of_the_textfile_collector_keeps_the_file_if_the_disk_is_full(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/deployment.md").read_text()
    command, folder = tmp_path / "dump", tmp_path / "collector"
    command.write_text("#!/bin/sh\nprintf %.3000d 1\n")
    command.chmod(0o755)
    folder.mkdir()
    (folder / "creatify.prom").write_text("whole\n")
    script = dump_script(page, folder, tmp_path, str(command))

    def code(before: str = "") -> int:
        done = subprocess.run(["/bin/sh", "-c", before + script], capture_output=True, check=False)
        assert [each.name for each in folder.iterdir()] == ["creatify.prom"]
        return done.returncode

    assert code("trap '' XFSZ; ulimit -f 2\n") == 1, "a file may have two blocks, of 512 bytes or 1,024"
    assert (folder / "creatify.prom").read_text() == "whole\n"
    assert code() == 0
    assert len((folder / "creatify.prom").read_text()) == 3001


@pytest.mark.slow
def test_the_script_of_the_textfile_collector_replaces_the_file_unless_there_is_no_output(
    config: Path, simulator: Simulator, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs/deployment.md").read_text()
    script = dump_script(page, tmp_path, config, str(COMMAND))
    for key in ("api-id", "api-key"):
        documented = f"{key.replace('-', '_')}_file: ${{CREDENTIALS_DIRECTORY}}/{key}"
        assert documented in page
        config.write_text(config.read_text().replace(f"{key.replace('-', '_')}_file: {key}", documented))
    passed = variables_of_the_dump_unit(page, tmp_path, tmp_path / "credentials")

    def dumped() -> tuple[int, str]:
        code = subprocess.run(["/bin/sh", "-c", script], env=passed, stderr=subprocess.DEVNULL, check=False).returncode
        assert not list(tmp_path.glob(".creatify.*"))
        return code, (tmp_path / "creatify.prom").read_text()

    code, metrics = dumped()
    assert code == 0
    counted = total(parsed(metrics), "creatify_tasks_submitted_total")
    assert counted
    simulator.faults.always(replied(500), path=None)
    code, failed = dumped()
    assert (code, total(parsed(failed), "creatify_up")) == (1, 0)
    assert total(parsed(failed), "creatify_tasks_submitted_total") == counted
    config.write_text("nonsense: true\n")
    assert dumped() == (1, failed)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["dump", "classify"])
def test_ctrl_c_ends_a_command_with_130_and_no_output(config: Path, simulator: Simulator, command: str) -> None:
    simulator.faults.always(delayed(30), path=None)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background process, and by its children
    live = ["--live"] if command == "classify" else []
    process = subprocess.Popen(
        [COMMAND, command, *live, "--config.file", config], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: simulator.requests)
    time.sleep(0.5)  # until it waits: a signal before that is handled only after the answer
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_stops_cleanly_even_if_a_fetch_hangs(
    config: Path, simulator: Simulator, number: signal.Signals
) -> None:
    simulator.faults.always("silence", path=None)
    with running_exporter("--config.file", str(config), "--web.listen-address", "127.0.0.1:0") as exporter:
        exporter.get("/metrics", **{"X-Prometheus-Scrape-Timeout-Seconds": "0.2"})
        exporter.process.send_signal(number)
        assert exporter.process.wait(10) == 0
        exporter.kill()
        log = "".join(exporter.log)
    assert "msg=stopped" in log
    assert "Traceback" not in log
    assert CANARY not in log
