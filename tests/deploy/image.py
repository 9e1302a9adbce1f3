"""The image is built, run, scraped, stopped and started again: `make test-deploy`.

It takes minutes, root and Debian's container tools, hence its name, by which `make test` does not find it. The base is
a bare Debian, so that nothing comes from an image registry.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import requests
import yaml

from conftest import tool
from creatify_exporter.simulator import Account, Clock, Listing, Simulator, Traffic, delayed
from processes import free_port, parsed, total, until, write_config

ROOT: Final = Path(__file__).parents[2]
SUITE, PYTHON = "bookworm", "3.11"  # a Debian, and its Python
PACKAGES: Final = "python3,python3-venv,python3-pip,ca-certificates"
IMAGE: Final = "localhost/creatify-exporter"
LARGEST: Final = 40 * 2**20  # bytes that the exporter may add to its base
DAY: Final = 24 * 3600


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


class Engine:
    """Debian's container tools, with a store of their own and without a daemon."""

    def __init__(self, folder: Path) -> None:
        self._store = ["--root", f"{folder}/store", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]
        self._buildah, self._podman = tool("buildah", "buildah"), tool("podman", "podman")
        tool("runc", "runc")

    def build(self, *arguments: str) -> None:
        run(self._buildah, *self._store, "build", "--isolation", "chroot", *arguments)

    def podman(self, *arguments: str) -> list[str]:
        """Return the command."""
        return [self._podman, *self._store, "--cgroup-manager", "cgroupfs", "--runtime", "runc", *arguments]


@pytest.fixture(scope="module")
def base() -> Path:
    """Return the archive of a bare Debian with Python; it is made once."""
    archive = ROOT / f"build/deploy/{SUITE}.tar"
    if os.geteuid() != 0:
        reason = "a base can be made by root only"
        pytest.fail(reason) if os.environ.get("REQUIRE_TOOLS") else pytest.skip(reason)
    if not archive.exists():
        folder = archive.parent / SUITE
        folder.mkdir(parents=True, exist_ok=True)
        run(tool("debootstrap", "debootstrap"), "--variant=minbase", f"--include={PACKAGES}", SUITE, str(folder))
        leftovers = ["--exclude=./var/cache/apt", "--exclude=./var/lib/apt/lists"]
        run("tar", "--directory", str(folder), *leftovers, "--create", "--file", f"{archive}.part", ".")
        run("rm", "-rf", str(folder))
        Path(f"{archive}.part").replace(archive)
    return archive


