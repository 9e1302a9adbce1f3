"""TLS handshakes: a refused client gets an alert, and the log says why."""

import ipaddress
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

_PLAIN_HTTP: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"this port speaks TLS; use https:// instead of http://\n"
)

REFUSED: Final[ContextVar[Callable[[str], None]]] = ContextVar("REFUSED", default=lambda _: None)
"""Called with the reason if the server refuses a handshake; set by the task that begins the handshake."""


class ServerObject(ssl.SSLObject):
    """A connection that checks the client's names and reports refusals, but not clients that disconnect."""

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    allowed_sans: frozenset[str] | None
    on_refused: Callable[[str], None]
    _has_begun = _is_refused = False

    def do_handshake(self) -> None:
        """Continue the handshake.

        Once refused, it always raises SSLWantReadError: asyncio then sends the alert in `outgoing`, which it loses on
        any other SSLError (https://github.com/python/cpython/issues/98078).
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
        """Answer a client that speaks plain HTTP: its first byte is a letter, unlike that of TLS."""
        if self._has_begun or not self.incoming.pending:
            return
        self._has_begun, received = True, self.incoming.read()
        if received[:1].isalpha():
            self.outgoing.write(_PLAIN_HTTP)
            raise ssl.SSLError("plain HTTP on a TLS port")
        self.incoming.write(received)

    def _check_names(self) -> None:
        # A client without a certificate, which client_auth_type may allow, has no names.
        if self.allowed_sans is not None and self.allowed_sans.isdisjoint(_names(self.getpeercert() or {})):
            # OpenSSL has finished the handshake, so that the only alert left to send is close_notify.
            self.unwrap()
            raise ssl.SSLError("the client's certificate has none of client_allowed_sans")

    def unwrap(self) -> None:
        """Send close_notify, but do not wait for the client's (RFC 8446, section 6.1), which some never send."""
        with suppress(ssl.SSLError):
            super().unwrap()


def _reason(error: ssl.SSLError) -> str:
    """Return in words why a handshake failed; not every error has all of these attributes."""
    code: str | None = getattr(error, "reason", None)
    words: str = getattr(error, "verify_message", "") or str(error.args[-1])
    return words if code in (None, "CERTIFICATE_VERIFY_FAILED") else code.replace("_", " ").lower()


class Context(ssl.SSLContext):
    """The TLS context of one web configuration; `allowed_sans` is None if any name is allowed."""

    sslobject_class = ServerObject
    allowed_sans: frozenset[str] | None = None

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *more: Any, **named: Any) -> ssl.SSLObject:  # noqa: ANN401  as inherited
        """Return a new connection; called by asyncio."""
        made = super().wrap_bio(incoming, outgoing, *more, **named)
        assert isinstance(made, ServerObject)  # noqa: S101  as `sslobject_class` says
        made.incoming, made.outgoing = incoming, outgoing
        made.allowed_sans, made.on_refused = self.allowed_sans, REFUSED.get()
        return made


def _names(certificate: Mapping[str, Any]) -> set[str]:
    """Return the subject alternative names of a certificate from `getpeercert`, IP addresses as Go writes them."""
    names = set()
    for kind, value in certificate.get("subjectAltName", ()):
        if kind in ("DNS", "email", "URI"):
            names.add(value)
        elif kind == "IP Address":
            with suppress(ValueError):  # an address of the wrong length
                names.add(str(ipaddress.ip_address(value.strip())))
    return names
