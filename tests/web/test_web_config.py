import re
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conftest import needs_x25519
from creatify_exporter.errors import ConfigError
from creatify_exporter.web.tls import ServerTLS
from creatify_exporter.web.web_config import HTTP, Loaded, WebConfig, load, parse_interval

CASES = Path(__file__).with_name("cases")
ENVIRONMENT = {"TLS": "../../certificates"}
HASH = "$2b$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"


def mistakes(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, ENVIRONMENT)
    return list(caught.value.problems)


def read(name: str) -> WebConfig:
    return load(CASES / f"{name}.yml", ENVIRONMENT).config


def written(folder: Path, text: str) -> Path:
    path = folder / "web.yml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CASES.glob("invalid-*.yml")), ids=lambda path: path.stem)
def test_every_error_in_a_file_is_reported_at_once(path: Path) -> None:
    expected = re.findall(r"^# expect: (.*)$", path.read_text(), re.MULTILINE)
    found = mistakes(path)
    shown = [line.replace(str(path), "FILE").replace(str(path.parent), "FOLDER") for line in found]
    assert shown == expected
    assert all("; " in line or "did you mean" in line for line in found), "each line says how to fix it"
    assert "canary" not in "\n".join(found)
    assert "$2" not in "\n".join(found).replace("($2a$, $2b$ or $2y$)", "")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[needs_x25519] if "X25519" in path.read_text() else [])
        for path in sorted(CASES.glob("valid-*.yml"))
    ],
)
def test_a_valid_file_loads_and_shows_no_secret(path: Path) -> None:
    loaded = load(path, ENVIRONMENT)
    shown = f"{loaded!r} {loaded.config} {loaded.config.warnings} {loaded.config.summary}"
    assert "PRIVATE" not in shown
    assert "$2" not in shown


def test_without_a_file_nothing_is_required() -> None:
    assert load(None, {}) == Loaded(WebConfig(), None, {})


def test_a_file_with_every_setting() -> None:
    tls = read("valid-tls").tls_server_config
    assert tls
    assert tls.client_auth_type == ssl.CERT_REQUIRED
    assert tls.client_allowed_sans
    assert tls.client_allowed_sans[2] == "2001:db8::1"
    assert len(tls.cipher_suites) == 13
    assert (tls.prefer_server_cipher_suites, tls.curve_preferences) == (False, ("secp384r1",))
    assert {path.name for path in tls.files} == {"server.pem", "server.key", "ca.pem"}
    assert list(read("valid-users").basic_auth_users) == ["alice", "bob", "yves@example.com"]


