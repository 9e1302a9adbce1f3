"""PromQL: selects by the variables, and folds what several exporters tell of the same thing.

Two exporters of one workspace, or /metrics scraped beside /probe, tell the same events twice. They are folded after
rate() or increase(), never before: a fold of raw counters falls when the replica that is ahead goes away.
"""

from typing import Final

from creatify_exporter.metrics import (
    CREDIT_PRICE,
    CREDITS_REFUNDED,
    CREDITS_USED,
    OLDEST_TASK,
    PLAN_CREDITS,
    PLAN_RENEWAL,
    REMAINING_CREDITS,
    TASKS,
    TASKS_FAILED,
    TASKS_FINISHED,
    UP,
    Family,
)
from creatify_exporter.metrics import FAILED_CREDITS_REFUNDED as FAILED_REFUNDED
from creatify_exporter.metrics import FAILED_CREDITS_USED as FAILED_USED

REPLICA: Final = "instance, job, pod, container, endpoint, service, node"
"""The labels that tell one exporter from another."""
ENVIRONMENT: Final = "cluster, environment, namespace"
"""The labels that tell environments apart, as in the rules. Workspaces of one name share a row: the worst is shown."""
SCOPE: Final = ("workspace", "api", "model")
"""The labels that are variables of the dashboards."""
OF_WORKSPACE: Final = "workspace"
OF_LIST: Final = "workspace, api"
OF_MODEL: Final = "workspace, api, model"
BALANCE: Final = "remaining_credits"
"""What stands in the label of the list for the balance."""
WAITING: Final = 'status=~"pending|running"'
AT_END: Final = " @ end()"
"""At the end of the time shown, the same for each point of a graph."""
TOP: Final = 10
"""Lines of a graph of lists or models."""


def selector(family: Family, *matchers: str, part: str = "", scope: tuple[str, ...] = SCOPE) -> str:
    """Select a family's series by those variables that are labels of it; `part` is like `_bucket`."""
    chosen = [f'{label}=~"${label}"' for label in scope if label in family.labels]
    return f"{family.name}{part}{{{', '.join([*chosen, *matchers])}}}"


def folded(expression: str) -> str:
    """Take of each series what one exporter says of it."""
    return f"max without ({REPLICA}) ({expression})"


def gauge(family: Family, *matchers: str, window: str = "5m") -> str:
    """Return the latest values of a window: a failed fetch or two do not make them unknown, more do."""
    return _of_family(family, f"last_over_time({selector(family, *matchers)}[{window}])")


def _of_family(family: Family, expression: str) -> str:
    """Take the largest that an exporter of an environment says; a label that came with an upgrade does not matter."""
    return f"max by ({', '.join((ENVIRONMENT, *family.labels))}) ({expression})"


def rate(family: Family, *matchers: str, part: str = "") -> str:
    """Return the increase a second."""
    return folded(f"rate({selector(family, *matchers, part=part)}[$__rate_interval])")


def counted(labels: str, rates: str) -> str:
    """Return what a bar of a graph counts: the sums of the time since the bar before."""
    return f"{summed(labels, rates)} * $__interval_ms / 1000"


def increase(
    family: Family, window: str, *matchers: str, part: str = "", scope: tuple[str, ...] = SCOPE, at: str = ""
) -> str:
    """Return the increase within a window that ends now."""
    return folded(f"increase({selector(family, *matchers, part=part, scope=scope)}[{window}]{at})")


def summed(labels: str, expression: str) -> str:
    """Sum by these labels."""
    return f"sum by ({labels}) ({expression})"


def share(labels: str, part: str, whole: str) -> str:
    """Divide sums; absent without a whole. Two replicas may book seconds apart, hence the clamp."""
    return f"clamp({summed(labels, part)} / ({summed(labels, whole)} > 0), 0, 1)"


def quantile(ratio: float, labels: str, buckets: str) -> str:
    """Return the quantile of the summed buckets, without rows for which nothing was observed."""
    return f"histogram_quantile({ratio}, {summed(f'le, {labels}', buckets)}) >= 0"


def top(lines: str, labels: str, total: str) -> str:
    """Keep the lines of the largest totals, which are taken `AT_END`, so that they are the same all along a graph."""
    return f"{lines} and on ({labels}) topk({TOP}, {summed(labels, total)})"


def others(lines: str, labels: str, total: str) -> str:
    """Sum the lines that `top` leaves out."""
    return f"sum({lines} unless on ({labels}) topk({TOP}, {summed(labels, total)}))"


# --- Lists, and what is in them.


def known(labels: str) -> str:
    """Return a row for each workspace or list, balances included, that an exporter has told of within six hours."""
    return f"count by ({labels}) ({gauge(UP, window='6h')})"


def lists() -> str:
    """Return the lists that an exporter has told of within six hours: they are shown although none answers now."""
    return gauge(UP, f'api!="{BALANCE}"', window="6h")


def read() -> str:
    """Return 1 for each list and balance that a fetch has read within five minutes, and 0 for others that it tried."""
    return _of_family(UP, f"max_over_time({selector(UP)}[5m])")


def lists_read() -> str:
    """Return the lists that a fetch has read within five minutes."""
    return f"({lists()} and {read()} == 1)"


def down() -> str:
    """Return for each workspace how many of its lists no fetch has read for five minutes."""
    return f"count by (workspace) ({lists()} unless {lists_read()}) or 0 * count by (workspace) ({lists()})"


