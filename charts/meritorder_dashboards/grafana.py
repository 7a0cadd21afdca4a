"""Dashboards, rows, panels and variables in few words, and Grafana's JSON from them.

Panels flow: each takes the next free place of the 24 columns, a row begins a new line, so that nothing can
overlap. Numbers of panels follow from their order. Equal input gives equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

SCHEMA_VERSION: Final = 39
"""Of Grafana 11; 10 and later read it, newer ones bring it up to theirs."""
COLUMNS: Final = 24
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
TAG: Final = "meritorder"
RUNBOOKS_VARIABLE: Final = "runbooks"

BLUE, GREEN, YELLOW, ORANGE, RED = "blue", "green", "yellow", "orange", "red"

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL of a panel, and how its series are called (`{{label}}`)."""

    expr: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table: one query, or one label of all of them."""

    title: str
    query: str = ""
    label: str = ""
    unit: str = "none"
    decimals: int | None = None
    thresholds: tuple[tuple[float, str], ...] = ()
    words: tuple[tuple[str, str, str], ...] = ()
    """(value, word, colour) instead of the number."""
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel. Thresholds are (from, colour), the first one from the bottom."""

    kind: str
    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "none"
    width: int = 8
    height: int = 8
    decimals: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    thresholds: tuple[tuple[float, str], ...] = ()
    words: tuple[tuple[str, str, str], ...] = ()
    columns: tuple[Column, ...] = ()
    stack: str = "none"
    """none, normal or percent."""
    bars: bool = False
    nothing: str = ""
    """What is shown where there is no data."""
    colours: tuple[tuple[str, str], ...] = ()
    """(name of a series, its colour)."""
    dashed: tuple[str, ...] = ()
    """Names of series that are bounds: drawn as dashed lines, never stacked."""
    alerts: tuple[str, ...] = ()
    """Alerts whose runbooks say what to do when this panel looks bad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A heading and the panels under it; a folded row keeps them out of sight."""

    title: str
    panels: tuple[Panel, ...]
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A choice at the top of the dashboard, from the values of a label."""

    name: str
    title: str
    values: str
    """`label_values(...)`."""
    description: str
    many: bool = True
    """Several values at once, and all of them at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """Moments that are marked in all panels."""

    name: str
    expr: str
    colour: str
    title: str
    text: str
    tags: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One dashboard; `uid` is part of its URL and never changes."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    annotations: tuple[Annotation, ...] = ()
    hours: int = 3
    top: tuple[Panel, ...] = field(default=())
    """The line of figures above all rows."""


def to_json(dashboard: Dashboard, *, runbooks: str) -> str:
    """The file that Grafana imports. `runbooks` is where the runbooks are published, with its `#`."""
    return json.dumps(model(dashboard, runbooks=runbooks), indent=2, ensure_ascii=False) + "\n"


