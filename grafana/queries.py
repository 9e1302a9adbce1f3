"""PromQL: selection by the variables, and deduplication of replicas.

Two exporters of one workspace, or /metrics scraped beside /probe, report the same events twice. They are deduplicated
after rate() or increase(), never before: the maximum of raw counters falls when the replica that is ahead goes away.
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
"""The labels that distinguish exporters."""
ENVIRONMENT: Final = "cluster, environment, namespace"
"""The labels that distinguish environments, as in the rules. Workspaces of one name share a row: the worst is shown."""
SCOPE: Final = ("workspace", "api", "model")
"""The labels that are dashboard variables."""
OF_WORKSPACE: Final = "workspace"
OF_LIST: Final = "workspace, api"
OF_MODEL: Final = "workspace, api, model"
BALANCE: Final = "remaining_credits"
"""The value of the label `api` for the balance."""
WAITING: Final = 'status=~"pending|running"'
AT_END: Final = " @ end()"
"""At the end of the shown time range, the same for each point of a graph."""
TOP: Final = 10
"""The number of lines in a graph of lists or models."""


def selector(family: Family, *matchers: str, part: str = "", scope: tuple[str, ...] = SCOPE) -> str:
    """Select a family's series by the variables among its labels; `part` is a suffix such as `_bucket`."""
    chosen = [f'{label}=~"${label}"' for label in scope if label in family.labels]
    return f"{family.name}{part}{{{', '.join([*chosen, *matchers])}}}"


def folded(expression: str) -> str:
    """Deduplicate replicas by their maximum."""
    return f"max without ({REPLICA}) ({expression})"


def gauge(family: Family, *matchers: str, window: str = "5m") -> str:
    """Return the latest values within a window: they survive one or two failed fetches, but not more."""
    return _of_family(family, f"last_over_time({selector(family, *matchers)}[{window}])")


def _of_family(family: Family, expression: str) -> str:
    """Take the maximum of an environment's exporters, without labels that an upgrade may have added."""
    return f"max by ({', '.join((ENVIRONMENT, *family.labels))}) ({expression})"


def rate(family: Family, *matchers: str, part: str = "") -> str:
    """Return the increase per second."""
    return folded(f"rate({selector(family, *matchers, part=part)}[$__rate_interval])")


def counted(labels: str, rates: str) -> str:
    """Return the value of a graph's bar: the sum over the time since the bar before."""
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
    """Divide sums; absent if the whole is 0. Clamped, because two replicas may record seconds apart."""
    return f"clamp({summed(labels, part)} / ({summed(labels, whole)} > 0), 0, 1)"


def quantile(ratio: float, labels: str, buckets: str) -> str:
    """Return the quantile of the summed buckets, without rows that have no observation."""
    return f"histogram_quantile({ratio}, {summed(f'le, {labels}', buckets)}) >= 0"


def top(lines: str, labels: str, total: str) -> str:
    """Keep the lines with the largest totals, taken `AT_END` so that a graph shows the same lines throughout."""
    return f"{lines} and on ({labels}) topk({TOP}, {summed(labels, total)})"


def others(lines: str, labels: str, total: str) -> str:
    """Sum the lines that `top` leaves out."""
    return f"sum({lines} unless on ({labels}) topk({TOP}, {summed(labels, total)}))"


# --- Lists and their tasks.


def known(labels: str) -> str:
    """Return a row for each workspace or list, including balances, that an exporter reported within six hours."""
    return f"count by ({labels}) ({gauge(UP, window='6h')})"


def lists() -> str:
    """Return the lists that an exporter reported within six hours: they are shown even if none answers now."""
    return gauge(UP, f'api!="{BALANCE}"', window="6h")


def read() -> str:
    """Return 1 for each list and balance that was read within five minutes, and 0 for those that were only tried."""
    return _of_family(UP, f"max_over_time({selector(UP)}[5m])")


def lists_read() -> str:
    """Return the lists that a fetch has read within five minutes."""
    return f"({lists()} and {read()} == 1)"


