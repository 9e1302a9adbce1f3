"""Handshakes of TLS: a client that is refused is told so, and the log says why."""

import ipaddress
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

_PLAIN_HTTP: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"this port speaks TLS; ask with https:// instead of http://\n"
)

REFUSED: Final[ContextVar[Callable[[str], None]]] = ContextVar("REFUSED", default=lambda _: None)
"""What is told why the server refuses a handshake; of the task that begins it."""


class ServerObject(ssl.SSLObject):
    """A connection that asks for the client's name, says why it refuses, and ends quietly if the client leaves."""

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    allowed_sans: frozenset[str] | None
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
        # A client without a certificate has no name: client_auth_type may let it leave the certificate out.
        if self.allowed_sans is not None and self.allowed_sans.isdisjoint(_names(self.getpeercert() or {})):
            # To OpenSSL the handshake is over, so that the only alert left is the one that ends a connection.
            self.unwrap()
            raise ssl.SSLError("the client's certificate has none of client_allowed_sans")

    def unwrap(self) -> None:
        """Say goodbye, and do not wait for the client's (RFC 8446, section 6.1): some never say it, nor let us stop."""
        with suppress(ssl.SSLError):
            super().unwrap()


def _reason(error: ssl.SSLError) -> str:
    """Return why a handshake failed, in words; some of these attributes are there for some errors only."""
    code: str | None = getattr(error, "reason", None)
    words: str = getattr(error, "verify_message", "") or str(error.args[-1])
    return words if code in (None, "CERTIFICATE_VERIFY_FAILED") else code.replace("_", " ").lower()


class Context(ssl.SSLContext):
    """How connections are made as long as the configuration stays; `allowed_sans` is None if any name will do."""

    sslobject_class = ServerObject
    allowed_sans: frozenset[str] | None = None

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *more: Any, **named: Any) -> ssl.SSLObject:  # noqa: ANN401  as inherited
        """Return a connection; asyncio calls this for each."""
        made = super().wrap_bio(incoming, outgoing, *more, **named)
        assert isinstance(made, ServerObject)  # noqa: S101  as `sslobject_class` says
        made.incoming, made.outgoing = incoming, outgoing
        made.allowed_sans, made.on_refused = self.allowed_sans, REFUSED.get()
        return made


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
