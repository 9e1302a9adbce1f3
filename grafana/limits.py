"""The alerts' limits, for the colours and words of the dashboards, read from the rules."""

import re
from functools import cache
from pathlib import Path
from typing import Final

from grafana.palette import BAD, FAIR, GOOD, PLAIN
from grafana.panels import Steps, steps

THRESHOLDS: Final = Path(__file__).parent.parent / "prometheus" / "rules" / "thresholds.yaml"

_CONSTANT: Final = re.compile(r"- record: creatify:threshold:(\w+)\n +expr: ([0-9.]+) \* workspace:")
_DAY: Final = 86400


def limit(name: str) -> float:
    """Return a threshold of the alerts."""
    number = _limits()[name]
    return int(number) if number.is_integer() else number


def percent(name: str) -> str:
    """Return a threshold as a percentage for a sentence."""
    return f"{limit(name) * 100:g} %"


@cache
def _limits() -> dict[str, float]:
    return {name: float(number) for name, number in _CONSTANT.findall(THRESHOLDS.read_text("utf-8"))}


RATIO_STEPS: Final[Steps] = steps(
    PLAIN, (limit("failure_spike_ratio_floor") / 4, FAIR), (limit("failure_spike_ratio_floor"), BAD)
)
STUCK_STEPS: Final[Steps] = steps(PLAIN, (limit("tasks_stuck_seconds") / 2, FAIR), (limit("tasks_stuck_seconds"), BAD))
SLOW_STEPS: Final[Steps] = steps(
    PLAIN, (limit("tasks_slow_seconds_floor"), FAIR), (5 * limit("tasks_slow_seconds_floor"), BAD)
)
BALANCE_STEPS: Final[Steps] = steps(BAD, (limit("credits_low_credits"), PLAIN), empty=BAD)
PLAN_STEPS: Final[Steps] = steps(
    BAD, (limit("credits_low_plan_ratio"), FAIR), (round(2.5 * limit("credits_low_plan_ratio"), 3), GOOD)
)
LASTS_STEPS: Final[Steps] = steps(BAD, (limit("credits_run_out_seconds"), FAIR), (7 * _DAY, GOOD))
WASTED_STEPS: Final[Steps] = steps(
    PLAIN, (round(limit("credits_wasted_ratio") / 3, 3), FAIR), (limit("credits_wasted_ratio"), BAD)
)
AGE_STEPS: Final[Steps] = steps(GOOD, (limit("gap_seconds") / 2, FAIR), (limit("gap_seconds"), BAD), empty=BAD)
NONE_STEPS: Final[Steps] = steps(PLAIN, (1, BAD), empty=BAD)
"""For values that should be 0."""
