"""Secrets are registered here before anybody gets them, and masked in every text that leaves the process."""

import json
import re
import threading
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, quote_plus

HIDDEN: Final = "<hidden>"
# In characters. A shorter one, such as the placeholder `x`, would garble every line that is masked.
SHORTEST: Final = 8

_lock = threading.Lock()
_secrets: frozenset[str] = frozenset()
_forms: re.Pattern[str] | None = None
"""Matches every form of every secret; None until it is asked for, since compiling it after each of thousands of keys
takes minutes. Replaced as a whole, so that reading it needs no lock."""


def register(secret: str) -> None:
    """Keep `secret` out of every line from now on, also as it looks in a URL, in JSON or in a repr.

    One that is shorter than `SHORTEST` is not masked.
    """
    global _secrets, _forms
    with _lock:
        if len(secret) >= SHORTEST and secret not in _secrets:
            _secrets, _forms = _secrets | {secret}, None


def mask(text: str) -> str:
    """Return `text` with every registered secret replaced."""
    return (_forms or _compiled()).sub(HIDDEN, text) if _secrets else text


def _compiled() -> re.Pattern[str]:
    global _forms  # noqa: PLW0603 - compiled once, for all threads
    with _lock:
        if _forms is None:
            forms = {form for known in _secrets for form in _spellings(known)}
            # The longest first: else a short secret would show what is left of a longer one that contains it.
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
    """Match `form` however often it was quoted: a repr in a JSON text in a repr has backslashes before backslashes."""
    parts = re.findall(r"""\\*["'/]|\\+|[^"'/\\]+""", form)
    return "".join(
        r"\\+" if not part.strip("\\") else rf"\\*{part[-1]}" if part[-1] in "\"'/" else re.escape(part)
        for part in parts
    )
