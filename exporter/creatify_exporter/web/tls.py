"""The server's side of TLS: `tls_server_config` in the words of Go's crypto/tls, and what Python's ssl makes of it."""

import ipaddress
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from creatify_exporter.config import pem
from creatify_exporter.config.file import State
from creatify_exporter.config.yaml_reader import Settings, read_by
from creatify_exporter.web.certificates import Authorities, Certificates, Pem, PrivateKey, load_pair

_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_CURVES: Final = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
_TLS13_SUITES: Final = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
_TLS12_SUITES: Final = {  # what crypto/tls.CipherSuites lists for TLS 1.2, by OpenSSL's names
    f"TLS_ECDHE_{key}_WITH_{suite}": f"ECDHE-{key}-{name}"
    for key in ("ECDSA", "RSA")
    for suite, name in {
        "AES_128_GCM_SHA256": "AES128-GCM-SHA256",
        "AES_256_GCM_SHA384": "AES256-GCM-SHA384",
        "CHACHA20_POLY1305_SHA256": "CHACHA20-POLY1305",
        "AES_128_CBC_SHA": "AES128-SHA",
        "AES_256_CBC_SHA": "AES256-SHA",
    }.items()
}
_DEFAULT_SUITES: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_PLAIN_HTTP: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"this port speaks TLS; ask with https:// instead of http://\n"
)

T = TypeVar("T")


def _one_of(names: Mapping[str, T], text: str) -> T:
    if text not in names:
        raise ValueError(f"must be {' or '.join(names)}; write one of them")
    return names[text]


def _version(text: str) -> ssl.TLSVersion:
    if text in ("TLS10", "TLS11"):
        raise ValueError("cannot be honoured: OpenSSL has that version switched off; write TLS12 or TLS13")
    return _one_of(_VERSIONS, text)


def _client_auth(text: str) -> ssl.VerifyMode:
    if text in ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert"):
        raise ValueError(
            "cannot be honoured: Python's ssl takes no certificate that it does not verify; "
            "write RequireAndVerifyClientCert or VerifyClientCertIfGiven, with client_ca_file"
        )
    return _one_of(_CLIENT_AUTH, text)


def _suite(text: str) -> str:
    if text not in _TLS12_SUITES and text not in _TLS13_SUITES:
        raise ValueError("is none of Go's secure cipher suites; write one like TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")
    return text


Version = Annotated[ssl.TLSVersion, read_by(_version)]


