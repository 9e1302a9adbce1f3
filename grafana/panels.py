"""The three kinds of panel, one function each: a table, a graph of lines or areas, a graph of bars."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import (
    DataSourceRef,
    GraphDrawStyle,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from grafana.palette import CAUSES, LEGENDS, PLAIN, REASONS
from grafana.queries import lists, lists_read

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
RUNBOOKS: Final = "https://github.com/creatify-exporter/creatify-exporter/blob/main/docs/runbooks.md"
DIGITS: Final = "none"
"""The unit that shows all decimals, so that they align; `locale` drops trailing zeros."""
LIST_LINE, MODEL_LINE = "{{workspace}} · {{api}}", "{{workspace}} · {{api}} · {{model}}"
"""Legends. A line has the colour of its name, so a list and a model have the same name everywhere."""
FAILING: Final = "Failed ≤1h"
"""The heading of a failure ratio over 15 minutes if five tasks finished in them, otherwise over an hour."""
UNCOUNTED: Final = "nothing was counted: see Down on Overview"
UNREAD: Final = "no list was read: see Down on Overview"
UNSAID: Final = "-"
"""The text of a cell without a value if that is normal."""
HALF: Final = 12
"""Grid columns of a graph with a neighbour; a wider one has room for its legend on the right."""
MOST_BARS: Final = 120
"""Maximum number of bars in a graph, whatever the time range: more would be hairlines."""
LEAST_STEP: Final = "1m"
"""Step of a graph without an interval: its rates then cover four minutes or more. Grafana assumes a scrape interval of
15 s unless the data source sets another, and a rate over one minute has gaps if there is one scrape a minute."""

_MISSING: Final = "-Infinity"
"""Grafana's text for the value of a row without one. NaN does not work: VictoriaMetrics drops it."""
# A missing value has the colour of the first step, so all values need another step.
_LOWEST: Final = -1e15
# Milliseconds: gaps from one or two failed fetches are bridged, longer ones are shown.
_BRIDGED: Final = 5 * 60 * 1000.0

Steps = tuple[str, tuple[tuple[float, str], ...], str]
"""A colour for low values, the values from which other colours apply, and a colour for no value."""


def steps(lowest: str, *above: tuple[float, str], empty: str = PLAIN) -> Steps:
    """Colour by value."""
    return lowest, above, empty


@dataclass(frozen=True)
class Key:
    """A label that distinguishes the rows of a table; `width` in pixels. The last key gets the remaining width."""

    label: str
    heading: str
    width: int
    link: str = ""
    words: dict[str, tuple[str, str]] | None = None
    """Label value → the text shown instead, and its colour."""


@dataclass(frozen=True)
class Column:
    """A column of values. A missing value is shown as `empty`. A column without a heading only provides labels."""

    heading: str
    expression: str
    unit: str = "locale"
    decimals: int | None = 0
    width: int = 80
    steps: Steps | None = None
    words: dict[str, tuple[str, str]] | None = None
    empty: str = UNSAID


@dataclass(frozen=True)
class Line:
    """A query over time; the legend names each of its series. `aside` has a separate axis, on the right."""

    expression: str
    legend: str
    aside: bool = False


LISTS_READ: Final = (
    Line(f"count({lists_read()})", "lists read", aside=True),
    Line(f"count({lists()})", "lists", aside=True),
)
"""The number of lists in a sum and of all lists, because a list that is not read would silently lower the sum."""


def _page(uid: str, *labels: str) -> str:
    """Return the address of a dashboard, limited to the clicked row."""
    headings = {"workspace": "Workspace", "api": "List", "model": "Model"}
    chosen = [f"var-{label}=${{__data.fields.{headings[label]}:percentencode}}" for label in labels]
    return f"/d/creatify-{uid}?{'&'.join(['${datasource:queryparam}', *chosen])}&${{__url_time_range}}"


