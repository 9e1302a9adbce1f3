import asyncio
import base64
import contextlib
from collections.abc import Awaitable, Iterable

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creatify_exporter.web.users import PasswordHash, Users


def hashed(password: bytes) -> PasswordHash:
    return PasswordHash.parse(bcrypt.hashpw(password, bcrypt.gensalt(4)).decode())


HASHES = {"alice": hashed(b"canary"), "bob": hashed(b"other"), "zoë": hashed("pässword".encode())}


def basic(name: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{name}:{password}".encode())


class Counted:
    """bcrypt that records its calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes]] = []

    def __call__(self, password: bytes, against: bytes) -> bool:
        self.asked.append((password, against))
        return bcrypt.checkpw(password, against)


def verdicts(users: Users, headers: Iterable[bytes | None]) -> list[str]:
    async def one_after_another() -> list[str]:
        return [await users.check(header) for header in headers]

    return asyncio.run(one_after_another())


def test_without_users_everybody_is_admitted() -> None:
    assert verdicts(Users({}), [None, b"Basic", basic("alice", "wrong")]) == ["admitted"] * 3


def test_the_right_password_of_a_user_is_admitted_and_nothing_else() -> None:
    admitted = [basic("alice", "canary"), basic("bob", "other"), basic("zoë", "pässword")]
    refused = [basic("alice", "other"), basic("alice", ""), basic("Alice", "canary"), basic("", "canary")]
    assert verdicts(Users(HASHES), admitted) == ["admitted"] * 3
    assert verdicts(Users(HASHES), refused) == ["refused"] * 4


def test_an_unknown_name_costs_the_same_work_as_a_wrong_password() -> None:
    check = Counted()
    assert verdicts(Users(HASHES, check), [basic("alice", "wrong"), basic("nobody", "wrong")]) == ["refused"] * 2
    assert [password for password, _ in check.asked] == [b"wrong", b"wrong"]
    assert check.asked[1][1] in HASHES.values()


def test_an_unknown_name_is_refused_with_any_users_password() -> None:
    assert set(verdicts(Users(HASHES), [basic("nobody", word) for word in ("canary", "other")])) == {"refused"}


def test_an_unknown_name_always_costs_the_same() -> None:
    check = Counted()
    verdicts(Users(HASHES, check), [basic("nobody", f"wrong {n}") for n in range(5)])
    assert len({against for _, against in check.asked}) == 1


def test_success_and_failure_are_remembered() -> None:
    check = Counted()
    headers = [basic("alice", "canary"), basic("alice", "wrong"), basic("nobody", "wrong")] * 3
    assert verdicts(Users(HASHES, check), headers) == ["admitted", "refused", "refused"] * 3
    assert [password for password, _ in check.asked] == [b"canary", b"wrong", b"wrong"]


def test_guesses_evict_no_success_and_are_bounded() -> None:
    asked: list[bytes] = []

    def check(password: bytes, _: bytes) -> bool:
        asked.append(password)
        return password == b"canary"

    users = Users(HASHES, check)
    guesses = [basic("alice", f"trial {n}") for n in range(1500)]
    verdicts(users, [basic("alice", "canary"), *guesses])
    asked.clear()
    assert verdicts(users, [basic("alice", "canary"), guesses[0], guesses[-1]]) == ["admitted", "refused", "refused"]
    assert asked == [b"trial 0"]
    assert "trial" not in repr(vars(users))


def test_memory_is_bounded_and_holds_no_password() -> None:
    check = Counted()
    many = {f"user{n}": HASHES["alice"] for n in range(150)}
    users = Users(many, check)
    verdicts(users, [basic(name, "canary") for name in many])
    verdicts(users, [basic("user149", "canary"), basic("user0", "canary")])
    assert len(check.asked) == 151, "the oldest is forgotten, the newest is not"
    assert "canary" not in repr(vars(users))
    assert "$2b$" not in repr(vars(users))


def test_another_set_of_users_does_not_share_remembered_logins() -> None:
    check = Counted()
    for _ in range(2):
        verdicts(Users(HASHES, check), [basic("alice", "canary")])
    assert len(check.asked) == 2


def test_a_password_is_cut_where_bcrypt_cuts_it() -> None:
    long = "x" * 72
    users = Users({"alice": hashed(long.encode())})
    assert verdicts(users, [basic("alice", f"{long}and more"), basic("alice", long[1:])]) == ["admitted", "refused"]


@pytest.mark.parametrize(
    "header",
    [None, b"", b"Basic", b"Basic ", b"Basic !!!!", b"Bearer YTpi", b"Basic YWxpY2U=", b"Basic YWxpY2U6Y2FuYXJ5 x"],
)
def test_a_header_that_names_nobody_is_refused_without_work(header: bytes | None) -> None:
    check = Counted()
    assert verdicts(Users(HASHES, check), [header]) == ["refused"]
    assert check.asked == []


def test_the_scheme_is_read_in_any_case() -> None:
    header = basic("alice", "canary")
    assert verdicts(Users(HASHES), [header.replace(b"Basic", b"bAsIc")]) == ["admitted"]


@given(st.binary(max_size=200))
def test_no_header_breaks_it(header: bytes) -> None:
    assert verdicts(Users(HASHES), [header, b"Basic " + header]) == ["refused"] * 2


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_any_bytes_may_be_name_and_password(name: bytes, password: bytes) -> None:
    header = b"Basic " + base64.b64encode(name + b":" + password)
    assert verdicts(Users({"alice": HASHES["alice"]}), [header]) == ["refused"]


class Crowded:
    """bcrypt that records how many calls ran at once."""

    def __init__(self) -> None:
        self.inside = self.most = self.total = 0

    def __call__(self, password: bytes, against: bytes) -> bool:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.total += 1
        try:
            return bcrypt.checkpw(password, against)
        finally:
            self.inside -= 1


def at_once(users: Users, headers: Iterable[bytes]) -> list[str]:
    async def together() -> list[str]:
        return list(await asyncio.gather(*(users.check(header) for header in headers)))

    return asyncio.run(together())


def test_scrapes_at_once_with_one_password_cost_one_check() -> None:
    check = Crowded()
    assert set(at_once(Users(HASHES, check), [basic("alice", "canary")] * 50)) == {"admitted"}
    assert (check.total, check.most) == (1, 1)


def test_a_flood_of_wrong_passwords_is_checked_one_by_one_and_the_rest_told_to_retry() -> None:
    check = Crowded()
    found = at_once(Users(HASHES, check), [basic("alice", f"wrong {n}") for n in range(100)])
    assert (found.count("refused"), found.count("busy")) == (64, 36)
    assert (check.total, check.most) == (64, 1)


def test_clients_that_disconnect_free_neither_the_slot_nor_a_place_in_the_queue() -> None:
    check = Crowded()
    users = Users(HASHES, check)

    async def impatient() -> None:
        for number in range(5):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(users.check(basic("alice", f"wrong {number}")), 0.001)
        assert await users.check(basic("alice", "wrong 4")) == "refused"

    asyncio.run(impatient())
    assert (check.total, check.most) == (5, 1)


def test_a_remembered_user_does_not_wait_for_a_flood() -> None:
    order: list[str] = []

    async def flood(users: Users) -> None:
        await users.check(basic("alice", "canary"))
        wrong = [asyncio.create_task(told(users.check(basic("alice", f"wrong {n}")), order)) for n in range(30)]
        await asyncio.sleep(0)
        await told(users.check(basic("alice", "canary")), order)
        await asyncio.gather(*wrong)

    asyncio.run(flood(Users(HASHES)))
    assert order[0] == "admitted"
    assert order[1:] == ["refused"] * 30


async def told(verdict: Awaitable[str], order: list[str]) -> None:
    order.append(await verdict)
