"""Reads a YAML file into plain values, keeps their line numbers, and reports each error on one line.

No message quotes a value: any value may be an API key that was pasted into the wrong place.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from creatify_exporter.config import file
from creatify_exporter.errors import ConfigError

# In bytes.
_LARGEST: Final = 2**20
_QUOTED: Final = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
# A single character, escaped or not, or the name of one of PyYAML's tokens.
_HARMLESS: Final = re.compile(r"\\?.|<[a-z ]+>")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}(?![^\s:])")
# A YAML key without a value may be an API key in front of which `api_key: ` was forgotten.
_NAME_WITHOUT_VALUE: Final = re.compile(r"([A-Za-z0-9_.-]{1,15}|[a-z_]{16,60})(?![^\s:])")
NO_NAME: Final = "a key that is not a name"


class Document(NamedTuple):
    """The content of a file, an error for each duplicate key, and the YAML nodes, which know their line numbers.

    Error messages start with `source`; relative file names are resolved against `folder`.
    """

    content: object
    source: str = "environment"
    folder: Path = Path()
    problems: Sequence[str] = ()
    root: yaml.Node | None = None

    def location(self, path: str) -> str:
        """Return the location of the value at `path`, or of the innermost mapping or list around it that exists."""
        node, line = self.root, None
        for name in re.findall(r"[^.\[\]]+", path):
            node, found = _child(node, name)
            line = found or line
        return _location(self.source, line)


def _child(node: yaml.Node | None, name: str) -> tuple[yaml.Node | None, int | None]:
    """Return a node of a mapping or a list, and its line."""
    if isinstance(node, yaml.MappingNode):
        # The last one counts: merged keys come first.
        for key, value in reversed(node.value):
            if key.value == name:
                return value, key.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode) and name.isdecimal() and int(name) < len(node.value):
        item = node.value[int(name)]
        return item, item.start_mark.line + 1
    return None, None


def _location(source: str, line: int | None, column: int | None = None) -> str:
    """Return the prefix of an error message, in the format of compilers: FILE:LINE:COLUMN."""
    return ":".join(str(part) for part in (source, line, column) if part)


class _Problem(Exception):
    """What is wrong, how to fix it, and the line and column, if it has one."""

    def __init__(self, words: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(words)
        self.line, self.column = line, column


def read(path: Path, flag: str) -> Document:
    """Parse the file that `flag` names; if that fails, ConfigError lists the duplicate keys too."""
    problems: list[_Problem] = []
    try:
        root, content = _parse(_text(path, flag), problems)
    except _Problem as problem:
        raise ConfigError(_lines(path, [*problems, problem])) from None
    if content is None:
        raise ConfigError([f"{path}: is empty; add at least one key, or omit {flag}"])
    return Document(content, str(path), path.parent, _lines(path, problems), root)


def _problem_at(mark: yaml.Mark | None, words: str) -> _Problem:
    return _Problem(words, mark.line + 1, mark.column + 1) if mark else _Problem(words)


def _lines(path: Path, problems: Sequence[_Problem]) -> list[str]:
    return [f"{_location(str(path), each.line, each.column)}: {each}" for each in problems]


def _text(path: Path, flag: str) -> str:
    try:
        content = file.read(path, _LARGEST, pipe=True)
    except ValueError as error:
        raise _Problem(f"{error} with {flag}") from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _Problem("is not UTF-8; save the file as UTF-8", content.count(b"\n", 0, error.start) + 1) from None


class _Loader(yaml.SafeLoader):
    """Loads YAML's safe subset; records a duplicate key, which would otherwise silently win."""

    def __init__(self, text: str, problems: list[_Problem]) -> None:
        super().__init__(text)
        self.problems = problems

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        # Not at construction: by then merged keys (<<) are mixed with the mapping's own.
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, value in [pair for pair in node.value if isinstance(pair[0], yaml.ScalarNode)]:
            if earlier := first.get((key.tag, key.value)):
                name = shown(key.value, has_value=not value.tag.endswith(":null"))
                words = f"{name} is already set on line {earlier}; remove one of them"
                self.problems.append(_problem_at(key.start_mark, words))
            first.setdefault((key.tag, key.value), key.start_mark.line + 1)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
            # PyYAML does not catch these: it treats `2026-13-45` as a date and `!!int x` as a number.
            raise yaml.constructor.ConstructorError(
                None, None, "this looks like a number or a date, but is not a valid one", node.start_mark
            ) from None


