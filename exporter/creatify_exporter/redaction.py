"""Secrets are registered here before they are used, and masked in every text that leaves the process."""

import json
import re
import threading
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, quote_plus

HIDDEN: Final = "<hidden>"
# In characters. Masking a shorter one, such as the placeholder `x`, would garble every line.
SHORTEST: Final = 8

_lock = threading.Lock()
_secrets: frozenset[str] = frozenset()
_forms: re.Pattern[str] | None = None
"""Matches every spelling of every secret; None until needed, because compiling it after each of thousands of keys
would take minutes. Replaced as a whole, so that reading it needs no lock."""


def register(secret: str) -> None:
    """Mask `secret` from now on, including its spellings in a URL, in JSON and in a repr.

    A secret shorter than `SHORTEST` is not masked.
    """
    global _secrets, _forms
    with _lock:
        if len(secret) >= SHORTEST and secret not in _secrets:
            _secrets, _forms = _secrets | {secret}, None


def mask(text: str) -> str:
    """Return `text` with every registered secret replaced."""
    return (_forms or _compiled()).sub(HIDDEN, text) if _secrets else text


def _compiled() -> re.Pattern[str]:
    global _forms  # noqa: PLW0603  compiled once, for all threads
    with _lock:
        if _forms is None:
            forms = {form for known in _secrets for form in _spellings(known)}
            # Longest first: otherwise masking a short secret would expose the rest of a longer one that contains it.
            _forms = re.compile("|".join(_quoted(form) for form in sorted(forms, key=len, reverse=True)))
        return _forms


def _spellings(secret: str) -> Iterator[str]:
    yield secret
    yield repr(secret)[1:-1]
    yield json.dumps(secret)[1:-1]
    for octets in {secret.encode("utf-8", "surrogatepass"), secret.encode("latin-1", "replace")}:
        yield repr(octets)[2:-1]
        for encoded in (quote(octets, safe=""), quote(octets), quote_plus(octets)):
            yield encoded
            yield re.sub("%..", lambda match: match[0].lower(), encoded)


def _quoted(form: str) -> str:
    """Match `form` at any depth of quoting: a repr in a JSON text in a repr doubles its backslashes."""
    parts = re.findall(r"""\\*["'/]|\\+|[^"'/\\]+""", form)
    return "".join(
        r"\\+" if not part.strip("\\") else rf"\\*{part[-1]}" if part[-1] in "\"'/" else re.escape(part)
        for part in parts
    )
