"""What all dashboards have around their panels: variables, links, alerts as annotations, numbers for the panels."""

from collections.abc import Sequence
from typing import Final

from grafana_foundation_sdk.builders import dashboard, prometheus
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from creatify_exporter.metrics import TASKS_SUBMITTED, UP, Family
from grafana.panels import BAD, RUNBOOKS, SOURCE
from grafana.queries import selector

TAG: Final = "creatify-exporter"
Row = tuple[str, Sequence[Builder[models.Panel]]]


def alerts(*matchers: str) -> str:
    """Select the alerts of what is chosen. Those of a whole workspace have no model, those of its balance no list."""
    ours = 'alertname=~"Creatify.*"'
    chosen = ('workspace=~"$workspace|"', 'api=~"$api|remaining_credits|"', 'model=~"$model|"')
    return f"ALERTS{{{', '.join([ours, *matchers, *chosen])}}}"


FIRING: Final = alerts('alertstate="firing"')


def row(title: str, *panels: Builder[models.Panel]) -> Row:
    """Put panels under a title, from left to right, 24 columns to a line."""
    return title, panels


def framed(uid: str, title: str, description: str, *rows: Row, listing_all: bool = False) -> models.Dashboard:
    """Build a dashboard of titled rows; `listing_all` offers the balance beside the lists as `api`."""
    page = dashboard.Dashboard(f"Creatify / {title}").uid(uid).description(description).tags([TAG]).readonly()
    page.time("now-6h", "now").refresh("1m").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
    page.variables(_variables(UP if listing_all else TASKS_SUBMITTED))
    page.annotations([_alerts()]).links([_siblings(), _runbooks()])
    for name, panels in rows:
        page.with_row(dashboard.Row(name))
        for panel in panels:
            page.with_panel(panel)
    return _numbered(page.build())


def _variables(family: Family) -> list[Builder[models.VariableModel]]:
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    return [
        source.description("The Prometheus that scrapes the exporter."),
        _variable("workspace", "Workspace", f"label_values({family.name}, workspace)"),
        _variable("api", "API", f'label_values({family.name}{{workspace=~"$workspace"}}, api)'),
        _variable("model", "Model", f"label_values({selector(TASKS_SUBMITTED, scope=('workspace',))}, model)"),
    ]


def _variable(name: str, label: str, definition: str) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE).definition(definition)
    variable.query({"query": definition, "refId": f"Variable-{name}"})
    variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    variable.multi(multi=True).include_all(include_all=True).all_value(".*")
    return variable.current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))


def _alerts() -> dashboard.AnnotationQuery:
    annotation = dashboard.AnnotationQuery().name("Alerts").datasource(SOURCE).enable(enable=True).icon_color(BAD)
    annotation.title_format("{{alertname}}").text_format("{{workspace}} {{api}} {{model}}").tag_keys("severity")
    return annotation.target(prometheus.Dataquery().expr(FIRING).ref_id("Anno").interval("1m").range())


def _siblings() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("Creatify").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.include_vars(include_vars=True).keep_time(keep_time=True)


def _runbooks() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("Runbooks").type(models.DashboardLinkType.LINK).url(RUNBOOKS)
    return link.icon("doc").target_blank(target_blank=True)


def _numbered(page: models.Dashboard) -> models.Dashboard:
    """Give the panels their numbers, which the builders do not."""
    for number, panel in enumerate(page.panels or [], start=1):
        panel.id_val = number
    return page
