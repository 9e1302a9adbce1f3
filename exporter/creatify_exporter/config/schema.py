"""The configuration: frozen structs, the rules between their fields, and `load`, which makes them from a file.

A rule of one value stands in the function that parses it, a rule between values in its struct's `faults`;
how a document becomes structs, and mistakes become lines, is `document`'s business.
"""

import ipaddress
import os
import re
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from creatify_exporter import log
from creatify_exporter.config import yaml_reader as document
from creatify_exporter.config.credential import Credential
from creatify_exporter.config.values import ByteSize, Seconds
from creatify_exporter.errors import ConfigError

__all__ = ["TLS", "ByteSize", "Config", "Credential", "Fetch", "Labels", "Ledger", "Plan", "ReasonRule", "Seconds",
           "Workspace", "WorkspacesFrom", "ledger_at", "load"]  # fmt: skip

History = Literal["count", "skip"]

_LONGEST_LABEL = 100
_KEY_FILES = ("api-id", "api-key")
_POSTGRESQL = ("postgresql://", "postgres://")


class HiddenUrl(str):
    """A URL that may carry a password: its repr, and so the repr of the configuration, leaves that out."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(re.sub(r"//[^/]*@", "//<hidden>@", self))


def _label(text: str) -> str:
    if not text or text != text.strip() or len(text) > _LONGEST_LABEL or not text.isprintable():
        raise ValueError(f"must be 1 to {_LONGEST_LABEL} printable characters, no space at either end; choose another")
    return text


def _reason(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", text) or len(text) > _LONGEST_LABEL:
        raise ValueError("is no label value; write small letters, digits and _, like rate_limited")
    return text


def _currency(text: str) -> str:
    if not re.fullmatch(r"[A-Z]{3}", text):
        raise ValueError("is no currency; write its three capital letters, like USD")
    return text


def _pattern(text: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pattern = re.compile(text)
    except re.error as error:
        place = "" if error.pos is None else f" at position {error.pos}"
        raise ValueError(f"is not a regular expression: {error.msg}{place}; mend it or escape it with \\") from None
    except (Warning, RecursionError, OverflowError) as error:
        raise ValueError(f"is no good regular expression: {error}; mend it or escape it with \\") from None
    if pattern.fullmatch(""):
        raise ValueError("matches every text, even none; write what the text must contain")
    return pattern


def _http(text: str) -> SplitResult:
    """Split an http(s) URL. No message quotes it: it may hold a password."""
    try:
        url = urlsplit(text)
        url.port  # noqa: B018  looks at the port, which may raise
    except ValueError:
        raise ValueError("is not a URL; write it like https://host.example:8443") from None
    if url.scheme not in ("http", "https") or not url.hostname or not text.isprintable() or " " in text:
        raise ValueError("is not an http or https URL; write it like https://host.example:8443")
    return url


def _base_url(text: str) -> str:
    url = _http(text)
    if "@" in url.netloc:
        raise ValueError("must not hold a user or a password; use api_id and api_key")
    if "?" in text or "#" in text:
        raise ValueError("must not have a query or a fragment; end it after the path")
    return text.rstrip("/")


def _proxy_url(text: str) -> str:
    url = _http(text)
    if url.password:
        _redact(url.password)
        login = f"{unquote(url.username or '')}:{unquote(url.password)}"
        log.redact(b64encode(login.encode()).decode())  # as it is sent, and as a proxy may say it again
    return HiddenUrl(text)


def _redact(password: str) -> None:
    """Keep a password of a URL out of the log, as it stands there and as it is meant."""
    log.redact(password)
    log.redact(unquote(password))


class LedgerUrl(HiddenUrl):
    """Where the ledger is; `file`, where it came from one, is read again whenever it is asked for."""

    file: Credential | None = None

    def read(self) -> str:
        """Return the URL as it is now: its password may have been changed."""
        return self.file.read() if self.file else str(self)


def _ledger_url(text: str) -> LedgerUrl:
    if text.startswith(_POSTGRESQL):
        for password in _passwords(text):
            _redact(password)
    else:
        scheme, slashes, path = text.partition(":///")
        file = scheme == "sqlite" and slashes and path.strip("/") and path.isprintable() and "?" not in path
        if not file and text != "memory:":
            raise ValueError(
                "is no ledger; write sqlite:////absolute/path.db, sqlite:///relative/path.db, memory: or "
                "postgresql://USER:PASSWORD@HOST/DATABASE"
            )
    return LedgerUrl(text)


def ledger_at(url: str) -> "Ledger":
    """Return the ledger that a command line names; ConfigError where it names none, or shows a password."""
    try:
        ledger = Ledger(url=_ledger_url(url))
    except ValueError as error:
        raise ConfigError([f"a ledger's URL {error}"]) from None
    if _shows_password(url):
        raise ConfigError(["a ledger's URL shows its password to all users of this machine; use PGPASSFILE"])
    return ledger


def _ledger_url_file(path: Path) -> LedgerUrl:
    file = _secret_file(path)
    url = _ledger_url(file.read())
    url.file = file
    return url


def _passwords(text: str) -> list[str]:
    """Return the passwords in a PostgreSQL URL; ValueError where they cannot be told from the rest."""
    authority, _, rest = text.partition("://")[2].partition("/")
    user, _, _ = authority.rpartition("@")
    if "@" in user or not text.isprintable() or " " in text:
        raise ValueError("is no PostgreSQL URL; in a user or password, write @ as %40, a space as %20 and / as %2F")
    options = (option.partition("=") for option in rest.partition("?")[2].split("&"))
    passwords = [user.partition(":")[2], *(value for name, _, value in options if "password" in name)]
    return [password for password in passwords if password]


def _database(url: str) -> tuple[object, ...]:
    """Return the servers and the database that a URL means, split as libpq does it."""
    rest = url.partition("://")[2]
    login, at, address = rest.partition("@")
    if not at or "/" in login:
        login, address = "", rest
    address, _, query = address.partition("?")
    servers, _, database = address.partition("/")
    given = (option.partition("=") for option in query.split("&"))
    options = {unquote(name): unquote(value) for name, _, value in given}
    names = [
        server.rpartition(":") if re.search(r":\d*$", server) else (server, "", "") for server in servers.split(",")
    ]
    hosts = options.get("host", ",".join(unquote(host) for host, _, _ in names)).split(",")
    ports = options.get("port", ",".join(port for _, _, port in names)).split(",")
    user = options.get("user") or unquote(login.partition(":")[0])
    pairs = zip(hosts, ports if len(ports) > 1 else ports * len(hosts), strict=False)
    where = frozenset((host.strip("[]"), port or "5432") for host, port in pairs)
    return where, options.get("dbname") or unquote(database) or user, options.get("hostaddr"), options.get("service")


def _shows_password(url: str) -> bool:
    """Whether a URL on the command line shows a password there; one that is no URL is refused as such elsewhere."""
    try:
        return url.startswith(_POSTGRESQL) and bool(_passwords(url))
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _secret_file(path: Path) -> Credential:
    credential = Credential(file=path)
    try:
        credential.read()
    except ConfigError as error:  # without the name, which may be the key itself, put under the wrong one of two keys
        raise ConfigError([line.replace(str(path), "the file") for line in error.problems]) from None
    return credential


def _secret(text: str) -> Credential:
    credential = Credential(text)
    credential.read()
    return credential


class Keys(NamedTuple):
    """A folder of a directory of workspaces: its name, and the files in it."""

    name: str
    api_id: Credential
    api_key: Credential


def _directory(path: Path) -> tuple[Keys, ...]:
    """Return the keys in a directory, by folder. Names with a dot in front are those of Kubernetes' own links."""
    try:
        folders = sorted(each for each in path.iterdir() if not each.name.startswith(".") and each.is_dir())
    except OSError as error:
        raise ValueError(f"this directory cannot be read: {error.strerror}; name one that is readable") from None
    except ValueError:  # a NUL or a lone surrogate in the name
        raise ValueError("cannot be the name of a directory; name one that is readable") from None
    problems = [f"folder {folder.name!r}: {words}" for folder in folders for words in _faults_of(folder)]
    if not folders:  # a volume that is not mounted must not end all workspaces
        problems.append("has no folder; make one for each workspace, named like it, with the files api-id and api-key")
    if problems:
        raise ConfigError(problems)
    return tuple(Keys(each.name, *(Credential(file=each / name) for name in _KEY_FILES)) for each in folders)


