"""The commands `node` and `edge`, and what `plan` says of what is drained."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from deploys.lib import fleet
from deploys.roles import edge
from deploys.run import cli, drains

ABOUT = {"name": "app1", "since": 0.0, "reason": "me: kernel"}


def state(own: str = "serve", open_calls: int = 0, *, drained: bool = True) -> str:
    nodes = {"172.30.77.21:8000": ABOUT | {"open": open_calls}} if drained else {}
    return json.dumps({"state": own, "nodes": [], "drained": nodes})


@pytest.fixture
def edges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the edges answer to `status`, by address; `asked` are the other commands that they got."""
    answers: dict[str, Any] = {"172.30.77.11": state(), "172.30.77.12": state(), "asked": []}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if "status" in command[-1]:
            return subprocess.CompletedProcess(command, 0, answers[command[-2]], "")
        answers["asked"].append((command[-2], command[-1]))
        done = subprocess.CompletedProcess(command, 0, "done", "")
        return cast(subprocess.CompletedProcess[str], answers.get("done", done))

    monkeypatch.setattr("deploys.run.remote.subprocess.run", run)
    monkeypatch.setattr("deploys.lib.fleet.state_directory", lambda: tmp_path)
    monkeypatch.setattr("deploys.run.lock.commit", lambda: "")
    return answers


def test_a_node_is_drained_at_every_edge(edges: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["node", "drain", "sandbox", "app1", "--reason", "kernel"]) == 0
    assert [where for where, _ in edges["asked"]] == ["172.30.77.11", "172.30.77.12"]
    assert f"{edge.TOOL} node-drain 172.30.77.21:8000 --name app1 --reason" in edges["asked"][0][1]
    assert "no call is open on app1" in capsys.readouterr().out


def test_calls_that_are_open_are_told(edges: Any, capsys: pytest.CaptureFixture[str]) -> None:
    edges["172.30.77.12"] = state(open_calls=3)
    words = ["node", "drain", "sandbox", "app1", "--reason", "kernel", "--wait", "0"]
    assert cli.main(words) == drains.STILL_OPEN
    assert "3 connections to app1 are open" in capsys.readouterr().out


def test_an_edge_that_was_not_told_is_an_error(edges: Any, capsys: pytest.CaptureFixture[str]) -> None:
    edges["done"] = subprocess.CompletedProcess([], 2, "", "refused: the last node")
    assert cli.main(["node", "drain", "sandbox", "app1", "--reason", "kernel"]) == 1
    assert "edge1: refused: the last node" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["node", "drain", "sandbox", "ops1", "--reason", "x"],
        ["node", "return", "sandbox", "app9"],
        ["edge", "drain", "sandbox", "app1", "--reason", "x"],
        ["edge", "serve", "sandbox", "edge9"],
    ],
)
def test_hosts_of_other_kinds_are_refused(edges: Any, words: list[str]) -> None:
    assert cli.main(words) == 1
    assert edges["asked"] == []


def test_the_last_edge_that_serves_is_not_drained(edges: Any, capsys: pytest.CaptureFixture[str]) -> None:
    edges["172.30.77.12"] = state("drain")
    assert cli.main(["edge", "drain", "sandbox", "edge1", "--reason", "x"]) == 1
    assert edges["asked"] == []
    assert "no other edge serves" in capsys.readouterr().err
    assert cli.main(["edge", "drain", "sandbox", "edge2", "--reason", "x"]) == 0


def test_plan_names_what_is_drained(sandbox_inventory: Any) -> None:
    answers = {"edge1": state("drain"), "edge2": state(drained=False)}
    hosts = list(sandbox_inventory)
    lines = list(drains.told("sandbox", hosts, lambda host, command: (True, answers[host.name])))
    assert lines[0].startswith("edge1 is drained and stays so")
    assert lines[1] == (
        "app1 is drained at edge1 but not at edge2 since 1970-01-01T00:00:00+00:00 (me: kernel) "
        "and stays so: `python -m deploys node undrain sandbox app1`"
    )
    assert list(drains.told("sandbox", hosts, lambda host, command: (True, ""))) == []
    lines = list(drains.told("sandbox", hosts, lambda host, command: (True, "damaged")))
    assert lines == ["edge1 does not say what is drained there", "edge2 does not say what is drained there"]


