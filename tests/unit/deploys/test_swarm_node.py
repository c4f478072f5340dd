"""The program that takes a node out of the swarm."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest

from tests.unit.deploys.scripts import load


def entry(name: str, *, state: str = "ready", manager: bool = True, reachable: bool = True) -> dict[str, Any]:
    status = {"ManagerStatus": {"Reachability": "reachable" if reachable else "unreachable"}}
    return {
        "ID": f"id-{name}",
        "Description": {"Hostname": name},
        "Status": {"State": state},
        **(status if manager else {}),
    }


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("swarm/relay_swarm_node.py")
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)
    return module


def removal(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]], name: str
) -> tuple[int, list[str]]:
    """Exit code, and what was asked of the engine."""
    asked: list[str] = []
    tasks = iter(["one two", "", "Running 3 seconds ago", ""])

    def docker(*words: str) -> str:
        asked.append(" ".join(words))
        if words[:2] == ("node", "inspect"):
            return json.dumps(nodes)
        return next(tasks) if words[:2] == ("node", "ps") else "ids"

    monkeypatch.setattr(tool, "docker", docker)
    return tool.main(["remove", name]), [line for line in asked if not line.startswith("node ls")]


def test_a_node_that_answers_is_drained_first(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [entry(name) for name in ("app1", "app2", "app3", "app4")]
    code, asked = removal(tool, monkeypatch, nodes, "app4")
    assert code == 0
    verbs = [line for line in asked if "inspect" not in line and "node ps" not in line]
    assert verbs == [
        "node update --availability drain id-app4",
        "node demote id-app4",
        "node rm --force id-app4",
    ]
    assert len([line for line in asked if "node ps" in line]) == 4


def test_one_that_is_down_is_removed_at_once(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [entry("app1"), entry("app2"), entry("app3"), entry("app4", state="down", reachable=False)]
    code, asked = removal(tool, monkeypatch, nodes, "id-app4")
    assert (code, asked[-2:]) == (0, ["node demote id-app4", "node rm --force id-app4"])
    assert not [line for line in asked if "drain" in line]


def test_a_worker_is_not_demoted(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [entry("app1"), entry("app4", state="down", manager=False)]
    _, asked = removal(tool, monkeypatch, nodes, "app4")
    assert not [line for line in asked if "demote" in line]


@pytest.mark.parametrize(
    ("others", "code"),
    [((True, True), 0), ((True, False), 2), ((True, True, False), 0), ((True, False, False), 2), ((), 2)],
)
def test_the_managers_that_stay_must_have_a_quorum(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, others: tuple[bool, ...], code: int
) -> None:
    nodes = [entry(f"app{number}", reachable=reachable) for number, reachable in enumerate(others)]
    found, asked = removal(tool, monkeypatch, [*nodes, entry("app9", state="down", reachable=False)], "app9")
    assert found == code
    assert any("node rm" in line for line in asked) == (code == 0)


def test_a_name_that_two_nodes_have_is_refused(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = entry("app3", state="down") | {"ID": "id-old"}
    code, asked = removal(tool, monkeypatch, [entry("app3"), twin], "app3")
    assert code == 2
    assert not [line for line in asked if "rm" in line]
    assert "id-old (app3, down)" in capsys.readouterr().err