def _faults_of(folder: Path) -> Iterator[str]:
    try:
        _label(folder.name)
    except ValueError as error:
        yield f"its name {error}"
    for name in _KEY_FILES:
        try:
            Credential(file=folder / name).read()
        except ConfigError as error:
            yield str(error).replace(str(folder / name), name)


def _read_by(parse: Callable[[str], object], **extra: object) -> msgspec.Meta:
    """Tell `document` how to make a value of a text; what else it understands stands in its `Reader`."""
    return msgspec.Meta(extra={"parse": parse, **extra})


Label = Annotated[str, _read_by(_label)]
Duration = Annotated[Seconds, _read_by(Seconds.parse, bare_number="has no unit; add one, like 30s, 2m or 24h")]
Size = Annotated[ByteSize, _read_by(ByteSize.parse, bare_number="has no unit; add one, like 16MiB or 4GiB")]
Secret = Annotated[Credential, _read_by(_secret, parse_file=_secret_file)]
Directory = Annotated[tuple[Keys, ...], msgspec.Meta(extra={"parse_path": _directory})]
Amount = Annotated[float, msgspec.Meta(ge=0)]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping of the file. A field without a default is a key that must be given."""

    def faults(self) -> Iterator[tuple[str, str]]:
        """Yield (key, what is wrong; how to mend it) for each broken rule between several values.

        It is asked even if some keys were unreadable: a required one is then None, another at its default.
        """
        yield from ()


class TLS(Section, frozen=True, kw_only=True):
    """How to verify the API's certificate and which one to show it: `tls_config`, named as Prometheus does."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def faults(self) -> Iterator[tuple[str, str]]:
        """Keep a certificate and its key together."""
        if self.cert_file and not self.key_file:
            yield "cert_file", "has no key; add key_file"
        if self.key_file and not self.cert_file:
            yield "key_file", "has no certificate; add cert_file"


