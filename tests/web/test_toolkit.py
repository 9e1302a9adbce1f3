"""Files like those of the exporter toolkit's own tests, by their names there: each is taken, or refused by name."""

import re
from pathlib import Path

import pytest

from conftest import needs_x25519
from creatify_exporter.errors import ConfigError
from creatify_exporter.web.web_config import load

PAIR = Path(__file__).parents[1] / "certificates"
DOCUMENT = Path(__file__).parents[2] / "docs/web-configuration.md"
IF_GIVEN = "client_auth_type: VerifyClientCertIfGiven"
REQUIRED = "client_auth_type: RequireAndVerifyClientCert"
ANY = "client_auth_type: RequireAnyClientCert"
SOME_SUITES = "cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384]"
USERS = """basic_auth_users:
  alice: $2y$12$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG
  bob: $2y$18$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG
"""
HEADERS = """http_server_config:
  headers:
    X-Frame-Options: deny
    X-XSS-Protection: 1
    X-Content-Type-Options: nosniff
    Strict-Transport-Security: max-age=31536000; includeSubDomains
    Content-Security-Policy: "default-src 'self' *.test.example.net"
"""
NO_CA = "has nothing to verify certificates against"
NO_CERT = "tls_server_config.cert: is missing"
NO_KEY = "tls_server_config.key: is missing"
NO_FILE = "No such file or directory"
UNVERIFIED = "must be NoClientCert or VerifyClientCertIfGiven or RequireAndVerifyClientCert"


def inline(name: str) -> str:
    return "|\n" + "".join(f"    {line}\n" for line in (PAIR / name).read_text().splitlines())


def tls(*lines: str, cert: str = "cert_file: server.pem", key: str = "key_file: server.key") -> str:
    return "tls_server_config:\n" + "".join(f"  {line}\n" for line in (cert, key, *lines))


def header(name: str, value: str) -> str:
    return f"http_server_config: {{headers: {{{name}: {value}}}}}\n"


# The file's name, its content, and the words of its refusal, empty if it is taken.
FILES: dict[str, tuple[str, str]] = {
    "tls_config_noAuth.requireandverifyclientcert.good.yml": (tls(REQUIRED, "client_ca_file: client.pem"), ""),
    "tls_config_noAuth.requireanyclientcert.good.yml": (tls(ANY), UNVERIFIED),
    "tls_config_noAuth.requireanyclientcertkeyinline.good.yml": (
        tls(ANY, key=f"key: {inline('server.key')}"),
        UNVERIFIED,
    ),
    "web_config_auth_clientCAs_invalid.bad.yml": (tls("client_ca_file: somefile"), NO_FILE),
    "web_config_auth_clientCAs_missing.bad.yml": (tls(REQUIRED), NO_CA),
    "web_config_auth_client_san.bad.yaml": (
        tls(REQUIRED, "client_ca_file: client.pem", "client_allowed_sans: [bad]"),
        "",
    ),
    "web_config_auth_client_san.good.yaml": (
        tls(REQUIRED, "client_ca_file: client.pem", "client_allowed_sans: [one, test3, two]"),
        "",
    ),
    "web_config_auth_user_list_invalid.bad.yml": (tls() + "basic_auth_users: {john: doe}\n", "is not a bcrypt hash"),
    "web_config_empty.yml": ("", "is empty"),
    "web_config_headers.good.yml": (
        HEADERS,
        "",
    ),
    "web_config_headers_content_type_options.bad.yml": (header("X-Content-Type-Options", "sniff"), "must be nosniff"),
    "web_config_headers_extra_header.bad.yml": (header("Content-Type", "foo"), "cannot be set"),
    "web_config_headers_frame_options.bad.yml": (header("X-Frame-Options", "foo"), "must be deny or sameorigin"),
    "web_config_junk.yml": ("hWkNKCp3fvIx3jKnsaBI\nTuEjdwNS8A2vYdFbiKqr\n", "must be a mapping"),
    "web_config_junk_key.yml": ("tls_server_config: {cert_filse: server.pem}\n", "did you mean cert_file?"),
    "web_config_noAuth.bad.yml": (tls("client_ca_file: /dev/null"), "not a regular file"),
    "web_config_noAuth.good.blocking.yml": (tls(REQUIRED), NO_CA),
    "web_config_noAuth.good.yml": (tls(IF_GIVEN), ""),
    "web_config_noAuth_allCiphers.good.yml": (tls(IF_GIVEN, SOME_SUITES), ""),
    "web_config_noAuth_allCurves.good.yml": (
        tls(IF_GIVEN, "curve_preferences: [CurveP256, CurveP384, CurveP521, X25519]"),
        "Python's ssl offers all curves or one",
    ),
    "web_config_noAuth_certPath_empty.bad.yml": (tls(cert='cert_file: ""'), NO_CERT),
    "web_config_noAuth_certPath_invalid.bad.yml": (tls(cert="cert_file: somefile"), NO_FILE),
    "web_config_noAuth_certPath_keyPath_empty.bad.yml": (
        tls("client_auth_type: x", cert='cert_file: ""', key='key_file: ""'),
        NO_CERT,
    ),
    "web_config_noAuth_certPath_keyPath_invalid.bad.yml": (
        tls(cert="cert_file: somefile", key="key_file: somefile"),
        NO_FILE,
    ),
    "web_config_noAuth_cert_empty.bad.yml": (tls(cert='cert: ""'), NO_CERT),
    "web_config_noAuth_inventedCiphers.bad.yml": (
        tls(IF_GIVEN, "cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA2048]"),
        "is not a secure cipher suite of Go",
    ),
    "web_config_noAuth_inventedCurves.bad.yml": (tls(IF_GIVEN, "curve_preferences: [CurveP257]"), "must be CurveP256"),
    "web_config_noAuth_keyPath_empty.bad.yml": (tls(key='key_file: ""'), NO_KEY),
    "web_config_noAuth_keyPath_invalid.bad.yml": (tls(key="key_file: somefile"), NO_FILE),
    "web_config_noAuth_key_empty.bad.yml": (tls(key='key: ""'), NO_KEY),
    "web_config_noAuth_noHTTP2.good.yml": (
        tls(IF_GIVEN, SOME_SUITES, "max_version: TLS12") + "http_server_config: {http2: false}\n",
        "",
    ),
    "web_config_noAuth_noHTTP2Cipher.bad.yml": (tls(IF_GIVEN, SOME_SUITES, "max_version: TLS12"), ""),
    "web_config_noAuth_someCiphers.good.yml": (tls(IF_GIVEN, SOME_SUITES, "max_version: TLS12"), ""),
    "web_config_noAuth_someCiphers_noOrder.good.yml": (
        tls(IF_GIVEN, SOME_SUITES, "prefer_server_cipher_suites: false"),
        "",
    ),
    "web_config_noAuth_someCurves.good.yml": (
        tls(IF_GIVEN, "min_version: TLS13", "curve_preferences: [CurveP521]"),
        "",
    ),
    "web_config_noAuth_tlsInline.good.yml": (
        tls(cert=f"cert: {inline('server.pem')}", key=f"key: {inline('server.key')}"),
        "",
    ),
    "web_config_noAuth_wrongTLSVersion.bad.yml": (tls(IF_GIVEN, "min_version: TLS111"), "must be TLS12 or TLS13"),
    "web_config_rate_limiter_nonblocking.yaml": ("rate_limit: {interval: 0, burst: 0}\n", ""),
    "web_config_rate_limiter_one_second.yaml": ('rate_limit: {interval: "1s", burst: 0}\n', ""),
    "web_config_users.good.yml": (tls() + USERS, ""),
    "web_config_users_noTLS.good.yml": (USERS, ""),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("server.pem", "server.key", "client.pem"):
        (tmp_path / name).symlink_to(PAIR / name)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "words"),
    [pytest.param(*case, id=name, marks=[needs_x25519] if "X25519" in case[0] else []) for name, case in FILES.items()],
)
def test_a_file_of_the_toolkit_is_taken_or_refused_by_name(folder: Path, text: str, words: str) -> None:
    path = folder / "web.yml"
    path.write_text(text)
    problems: tuple[str, ...] = ()
    try:
        load(path, {})
    except ConfigError as error:
        problems = error.problems
    assert bool(problems) == bool(words), problems
    assert words in "".join(problems)


