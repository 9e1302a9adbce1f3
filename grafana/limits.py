"""The limits of the alerts, for the colours and words of the dashboards: they stand in one place, with the rules."""

import re
from functools import cache
from pathlib import Path
from typing import Final

THRESHOLDS: Final = Path(__file__).parent.parent / "prometheus" / "rules" / "thresholds.yaml"

_CONSTANT: Final = re.compile(r"- record: creatify:threshold:(\w+)\n +expr: ([0-9.]+) \* workspace:")


def limit(name: str) -> float:
    """Return the number that an alert compares with."""
    number = _limits()[name]
    return int(number) if number.is_integer() else number


def percent(name: str) -> str:
    """Return such a number as it stands in a sentence."""
    return f"{limit(name) * 100:g} %"


@cache
def _limits() -> dict[str, float]:
    return {name: float(number) for name, number in _CONSTANT.findall(THRESHOLDS.read_text("utf-8"))}