class Plan(Section, frozen=True, kw_only=True):
    """What the API does not tell: credits for each period, the day of the month it starts, the price of a credit."""

    credits: Amount | None = None
    renews_on_day: Annotated[int, msgspec.Meta(ge=1, le=31)] | None = None
    price_per_credit: Amount | None = None
    currency: Annotated[str, _read_by(_currency)] | None = None

    def faults(self) -> Iterator[tuple[str, str]]:
        """Ask for a currency: a price without one is a number without a unit."""
        if self.price_per_credit is not None and self.currency is None:
            yield "price_per_credit", "has no currency; add currency, like USD"


class Access(Section, frozen=True, kw_only=True):
    """How to reach the API for a workspace, and what is known of its plan; `base_url` has no slash at its end."""

    base_url: Annotated[str, _read_by(_base_url)] = "https://api.creatify.ai"
    allow_insecure: bool = False
    remaining_credits: bool = True
    plan: Plan | None = None
    proxy_url: Annotated[str, _read_by(_proxy_url)] | None = None
    tls_config: TLS | None = None

    def faults(self) -> Iterator[tuple[str, str]]:
        """Refuse to send the keys, which are in every request, in clear."""
        url = urlsplit(self.base_url)
        if url.scheme != "https" and not self.allow_insecure and not _is_loopback(url.hostname or ""):
            yield "base_url", "would send the keys unencrypted; write https:// or set allow_insecure: true"


class Workspace(Access, frozen=True, kw_only=True):
    """One workspace of Creatify with its pair of keys."""

    name: Label
    api_id: Secret
    api_key: Secret


class WorkspacesFrom(Access, frozen=True, kw_only=True):
    """A directory with a folder for each workspace, which has its name and holds its keys; all share the rest."""

    directory: Directory

    def workspaces(self) -> Iterator[Workspace]:
        """Yield them, by name."""
        shared = {name: getattr(self, name) for name in Access.__struct_fields__}
        for keys in self.directory:
            yield Workspace(**keys._asdict(), **shared)


_HOUR, _YEAR = 3600, 365 * 24 * 3600  # seconds


class Fetch(Section, frozen=True, kw_only=True):
    """The limits of one fetch: seconds for all of it, seconds between two, decoded bytes of the body and of a task.

    And of all together: how many may run at the same time, among those that answer at once and among the slow ones.
    """

    timeout: Duration = Seconds(30)
    min_interval: Duration = Seconds(14)
    max_body: Size = ByteSize(4 * 2**30)
    max_task: Size = ByteSize(16 * 2**20)
    max_concurrent: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50

    def faults(self) -> Iterator[tuple[str, str]]:
        """Limits of nothing would end every fetch."""
        if not 0 < self.timeout <= _HOUR:
            yield "timeout", "must be longer than 0s and at most 1h; write it like 30s"
        if self.max_task <= 0:
            yield "max_task", "must be larger than 0B; write it like 16MiB"
        if self.max_body < self.max_task:
            yield "max_body", "is smaller than max_task; raise it or lower max_task"


