"""Reads JSON that msgspec refuses, with the standard library: text that is not UTF-8, long numbers, great depths."""

import json
import re
import sys
from typing import Any, Final, NoReturn

from creatify_exporter.errors import FetchError

# msgspec refuses text with a ValueError (its own, or Python's for bytes that are not UTF-8), depth with the other.
REFUSALS: Final = (ValueError, RecursionError)

_LARGEST: Final = sys.float_info.max
_STRING_OR_BRACKET: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)


def read_element(element: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Read one element with the standard library, without what is nested in it if that is too deep."""
    try:
        return read(element)
    except RecursionError:
        return read(_without_nested(element))


def read(body: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Read JSON; `FetchError` if it is none, RecursionError if it is nested too deep."""
    try:
        text = body.decode("utf-8", "surrogateescape")
        return json.loads(text, parse_constant=_refuse, parse_int=_integer, parse_float=_float)
    except ValueError:
        raise malformed("it cannot be read") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> float:
    # Python refuses to read thousands of digits as an int, and JSON does not.
    return int(digits) if len(digits) < 32 else _float(digits)  # noqa: PLR2004 - longer than any id or amount


def _float(digits: str) -> float:
    # Not infinite, since an envelope that is taken apart is written as JSON again; far beyond any amount anyway.
    return min(max(float(digits), -_LARGEST), _LARGEST)


def _without_nested(element: bytes) -> bytes:
    """Put `null` in the place of all that is nested in an element, at any depth."""
    kept = bytearray()
    depth = kept_until = 0
    for token in _STRING_OR_BRACKET.finditer(element):
        kind = token[0][:1]
        if kind in (b"[", b"{"):
            depth += 1
            if depth == 2:  # noqa: PLR2004 - a value of the element itself begins
                kept += element[kept_until : token.start()] + b"null"
        elif kind in (b"]", b"}"):
            depth -= 1
            if depth == 1:
                kept_until = token.end()
    return bytes(kept + element[kept_until:])


def malformed(what: str) -> FetchError:
    """Return the failure of a list that is no JSON."""
    return FetchError("invalid_body", f"the list is not valid JSON: {what}")
