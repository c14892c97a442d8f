"""Grafana's JSON from plain values: panels in rows, and the board around them. boards.py says what is on each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
Kind = Literal["timeseries", "stat", "table", "state-timeline", "bargauge"]

SCHEMA = 39  # of the JSON: Grafana 10.4 and later
WIDTH = 24  # columns of a board
HEIGHT = 8  # lines of a panel
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCOPE = 'job=~"$job", instance=~"$instance"'
OURS = re.compile(r"\b(lifelist_\w+)(?:\{([^}]*)\})?")


@dataclass(frozen=True, slots=True)
class Query:
    """An expression in PromQL, and what its series are called: {{label}} stands for a label's value."""

    expression: str
    legend: str = ""
    band: bool = False  # the end of an interval: a thin line without fill


@dataclass(frozen=True, slots=True)
class Panel:
    """What is drawn. `unit` is one of Grafana's: percentunit for shares, s for seconds, reqps …"""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 8
    most: float | None = None  # of the axis
    colours: tuple[tuple[float | None, str], ...] = ((None, "green"),)  # from which value on which


def scoped(expression: str) -> str:
    """The same of the jobs and instances that are chosen on the board."""
    return OURS.sub(lambda m: f"{m[1]}{{{SCOPE}{f', {m[2]}' if m[2] else ''}}}", expression)


def board(uid: str, title: str, description: str, rows: Sequence[tuple[str, Sequence[Panel]]]) -> Json:
    """A board of rows, (title, panels) each. Every swap is marked on it."""
    panels: list[Json] = []
    y = 0
    for name, members in rows:
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": name, "collapsed": False, "gridPos": place, "panels": []}
        )
        y, x = y + 1, 0
        for panel in members:
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            place = {"x": x, "y": y, "w": panel.width, "h": HEIGHT}
            panels.append(_panel(len(panels) + 1, panel, place))
            x += panel.width
        y += HEIGHT
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["lifelist"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,  # the same moment is shown on all panels
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource(), _variable("job"), _variable("instance", 'job=~"$job"')]},
        "annotations": {"list": [_swaps()]},
        "links": [
            {"type": "dashboards", "title": "Lifelist", "tags": ["lifelist"], "asDropdown": True, "includeVars": True,
             "keepTime": True}
        ],
        "panels": panels,
    }  # fmt: skip


def _panel(number: int, panel: Panel, place: Json) -> Json:
    bands = [query.legend for query in panel.queries if query.band]
    steps = [{"value": value, "color": colour} for value, colour in panel.colours]
    defaults: Json = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.unit != "none":
        defaults["min"] = 0
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        defaults["custom"] = {"lineWidth": 2, "fillOpacity": 5, "showPoints": "auto", "spanNulls": True}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [_target(query, panel.kind, place_) for place_, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults, "overrides": [_band(legend) for legend in bands]},
        "options": _OPTIONS[panel.kind],
    }


_OPTIONS: dict[Kind, Json] = {
    "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}, "colorMode": "value", "graphMode": "area"},
    "bargauge": {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}, "orientation": "horizontal"},
    "state-timeline": {"showValue": "never", "mergeValues": True, "legend": {"displayMode": "list"}},
    "table": {"showHeader": True, "footer": {"show": False}},
}  # fmt: skip


def _target(query: Query, kind: Kind, place: int) -> Json:
    made: Json = {
        "refId": chr(ord("A") + place),
        "datasource": SOURCE,
        "expr": scoped(query.expression),
        "legendFormat": query.legend or "__auto",
    }
    if kind in ("table", "bargauge"):
        made |= {"instant": True, "range": False, "format": "table" if kind == "table" else "time_series"}
    return made


def _band(legend: str) -> Json:
    """Thin and dashed: the end of an interval is not to be taken for a figure."""
    name = re.sub(r"\\{\\{\w+\\}\\}", ".+", re.escape(legend))
    line = {"lineWidth": 1, "fillOpacity": 0, "lineStyle": {"fill": "dash", "dash": [4, 6]}}
    properties = [{"id": f"custom.{name_}", "value": value} for name_, value in line.items()]
    return {"matcher": {"id": "byRegexp", "options": f"/^{name}$/"}, "properties": properties}


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "current": {},
    }


def _variable(name: str, of: str = "") -> Json:
    selector = f"lifelist_replicas_reporting{{{of}}}" if of else "lifelist_replicas_reporting"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values({selector}, {name})",
        "refresh": 2,  # when the range of time changes
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
        "sort": 1,
        "current": {"text": "All", "value": "$__all"},
    }


def _swaps() -> Json:
    return {
        "name": "swaps",
        "enable": True,
        "datasource": SOURCE,
        "expr": f"changes({scoped('lifelist_last_promotion_timestamp_seconds')}[$__interval]) > 0",
        "step": "30s",
        "titleFormat": "another version is live",
        "iconColor": "purple",
    }
