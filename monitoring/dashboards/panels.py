"""Kinds of panels, and how a board is laid out.

The library leaves out ids, letters of queries, data sources and legends; they are set here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import common, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery as AnyQuery
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.dashboards.limits import Limit, limit_of

PROMETHEUS = kinds.DataSourceRef(type_val="prometheus", uid="prometheus")
# The role relay_reader (deploys.roles.postgres) on a replica: it reads, for reports, and holds nobody up.
LEDGER = kinds.DataSourceRef(type_val="grafana-postgresql-datasource", uid="ledger")
COLUMNS = 24
TAG = "relay"
PAGES = "${pages}"
# A step begins at its value, an alert above it: 0 itself is good.
JUST_ABOVE_ZERO = 1e-6
COLOURS = {"critical": "red", "warning": "orange"}


@dataclass(frozen=True)
class Query:
    """PromQL, and the legend as Grafana's template of labels (``{{model}}``)."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """What all kinds have. ``alerts`` give thresholds and links to their pages; ``pages`` give links only."""

    title: str
    description: str
    unit: str
    alerts: Sequence[str] = ()
    pages: Sequence[str] = ()

    width = 8
    height = 8

    def links(self) -> list[Builder[model.DashboardLink]]:
        """A link to the page of each alert."""
        return [
            grafana.DashboardLink(f"Runbook: {name}")
            .type(model.DashboardLinkType.LINK)
            .url(f"{PAGES}/{name}.md")
            .target_blank(True)
            for name in dict.fromkeys([*self.alerts, *self.pages])
        ]

    def thresholds(self) -> grafana.ThresholdsConfig:
        """Colours from the limits of the alerts."""
        found = steps([limit_of(name) for name in self.alerts])
        return grafana.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(found)

    def build(self, number: int, x: int, y: int) -> Builder[model.Panel]:
        """The library's panel with an id, at a place of the grid."""
        raise NotImplementedError


@dataclass(frozen=True)
class Lines(Panel):
    """Curves over time."""

    queries: Sequence[Query] = ()
    stacked: bool = False
    top: float | None = None

    def build(self, number: int, x: int, y: int) -> Builder[model.Panel]:
        legend = common.VizLegendOptions().show_legend(True).display_mode(kinds.LegendDisplayMode.LIST)
        panel = (
            timeseries.Panel()
            .id(number)
            .title(self.title)
            .description(self.description)
            .unit(self.unit)
            .datasource(PROMETHEUS)
            .grid_pos(place(self, x, y))
            .links(self.links())
            .thresholds(self.thresholds())
            .legend(legend.placement(kinds.LegendPlacement.BOTTOM))
            .tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI))
            .fill_opacity(30 if self.stacked else 5)
            .targets(
                [promql(query, letter) for query, letter in zip(self.queries, ascii_uppercase, strict=False)]
            )
        )
        if self.alerts:
            line = common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
            panel.thresholds_style(line)
        if self.stacked:
            panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
        if self.top is not None:
            panel.min(0).max(self.top)
        return panel


@dataclass(frozen=True)
class Number(Panel):
    """The last value of one query, large; coloured where an alert gives a limit."""

    query: Query = Query("")
    decimals: int | None = None
    words: dict[str, str] = field(default_factory=dict)

    width = 4
    height = 4

    def build(self, number: int, x: int, y: int) -> Builder[model.Panel]:
        panel = (
            stat.Panel()
            .id(number)
            .title(self.title)
            .description(self.description)
            .unit(self.unit)
            .datasource(PROMETHEUS)
            .grid_pos(place(self, x, y))
            .links(self.links())
            .thresholds(self.thresholds())
            .color_mode(kinds.BigValueColorMode.VALUE if self.alerts else kinds.BigValueColorMode.NONE)
            .graph_mode(kinds.BigValueGraphMode.AREA)
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
            .targets([promql(self.query, "A")])
        )
        if self.decimals is not None:
            panel.decimals(self.decimals)
        if self.words:
            options = {value: model.ValueMappingResult(text=text) for value, text in self.words.items()}
            panel.mappings([model.ValueMap(options=options)])
        return panel


@dataclass(frozen=True)
class Table(Panel):
    """One row a series with its value now."""

    query: Query = Query("")

    def build(self, number: int, x: int, y: int) -> Builder[model.Panel]:
        query = promql(self.query, "A").instant().format(PromQueryFormat.TABLE)
        return rows_of(self, number, x, y).datasource(PROMETHEUS).targets([query])


@dataclass(frozen=True)
class LedgerTable(Panel):
    """Rows of the relay's database: the one kind of panel that asks PostgreSQL (``LEDGER``)."""

    sql: str = ""

    width = 12
    height = 9

    def build(self, number: int, x: int, y: int) -> Builder[model.Panel]:
        return rows_of(self, number, x, y).datasource(LEDGER).targets([Sql(self.sql)])


