"""Credits: how many are left and for how long, what uses them, what is wasted, and what is unexplained."""

from typing import Final

from grafana_foundation_sdk.builders import table, timeseries
from grafana_foundation_sdk.models import dashboard as models

from creatify_exporter.metrics import TASKS_CREDITS
from grafana import panels
from grafana.frame import framed, row
from grafana.limits import BALANCE_STEPS, LASTS_STEPS, PLAN_STEPS, WASTED_STEPS, limit, percent
from grafana.palette import BAD, OTHERS, PLAIN
from grafana.panels import (
    CURRENCY,
    DIGITS,
    LIST,
    LIST_LINE,
    MODEL,
    MODEL_LINE,
    UNCOUNTED,
    UNREAD,
    WORKSPACE,
    Column,
    Line,
    steps,
)
from grafana.queries import (
    AT_END,
    OF_LIST,
    OF_MODEL,
    OF_WORKSPACE,
    PLAN,
    PRICE,
    RENEWAL,
    balance,
    balance_fallen,
    balance_falling,
    balance_risen,
    cost,
    counted,
    gauge,
    known,
    lasts,
    others,
    per_task,
    priced,
    share,
    spending,
    spent,
    summed,
    top,
    wasted,
    wasting,
)

DAY: Final = 86400
UNKNOWN: Final = "unknown"
HOURS: Final = 1000
"""Points of an hourly graph: with fewer, a purchase last month could fall between two of them."""
MOST_SPENT: Final = spent("$__range", at=AT_END)


def build() -> models.Dashboard:
    """Return the dashboard."""
    return framed(
        "credits",
        "How many credits are left and for how long, what uses them, and what is wasted.",
        row("", _workspaces(), _lists()),
        row("Where the balance goes", _balance(), _unexplained(), _risen()),
        row("Burn", _burn(), _per_task(), _in_the_list(), _models()),
        row("Waste", _wasted(), _wasted_share()),
    )


def _workspaces() -> table.Panel:
    falls = balance_falling()
    return panels.table(
        "Workspaces",
        "The balance of each workspace, the one that lasts shortest first. Falls by: within the last 24 hours, for all"
        " of Creatify's products, without purchases. Lasts for and Left then (when the plan renews): at that rate."
        " Unknown: no balance could be read for a quarter of an hour, or the configuration has no plan.",
        (WORKSPACE,),
        Column("Balance", balance(), width=80, steps=BALANCE_STEPS, empty=UNKNOWN),
        Column("Of the plan", f"{balance()} / ({PLAN} > 0)", "percentunit", 0, 90, steps=PLAN_STEPS, empty=UNKNOWN),
        Column("Falls by, 24 h", f"{DAY} * {falls}", width=107, empty=UNKNOWN),
        Column("Lasts for", lasts(), "s", 1, 92, steps=LASTS_STEPS, empty=UNKNOWN),
        Column("Renews", f"1000 * {RENEWAL}", "dateTimeFromNow", None, 95, empty=UNKNOWN),
        Column(
            "Left then",
            f"{balance()} - {falls} * ({RENEWAL} - time())",
            width=82,
            steps=steps(BAD, (0, PLAIN)),
            empty=UNKNOWN,
        ),
        Column("Tasks, 24 h", summed(OF_WORKSPACE, spent("1d")), width=95),
        Column("Price", PRICE, DIGITS, 3, 55),
        Column("Cost, 24 h", cost(summed(OF_WORKSPACE, spent("1d"))), decimals=2, width=87),
        Column("Times 30", cost(f"(30 * {summed(OF_WORKSPACE, spent('1d'))})"), decimals=2, width=95),
        known=known(OF_WORKSPACE),
        extra=(CURRENCY,),
        sort=("+Lasts for",),
        empty="no balance, no plan and no task is known: see Overview",
        height=7,
        runbooks=("CreatifyCreditsRunOut", "CreatifyCreditsLow", "CreatifyBalanceUnknown"),
    )


def _lists() -> table.Panel:
    wasted_share = f"clamp({summed(OF_LIST, wasted('30d'))} / ({summed(OF_LIST, spent('30d'))} > 0), 0, 1)"
    return panels.table(
        "Lists",
        "What each list of tasks costs, minus refunds; 30 days as far back as Prometheus keeps samples (15 days by"
        " default): creatify-exporter report has all months. Each: credits per finished task.",
        (WORKSPACE, LIST),
        Column("Credits, 24 h", summed(OF_LIST, spent("1d")), width=104),
        Column("30 d", summed(OF_LIST, spent("30d")), width=85),
        Column("Each, 24 h", per_task(OF_LIST, "1d"), DIGITS, 2, 87),
        Column("Each, 30 d", per_task(OF_LIST, "30d"), DIGITS, 2, 87),
        Column("Wasted, 30 d", wasted_share, "percentunit", 1, 107, steps=WASTED_STEPS),
        Column("Cost, 24 h", cost(summed(OF_LIST, spent("1d"))), decimals=2, width=87),
        Column("Cost, 30 d", cost(summed(OF_LIST, spent("30d"))), decimals=2, width=95),
        extra=(CURRENCY,),
        sort=("30 d",),
        empty=UNCOUNTED,
        height=8,
        runbooks=("CreatifyCreditBurnHigh", "CreatifyCreditsWasted"),
    )


