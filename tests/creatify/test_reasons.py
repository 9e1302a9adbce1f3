import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creatify_exporter.config.schema import ReasonRule
from creatify_exporter.creatify.reasons import LONGEST, Classifier

# A file for each class, a wording of a service or library on each line; most were seen in public reports.
# Creatify's own words are not published.
WORDINGS = {
    path.stem: [line.replace("\\n", "\n") for line in path.read_text("utf-8").splitlines()]
    for path in sorted(Path(__file__).with_name("reasons").glob("*.txt"))
}


@pytest.mark.parametrize(
    ("reason", "text"),
    [(reason, text) for reason, texts in WORDINGS.items() for text in texts],
    ids=lambda value: value[:40].encode("ascii", "replace").decode(),
)
def test_a_wording_seen_in_the_wild_gets_its_class(reason: str, text: str) -> None:
    assert Classifier().classify(text) == reason


@pytest.mark.parametrize("text", [None, "", " \n\t", "\u00a0"])
def test_a_failure_without_a_text_is_unspecified_and_not_other(text: str | None) -> None:
    assert Classifier().classify(text) == "unspecified"


def test_the_default_classes_are_those_of_the_documents() -> None:
    assert set(Classifier().reasons) == {*WORDINGS, "unspecified"}
    assert len(Classifier().reasons) == len(set(Classifier().reasons))


def test_the_first_rule_that_matches_wins() -> None:
    first = ReasonRule(reason="first", match=re.compile("a"))
    second = ReasonRule(reason="second", match=re.compile("a|b"))
    classifier = Classifier([first, second])
    assert [classifier.classify(text) for text in ("xa", "b", "c")] == ["first", "second", "other"]
    assert classifier.reasons == ("first", "second", "other", "unspecified")


def test_a_users_rule_is_matched_against_the_unchanged_text() -> None:
    classifier = Classifier([ReasonRule(reason="spaced", match=re.compile("not found"))])
    assert [classifier.classify(text) for text in ("not found", "not_found")] == ["spaced", "other"]


def test_no_rules_leave_two_classes() -> None:
    assert Classifier(()).reasons == ("other", "unspecified")
    assert Classifier(()).classify("timeout") == "other"


def test_only_the_beginning_of_a_long_text_is_searched() -> None:
    classifier = Classifier()
    assert classifier.classify(" " * (LONGEST - 20) + "timed out") == "timeout"
    assert classifier.classify("a" * LONGEST + " timed out") == "other"


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        " ",
        "prompt ",
        "blocked ",
        "model ",
        "credits ",
        "exceeds ",
        "not enough no ",
        "reason:::",
        "a.b.",
        "x_",
        "(('",
    ],
)
def test_a_hostile_text_costs_little_under_the_default_rules(piece: str) -> None:
    text = (piece * 100_000)[:1_000_000]
    start = time.process_time()
    Classifier().classify(text)
    assert time.process_time() - start < 0.5


@given(st.text())
def test_any_text_gets_one_of_the_announced_reasons(text: str) -> None:
    classifier = Classifier()
    assert classifier.classify(text) in classifier.reasons
