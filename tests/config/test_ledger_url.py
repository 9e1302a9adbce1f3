"""The ledger that a URL identifies: a reload may change how to connect, but another ledger needs a restart."""

import sys

import pytest

from creatify_exporter import redaction
from creatify_exporter.config.url import HiddenUrl, LedgerUrl

ONE_DATABASE = [
    "postgresql://ledger:old@db.example/counts",
    "postgresql://ledger:new@db.example/counts",
    "postgresql://ledger:with:colons@db.example/counts",
    "postgresql://ledger:with%2Fslash@db.example/counts",
    "postgres://db.example:5432/counts?user=ledger&password=old",
    "postgresql://db.example/counts?password=new&user=another",
    "postgresql://ledger@db.example/c%6Funts?sslmode=verify-full&application_name=exporter",
    "postgresql://ledger@/counts?host=db.example",
    "postgresql://ledger@db.example?dbname=counts",
    "postgresql://counts@db.example",
    "postgresql://ledger@DB.Example/counts",
]
OTHERS = [
    "postgresql://ledger:old@db.example/other",
    "postgresql://ledger:old@db.example:5433/counts",
    "postgresql://ledger:old@other.example/counts",
    "postgresql://ledger:old@db.example",
    "postgresql://ledger:old@db.example,other.example/counts",
    "postgresql://ledger:old@db.example/counts?hostaddr=192.0.2.1",
    "postgresql://user:old@db.example/counts?dbname=",
    "postgresql://%2Frun%2Fa/counts",
    "postgresql://%2Frun%2FA/counts",
    "sqlite:///counts",
    "memory:",
]
SEVERAL_SERVERS = [
    "postgresql://a:5432,[2001:db8::1]:5433/counts",
    "postgresql://[2001:db8::1]:5433,a/counts",
    "postgresql:///counts?host=a,2001:db8::1&port=5432,5433",
]


@pytest.mark.parametrize("same", [ONE_DATABASE, SEVERAL_SERVERS, ["sqlite:///a/ledger.db", "sqlite:///a//ledger.db"]])
def test_urls_of_one_ledger_are_equal_however_they_are_written(same: list[str]) -> None:
    identities = {url: LedgerUrl.parse(url).identity for url in same}
    assert [url for url, identity in identities.items() if identity != identities[same[0]]] == []


def test_urls_of_different_ledgers_differ() -> None:
    identities = [LedgerUrl.parse(url).identity for url in (ONE_DATABASE[0], SEVERAL_SERVERS[0], *OTHERS)]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:canary-pass@h/d",
        "postgresql://u:canary-pass@h",
        "postgresql://u@h?password=canary-pass",
        "postgresql://h?user=u&password=canary-pass",
        "postgresql://?password=canary-pass",
        "postgresql://h/d?pass%77ord=canary-pass&user=u",
        "postgresql://h/d?sslpassword=canary-pass",
    ],
)
def test_a_password_is_found_anywhere_in_a_url(url: str) -> None:
    parsed = LedgerUrl.parse(url)
    assert parsed.shows_password
    assert "canary-pass" not in redaction.mask(f"cannot reach {url}")
    assert "canary-pass" not in repr(parsed)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://u:canary-pass@h:5432/d?sslmode=require", "postgresql://<hidden>@h:5432/d"),
        ("postgresql://u:canary?x=pass@h/d", "postgresql://<hidden>@h/d"),
        ("postgresql://h/d?p%61ssword=canary-pass&user=u", "postgresql://h/d"),
        ("sqlite:////home/u@h/password=x.db", "sqlite:////home/u@h/password=x.db"),
        ("sqlite:///u@h.db", "sqlite:///u@h.db"),
        ("memory:", "memory:"),
    ],
)
def test_a_url_is_shown_without_its_login_and_options(url: str, masked: str) -> None:
    assert LedgerUrl.parse(url).masked == masked


@pytest.mark.parametrize("url", ["HTTP://u:canary-pass@h:3128", "http://u@x:canary-pass@h:3128/?canary-pass"])
def test_no_url_is_shown_with_a_password_however_it_is_written(url: str) -> None:
    assert HiddenUrl(url).masked.casefold().startswith("http://<hidden>@h:3128")
    assert "canary" not in repr(HiddenUrl(url))


def test_libpq_may_take_the_rest_from_its_environment() -> None:
    assert LedgerUrl.parse("postgresql://").is_postgresql


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h/d?sslmod=require",
        "postgresql://u:canary-%zz@h/d",
        "postgres://[h",
        "postgresql://u:canary-/canary-@h/d",
        "postgresql://u:12345678/canary-@h/d",
    ],
)
def test_a_url_that_libpq_cannot_read_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"^is not a PostgreSQL URL; write it like [^']*$") as refused:
        LedgerUrl.parse(url)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("package", ["psycopg", "psycopg_pool"])
def test_without_psycopg_a_database_is_refused_before_anything_starts(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match="needs the packages psycopg and psycopg-pool; from a checkout: pip install"):
        LedgerUrl.parse("postgresql://h/d")
