"""Check that a tag, the version in each file and the changelog agree, and print the changelog's section of a version.

`python deploy/release.py check v1.2.3` exits with 1 and a line for each file that disagrees; `notes v1.2.3` prints the
release notes; `digest FILE` prints the digest of a pushed artifact, from the output of docker or helm.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]

PLACES: Final = (
    ("exporter/creatify_exporter/__init__.py", r'^__version__ = "(.+)"$'),
    ("Dockerfile", r"^ARG VERSION=(.+)$"),
    ("compose.yaml", r"image: .*/creatify-exporter:([^@\s]+)"),
    ("helm/creatify-exporter/Chart.yaml", r"^version: (.+)$"),
    ("helm/creatify-exporter/Chart.yaml", r"^appVersion: (.+)$"),
    ("helm/creatify-exporter/Chart.yaml", r"image: \S+/creatify-exporter:(\S+)$"),
    ("helm/creatify-exporter/README.md", r"image: \S+/creatify-exporter:(\S+)$"),
    ("helm/creatify-exporter/README.md", r"^ *targetRevision: (.+)$"),
    ("helm/creatify-exporter/README.md", r'^ *ref: \{semver: "~(.+)"\}$'),
    ("docs/deployment.md", r"^cosign verify \S+/creatify-exporter:(\S+)"),
    ("docs/deployment.md", r"/release\.yml@refs/tags/v(\S+)$"),
)
"""Where the version is, and the pattern that finds it there."""

_HEADING: Final = r"^## \[{version}\] - (.+)$"


def disagreements(tag: str, root: Path = ROOT) -> Iterator[str]:
    """Yield a line for each place that does not have the tag's version: the place, what it says, how to fix it."""
    version = tag.removeprefix("v")
    if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
        yield f"tag: {tag!r} is not a version tag, such as v1.2.3"
        return
    for path, pattern in PLACES:
        found = re.findall(pattern, (root / path).read_text("utf-8"), re.MULTILINE)
        if set(found) != {version}:
            yield f"{path}: says {', '.join(found) or 'no version'}: write {version}"
    dates = re.findall(_HEADING.format(version=re.escape(version)), _changelog(root), re.MULTILINE)
    if len(dates) != 1 or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", dates[0]):
        yield f"CHANGELOG.md: no heading '## [{version}] - DATE': write it, with the date of the release"


def notes(tag: str, root: Path = ROOT) -> str:
    """Return the changelog's section of a version, without its heading; raise ValueError if there is none."""
    heading = _HEADING.format(version=re.escape(tag.removeprefix("v")))
    _, *rest = re.split(heading, _changelog(root), maxsplit=1, flags=re.MULTILINE)
    if not rest:
        raise ValueError(f"CHANGELOG.md: no section of {tag}")
    section = re.split(r"^(?:## |\[[^\]]+\]: )", rest[1], maxsplit=1, flags=re.MULTILINE)[0]
    return section.strip() + "\n"


def digest(report: str) -> str:
    """Return the digest in docker's metadata file or in what `helm push` prints; raise ValueError if there is none."""
    found = set(re.findall(r'^(?:Digest: |\s*"containerimage\.digest": ")(sha256:[0-9a-f]{64})', report, re.MULTILINE))
    if len(found) != 1:
        raise ValueError(f"{len(found)} digests of a pushed artifact, where there should be one")
    return str(found.pop())


def _changelog(root: Path) -> str:
    return (root / "CHANGELOG.md").read_text("utf-8")


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run one of the commands; return 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="release.py", description="check and describe a release")
    parser.add_argument("command", choices=("check", "notes", "digest"))
    parser.add_argument("of", help="a tag such as v1.2.3, or a file")
    arguments = parser.parse_args(argv)
    try:
        sys.stdout.write(_answer(arguments.command, arguments.of, root))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _answer(command: str, of: str, root: Path) -> str:
    if command == "notes":
        return notes(of, root)
    if command == "digest":
        return digest(Path(of).read_text("utf-8")) + "\n"
    if wrong := list(disagreements(of, root)):
        raise ValueError("\n".join(wrong))
    return ""


if __name__ == "__main__":
    sys.exit(main())
