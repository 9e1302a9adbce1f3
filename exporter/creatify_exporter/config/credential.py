"""A key of the API that nobody can read without its being kept out of the log."""

import stat
from pathlib import Path

from creatify_exporter import redaction
from creatify_exporter.errors import ConfigError

_LONGEST = 16 * 2**10  # bytes; a bigger file holds something else than a key


class Credential:
    """A literal, or a file that is read again whenever it changes (rotation without a restart).

    Its value is registered for redaction before anybody gets it, and no repr shows it.
    """

    __slots__ = ("_literal", "_seen", "file")

    def __init__(self, literal: str | None = None, *, file: Path | None = None) -> None:
        if (literal is None) == (file is None):
            raise TypeError("a credential is either a literal or a file")
        self._literal = literal
        self.file = file
        self._seen: tuple[tuple[int, int, int], str] | None = None

    def read(self) -> str:
        """Return the present value, fit for an HTTP header; ConfigError when there is none."""
        if self.file is None:
            return _checked("the value", self._literal or "")
        try:
            return self._read_file(self.file)
        except OSError as error:
            raise ConfigError([f"{self.file} cannot be read: {error.strerror}; name a readable file"]) from None
        except ValueError:  # a NUL or a lone surrogate in the name
            raise ConfigError([f"{str(self.file)!r} cannot be a file name; name a readable file"]) from None

    def _read_file(self, path: Path) -> str:
        now = path.stat()  # follows links: Kubernetes swaps a secret by swapping a link
        if not stat.S_ISREG(now.st_mode) or now.st_size > _LONGEST:
            raise ConfigError([f"{path} is no small regular file; name the file that holds the key"])
        mark = (now.st_mtime_ns, now.st_size, now.st_ino)
        seen = self._seen
        if seen is None or seen[0] != mark:
            content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
            # Latin-1 is what `requests` writes headers in: whatever the bytes mean, they go out as they are.
            seen = (mark, _checked(str(path), content.decode("latin-1").rstrip("\r\n")))
            self._seen = seen
        return seen[1]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Credential):
            return NotImplemented
        return (self._literal, self.file) == (other._literal, other.file)

    def __hash__(self) -> int:
        return hash((self._literal, self.file))

    def __repr__(self) -> str:
        return f"Credential(file={str(self.file)!r})" if self.file else "Credential(<hidden>)"


def _checked(what: str, value: str) -> str:
    if not value.strip():
        raise ConfigError([f"{what} is empty; put the key there"])
    if value != value.strip():  # `requests` would refuse it too, and quote it
        raise ConfigError([f"{what} starts or ends with white space; remove it"])
    if not all(" " <= char <= "~" or "\xa0" <= char <= "\xff" for char in value):
        raise ConfigError([f"{what} holds characters that no HTTP header can carry; copy the key again, on one line"])
    redaction.register(value)
    return value
