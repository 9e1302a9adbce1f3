"""Credits: how many are left and for how long, what burns them, what is wasted, what nobody can explain."""

from typing import Final

from grafana_foundation_sdk.builders import bargauge, stat, table, timeseries
from grafana_foundation_sdk.models import dashboard as models

from creatify_exporter import metrics
from grafana import panels, queries
from grafana.frame import framed, row
from grafana.limits import limit, percent
from grafana.panels import BAD, FAIR, GOOD, PLAIN, steps
from grafana.queries import (
    balance,
    balance_falling,
    counted,
    increase,
    selector,
    spending,
    spent,
    summed,
    wasted,
    wasting,
)

YEAR: Final = 365 * 86400
DAY: Final = 86400
LOW, WASTED = "credits_low_plan_ratio", "credits_wasted_ratio"
CURRENCIES: Final = ("USD", "EUR", "GBP", "JPY", "BRL", "INR", "KRW", "CHF", "PLN", "SEK", "NOK", "DKK", "CZK", "ZAR")
"""Those that have a unit in Grafana; others are written as plain numbers under their name."""
PRICE: Final = f"max by (workspace, currency) ({selector(metrics.CREDIT_PRICE)})"
PLAN: Final = f"max by (workspace) ({selector(metrics.PLAN_CREDITS)})"
RENEWAL: Final = f"max by (workspace) ({selector(metrics.PLAN_RENEWAL)})"


def build() -> models.Dashboard:
    """Return the dashboard."""
    return framed(
        "creatify-credits",
        "Credits",
        "How many credits are left and for how long, what burns them, and what is wasted.",
        row("Left", _balance(), _of_the_plan(), _falling(), _lasts(), _renewal(), _left_at_renewal()),
        row("Where the balance goes", _balance_graph(), _unexplained()),
        row("Burn", _hour(), _day(), _month(), _money_day(), _money_month(), _price(), _burn_by_model(), _by_model()),
        row("Wasted", _wasted(), _wasted_share(), _wasted_money(), _in_the_list(), _wasted_by_model(), _share_graph()),
    )


def _balance() -> stat.Panel:
    return (
        panels.stat(
            "Balance",
            f"Credits left. Red below {limit('credits_low_credits'):g}, which is low unless the plan is small. Unknown:"
            " it could not be read for a quarter of an hour.",
            panels.now(balance(), "{{workspace}}"),
        )
        .unit("locale")
        .decimals(0)
        .thresholds(steps(BAD, (limit("credits_low_credits"), PLAIN)))
        .no_value("unknown")
        .links([panels.runbook("CreatifyCreditsLow"), panels.runbook("CreatifyBalanceUnknown")])
    )


def _of_the_plan() -> stat.Panel:
    return (
        panels.stat(
            "Of the plan",
            "The balance as a share of the plan's credits. Credits bought beside the plan can make it more than all."
            " Unknown without a plan in the configuration, or without a balance.",
            panels.now(f"{balance()} / ({PLAN} > 0)", "{{workspace}}"),
        )
        .unit("percentunit")
        .decimals(0)
        .thresholds(steps(BAD, (limit(LOW), FAIR), (2.5 * limit(LOW), GOOD)))
        .no_value("unknown")
        .links([panels.runbook("CreatifyCreditsLow")])
    )


def _lasts() -> stat.Panel:
    # Nothing left that falls no more is over, not unknown, which 0 / 0 would be.
    lasts = f"({balance()} > 0) / {balance_falling()}"
    return (
        panels.stat(
            "Lasts for",
            "How long the balance lasts if it goes on falling as it did in the last 24 hours; ten years at most."
            " Unknown without a balance, or in its first minutes.",
            panels.now(f"clamp_max({lasts}, {10 * YEAR}) or ({balance()} <= 0) * 0", "{{workspace}}"),
        )
        .unit("s")
        .decimals(1)
        .thresholds(steps(BAD, (limit("credits_run_out_seconds"), FAIR), (7 * DAY, GOOD)))
        .no_value("unknown")
        .links([panels.runbook("CreatifyCreditsRunOut")])
    )


def _falling() -> stat.Panel:
    return (
        panels.stat(
            "Falls by, a day",
            "Credits a day by which the balance fell in the last 24 hours (or since there is a balance, if that is"
            " less), for all of Creatify's products; purchases are left out. Unknown"
            " without a balance, or in its first minutes.",
            panels.now(f"{DAY} * {balance_falling()}", "{{workspace}}"),
        )
        .unit("locale")
        .decimals(0)
        .thresholds(steps(PLAIN))
        .no_value("unknown")
    )


