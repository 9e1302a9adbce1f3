"""Server-side TLS: `tls_server_config`, in the terms of Go's crypto/tls, as a context of Python's ssl."""

import os
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec

from creatify_exporter.config import file, pem
from creatify_exporter.config.reader import Settings, read_by
from creatify_exporter.web.handshake import Context

_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_CURVES: Final = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
_TLS13_SUITES: Final = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
_TLS12_SUITES: Final = {  # those of Go's crypto/tls.CipherSuites for TLS 1.2, with OpenSSL's names
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


@dataclass(frozen=True, slots=True)
class Pem:
    """Certificates or a key, inline or from the file `path`, as it was in this `state`."""

    content: bytes = field(repr=False)
    path: Path | None = None
    state: file.State | None = None


def _pem(check: Callable[[bytes], None]) -> msgspec.Meta:
    """Tell the reader how to read PEM; `check` raises ValueError if it is invalid, and never quotes it."""

    def inline(text: str) -> Pem:
        content = text.encode(errors="replace")
        check(content)
        return Pem(content)

    def from_file(path: Path) -> Pem:
        # The state first, so that a write during the read is noticed as a change.
        state, content = file.state(path), file.read(path, pem.LARGEST)
        check(content)
        return Pem(content, path, state)

    return read_by(inline, parse_file=from_file)


Authorities = Annotated[Pem, _pem(pem.check_authorities)]
Certificates = Annotated[Pem, _pem(pem.check_certificates)]
PrivateKey = Annotated[Pem, _pem(pem.check_key)]


def _one_of(names: Mapping[str, object]) -> msgspec.Meta:
    def parse(text: str) -> object:
        if text not in names:
            raise ValueError(f"must be {' or '.join(names)}; write one of them")
        return names[text]

    return read_by(parse)


def _suite(text: str) -> str:
    if text not in _TLS12_SUITES and text not in _TLS13_SUITES:
        raise ValueError("is not a secure cipher suite of Go; write one like TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")
    return text


Version = Annotated[ssl.TLSVersion, _one_of(_VERSIONS)]


class ServerTLS(Settings, frozen=True, kw_only=True):
    """`tls_server_config`. Each of cert, key and client_ca may be a file, with `_file` after its name."""

    cert: Certificates
    key: PrivateKey
    client_auth_type: Annotated[ssl.VerifyMode, _one_of(_CLIENT_AUTH)] = ssl.CERT_NONE
    client_ca: Authorities | None = None
    client_allowed_sans: tuple[Annotated[str, read_by(str)], ...] | None = None
    """None: any name is allowed; empty: none is, as in the toolkit."""
    min_version: Version = ssl.TLSVersion.TLSv1_2
    max_version: Version = ssl.TLSVersion.TLSv1_3
    cipher_suites: tuple[Annotated[str, read_by(_suite)], ...] = ()
    prefer_server_cipher_suites: bool = True
    curve_preferences: tuple[Annotated[str, _one_of(_CURVES)], ...] = ()

    def validate(self) -> Iterator[tuple[str, str]]:
        """Refuse settings that contradict each other, and settings that are weaker than they look."""
        yield from self._pair_mistakes()
        yield from self._client_mistakes()
        if self.min_version > self.max_version:
            yield "max_version", "is below min_version; raise it"
        yield from self._suite_mistakes()
        if len(self.curve_preferences) > 1:
            yield "curve_preferences", "cannot be honoured: Python's ssl offers all curves or one; keep one or none"

    def _pair_mistakes(self) -> Iterator[tuple[str, str]]:
        try:
            _load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.cert, self.key)
        except ValueError as error:
            yield "key", str(error)

    def _client_mistakes(self) -> Iterator[tuple[str, str]]:
        # Anybody can get a certificate from a public authority. That is harmless only if clients need none.
        gives_access = self.client_auth_type == ssl.CERT_REQUIRED or self.client_allowed_sans is not None
        if self.uses_system_authorities and gives_access:
            yield "client_auth_type", "has nothing to verify certificates against; add client_ca or client_ca_file"
        if self.client_auth_type == ssl.CERT_NONE:
            unused = "is not used by NoClientCert; add client_auth_type: RequireAndVerifyClientCert"
            if self.client_ca:
                yield "client_ca", unused
            if self.client_allowed_sans is not None:
                yield "client_allowed_sans", unused

    def _suite_mistakes(self) -> Iterator[tuple[str, str]]:
        named = set(self.cipher_suites)
        if named & _TLS13_SUITES and named & _TLS13_SUITES != _TLS13_SUITES:
            yield "cipher_suites", "cannot leave out some suites of TLS 1.3: they are always on; name all three or none"
        if self._has_only_tls13_suites and self.max_version < ssl.TLSVersion.TLSv1_3:
            yield "cipher_suites", "has none for TLS 1.2, the only version that is on; add one, or raise max_version"

    @property
    def _has_only_tls13_suites(self) -> bool:
        return bool(self.cipher_suites) and set(self.cipher_suites) <= _TLS13_SUITES

    @property
    def files(self) -> dict[Path, file.State | None]:
        """The files that certificates and keys were read from, with their states at that time."""
        pems = (self.cert, self.key, self.client_ca)
        return {each.path: each.state for each in pems if each and each.path}

    @property
    def uses_system_authorities(self) -> bool:
        """Whether client certificates are verified against the system's authorities, as in Go without `client_ca`."""
        return self.client_auth_type != ssl.CERT_NONE and self.client_ca is None

    @property
    def skipped_authorities(self) -> int:
        """How many certificates of `client_ca` cannot be read; the others are used, as in Go."""
        content = self.client_ca.content if self.client_ca else b""
        return len(pem.blocks(content)) - len(pem.readable_certificates(content))

    def context(self) -> Context:
        """Return the context of new connections."""
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
        _load_pair(context, self.cert, self.key)
        self._verify_clients(context)
        return context

    def _verify_clients(self, context: Context) -> None:
        context.verify_mode = self.client_auth_type
        if self.client_allowed_sans is not None:
            context.allowed_sans = frozenset(self.client_allowed_sans)
        if self.uses_system_authorities:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        if self.client_ca:
            # As in Go, each certificate in the file is trusted by itself, even an intermediate or a client's own.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.load_verify_locations(cadata="\n".join(pem.readable_certificates(self.client_ca.content)))


def _load_pair(context: ssl.SSLContext, cert: Pem, key: Pem) -> None:
    """Load a certificate and its key into `context`; ValueError says what is wrong with the key."""
    with _as_file(cert.content) as cert_file, _as_file(key.content) as key_file:
        pem.load_pair(context, cert_file, key_file)


@contextmanager
def _as_file(content: bytes) -> Iterator[Path]:
    """Yield a path to `content`, because ssl loads only files. On Linux it stays in memory: no key reaches a disk."""
    if sys.platform == "linux":
        with os.fdopen(os.memfd_create("pem"), "wb") as memory:
            memory.write(content)
            memory.flush()
            yield Path(f"/proc/self/fd/{memory.fileno()}")
    else:
        with tempfile.NamedTemporaryFile() as private:
            private.write(content)
            private.flush()
            yield Path(private.name)
