"""Prometheus and promtool, where they are installed; and what our rules and boards say, as plain values."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from lifelist.monitoring.boards import boards

RULES = Path(str(files("lifelist.deploy").joinpath("monitoring", "rules.yaml")))

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="there is no promtool on PATH (Debian: apt install prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="there is no prometheus on PATH (Debian: apt install prometheus)"
)


@cache
def rules() -> list[dict[str, Any]]:
    """Every recording and alerting rule."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerting rules, by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def expressions(interval: str = "1m") -> Iterator[tuple[str, str]]:
    """(where it stands, PromQL) of every panel and annotation, with Grafana's variables filled in."""
    for name, board in boards().items():
        for place, expression in _of_board(board):
            for variable, value in _VARIABLES.items():
                expression = expression.replace(variable, value)
            yield f"{name}: {place}", re.sub(r"\$__(rate_)?interval", interval, expression)


_VARIABLES = {"$job": ".+", "$instance": ".+"}


def _of_board(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in board["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def promtool(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)


def written(file: Path, value: Any) -> Path:
    """A YAML file; JSON is YAML."""
    file.write_text(json.dumps(value))
    return file
