"""What a release publishes: its version, its notes, its packages and its chart."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import pytest
import requests
import yaml
from charts import helm
from deploy.release import PLACES, disagreements, main, notes

from conftest import tool
from creatify_exporter import __version__
from processes import free_port, until

ROOT: Final = Path(__file__).parents[2]
TAG: Final = f"v{__version__}"


def run(*command: str, cwd: Path = ROOT, **environ: str) -> str:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Version, tag and changelog


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Return a copy of the files that name the version, with a changelog that has a date."""
    for path in {"CHANGELOG.md", *(path for path, _ in PLACES)}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(re.sub(r"^(## \[.+\] - ).+$", r"\g<1>2026-01-31", changelog.read_text(), flags=re.MULTILINE))
    return tmp_path


def test_a_release_agrees_with_its_tag_in_every_file(released: Path) -> None:
    assert list(disagreements(TAG, released)) == []
    assert main(["check", TAG], released) == 0


def test_a_release_without_a_date_is_none(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changelog = released / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("2026-01-31", "unreleased"))
    assert main(["check", TAG], released) == 1
    assert capsys.readouterr().err.startswith("CHANGELOG.md: no heading")


def test_each_place_that_has_another_version_is_told(released: Path) -> None:
    told = list(disagreements("v99.0.0", released))
    assert [line.partition(":")[0] for line in told] == [*(path for path, _ in PLACES), "CHANGELOG.md"]
    assert all("99.0.0" in line for line in told)
    # The chart's versions are semantic ones, the packages' are not: 1.2.3rc1 cannot be both.
    for tag in ("99.0.0", "v99.0.0rc1"):
        assert list(disagreements(tag, released)) == [f"tag: {tag!r} is not a version tag, such as v1.2.3"]


def lines_that_name(version: str) -> Iterator[tuple[str, str]]:
    """Yield path and line; locks, decisions and the made-up night have versions of their own."""
    folders = (".ci", ".github", "deploy", "docs", "exporter", "grafana", "helm", "prometheus")
    for path in [*ROOT.glob("*"), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]:
        name = str(path.relative_to(ROOT))
        other = name in ("CHANGELOG.md", "grafana/scene.py") or name.startswith("docs/decisions/")
        if path.is_file() and path.suffix not in (".lock", ".png", ".pyc") and not other:
            text = path.read_text("utf-8", "replace")
            yield from ((name, line) for line in text.splitlines() if re.search(version, line))


def test_whatever_names_the_version_is_a_place_that_is_looked_at() -> None:
    major, minor, patch = __version__.split(".")
    lines = list(lines_that_name(rf"(?<![\d.]){major}\.{minor}\.({patch}|x)(?![\d.])"))
    assert {name for name, _ in lines} == {path for path, _ in PLACES}
    # The chart's table of versions goes on to name this one.
    known = [*PLACES, ("helm/creatify-exporter/README.md", r"^\| [\d.]+ \|")]
    left = [
        each for each in lines if not any(each[0] == path and re.search(pattern, each[1]) for path, pattern in known)
    ]
    assert left == []


def test_the_notes_of_a_release_are_its_section_of_the_changelog(released: Path) -> None:
    sections = ("# Changelog", "## [1.2.0] - 2026-02-01", "### Added", "- New.", "## [1.1.0] - 2026-01-01", "- Old.")
    (released / "CHANGELOG.md").write_text("\n\n".join([*sections, "[1.1.0]: somewhere", ""]))
    assert notes("v1.2.0", released) == "### Added\n\n- New.\n"
    assert notes("v1.1.0", released) == "- Old.\n"
    assert main(["notes", "v1.0.0"], released) == 1


