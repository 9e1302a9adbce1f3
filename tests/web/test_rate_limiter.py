import pytest

from creatify_exporter.web.rate_limiter import Interval, RateLimiter


class ManualClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_allowed_at_once_and_then_one_each_interval() -> None:
    clock = ManualClock()
    limiter = RateLimiter(2.0, 3, clock)
    assert [limiter.allows() for _ in range(5)] == [True, True, True, False, False]
    clock.now += 2.0
    assert [limiter.allows(), limiter.allows()] == [True, False]
    clock.now += 1.0
    assert not limiter.allows()
    clock.now += 1.0
    assert limiter.allows()
    clock.now += 3600.0
    assert [limiter.allows() for _ in range(4)] == [True, True, True, False]


def test_without_an_interval_all_are_allowed_and_without_a_burst_none_is() -> None:
    assert all(RateLimiter(0, 0).allows() for _ in range(100))
    assert not RateLimiter(1.0, 0).allows()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("1s", 1), ("250ms", 0.25), ("1.5h", 5400), ("1m30s", 90), (".5s", 0.5), ("1µs", 1e-6)],
)
def test_durations_are_read_as_go_reads_them(text: str, seconds: float) -> None:
    assert Interval.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "s", "1d", "1 s", "-1s", "1s2", "1,5s", "\u0661s", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        Interval.parse(text)