def _colored(colors: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {name: (name, color) for name, color in colors.items()}


WORKSPACE: Final = Key("workspace", "Workspace", 92, _page("overview", "workspace"))
LIST: Final = Key("api", "List", 135, _page("failures", "workspace", "api"))
MODEL: Final = Key("model", "Model", 116, _page("failures", "workspace", "api", "model"))
FETCHED: Final = Key("api", "List", 135)
"""A list or the balance, which has no page of tasks."""
REASON: Final = Key("reason", "Reason", 142, words=_colored(REASONS | CAUSES))
CAUSE: Final = Key("cause", "Cause", 110, words=_colored(CAUSES))
CURRENCY: Final = Key("currency", "Unit", 54)


def table(  # noqa: PLR0913 - a panel has so many parts, and each call names them
    title: str,
    description: str,
    keys: Sequence[Key],
    *columns: Column,
    empty: str,
    known: str = "",
    sort: Sequence[str] = (),
    extra: Sequence[Key] = (),
    span: int = 24,
    height: int = 8,
    runbooks: Sequence[str] = (),
) -> tables.Panel:
    """Show a row for each value of the keys and a column for each expression, whose labels must be the keys.

    Labels in `extra` come from single expressions and are shown after the columns. Rows are sorted by the columns in
    `sort`, the largest first, or the smallest if the name begins with `+`. `known` has a row for everything that should
    be there: without it, Grafana drops a column that has no value in any row, and with it the text for that.
    """
    panel = tables.Panel().min_width(60).no_value(empty)
    _frame(panel, (title, description), (span, height), runbooks)
    panel.targets(_lettered([_now(_complete(each, known)) for each in columns])).thresholds(_thresholds(steps(PLAIN)))
    panel.override_by_regexp(".*", [option("noValue", UNSAID)])
    for key in (*keys, *extra):
        panel.override_by_name(key.heading, _options_of_key(key, wide=key is keys[-1]))
    for column in filter(lambda each: each.heading, columns):
        panel.override_by_name(column.heading, _options_of_column(column))
    order = [
        common.TableSortByFieldState().display_name(name.lstrip("+")).desc(not name.startswith("+")) for name in sort
    ]
    panel.sort_by(list(order))
    return _arranged(panel, keys, columns, extra)


def _arranged(
    panel: tables.Panel, keys: Sequence[Key], columns: Sequence[Column], extra: Sequence[Key]
) -> tables.Panel:
    """Join the results of the expressions, in the order of keys, columns and extra labels."""
    values = [f"Value #{_letter(number)}" for number in range(len(columns))] if len(columns) > 1 else ["Value"]
    headings = {key.label: key.heading for key in keys}
    headings |= dict(zip(values, (column.heading for column in columns), strict=True))
    headings |= {key.label: key.heading for key in extra}
    options = {
        "excludeByName": {"Time": True} | {value: True for value in values if not headings[value]},
        "indexByName": {name: index for index, name in enumerate(headings)},
        "renameByName": {name: heading for name, heading in headings.items() if heading},
    }
    panel.with_transformation(models.DataTransformerConfig("merge", options={}))
    return panel.with_transformation(models.DataTransformerConfig("organize", options=options))


def _options_of_key(key: Key, *, wide: bool) -> list[models.DynamicConfigValue]:
    options = [option("custom.minWidth" if wide else "custom.width", key.width)]
    if key.link:
        title = "Runbook" if key.link.startswith(RUNBOOKS) else f"Only this {key.heading.lower()}"
        options.append(option("links", [{"title": title, "url": key.link}]))
    if key.words:
        options += [option("mappings", words(key.words)), _COLORED_TEXT]
    return options


def _options_of_column(column: Column) -> list[models.DynamicConfigValue]:
    options = [option("custom.width", column.width), option("unit", column.unit), option("noValue", column.empty)]
    if column.decimals is not None:
        options.append(option("decimals", column.decimals))
    if column.steps:
        options.append(option("thresholds", _thresholds(column.steps).build()))
    meanings = column.words or {}
    if column.empty != UNSAID:
        meanings = meanings | {_MISSING: (column.empty, column.steps[2] if column.steps else PLAIN)}
    if meanings:
        options.append(option("mappings", words(meanings)))
    return [*options, _COLORED_TEXT] if column.steps or meanings else options


def _complete(column: Column, known: str) -> str:
    """Give each known row a value, so that the column exists even if no row has one."""
    return f"{column.expression} or {known} * -Inf" if known and column.empty != UNSAID else column.expression


def graph(  # noqa: PLR0913 - as above
    title: str,
    description: str,
    *lines: Line,
    unit: str,
    empty: str,
    stacked: bool = False,
    limit: tuple[float, str] | None = None,
    most: float | None = None,
    interval: str = "",
    span: int = HALF,
    height: int = 10,
    runbooks: Sequence[str] = (),
) -> timeseries.Panel:
    """Draw lines, or stacked areas with `stacked`; a dashed line at `limit`; values up to `most`."""
    panel = timeseries.Panel().unit(unit).no_value(empty).axis_soft_min(0)
    _frame(panel, (title, description), (span, height), runbooks)
    queries = [_over_time(line) if interval else _over_time(line).interval(LEAST_STEP) for line in lines]
    panel.targets(_lettered(queries)).legend(_legend(span))
    panel.line_width(1.5).fill_opacity(8).show_points(VisibilityMode.AUTO).span_nulls(_BRIDGED)
    panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    panel.thresholds(_thresholds(steps(PLAIN, limit) if limit else steps(PLAIN)))
    panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    for line in lines:
        for name, color in LEGENDS.get(line.legend, {}).items():
            panel.override_by_name(name, [option("color", {"mode": "fixed", "fixedColor": color})])
    for line in filter(lambda each: each.aside, lines):
        panel.override_by_name(line.legend, _ASIDE)
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(45).line_width(1)
    if limit:
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    if most is not None:
        panel.max(most)
    return panel.interval(interval).max_data_points(MOST_BARS) if interval else panel


def bars(  # noqa: PLR0913 - as above
    title: str,
    description: str,
    *lines: Line,
    unit: str = "short",
    empty: str,
    span: int = HALF,
    runbooks: Sequence[str] = (),
) -> timeseries.Panel:
    """Draw occasional events as stacked bars; each counts since the bar before."""
    panel = graph(
        title, description, *lines, unit=unit, empty=empty, stacked=True, interval="5m", span=span, runbooks=runbooks
    )
    panel.draw_style(GraphDrawStyle.BARS).fill_opacity(80).line_width(0).show_points(VisibilityMode.NEVER)
    return panel.decimals(0)


def option(name: str, value: object) -> models.DynamicConfigValue:
    """Set an option of one column or line."""
    return models.DynamicConfigValue(name, value)


def words(meanings: dict[str, tuple[str, str]]) -> list[models.ValueMapping]:
    """Show a word in a colour instead of a value."""
    results = {
        value: models.ValueMappingResult(text, color, index=index)
        for index, (value, (text, color)) in enumerate(meanings.items())
    }
    return [models.ValueMap(results)]


_ASIDE: Final = [
    option("unit", "short"),
    option("custom.axisPlacement", "right"),
    option("custom.stacking", {"mode": "none"}),
    option("custom.fillOpacity", 0),
    option("custom.lineStyle", {"fill": "dash", "dash": [4, 4]}),
]
_COLORED_TEXT: Final = option("custom.cellOptions", {"type": "color-text"})


def _frame(
    panel: tables.Panel | timeseries.Panel, words: tuple[str, str], size: tuple[int, int], runbooks: Iterable[str]
) -> None:
    """Set a panel's title and description, its width and height on the grid, and links to runbooks."""
    panel.title(words[0]).description(words[1]).datasource(SOURCE).span(size[0]).height(size[1])
    if runbooks:
        panel.links([_runbook(alert) for alert in runbooks])


def _runbook(alert: str) -> dashboard.DashboardLink:
    link = dashboard.DashboardLink(f"Runbook: {alert}").url(f"{RUNBOOKS}#{alert.lower()}")
    return link.type(models.DashboardLinkType.LINK).target_blank(target_blank=True)


def _now(expression: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).instant().format(PromQueryFormat.TABLE)


def _over_time(line: Line) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(line.expression).legend_format(line.legend).range()


def _lettered(queries: Iterable[prometheus.Dataquery]) -> list[Builder[Dataquery]]:
    """Name queries by letters, from A."""
    return [each.ref_id(_letter(number)).datasource(SOURCE) for number, each in enumerate(queries)]


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def _thresholds(colors: Steps) -> dashboard.ThresholdsConfig:
    lowest, above, empty = colors
    bottom = [] if lowest == empty else [models.Threshold(_LOWEST, lowest)]
    higher = [models.Threshold(value, color) for value, color in above]
    thresholds = [models.Threshold(None, empty), *bottom, *higher]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds)


def _legend(span: int) -> common.VizLegendOptions:
    """Return a table with the last value and the largest, sorted by the last."""
    legend = common.VizLegendOptions().show_legend(show_legend=True).display_mode(LegendDisplayMode.TABLE)
    legend.calcs(["lastNotNull", "max"]).sort_by("Last *").sort_desc(sort_desc=True)
    return legend.placement(LegendPlacement.RIGHT if span > HALF else LegendPlacement.BOTTOM)
