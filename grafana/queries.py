"""PromQL: selects by the variables, and folds what several exporters tell of the same thing.

Two exporters of one workspace, or /metrics scraped beside /probe, tell the same events twice. They are folded after
rate() or increase(), never before: a fold of raw counters falls when the replica that is ahead goes away.
"""

from typing import Final

from creatify_exporter.metrics import CREDITS_REFUNDED, CREDITS_USED, REMAINING_CREDITS, Family
from creatify_exporter.metrics import FAILED_CREDITS_REFUNDED as FAILED_REFUNDED
from creatify_exporter.metrics import FAILED_CREDITS_USED as FAILED_USED

REPLICA: Final = "instance, job, pod, container, endpoint, service, node"
"""The labels that tell one exporter from another."""
SCOPE: Final = ("workspace", "api", "model")
"""The labels that are variables of the dashboards."""


def selector(family: Family, *matchers: str, part: str = "", scope: tuple[str, ...] = SCOPE) -> str:
    """Select a family's series by those variables that are labels of it; `part` is like `_bucket`."""
    chosen = [f'{label}=~"${label}"' for label in scope if label in family.labels]
    return f"{family.name}{part}{{{', '.join([*chosen, *matchers])}}}"


def folded(expression: str) -> str:
    """Take of each series what one exporter says of it."""
    return f"max without ({REPLICA}) ({expression})"


def gauge(family: Family, *matchers: str) -> str:
    """Return the present values, absent while the list cannot be read."""
    return folded(selector(family, *matchers))


def rate(family: Family, *matchers: str, part: str = "") -> str:
    """Return the increase a second."""
    return folded(f"rate({selector(family, *matchers, part=part)}[$__rate_interval])")


def counted(labels: str, rates: str) -> str:
    """Return what a bar of a graph counts: the sums of the time since the bar before, where there is anything."""
    return f"{summed(labels, rates)} * $__interval_ms / 1000 > 0"


def increase(family: Family, window: str, *matchers: str, part: str = "", scope: tuple[str, ...] = SCOPE) -> str:
    """Return the increase within a window that ends now."""
    return folded(f"increase({selector(family, *matchers, part=part, scope=scope)}[{window}])")


def summed(labels: str, expression: str) -> str:
    """Sum by these labels."""
    return f"sum by ({labels}) ({expression})"


def share(labels: str, part: str, whole: str) -> str:
    """Divide sums; absent where there is no whole. Two replicas may book seconds apart, hence the clamp."""
    return f"clamp_max({summed(labels, part)} / ({summed(labels, whole)} > 0), 1)"


def quantile(ratio: float, labels: str, buckets: str) -> str:
    """Return the quantile of the summed buckets, without rows for which nothing was observed."""
    by = f"le, {labels}" if labels else "le"
    return f"histogram_quantile({ratio}, {summed(by, buckets)}) >= 0"


def spent(window: str, scope: tuple[str, ...] = SCOPE) -> str:
    """Return the credits spent within a window: used less refunded."""
    used, refunded = (increase(family, window, scope=scope) for family in (CREDITS_USED, CREDITS_REFUNDED))
    return f"({used} - {refunded})"


def wasted(window: str) -> str:
    """Return the credits spent within a window on tasks that failed."""
    return f"({increase(FAILED_USED, window)} - {increase(FAILED_REFUNDED, window)})"


def spending() -> str:
    """Return the credits spent a second."""
    return f"({rate(CREDITS_USED)} - {rate(CREDITS_REFUNDED)})"


def wasting() -> str:
    """Return the credits spent a second on tasks that failed."""
    return f"({rate(FAILED_USED)} - {rate(FAILED_REFUNDED)})"


def balance(offset: str = "") -> str:
    """Return the latest balance of a quarter of an hour: a fetch that failed does not make it unknown."""
    return f"max by (workspace) (last_over_time({selector(REMAINING_CREDITS)}[15m]{offset}))"


def balance_falling() -> str:
    """Return the credits a second by which the balance fell over the last day; a purchase hides its five minutes."""
    return f"(avg_over_time(clamp_min({balance(' offset 5m')} - {balance()}, 0)[1d:5m]) / 300)"


def recorded(name: str) -> str:
    """Select by the variables what a recording rule made, folded already."""
    return f'{name}{{workspace=~"$workspace", api=~"$api", model=~"$model"}}'
