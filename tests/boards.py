"""What tests read out of the committed boards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.promql import metrics_in

DIRECTORY = Path(__file__).resolve().parents[1] / "monitoring/dashboards/json"


@dataclass(frozen=True)
class Asked:
    """A query of Prometheus: whose, and its text with Grafana's variables filled in."""

    board: str
    title: str
    expr: str


def boards() -> dict[str, dict[str, Any]]:
    """Every board by its file's name."""
    return {path.name: json.loads(path.read_text()) for path in sorted(DIRECTORY.glob("*.json"))}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels of a board that show something: all but the headings of rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def filled_in(expr: str) -> str:
    """PromQL as Prometheus takes it."""
    return expr.replace("$__rate_interval", "5m")


def asked() -> Iterator[Asked]:
    """Every query of Prometheus in every panel."""
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel["targets"]:
                if "expr" in target:
                    yield Asked(name, panel["title"], filled_in(target["expr"]))


def events() -> set[str]:
    """The queries of all annotations."""
    return {one["expr"] for board in boards().values() for one in board["annotations"]["list"]}


def named_by_boards() -> set[str]:
    """Metrics that panels or annotations name."""
    return {name for expr in [*(one.expr for one in asked()), *events()] for name in metrics_in(expr)}
