"""Panels of this project's look, ready for their units and thresholds."""

from collections.abc import Sequence
from typing import Final

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.builders import stat as stats
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BarGaugeValueMode,
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    DataSourceRef,
    GraphDrawStyle,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
RUNBOOKS: Final = "https://github.com/creatify-exporter/creatify-exporter/blob/main/docs/runbooks.md"
MODEL: Final = {"workspace": "Workspace", "model": "Model"}
"""Columns that say which model it is."""
WIDTHS: Final = {"Workspace": 110, "Model": 230, "Reason": 160, "Instance": 150}
"""Pixels; other columns share the rest."""
NARROWEST: Final = 90
"""Pixels, too. Grafana's own 150 push the last columns of a table out of sight on a screen 1400 pixels wide."""
DIGITS: Final = "none"
"""The unit that shows all decimals, so that they stand below each other; `locale` leaves zeros at the end away."""
GOOD, FAIR, BAD, PLAIN = "green", "orange", "red", "text"

_LOWEST: Final = -1e15  # what has no value has the colour of the first step, so all values need one of their own
_BRIDGED: Final = 5 * 60 * 1000.0  # milliseconds: gaps from a failed fetch or two are no news, longer ones are shown


def query(expression: str, legend: str = "__auto") -> prometheus.Dataquery:
    """Ask for a line over time."""
    return prometheus.Dataquery().expr(expression).legend_format(legend).range()


def now(expression: str, legend: str = "__auto") -> prometheus.Dataquery:
    """Ask for the values at the end of the time shown."""
    return prometheus.Dataquery().expr(expression).legend_format(legend).instant()


def stat(title: str, description: str, *queries: prometheus.Dataquery) -> stats.Panel:
    """Show a number or a word."""
    panel = stats.Panel().title(title).description(description).datasource(SOURCE).height(4).span(4)
    panel.color_mode(BigValueColorMode.VALUE).graph_mode(BigValueGraphMode.AREA)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).color_scheme(_by_thresholds())
    panel.orientation(VizOrientation.AUTO)
    return panel.targets(_lettered(queries))


def graph(title: str, description: str, *queries: prometheus.Dataquery) -> timeseries.Panel:
    """Draw lines."""
    panel = timeseries.Panel().title(title).description(description).datasource(SOURCE).height(8).span(12)
    panel.line_width(1.5).fill_opacity(8).show_points(VisibilityMode.AUTO).span_nulls(_BRIDGED).axis_soft_min(0)
    panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    panel.legend(_legend()).thresholds(steps(PLAIN))
    return panel.targets(_lettered(queries))


def area(title: str, description: str, *queries: prometheus.Dataquery) -> timeseries.Panel:
    """Draw parts of a whole upon each other."""
    panel = graph(title, description, *queries).fill_opacity(45).line_width(1).show_points(VisibilityMode.NEVER)
    return panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))


def bars(title: str, description: str, *queries: prometheus.Dataquery) -> timeseries.Panel:
    """Draw what comes now and then as bars upon each other; each counts since the one before."""
    panel = area(title, description, *queries).draw_style(GraphDrawStyle.BARS)
    return panel.fill_opacity(80).line_width(0)


def bar_gauge(title: str, description: str, *queries: prometheus.Dataquery) -> bargauge.Panel:
    """Compare numbers by the length of bars."""
    panel = bargauge.Panel().title(title).description(description).datasource(SOURCE).height(8).span(12)
    panel.orientation(VizOrientation.HORIZONTAL).display_mode(BarGaugeDisplayMode.BASIC)
    panel.value_mode(BarGaugeValueMode.TEXT).show_unfilled(show_unfilled=True).min(0)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).color_scheme(_by_thresholds())
    return panel.targets(_lettered(queries))