class Ledger(Section, frozen=True, kw_only=True):
    """Where counted tasks are remembered, and for how many seconds; `history` is what the first list means.

    A ledger in memory is new at each start, so that it skips the history unless it is told otherwise.
    """

    url: Annotated[str, _read_by(_ledger_url, parse_file=_ledger_url_file)] = "memory:"
    history: History = None  # type: ignore[assignment]  # `__post_init__` decides, by the url
    settle_after: Duration = Seconds(24 * 3600)
    new_series_hold: Duration = Seconds(120)

    def __post_init__(self) -> None:
        if self.history is None:
            msgspec.structs.force_setattr(self, "history", "skip" if self.url == "memory:" else "count")

    @property
    def path(self) -> Path | None:
        """The SQLite file, None for a ledger elsewhere."""
        return Path(self.url.removeprefix("sqlite:///")) if self.url.startswith("sqlite:") else None

    @property
    def conninfo(self) -> Callable[[], str] | None:
        """What returns the URL of the PostgreSQL database as it is now, None for a ledger elsewhere."""
        if not self.url.startswith(_POSTGRESQL):
            return None
        return self.url.read if isinstance(self.url, LedgerUrl) else lambda: self.url

    @property
    def place(self) -> tuple[object, ...]:
        """Which ledger the URL means: equal for two that differ in how to connect, such as in the password."""
        if self.url.startswith(_POSTGRESQL):
            return _database(self.url)
        return ("file", self.path.absolute()) if self.path else ("memory",)

    def faults(self) -> Iterator[tuple[str, str]]:
        """Refuse a ledger that forgets at once, and so would miss every change."""
        if not 0 < self.settle_after <= _YEAR:
            yield "settle_after", "must be longer than 0s and at most 1y; write it like 24h"
        if self.new_series_hold > _HOUR:
            yield "new_series_hold", "must be at most 1h; write it like 2m"


class Labels(Section, frozen=True, kw_only=True):
    """How many models get series of their own, and which ones always do."""

    max_models: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    models: tuple[Label, ...] = ()

    def faults(self) -> Iterator[tuple[str, str]]:
        """Make room for what is always admitted."""
        if len(set(self.models)) > self.max_models:
            yield "models", "names more models than max_models admits; raise max_models"


class ReasonRule(Section, frozen=True, kw_only=True):
    """A class of failures: the label value, and what a failure's text must contain for it."""

    reason: Annotated[str, _read_by(_reason)]
    match: Annotated[re.Pattern[str], _read_by(_pattern)]