def down() -> str:
    """Return by workspace the number of lists that no fetch has read for five minutes."""
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
    """Return for each group with failures the label value that most of them have."""
    failures = summed(f"{labels}, {label}", increase(family, window))
    return f"topk by ({labels}) (1, {failures} > 0.5)"


# --- Credits.


def spent(window: str, scope: tuple[str, ...] = SCOPE, at: str = "") -> str:
    """Return the credits spent within a window: used minus refunded."""
    used, refunded = (increase(family, window, scope=scope, at=at) for family in (CREDITS_USED, CREDITS_REFUNDED))
    return f"({used} - {refunded})"


def wasted(window: str, at: str = "") -> str:
    """Return the credits spent within a window on tasks that failed."""
    return f"({increase(FAILED_USED, window, at=at)} - {increase(FAILED_REFUNDED, window, at=at)})"


def spending() -> str:
    """Return the credits spent per second."""
    return f"({rate(CREDITS_USED)} - {rate(CREDITS_REFUNDED)})"


def wasting() -> str:
    """Return the credits spent per second on tasks that failed."""
    return f"({rate(FAILED_USED)} - {rate(FAILED_REFUNDED)})"


def per_task(labels: str, window: str) -> str:
    """Return the credits that a finished task costs."""
    return f"{summed(labels, spent(window))} / ({summed(labels, increase(TASKS_FINISHED, window))} > 0)"


def _price(window: str) -> str:
    """Return a single price: after a change of currency, both are known for the length of the window."""
    latest = f"max by (workspace, currency) (last_over_time({selector(CREDIT_PRICE)}[{window}]))"
    return f"topk by (workspace) (1, {latest})"


PRICE: Final = f"({_price('15m')} or on (workspace) {_price('6h')})"
"""While no exporter answers, the last price stays: a cost must not turn into credits when an exporter goes away."""
PLAN: Final = f"max by (workspace) (last_over_time({selector(PLAN_CREDITS)}[15m]))"
RENEWAL: Final = f"max by (workspace) (last_over_time({selector(PLAN_RENEWAL)}[15m]))"


def priced(credit: str) -> str:
    """Return the cost of credits in their workspace's currency, without credits that have no price."""
    return f"{credit} * on (workspace) group_left (currency) {PRICE}"


def cost(credit: str) -> str:
    """Return the same, with credits that have no price unchanged and `credits` as their currency."""
    return f'{priced(credit)} or label_replace({credit} unless on (workspace) {PRICE}, "currency", "credits", "", "")'


def balance() -> str:
    """Return the latest balance within a quarter of an hour: it survives a failed fetch."""
    return f"min by (workspace) ({_balances()})"


def balance_falling() -> str:
    """Return the balance's fall in credits per second over the last day; a purchase hides its five minutes."""
    return summed(OF_WORKSPACE, _falling())


def balance_fallen() -> str:
    """Return the credits by which the balance fell within the last hour, without purchases."""
    return summed(OF_WORKSPACE, f"sum_over_time(clamp_min({_balances(' offset 5m')} - {_balances()}, 0)[1h:5m])")


def balance_risen() -> str:
    """Return the credits by which the balance rose within the last hour."""
    return summed(OF_WORKSPACE, f"sum_over_time(clamp_min({_balances()} - {_balances(' offset 5m')}, 0)[1h:5m])")


def lasts() -> str:
    """Return the seconds that the balance lasts, at most ten years; 0 if nothing is left, instead of 0 / 0."""
    ten_years = 10 * 365 * 86400
    left = f"clamp_max(({_balances()} > 0) / {_falling()}, {ten_years}) or ({_balances()} <= 0) * 0"
    return f"min by (workspace) ({left})"


def _balances(offset: str = "") -> str:
    return _of_family(REMAINING_CREDITS, f"last_over_time({selector(REMAINING_CREDITS)}[15m]{offset})")


def _falling() -> str:
    return f"(avg_over_time(clamp_min({_balances(' offset 5m')} - {_balances()}, 0)[1d:5m]) / 300)"


def recorded(name: str) -> str:
    """Select a recorded series by the variables; replicas are deduplicated already."""
    return f'{name}{{workspace=~"$workspace", api=~"$api", model=~"$model"}}'
