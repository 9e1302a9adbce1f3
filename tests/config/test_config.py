import os
import pwd
import re
import shutil
from base64 import b64encode
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from creatify_exporter import redaction
from creatify_exporter.config import directory
from creatify_exporter.config.credential import Credential
from creatify_exporter.config.load import load
from creatify_exporter.config.plan import Plan
from creatify_exporter.config.schema import Config, Fetch, LedgerSettings, Workspace
from creatify_exporter.config.url import LedgerUrl
from creatify_exporter.config.values import parse_duration, parse_size
from creatify_exporter.errors import ConfigError

CASES = Path(__file__).with_name("cases")
KEYS = {"CREATIFY_API_ID": "canary-id", "CREATIFY_API_KEY": "canary-key"}
ENVIRONMENT = {"API_ID": "canary-id-from-environment", "EMPTY": "", "MODELS": "50", "HOME": "/home/user"}


def mistakes(path: Path | None, environ: dict[str, str], ledger_url: str | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ, ledger_url=ledger_url)
    return list(caught.value.problems)


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("path", sorted(CASES.glob("invalid-*.yml")), ids=lambda path: path.stem)
def test_all_errors_in_a_file_are_reported_at_once(path: Path) -> None:
    expected = re.findall(r"^# expect: (.*)$", path.read_text(), re.MULTILINE)
    found = mistakes(path, ENVIRONMENT)
    shown = [line.replace(str(path), "FILE").replace(str(path.parent), "FOLDER") for line in found]
    assert shown == expected
    assert all("; " in line for line in found), "each line says how to fix it"
    assert "canary" not in "\n".join(found).replace("canary-id-from", "")


@pytest.mark.parametrize("path", sorted(CASES.glob("valid-*.yml")), ids=lambda path: path.stem)
def test_a_valid_file_loads_and_shows_no_secret(path: Path) -> None:
    config = load(path, ENVIRONMENT | KEYS)
    assert config.workspaces
    assert "canary" not in f"{config!r} {config} {config.warnings}"


def test_a_file_can_set_everything() -> None:
    config = load(CASES / "valid-full.yml", ENVIRONMENT)
    default, other = config.workspaces
    assert (default.name, default.base_url) == ("default", "https://api.creatify.ai")
    assert (default.api_id.read(), default.api_key.read()) == ("canary-id-0123456789", "canary-key-0123456789")
    assert default.plan == Plan(credits=2000, renews_on_day=1, price_per_credit=0.15, currency="USD")
    assert (other.api_id.read(), other.api_key.read()) == ("canary-id-from-environment", "01234567")
    assert other.proxy_url == "http://user:canary-password@proxy.example:3128"
    login = b64encode(b"user:canary-password").decode()
    assert redaction.mask(f"Basic {login}") == "Basic <hidden>"
    assert other.tls_config is not None
    assert other.tls_config.ca_file == CASES / "../../certificates/ca.pem"
    assert config.fetch == Fetch()
    assert config.ledger == LedgerSettings(
        url=LedgerUrl("sqlite:////var/lib/creatify-exporter/ledger.db"), history="count"
    )
    assert config.ledger.url.path == Path("/var/lib/creatify-exporter/ledger.db")
    assert (config.labels.max_models, config.labels.models) == (50, ("gemini-2.5-pro",))
    assert [rule.reason for rule in config.failure_reasons or ()] == ["rate_limited", "costs"]
    assert (config.failure_reasons or ())[1].match.pattern == r"\$[0-9]+$|${API_ID}"
    assert config.warnings == ()


def test_a_proxy_login_is_masked_as_it_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "creatify.yml"
    proxy_url = "http://user:canary-p%E9%E2%82%AC-word@proxy.example"
    file.write_text(f'workspaces: [{{name: default, api_id: a, api_key: b, proxy_url: "{proxy_url}"}}]')
    load(file, {})
    sent = b"user:canary-p\xe9\xe2\x82\xac-word"
    # Headers, which a proxy may repeat, are read as Latin-1.
    for text in (b64encode(sent).decode(), sent.decode("latin-1").removeprefix("user:")):
        assert redaction.mask(text) == "<hidden>"


def test_the_environment_alone_is_enough() -> None:
    config = load(None, KEYS | {"HOME": "/home/user"})
    assert [workspace.name for workspace in config.workspaces] == ["default"]
    assert config.workspaces[0].api_key.read() == "canary-key"
    assert config.fetch == Fetch()
    assert config.failure_reasons is None


