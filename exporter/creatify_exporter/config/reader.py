"""Reads a document into structs, and reports each error on one line: its location, what is wrong, how to fix it.

No message quotes a value: any value may be an API key that was pasted into the wrong place.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, TypeVar, cast

import msgspec
from msgspec import inspect

from creatify_exporter.config import file
from creatify_exporter.config.document import NO_NAME, Document, shown, shown_name
from creatify_exporter.errors import ConfigError

_VARIABLE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{")
# In place of a value that could not be read; the error has been recorded.
_UNREAD: Final = object()
NO_COMMAS: Final = "write thousands without commas, and decimals with a point"
# Text that may be an API key or a URL, but not a file name that has an extension or starts with a slash.
_LIKE_CONTENT: Final = re.compile(r"[\w+=~-][\w+=~/-]{15,}|\w+://.*")
_PLAIN: Final[Mapping[type, tuple[str, type[float]]]] = {
    inspect.BoolType: ("true or false", bool),
    inspect.IntType: ("a whole number", int),
    inspect.FloatType: ("a number", float),
}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping of the file. A field without a default is a required key.

    If the class has a `shorthand`, a text is short for a mapping with the text under that key.
    """

    shorthand: ClassVar[str] = ""

    def validate(self) -> Iterator[tuple[str, str]]:
        """Yield (key, "what is wrong; how to fix it") for each broken rule between several values.

        The reader replaces the key by KEY_file if the value was given under that key.
        """
        yield from ()


S = TypeVar("S", bound=Settings)


def read_path_by(parse: Callable[[Path], object], **extra: object) -> msgspec.Meta:
    """Tell the `Reader` how to parse the file or directory that a text names.

    If API keys are not needed, it uses `parse_without_keys`, or sets any value that is given to `unread`.
    """
    return msgspec.Meta(extra={"parse_path": parse, **extra})


def read_by(parse: Callable[[str], object], **extra: object) -> msgspec.Meta:
    """Tell the `Reader` how to parse a text; `parse` raises ValueError or ConfigError, which say what is wrong.

    `parse_file` parses a file instead, and permits KEY_file in place of KEY. With `takes_number`, a bare number is
    read as text. If API keys are not needed, any value that is given is set to `unread`.
    """
    return msgspec.Meta(extra={"parse": parse, **extra})


class Given(NamedTuple):
    """A text from outside the file: `where` names the variable or flag. It is not expanded."""

    where: str
    text: str


