"""Checks PEM certificates and keys before OpenSSL reads them, because its errors do not say how to fix them."""

import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

from creatify_exporter.config import file
from creatify_exporter.config.reader import read_path_by

# In bytes.
LARGEST: Final = 2**20
# In bytes. A company may have many authorities.
_LARGEST_BUNDLE: Final = 2**24
_UNREADABLE: Final = "contains no readable certificate; use PEM with BEGIN CERTIFICATE, not DER"
_CERTIFICATES: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def blocks(content: bytes) -> list[str]:
    """Return the PEM blocks of certificates, without the text around them, which may be in any encoding."""
    return [block.decode("ascii", "replace") for block in _CERTIFICATES.findall(content)]


def readable_certificates(content: bytes) -> list[str]:
    """Return the PEM blocks of certificates that OpenSSL can read."""
    return [block for block in blocks(content) if _is_readable(block)]


def _is_readable(block: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=block)
    except (ssl.SSLError, ValueError, TypeError):
        # TypeError if the block is not ASCII.
        return False
    return True


def check_certificates(content: bytes) -> None:
    """Raise ValueError, which quotes nothing, unless there is a certificate and all certificates can be read."""
    found = blocks(content)
    if not found or not all(map(_is_readable, found)):
        raise ValueError(_UNREADABLE)


def check_authorities(content: bytes) -> None:
    """Raise ValueError, which quotes nothing, unless a certificate can be read; others are skipped, as in Go."""
    if not readable_certificates(content):
        raise ValueError(_UNREADABLE)


def check_key(content: bytes) -> None:
    """Raise ValueError, which quotes nothing, unless there is a private key that needs no password."""
    if not re.search(rb"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----", content):
        raise ValueError("contains no private key; use PEM with BEGIN PRIVATE KEY, not DER")
    if b"ENCRYPTED" in content:
        raise ValueError("is encrypted, and there is no terminal to ask for its password; decrypt it with openssl pkey")


def load_pair(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> None:
    """Load a certificate and its key into `context`; ValueError says what is wrong with the key."""
    try:
        # An empty password keeps OpenSSL from prompting for the password of an encrypted key.
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        raise ValueError(_pair_problem(error.reason)) from None


def _pair_problem(reason: str | None) -> str:
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
        return "is not the key of this certificate; use a matching pair"
    if reason:
        return f"cannot be used with its certificate: OpenSSL says {reason}; create a new pair"
    return "cannot be read; use the whole PEM block of the key"


def authorities(path: Path) -> Path:
    """Check that OpenSSL can load authorities from the file, as `requests` will; ValueError says what is wrong."""
    file.read(path, _LARGEST_BUNDLE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(_UNREADABLE) from None
    # OpenSSL also accepts a file that contains only a certificate revocation list.
    if not context.cert_store_stats()["x509"]:
        raise ValueError(_UNREADABLE)
    return path


def _checked_by(check: Callable[[bytes], None]) -> Callable[[Path], Path]:
    def checked(path: Path) -> Path:
        check(file.read(path, LARGEST))
        return path

    return checked


AuthoritiesFile = Annotated[Path, read_path_by(authorities, unread=None)]
CertificateFile = Annotated[Path, read_path_by(_checked_by(check_certificates), unread=None)]
KeyFile = Annotated[Path, read_path_by(_checked_by(check_key), unread=None)]