class ServerTLS(Settings, frozen=True, kw_only=True):
    """`tls_server_config`. Each of cert, key and client_ca may be a file under its name with `_file` behind it."""

    cert: Certificates
    key: PrivateKey
    client_auth_type: Annotated[ssl.VerifyMode, read_by(_client_auth)] | None = None
    client_ca: Authorities | None = None
    client_allowed_sans: tuple[Annotated[str, read_by(str)], ...] | None = None
    """None: any name will do; empty: none will, as with the toolkit."""
    min_version: Version = ssl.TLSVersion.TLSv1_2
    max_version: Version = ssl.TLSVersion.TLSv1_3
    cipher_suites: tuple[Annotated[str, read_by(_suite)], ...] = ()
    prefer_server_cipher_suites: bool = True
    curve_preferences: tuple[Annotated[str, read_by(partial(_one_of, _CURVES))], ...] = ()

    def validate(self) -> Iterator[tuple[str, str]]:
        """Refuse what does not go together, and what would be weaker than it looks."""
        yield from self._pair_mistakes()
        yield from self._client_mistakes()
        if self.min_version > self.max_version:
            yield "max_version", "is below min_version; raise it"
        yield from self._suite_mistakes()
        if len(self.curve_preferences) > 1:
            yield "curve_preferences", "cannot be honoured: Python's ssl offers all curves or one; keep one or none"

    def _pair_mistakes(self) -> Iterator[tuple[str, str]]:
        try:
            load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.cert, self.key)
        except ssl.SSLError as error:
            yield _given("key", self.key), pem.pair_mistake(error)

    def _client_mistakes(self) -> Iterator[tuple[str, str]]:
        # A client may have a certificate of a public authority. If it may as well have none, that gives it nothing.
        gives_access = self.client_auth_type == ssl.CERT_REQUIRED or self.client_allowed_sans is not None
        if self.uses_system_authorities and gives_access:
            yield "client_auth_type", "has nothing to verify certificates against; add client_ca or client_ca_file"
        unused = "is not used by NoClientCert; add client_auth_type: RequireAndVerifyClientCert"
        if self.client_auth_type not in (None, ssl.CERT_NONE):
            return
        if self.client_ca:
            yield _given("client_ca", self.client_ca), unused
        if self.client_allowed_sans is not None:
            yield "client_allowed_sans", unused

    def _suite_mistakes(self) -> Iterator[tuple[str, str]]:
        named = set(self.cipher_suites)
        if named & _TLS13_SUITES and named & _TLS13_SUITES != _TLS13_SUITES:
            yield "cipher_suites", "cannot leave out some of TLS 1.3, whose suites are all on; name all three or none"
        if self._has_only_tls13_suites and self.max_version < ssl.TLSVersion.TLSv1_3:
            yield "cipher_suites", "has none for TLS 1.2, the only version that is on; add one, or raise max_version"

    @property
    def _has_only_tls13_suites(self) -> bool:
        return bool(self.cipher_suites) and set(self.cipher_suites) <= _TLS13_SUITES

    @property
    def files(self) -> dict[Path, State | None]:
        """The files that certificates and keys were read from, as they were then."""
        pems = (self.cert, self.key, self.client_ca)
        return {each.path: each.state for each in pems if each and each.path}

    @property
    def uses_system_authorities(self) -> bool:
        """Whether certificates of clients are verified against the system's authorities, as Go does without others."""
        return self.client_auth_type in (ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED) and self.client_ca is None

    @property
    def skipped_authorities(self) -> int:
        """How many certificates of `client_ca` cannot be read; the others are used, as Go does."""
        content = self.client_ca.content if self.client_ca else b""
        return len(pem.blocks(content)) - len(pem.readable_certificates(content))

    def context(self) -> "Context":
        """Return what new connections begin with."""
        context = Context(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version, context.maximum_version = self.min_version, self.max_version
        if self._has_only_tls13_suites:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        if not self.prefer_server_cipher_suites:
            context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        suites = [_TLS12_SUITES[name] for name in self.cipher_suites if name in _TLS12_SUITES]
        context.set_ciphers(":".join(suites) or _DEFAULT_SUITES)
        for curve in self.curve_preferences:
            context.set_ecdh_curve(curve)
        context.set_alpn_protocols(["http/1.1"])
        load_pair(context, self.cert, self.key)
        self._verify_clients(context)
        return context

    def _verify_clients(self, context: "Context") -> None:
        context.verify_mode = self.client_auth_type or ssl.CERT_NONE
        if self.client_allowed_sans is not None:
            context.allowed_sans = frozenset(self.client_allowed_sans)
        if self.uses_system_authorities:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        if self.client_ca:
            # As in Go, each certificate of the file is trusted by itself, be it an intermediate or a client's own.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.load_verify_locations(cadata="\n".join(pem.readable_certificates(self.client_ca.content)))


def _given(key: str, pem: Pem) -> str:
    return f"{key}_file" if pem.path else key


REFUSED: Final[ContextVar[Callable[[str], None]]] = ContextVar("REFUSED", default=lambda _: None)
"""What is told why the server refuses a handshake; of the task that begins it."""


class ServerTls(ssl.SSLObject):
    """A connection that asks for the client's name, says why it refuses, and ends quietly if the client leaves."""

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    on_refused: Callable[[str], None]
    _has_begun = _is_refused = False

    def do_handshake(self) -> None:
        """Go on with the handshake.

        A refused one raises SSLWantReadError, now and ever after: asyncio sends what is in `outgoing` then, but loses
        the alert if another SSLError is raised (https://github.com/python/cpython/issues/98078).
        """
        if not self._is_refused:
            try:
                self._refuse_plain_http()
                super().do_handshake()
                self._check_names()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError, ssl.SSLZeroReturnError):
                raise
            except ssl.SSLError as error:
                self._is_refused = True
                self.on_refused(_reason(error))
            else:
                return
        self.incoming.read()
        raise ssl.SSLWantReadError

    def _refuse_plain_http(self) -> None:
        """Answer a client that speaks HTTP without TLS: its first byte is a letter, that of TLS never is."""
        if self._has_begun or not self.incoming.pending:
            return
        self._has_begun, received = True, self.incoming.read()
        if received[:1].isalpha():
            self.outgoing.write(_PLAIN_HTTP)
            raise ssl.SSLError("plain HTTP on a port that speaks TLS")
        self.incoming.write(received)

    def _check_names(self) -> None:
        allowed: frozenset[str] | None = getattr(self.context, "allowed_sans", None)
        # A client without a certificate has no name: client_auth_type may let it leave the certificate out.
        if allowed is not None and allowed.isdisjoint(_names(self.getpeercert() or {})):
            # To OpenSSL the handshake is over, so that the only alert left is the one that ends a connection.
            self.unwrap()
            raise ssl.SSLError("the client's certificate has none of client_allowed_sans")

    def read(self, len: int = 1024, buffer: Any = None) -> bytes:  # noqa: A002, ANN401  as inherited
        """Read as inherited; ConnectionResetError if the client broke the protocol."""
        with _reset():
            return super().read(len, buffer)

    def write(self, data: Any) -> int:  # noqa: ANN401  as inherited
        """Write as inherited; ConnectionResetError if the client broke the protocol."""
        with _reset():
            return super().write(data)

    def unwrap(self) -> None:
        """Say goodbye, and do not wait for the client's (RFC 8446, section 6.1): some never say it, nor let us stop."""
        with suppress(ssl.SSLError):
            super().unwrap()