class Reader:
    """Reads a document into structs, and collects the errors in it.

    `${NAME}` is replaced from `environ`. Without `keys_needed`, settings for access to the API stay unread.
    """

    def __init__(self, document: Document, environ: Mapping[str, str], *, keys_needed: bool = True) -> None:
        self.document, self.environ, self.keys_needed = document, environ, keys_needed
        self.problems = list(document.problems)

    def build(self, settings: type[S], raw: object) -> S:
        """Return the struct that `raw` describes; raise ConfigError if any problem has been recorded."""
        built = self._read(inspect.type_info(settings), raw, "")
        if self.problems:
            raise ConfigError(self.problems)
        return cast("S", built)

    def report(self, path: str, words: str) -> None:
        """Record a problem with the value at `path`, such as `workspaces[0].name`."""
        where = self.document.location(path)
        self.problems.append(f"{where}: {path}: {words}" if path else f"{where}: {words}")

    def _read(self, kind: inspect.Type, raw: object, path: str) -> object:
        if raw is None and isinstance(kind, inspect.UnionType):
            return None
        kind = _given_type(kind)
        if isinstance(kind, inspect.StructType):
            return self._read_struct(kind, raw, path)
        if isinstance(kind, inspect.VarTupleType):
            return self._read_list(kind, raw, path)
        if isinstance(kind, inspect.DictType):
            return self._read_mapping(kind, raw, path)
        return self._read_leaf(raw, path, lambda value: self._parse_leaf(kind, value))

    def _read_list(self, kind: inspect.VarTupleType, raw: object, path: str) -> object:
        if not isinstance(raw, list):
            self.report(path, f"must be a list, not {_describe(raw)}; write each item on its own line after '- '")
            return _UNREAD
        items = tuple(self._read(kind.item_type, item, f"{path}[{index}]") for index, item in enumerate(raw))
        return _UNREAD if any(item is _UNREAD for item in items) else items

    def _read_mapping(self, kind: inspect.DictType, raw: object, path: str) -> dict[str, object]:
        """Return the readable values of a mapping whose names the user chooses."""
        if not isinstance(raw, dict):
            self.report(path, "must be a mapping of names; write each on its own line, as name: value")
            return {}
        values: dict[str, object] = {}
        for name, value in raw.items():
            if not isinstance(name, str):
                self.report(path, "has a name that is not text; put it in quotes")
                continue
            read = self._read(kind.value_type, value, _join(path, shown_name(name)))
            if read is not _UNREAD:
                values[name] = read
        return values

    def _read_struct(self, kind: inspect.StructType, raw: object, path: str) -> object:
        """Return the struct, validated, if every value of it could be read."""
        shorthand = getattr(kind.cls, "shorthand", "")
        if isinstance(raw, str) and shorthand:
            raw = {shorthand: raw}
        # Required keys come first in messages.
        fields = sorted(kind.fields, key=lambda field: not field.required)
        if not isinstance(raw, dict):
            keys = ", ".join(field.name for field in fields)
            self.report(path, f"must be a mapping, not {_describe(raw)}; its keys are {keys}")
            return _UNREAD
        unknown = self._find_unknown_keys(fields, raw, path)
        # A null does not count as given: templates leave them behind.
        given = {field.name: [name for name in _names(field) if raw.get(name) is not None] for field in fields}
        values = {
            field.name: self._read_field(field, given[field.name], raw, path)
            for field in fields
            if field.required or given[field.name]
        }
        if unknown or any(value is _UNREAD for value in values.values()):
            return _UNREAD
        settings = cast("Settings", kind.cls(**values))
        for key, words in settings.validate():
            name = given[key][0] if given.get(key) else key
            self.report(_join(path, name), words)
        return settings

    def _find_unknown_keys(
        self, fields: Sequence[inspect.Field], raw: Mapping[object, object], path: str
    ) -> list[object]:
        known = [name for field in fields for name in _names(field)]
        unknown = [key for key in raw if key not in known]
        for key in unknown:
            has_value = raw[key] is not None
            # `{price: 0,15}` has a key 15 without a value, and `{credits: 2,000}` a key 0.
            if isinstance(key, int | float) and not has_value:
                self.report(path, f"has a number as a key; {NO_COMMAS}")
                continue
            name = shown(key, has_value=has_value)
            self.report(_join(path, name), f"is not a known key; {_remedy(name, known, has_value=has_value)}")
        return unknown

    def _read_field(self, field: inspect.Field, given: Sequence[str], raw: Mapping[str, object], path: str) -> object:
        """Read a field from the key under which it is `given`."""
        extra = _extra(field.type)
        if not given:
            self.report(_join(path, field.name), f"is missing; add {' or '.join(_names(field))}")
            return _UNREAD
        if not self.keys_needed and "unread" in extra:
            return extra["unread"]
        if len(given) > 1:
            self.report(_join(path, given[0]), f"is set together with {given[1]}; keep one of them")
            return _UNREAD
        value, path = raw[given[0]], _join(path, given[0])
        if given[0] == field.name:
            return self._read(field.type, value, path)
        literal = value.where.rpartition(" ")[2].removesuffix("_FILE") if isinstance(value, Given) else field.name
        return self._read_leaf(value, path, lambda name: self._parse_file(name, extra["parse_file"], literal=literal))

    def _read_leaf(self, raw: object, path: str, parse: Callable[[object], object]) -> object:
        try:
            return parse(raw)
        except ConfigError as error:
            problems: Sequence[str] = error.problems
        except ValueError as error:
            problems = [str(error)]
        where = raw.where if isinstance(raw, Given) else f"{self.document.location(path)}: {path}"
        self.problems.extend(f"{where}: {line}" for line in problems)
        return _UNREAD

    def _parse_leaf(self, kind: inspect.Type, raw: object) -> object:
        extra = _extra(kind)
        if "takes_number" in extra and isinstance(raw, int | float) and not isinstance(raw, bool):
            raw = str(raw)
        if "parse_path" in extra:
            parse = extra["parse_path"]
            return self._parse_file(raw, parse if self.keys_needed else extra.get("parse_without_keys", parse))
        if "parse" in extra:
            return extra["parse"](self._expand(raw))
        # The value of a variable is text, but may be meant as a number.
        value = self._expand(raw) if isinstance(raw, str) else raw
        return _scalar(kind, value, strict=value == raw)

    def _parse_file(self, raw: object, parse: Callable[[Path], object], *, literal: str = "") -> object:
        """Return the file or directory that a value names, parsed; its name is added to errors if it is safe to show.

        `literal` is the setting for the content itself, if there is one.
        """
        text = self._expand(raw)
        if not text:
            raise ValueError("is empty; specify a file, or omit the key")
        path = file.expanded(text)
        if not isinstance(raw, Given):
            path = self.document.folder / path
        try:
            return parse(path)
        except ValueError as error:
            hint = f"; if this is the content itself, use {literal}" if literal and is_like_content(text, path) else ""
            raise ValueError(f"{_shown_path(text, path)}{error}{hint}") from None

    def _expand(self, raw: object) -> str:
        """Return the text with each `${NAME}` replaced."""
        if isinstance(raw, Given):
            return raw.text
        if not isinstance(raw, str):
            hint = "write it as text" if isinstance(raw, list | dict) else "put it in quotes"
            raise ValueError(  # noqa: TRY004  an error of the user, like the others
                f"must be text, but is read as {_describe(raw)}; {hint}"
            )
        missing = [
            f"the environment variable {name} is not set; set it, or write $${{{name}}} for a literal ${{{name}}}"
            for name in dict.fromkeys(match[2] for match in _VARIABLE.finditer(raw) if match[2])
            if name not in self.environ
        ]
        if any(match[0] == "${" for match in _VARIABLE.finditer(raw)):
            missing.append("has a ${ without a name; write ${NAME}, or $${ for a literal ${")
        if missing:
            raise ConfigError(missing)
        return _VARIABLE.sub(lambda match: match[1] or self.environ[match[2]], raw)