class Sql(AnyQuery, Builder[AnyQuery]):
    """A query of Grafana's PostgreSQL data source, for which the library has no class."""

    def __init__(self, text: str) -> None:
        self.text = text

    def build(self) -> AnyQuery:
        return self

    def to_json(self) -> dict[str, object]:
        """As Grafana stores it."""
        return {
            "refId": "A",
            "datasource": LEDGER,
            "editorMode": "code",
            "format": "table",
            "rawQuery": True,
            "rawSql": self.text,
        }


@dataclass(frozen=True)
class Section:
    """A row of the board: a heading and its panels, from left to right, then below."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Board:
    """A board; ``uid`` is its address and the name of its file."""

    uid: str
    title: str
    description: str
    sections: Sequence[Section]
    hours: int = 6

    def build(self) -> model.Dashboard:
        """The library's dashboard."""
        board = (
            grafana.Dashboard(self.title)
            .uid(self.uid)
            .description(self.description)
            .tags([TAG])
            .refresh("30s")
            .time(f"now-{self.hours}h", "now")
            .timezone("utc")
            .tooltip(model.DashboardCursorSync.CROSSHAIR)
            .editable()
            .with_variable(pages())
            .link(other_boards())
        )
        for annotation in events():
            board.annotation(annotation)
        number, y = 0, 0
        for section in self.sections:
            number += 1
            board.with_row(grafana.Row(section.title).id(number).grid_pos(model.GridPos(1, COLUMNS, 0, y)))
            y += 1
            x, deepest = 0, 0
            for panel in section.panels:
                if x + panel.width > COLUMNS:
                    x, y, deepest = 0, y + deepest, 0
                number += 1
                board.with_panel(panel.build(number, x, y))
                x, deepest = x + panel.width, max(deepest, panel.height)
            y += deepest
        return board.build()


def place(panel: Panel, x: int, y: int) -> model.GridPos:
    """Where a panel stands, and its size."""
    return model.GridPos(panel.height, panel.width, x, y)


def promql(query: Query, letter: str) -> Dataquery:
    """A query of Prometheus; its legend is all labels where none is given."""
    legend = query.legend or "__auto"
    return Dataquery().ref_id(letter).datasource(PROMETHEUS).expr(query.expr.strip()).legend_format(legend)


def rows_of(panel: Panel, number: int, x: int, y: int) -> table.Panel:
    """A table without its query."""
    return (
        table.Panel()
        .id(number)
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .grid_pos(place(panel, x, y))
        .links(panel.links())
        .thresholds(panel.thresholds())
        .show_header(True)
    )


def steps(limits: Sequence[Limit]) -> list[model.Threshold]:
    """Grafana's steps, each from its value upwards; ValueError where limits look in different directions."""
    if not limits:
        return [model.Threshold(None, "green")]
    operators = {limit.operator for limit in limits}
    if len(operators) > 1:
        raise ValueError(f"limits in different directions: {limits}")
    ordered = sorted(limits, key=lambda limit: limit.number)
    if operators == {"<"}:
        colours = [COLOURS[limit.severity] for limit in ordered] + ["green"]
        values: list[float | None] = [None, *(limit.number for limit in ordered)]
        return [model.Threshold(value, colour) for value, colour in zip(values, colours, strict=True)]
    if operators == {"=="} and ordered[0].number < 1:
        # What is bad at 0 or at one half is good above it.
        bad = ordered[0]
        return [model.Threshold(None, COLOURS[bad.severity]), model.Threshold(bad.number + 0.01, "green")]
    above = [model.Threshold(limit.number or JUST_ABOVE_ZERO, COLOURS[limit.severity]) for limit in ordered]
    return [model.Threshold(None, "green"), *above]


def pages() -> Builder[model.VariableModel]:
    """Where the runbook pages are read: whoever serves them elsewhere changes this one variable."""
    return grafana.ConstantVariable("pages").label("Runbook pages").value("/runbooks")


def other_boards() -> Builder[model.DashboardLink]:
    """A menu of all boards, which keeps the time."""
    link = grafana.DashboardLink("Boards").type(model.DashboardLinkType.DASHBOARDS)
    return link.tags([TAG]).as_dropdown(True).keep_time(True)


def events() -> list[Builder[Any]]:
    """What happened, across all panels: releases, failovers, alerts."""
    return [
        event("Releases and restarts", "blue", RESTARTS, "relay restarted on {{instance}}"),
        event("Failovers", "purple", FAILOVERS, "PostgreSQL has another primary"),
        event("Alerts", "red", FIRING, "{{alertname}} {{instance}}"),
    ]


RESTARTS = 'changes(process_start_time_seconds{job="relay"}[2m]) > 0'
FAILOVERS = (
    "max by (scope) (patroni_postgres_timeline) > max by (scope) (patroni_postgres_timeline offset 1m)"
)
FIRING = 'ALERTS{alertstate="firing", severity!="none"}'


def event(name: str, colour: str, expr: str, title: str) -> Builder[Any]:
    """An annotation of Prometheus's."""
    return (
        grafana.AnnotationQuery()
        .name(name)
        .datasource(PROMETHEUS)
        .enable(True)
        .icon_color(colour)
        .expr(expr)
        .step("60s")
        .title_format(title)
    )
