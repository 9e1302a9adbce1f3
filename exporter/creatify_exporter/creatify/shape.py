"""What a body looks like that is not what was expected, for an error that quotes nothing of it."""

import re
from typing import Final

import msgspec

from creatify_exporter.creatify.json_reader import REFUSALS

_BEGINNINGS: Final = (
    (rb"<", "an HTML or XML document"),
    (rb"\[", "a JSON array"),
    (rb'"', "a JSON string"),
    (rb"(null|true|false)\b", "a JSON literal"),
    (rb"-?[0-9]", "a number"),
    (rb"\x1f\x8b", "gzip data"),
)
# Keys that say what an object is; others may be somebody's text.
_TELLING_KEYS: Final = ("code", "data", "detail", "error", "errors", "items", "message", "results", "status", "tasks")


def shape(body: bytes) -> str:
    """Say what a body looks like without quoting it: an API may answer with a prompt or with the keys."""
    body = body.lstrip(b" \t\n\r")
    if not body:
        return "an empty body"
    if body.startswith(b"{"):
        return _object_shape(body)
    return next((name for beginning, name in _BEGINNINGS if re.match(beginning, body)), "text or binary data")


def _object_shape(body: bytes) -> str:
    try:
        keys = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).keys()
    except REFUSALS:
        return "what begins like a JSON object"
    telling = [key for key in _TELLING_KEYS if key in keys]
    return f"a JSON object with {', '.join(telling)}" if telling else "a JSON object"
