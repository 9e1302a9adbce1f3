"""The web configuration: TLS, users, headers and rate limit, in the format of the Prometheus exporter toolkit.

Settings of that format that this server does not support are refused by name, never ignored. The format:
https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md
"""

import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec

from creatify_exporter.config import document, file
from creatify_exporter.config.document import shown_name
from creatify_exporter.config.reader import Reader, Settings, read_by
from creatify_exporter.errors import ConfigError
from creatify_exporter.web.handshake import Context
from creatify_exporter.web.tls import ServerTLS
from creatify_exporter.web.users import PasswordHash

# The headers that can be set, with a pattern for their values and the error for others.
_HEADERS: Final[Mapping[str, tuple[str, str]]] = {
    "Content-Security-Policy": (r"[ -~]+", "must be printable ASCII on one line; correct it"),
    "Strict-Transport-Security": (
        r'(?ai)([ -~]*;)? *max-age *= *("[0-9]+"|[0-9]+) *(;[ -~]*)?',
        "must name a max-age in seconds; write it like max-age=31536000",
    ),
    "X-Content-Type-Options": (r"nosniff", "must be nosniff; write that or leave it out"),
    "X-Frame-Options": (r"deny|sameorigin", "must be deny or sameorigin; write one of them or leave it out"),
    "X-XSS-Protection": (r"[01]( *;[ -~]*)?", "must begin with 0 or 1; write one of them"),
}
# https://pkg.go.dev/time#ParseDuration
_INTERVAL_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_INTERVAL_PART: Final = re.compile(rf"(\d+\.?\d*|\.\d+)({'|'.join(_INTERVAL_UNITS)})", re.ASCII)
# Seconds.
_MAX_INTERVAL: Final = 366 * 24 * 3600.0
# A lower cost of bcrypt makes passwords quick to guess.
_MIN_SAFE_COST: Final = 10
# A higher cost makes a login take seconds of CPU time.
_MAX_FAST_COST: Final = 14
# Settings that the toolkit treats as unset if they are an empty string.
_BLANK_IS_NONE: Final = ("cert", "cert_file", "key", "key_file", "client_ca", "client_ca_file", "client_auth_type")


Files = Mapping[Path, file.State | None]
"""Files with their states; a different state means that they have to be read again."""
Hash = Annotated[PasswordHash, read_by(PasswordHash.parse)]
HeaderValue = Annotated[str, read_by(str.strip, takes_number=True)]


class HTTP(Settings, frozen=True, kw_only=True):
    """`http_server_config`: headers of every response. HTTP/2 is not supported."""

    http2: bool = False
    headers: dict[str, HeaderValue | None] = msgspec.field(default_factory=dict)

    def validate(self) -> Iterator[tuple[str, str]]:
        """Allow only the toolkit's headers, with valid values."""
        if self.http2:
            yield "http2", "cannot be honoured: only HTTP/1.1 is supported; remove it, or write false"
        for name, value in self.headers.items():
            if name not in _HEADERS:
                yield f"headers.{shown_name(name)}", f"cannot be set; use one of {', '.join(_HEADERS)}"
                continue
            pattern, mistake = _HEADERS[name]
            if value and not re.fullmatch(pattern, value):
                yield f"headers.{name}", mistake

    @property
    def response_headers(self) -> dict[str, str]:
        """The headers whose value is not empty."""
        return {name: value for name, value in self.headers.items() if value}


def parse_interval(text: str) -> float:
    """Return the seconds of a Go duration, such as `1s`, `1.5h`, `1m30s` or `0`; ValueError says what is wrong."""
    parts = _INTERVAL_PART.findall(text)
    if text.strip() != "0" and (not parts or _INTERVAL_PART.sub("", text)):
        raise ValueError("is not a duration; write numbers with units, like 1s, 250ms or 1m30s")
    interval = sum(float(number) * _INTERVAL_UNITS[unit] for number, unit in parts)
    if interval > _MAX_INTERVAL:
        raise ValueError("is longer than a year; write a shorter duration")
    return interval