def test_the_environment_names_files(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("canary-id\n")
    (tmp_path / "key").write_text("canary-key\n")
    files = {"CREATIFY_API_ID_FILE": str(tmp_path / "id"), "CREATIFY_API_KEY_FILE": str(tmp_path / "key")}
    workspace = load(None, files).workspaces[0]
    assert (workspace.api_id.read(), workspace.api_key.read()) == ("canary-id", "canary-key")


def test_workspaces_in_a_file_take_precedence_over_the_environment() -> None:
    config = load(CASES / "valid-minimal.yml", {"CREATIFY_API_ID": "x"})
    assert config.workspaces[0].api_id == Credential("canary-id")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            {},
            (
                "environment: workspaces: there are none; "
                "add one with name, api_id and api_key to a file (--config.file), "
                "or set CREATIFY_API_ID and CREATIFY_API_KEY, or their _FILE forms, in the environment"
            ),
        ),
        (
            {"CREATIFY_API_ID": "canary"},
            "environment: CREATIFY_API_KEY: is missing; set it or CREATIFY_API_KEY_FILE",
        ),
        (
            KEYS | {"CREATIFY_API_KEY": ""},
            "environment: CREATIFY_API_KEY: is missing; set it or CREATIFY_API_KEY_FILE",
        ),
        (
            KEYS | {"CREATIFY_API_ID_FILE": "/canary"},
            "environment: CREATIFY_API_ID: is set together with CREATIFY_API_ID_FILE; keep one of them",
        ),
        (
            {"CREATIFY_API_ID": "canary", "CREATIFY_API_KEY_FILE": "canary"},
            "environment: CREATIFY_API_KEY_FILE: cannot be read: No such file or directory; specify a readable file",
        ),
        *(
            (
                KEYS | {"CREATIFY_LEDGER_URL_FILE": content},
                (
                    "environment: CREATIFY_LEDGER_URL_FILE: cannot be read: No such file or directory; "
                    "specify a readable file; if this is the content itself, use CREATIFY_LEDGER_URL"
                ),
            )
            for content in ("postgresql://user:canary@host/ledger", "canary-0123456789abcdef")
        ),
        (
            KEYS | {"CREATIFY_API_ID": "canary\n"},
            "environment: CREATIFY_API_ID: starts or ends with whitespace; remove it",
        ),
    ],
)
def test_an_error_in_the_environment_names_the_variable(environ: dict[str, str], expected: str) -> None:
    assert mistakes(None, environ | {"HOME": "/home/user"}) == [expected]


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"STATE_DIRECTORY": "/var/lib/creatify-exporter"}, "sqlite:////var/lib/creatify-exporter/ledger.db"),
        ({"STATE_DIRECTORY": "/a:/b", "XDG_STATE_HOME": "/c"}, "sqlite:////a/ledger.db"),
        ({"XDG_STATE_HOME": "/state"}, "sqlite:////state/creatify-exporter/ledger.db"),
        ({"XDG_STATE_HOME": "relative"}, "sqlite:////home/user/.local/state/creatify-exporter/ledger.db"),
        ({}, "sqlite:////home/user/.local/state/creatify-exporter/ledger.db"),
    ],
)
def test_the_ledger_is_in_the_system_folder_for_state(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], url: str
) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    ledger = load(None, KEYS | environ).ledger
    assert (ledger.url, ledger.effective_history) == (url, "count")


def test_a_tilde_that_no_shell_expanded_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key").write_text("canary-key")
    keys = {"CREATIFY_API_ID": "canary-id", "CREATIFY_API_KEY_FILE": "~/key"}
    loaded = load(None, keys, ledger_url="sqlite:///~/state/l.db")
    assert loaded.workspaces[0].api_key.read() == "canary-key"
    assert loaded.ledger.url.path == tmp_path / "state/l.db"
    assert load(None, keys | {"STATE_DIRECTORY": "~/a"}).ledger.url.path == tmp_path / "a/ledger.db"
    path = written(
        tmp_path, "workspaces: [{name: a, api_id: x, api_key_file: ~/key}]\nledger: {url: 'sqlite:///~/l.db'}"
    )
    assert load(path, {}).ledger.url.path == tmp_path / "l.db"
    [mistake] = mistakes(None, keys, "sqlite:///~somebody/l.db")
    assert mistake == "--ledger.url: starts with ~, but there is no such home directory; write the full path"


