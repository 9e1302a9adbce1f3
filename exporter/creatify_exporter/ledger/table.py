"""Plain-text tables."""

from collections.abc import Iterator, Sequence


def aligned(lines: Sequence[Sequence[str]], *, names: int) -> Iterator[str]:
    """Yield the lines of a table with aligned columns: the first `names` columns flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, strict=True)
        padded = (
            cell.ljust(width) if number < names else cell.rjust(width) for number, (cell, width) in enumerate(cells)
        )
        yield "  ".join(padded).rstrip()