def test_deploys_never_touch_what_is_drained(plain_role: Any) -> None:
    outcome = plain_role(edge.edge, "edge1")
    assert not [path for path in outcome.files if path.startswith(edge.STATE)]
    unit = outcome.files["/etc/systemd/system/nginx.service.d/relay.conf"]
    assert unit.index(f"ExecReload={edge.TOOL} write") < unit.index("-s reload")
    assert f"ExecStartPre={edge.TOOL} write" in unit
    tested = next(line for line in outcome.commands if "nginx -t" in line)
    assert tested.index(f"{edge.TOOL} write") < tested.index("nginx -t")
    assert f"include {edge.STATE}/nodes.conf;" in outcome.files["/etc/nginx/relay/upstream.conf"]


def test_a_reload_writes_the_nodes_while_a_change_waits_for_it(tmp_path: Path) -> None:
    """nginx's unit runs `relay-edge write` before each reload, and a change reloads."""
    configured = tmp_path / "nodes.conf"
    configured.write_text("server 10.0.0.1:8000 max_fails=2;\nserver 10.0.0.2:8000 max_fails=2;\n")
    tool = [sys.executable, str(fleet.REPOSITORY / "templates/edge/relay_edge.py")]
    tool += [f"--configured={configured}", f"--state={tmp_path / 'state'}", "--test=true"]
    tool += [f"--figures={tmp_path / 'edge.prom'}"]
    change = [*tool, f"--reload={shlex.join([*tool, 'write'])}"]
    change += ["node-drain", "10.0.0.1:8000", "--reason", "test"]
    subprocess.run(change, check=True, timeout=20)
    assert (tmp_path / "state/nodes.conf").read_text().splitlines() == [
        "server 10.0.0.1:8000 max_fails=2 down;",
        "server 10.0.0.2:8000 max_fails=2;",
    ]


def test_figures_say_since_when_the_edge_and_its_nodes_are_out_of_service(tmp_path: Path) -> None:
    configured, figures = tmp_path / "nodes.conf", tmp_path / "exporter/edge.prom"
    configured.write_text("server 10.0.0.1:8000 max_fails=2;\nserver 10.0.0.2:8000 max_fails=2;\n")
    tool = [sys.executable, str(fleet.REPOSITORY / "templates/edge/relay_edge.py")]
    tool += [f"--configured={configured}", f"--state={tmp_path / 'state'}", f"--figures={figures}"]
    tool += ["--test=true", "--reload=true"]
    began = time.time()

    def told(*words: str) -> dict[str, float]:
        subprocess.run([*tool, *words], check=True, stdout=subprocess.DEVNULL)
        lines = [line for line in figures.read_text().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    edge_, first, second = (
        "relay_edge_drained_timestamp_seconds",
        'relay_edge_node_drained_timestamp_seconds{node="10.0.0.1:8000"}',
        'relay_edge_node_drained_timestamp_seconds{node="10.0.0.2:8000"}',
    )
    assert told("write") == {edge_: 0, first: 0, second: 0}
    drained = told("node-drain", "10.0.0.1:8000", "--reason", "test")
    assert began - 1 < drained[first] < time.time() + 1
    assert (drained[edge_], drained[second]) == (0, 0)
    since = told("drain", "--reason", "test")[edge_]
    assert began - 1 < since < time.time() + 1
    time.sleep(0.05)
    assert told("drain", "--reason", "again")[edge_] == since, "once more does not make it later"
    assert told("node-return", "10.0.0.1:8000")[first] == 0
    assert told("serve") == {edge_: 0, first: 0, second: 0}
