"""API keys, which are masked in the log before any code can read them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from creatify_exporter import redaction
from creatify_exporter.config import file
from creatify_exporter.config.reader import read_by
from creatify_exporter.errors import ConfigError

# In bytes. A larger file is not a key.
_LARGEST: Final = 16 * 2**10


@dataclass(frozen=True, slots=True)
class Credential:
    """A literal, or a file that is read again for each use, so that a key can be rotated without a restart.

    `read` registers the value for redaction before it returns it, and the repr never shows it.
    """

    literal: str | None = field(default=None, repr=False)
    file: Path | None = field(default=None, kw_only=True)

    def read(self) -> str:
        """Return the current value, valid in an HTTP header; otherwise raise ConfigError, which names the file."""
        try:
            return self._read()
        except ValueError as error:
            raise ConfigError([f"{self.file or 'the value'} {error}"]) from None

    def checked(self) -> "Credential":
        """Read this credential once and return it; ValueError says what is wrong, without naming the file."""
        self._read()
        return self

    def _read(self) -> str:
        if self.file is None:
            value = self.literal or ""
        else:
            # `requests` writes headers in Latin-1, so the bytes are sent unchanged, whatever their encoding.
            value = file.read(self.file, _LARGEST).decode("latin-1").rstrip("\r\n")
        _check(value)
        redaction.register(value)
        return value


def _check(value: str) -> None:
    if not value.strip():
        raise ValueError("is empty; put the key there")
    # `requests` would reject it too, but quote it.
    if value != value.strip():
        raise ValueError("starts or ends with whitespace; remove it")
    if not all(" " <= char <= "~" or "\xa0" <= char <= "\xff" for char in value):
        raise ValueError("contains characters that are not allowed in an HTTP header; copy the key again, on one line")


Secret = Annotated[
    Credential,
    read_by(
        lambda text: Credential(text).checked(),
        parse_file=lambda path: Credential(file=path).checked(),
        unread=Credential(""),
    ),
]
"""A setting KEY that may also be given as KEY_file, the name of a file that contains the value."""
