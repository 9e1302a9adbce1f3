"""Costs over the length of the list, as SVG, with logarithmic axes: equal distances are equal ratios."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from typing import Final, NamedTuple

WIDTH: Final = 980
HEIGHT: Final = 470

_LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT = 62, 64, 230, 350
_PANEL: Final = 490  # from one panel to the next
_ROW: Final = 15  # distance between names, so that they do not overlap
_COLORS: Final = (
    *("#c4421a", "#e08a6c", "#5f6b76", "#9aa5b1"),
    *("#1d6fa5", "#2b8a5a", "#7a4fa3", "#a0741a", "#b03070", "#1c2329", "#2aa7a7"),
)

Points = Sequence[tuple[float, float]]


class Panel(NamedTuple):
    """One diagram: a title, the unit of its upright axis, and a line for each name."""

    title: str
    unit: str
    lines: Mapping[str, Points]


def drawn(panels: Sequence[Panel]) -> str:
    """Draw panels side by side; a name has the same color in all of them."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colors = {name: _COLORS[place % len(_COLORS)] for place, name in enumerate(names)}
    elements = [element for place, panel in enumerate(panels) for element in _panel(panel, place * _PANEL, colors)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            *elements,
            "</svg>\n",
        ]
    )


class _Axis(NamedTuple):
    """Whole decades from `low` to `high`, on `length` pixels from `start`."""

    low: int
    high: int
    start: float
    length: float

    def place(self, value: float) -> float:
        share = (log10(max(value, 10.0**self.low)) - self.low) / (self.high - self.low)
        return self.start + self.length * share

    def ticks(self) -> Iterator[tuple[float, float]]:
        return ((10.0**power, self.place(10.0**power)) for power in range(self.low, self.high + 1))


def _axis(values: Iterable[float], start: float, length: float) -> _Axis:
    powers = [log10(value) for value in values]
    low = floor(min(powers))
    return _Axis(low, max(ceil(max(powers)), low + 1), start, length)


def _panel(panel: Panel, shift: float, colors: Mapping[str, str]) -> Iterator[str]:
    left, bottom = shift + _LEFT, _TOP + _PLOT_HEIGHT
    points = [point for line in panel.lines.values() for point in line]
    across = _axis([x for x, _ in points], left, _PLOT_WIDTH)
    upright = _axis([y for _, y in points], bottom, -_PLOT_HEIGHT)
    yield _text(left, 26, panel.title, "#1c2329", size=15)
    yield _text(left, 46, panel.unit, "#5f6b76")
    for value, x in across.ticks():
        yield _text(x, bottom + 20, f"{value:,.0f}", "#5f6b76", anchor="middle", size=11)
    yield _text(left + _PLOT_WIDTH / 2, bottom + 40, "tasks in the list", "#5f6b76", anchor="middle")
    for value, y in upright.ticks():
        yield f'<line x1="{left}" x2="{left + _PLOT_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e7ea"/>'
        yield _text(left - 8, y + 4, f"{value:,g}", "#5f6b76", anchor="end", size=11)
    ends = {name: upright.place(line[-1][1]) for name, line in panel.lines.items()}
    labels = _apart(ends)
    for name, line in panel.lines.items():
        way = " ".join(f"{across.place(x):.1f},{upright.place(y):.1f}" for x, y in line)
        width = 3 if name == next(iter(panel.lines)) else 1.7
        yield f'<polyline points="{way}" fill="none" stroke="{colors[name]}" stroke-width="{width}"/>'
        for x, y in line:
            yield f'<circle cx="{across.place(x):.1f}" cy="{upright.place(y):.1f}" r="2.5" fill="{colors[name]}"/>'
        last, margin = across.place(line[-1][0]) + 4, left + _PLOT_WIDTH + 14
        lead = f'x1="{last:.1f}" y1="{ends[name]:.1f}" x2="{margin}" y2="{labels[name]:.1f}"'
        yield f'<line {lead} stroke="{colors[name]}" stroke-width="0.6" stroke-dasharray="2 2"/>'
        yield _text(margin + 4, labels[name] + 4, name, colors[name])


def _apart(ends: Mapping[str, float]) -> dict[str, float]:
    """Move names apart if lines end close together, and back up if they leave the picture."""
    places: dict[str, float] = {}
    lowest = float("-inf")
    for name, y in sorted(ends.items(), key=lambda each: each[1]):
        lowest = places[name] = max(y, lowest + _ROW)
    excess = max(0.0, lowest - (_TOP + _PLOT_HEIGHT))
    return {name: y - excess for name, y in places.items()}


def _text(x: float, y: float, text: str, color: str, *, anchor: str = "start", size: int = 12) -> str:  # noqa: PLR0913 - what an element has
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
    )