def _balance() -> timeseries.Panel:
    panel = panels.graph(
        "Balance",
        "Credits left. A rise is a purchase, the plan's renewal or a refund.",
        Line(balance(), "{{workspace}}"),
        unit="locale",
        empty="no balance was known: see Balance on Overview",
        span=8,
    )
    return panel.decimals(0)


def _unexplained() -> timeseries.Panel:
    everything = summed(OF_WORKSPACE, spent("1h", scope=("workspace",)))
    panel = panels.graph(
        "Unexplained, 1 h",
        "Credits that the balance lost within an hour and that no listed task explains, without purchases. Known"
        " causes: lists that are not configured or cannot be read, products without a list, tasks from before the"
        " ledger, credits taken before a task is listed. Below zero: tasks whose credits were taken earlier, or hours"
        " with a purchase.",
        Line(f"{balance_fallen()} - on (workspace) {everything}", "{{workspace}}"),
        unit="locale",
        empty="no hour of balances and counted tasks",
        span=8,
    )
    return panel.decimals(0).max_data_points(HOURS)


def _risen() -> timeseries.Panel:
    panel = panels.graph(
        "Bought, 1 h",
        "Credits by which the balance rose within an hour: purchases, renewals of the plan, and refunds.",
        Line(balance_risen(), "{{workspace}}"),
        unit="locale",
        empty="no balance was known: see Balance on Overview",
        span=8,
    )
    return panel.decimals(0).max_data_points(HOURS)


def _burn() -> timeseries.Panel:
    burn = f"clamp_min(3600 * {summed(OF_MODEL, spending())}, 0)"
    panel = panels.graph(
        "Credits an hour",
        "The rate at which tasks use credits, minus refunds, for the ten models that use the most, and for all others.",
        Line(top(burn, OF_MODEL, MOST_SPENT), MODEL_LINE),
        Line(others(burn, OF_MODEL, MOST_SPENT), OTHERS),
        unit="locale",
        empty=UNCOUNTED,
        stacked=True,
        interval="5m",
        span=24,
        runbooks=("CreatifyCreditBurnHigh",),
    )
    return panel.decimals(1)


def _per_task() -> timeseries.Panel:
    return panels.graph(
        "Credits each, 6 h",
        "Credits per finished task over six hours, for the ten lists that spend the most. A gap: none finished.",
        Line(top(per_task(OF_LIST, "6h"), OF_LIST, MOST_SPENT), LIST_LINE),
        unit="short",
        empty=UNCOUNTED,
    )


def _in_the_list() -> timeseries.Panel:
    return panels.graph(
        "Credits listed",
        "Credits used by the tasks that are in the lists now, by status, with the number of lists read and the number"
        " of all lists.",
        Line(summed("status", gauge(TASKS_CREDITS)), "{{status}}"),
        *panels.LISTS_READ,
        unit="locale",
        empty=UNREAD,
        stacked=True,
    )


def _models() -> table.Panel:
    windows = {"1 h": "1h", "24 h": "1d", "30 d": "30d"}
    credit = {name: summed(OF_MODEL, spent(window)) for name, window in windows.items()}
    return panels.table(
        "Models",
        "Credits of each model, minus refunds, and their cost if the configured plan has a price; 30 days as far back"
        " as Prometheus keeps samples. Each: credits per finished task.",
        (WORKSPACE, LIST, MODEL),
        *(Column(name, expression, width=78) for name, expression in credit.items()),
        Column("Each, 30 d", per_task(OF_MODEL, "30d"), DIGITS, 2, 87),
        *(Column(f"Cost, {name}", priced(expression), decimals=2, width=93) for name, expression in credit.items()),
        extra=(CURRENCY,),
        sort=("30 d",),
        empty=UNCOUNTED,
        height=12,
    )


def _wasted() -> timeseries.Panel:
    waste, total = counted(OF_MODEL, wasting()), wasted("$__range", at=AT_END)
    return panels.bars(
        "Wasted",
        "Credits that went into failed tasks, minus refunds, for the ten models that waste the most, and for all"
        " others; each bar counts since the bar before.",
        Line(top(waste, OF_MODEL, total), MODEL_LINE),
        Line(others(waste, OF_MODEL, total), OTHERS),
        empty=UNCOUNTED,
    )


def _wasted_share() -> timeseries.Panel:
    return panels.graph(
        "Wasted share, 6 h",
        "Share of the credits spent within six hours that went into failed tasks. Dashed: above"
        f" {percent('credits_wasted_ratio')} an alert fires, if they are {limit('credits_wasted_credits'):g} or more.",
        Line(share(OF_WORKSPACE, wasted("6h"), spent("6h")), "{{workspace}}"),
        unit="percentunit",
        limit=(limit("credits_wasted_ratio"), BAD),
        empty="nothing was spent, or counted: see Down on Overview",
        runbooks=("CreatifyCreditsWasted",),
    )