@pytest.fixture(scope="module")
def engine(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Build the image, with the wheels of the lock file at hand: a build has no network to speak of."""
    folder = tmp_path_factory.mktemp("image")
    wheels, settings = folder / "wheels", folder / "pip.conf"
    requirements = ["--require-hashes", "--only-binary", ":all:", "--no-deps", "-r", str(ROOT / "requirements.lock")]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--python-version", PYTHON, "--dest", str(wheels)]
    run(*pip, *requirements)
    settings.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    (folder / "base").mkdir()
    (folder / "base/Dockerfile").write_text(f"FROM scratch\nADD {base.name} /\n")
    (folder / f"base/{base.name}").hardlink_to(base)
    engine = Engine(folder)
    engine.build("--tag", "localhost/base", str(folder / "base"))
    mounts = ["--volume", f"{wheels}:/wheels:ro", "--volume", f"{settings}:/etc/pip.conf:ro"]
    arguments = ["--build-arg", "BASE=localhost/base", "--build-arg", "CREATIFY_EXPORTER_REVISION=0123abc"]
    engine.build(*arguments, *mounts, "--tag", IMAGE, str(ROOT))
    yield engine
    for store in ("store", "run"):  # a gigabyte: each layer is a copy of all below it
        shutil.rmtree(folder / store, ignore_errors=True)


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    clock = Clock()
    account = Account(3, clock.now() - DAY, Traffic(rate=1 / 60, text_bytes=300))
    with Simulator(account, clock, listing=Listing(younger_than=DAY / 2)) as simulated:
        yield simulated


def ulimits() -> list[str]:
    """Return the limits that a container may have in a container."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return ["--ulimit", f"nofile={hard}:{hard}", "--ulimit", "nproc=4096:4096"]


class Container:
    """The exporter in a container: a read-only root, no capability, a volume for the ledger."""

    def __init__(self, engine: Engine, name: str, configuration: Path, volume: Path) -> None:
        self._engine, self._name, port = engine, name, free_port()
        confined = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp"]  # noqa: S108
        around = ["--network", "host", *ulimits()]
        mounts = ["--volume", f"{configuration.parent}:/config:ro", "--volume", f"{volume}:/var/lib/creatify-exporter"]
        flags = ["--config.file=/config/config.yml", f"--web.listen-address=127.0.0.1:{port}"]
        self.url = f"http://127.0.0.1:{port}"
        self._log = volume.with_name(f"{name}.log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                engine.podman("run", "--rm", "--name", name, *confined, *around, *mounts, IMAGE, *flags),
                stdout=log,
                stderr=log,
            )
        until(self._ready, 60)
        self._first_process = Path("/proc") / run(*engine.podman("inspect", "--format", "{{.State.Pid}}", name)).strip()

    def _ready(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            return requests.get(f"{self.url}/-/ready", timeout=1).ok
        except requests.ConnectionError:
            return False

    def scrape(self) -> dict[Any, float]:
        return parsed(requests.get(f"{self.url}/metrics", timeout=60).text)

    def signal_stop(self) -> None:
        """Send what the image says that it wants for stopping, to its first process."""
        run(*self._engine.podman("kill", "--signal", "TERM", self._name))

    def ended(self) -> float:
        """Return when its first process has ended, which is before the engine has tidied up after it."""
        until(lambda: not self._first_process.exists(), 30)
        return time.monotonic()


@contextmanager
def running_service(engine: Engine) -> Iterator[str]:
    """Run the exporter as compose.yaml describes it where no key is set, without a network; yield its name."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]["exporter"]
    name = f"creatify-exporter-compose-{os.getpid()}"
    assert service["read_only"]
    options = {
        "--entrypoint": [json.dumps(service["entrypoint"])],
        "--env": [f"{variable}=" for variable in service["environment"]],
        "--volume": [f"{name}-{volume}" for volume in service["volumes"]],
        "--tmpfs": service["tmpfs"],
        "--cap-drop": service["cap_drop"],
        "--security-opt": [option.replace(":true", "") for option in service["security_opt"]],
    }
    given = [part for option, values in options.items() for value in values for part in (option, value)]
    around = ["--detach", "--name", name, "--network", "none", "--read-only", *ulimits()]
    run(*engine.podman("run", *around, *given, IMAGE, *service["command"]))
    try:
        yield name
    finally:
        run(*engine.podman("rm", "--force", "--volumes", name))


def inspected(engine: Engine, image: str) -> Any:
    return json.loads(run(*engine.podman("image", "inspect", image)))[0]


def test_the_image_says_how_it_is_to_be_run(engine: Engine) -> None:
    found = inspected(engine, IMAGE)
    settings = found["Config"]
    assert settings["User"] == "65532:65532"
    assert settings["StopSignal"] in ("SIGTERM", "15")
    assert list(settings["Volumes"]) == ["/var/lib/creatify-exporter"]
    assert list(settings["ExposedPorts"]) == ["10081/tcp"]
    assert settings["Labels"]["org.opencontainers.image.revision"] == "0123abc"
    assert found["Size"] - inspected(engine, "localhost/base")["Size"] < LARGEST


def test_counters_go_on_in_the_next_container_and_no_scrape_is_lost_by_the_stop(
    engine: Engine, simulator: Simulator, tmp_path: Path
) -> None:
    (tmp_path / "config").mkdir()
    configuration = write_config(tmp_path / "config/config.yml", simulator, ledger={}, fetch={"min_interval": "0s"})
    volume = tmp_path / "volume"
    volume.mkdir()
    for path, user in ((volume, 65532), (tmp_path, 0), (configuration.parent, 0)):
        os.chown(path, user, user)
    for path in (tmp_path, *tmp_path.parents[:2], configuration.parent):
        path.chmod(0o755)
    name = f"creatify-exporter-{os.getpid()}"

    first = Container(engine, name, configuration, volume)
    before = first.scrape()
    assert total(before, "creatify_up", api="text_generator") == 1
    assert total(before, "creatify_exporter_build_info", revision="0123abc") == 1
    assert (volume / "ledger.db").stat().st_uid == 65532

    known = len(simulator.listings())
    simulator.faults.next(delayed(1.5))
    answers: list[dict[Any, float]] = []
    ends: list[float] = []

    def scraped() -> None:
        answers.append(first.scrape())
        ends.append(time.monotonic())

    scrape = threading.Thread(target=scraped)
    scrape.start()
    until(lambda: len(simulator.listings()) > known)
    first.signal_stop()
    ended = first.ended()
    assert first.process.wait(30) == 0
    scrape.join(30)
    assert total(answers[0], "creatify_up", api="text_generator") == 1
    assert ended - ends[0] < 1, "the container ends within a second of the scrape in flight"

    second = Container(engine, f"{name}-again", configuration, volume)
    after = second.scrape()
    second.signal_stop()
    assert second.process.wait(30) == 0
    for counter in ("creatify_tasks_submitted_total", "creatify_tasks_finished_total", "creatify_fetches_total"):
        assert total(after, counter), counter
    submitted = total(before, "creatify_tasks_submitted_total") or 0
    assert 0 < submitted <= (total(after, "creatify_tasks_submitted_total") or 0) < submitted + 5


SCRAPE: Final = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:10081/metrics').read().decode())"


def test_the_service_of_compose_shows_a_simulated_account_and_ends_when_it_is_told_to(engine: Engine) -> None:
    with running_service(engine) as name:

        def scraped() -> str | None:
            inside = engine.podman("exec", name, "python3", "-c", SCRAPE)
            done = subprocess.run(inside, capture_output=True, text=True, check=False)
            return done.stdout if done.returncode == 0 else None

        samples = parsed(until(scraped, 60))
        assert total(samples, "creatify_up", api="text_generator") == 1
        assert total(samples, "creatify_tasks_submitted_total")
        run(*engine.podman("stop", "--time", "30", name))
        assert run(*engine.podman("inspect", "--format", "{{.State.ExitCode}}", name)).strip() == "0"