def model(dashboard: Dashboard, *, runbooks: str) -> Json:
    """The same as data."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,  # one crosshair in all panels
        "schemaVersion": SCHEMA_VERSION,
        "refresh": "30s",
        "time": {"from": f"now-{dashboard.hours}h", "to": "now"},
        "links": [_other_dashboards()],
        "templating": {"list": [_datasource(), *map(_variable, dashboard.variables), _runbooks(runbooks)]},
        "annotations": {"list": [_annotation(one) for one in dashboard.annotations]},
        "panels": list(_placed(dashboard)),
    }


def _other_dashboards() -> Json:
    return {
        "type": "dashboards",
        "title": "Meritorder",
        "tags": [TAG],
        "icon": "external link",
        "tooltip": "The other dashboards, for the same time, namespace and policy",
        "url": "",
        "asDropdown": False,
        "targetBlank": False,
        "includeVars": True,
        "keepTime": True,
    }


def _datasource() -> Json:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "description": "The Prometheus that reads operator, router servers and routers.",
        "query": "prometheus",
        "hide": 0,
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "regex": "",
        "options": [],
        "current": {},
        "skipUrlSync": False,
    }


def _variable(variable: Variable) -> Json:
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.title,
        "description": variable.description,
        "datasource": DATASOURCE,
        "query": {"query": variable.values, "refId": f"variable-{variable.name}"},
        "hide": 0,
        "refresh": 2,  # also when the time range changes: policies come and go
        "sort": 1,
        "multi": variable.many,
        "includeAll": variable.many,
        **({"allValue": ".+"} if variable.many else {}),
        "regex": "",
        "options": [],
        "current": {"text": ["All"], "value": ["$__all"]} if variable.many else {},
        "skipUrlSync": False,
    }


def _runbooks(url: str) -> Json:
    # A text box, since a variable of type "constant" cannot be given in a URL.
    return {
        "type": "textbox",
        "name": RUNBOOKS_VARIABLE,
        "label": "Runbooks",
        "description": "Where docs/runbooks.md is published; the name of an alert is added.",
        "query": url,
        "hide": 2,
        "options": [{"text": url, "value": url, "selected": True}],
        "current": {"text": url, "value": url},
        "skipUrlSync": False,
    }


def _annotation(annotation: Annotation) -> Json:
    return {
        "name": annotation.name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": annotation.colour,
        "expr": annotation.expr,
        "step": "60s",
        "titleFormat": annotation.title,
        "textFormat": annotation.text,
        "tagKeys": annotation.tags,
        "useValueForTime": "false",
    }


# Places.


def _placed(dashboard: Dashboard) -> Iterator[Json]:
    number, y = 1, 0
    for panel, place in _flow(dashboard.top, y):
        yield _panel(panel, number, place)
        number, y = number + 1, max(y, place["y"] + place["h"])
    for row in dashboard.rows:
        inner: list[Json] = []
        heading: Json = {
            "type": "row",
            "id": number,
            "title": row.title,
            "collapsed": row.folded,
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            "panels": inner if row.folded else [],
        }
        number, y = number + 1, y + 1
        for panel, place in _flow(row.panels, y):
            inner.append(_panel(panel, number, place))
            number = number + 1
        if not row.folded:
            y = max([y, *(one["gridPos"]["y"] + one["gridPos"]["h"] for one in inner)])
        yield heading
        if not row.folded:
            yield from inner


def _flow(panels: Sequence[Panel], y: int) -> Iterator[tuple[Panel, dict[str, int]]]:
    x, deepest = 0, y
    for panel in panels:
        if x + panel.width > COLUMNS:
            x, y = 0, deepest
        yield panel, {"x": x, "y": y, "w": panel.width, "h": panel.height}
        x, deepest = x + panel.width, max(deepest, y + panel.height)


# Panels.


def _panel(panel: Panel, number: int, place: dict[str, int]) -> Json:
    defaults: Json = {"unit": panel.unit, "color": {"mode": _colour_mode(panel)}}
    defaults |= {"thresholds": _thresholds(panel.thresholds), "mappings": _mappings(panel.words), "links": []}
    for key, value in (("decimals", panel.decimals), ("min", panel.minimum), ("max", panel.maximum)):
        if value is not None:
            defaults[key] = value
    if panel.nothing:
        defaults["noValue"] = panel.nothing
    overrides = [_by_name(name, "color", {"mode": "fixed", "fixedColor": to}) for name, to in panel.colours]
    if panel.kind == "timeseries":
        defaults["custom"] = _drawn(panel)
        for name in panel.dashed:
            overrides += [
                _by_name(name, "custom.lineStyle", {"fill": "dash", "dash": [10, 10]}),
                _by_name(name, "custom.fillOpacity", 0),
                _by_name(name, "custom.stacking", {"mode": "none", "group": "A"}),
            ]
    if panel.kind == "table":
        defaults["custom"] = {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True}
        overrides += [
            _by_name(column.title, key, to) for column in panel.columns for key, to in _cell(column)
        ]
    made: Json = {
        "type": panel.kind,
        "id": number,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "links": [
            {
                "title": f"Runbook: {alert}",
                "url": f"${{{RUNBOOKS_VARIABLE}}}{alert.lower()}",
                "targetBlank": True,
            }
            for alert in panel.alerts
        ],
        "targets": [_target(panel, query, index) for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "options": _options(panel),
    }
    if panel.kind == "table":
        made["transformations"] = _joined(panel.columns)
    return made


def _target(panel: Panel, query: Query, index: int) -> Json:
    at_once = panel.kind in ("stat", "table")
    return {
        "refId": chr(ord("A") + index),
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend,
        "editorMode": "code",
        "instant": at_once,
        "range": not at_once,
        **({"format": "table"} if panel.kind == "table" else {}),
    }


def _colour_mode(panel: Panel) -> str:
    return "palette-classic-by-name" if panel.kind == "timeseries" else "thresholds"


def _thresholds(steps: Sequence[tuple[float, str]]) -> Json:
    bottom, *above = steps or ((0, BLUE),)
    return {
        "mode": "absolute",
        "steps": [{"value": None, "color": bottom[1]}, *({"value": at, "color": to} for at, to in above)],
    }


def _mappings(words: Sequence[tuple[str, str, str]]) -> list[Json]:
    if not words:
        return []
    options = {
        value: {"text": word, "color": colour, "index": index}
        for index, (value, word, colour) in enumerate(words)
    }
    return [{"type": "value", "options": options}]


def _drawn(panel: Panel) -> Json:
    return {
        "drawStyle": "bars" if panel.bars else "line",
        "lineWidth": 1,
        "fillOpacity": 80 if panel.bars else 40 if panel.stack != "none" else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": panel.stack, "group": "A"},
    }


def _by_name(name: str, key: str, value: Any) -> Json:
    return {"matcher": {"id": "byName", "options": name}, "properties": [{"id": key, "value": value}]}


def _cell(column: Column) -> Iterator[tuple[str, Any]]:
    if column.query:
        yield "unit", column.unit
    if column.decimals is not None:
        yield "decimals", column.decimals
    if column.thresholds:
        yield "thresholds", _thresholds(column.thresholds)
    if column.words:
        yield "mappings", _mappings(column.words)
    if column.thresholds or column.words:
        yield "custom.cellOptions", {"type": "color-text"}
    if column.link:
        yield "links", [{"title": f"Show this {column.label}", "url": column.link}]


def _options(panel: Panel) -> Json:
    if panel.kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "orientation": "auto",
            "textMode": "auto" if len(panel.queries) == 1 else "value_and_name",
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
        }
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {"showHeader": True, "footer": {"show": False, "reducer": [], "fields": ""}, "cellHeight": "sm"}


def _joined(columns: Sequence[Column]) -> list[Json]:
    # Queries of a table come as one frame each, its value named `Value #A`, `Value #B` ...
    values = [column for column in columns if column.query]
    named = {f"Value #{chr(ord('A') + index)}": column.title for index, column in enumerate(values)}
    named |= {column.label: column.title for column in columns if column.label}
    kept = {title: source for source, title in named.items()}
    order = {kept[column.title]: index for index, column in enumerate(columns)}
    return [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": named},
        },
    ]
