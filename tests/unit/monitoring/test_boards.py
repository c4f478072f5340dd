"""The boards: their JSON is what the code writes, and Grafana and Prometheus can read all of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.dashboards import limits
from monitoring.dashboards.limits import Limit, NoLimit, limit_of
from monitoring.dashboards.panels import steps
from monitoring.dashboards.write import NAMES, boards, text_of, write
from tests import boards as committed
from tests.programs import run

RUNBOOKS = Path(__file__).resolve().parents[3] / "monitoring/runbooks"
SOURCES = {"prometheus": "prometheus", "ledger": "grafana-postgresql-datasource"}
BOARDS = committed.boards()
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in committed.panels(board)
]


def test_the_json_is_what_the_code_writes(tmp_path: Path) -> None:
    """`make boards` after a change; a board that is gone leaves no file."""
    (tmp_path / "old.json").write_text("{}")
    write(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert written == {path.name: path.read_text() for path in committed.DIRECTORY.glob("*.json")}


def test_every_board_has_a_module_and_an_address() -> None:
    modules = {path.stem for path in committed.DIRECTORY.parent.glob("*.py")}
    assert modules - {"__init__", "__main__", "limits", "panels", "write"} == set(NAMES)
    uids = [board["uid"] for board in BOARDS.values()]
    assert len(set(uids)) == len(uids) == len(NAMES)
    assert all(re.fullmatch(r"[a-z-]{1,40}", uid) for uid in uids)
    assert [text_of(board) for board in boards()] == [text_of(board) for board in boards()]


def test_promtool_reads_every_expression(tmp_path: Path) -> None:
    check_promql(tmp_path, {one.expr for one in committed.asked()} | committed.events())


@pytest.mark.parametrize("wrong", ["sum(rate(a[5m])", "rate(a[$interval])", "a b", "sum by model (a)"])
def test_a_wrong_expression_is_found(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(Exception, match="promtool"):
        check_promql(tmp_path, {wrong})


def check_promql(directory: Path, expressions: set[str]) -> None:
    rules = [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(sorted(expressions))]
    path = directory / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run("promtool", "check", "rules", "--lint=none", str(path))


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_stands_on_the_grid(name: str) -> None:
    """No panel covers another, none leaves the 24 columns; ids are unique."""
    board = BOARDS[name]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(number > 0 for number in ids)
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        for cell in cells(place):
            assert taken.setdefault(cell, panel["title"]) == panel["title"], (taken[cell], panel["title"])


def cells(place: dict[str, int]) -> set[tuple[int, int]]:
    columns = range(place["x"], place["x"] + place["w"])
    return {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_links_to_the_others_and_shows_events(name: str) -> None:
    board = BOARDS[name]
    assert board["description"]
    menu = board["links"][0]
    assert menu["type"] == "dashboards"
    assert set(menu["tags"]) <= set(board["tags"])
    assert [one["name"] for one in board["annotations"]["list"]] == [
        "Releases and restarts",
        "Failovers",
        "Alerts",
    ]
    assert all(SOURCES[one["datasource"]["uid"]] for one in board["annotations"]["list"])


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_a_source_that_there_is(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    letters = [target["refId"] for target in panel["targets"]]
    assert len(set(letters)) == len(letters)
    for one in [panel, *panel["targets"]]:
        assert SOURCES[one["datasource"]["uid"]] == one["datasource"]["type"]
    for target in panel["targets"]:
        wanted = "expr" if target["datasource"]["uid"] == "prometheus" else "rawSql"
        assert target[wanted].strip()


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_links_to_pages_that_there_are(panel: dict[str, Any]) -> None:
    for link in panel.get("links", []):
        page = re.fullmatch(r"\$\{pages\}/(\w+\.md)", link["url"])
        assert page
        assert (RUNBOOKS / page[1]).is_file()


def test_every_alert_is_on_a_board() -> None:
    """Whoever has the page finds the curve: a panel links to the page of every alert."""
    linked = {
        link["url"].rpartition("/")[2].removesuffix(".md")
        for board in BOARDS.values()
        for panel in committed.panels(board)
        for link in panel.get("links", [])
    }
    assert set(limits.alerts()) - linked == NOT_LINKED


# The image registry is probed, and has no figures that a panel could show.
NOT_LINKED = {"RegistryDown"}


@pytest.mark.parametrize(
    ("alert", "expected"),
    [
        ("RelayErrorRatioHigh", Limit(">", 0.05, "critical")),
        ("HostDiskFull", Limit("<", 0.05, "critical")),
        ("BackupTooOld", Limit(">", 26 * 3600, "critical")),
        ("PostgresReplicationLagHigh", Limit(">", 2**26, "warning")),
        ("PostgresTransactionIdsHigh", Limit(">", 5e8, "warning")),
        ("FailoverWatchNotReady", Limit("==", 0, "warning")),
        ("SloBudgetSpent", Limit("<", 0, "warning")),
    ],
)
def test_limits_are_those_of_the_rules(alert: str, expected: Limit) -> None:
    found = limit_of(alert)
    assert (found.operator, found.number) == (expected.operator, expected.number)
    assert found.severity == limits.alerts()[alert]["labels"]["severity"]


@pytest.mark.parametrize("alert", ["NoSuchAlert", "PostgresDiskFillsSoon"])
def test_an_alert_without_a_number_has_no_limit(alert: str) -> None:
    with pytest.raises(NoLimit, match=alert):
        limit_of(alert)


@pytest.mark.parametrize(
    ("given", "value", "colour"),
    [
        ([Limit(">", 0, "critical")], 0, "green"),
        ([Limit(">", 0, "critical")], 1, "red"),
        ([Limit("<", 0.05, "critical"), Limit("<", 0.15, "warning")], 0.04, "red"),
        ([Limit("<", 0.05, "critical"), Limit("<", 0.15, "warning")], 0.1, "orange"),
        ([Limit("<", 0.05, "critical"), Limit("<", 0.15, "warning")], 0.5, "green"),
        ([Limit("==", 0, "warning")], 0, "orange"),
        ([Limit("==", 0, "warning")], 1, "green"),
        ([Limit("==", 1, "warning")], 1, "orange"),
        ([Limit("==", 1, "warning")], 0, "green"),
        ([], -5, "green"),
    ],
)
def test_colours_follow_the_limits(given: list[Limit], value: float, colour: str) -> None:
    """As Grafana reads them: the last step whose value is not above the figure."""
    found = [step for step in steps(given) if step.value is None or step.value <= value]
    assert found[-1].color == colour


def test_limits_that_look_in_different_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="different directions"):
        steps([Limit("<", 1, "warning"), Limit(">", 2, "warning")])