# Not from the toolkit's own files, but as its users write them.


@pytest.mark.parametrize(
    "text",
    [
        tls('cert: ""', 'key: ""', 'client_ca: ""', 'client_ca_file: ""', 'client_auth_type: ""'),
        tls('client_ca: ""', "client_ca_file: client.pem", REQUIRED),
        tls("cipher_suites: [TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256]"),
        "rate_limit: {}\n",
        "rate_limit: {interval: 1m30s, burst: 20}\n",
        "rate_limit: {interval: 1.5h, burst: 1}\n",
        "basic_auth_users:\n  alice: |\n    $2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG\n",
    ],
)
def test_what_the_toolkit_takes_is_taken(folder: Path, text: str) -> None:
    (folder / "web.yml").write_text(text)
    load(folder / "web.yml", {})


@pytest.mark.parametrize(
    "text",
    [
        tls(REQUIRED, 'client_ca_file: ""'),
        tls("client_allowed_sans: []"),
        tls('min_version: ""'),
        tls(
            "cipher_suites: [TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256]",
            "max_version: TLS12",
        ),
        'rate_limit: {interval: "5"}\n',
        "rate_limit: {interval: -1s}\n",
        "rate_limit: {interval: 1s, burst: -1}\n",
    ],
)
def test_what_would_be_weaker_than_it_looks_is_refused(folder: Path, text: str) -> None:
    (folder / "web.yml").write_text(text)
    with pytest.raises(ConfigError):
        load(folder / "web.yml", {})


def test_a_bundle_of_authorities_may_hold_one_that_cannot_be_read(folder: Path) -> None:
    broken = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    (folder / "bundle.pem").write_text(broken + (PAIR / "ca.pem").read_text() + broken)
    (folder / "web.yml").write_text(tls(REQUIRED, "client_ca_file: bundle.pem"))
    loaded = load(folder / "web.yml", {})
    assert loaded.context
    assert len(loaded.context.get_ca_certs()) == 1
    assert loaded.config.warnings == (
        "tls_server_config.client_ca: 2 of its certificates cannot be read and are skipped",
    )
    (folder / "web.yml").write_text(tls(cert="cert_file: bundle.pem"))
    with pytest.raises(ConfigError):
        load(folder / "web.yml", {})


def test_every_file_of_the_toolkit_is_in_the_document_with_its_fate() -> None:
    table = dict(re.findall(r"^\| `(\S+\.ya?ml)` \| (taken|refused) \|", DOCUMENT.read_text(), re.MULTILINE))
    assert table == {name: "refused" if words else "taken" for name, (_, words) in FILES.items()}
    assert len(table) == 41