def _renewal() -> stat.Panel:
    return (
        panels.stat(
            "Plan renews",
            "When the configured plan renews next. The API does not tell: plan.renews_on_day does. Unknown: none is"
            " configured, or no exporter answers.",
            panels.now(f"1000 * {RENEWAL}", "{{workspace}}"),
        )
        .unit("dateTimeFromNow")
        .thresholds(steps(PLAIN))
        .no_value("unknown")
    )


def _left_at_renewal() -> stat.Panel:
    return (
        panels.stat(
            "Left at the renewal",
            "What is left of the balance when the plan renews, at the rate of the last 24 hours. Below zero: so many"
            " credits are missing before. Unknown without a plan in the configuration, or without a balance.",
            panels.now(f"{balance()} - {balance_falling()} * ({RENEWAL} - time())", "{{workspace}}"),
        )
        .unit("locale")
        .decimals(0)
        .thresholds(steps(BAD, (0, GOOD)))
        .no_value("unknown")
    )


def _balance_graph() -> timeseries.Panel:
    return (
        panels.graph(
            "Balance",
            "Credits left. A rise is a purchase or the plan's renewal.",
            panels.query(balance(), "{{workspace}}"),
        )
        .unit("short")
        .no_value("the balance was not known in this time")
    )


def _unexplained() -> timeseries.Panel:
    everything = summed("workspace", spent("1h", scope=("workspace",)))
    return (
        panels.graph(
            "Change of the balance that the tasks do not explain, 1 h",
            "How the balance changed within an hour, plus what the tasks listed cost in it, of all models. Around zero:"
            " the tasks explain it. Below: something else took credits. Above: a purchase.",
            panels.query(f"{balance()} - {balance(' offset 1h')} + {everything}", "{{workspace}}"),
        )
        .unit("short")
        .no_value("no hour of balances and counted tasks in this time")
    )


def _credits_within(title: str, description: str, window: str) -> stat.Panel:
    return (
        panels.stat(title, description, panels.now(f"sum({spent(window)})", "credits"))
        .unit("locale")
        .decimals(0)
        .thresholds(steps(PLAIN))
        .no_value("none counted")
    )


def _hour() -> stat.Panel:
    return _credits_within("Last hour", "Credits used less credits refunded.", "1h")


def _day() -> stat.Panel:
    return _credits_within("Last 24 h", "Credits used less credits refunded.", "1d")


def _month() -> stat.Panel:
    description = (
        "Credits used less credits refunded, as far back as Prometheus remembers: 15 days unless it is told otherwise."
        " creatify-exporter report knows all months."
    )
    return _credits_within("Last 30 days", description, "30d")


def _money(title: str, description: str, expression: str) -> stat.Panel:
    by_workspace = summed("workspace", expression)
    money = panels.stat(
        title,
        description,
        panels.now(f"sum by (currency) ({PRICE} * on (workspace) group_left () {by_workspace})", "{{currency}}"),
    )
    return _in_currencies(money).decimals(2).thresholds(steps(PLAIN)).no_value("no price known")


def _in_currencies(panel: stat.Panel) -> stat.Panel:
    """Name each value after its currency, and give it its unit."""
    panels.named(panel).unit("none")
    for currency in CURRENCIES:
        panel.override_by_name(currency, [panels.option("unit", f"currency{currency}")])
    return panel


def _money_day() -> stat.Panel:
    description = "The credits of 24 hours at the price in the configuration (plan.price_per_credit)."
    return _money("Cost of the last 24 h", description, spent("1d"))


def _money_month() -> stat.Panel:
    description = "The credits of 24 hours, times thirty, at the price in the configuration."
    return _money("30 days at this rate", description, f"30 * {spent('1d')}")


def _price() -> stat.Panel:
    price = panels.stat(
        "Price of a credit",
        "From the configuration: the API does not tell it.",
        panels.now(f"max by (currency) ({PRICE})", "{{currency}}"),
    )
    return _in_currencies(price).decimals(3).thresholds(steps(PLAIN)).no_value("no price known")


def _burn_by_model() -> timeseries.Panel:
    return (
        panels.area(
            "Credits an hour, by model",
            "The rate at which the tasks of each model use credits, refunds subtracted.",
            panels.query(f"clamp_min(3600 * {summed('model', spending())}, 0)", "{{model}}"),
        )
        .unit("short")
        .span(24)
        .interval("5m")
        .no_value("no credits were used in this time")
        .links([panels.runbook("CreatifyCreditBurnHigh")])
    )