def _parse(text: str, problems: list[_Problem]) -> tuple[yaml.Node | None, object]:
    try:
        loader = _Loader(text, problems)
        root = loader.get_single_node()
        return root, loader.construct_document(root) if root else None
    except yaml.MarkedYAMLError as error:
        raise _syntax_problem(error, text) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise _Problem("contains a control character; remove it", line, column) from None
    except RecursionError:
        raise _Problem("is nested too deeply; the configuration has four levels") from None


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> _Problem:
    """Return a syntax error with the place to look at, which is not always where PyYAML noticed it, and a remedy."""
    mark = error.problem_mark or error.context_mark
    context = error.context
    if context and error.context_mark and mark and error.context_mark.line < mark.line:
        context += f" that starts on line {error.context_mark.line + 1}"
    words = _masked(", ".join(filter(None, (context, error.problem))))
    if error.context_mark and re.search("end of stream|stream end|document separator", words):
        # Report an unterminated construct at its start. After a bracket or a comma, PyYAML's own context is an item
        # that starts at the end of the file.
        return _problem_at(_open_bracket(text) or error.context_mark, f"{words}; close what starts there")
    remedy = "fix the YAML there, or put the text in quotes"
    if error.problem and r"'\t'" in error.problem:
        remedy = "indent with spaces, not tabs"
    elif error.context == "while scanning a simple key":
        # PyYAML notices the missing colon only at the start of the next line.
        mark, remedy = error.context_mark, "write KEY: VALUE there, with a space after the colon"
    if mark and (quote := _long_quote(text, mark)):
        opening = f"the quoted text that starts here ends on line {quote.end_mark.line + 1}"
        return _problem_at(quote.start_mark, f"{opening}, and then: {words}; close the quote where the text should end")
    return _problem_at(mark, f"{words}; {remedy}")


def _open_bracket(text: str) -> yaml.Mark | None:
    """Return the start of the innermost list or mapping whose bracket is never closed."""
    opened = list[yaml.Mark]()
    for token in _tokens(text):
        if isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken):
            opened.append(token.start_mark)
        elif opened and isinstance(token, yaml.FlowSequenceEndToken | yaml.FlowMappingEndToken):
            opened.pop()
    return opened[-1] if opened else None


def _long_quote(text: str, mark: yaml.Mark) -> yaml.ScalarToken | None:
    """Return the quoted text that ends on the line of an error, if it starts on an earlier line.

    Usually its closing quote is missing, so that the next opening quote closed it.
    """
    before = takewhile(lambda token: token.start_mark.index <= mark.index, _tokens(text))
    quotes = [token for token in before if isinstance(token, yaml.ScalarToken) and token.style in ("'", '"')]
    last = quotes[-1] if quotes else None
    return last if last and last.start_mark.line < last.end_mark.line == mark.line else None


def _tokens(text: str) -> Iterator[yaml.Token]:
    """Yield the tokens up to the first unreadable one."""
    with suppress(yaml.YAMLError):
        yield from yaml.scan(text, yaml.SafeLoader)


def _masked(words: str) -> str:
    """Return a message of PyYAML without its quotes from the file, which may include an API key."""
    return _QUOTED.sub(lambda quoted: quoted[0] if _HARMLESS.fullmatch(quoted[0][1:-1]) else "<hidden>", words)


def shown(key: object, *, has_value: bool) -> str:
    """Return the part of a YAML key that is safe to show: `{api_key:x}` is a single key, and x may be secret."""
    name = _NAME if has_value else _NAME_WITHOUT_VALUE
    match = name.match(key) if isinstance(key, str) else None
    return match[0] if match else NO_NAME


def shown_name(name: str) -> str:
    """Return a user-chosen name if it looks like one: a password may have been put in its place."""
    return name if re.fullmatch(r"[A-Za-z0-9_.@-]{1,60}", name) else "a name not shown"
