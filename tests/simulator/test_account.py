import random
from itertools import pairwise

from creatify_exporter.simulator import Account, Listing, Traffic
from creatify_exporter.simulator.account import DAY
from creatify_exporter.simulator.listing import Encoder
from creatify_exporter.simulator.scenes import TIMETABLE

START = 1_760_000_040.0  # a full minute
SLOW = Traffic(1 / 60, rhythm=0.3, incidents=TIMETABLE["text_generator"], text_bytes=100)


def body(account: Account, at: float, listing: Listing) -> bytes:
    return b"".join(Encoder(account, listing.style).array(listing.tasks(account, at), at))


def test_the_same_seed_is_the_same_account_whenever_it_is_started() -> None:
    rng = random.Random(4)  # noqa: S311 - instants of any kind
    first = Account(7, START - 3 * DAY, SLOW)
    for restart in (START, START + rng.uniform(0, 60), START + DAY + rng.uniform(0, DAY)):
        again = Account(7, restart // DAY * DAY - DAY + rng.uniform(0, 3600), SLOW)
        for listing in (Listing(newest=300), Listing(younger_than=600), Listing(newest=50, repeats=True)):
            assert body(first, restart, listing) == body(again, restart, listing)
        assert first.remaining_credits(restart) == again.remaining_credits(restart)
        late = Account(7, restart - 3600, SLOW)
        assert first.truth(restart, restart - 3600) == late.truth(restart, restart - 3600)


def test_the_balance_falls_by_what_is_spent_and_is_full_at_midnight() -> None:
    account, midnight = Account(7, START - DAY, Traffic(rate=1 / 60), package=500), (START // DAY + 1) * DAY
    instants = [midnight + hour * 3600 for hour in range(24)]
    assert account.remaining_credits(midnight) == 500
    for before, after in pairwise(instants):
        net = sum((account.truth(after) - account.truth(before)).credits.values())
        assert (account.remaining_credits(before) - account.remaining_credits(after)) % 500 == net % 500