class Config(Section, frozen=True, kw_only=True):
    """All of it. `failure_reasons` is None where the file has none: then the default classes hold.

    Of one that was loaded, `workspaces` are all, those from directories too.
    """

    workspaces: tuple[Workspace, ...] = ()
    workspaces_from: tuple[WorkspacesFrom, ...] = ()
    fetch: Fetch = Fetch()
    ledger: Ledger = Ledger()
    labels: Labels = Labels()
    failure_reasons: tuple[ReasonRule, ...] | None = None

    def faults(self) -> Iterator[tuple[str, str]]:
        """Keep names apart: two workspaces of one name would mix their series."""
        seen = set[str]()
        for index, workspace in enumerate(self.workspaces):
            if workspace.name and workspace.name in seen:
                yield f"workspaces[{index}].name", "is the name of an earlier workspace too; rename one of them"
            seen.add(workspace.name)
        for index, group in enumerate(self.workspaces_from):
            for keys in group.directory or ():
                if keys.name in seen:
                    words = f"folder {keys.name!r} has the name of an earlier workspace; rename one of them"
                    yield f"workspaces_from[{index}].directory", words
                seen.add(keys.name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed, but hardly meant; reads the credentials, so ConfigError is possible."""
        return tuple(self._doubts())

    def _doubts(self) -> Iterator[str]:
        first: dict[tuple[str, str, str], str] = {}
        for each in self.workspaces:
            other = first.setdefault((each.base_url, each.api_id.read(), each.api_key.read()), each.name)
            if other != each.name:
                yield f"workspaces {other!r} and {each.name!r} have the same keys: their tasks are counted twice"
        if self.ledger.url == "memory:" and self.ledger.history == "count":
            yield "ledger.url memory: with history: count counts the whole list again at each start"
        if self.ledger.new_series_hold <= 0:
            yield "ledger.new_series_hold 0s: increase() cannot see the first tasks of a new model"
        for workspace in self.workspaces:
            if workspace.allow_insecure and not workspace.base_url.startswith("https:"):
                yield f"workspace {workspace.name!r} sends its keys unencrypted (allow_insecure)"


def load(
    path: Path | None, environ: Mapping[str, str], *, ledger_url: str | None = None, keys_needed: bool = True
) -> Config:
    """Read the file, if there is one, and the environment; ConfigError holds every mistake in them.

    `ledger_url` is the flag of that name, and wins over the file. Relative names of files start at the
    folder of the configuration file, in the environment and in a ledger's URL at the working directory.
    A command that asks the API nothing does without workspaces, where it says that no keys are needed.
    """
    raw, problems = document.read(path) if path else ({}, [])
    reader = document.Reader(str(path or "environment"), path.parent if path else Path(), environ)
    reader.problems.extend(problems)
    if ledger_url is not None and _shows_password(ledger_url):
        reader.problems.append(
            "--ledger.url: shows its password to all users of this machine; "
            "use ledger.url_file, CREATIFY_LEDGER_URL_FILE or PGPASSFILE"
        )
    if isinstance(raw, dict):
        raw = {**raw, "ledger": _with_url(raw.get("ledger"), environ, ledger_url)}
        if keys_needed and raw.get("workspaces") in (None, []) and raw.get("workspaces_from") in (None, []):
            raw["workspaces"] = _from_environment(reader, environ)
    config = reader.build(Config, raw)
    found = tuple(workspace for group in config.workspaces_from for workspace in group.workspaces())
    return msgspec.structs.replace(config, workspaces=config.workspaces + found)


def _with_url(ledger: object, environ: Mapping[str, str], flag: str | None) -> object:
    """Complete the file's `ledger` by flag, environment or default; what is no mapping is left for its error."""
    if not isinstance(ledger, dict | None):
        return ledger
    given = {name: value for name, value in (ledger or {}).items() if name in ("url", "url_file") and value is not None}
    if flag is not None:
        given = {"url": document.Given("--ledger.url", flag)}
    elif not given:
        given = {
            key: document.Given(f"environment: {name}", environ[name])
            for key, name in (("url", "CREATIFY_LEDGER_URL"), ("url_file", "CREATIFY_LEDGER_URL_FILE"))
            if environ.get(name)
        } or {"url": document.Given("the default of ledger.url", f"sqlite:///{_state_folder(environ)}/ledger.db")}
    others = {name: value for name, value in (ledger or {}).items() if name not in ("url", "url_file")}
    return {**others, **given}


def _state_folder(environ: Mapping[str, str]) -> Path:
    """Return where this program may keep its state: systemd says, else the XDG base directories do."""
    if folders := environ.get("STATE_DIRECTORY"):
        return Path(folders.split(":")[0])
    home = Path(environ.get("XDG_STATE_HOME", ""))
    if not home.is_absolute():  # the specification says to ignore it then
        home = Path(environ.get("HOME") or os.path.expanduser("~")) / ".local/state"  # noqa: PTH111  never raises
    return home / "creatify-exporter"


def _from_environment(reader: document.Reader, environ: Mapping[str, str]) -> list[dict[str, document.Given]]:
    """Return the workspace that the environment describes, in a list that is empty if it is incomplete."""
    names = [name for key in ("CREATIFY_API_ID", "CREATIFY_API_KEY") for name in (key, f"{key}_FILE")]
    given = {name: document.Given(f"environment: {name}", environ[name]) for name in names if environ.get(name)}
    if not given:
        reader.fault(
            "workspaces",
            "there is none; list one with name, api_id and api_key in a file (--config.file), "
            "or set CREATIFY_API_ID and CREATIFY_API_KEY, or their _FILE forms, in the environment",
        )
        return []
    faults = []
    for name in names[::2]:
        literal, file = name in given, f"{name}_FILE" in given
        if literal and file:
            faults.append(f"environment: {name}: is given together with {name}_FILE; keep one of them")
        if not literal and not file:
            faults.append(f"environment: {name}: is missing; set it or {name}_FILE")
    reader.problems.extend(faults)
    keys = {name.removeprefix("CREATIFY_").lower(): value for name, value in given.items()}
    return [] if faults else [{"name": document.Given("environment", "default"), **keys}]
