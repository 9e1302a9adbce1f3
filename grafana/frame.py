"""The common frame of all dashboards: variables, links, alerts as annotations, panel numbers."""

from collections.abc import Sequence
from typing import Final

from grafana_foundation_sdk.builders import dashboard, prometheus
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from creatify_exporter.metrics import TASKS_SUBMITTED, UP
from grafana.alerts import FIRING
from grafana.palette import BAD
from grafana.panels import RUNBOOKS, SOURCE
from grafana.queries import BALANCE, selector

TAG: Final = "creatify-exporter"
TITLES: Final = {"overview": "Overview", "failures": "Failures", "credits": "Credits", "exporter": "Exporter"}
Row = tuple[str, Sequence[Builder[models.Panel]]]


def row(title: str, *panels: Builder[models.Panel]) -> Row:
    """Put panels under a title, from left to right, 24 columns per line. The first row has no title."""
    return title, panels


def framed(page: str, description: str, *rows: Row) -> models.Dashboard:
    """Build a dashboard of titled rows."""
    board = dashboard.Dashboard(f"Creatify / {TITLES[page]}").uid(f"creatify-{page}").description(description)
    board.tags([TAG]).readonly()
    board.time("now-6h", "now").refresh("1m").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
    board.variables(_variables(page))
    board.annotations([_starts_of_alerts()])
    board.links([*(_sibling(page, other) for other in TITLES if other != page), _runbooks()])
    for title, panels in rows:
        if title:
            board.with_row(dashboard.Row(title))
        for panel in panels:
            board.with_panel(panel)
    return _numbered(board.build())


def _shows_tasks(page: str) -> bool:
    """Return whether a page is about tasks. The other page shows the balance among the lists."""
    return page != "exporter"


def _variables(page: str) -> list[Builder[models.VariableModel]]:
    """Offer everything that an exporter reported, even unread lists: Grafana replaces an unknown choice by All."""
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    fetched = selector(UP, *([f'api!="{BALANCE}"'] if _shows_tasks(page) else []), scope=("workspace",))
    return [
        source.description("The Prometheus that scrapes the exporter."),
        _variable("workspace", "Workspace", f"label_values({UP.name}, workspace)"),
        _variable("api", "List", f"label_values({fetched}, api)"),
        _variable("model", "Model", f"label_values({selector(TASKS_SUBMITTED, scope=('workspace', 'api'))}, model)"),
    ]


def _variable(name: str, label: str, definition: str) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE).definition(definition)
    variable.query({"query": definition, "refId": f"Variable-{name}"})
    variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    variable.multi(multi=True).include_all(include_all=True).all_value(".*")
    return variable.current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))


def _starts_of_alerts() -> dashboard.AnnotationQuery:
    """Mark when an alert began to fire. Off by default: a night of alerts would hide the graphs."""
    annotation = dashboard.AnnotationQuery().name("Alerts").datasource(SOURCE).enable(enable=False).icon_color(BAD)
    annotation.title_format("{{alertname}}").text_format("{{workspace}} {{api}} {{model}}").tag_keys("severity")
    starts = f"{FIRING} unless {FIRING} offset $__interval"
    return annotation.target(prometheus.Dataquery().expr(starts).ref_id("Anno").interval("1m").range())


def _sibling(page: str, other: str) -> dashboard.DashboardLink:
    """Link to another dashboard with the current choice, without the list if that may be the balance."""
    kept = ["datasource", "workspace", "api", "model"] if _shows_tasks(page) else ["datasource", "workspace"]
    link = dashboard.DashboardLink(TITLES[other]).type(models.DashboardLinkType.LINK).icon("dashboard")
    chosen = "&".join(f"${{{name}:queryparam}}" for name in kept)
    return link.url(f"/d/creatify-{other}?{chosen}").keep_time(keep_time=True)


def _runbooks() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("Runbooks").type(models.DashboardLinkType.LINK).url(RUNBOOKS)
    return link.icon("doc").target_blank(target_blank=True)


def _numbered(page: models.Dashboard) -> models.Dashboard:
    """Assign numbers to the panels, which the builders do not."""
    for number, panel in enumerate(page.panels or [], start=1):
        panel.id_val = number
    return page