def table(title: str, description: str, *named: tuple[str, str], keys: dict[str, str]) -> tables.Panel:
    """Show a table: rows by their keys, label → heading; a column of each name with the values of an expression.

    A column without a name is not shown.
    """
    panel = tables.Panel().title(title).description(description).datasource(SOURCE).height(8).span(24)
    queries = [now(expression).format(PromQueryFormat.TABLE) for _, expression in named]
    panel.targets(_lettered(queries)).min_width(NARROWEST)
    values = [f"Value #{_letter(number)}" for number in range(len(named))] if len(named) > 1 else ["Value"]
    headings = keys | {value: name for value, (name, _) in zip(values, named, strict=True)}
    options = {
        "excludeByName": {"Time": True} | {value: True for value in values if not headings[value]},
        "indexByName": {name: index for index, name in enumerate(headings)},
        "renameByName": headings,
    }
    # What the panel says when there is no row would otherwise stand in every empty cell.
    panel.override_by_regexp(".*", [option("noValue", "-")])
    for heading, width in WIDTHS.items():
        panel.override_by_name(heading, [option("custom.width", width)])
    panel.with_transformation(models.DataTransformerConfig("merge", options={}))
    return panel.with_transformation(models.DataTransformerConfig("organize", options=options))


def sorted_by(panel: tables.Panel, name: str) -> tables.Panel:
    """Sort a table by a column, largest first."""
    return panel.sort_by([common.TableSortByFieldState().display_name(name).desc(desc=True)])


def column(
    panel: tables.Panel, name: str, unit: str, decimals: int = 0, warn: dashboard.ThresholdsConfig | None = None
) -> None:
    """Give a column its unit, its digits and, where a value can be bad, its colours."""
    options = [option("unit", unit), option("decimals", decimals)]
    if warn:
        options += [option("thresholds", warn.build()), option("custom.cellOptions", {"type": "color-text"})]
    panel.override_by_name(name, options)


def option(name: str, value: object) -> models.DynamicConfigValue:
    """Set an option of one column or line."""
    return models.DynamicConfigValue(name, value)


def colored(panel: timeseries.Panel, **colors: str) -> timeseries.Panel:
    """Give lines of these names their colours."""
    for name, color in colors.items():
        panel.override_by_name(name, [option("color", {"mode": "fixed", "fixedColor": color})])
    return panel


def named(panel: stats.Panel) -> stats.Panel:
    """Show which series it is above its value."""
    return panel.text_mode(BigValueTextMode.VALUE_AND_NAME)


def limited(panel: timeseries.Panel) -> timeseries.Panel:
    """Draw the thresholds as lines."""
    style = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
    return panel.thresholds_style(style)


def steps(lowest: str, *above: tuple[float, str], empty: str = PLAIN) -> dashboard.ThresholdsConfig:
    """Colour by value: `lowest`, from each value on its colour; and `empty` where there is no value."""
    bottom = [] if lowest == empty else [models.Threshold(_LOWEST, lowest)]
    higher = [models.Threshold(value, color) for value, color in above]
    thresholds = [models.Threshold(None, empty), *bottom, *higher]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds)


def words(**meanings: tuple[str, str]) -> list[models.ValueMapping]:
    """Say a word in a colour instead of a number: `words(_1=("up", GOOD))`."""
    results = {
        value.removeprefix("_"): models.ValueMappingResult(text, color, index=index)
        for index, (value, (text, color)) in enumerate(meanings.items())
    }
    return [models.ValueMap(results)]


def runbook(alert: str) -> dashboard.DashboardLink:
    """Link a panel to what to do."""
    link = dashboard.DashboardLink(f"Runbook: {alert}").url(f"{RUNBOOKS}#{alert.lower()}")
    return link.type(models.DashboardLinkType.LINK).target_blank(target_blank=True)


def _lettered(queries: Sequence[prometheus.Dataquery]) -> list[Builder[Dataquery]]:
    """Name queries by letters, from A."""
    return [each.ref_id(_letter(number)).datasource(SOURCE) for number, each in enumerate(queries)]


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def _legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().show_legend(show_legend=True)
    return legend.display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)


def _by_thresholds() -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS)
