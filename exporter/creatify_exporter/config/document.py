"""A YAML file becomes plain values that know where they stand; every mistake in it becomes one line.

No line quotes a value: any of them may be a key that was pasted into the wrong place.
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
# A character, as it is or escaped, or the name of a token of PyYAML.
_HARMLESS: Final = re.compile(r"\\?.|<[a-z ]+>")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}(?![^\s:])")
# A key of the file that has no value may be one of the API whose `api_key: ` was forgotten.
_NAME_WITHOUT_VALUE: Final = re.compile(r"([A-Za-z0-9_.-]{1,15}|[a-z_]{16,60})(?![^\s:])")
NO_NAME: Final = "a key that is no name"


class Document(NamedTuple):
    """What a file holds, a line for each duplicate key, and the nodes, which know where everything stands.

    `source` is what mistakes begin with, `folder` is where relative file names start.
    """

    content: object
    source: str = "environment"
    folder: Path = Path()
    problems: Sequence[str] = ()
    root: yaml.Node | None = None

    def place(self, path: str) -> str:
        """Return where the value at `path` stands, or the innermost mapping or list around it that is there."""
        node, line = self.root, None
        for name in re.findall(r"[^.\[\]]+", path):
            node, found = _child(node, name)
            line = found or line
        return _place(self.source, line)


def _child(node: yaml.Node | None, name: str) -> tuple[yaml.Node | None, int | None]:
    """Return a node of a mapping or a list, and its line."""
    if isinstance(node, yaml.MappingNode):
        # Of several the last one counts: what is merged stands first.
        for key, value in reversed(node.value):
            if key.value == name:
                return value, key.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode) and name.isdecimal() and int(name) < len(node.value):
        item = node.value[int(name)]
        return item, item.start_mark.line + 1
    return None, None


def _place(source: str, line: int | None, column: int | None = None) -> str:
    """Return what a mistake begins with, as compilers have it: FILE:LINE:COLUMN."""
    return ":".join(str(part) for part in (source, line, column) if part)


class _Mistake(Exception):
    """What is wrong, how to mend it, and where it stands, if it stands somewhere."""

    def __init__(self, words: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(words)
        self.line, self.column = line, column


def read(path: Path, flag: str) -> Document:
    """Parse the file that `flag` names; ConfigError, with a line for each duplicate key too, if it cannot be parsed."""
    mistakes: list[_Mistake] = []
    try:
        root, content = _parse(_text(path, flag), mistakes)
    except _Mistake as mistake:
        raise ConfigError(_lines(path, [*mistakes, mistake])) from None
    if content is None:
        raise ConfigError([f"{path}: is empty; put at least one key into it, or leave {flag} out"])
    return Document(content, str(path), path.parent, _lines(path, mistakes), root)


def _lines(path: Path, mistakes: Sequence[_Mistake]) -> list[str]:
    return [f"{_place(str(path), each.line, each.column)}: {each}" for each in mistakes]


def _text(path: Path, flag: str) -> str:
    try:
        content = file.read(path, _LARGEST, pipe=True)
    except ValueError as error:
        raise _Mistake(f"{error} with {flag}") from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _Mistake("is not UTF-8; save the file as UTF-8", content.count(b"\n", 0, error.start) + 1) from None


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, in which a second value for a key is noted instead of silently winning."""

    def __init__(self, text: str, mistakes: list[_Mistake]) -> None:
        super().__init__(text)
        self.mistakes = mistakes

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        # Here and not at construction, where merged keys (<<) already stand among the mapping's own.
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, value in [pair for pair in node.value if isinstance(pair[0], yaml.ScalarNode)]:
            line, column = key.start_mark.line + 1, key.start_mark.column + 1
            if earlier := first.get((key.tag, key.value)):
                name = shown(key.value, has_value=not value.tag.endswith(":null"))
                words = f"{name} was already given in line {earlier}; remove one of them"
                self.mistakes.append(_Mistake(words, line, column))
            first.setdefault((key.tag, key.value), line)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
            # PyYAML lets them through: `2026-13-45` is a date to it, `!!int x` a number.
            raise yaml.constructor.ConstructorError(
                None, None, "this looks like a number or a date, but is none", node.start_mark
            ) from None


