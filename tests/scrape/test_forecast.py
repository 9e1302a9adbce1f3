"""How long the credits last, from numbers alone."""

from collections.abc import Mapping
from datetime import UTC, datetime
from math import inf

import pytest

from creatify_exporter.config.plan import Plan
from creatify_exporter.forecast import BalanceFall, Spending, outlook
from creatify_exporter.snapshot import Cell, Snapshot

NOW = datetime(2026, 12, 10, 12, tzinfo=UTC).timestamp()
TODAY = int(NOW // 86400)
LONG_AGO = NOW - 100 * 86400


def rate(net: Mapping[int, float], since: float, **listed: float) -> float | None:
    cell = Cell(1, listed.get("credits_used", 0.0))
    snapshot = Snapshot(oldest_at=listed["oldest_at"], cells={("pro", "done"): cell}) if listed else None
    return Spending(net, since, snapshot).daily_rate(NOW)


def test_the_rate_is_the_average_of_the_last_seven_days_and_today() -> None:
    by_day = {TODAY - 30: 9000.0, TODAY - 7: 100.0, TODAY - 2: 60.0, TODAY: -10.0}
    assert rate(by_day, LONG_AGO) == 150 / 7.5
    assert rate({}, LONG_AGO) == 0


def test_a_young_ledger_is_averaged_over_its_whole_days_and_the_days_of_its_first_list() -> None:
    assert rate({TODAY - 2: 500.0, TODAY - 1: 20.0, TODAY: 10.0}, NOW - 2 * 86400) == 30 / 1.5
    assert rate({TODAY - 3: 70.0, TODAY - 1: 50.0}, NOW - 60) == 50 / 2.5


def test_days_that_the_first_list_covers_count_even_without_any_use() -> None:
    assert rate({TODAY - 1: 75.0}, NOW - 60, oldest_at=NOW - 30 * 86400) == 75 / 7.5


@pytest.mark.parametrize("hours_ago", [0, 1, 12])
def test_the_part_of_the_first_day_that_the_list_covers_counts(hours_ago: float) -> None:
    began = NOW - hours_ago * 3600
    by_day = {int((began - 86400) // 86400): 3000.0, TODAY: 500.0}
    assert rate(by_day, began, oldest_at=NOW - 86400 * 1.25, credits_used=1000) == 800
    assert rate(by_day, began, oldest_at=NOW - 86400 * 0.8, credits_used=1000) is None


def test_a_ledger_without_the_history_knows_what_was_used_since_it_began() -> None:
    ages_ago = NOW - 90 * 86400
    assert rate({TODAY - 1: 30.0}, NOW - 2 * 86400, oldest_at=ages_ago) == 30 / 1.5
    assert rate({TODAY - 2: 99.0, TODAY - 1: 50.0}, NOW - 2 * 86400, oldest_at=ages_ago) == 50 / 1.5
    assert rate({}, NOW - 60, oldest_at=NOW - 2 * 86400, credits_used=300) == 150


@pytest.mark.parametrize("by_day", [{}, {TODAY: 500.0}])
@pytest.mark.parametrize("listed", [{}, {"oldest_at": inf, "credits_used": 40.0}])
def test_less_than_a_day_gives_no_rate(by_day: dict[int, float], listed: dict[str, float]) -> None:
    assert rate(by_day, NOW - 3600, **listed) is None


def test_an_empty_list_costs_nothing() -> None:
    assert Spending({}, NOW, snapshot=Snapshot()).daily_rate(NOW) == 0


def test_a_balance_gives_a_rate_after_a_day_and_ignores_purchases() -> None:
    balance = BalanceFall()
    assert balance.daily_rate(NOW) is None
    for days_ago, left in [(2.0, 500), (1.5, 460), (1.2, 2460), (1.1, 2500), (0.5, 2450), (0.0, 2450)]:
        balance.note(left, NOW - days_ago * 86400)
    assert balance.daily_rate(NOW) == (40 + 50) / 2
    assert balance.daily_rate(NOW + 7 * 86400) == 50 / 7.5
    young = BalanceFall()
    young.note(10, NOW - 0.8 * 86400)
    young.note(5, NOW)
    assert young.daily_rate(NOW) is None


def test_credits_that_end_before_the_renewal_are_short_by_the_use_in_between() -> None:
    said = outlook(412, 50, NOW, Plan(credits=500, renews_on_day=1))
    # 21.5 days at 50 credits are 1,075.
    assert said == "412 of 500 credits, last until 18 December, renewal 1 January: 663 short"


def test_credits_that_reach_the_renewal_are_left_over() -> None:
    said = outlook(412, 10, NOW, Plan(credits=500, renews_on_day=1))
    assert said == "412 of 500 credits, last until the renewal 1 January: 197 left over"


def test_without_a_plan_there_is_an_end_unless_it_is_far_away() -> None:
    assert outlook(1412.5, 50, NOW) == "1,412.5 credits, last until 7 January"
    assert outlook(1e6, 1, NOW) == "1,000,000 credits, last for more than a year"


@pytest.mark.parametrize("rate", [None, 0.0, -3.0])
def test_without_a_rate_there_is_no_forecast(rate: float | None) -> None:
    assert outlook(412, rate, NOW, Plan(credits=500, renews_on_day=1)) == "412 of 500 credits, renewal 1 January"


@pytest.mark.parametrize(
    ("balance", "end"),
    [
        (1.01, "last about 29 minutes, until 12:29 UTC"),
        (2.1, "last about 1 hour, until 13:00 UTC"),
        (20.0, "last about 10 hours, until 21:36 UTC"),
        (90.0, "last about 43 hours, until 12 December, 07:12 UTC"),
        (100.0, "last until 12 December"),
    ],
)
def test_a_near_end_is_given_to_the_minute(balance: float, end: str) -> None:
    assert outlook(balance, 50, NOW) == f"{balance:g} credits, {end}"
    short = f"{50 * 21.5 - balance:,.0f} short"
    assert outlook(balance, 50, NOW, Plan(renews_on_day=1)) == f"{balance:g} credits, {end}, renewal 1 January: {short}"


def test_lists_that_are_missing_in_the_rate_are_named() -> None:
    missing = " (without aurora, lipsyncs: not known)"
    assert outlook(412, 50, NOW, without=["aurora", "lipsyncs"]) == f"412 credits, last until 18 December{missing}"
    assert outlook(412, None, NOW, without=["aurora"]) == "412 credits"


def test_an_overdrawn_balance_is_used_up() -> None:
    assert outlook(-5, 10, NOW, Plan(renews_on_day=1)) == "-5 credits, used up, renewal 1 January"