# Packages


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with what `make dist` builds in a copy of the tree."""
    return built(tmp_path_factory.mktemp("first"))


def built(folder: Path) -> Path:
    copied(folder)
    make(folder / "tree", "dist", SOURCE_DATE_EPOCH="1700000000")
    return folder / "tree/dist"


def copied(folder: Path) -> Path:
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder / "tree", ignore=ignored, symlinks=True)
    return folder / "tree"


def make(tree: Path, *arguments: str, **environ: str) -> str:
    """Run make with the virtual environment of these tests, so that nothing has to be installed."""
    # ARGS of the make that runs these tests, if there are any, are not meant for this one.
    there = (f"VENV={sys.prefix}", "--assume-old", f"{sys.prefix}/dev.stamp", "ARGS=")
    return run("make", *there, *arguments, cwd=tree, **environ)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_two_builds_give_the_same_files(packages: Path, tmp_path: Path) -> None:
    again = digests(built(tmp_path))
    assert again == digests(packages)
    assert sorted(again) == [
        f"creatify_exporter-{__version__}-py3-none-any.whl",
        f"creatify_exporter-{__version__}.tar.gz",
    ]


def test_a_wheel_runs_in_an_environment_of_its_own(packages: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"))
    python = str(tmp_path / "venv/bin/python")
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # What the exporter needs is taken from the tests' environment, for want of a network; the exporter is not.
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    [wheel] = packages.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--ignore-installed", "--no-deps", str(wheel))
    run(python, "-m", "pip", "install", "--quiet", "--no-index", f"{wheel}[postgresql]")
    where = run(python, "-c", "import creatify_exporter, psycopg; print(creatify_exporter.__file__)", cwd=tmp_path)
    assert where.startswith(site)
    port = free_port()
    command = [str(tmp_path / "venv/bin/creatify-exporter"), "--demo", f"--web.listen-address=127.0.0.1:{port}"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            assert "creatify_up{" in until(lambda: scraped(port), 60)
        finally:
            process.terminate()
    assert process.returncode == 0


def scraped(port: int) -> str:
    try:
        return requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    except requests.ConnectionError:
        return ""


# The chart


def test_a_chart_that_is_signed_can_be_verified_and_not_be_changed(tmp_path: Path) -> None:
    gpg = tool("gpg", "gnupg")
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    key = ("--batch", "--pinentry-mode", "loopback", "--passphrase", "")
    run(gpg, "--homedir", str(home), *key, "--quick-generate-key", "throw-away", "rsa3072", "sign")
    for command, name in (("--export-secret-keys", "secret.gpg"), ("--export", "public.gpg")):
        run(gpg, "--homedir", str(home), *key, "--output", str(tmp_path / name), command)
    run("gpgconf", "--homedir", str(home), "--kill", "all")
    sign = ("--sign", "--key", "throw-away", "--keyring", str(tmp_path / "secret.gpg"))
    packed = helm("package", str(ROOT / "helm/creatify-exporter"), "--destination", str(tmp_path), *sign)
    assert packed.returncode == 0, packed.stderr
    package, keyring = tmp_path / f"creatify-exporter-{__version__}.tgz", ("--keyring", str(tmp_path / "public.gpg"))
    assert helm("verify", str(package), *keyring).returncode == 0
    package.write_bytes(package.read_bytes() + b"\0")
    assert helm("verify", str(package), *keyring).returncode == 1


# What is published, with commands that only write down what they are asked


RECORDER: Final = """#!/bin/sh
echo "${0##*/} $*" >> "$RECORD"
if [ "$1" = run ]; then printf '%s' "$RUNS"; fi
while [ $# -gt 0 ]; do
  if [ "$1" = --metadata-file ]; then printf '{\n  "containerimage.digest": "sha256:%064d"\n}' 7 > "$2"; fi
  shift
done
"""


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Return a tree to publish from; docker, cosign and gh in its `bin` write what they are asked to `record`."""
    (tmp_path / "bin").mkdir()
    for name in ("docker", "cosign", "gh"):
        (tmp_path / "bin" / name).write_text(RECORDER)
        (tmp_path / "bin" / name).chmod(0o755)
    tree = copied(tmp_path)
    run("git", "init", "--quiet", cwd=tree)
    identity = ("-c", "user.name=a", "-c", "user.email=a@example")
    run("git", *identity, "commit", "--quiet", "--allow-empty", "--message", "first", cwd=tree)
    return tree


def published(tree: Path, *arguments: str) -> list[str]:
    programs, record = tree.parent / "bin", tree.parent / "record"
    make(tree, *arguments, PATH=f"{programs}:{os.environ['PATH']}", RECORD=str(record))
    return record.read_text().splitlines()


def test_the_image_is_signed_by_the_digest_that_was_pushed(recorded: Path) -> None:
    build, sign = published(recorded, "publish-image", f"TAG={TAG}", "REGISTRY=registry.example")
    revision = run("git", "rev-parse", "HEAD", cwd=recorded).strip()
    for part in (
        "--platform linux/amd64,linux/arm64",
        "--sbom=true --provenance=mode=max --push",
        f"VERSION={__version__} ",
        f"CREATIFY_EXPORTER_REVISION={revision}",
        f"--tag registry.example/creatify-exporter:{__version__} .",
    ):
        assert part in build, part
    assert sign == f"cosign sign --yes registry.example/creatify-exporter@sha256:{7:064}"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Registry(ThreadingHTTPServer):
    """A registry of OCI artifacts that takes everything; `manifests` has what was pushed, by its path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), RegistryRequest)
        self.manifests: dict[str, bytes] = {}


class RegistryRequest(BaseHTTPRequestHandler):
    server: Registry
    protocol_version = "HTTP/1.1"

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        if manifest := self.server.manifests.get(self.path):
            media_type = "application/vnd.oci.image.manifest.v1+json"
            self._answer(200, manifest, Content_Type=media_type, Docker_Content_Digest=digest_of(manifest))
        else:
            self._answer(200 if self.path == "/v2/" else 404)

    do_HEAD = do_GET  # noqa: N815 - as above

    def do_POST(self) -> None:
        self._answer(202, Location=f"{self.path}upload")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "/manifests/" in self.path:
            self.server.manifests[self.path] = body
        self._answer(201, Docker_Content_Digest=digest_of(body), Location=self.path)

    def log_message(self, *_: object) -> None:
        pass


def test_the_chart_is_signed_by_the_digest_that_was_pushed(recorded: Path) -> None:
    with Registry() as registry:
        threading.Thread(target=registry.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{registry.server_port}"
        try:
            said = published(recorded, "publish-chart", f"REGISTRY={address}", "PUSH_ARGS=--plain-http")
        finally:
            registry.shutdown()
    manifest = registry.manifests[f"/v2/charts/creatify-exporter/manifests/{__version__}"]
    assert said == [f"cosign sign --yes {address}/charts/creatify-exporter@{digest_of(manifest)}"]


def test_a_release_on_github_has_the_notes_and_the_packages(recorded: Path) -> None:
    (recorded / "dist").mkdir()
    (recorded / "dist/package.whl").touch()
    [said] = published(recorded, "publish-notes", f"TAG={TAG}")
    assert said == f"gh release create {TAG} --verify-tag --title {TAG} --notes-file build/notes.md dist/package.whl"
    assert "### Added" in (recorded / "build/notes.md").read_text()


def test_a_commit_for_which_ci_has_not_passed_is_not_released(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = run("git", "rev-parse", "HEAD", cwd=recorded).strip()
    monkeypatch.setenv("RUNS", "")
    with pytest.raises(AssertionError, match=f"CI has not passed for {revision}: push it to main"):
        published(recorded, "check-ci")
    monkeypatch.setenv("RUNS", "https://github.example/runs/1")
    asked = published(recorded, "check-ci")[-1]
    assert f"gh run list --workflow ci.yml --event push --commit {revision} --status success " in asked


# The workflows


WORKFLOWS: Final = sorted((ROOT / ".github/workflows").glob("*.yml"))


def steps() -> Iterator[dict[str, str]]:
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text("utf-8"))["jobs"].values():
            yield from job["steps"]


def test_nothing_is_published_before_ci_has_passed_and_pypi_comes_last() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))["jobs"]
    assert next(step["run"] for step in jobs["build"]["steps"] if "run" in step) == "make check-ci"
    assert jobs["build"]["permissions"]["actions"] == "read"

    def before(job: str) -> set[str]:
        needs = jobs[job].get("needs", [])
        direct = {needs} if isinstance(needs, str) else set(needs)
        return direct.union(*map(before, direct))

    assert [job for job in jobs if job != "build" and "build" not in before(job)] == []
    assert before("pypi") == {"build", "image", "chart"}, "what is on PyPI cannot be replaced"


def test_every_action_is_pinned_by_commit_with_its_version_beside_it() -> None:
    lines = [line.strip() for path in WORKFLOWS for line in path.read_text("utf-8").splitlines() if "uses:" in line]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"- uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_every_step_that_is_a_command_is_a_target_of_make() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = [step["run"] for step in steps() if "run" in step]
    called = {command.split()[1] for command in commands if command.startswith("make ")}
    assert called <= targets
    others = [command for command in commands if not command.startswith("make ")]
    assert [command for command in others if command != ".ci/run" and not command.startswith("apt-get ")] == []


def test_no_workflow_has_a_permission_that_its_jobs_do_not_ask_for_or_a_secret() -> None:
    for path in WORKFLOWS:
        text = path.read_text("utf-8")
        assert yaml.safe_load(text)["permissions"] == {}
        assert "secrets." not in text


def test_the_tag_reaches_make_as_a_variable_and_never_as_text_of_a_command() -> None:
    assert [step["run"] for step in steps() if "${{" in step.get("run", "")] == []