def test_the_defaults_are_those_of_the_toolkit_but_for_http2() -> None:
    config = read("valid-tls-inline")
    tls = config.tls_server_config
    assert tls
    assert (tls.min_version, tls.max_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    assert tls.prefer_server_cipher_suites
    assert tls.files == {}
    assert not config.http_server_config.http2
    assert config.http_server_config.response_headers == {}


def test_blanks_around_the_value_of_a_header_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text("http_server_config: {headers: {X-Frame-Options: ' deny ', X-XSS-Protection: '1; mode=block '}}")
    headers = load(path, {}).config.http_server_config.response_headers
    assert headers == {"X-Frame-Options": "deny", "X-XSS-Protection": "1; mode=block"}


@pytest.mark.parametrize("letter", ["\u017f", "\u0131", "\u212a"])
def test_a_letter_that_is_ascii_only_in_another_case_is_in_no_header(tmp_path: Path, letter: str) -> None:
    header = f"Strict-Transport-Security: max-age=1; {letter}"
    [line] = mistakes(written(tmp_path, f"http_server_config: {{headers: {{{header}}}}}\n"))
    assert "headers.Strict-Transport-Security: must name a max-age in seconds" in line


def test_headers_that_are_blank_are_not_set() -> None:
    assert read("valid-headers").http_server_config.response_headers == {
        "Content-Security-Policy": "default-src 'self' *.test.example.net",
        "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "sameorigin",
        "X-XSS-Protection": "1",
    }
    assert read("valid-headers-blank").http_server_config.response_headers == {}


def test_an_empty_mapping_turns_nothing_on() -> None:
    assert read("valid-nothing") == read("valid-nulls") == WebConfig()
    assert read("valid-nothing").summary == "TLS off, users: none"


def test_settings_that_are_probably_a_mistake_are_warned_about() -> None:
    assert read("valid-users").warnings == (
        "basic_auth_users without tls_server_config: passwords are sent unencrypted",
        "basic_auth_users.alice: a cost of 4 makes the password quick to guess; 10 is usual",
    )
    assert read("valid-tls").warnings == ()


def test_an_encrypted_key_is_refused_and_no_password_is_asked_for(tmp_path: Path) -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\ncanary\n"
    (tmp_path / "server.key").write_text(f"{key}-----END RSA PRIVATE KEY-----\n")
    cert = CASES.parents[1] / "certificates/server.pem"
    path = written(tmp_path, f"tls_server_config: {{cert_file: {cert}, key_file: server.key}}\n")
    told = f"{path}:1: tls_server_config.key_file: {tmp_path}/server.key is encrypted, and there is no terminal"
    assert [line.partition(" to ask")[0] for line in mistakes(path)] == [told]


def test_a_certificate_that_is_not_ascii_is_refused(tmp_path: Path) -> None:
    certificate = "-----BEGIN CERTIFICATE-----\\nMIIBëÿ\\n-----END CERTIFICATE-----\\n"
    [problem, *_] = mistakes(written(tmp_path, f'tls_server_config: {{cert: "{certificate}", key_file: key.pem}}\n'))
    assert "contains no readable certificate" in problem


def test_a_pipe_or_an_endless_file_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, "tls_server_config: {cert_file: /dev/zero, key_file: /dev/stdin}\n")
    assert len(mistakes(path)) == 2


@pytest.mark.parametrize("name", ["", "nobody.yml", "no\0name"])
def test_a_file_that_cannot_be_read_is_named_with_its_flag(tmp_path: Path, name: str) -> None:
    (line,) = mistakes(tmp_path / name)
    assert "--web.config.file" in line


@pytest.mark.parametrize("version", ["$2a$", "$2b$", "$2y$"])
def test_hashes_of_all_usual_versions_are_taken(tmp_path: Path, version: str) -> None:
    path = written(tmp_path, f"basic_auth_users: {{prometheus: {HASH.replace('$2b$', version)}}}\n")
    assert load(path, {}).config.basic_auth_users["prometheus"].cost == 10


@pytest.mark.parametrize(
    "value",
    [
        HASH[:-1] + "H",  # bits that no digest has
        HASH[:28] + "p" + HASH[29:],  # bits that no salt has
        HASH.replace("$10$", "$1$"),
        HASH.replace("$10$", "$03$"),
        HASH.replace("$10$", "$19$"),
        "$1" + HASH[2:],
        "",
    ],
)
def test_a_hash_that_could_never_match_is_refused(tmp_path: Path, value: str) -> None:
    (line,) = mistakes(written(tmp_path, f"basic_auth_users: {{prometheus: '{value}'}}\n"))
    assert "basic_auth_users.prometheus" in line
    assert "htpasswd" in line


SETTINGS = (WebConfig, HTTP, ServerTLS)
NAMES = [name for section in SETTINGS for name in section.__struct_fields__] + ["cert_file", "client_ca_file", "canary"]
VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.sampled_from(["TLS12", "/"])
)


def sections(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(NAMES) | VALUES, values, max_size=5)


ITEMS = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | sections(inner), max_leaves=12)


@given(sections(sections(ITEMS) | ITEMS))
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    path = written(tmp_path_factory.getbasetemp(), yaml.safe_dump(document))
    with suppress(ConfigError):
        load(path, {})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("1s", 1), ("250ms", 0.25), ("1.5h", 5400), ("1m30s", 90), (".5s", 0.5), ("1µs", 1e-6)],
)
def test_intervals_are_read_as_go_reads_durations(text: str, seconds: float) -> None:
    assert parse_interval(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "s", "1d", "1 s", "-1s", "1s2", "1,5s", "\u0661s", "nan"])
def test_an_invalid_interval_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_interval(text)