def oldest_waiting(labels: str) -> str:
    """Return the age of the oldest waiting task in seconds, 0 if the list was read and none waits."""
    waits = f"last_over_time({selector(TASKS, WAITING)}[5m]) > 0"
    created = folded(f"last_over_time({selector(OLDEST_TASK)}[5m]) and {waits}")
    return f"time() - min by ({labels}) ({created}) or 0 * {summed(labels, gauge(TASKS, WAITING))}"


def failed_ratio(labels: str, window: str) -> str:
    """Return the share of the tasks finished within a window that failed."""
    return f"max by ({labels}) ({_failed_ratio(labels, window)})"


def _failed_ratio(labels: str, window: str) -> str:
    return share(f"{ENVIRONMENT}, {labels}", increase(TASKS_FAILED, window), increase(TASKS_FINISHED, window))


def failing_now(labels: str) -> str:
    """Return the failure ratio of the worst model: of 15 minutes if five tasks finished in them, else of an hour."""
    enough = f"{summed(f'{ENVIRONMENT}, {OF_MODEL}', increase(TASKS_FINISHED, '15m'))} > 4.5"
    return f"max by ({labels}) ({_failed_ratio(OF_MODEL, '15m')} and {enough} or {_failed_ratio(OF_MODEL, '1h')})"


def main(label: str, labels: str, family: Family, window: str) -> str:
    """Return of each group the value of a label behind most of its failures, if there are any."""
    failures = summed(f"{labels}, {label}", increase(family, window))
    return f"topk by ({labels}) (1, {failures} > 0.5)"


# --- Credits.


def spent(window: str, scope: tuple[str, ...] = SCOPE, at: str = "") -> str:
    """Return the credits spent within a window: used less refunded."""
    used, refunded = (increase(family, window, scope=scope, at=at) for family in (CREDITS_USED, CREDITS_REFUNDED))
    return f"({used} - {refunded})"


def wasted(window: str, at: str = "") -> str:
    """Return the credits spent within a window on tasks that failed."""
    return f"({increase(FAILED_USED, window, at=at)} - {increase(FAILED_REFUNDED, window, at=at)})"


def spending() -> str:
    """Return the credits spent a second."""
    return f"({rate(CREDITS_USED)} - {rate(CREDITS_REFUNDED)})"


def wasting() -> str:
    """Return the credits spent a second on tasks that failed."""
    return f"({rate(FAILED_USED)} - {rate(FAILED_REFUNDED)})"


def per_task(labels: str, window: str) -> str:
    """Return the credits that a finished task costs."""
    return f"{summed(labels, spent(window))} / ({summed(labels, increase(TASKS_FINISHED, window))} > 0)"


def _price(window: str) -> str:
    """Return of two prices one: for so long after a change of the currency both are known."""
    latest = f"max by (workspace, currency) (last_over_time({selector(CREDIT_PRICE)}[{window}]))"
    return f"topk by (workspace) (1, {latest})"


PRICE: Final = f"({_price('15m')} or on (workspace) {_price('6h')})"
"""While no exporter answers, the last price holds: a cost must not turn into credits when one goes away."""
PLAN: Final = f"max by (workspace) (last_over_time({selector(PLAN_CREDITS)}[15m]))"
RENEWAL: Final = f"max by (workspace) (last_over_time({selector(PLAN_RENEWAL)}[15m]))"


def priced(credit: str) -> str:
    """Return what credits cost in the currency of their workspace, without those that have no price."""
    return f"{credit} * on (workspace) group_left (currency) {PRICE}"


def cost(credit: str) -> str:
    """Return the same, and what has no price as it is, with `credits` for its currency."""
    return f'{priced(credit)} or label_replace({credit} unless on (workspace) {PRICE}, "currency", "credits", "", "")'


def balance() -> str:
    """Return the latest balance of a quarter of an hour: a fetch that failed does not make it unknown."""
    return f"min by (workspace) ({_balances()})"


def balance_falling() -> str:
    """Return the credits a second by which the balance fell over the last day; a purchase hides its five minutes."""
    return summed(OF_WORKSPACE, _falling())


def balance_fallen() -> str:
    """Return the credits by which the balance fell within the last hour, purchases left out."""
    return summed(OF_WORKSPACE, f"sum_over_time(clamp_min({_balances(' offset 5m')} - {_balances()}, 0)[1h:5m])")


def balance_risen() -> str:
    """Return the credits by which the balance rose within the last hour."""
    return summed(OF_WORKSPACE, f"sum_over_time(clamp_min({_balances()} - {_balances(' offset 5m')}, 0)[1h:5m])")


def lasts() -> str:
    """Return the seconds that the balance lasts, ten years at most. Nothing left is over, which 0 / 0 would not say."""
    ten_years = 10 * 365 * 86400
    left = f"clamp_max(({_balances()} > 0) / {_falling()}, {ten_years}) or ({_balances()} <= 0) * 0"
    return f"min by (workspace) ({left})"


def _balances(offset: str = "") -> str:
    return _of_family(REMAINING_CREDITS, f"last_over_time({selector(REMAINING_CREDITS)}[15m]{offset})")


def _falling() -> str:
    return f"(avg_over_time(clamp_min({_balances(' offset 5m')} - {_balances()}, 0)[1d:5m]) / 300)"


def recorded(name: str) -> str:
    """Select by the variables what a recording rule made, folded already."""
    return f'{name}{{workspace=~"$workspace", api=~"$api", model=~"$model"}}'