def _scalar(kind: inspect.Type, value: object, *, strict: bool) -> object:
    """Return `value` if it is of the type and within the bounds of `kind`; ValueError says what is expected."""
    if isinstance(kind, inspect.LiteralType):
        if value in kind.values:
            return value
        raise ValueError(f"must be {' or '.join(map(str, kind.values))}; write one of them")
    expected, plain = _PLAIN[type(kind)]
    least, most = getattr(kind, "ge", None), getattr(kind, "le", None)
    with suppress(msgspec.ValidationError, OverflowError):
        number = msgspec.convert(value, plain, strict=strict)
        if math.isfinite(number) and (least is None or number >= least) and (most is None or number <= most):
            return number
    remedy = "correct it"
    if isinstance(value, str):
        has_commas = re.fullmatch(r"[\d.]+(,[\d.]+)+", value)
        remedy = NO_COMMAS if has_commas else "it is read as text, so check its spelling and quotes"
    raise ValueError(f"must be {expected}{_bounds(least, most)}; {remedy}")


def _bounds(least: float | None, most: float | None) -> str:
    if least is None:
        return ""
    return f" of at least {least}" if most is None else f" from {least} to {most:.12g}"


def _remedy(name: str, known: Sequence[str], *, has_value: bool) -> str:
    """Return how to fix an unknown key; `name` is the part of it that is safe to show."""
    # `{api_id:x}` has a single key, `api_id:x`.
    if name in known:
        return "add a space after its colon"
    if name == NO_NAME and not has_value and "api_key" in known:
        return "if this is the API key itself, write api_key: before it"
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"


def is_like_content(text: str, path: Path) -> bool:
    """Return whether a text given as a file name may be the content instead: there is no such file."""
    return _LIKE_CONTENT.fullmatch(text) is not None and file.state(path) is None


def _shown_path(text: str, path: Path) -> str:
    """Return the start of an error about a file: its name, unless that may be a key under the wrong setting."""
    is_path = re.fullmatch(r"(/|\./|\.\./|~/)[^+=]*|[\w/-]{1,60}\.[a-z]{2,4}", text)
    in_folder = "/" in text[1:] and text[0] != "/" and file.state(path.parent)
    return f"{path} " if (is_path or in_folder) and text.isprintable() else ""


def _names(field: inspect.Field) -> list[str]:
    """Return the keys of a field: NAME, and NAME_file if its value may come from a file."""
    return [field.name, f"{field.name}_file"] if "parse_file" in _extra(field.type) else [field.name]


def _given_type(kind: inspect.Type) -> inspect.Type:
    """Return the type without None, because a null counts as not given."""
    if not isinstance(kind, inspect.UnionType):
        return kind
    return next(member for member in kind.types if not isinstance(member, inspect.NoneType))


def _extra(kind: inspect.Type) -> dict[str, Any]:
    kind = _given_type(kind)
    return kind.extra or {} if isinstance(kind, inspect.Metadata) else {}


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _describe(raw: object) -> str:
    if raw is None:
        return "null"
    names: dict[type, str] = {str: "text", bool: "a boolean", list: "a list", dict: "a mapping"}
    return names.get(type(raw)) or ("a number" if isinstance(raw, int | float) else "a date or another special value")
