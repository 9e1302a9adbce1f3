"""Certificates and keys, from files or from the configuration itself, handed to ssl without touching a disk."""

import os
import re
import ssl
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec

_LONGEST: Final = 2**20  # bytes of a PEM file
_CERTIFICATES: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

FileState = tuple[int, ...]


def file_state(path: Path) -> FileState | None:
    """Return what differs once a file was written or replaced, None while there is none. Links are followed."""
    try:
        now = path.stat()
    except (OSError, ValueError):
        return None
    return (now.st_mtime_ns, now.st_ctime_ns, now.st_size, now.st_ino, now.st_dev)


class Pem:
    """Certificates or a key: the text itself, or what its file held in the state that was read."""

    __slots__ = ("content", "file_state", "path")

    def __init__(self, content: bytes, path: Path | None = None, file_state: FileState | None = None) -> None:
        self.content, self.path, self.file_state = content, path, file_state

    def __repr__(self) -> str:
        return f"Pem({str(self.path)!r})" if self.path else "Pem(<hidden>)"


def _pem(check: Callable[[bytes], None]) -> msgspec.Meta:
    """Tell `document` how to read what `check` lets pass; it raises ValueError and quotes nothing."""

    def inline(text: str) -> Pem:
        content = text.encode(errors="replace")
        check(content)
        return Pem(content)

    def from_file(path: Path) -> Pem:
        seen = file_state(path)  # before the content: what is written meanwhile is then seen as a change
        content = _content(path)
        check(content)
        return Pem(content, path, seen)

    return msgspec.Meta(extra={"parse": inline, "parse_file": from_file})


def _content(path: Path) -> bytes:
    try:
        now = path.stat()
        regular = stat.S_ISREG(now.st_mode) and now.st_size <= _LONGEST
        content = path.read_bytes() if regular else b""
    except (FileNotFoundError, ValueError):  # a NUL or a lone surrogate in the name
        raise ValueError("there is no such file; name one, starting at the folder of this configuration") from None
    except OSError as error:
        raise ValueError(f"this file cannot be read: {error.strerror}; make it readable or name another") from None
    if not regular:
        raise ValueError("this is no regular file of at most 1 MiB; name a PEM file")
    return content


def _check_certificates(content: bytes) -> None:
    found = blocks(content)
    if not found or len(readable_certificates(content)) < len(found):
        raise ValueError("holds no readable certificate; put PEM blocks of CERTIFICATE there")


def _check_authorities(content: bytes) -> None:
    if not readable_certificates(content):
        raise ValueError("holds no readable certificate; put PEM blocks of CERTIFICATE there")


def readable_certificates(content: bytes) -> list[str]:
    """Return those PEM blocks of certificates that OpenSSL can read."""
    return [block for block in blocks(content) if _is_readable(block)]


def blocks(content: bytes) -> list[str]:
    """Return the PEM blocks of certificates without what stands around them, which may be in any encoding."""
    return [block.decode("ascii", "replace") for block in _CERTIFICATES.findall(content)]


def _is_readable(block: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=block)
    except (ssl.SSLError, ValueError, TypeError):  # the last one if the block is not ASCII
        return False
    return True


def _check_key(content: bytes) -> None:
    if not re.search(rb"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----", content):
        raise ValueError("holds no private key; put a PEM block of PRIVATE KEY there")
    if b"ENCRYPTED" in content:
        raise ValueError("is encrypted, and nobody is there to type its password; decrypt it with openssl pkey")


Authorities = Annotated[Pem, _pem(_check_authorities)]
Certificates = Annotated[Pem, _pem(_check_certificates)]
PrivateKey = Annotated[Pem, _pem(_check_key)]


def load_pair(context: ssl.SSLContext, cert: Pem, key: Pem) -> None:
    """Make `context` show a certificate; SSLError where the two are no pair, or cannot be read."""
    with _as_file(cert.content) as cert_file, _as_file(key.content) as key_file:
        # With an empty password: without one, OpenSSL would ask the terminal for that of an encrypted key.
        context.load_cert_chain(cert_file, key_file, password="")


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give `content` a file name, which is all that ssl takes. No key reaches a disk where memory can be a file."""
    if sys.platform == "linux":
        with os.fdopen(os.memfd_create("pem"), "wb") as memory:
            memory.write(content)
            memory.flush()
            yield f"/proc/self/fd/{memory.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as private:
            private.write(content)
            private.flush()
            yield private.name