def _reason(error: ssl.SSLError) -> str:
    """Return why a handshake failed, in words; some of these attributes are there for some errors only."""
    code: str | None = getattr(error, "reason", None)
    words: str = getattr(error, "verify_message", "") or str(error.args[-1])
    return words if code in (None, "CERTIFICATE_VERIFY_FAILED") else code.replace("_", " ").lower()


@contextmanager
def _reset() -> Iterator[None]:
    """Make of a broken protocol what it is to a server: a connection that is gone. asyncio logs any other error."""
    try:
        yield
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError, ssl.SSLZeroReturnError):
        raise
    except ssl.SSLError as error:
        raise ConnectionResetError(str(error)) from None


class Context(ssl.SSLContext):
    """How connections are made as long as the configuration stays; `allowed_sans` is None if any name will do."""

    sslobject_class = ServerTls
    allowed_sans: frozenset[str] | None = None

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *more: Any, **named: Any) -> ssl.SSLObject:  # noqa: ANN401  as inherited
        """Return a connection; asyncio calls this for each."""
        made = super().wrap_bio(incoming, outgoing, *more, **named)
        assert isinstance(made, ServerTls)  # noqa: S101  as `sslobject_class` says
        made.incoming, made.outgoing = incoming, outgoing
        made.on_refused = REFUSED.get()
        return made


class LatestContext(ssl.SSLContext):
    """Begins each connection with the context of that moment.

    Swapping it in the SNI callback instead would change the certificate, but neither versions nor client verification.
    """

    latest: Callable[[], ssl.SSLContext]

    def wrap_bio(self, *given: Any, **named: Any) -> ssl.SSLObject:  # noqa: ANN401  as inherited
        """Return a connection of the latest context."""
        return self.latest().wrap_bio(*given, **named)


def _names(certificate: Mapping[str, Any]) -> set[str]:
    """Return the subject alternative names of a certificate of `getpeercert`, addresses as Go writes them."""
    names = set()
    for kind, value in certificate.get("subjectAltName", ()):
        if kind in ("DNS", "email", "URI"):
            names.add(value)
        elif kind == "IP Address":
            with suppress(ValueError):  # one of a wrong length
                names.add(str(ipaddress.ip_address(value.strip())))
    return names