def _parse(text: str, mistakes: list[_Mistake]) -> tuple[yaml.Node | None, object]:
    try:
        loader = _Loader(text, mistakes)
        root = loader.get_single_node()
        return root, loader.construct_document(root) if root else None
    except yaml.MarkedYAMLError as error:
        raise _syntax_mistake(error, text) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise _Mistake("holds a control character; remove it", line, column) from None
    except RecursionError:
        raise _Mistake("is nested too deeply; the configuration has four levels") from None


def _syntax_mistake(error: yaml.MarkedYAMLError, text: str) -> _Mistake:
    mark = error.problem_mark or error.context_mark
    context = error.context
    if context and error.context_mark and mark and error.context_mark.line < mark.line:
        context += f" from line {error.context_mark.line + 1} on"
    words = ", ".join(filter(None, (context, error.problem)))
    remedy = "mend the YAML there, or put the text in quotes"
    if error.problem and r"'\t'" in error.problem:
        remedy = "indent with spaces, not with tabs"
    elif error.context == "while scanning a simple key":
        # PyYAML notices only where the next line begins.
        mark, remedy = error.context_mark, "write KEY: VALUE there, with a space after the colon"
    if error.context_mark and re.search("end of stream|stream end|document separator", words):
        # Whatever is not ended is looked for at its beginning.
        # PyYAML takes the end itself for the beginning of an item behind a bracket or a comma.
        mark, remedy = _open_bracket(text) or error.context_mark, "end what begins there"
    elif mark and (quote := _long_quote(text, mark)):
        return _Mistake(
            f"the quote that begins here ends in line {quote.end_mark.line + 1}, and then: {_masked(words)}; "
            "end it where it should end",
            quote.start_mark.line + 1,
            quote.start_mark.column + 1,
        )
    line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
    return _Mistake(f"{_masked(words)}; {remedy}", line, column)


def _open_bracket(text: str) -> yaml.Mark | None:
    """Return where the innermost list or mapping begins whose bracket is not closed at the end of the text."""
    opened = list[yaml.Mark]()
    for token in _tokens(text):
        if isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken):
            opened.append(token.start_mark)
        elif opened and isinstance(token, yaml.FlowSequenceEndToken | yaml.FlowMappingEndToken):
            opened.pop()
    return opened[-1] if opened else None


def _long_quote(text: str, mark: yaml.Mark) -> yaml.ScalarToken | None:
    """Return the quoted text that ends in the line of a mistake, if it began in an earlier one.

    Most often its closing quote was forgotten, and the next opening one was taken for it.
    """
    before = takewhile(lambda token: token.start_mark.index <= mark.index, _tokens(text))
    quotes = [token for token in before if isinstance(token, yaml.ScalarToken) and token.style in ("'", '"')]
    last = quotes[-1] if quotes else None
    return last if last and last.start_mark.line < last.end_mark.line == mark.line else None


def _tokens(text: str) -> Iterator[yaml.Token]:
    """Yield the tokens up to the first that cannot be read."""
    with suppress(yaml.YAMLError):
        yield from yaml.scan(text, yaml.SafeLoader)


def _masked(words: str) -> str:
    """Return a message of PyYAML without what it quotes of the file, which may be a key."""
    return _QUOTED.sub(lambda quoted: quoted[0] if _HARMLESS.fullmatch(quoted[0][1:-1]) else "<hidden>", words)


def shown(key: object, *, has_value: bool) -> str:
    """Return what may be shown of a key: `{api_key:x}` is one key to YAML, and x no name."""
    name = _NAME if has_value else _NAME_WITHOUT_VALUE
    match = name.match(key) if isinstance(key, str) else None
    return match[0] if match else NO_NAME


def shown_name(name: str) -> str:
    """Return a name that a person chose if it looks like one: a password may stand where a name should."""
    return name if re.fullmatch(r"[A-Za-z0-9_.@-]{1,60}", name) else "a name not shown"
