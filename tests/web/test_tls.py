"""Handshakes in memory: a client and a context, without a server."""

import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from authority import Authority, Pair
from conftest import needs_x25519
from creatify_exporter.web.handshake import REFUSED
from creatify_exporter.web.web_config import load

ECDSA = "TLS_ECDHE_ECDSA_WITH_"
SANS = ("DNS:prometheus.example", "IP:10.0.0.1", "IP:2001:db8::1", "email:ops@example.com", "URI:spiffe://a/b")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pair:
    return authority.issue("server", "DNS:localhost")


@pytest.fixture(scope="module")
def prometheus(authority: Authority) -> Pair:
    return authority.issue("prometheus", *SANS)


@pytest.fixture
def configured(tmp_path: Path, server: Pair) -> Callable[..., ssl.SSLContext]:
    """Return a function that makes a context from more lines of `tls_server_config`."""

    def context(*lines: str) -> ssl.SSLContext:
        section = [f"cert_file: {server.cert}", f"key_file: {server.key}", *lines]
        text = "tls_server_config:\n" + "".join(f"  {line}\n" for line in section)
        path = tmp_path / "web.yml"
        path.write_text(text)
        made = load(path, {}).context
        assert made
        return made

    return context


def client(authority: Authority, pair: Pair | None = None, **settings: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.pem)
    context.set_alpn_protocols(["h2", "http/1.1"])
    for name, value in settings.items():
        setattr(context, name, value)
    if pair:
        context.load_cert_chain(pair.cert, pair.key)
    return context


def shake(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Return both ends after a handshake and a byte each way; SSLError if the client objects, or is refused."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname="localhost", session=session),
    )
    for _ in range(10):
        for end in ends[::-1]:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    for one, other in (ends[::-1], ends):
        one.write(b"x")
        assert other.read() == b"x"
    return ends


