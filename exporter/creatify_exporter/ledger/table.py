"""A table of text."""

from collections.abc import Iterator, Sequence


def aligned(lines: Sequence[Sequence[str]], *, names: int) -> Iterator[str]:
    """Yield each line with its cells below those of the others; the first `names` columns are flush left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, strict=True)
        padded = (
            cell.ljust(width) if number < names else cell.rjust(width) for number, (cell, width) in enumerate(cells)
        )
        yield "  ".join(padded).rstrip()
