"""Walks through expressions, for the tests of rules and dashboards."""

from collections.abc import Iterator
from typing import Any

import promql_parser

Path = tuple[Any, ...]
"""A node and what it stands in, from the outermost."""


def paths(node: Any, above: Path = ()) -> Iterator[Path]:
    """Yield each node of an expression below what it stands in."""
    yield (*above, node)
    for part in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (inner := getattr(node, part, None)) is not None:
            yield from paths(inner, (*above, node))
    for argument in getattr(node, "args", None) or ():
        yield from paths(argument, (*above, node))


def selectors(expression: str) -> Iterator[tuple[str, Path]]:
    """Yield the name of each series that is read, and what it stands in from the innermost."""
    for *above, node in paths(promql_parser.parse(expression)):
        if isinstance(node, promql_parser.VectorSelector):
            yield node.name or "", tuple(reversed(above))


def innermost(kind: type, above: Path) -> Any:
    """Return the nearest node of a kind, or None."""
    return next((node for node in above if isinstance(node, kind)), None)


def unguarded(expression: str) -> list[str]:
    """Return the denominators that may be zero: those that are neither a number nor a comparison."""
    divisions = [path[-1] for path in paths(promql_parser.parse(expression)) if str(getattr(path[-1], "op", "")) == "/"]
    return [str(each.rhs) for each in divisions if not _guarded(each.rhs)]


def _guarded(node: Any) -> bool:
    while isinstance(node, promql_parser.ParenExpr):
        node = node.expr
    return isinstance(node, promql_parser.NumberLiteral) or str(getattr(node, "op", "")) in {">", "!="}
