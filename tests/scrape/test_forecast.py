"""How long the credits last, from numbers alone."""

from datetime import UTC, datetime

import pytest

from creatify_exporter.forecast import daily_rate, outlook

NOW = datetime(2026, 12, 10, 12, tzinfo=UTC).timestamp()
RENEWAL = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
TODAY = int(NOW // 86400)
LONG_AGO = NOW - 100 * 86400


def test_credits_go_at_the_average_of_the_last_seven_days_and_of_today() -> None:
    by_day = {TODAY - 30: 9000.0, TODAY - 7: 100.0, TODAY - 2: 60.0, TODAY: -10.0}
    assert daily_rate(by_day, LONG_AGO, NOW) == 150 / 7.5
    assert daily_rate({}, LONG_AGO, NOW) == 0


def test_a_young_ledger_is_averaged_over_what_it_knows_and_its_first_list_tells_of_days_before() -> None:
    assert daily_rate({TODAY - 1: 30.0}, NOW - 2 * 86400, NOW) == 15
    assert daily_rate({TODAY - 3: 70.0}, NOW - 60, NOW) == 70 / 3.5


@pytest.mark.parametrize("by_day", [{}, {TODAY: 500.0}])
def test_less_than_a_day_tells_nothing(by_day: dict[int, float]) -> None:
    assert daily_rate(by_day, NOW - 23 * 3600, NOW) is None


def test_credits_that_end_before_the_renewal_are_short_by_what_goes_between_the_two() -> None:
    said = outlook(412, 50, NOW, plan=500, renews_at=RENEWAL)
    # 21.5 days at 50 credits are 1,075.
    assert said == "412 of 500 credits, last until 18 December, renewal 1 January: 663 short"


def test_credits_that_reach_the_renewal_are_left_over() -> None:
    said = outlook(412, 10, NOW, plan=500, renews_at=RENEWAL)
    assert said == "412 of 500 credits, last until the renewal 1 January: 197 left over"


def test_without_a_plan_there_is_an_end_unless_it_is_far_away() -> None:
    assert outlook(1412.5, 50, NOW) == "1,412.5 credits, last until 7 January"
    assert outlook(1e6, 1, NOW) == "1,000,000 credits, last for more than a year"


@pytest.mark.parametrize("rate", [None, 0.0, -3.0])
def test_without_a_rate_nothing_is_foretold(rate: float | None) -> None:
    assert outlook(412, rate, NOW, plan=500, renews_at=RENEWAL) == "412 of 500 credits, renewal 1 January"


def test_an_overdrawn_balance_has_ended_now() -> None:
    assert outlook(-5, 10, NOW) == "-5 credits, last until 10 December"
