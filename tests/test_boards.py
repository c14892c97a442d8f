"""The Grafana boards keep to the rules of Grafana's own linter (dashboard-linter), which are written out here again."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parts_prometheus import expressions, needs_promtool, promtool, written

from lifelist.deploy import scraping
from lifelist.monitoring.boards import boards
from lifelist.monitoring.grafana import scoped

BOARDS = boards()
UNITS = {"none", "percentunit", "bytes", "s", "reqps", "cps"}  # of Grafana's, those that we have need of
DATA_SOURCES = {"$datasource", "${datasource}"}
RATES = ("rate", "irate", "increase")

Json = dict[str, Any]


def lint(board: Json) -> Iterator[str]:
    """What the linter would say, one line each."""
    variables = {one["name"]: one for one in board["templating"]["list"]}
    yield from _variables(variables)
    if board["editable"]:
        yield "uneditable-dashboard: a board that is code is not edited by hand"
    for panel in board["panels"]:
        if panel["type"] != "row":
            yield from (f"{panel['title']}: {problem}" for problem in _panel(panel))


def _variables(variables: dict[str, Json]) -> Iterator[str]:
    sources = [one for one in variables.values() if one["type"] == "datasource"]
    if len(sources) != 1 or (sources[0]["name"], sources[0]["label"]) != ("datasource", "Data source"):
        yield "template-datasource-rule: there is one, named datasource and labelled Data source"
    for name in ("job", "instance"):
        one = variables.get(name)
        if one is None or one["type"] != "query" or one["datasource"]["uid"] not in DATA_SOURCES:
            yield f"template-{name}-rule: it is a query of $datasource"
        elif (one["label"], one["multi"], one["allValue"]) != (name.capitalize(), True, ".+"):
            yield f"template-{name}-rule: it is labelled by its name, takes several values, and .+ stands for all"
    for one in (one for one in variables.values() if one["type"] == "query"):
        if not re.fullmatch(r"label_values\([a-z_]+(\{.+\})?, [a-z]+\)", one["query"]):
            yield f"template-label-promql-rule: {one['query']}"
        if one["refresh"] != 2:
            yield f"template-on-time-change-reload-rule: {one['name']}"


def _panel(panel: Json) -> Iterator[str]:
    if not panel["title"] or not panel["description"]:
        yield "panel-title-description-rule"
    if panel["datasource"]["uid"] not in DATA_SOURCES:
        yield "panel-datasource-rule"
    if panel["fieldConfig"]["defaults"]["unit"] not in UNITS:
        yield f"panel-units-rule: {panel['fieldConfig']['defaults']['unit']}"
    if not panel["targets"]:
        yield "panel-no-targets-rule"
    for target in panel["targets"]:
        expression = target["expr"]
        for metric, matchers in re.findall(r"\b(lifelist_\w+)(\{[^}]*\})?", expression):
            for name in ("job", "instance"):
                if f'{name}=~"${name}"' not in matchers:
                    yield f"target-{name}-rule: {metric}{matchers}"
            if metric.endswith("_total") and not re.search(rf"({'|'.join(RATES)})\({metric}\{{", expression):
                yield f"target-counter-agg-rule: {metric}"
        for function, interval in re.findall(rf"\b({'|'.join(RATES)})\([^\[]*\[([^\]]+)\]", expression):
            if interval != "$__rate_interval":
                yield f"target-rate-interval-rule: {function} over {interval}"


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_keeps_to_the_rules_of_grafanas_linter(name: str) -> None:
    assert list(lint(BOARDS[name])) == []


def _broken(change: str) -> Json:
    board = copy.deepcopy(BOARDS["service"])
    panel = next(panel for panel in board["panels"] if panel["type"] == "timeseries")
    variables = board["templating"]["list"]
    target = panel["targets"][0]
    match change:
        case "editable":
            board["editable"] = True
        case "unit":
            panel["fieldConfig"]["defaults"]["unit"] = "apples"
        case "description":
            panel["description"] = ""
        case "counter":
            target["expr"] = scoped("sum(lifelist_requests_total)")
        case "interval":
            target["expr"] = target["expr"].replace("$__rate_interval", "5m")
        case "job":
            target["expr"] = target["expr"].replace('job=~"$job", ', "")
        case "refresh":
            variables[1]["refresh"] = 1
        case "multi":
            variables[2]["multi"] = False
        case "source":
            panel["datasource"] = {"type": "prometheus", "uid": "mine"}
        case "targets":
            panel["targets"] = []
    return board


@pytest.mark.parametrize(
    "change",
    ["editable", "unit", "description", "counter", "interval", "job", "refresh", "multi", "source", "targets"],
)
def test_the_linter_sees_what_is_broken(change: str) -> None:
    assert list(lint(_broken(change))) != []


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_numbers_of_their_own_and_do_not_overlap(name: str) -> None:
    panels = BOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_an_expression_is_of_the_chosen_servers_only() -> None:
    here = 'job=~"$job", instance=~"$instance"'
    assert scoped("sum(lifelist_x)") == f"sum(lifelist_x{{{here}}})"
    assert (
        scoped('lifelist_x{a="b"} / on (job) lifelist_y')
        == f'lifelist_x{{{here}, a="b"}} / on (job) lifelist_y{{{here}}}'
    )


@needs_promtool
def test_every_expression_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"place:number:{k}", "expr": expression} for k, (_, expression) in enumerate(expressions())]
    assert len(rules) > 60
    checked = promtool(
        "check", "rules", written(tmp_path / "rules.yaml", {"groups": [{"name": "all", "rules": rules}]})
    )
    assert checked.returncode == 0, checked.stderr


def test_the_boards_are_written_as_grafana_reads_them(tmp_path: Path) -> None:
    made = scraping.write_boards(tmp_path / "boards")
    assert [path.name for path in made] == ["service.json", "quality.json", "rollout.json", "trainer.json"]
    for path in made:
        assert json.loads(path.read_text()) == BOARDS[path.stem]
        assert BOARDS[path.stem]["uid"] == f"lifelist-{path.stem}"