class RateLimit(Settings, frozen=True, kw_only=True):
    """`rate_limit`: `burst` requests, then one per `interval` (seconds); an interval of 0 limits nothing."""

    interval: Annotated[float, read_by(parse_interval, takes_number=True)] = 0.0
    burst: Annotated[int, msgspec.Meta(ge=0)] = 0


class WebConfig(Settings, frozen=True, kw_only=True):
    """The whole file. Users are names and their hashes; without users, no password is required."""

    tls_server_config: ServerTLS | None = None
    http_server_config: HTTP = HTTP()
    basic_auth_users: dict[str, Hash] = msgspec.field(default_factory=dict)
    rate_limit: RateLimit = RateLimit()

    def validate(self) -> Iterator[tuple[str, str]]:
        """Refuse names that could never log in."""
        for name in self.basic_auth_users:
            if ":" in name:
                yield f"basic_auth_users.{shown_name(name)}", "must not contain a colon, which ends a name; rename it"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Settings that are valid but probably a mistake."""
        return tuple(self._find_warnings())

    def _find_warnings(self) -> Iterator[str]:
        if self.basic_auth_users and not self.tls_server_config:
            yield "basic_auth_users without tls_server_config: passwords are sent unencrypted"
        for name, hashed in self.basic_auth_users.items():
            cost = f"basic_auth_users.{shown_name(name)}: a cost of {hashed.cost}"
            if hashed.cost < _MIN_SAFE_COST:
                yield f"{cost} makes the password quick to guess; {_MIN_SAFE_COST} is usual"
            if hashed.cost > _MAX_FAST_COST:
                yield f"{cost} makes a login take seconds; {_MIN_SAFE_COST} is usual"
        if self.rate_limit.interval and not self.rate_limit.burst:
            yield "rate_limit without a burst: no request is answered"
        if self.rate_limit.burst and not self.rate_limit.interval:
            yield "rate_limit without an interval: nothing is limited"
        if self.tls_server_config and self.tls_server_config.uses_system_authorities:
            yield "client_auth_type without client_ca: certificates are verified against the system's authorities"
        if self.tls_server_config and (skipped := self.tls_server_config.skipped_authorities):
            yield f"tls_server_config.client_ca: {skipped} of its certificates cannot be read and are skipped"

    @property
    def summary(self) -> str:
        """Which features are on, in a few words."""
        return f"TLS {'on' if self.tls_server_config else 'off'}, users: {len(self.basic_auth_users) or 'none'}"


class Loaded(NamedTuple):
    """A configuration, its TLS context (None: plain HTTP), and the files that it was read from."""

    config: WebConfig
    context: Context | None
    files: Files


def load(path: Path | None, environ: Mapping[str, str]) -> Loaded:
    """Read the file; ConfigError holds every error in it and in the files that it names. No path: nothing is set.

    Relative file names are resolved against the folder of the web configuration file, as in the toolkit.
    """
    if path is None:
        return Loaded(WebConfig(), None, {})
    # The state first, so that a write during the read is noticed as a change.
    seen = file.state(path)
    found = document.read(path, "--web.config.file")
    config = Reader(found, environ).build(WebConfig, _as_the_toolkit_reads(found.content))
    tls = config.tls_server_config
    files = {path: seen, **(tls.files if tls else {})}
    return Loaded(config, _context(path, config), files)


def _as_the_toolkit_reads(raw: object) -> object:
    """Return the document without blank settings of TLS."""
    if not isinstance(raw, dict) or not isinstance(raw.get("tls_server_config"), dict):
        return raw
    tls = raw["tls_server_config"].items()
    given = {key: value for key, value in tls if value != "" or key not in _BLANK_IS_NONE}
    return {**raw, "tls_server_config": given}


def _context(path: Path, config: WebConfig) -> Context | None:
    tls = config.tls_server_config
    try:
        return tls.context() if tls else None
    except (ssl.SSLError, ValueError) as error:  # such as a curve or a suite that this machine's policy forbids
        words = f"cannot be honoured by {ssl.OPENSSL_VERSION}: {getattr(error, 'reason', None) or 'unknown curve'}"
        raise ConfigError([f"{path}: tls_server_config: {words}; choose other suites or curves"]) from None