def refused(server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> str:
    """Return why the server refuses a client, which must not see a successful handshake."""
    reasons: list[str] = []
    token = REFUSED.set(reasons.append)
    try:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            shake(server, client, session)
    finally:
        REFUSED.reset(token)
    assert len(reasons) <= 1
    return "".join(reasons)


Configured = Callable[..., ssl.SSLContext]


def test_the_newest_version_and_http_1_are_agreed_on(configured: Configured, authority: Authority) -> None:
    _, end = shake(configured(), client(authority))
    assert (end.version(), end.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")


def test_versions_are_kept(configured: Configured, authority: Authority) -> None:
    old = client(authority, maximum_version=ssl.TLSVersion.TLSv1_2)
    assert shake(configured("max_version: TLS12"), client(authority))[1].version() == "TLSv1.2"
    assert shake(configured(), old)[1].version() == "TLSv1.2"
    assert "unsupported protocol" in refused(configured("min_version: TLS13"), old)


def test_suites_of_tls12_are_those_of_the_list_in_its_order(configured: Configured, authority: Authority) -> None:
    listed = [f"{ECDSA}AES_256_GCM_SHA384", f"{ECDSA}AES_128_GCM_SHA256", f"{ECDSA}AES_128_CBC_SHA"]
    old = client(authority, maximum_version=ssl.TLSVersion.TLSv1_2)
    old.set_ciphers("ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384")

    def agreed(*lines: str) -> str:
        cipher = shake(configured(f"cipher_suites: [{', '.join(listed)}]", *lines), old)[1].cipher()
        assert cipher
        return cipher[0]

    assert agreed() == "ECDHE-ECDSA-AES256-GCM-SHA384"
    assert agreed("prefer_server_cipher_suites: false") == "ECDHE-ECDSA-AES128-SHA"


def test_a_suite_that_is_not_listed_is_refused(configured: Configured, authority: Authority) -> None:
    old = client(authority, maximum_version=ssl.TLSVersion.TLSv1_2)
    old.set_ciphers("ECDHE-ECDSA-CHACHA20-POLY1305")
    assert shake(configured(), old)
    assert "no shared cipher" in refused(configured(f"cipher_suites: [{ECDSA}AES_128_GCM_SHA256]"), old)


@pytest.mark.parametrize(
    ("name", "curve", "another"),
    [
        ("CurveP256", "prime256v1", "secp384r1"),
        ("CurveP384", "secp384r1", "secp521r1"),
        ("CurveP521", "secp521r1", "prime256v1"),
        pytest.param("CurveP256", "prime256v1", "X25519", marks=needs_x25519),
        pytest.param("X25519", "X25519", "prime256v1", marks=needs_x25519),
    ],
)
def test_the_one_curve_is_the_only_one(
    configured: Configured, authority: Authority, name: str, curve: str, another: str
) -> None:
    limited = configured(f"curve_preferences: [{name}]")
    same, other = client(authority), client(authority)
    same.set_ecdh_curve(curve)
    other.set_ecdh_curve(another)
    assert shake(limited, same)
    assert "no suitable key share" in refused(limited, other)


def test_a_client_needs_a_certificate_of_the_authority(
    configured: Configured, authority: Authority, stranger: Authority, prometheus: Pair
) -> None:
    required = configured("client_auth_type: RequireAndVerifyClientCert", f"client_ca_file: {authority.pem}")
    assert shake(required, client(authority, prometheus))
    assert "peer did not return a certificate" in refused(required, client(authority))
    assert "certificate" in refused(required, client(authority, stranger.issue("same", *SANS)))


@pytest.mark.parametrize("usage", ["anyExtendedKeyUsage", "serverAuth"])
def test_a_certificate_that_does_not_name_clients_is_refused_with_the_reason_of_the_document(
    configured: Configured, authority: Authority, usage: str
) -> None:
    required = configured("client_auth_type: RequireAndVerifyClientCert", f"client_ca_file: {authority.pem}")
    pair = authority.issue(usage, *SANS, usage=usage)
    assert "certificate purpose" in refused(required, client(authority, pair))


def test_a_certificate_may_be_left_out_but_must_not_be_invalid(
    configured: Configured, authority: Authority, stranger: Authority, prometheus: Pair
) -> None:
    optional = configured("client_auth_type: VerifyClientCertIfGiven", f"client_ca_file: {authority.pem}")
    assert shake(optional, client(authority, prometheus))
    assert shake(optional, client(authority))
    assert "certificate" in refused(optional, client(authority, stranger.issue("other", *SANS)))


def test_a_certificate_that_may_be_left_out_can_be_verified_against_the_systems_authorities(
    configured: Configured, authority: Authority, prometheus: Pair
) -> None:
    optional = configured("client_auth_type: VerifyClientCertIfGiven")
    assert shake(optional, client(authority))
    assert "certificate" in refused(optional, client(authority, prometheus))


def test_a_clients_own_certificate_can_be_the_authority(
    configured: Configured, authority: Authority, stranger: Authority
) -> None:
    known, unknown = stranger.issue("known", "DNS:a"), stranger.issue("unknown", "DNS:a")
    pinned = configured("client_auth_type: RequireAndVerifyClientCert", f"client_ca_file: {known.cert}")
    assert shake(pinned, client(authority, known))
    assert "certificate" in refused(pinned, client(authority, unknown))


@pytest.mark.parametrize("name", [name.partition(":")[2] for name in SANS])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_each_kind_of_name_lets_a_client_in(
    configured: Configured, authority: Authority, prometheus: Pair, name: str, version: ssl.TLSVersion
) -> None:
    lines = ["client_auth_type: RequireAndVerifyClientCert", f"client_ca_file: {authority.pem}"]
    named = configured(*lines, f"client_allowed_sans: [another, '{name}']")
    assert shake(named, client(authority, prometheus, maximum_version=version))


@pytest.mark.parametrize("names", [("DNS:grafana.example",), ("DNS:sub.prometheus.example",), ()])
def test_another_name_does_not(configured: Configured, authority: Authority, names: tuple[str, ...]) -> None:
    lines = ["client_auth_type: RequireAndVerifyClientCert", f"client_ca_file: {authority.pem}"]
    named = configured(*lines, "client_allowed_sans: [prometheus.example, 10.0.0.1]")
    pair = authority.issue("-".join(["no", *names]).replace(":", "-"), *names)
    assert "client_allowed_sans" in refused(named, client(authority, pair))


@pytest.mark.parametrize("auth", ["VerifyClientCertIfGiven", "RequireAndVerifyClientCert"])
@pytest.mark.parametrize("allowed", ["[]", "[prometheus.example]"])
def test_allowed_names_keep_out_all_clients_without_one_of_them(
    configured: Configured, authority: Authority, prometheus: Pair, auth: str, allowed: str
) -> None:
    lines = [f"client_auth_type: {auth}", f"client_ca_file: {authority.pem}", f"client_allowed_sans: {allowed}"]
    assert refused(configured(*lines), client(authority))
    if allowed == "[]":
        assert "client_allowed_sans" in refused(configured(*lines), client(authority, prometheus))
    else:
        assert shake(configured(*lines), client(authority, prometheus))


def test_the_three_suites_of_tls13_alone_leave_no_other_version(configured: Configured, authority: Authority) -> None:
    only = "cipher_suites: [TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256]"
    assert shake(configured(only), client(authority))[1].version() == "TLSv1.3"
    assert refused(configured(only), client(authority, maximum_version=ssl.TLSVersion.TLSv1_2))


def test_the_common_name_is_not_an_allowed_name(configured: Configured, authority: Authority) -> None:
    lines = ["client_auth_type: RequireAndVerifyClientCert", f"client_ca_file: {authority.pem}"]
    pair = authority.issue("commonly", "DNS:other.example")
    assert refused(configured(*lines, "client_allowed_sans: [commonly]"), client(authority, pair))


def test_a_session_of_an_older_context_does_not_spare_the_client_its_certificate(
    configured: Configured, authority: Authority
) -> None:
    before, open_to_all = client(authority, maximum_version=ssl.TLSVersion.TLSv1_2), configured()
    session = shake(open_to_all, before)[1].session
    assert shake(open_to_all, before, session)[1].session_reused
    required = configured("client_auth_type: RequireAndVerifyClientCert", f"client_ca_file: {authority.pem}")
    assert "peer did not return a certificate" in refused(required, before, session)


def test_a_connection_ends_without_waiting_for_the_clients_close_notify(
    configured: Configured, authority: Authority
) -> None:
    served, _ = shake(configured(), client(authority))
    served.unwrap()
