"""What a PEM text must hold before OpenSSL gets it, whose own errors do not say how to mend it."""

import re
import ssl
from typing import Final

_CERTIFICATES: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def certificates(content: bytes) -> str:
    """Return the certificates without what stands around them, which may be in any encoding."""
    return "\n".join(block.decode("ascii", "replace") for block in _CERTIFICATES.findall(content))


def check_certificates(content: bytes) -> None:
    """Raise ValueError, which quotes nothing, unless there is a certificate and all of them can be read."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=certificates(content))
    except (ssl.SSLError, ValueError, TypeError):
        # TypeError if a block is not ASCII.
        raise ValueError("holds no readable certificate; put PEM blocks of CERTIFICATE there") from None


def check_key(content: bytes) -> None:
    """Raise ValueError, which quotes nothing, unless there is a private key that needs no password."""
    if not re.search(rb"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----", content):
        raise ValueError("holds no private key; put a PEM block of PRIVATE KEY there")
    if b"ENCRYPTED" in content:
        raise ValueError("is encrypted, and nobody is there to type its password; decrypt it with openssl pkey")
