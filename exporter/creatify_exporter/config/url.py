"""Addresses: of the API, of a proxy, and of the ledger. No message quotes one, since it may hold a password."""

import re
from base64 import b64encode
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import SplitResult, unquote, urlsplit

from creatify_exporter import redaction
from creatify_exporter.config import file
from creatify_exporter.config.credential import Credential
from creatify_exporter.config.yaml_reader import read_by

_POSTGRESQL: Final = ("postgresql://", "postgres://")


class HiddenUrl(str):
    """A URL that may carry a password: its repr, and so the repr of the configuration, leaves that out."""

    __slots__ = ()

    @property
    def masked(self) -> str:
        """The URL without its login, and without the values of its options that are passwords."""
        scheme, colon, _ = self.partition("://")
        login, address, query = _split(self)
        return f"{scheme}{colon}{'<hidden>@' if login else ''}{address}{'?' if query else ''}" + "&".join(
            f"{name}=<hidden>" if _is_password(name) else f"{name}{equals}{value}"
            for name, equals, value in _options(query)
        )

    def __repr__(self) -> str:
        return repr(self.masked)


def _http(text: str) -> SplitResult:
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


def _proxy_url(text: str) -> HiddenUrl:
    url = _http(text)
    if url.password:
        _register(url.password)
        # As it is sent, and as a proxy may repeat it.
        login = f"{unquote(url.username or '')}:{unquote(url.password)}"
        redaction.register(b64encode(login.encode()).decode())
    return HiddenUrl(text)


def _register(password: str) -> None:
    """Mask a password of a URL as it stands there and as it is meant."""
    redaction.register(password)
    redaction.register(unquote(password))


class LedgerUrl(HiddenUrl):
    """Where the ledger is: `sqlite:///PATH`, `memory:`, or a URL of libpq; made by `parse` or `from_file`.

    `source`, the file that it came from if there is one, is read again for each use: its password may have changed.
    """

    source: Credential | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `text`; ValueError says what is wrong."""
        if text.startswith(_POSTGRESQL):
            for password in _passwords(text):
                _register(password)
        elif text != "memory:":
            return cls(f"sqlite:///{file.expanded(_path(text))}")
        return cls(text)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the URL that stands in a file; ValueError says what is wrong."""
        credential = Credential(file=path).checked()
        url = cls.parse(credential.read())
        url.source = credential
        return url

    def read(self) -> str:
        """Return the URL as it is now."""
        return self.source.read() if self.source else str(self)

    @property
    def path(self) -> Path | None:
        """The SQLite file, None for a ledger elsewhere."""
        return Path(self.removeprefix("sqlite:///")) if self.startswith("sqlite:") else None

    @property
    def is_postgresql(self) -> bool:
        """Whether a database server keeps the ledger."""
        return self.startswith(_POSTGRESQL)

    @property
    def shows_password(self) -> bool:
        """Whether a list of processes would show a password, if this were on the command line."""
        return self.is_postgresql and bool(_passwords(self))

    @property
    def place(self) -> tuple[object, ...]:
        """Which ledger the URL means: equal for two that differ in how to connect, such as in the password."""
        if self.is_postgresql:
            return _database(self)
        return ("file", self.path.absolute()) if self.path else ("memory",)


def _path(text: str) -> str:
    """Return the name of the file in the URL of an SQLite ledger."""
    scheme, slashes, path = text.partition(":///")
    if scheme != "sqlite" or not slashes or not path.strip("/") or not path.isprintable() or "?" in path:
        raise ValueError(
            "is no ledger; write sqlite:////absolute/path.db, sqlite:///relative/path.db, memory: or "
            "postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    return path


def _passwords(text: str) -> list[str]:
    """Return the passwords in a PostgreSQL URL; ValueError if they cannot be told from the rest."""
    login, address, _ = _split(text)
    if "@" in address.partition("/")[0] or not text.isprintable() or " " in text:
        raise ValueError("is no PostgreSQL URL; in a user or password, write @ as %40, a space as %20 and / as %2F")
    options = _options(text.partition("?")[2])
    passwords = [login.partition(":")[2], *(value for name, _, value in options if _is_password(name))]
    return [password for password in passwords if password]


def _database(url: str) -> tuple[object, ...]:
    """Return the servers and the database that a URL means."""
    login, address, query = _split(url)
    servers, _, database = address.partition("/")
    options = {unquote(name): unquote(value) for name, _, value in _options(query)}
    names = [
        server.rpartition(":") if re.search(r":\d*$", server) else (server, "", "") for server in servers.split(",")
    ]
    hosts = options.get("host", ",".join(unquote(host) for host, _, _ in names)).split(",")
    ports = options.get("port", ",".join(port for _, _, port in names)).split(",")
    user = options.get("user") or unquote(login.partition(":")[0])
    pairs = zip(hosts, ports if len(ports) > 1 else ports * len(hosts), strict=False)
    where = frozenset((_server(host), port or "5432") for host, port in pairs)
    return where, options.get("dbname", unquote(database)) or user, options.get("hostaddr"), options.get("service")


def _server(host: str) -> str:
    """Return a host as it is compared: the letters of a name have no case, those of a socket's folder do."""
    return host if host.startswith("/") else host.strip("[]").lower()


def _options(query: str) -> list[tuple[str, str, str]]:
    """Return name, equals sign and value of each option of a URL, as they stand there."""
    return [option.partition("=") for option in query.split("&")]


def _is_password(option: str) -> bool:
    """Return whether an option of this name is a password, however the name is written."""
    return "password" in unquote(option)


def _split(url: str) -> tuple[str, str, str]:
    """Return the login, the servers with the database, and the options of a URL, split as libpq does it."""
    rest = url.partition("://")[2]
    login, at, address = rest.partition("@")
    if not at or "/" in login:
        login, address = "", rest
    address, _, query = address.partition("?")
    return login, address, query


BaseUrl = Annotated[str, read_by(_base_url)]
ProxyUrl = Annotated[str, read_by(_proxy_url, unread=None)]
LedgerLocation = Annotated[LedgerUrl, read_by(LedgerUrl.parse, parse_file=LedgerUrl.from_file)]
