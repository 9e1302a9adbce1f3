"""URLs of the API, of a proxy and of the ledger. No message quotes one, because it may contain a password."""

import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urlsplit

from urllib3.util import parse_url

from creatify_exporter import redaction
from creatify_exporter.config import file
from creatify_exporter.config.credential import Credential
from creatify_exporter.config.reader import read_by

_POSTGRESQL: Final = ("postgresql://", "postgres://")


class HiddenUrl(str):
    """A URL that may contain a password: its repr, and so the repr of the configuration, hides it."""

    __slots__ = ()

    @property
    def masked(self) -> str:
        """The URL without its login and its options, either of which may contain a password."""
        return re.sub("^([^/]*://)[^/]*@", r"\1<hidden>@", self).partition("?")[0]

    def __repr__(self) -> str:
        return repr(self.masked)


def _http(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        url.port  # noqa: B018  raises if the port is invalid
        parse_url(text)  # as the client will
    except ValueError:
        raise ValueError("is not a URL; write it like https://host.example:8443") from None
    if url.scheme not in ("http", "https") or not url.hostname or not text.isprintable() or " " in text:
        raise ValueError("is not an http or https URL; write it like https://host.example:8443")
    return url


def _base_url(text: str) -> str:
    url = _http(text)
    if "@" in url.netloc:
        raise ValueError("must not contain a user or a password; use api_id and api_key")
    if "?" in text or "#" in text:
        raise ValueError("must not have a query or a fragment; end it after the path")
    return text.rstrip("/")


def _proxy_url(text: str) -> HiddenUrl:
    url = _http(text)
    if url.password:
        redaction.register(url.password)
        redaction.register(unquote(url.password))
        # As it is sent in a header; a proxy may repeat it in one, and headers are read as Latin-1.
        name, password = unquote_to_bytes(url.username or ""), unquote_to_bytes(url.password)
        redaction.register(b64encode(name + b":" + password).decode())
        redaction.register(password.decode("latin-1"))
    return HiddenUrl(text)


class LedgerUrl(HiddenUrl):
    """Where the ledger is: `sqlite:///PATH`, `memory:`, or a libpq URL; created by `parse` or `from_file`.

    `source`, the file of the URL if there is one, is read again for each use, because the password may have changed.
    """

    source: Credential | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `text`; ValueError says what is wrong."""
        if text.startswith(_POSTGRESQL):
            as_written = text.partition("://")[2].partition("@")[0].partition(":")[2]
            for password in (*_passwords(_parameters(text)), as_written):
                redaction.register(password)
        elif text != "memory:":
            return cls(f"sqlite:///{file.expanded(_path(text))}")
        return cls(text)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the URL from a file; ValueError says what is wrong."""
        credential = Credential(file=path).checked()
        url = cls.parse(credential.read())
        url.source = credential
        return url

    def read(self) -> str:
        """Return the current URL."""
        return self.source.read() if self.source else str(self)

    @property
    def path(self) -> Path | None:
        """The SQLite file; None for other ledgers."""
        return Path(self.removeprefix("sqlite:///")) if self.startswith("sqlite:") else None

    @property
    def is_postgresql(self) -> bool:
        """Whether the ledger is in PostgreSQL."""
        return self.startswith(_POSTGRESQL)

    @property
    def shows_password(self) -> bool:
        """Whether the URL contains a password, which the process list would show if it were on the command line."""
        return self.is_postgresql and bool(_passwords(_parameters(self)))

    @property
    def identity(self) -> tuple[object, ...]:
        """The identity of the ledger: equal for URLs that differ only in how to connect, such as in the password."""
        if self.is_postgresql:
            return _database(_parameters(self))
        return ("file", self.path.absolute()) if self.path else ("memory",)


def _path(text: str) -> str:
    """Return the file name in the URL of an SQLite ledger."""
    scheme, slashes, path = text.partition(":///")
    if scheme != "sqlite" or not slashes or not path.strip("/") or not path.isprintable() or "?" in path:
        raise ValueError(
            "is not valid; write sqlite:////absolute/path.db, sqlite:///relative/path.db, memory: or "
            "postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    return path


def _parameters(url: str) -> dict[str, str]:
    """Parse a PostgreSQL URL with libpq; ValueError, which quotes nothing, says what is wrong."""
    try:
        import psycopg_pool  # noqa: F401, PLC0415  an extra, which the ledger needs too
        from psycopg import ProgrammingError, conninfo  # noqa: PLC0415  as above
    except ImportError:
        raise ValueError(
            "needs the packages psycopg and psycopg-pool; from a checkout: pip install '.[postgresql]'"
        ) from None
    parameters: dict[str, str] | None = None
    with suppress(ProgrammingError, UnicodeError):
        parameters = {name: str(value) for name, value in conninfo.conninfo_to_dict(url).items()}
    # libpq ends the login at the first @ and the server at the first /. The rest of a password that contains either
    # would become the host or the database, which are not masked.
    database = url.partition("://")[2].partition("?")[0].partition("/")[2]
    if not url.isprintable() or parameters is None or "@" in parameters.get("host", "") or "@" in database:
        raise ValueError(
            "is not a PostgreSQL URL; write it like postgresql://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full, "
            "with options that libpq knows; in a user or a password, write @ as %40, a space as %20 and / as %2F"
        )
    return parameters


def _passwords(parameters: Mapping[str, str]) -> list[str]:
    return [value for name, value in parameters.items() if "password" in name and value]


def _database(parameters: Mapping[str, str]) -> tuple[object, ...]:
    """Return the identity of the database that a PostgreSQL URL means."""
    hosts, ports = (parameters.get(name, "").split(",") for name in ("host", "port"))
    pairs = zip(hosts, ports if len(ports) > 1 else ports * len(hosts), strict=False)
    # Host names are case-insensitive, paths of a socket are not.
    servers = frozenset((host if host.startswith("/") else host.lower(), port or "5432") for host, port in pairs)
    name = parameters.get("dbname") or parameters.get("user")
    return servers, name, parameters.get("hostaddr"), parameters.get("service")


BaseUrl = Annotated[str, read_by(_base_url)]
ProxyUrl = Annotated[str, read_by(_proxy_url, unread=None)]
LedgerLocation = Annotated[LedgerUrl, read_by(LedgerUrl.parse, parse_file=LedgerUrl.from_file)]
