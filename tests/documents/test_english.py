"""Prose in plain English: the habits of which this project has to be reminded, wherever a person reads."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

# What is refused, and what to write instead.
HABITS: Final = {
    r"\bsince ever\b": "ever, or since the ledger began",
    r"\bin vain\b": "without success",
    r"\btakes? notice that\b": "note that",
    r"\blet(s|ting)? go of\b": "drop, release",
    r"\bhands? over\b": "pass",
    r"\b(goes?|going|gone) over to\b": "switch to",
    r"\bnobody caught\b": "uncaught",
    r"\bdoubtful configuration\b": "configuration warning",
    r"\b(least|lowest) level\b": "minimum level",
    r"\btakes? the same way\b": "go through the same formatter",
    r"(?<=[.:] )(Who|Whoever|What) \w+s\b(?![^.]*\?)": "name the noun: clients that, the value that",
    r"(?m)^ *(#|\"\"\") ?(Who|Whoever) \w+s\b": "name the noun: clients that",
    r"\bwhere (it|there|one|nothing|nobody|they|none) (is|are|has|have|does|says?)\b": "if",
    r"\bas good as\b": "almost",
    r"\bwithout a farewell\b": "without closing the connection",
    r"\bis (un)?fit for\b": "is (not) suitable for",
    r"\bfor ever\b": "forever",
    r"\banew\b": "again",
    r"\bdearer\b": "more expensive",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"(?i)(?<!there\s)\bis no (?!longer|more|such|different|older|other|better)\w+": "is not a",
    r"\btells? (no|its) \w+": "report",
    r"(?m)(^|[.;] )(Who|What)(ever)? [a-z ]*\b(is|are|was|has|does|cannot|comes)\b [^?\n]*\.$": "name the noun",
}

READ: Final = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "bench",
    "deploy",
    "docs",
    "exporter",
    "grafana",
    "helm",
    "prometheus",
    "tests",
)
PROSE: Final = {".py", ".md", ".yml", ".yaml", ".txt", ".tpl", ".service"}


def files(names: tuple[str, ...]) -> Iterator[Path]:
    for name in names:
        path = ROOT / name
        assert path.exists(), name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (each for each in found if each.suffix in PROSE and each != Path(__file__))


def habits(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the words and what to write instead for each habit in a text."""
    for pattern, instead in HABITS.items():
        for found in re.finditer(pattern, text):
            yield text.count("\n", 0, found.start()) + 1, found[0], instead


def test_prose_is_plain_english() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{line}: {words!r}; write {instead}"
        for path in files(READ)
        for line, words, instead in habits(path.read_text())
    ]
    assert offenders == []


def test_each_habit_is_recognised() -> None:
    examples = (
        "has happened since ever", "waits in vain", "takes notice that it", "lets go of a task", "hands over a list",
        "goes over to the file", "nobody caught an exception", "doubtful configuration", "least level that is logged",
        "loggers take the same way", "It waits. Who asks for it gets it.", "# Who asks for it", "where it has none",
        "as good as free", "without a farewell", "is fit for a log", "is kept for ever", "begins anew", "are dearer",
        "how to mend it", "is no list", "tells no credits", "It ends. What a list does not say is absent.",
    )  # fmt: skip
    assert [text for text in examples if not list(habits(text))] == []
    assert len(examples) == len(HABITS)