def _priced(credits_by_model: str) -> str:
    return f"{credits_by_model} * on (workspace) group_left (currency) {PRICE}"


def _by_model() -> table.Panel:
    key = "workspace, model"
    month, finished = summed(key, spent("30d")), summed(key, increase(metrics.TASKS_FINISHED, "30d"))
    by_model = panels.table(
        "Credits, by model",
        "Credits used less refunded, and what they cost where the plan in the configuration has a price; those of 30"
        " days as far back as Prometheus remembers. Wasted: those of 30 days that went into tasks that failed.",
        ("Last hour", summed(key, spent("1h"))),
        ("Last 24 h", summed(key, spent("1d"))),
        ("30 days", month),
        ("Credits a task", f"{month} / ({finished} > 0)"),
        ("Wasted", summed(key, wasted("30d"))),
        ("Hour's cost", _priced(summed(key, spent("1h")))),
        ("Day's cost", _priced(summed(key, spent("1d")))),
        ("30 days' cost", _priced(month)),
        keys=panels.MODEL | {"currency": "Currency"},
    )
    for column, digits in (("Last hour", 1), ("Credits a task", 2), ("Wasted", 1)):
        panels.column(by_model, column, panels.DIGITS, digits)
    for cost in ("Hour's cost", "Day's cost", "30 days' cost"):
        panels.column(by_model, cost, panels.DIGITS, 2)
    return (
        panels.sorted_by(by_model, "30 days")
        .unit("locale")
        .decimals(1)
        .thresholds(steps(PLAIN))
        .no_value("no credits were used")
    )


def _wasted() -> stat.Panel:
    return (
        panels.stat(
            "Wasted on failures",
            "Credits in the time shown that went into tasks that failed, refunds subtracted.",
            panels.now(f"sum({wasted('$__range')})", "credits"),
        )
        .unit("locale")
        .decimals(1)
        .thresholds(steps(PLAIN))
        .no_value("none counted")
    )


def _wasted_share() -> stat.Panel:
    return (
        panels.stat(
            "Share wasted",
            "Credits that went into failed tasks, of all that were spent in the time shown.",
            panels.now(f"clamp(sum({wasted('$__range')}) / (sum({spent('$__range')}) > 0), 0, 1)"),
        )
        .unit("percentunit")
        .decimals(1)
        .thresholds(steps(GOOD, (round(limit(WASTED) / 3, 3), FAIR), (limit(WASTED), BAD)))
        .no_value("nothing was spent")
        .links([panels.runbook("CreatifyCreditsWasted")])
    )


def _wasted_money() -> stat.Panel:
    description = "The credits wasted in the time shown, at the price in the configuration."
    return _money("Cost of failures", description, wasted("$__range"))


def _in_the_list() -> bargauge.Panel:
    return (
        panels.bar_gauge(
            "Credits of the tasks in the list",
            "What the tasks that the list holds now have used, by their status.",
            panels.now(f"sort_desc({summed('status', queries.gauge(metrics.TASKS_CREDITS))} > 0)", "{{status}}"),
        )
        .unit("locale")
        .decimals(1)
        .thresholds(steps("blue"))
        .height(4)
        .no_value("the list is unreadable")
    )


def _wasted_by_model() -> timeseries.Panel:
    return (
        panels.bars(
            "Credits wasted, by model",
            "Each bar counts the credits since the bar before that went into tasks that failed, refunds subtracted.",
            panels.query(counted("model", wasting()), "{{model}}"),
        )
        .unit("short")
        .interval("5m")
        .no_value("no credits were used in this time")
    )


def _share_graph() -> timeseries.Panel:
    share = panels.graph(
        "Share wasted, 6 h",
        "Credits that went into failed tasks, of all spent within six hours. Dashed: above"
        f" {percent(WASTED)} it is an alert, if they are {limit('credits_wasted_credits'):g} or more.",
        panels.query(
            f"clamp({summed('workspace', wasted('6h'))} / ({summed('workspace', spent('6h'))} > 0), 0, 1)",
            "{{workspace}}",
        ),
    )
    return (
        panels.limited(share)
        .unit("percentunit")
        .thresholds(steps(PLAIN, (limit(WASTED), BAD)))
        .no_value("nothing was spent in this time")
        .links([panels.runbook("CreatifyCreditsWasted")])
    )
