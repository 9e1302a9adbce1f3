"""Certificates and keys, from files or from the configuration itself, handed to ssl without touching a disk."""

import os
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from creatify_exporter.config import file, pem
from creatify_exporter.config.yaml_reader import read_by


@dataclass(frozen=True, slots=True)
class Pem:
    """Certificates or a key, in the configuration itself or as their file was when it was read: `path` and `state`."""

    content: bytes = field(repr=False)
    path: Path | None = None
    state: file.State | None = None


def _pem(check: Callable[[bytes], None]) -> msgspec.Meta:
    """Tell the reader how to read what `check` lets pass; it raises ValueError and quotes nothing."""

    def inline(text: str) -> Pem:
        content = text.encode(errors="replace")
        check(content)
        return Pem(content)

    def from_file(path: Path) -> Pem:
        content, state = file.read(path, pem.LARGEST)
        check(content)
        return Pem(content, path, state)

    return read_by(inline, parse_file=from_file)


Authorities = Annotated[Pem, _pem(pem.check_authorities)]
Certificates = Annotated[Pem, _pem(pem.check_certificates)]
PrivateKey = Annotated[Pem, _pem(pem.check_key)]


def load_pair(context: ssl.SSLContext, cert: Pem, key: Pem) -> None:
    """Make `context` show a certificate; ValueError says what is wrong with its key."""
    with _as_file(cert.content) as cert_file, _as_file(key.content) as key_file:
        pem.load_pair(context, cert_file, key_file)


@contextmanager
def _as_file(content: bytes) -> Iterator[Path]:
    """Give `content` a file name, which is all that ssl takes. No key reaches a disk where memory can be a file."""
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
