"""A key of the API, which is masked in the log before it can be read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from creatify_exporter import redaction
from creatify_exporter.config import file
from creatify_exporter.config.reader import read_by
from creatify_exporter.errors import ConfigError

# In bytes. A larger file holds something else than a key.
_LARGEST: Final = 16 * 2**10


@dataclass(frozen=True, slots=True)
class Credential:
    """A literal, or a file that is read anew for each use, so that a key can be rotated without a restart.

    Its value is registered for redaction before anybody gets it, and no repr shows it.
    """

    literal: str | None = field(default=None, repr=False)
    file: Path | None = field(default=None, kw_only=True)

    def read(self) -> str:
        """Return the present value, fit for an HTTP header; ConfigError, which names the file, if there is none."""
        try:
            return self._read()
        except ValueError as error:
            raise ConfigError([f"{self.file or 'the value'} {error}"]) from None

    def checked(self) -> "Credential":
        """Return this credential once it was read; ValueError says what is wrong, without the name of the file."""
        self._read()
        return self

    def _read(self) -> str:
        if self.file is None:
            value = self.literal or ""
        else:
            # `requests` writes headers in Latin-1: whatever the bytes mean, they go out as they are.
            value = file.read(self.file, _LARGEST).decode("latin-1").rstrip("\r\n")
        _check(value)
        redaction.register(value)
        return value


def _check(value: str) -> None:
    if not value.strip():
        raise ValueError("is empty; put the key there")
    # `requests` would refuse it too, and quote it.
    if value != value.strip():
        raise ValueError("starts or ends with white space; remove it")
    if not all(" " <= char <= "~" or "\xa0" <= char <= "\xff" for char in value):
        raise ValueError("holds characters that no HTTP header can carry; copy the key again, on one line")


Secret = Annotated[
    Credential,
    read_by(
        lambda text: Credential(text).checked(),
        parse_file=lambda path: Credential(file=path).checked(),
        unread=Credential(""),
    ),
]
"""A key KEY of the file that may also be given as KEY_file, the name of a file that holds it."""
