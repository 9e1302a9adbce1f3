"""What is installed is pinned, and its licences are those that SECURITY.md lists."""

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted(ROOT.glob("requirements*.lock"))
SPELLINGS = {"MIT License": "MIT"}


def locked(lock: Path) -> dict[str, str]:
    """Return the requirements of a lock file, each with its hashes, by the name of the package."""
    requirements = re.split(r"\n(?=\S)", re.sub(r"^ *#.*\n", "", lock.read_text(), flags=re.MULTILINE))
    return {re.split("[=\\[; ]", each)[0]: each for each in requirements}


def listed() -> dict[str, str]:
    table = (ROOT / "SECURITY.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9-]+) \| ([A-Za-z0-9. -]+) \|$", table, re.MULTILINE)
    return {str(name): str(licence) for name, licence in rows}


@pytest.mark.xdist_group("kept together")
def test_tests_of_a_group_are_kept_on_one_worker(request: pytest.FixtureRequest) -> None:
    """Else each worker would start the servers that they share."""
    if request.config.getoption("loadgroup", default=False):
        assert request.node.nodeid.endswith("@kept together")


def test_every_requirement_has_a_version_and_hashes_and_no_address() -> None:
    assert len(LOCKS) == 4
    for lock in LOCKS:
        assert len(locked(lock)) > 5
        for name, requirement in locked(lock).items():
            assert re.match(rf"{name}(\[[a-z,]+\])?==[0-9]", requirement), requirement
            assert "--hash=sha256:" in requirement, name
        assert "://" not in lock.read_text()


def test_the_licence_of_every_package_that_runs_is_listed_and_no_other_is() -> None:
    packages = set(locked(ROOT / "requirements.lock"))
    assert set(listed()) - {"package"} == packages


def licence(name: str) -> str:
    """Return what an installed package says of its licence."""
    found = metadata(name).json
    said = str(found.get("license_expression") or str(found["license"]).splitlines()[0])
    return next((short for long, short in SPELLINGS.items() if long in said), said)


def test_the_licences_that_are_listed_are_those_that_the_packages_name() -> None:
    here = [name for name, each in locked(ROOT / "requirements.lock").items() if "'win32'" not in each]
    assert {name: licence(name) for name in here} == {name: listed()[name] for name in here}