def test_without_a_home_directory_the_ledger_has_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for home in ("~", None):
        monkeypatch.delenv("HOME")
        if home is not None:
            monkeypatch.setenv("HOME", home)
        [mistake] = mistakes(None, KEYS)
        assert mistake.startswith("the default of ledger.url: there is no home directory for the ledger; set ")
    assert load(None, KEYS, ledger_url="memory:").ledger.url == "memory:"
    assert load(None, KEYS | {"XDG_STATE_HOME": "/state"}).ledger.url.path
    [mistake] = mistakes(None, KEYS, "sqlite:///~/l.db")
    assert mistake == "--ledger.url: starts with ~, but there is no such home directory; write the full path"


def test_authorities_in_the_environment_are_checked(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    good, missing = CASES / "../../certificates/ca.pem", tmp_path / "missing.pem"
    assert load(None, KEYS | {"HOME": "/home/user", "SSL_CERT_FILE": str(good)}).workspaces
    for path, words in (
        (tmp_path / "empty.pem", "contains no readable certificate; "),
        (missing, "cannot be read: No such file"),
    ):
        [mistake] = mistakes(None, KEYS | {"HOME": "/home/user", "SSL_CERT_FILE": str(path)})
        assert mistake.startswith(f"environment: SSL_CERT_FILE: {path} {words}")


def test_keys_too_short_to_be_masked_cause_a_warning() -> None:
    short = Workspace(name="a", api_id=Credential("pro"), api_key=Credential("canary-7"))
    assert Config(workspaces=(short,)).warnings == (
        "workspace 'a': api_id has fewer than 8 characters: it is not masked in the log",
    )
    assert redaction.mask("the model gemini-2.5-pro, canary-7") == "the model gemini-2.5-pro, <hidden>"


def test_a_ledger_in_memory_skips_the_history_by_default(tmp_path: Path) -> None:
    assert LedgerSettings().effective_history == "skip"
    assert LedgerSettings(url=LedgerUrl("sqlite:///x.db")).effective_history == "count"
    assert load(None, KEYS, ledger_url="memory:").ledger.effective_history == "skip"
    told = load(written(tmp_path, "ledger: {history: count}"), KEYS, ledger_url="memory:")
    assert told.ledger.history == "count"
    assert told.warnings == ("ledger.url memory: with history: count, each start counts the whole list again",)


def test_the_ledger_flag_takes_precedence_over_the_file() -> None:
    config = load(CASES / "valid-full.yml", ENVIRONMENT, ledger_url="sqlite:///relative/ledger.db")
    assert config.ledger.url.path == Path("relative/ledger.db")
    assert config.ledger.effective_history == "count"
    assert mistakes(None, KEYS, "redis://canary") == [
        "--ledger.url: is not valid; write sqlite:////absolute/path.db, sqlite:///relative/path.db, memory: or postgresql://USER:PASSWORD@HOST/DATABASE"
    ]


def test_a_list_that_is_counted_twice_causes_a_warning() -> None:
    config = load(CASES / "valid-nulls-and-merges.yml", ENVIRONMENT)
    assert config.warnings == ()
    first, second = config.workspaces
    assert second.plan == Plan(credits=10)
    twin = Workspace(name="twin", api_id=first.api_id, api_key=first.api_key)
    doubled = Config(workspaces=(first, twin), ledger=LedgerSettings(new_series_hold=0.0))
    assert doubled.warnings == (
        "workspaces 'first' and 'twin' have the same keys: their tasks are counted twice",
        "ledger.new_series_hold 0s: increase() cannot see the first tasks of a new model",
    )


def test_two_workspaces_that_share_keys_but_no_list_show_the_balance_twice() -> None:
    first = Workspace(name="first", api_id=Credential("canary-id"), api_key=Credential("canary-key"))
    balance = Workspace(name="balance", api_id=first.api_id, api_key=first.api_key, lists=())
    config = Config(workspaces=(first, balance))
    words = "workspaces 'first' and 'balance' have the same keys: their balance is shown twice"
    assert words in config.warnings


def test_allowed_unencrypted_keys_cause_a_warning(tmp_path: Path) -> None:
    access = "base_url: 'http://api.example', allow_insecure: true"
    clear = f"workspaces: [{{name: a, api_id: canary-id, api_key: canary-key, {access}}}]"
    assert load(written(tmp_path, clear), ENVIRONMENT).warnings == (
        "workspace 'a' sends its keys unencrypted (allow_insecure)",
    )


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1", "127.9.9.9:1", "[::1]:8080", "api.localhost"])
def test_keys_may_be_unencrypted_on_the_same_machine(tmp_path: Path, host: str) -> None:
    path = written(tmp_path, f"workspaces: [{{name: a, api_id: x, api_key: y, base_url: 'http://{host}'}}]")
    assert load(path, ENVIRONMENT).workspaces[0].base_url == f"http://{host}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ": is empty; add at least one key, or omit --config.file"),
        (b"fetch: {}\n# \xff", ":2: is not UTF-8; save the file as UTF-8"),
        (b"fetch: {}\n# a\x07", ":2:4: contains a control character; remove it"),
        (b"[" * 1_000, ": is nested too deeply; the configuration has four levels"),
        (b"#" * 2**20 + b"\n", ": is larger than 1024 KiB; specify the right file with --config.file"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_reported_on_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = written(tmp_path, content)
    assert mistakes(path, KEYS) == [f"{path}{expected}"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "is not a regular file; specify a readable file with --config.file"),
        ("none.yml", "cannot be read: No such file or directory; specify a readable file with --config.file"),
        ("nul\0", "is not a valid file name; specify a readable file with --config.file"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_on_one_line(tmp_path: Path, name: str, expected: str) -> None:
    path = tmp_path / name
    assert mistakes(path, KEYS) == [f"{path}: {expected}"]


def test_a_file_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert load(written(tmp_path, b"\xef\xbb\xbffetch: {timeout: 1m}"), KEYS).fetch == Fetch(timeout=60.0)


def test_merged_keys_are_not_duplicates(tmp_path: Path) -> None:
    text = """
    ledger: {<<: &plan {history: skip}, history: count}
    fetch: {<<: [&a {timeout: 1s}, {<<: *a, timeout: 2s}], timeout: 3s}
    """
    config = load(written(tmp_path, text), KEYS)
    assert config.ledger.history == "count"
    assert config.fetch == Fetch(timeout=3.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1h30m", 5400), ("14s", 14), ("250ms", 0.25), ("1s500ms", 1.5), ("1d", 86400), ("2w", 1209600)],
)
def test_a_duration_is_written_as_in_prometheus(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "0", "s", "1.5h", "-1s", "1s1h", "30 s", "٣s", "9" * 5000 + "s"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_a_size_has_a_binary_unit() -> None:
    assert [parse_size(text) for text in ("512B", "1KiB", "16MiB", "4GiB")] == [512, 2**10, 2**24, 2**32]
    for text in ("", "4", "4GB", "4 GiB", "1.5GiB", "-1B"):
        with pytest.raises(ValueError, match="size"):
            parse_size(text)


def test_a_credential_never_shows_its_value() -> None:
    literal, file = Credential("canary-literal"), Credential(file=CASES / "keys/api-key")
    assert file.read() == "canary-key-0123456789"
    assert "canary" not in f"{literal} {literal!r} {file} {file!r}"
    assert redaction.mask(f"<{literal.read()}|{file.read()}>") == "<<hidden>|<hidden>>"


def test_credentials_with_the_same_source_are_equal() -> None:
    assert Credential("a") == Credential("a") != Credential("b")
    assert Credential(file=Path("a")) != Credential("a")
    assert len({Credential("a"), Credential("a"), Credential(file=Path("a"))}) == 2


def test_a_rotated_key_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("canary-old\n")
    credential = Credential(file=path)
    assert credential.read() == "canary-old"
    path.write_text("canary-new, longer\n")
    assert credential.read() == "canary-new, longer"
    swapped = tmp_path / "swapped"
    swapped.write_text("canary-old, longer\n")
    times = path.stat()
    os.utime(swapped, ns=(times.st_atime_ns, times.st_mtime_ns))
    swapped.replace(path)
    assert credential.read() == "canary-old, longer", "another file of the same size and time"


@pytest.mark.parametrize("content", [None, b"", b"\r\n", b"canary\x00", b"c\x00a\x00n\x00", b"a" * 20_000])
def test_the_error_about_an_unusable_key_names_its_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "key"
    path.write_text("canary")
    credential = Credential(file=path)
    credential.read()
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        credential.read()
    assert str(path) in str(caught.value)
    assert "canary" not in str(caught.value).replace(str(path), "")


def test_a_configuration_can_be_built_without_a_file() -> None:
    config = Config(
        workspaces=(Workspace(name="default", api_id=Credential("canary-a"), api_key=Credential("canary-b")),)
    )
    assert config.ledger.url.path is None
    assert config.warnings == ()
    assert hash(config) == hash(Config(workspaces=config.workspaces))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.text(),
    st.sampled_from(
        ["30s", "4GiB", "memory:", "${HOME}", "$${", "${", "http://x", "https://[", "a\0", "[[", "(a", "keys"]
    ),
)
NAMES = st.sampled_from([*sorted(set(re.findall(r"[a-z_]+(?=:)", (CASES / "valid-full.yml").read_text()))), "<<"])
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(), inner, max_size=6)
)


def loads_or_explains(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        return bool(load(path, KEYS | {"HOME": "/home/user"}).workspaces)
    except ConfigError as error:
        return bool(error.problems) and all(line.startswith(f"{path}:") for line in error.problems)


@given(document=DOCUMENTS)
def test_any_document_loads_or_is_explained(tmp_path_factory: pytest.TempPathFactory, document: object) -> None:
    text = yaml.safe_dump(document, allow_unicode=True)
    assert loads_or_explains(tmp_path_factory.getbasetemp() / "any.yml", text.encode("utf-8", "surrogatepass"))


@given(content=st.binary() | st.text(alphabet="{}[]:,-&*!|>'\"%@#?<= \n\tab1.~").map(str.encode))
def test_any_bytes_load_or_are_explained(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    assert loads_or_explains(tmp_path_factory.getbasetemp() / "any.yml", content)


PASTED = st.sampled_from(
    [
        "canary",
        "https://canary@x/?canary#canary",
        "(canary",
        "x: canary",
        "*canary",
        "!canary",
        " canary",
        "canary\u0007",
    ]
)
PASTED_ANYWHERE = st.recursive(
    PASTED, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6)
)


@given(document=PASTED_ANYWHERE, quoted=st.booleans())
def test_no_message_quotes_a_value_wherever_it_was_pasted(
    tmp_path_factory: pytest.TempPathFactory, document: object, quoted: bool
) -> None:
    text = yaml.safe_dump(document, allow_unicode=True)
    path = tmp_path_factory.getbasetemp() / "pasted.yml"
    path.write_text(text if quoted else text.replace("'", ""), "utf-8")
    try:
        shown = repr(load(path, KEYS | {"HOME": "/home/user"}).workspaces)
    except ConfigError as error:
        shown = str(error)
    assert "canary" not in shown


@pytest.mark.parametrize("url", ["postgresql://user:ca@nary@host/ledger", "postgresql://user:canary@host/a ledger"])
def test_an_invalid_postgresql_url_in_a_flag_is_one_line(url: str) -> None:
    [mistake] = mistakes(None, KEYS, url)
    assert mistake.startswith("--ledger.url: is not a PostgreSQL URL")
    assert "nary" not in mistake


@pytest.mark.parametrize("part", ["user:canary@host/ledger", "user@host/ledger?password=canary"])
def test_a_flag_that_exposes_a_password_is_refused(part: str) -> None:
    [mistake] = mistakes(None, KEYS, f"postgresql://{part}")
    assert mistake.startswith("--ledger.url: exposes its password")
    assert "canary" not in mistake


def with_keys(folder: Path, keys: str = "canary") -> None:
    folder.mkdir(parents=True)
    for name in ("api-id", "api-key"):
        (folder / name).write_text(f"{keys}-{name}-of-{folder.name}\n")


def test_a_directory_has_a_folder_per_workspace_as_kubernetes_mounts_it(tmp_path: Path) -> None:
    for name in ("acme", "Emil & Co"):
        with_keys(tmp_path / "secrets/..2026_11_01" / name)
    (tmp_path / "secrets/..2026_11_01/acme/plan.yml").write_text("credits: 700\nrenews_on_day: 3\n")
    for name in ("acme", "Emil & Co"):
        (tmp_path / "secrets" / name).symlink_to(Path("..data", name))
    (tmp_path / "secrets/..data").symlink_to("..2026_11_01")
    (tmp_path / "secrets/README").touch()
    own = "workspaces: [{name: own, api_id: canary-id, api_key: canary-key}]"
    shared = "{directory: secrets, remaining_credits: false, plan: {credits: 5}}"
    path = written(tmp_path, f"{own}\nworkspaces_from: [{shared}]\n")
    loaded = load(path, ENVIRONMENT)
    assert [(each.name, each.remaining_credits, each.plan) for each in loaded.workspaces] == [
        ("own", True, None),
        ("Emil & Co", False, Plan(credits=5.0)),
        ("acme", False, Plan(credits=700.0, renews_on_day=3)),
    ]
    acme = loaded.workspaces[2]
    assert (acme.api_id.read(), acme.api_key.read()) == ("canary-api-id-of-acme", "canary-api-key-of-acme")
    with_keys(tmp_path / "secrets/..2026_11_02/acme", "canary-rotated")
    (tmp_path / "secrets/new").symlink_to("..2026_11_02")
    (tmp_path / "secrets/new").rename(tmp_path / "secrets/..data")
    assert acme.api_key.read() == "canary-rotated-api-key-of-acme"
    assert [each.name for each in load(path, ENVIRONMENT).workspaces] == ["own", "acme"], "the other's link is broken"


def test_all_errors_in_a_directory_of_workspaces_are_reported_at_once(tmp_path: Path) -> None:
    for name in ("acme", "twin", " x"):
        with_keys(tmp_path / "secrets" / name)
    (tmp_path / "secrets/twin/api-id").write_text("")
    (tmp_path / "secrets/twin/plan.yml").write_text("credits: canary\n\nprice_per_credit: 1\nrenews: 3\n")
    (tmp_path / "secrets/acme/api-key").unlink()
    with_keys(tmp_path / "fine/fine")
    with_keys(tmp_path / "more/acme")
    with_keys(tmp_path / "more/own")
    (tmp_path / "unmounted").mkdir()
    rule = "must be 1 to 100 printable characters, no space at either end; choose another"
    told = [
        "4: renews: is not a known key; did you mean renews_on_day?",
        "1: credits: must be a number from 0 to 1000000000; it is read as text, so check its spelling and quotes",
    ]
    groups = "".join(f"  - directory: {name}\n" for name in ("secrets", "unmounted", "none", "config.yml"))
    own = "workspaces: [{name: own, api_id: canary-id, api_key: canary-key}]"
    path = written(
        tmp_path, f"{own}\nworkspaces_from:\n{groups}  - {{base_url: 'http://api.example', directory: fine}}\n"
    )
    assert [line.partition(": workspaces_from")[2] for line in mistakes(path, ENVIRONMENT)] == [
        f"[0].directory: folder ' x': its name {rule}",
        "[0].directory: folder 'acme': api-key cannot be read: No such file or directory; specify a readable file",
        "[0].directory: folder 'twin': api-id is empty; put the key there",
        *(f"[0].directory: folder 'twin': {tmp_path}/secrets/twin/plan.yml:{line}" for line in told),
        "[1].directory: has no folders; create one per workspace, with its name and the files api-id and api-key",
        "[2].directory: cannot be read: No such file or directory; specify a readable directory",
        f"[3].directory: {tmp_path}/config.yml cannot be read: Not a directory; specify a readable directory",
        "[4].base_url: would send the keys unencrypted; write https:// or set allow_insecure: true",
    ]
    path = written(tmp_path, f"{own}\nworkspaces_from: [{{directory: more}}, {{directory: more}}]\n")
    assert [line.partition(": workspaces_from")[2] for line in mistakes(path, ENVIRONMENT)] == [
        f"[{group}].directory: folder {name!r} has the name of an earlier workspace; rename one of them"
        for group, name in ((0, "own"), (1, "acme"), (1, "own"))
    ]


def test_the_state_of_a_directory_changes_if_a_reload_would_find_a_difference(tmp_path: Path) -> None:
    acme = tmp_path / "secrets/acme"
    with_keys(acme)
    [group] = load(written(tmp_path, "workspaces_from: [{directory: secrets}]\n"), ENVIRONMENT).workspaces_from
    seen = [group.directory.state]

    def changed() -> bool:
        seen.append(directory.state(tmp_path / "secrets"))
        return bool(seen[-1] != seen[-2])

    assert not changed()
    (acme / "api-key").write_text("rotated-key\n")
    assert not changed(), "a key is read again for each use"
    (acme / "plan.yml").write_text("credits: 5\n")
    assert changed()
    (tmp_path / "secrets/globex").mkdir()
    assert changed()
    (tmp_path / "secrets/globex/api-id").touch()
    assert changed()
    shutil.rmtree(tmp_path / "secrets")
    assert changed()
