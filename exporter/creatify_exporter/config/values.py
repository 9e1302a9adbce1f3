"""Parsers of single values: durations, sizes, names, regular expressions."""

import difflib
import math
import re
from typing import Annotated, Final

import msgspec

from creatify_exporter.config.reader import read_by
from creatify_exporter.lists import LISTS

ALL: Final = "all"
"""In place of a name: all lists that Creatify documents."""

_LONGEST_LABEL: Final = 100
_WORD: Final = rf"(?=.{{1,{_LONGEST_LABEL}}}\Z)[a-z][a-z0-9]*(_[a-z0-9]+)*"

_DURATION = re.compile(
    r"(?:(\d{1,9})y)?(?:(\d{1,9})w)?(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?(?:(\d{1,9})ms)?",
    re.ASCII,
)
_SECONDS = (365 * 86400.0, 7 * 86400.0, 86400.0, 3600.0, 60.0, 1.0, 0.001)
_SIZE = re.compile(r"(\d{1,15})(B|KiB|MiB|GiB|TiB)", re.ASCII)
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_duration(text: str) -> float:
    """Parse a Prometheus duration such as `30s`, `1h30m` or `250ms` into seconds; ValueError says what is wrong."""
    match = _DURATION.fullmatch(text)
    if not text or not match:
        raise ValueError("is not a duration; write whole numbers with units, like 30s, 2m or 1h30m")
    # Whole milliseconds, so that 1s500ms is 1.5 exactly.
    return math.fsum(int(n) * unit for n, unit in zip(match.groups(), _SECONDS, strict=True) if n)


def parse_size(text: str) -> int:
    """Parse a size such as `512B`, `16MiB` or `4GiB` into bytes; ValueError says what is wrong."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError("is not a size; write a whole number with a unit, like 16MiB or 4GiB")
    size = int(match[1]) * _BYTES[match[2]]
    if not size:
        raise ValueError("must be larger than 0B; write it like 16MiB")
    return size


def parse_label(text: str) -> str:
    """Return a name that will be a label value; ValueError says what is wrong."""
    if not text or text != text.strip() or len(text) > _LONGEST_LABEL or not text.isprintable():
        raise ValueError(f"must be 1 to {_LONGEST_LABEL} printable characters, no space at either end; choose another")
    return text


def _matching(pattern: str, problem: str) -> msgspec.Meta:
    """Tell the reader to accept texts that match; `problem` says what is wrong with others and how to fix it."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(problem)
        return text

    return read_by(parse)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is not a regular expression: {error}; fix it or escape it with \\") from None
    if pattern.fullmatch(""):
        raise ValueError("matches every text, even an empty one; write what the text must contain")
    return pattern


def duration(rule: str = "", *, longer_than: float = -1.0, at_most: float = math.inf) -> msgspec.Meta:
    """Tell the reader to parse a duration within limits in seconds; `rule` states them and how to fix it."""

    def parse(text: str) -> float:
        seconds = parse_duration(text)
        if not longer_than < seconds <= at_most:
            raise ValueError(rule)
        return seconds

    return read_by(parse, takes_number=True)


def near_lists(name: str) -> list[str]:
    """Return the lists whose names are similar, the most similar first."""
    return difflib.get_close_matches(name.lower(), [ALL, *LISTS], n=3, cutoff=0.5)


def _list_name(text: str) -> str:
    if text == "remaining_credits":
        raise ValueError("is the name of the balance; give the list another name")
    if not re.fullmatch(_WORD, text):
        like = " or ".join(near_lists(text)) or "link_to_videos"
        raise ValueError(f"is not the name of a list; write lowercase letters, digits and _, like {like}")
    return text


Label = Annotated[str, read_by(parse_label)]
Reason = Annotated[
    str, _matching(_WORD, "is not a label value; write lowercase letters, digits and _, like rate_limited")
]
ListName = Annotated[str, read_by(_list_name)]
ListPath = Annotated[
    str,
    _matching(
        r"/([A-Za-z0-9._~-]+/)+",
        "is not the path of a list; write it like /api/link_to_videos/, with a slash at both ends",
    ),
]
Currency = Annotated[str, _matching(r"[A-Z]{3}", "is not a currency; write its three capital letters, like USD")]
Pattern = Annotated[re.Pattern[str], read_by(_pattern)]
Size = Annotated[int, read_by(parse_size, takes_number=True)]
# Above this, the cost of credits could have more digits than the 28 of a `Decimal`, with which the report computes.
Amount = Annotated[float, msgspec.Meta(ge=0, le=1_000_000_000)]
