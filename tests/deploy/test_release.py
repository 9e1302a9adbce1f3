"""What a release publishes: its version, its notes, its packages and its chart."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

import pytest
import requests
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
    assert list(disagreements("99.0.0", released)) == ["tag: '99.0.0' is not v and a version, such as v1.2.3"]


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
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder / "tree", ignore=ignored, symlinks=True)
    venv = Path(sys.prefix)
    # The virtual environment of these tests, which is there: nothing is installed.
    run(
        "make",
        "dist",
        f"VENV={venv}",
        "--assume-old",
        f"{venv}/dev.stamp",
        cwd=folder / "tree",
        SOURCE_DATE_EPOCH="1700000000",
    )
    return folder / "tree/dist"


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
