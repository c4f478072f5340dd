"""`patch` on a fleet that is a model behind SSH: its order, what it refuses, where it stops and goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from deploys import roles
from deploys.lib.errors import DeployError
from deploys.lib.lock import held
from deploys.run import cli, drains, environment, releases, remote, silences
from deploys.run.node import records as node_records
from deploys.run.patch import one_host, pending
from deploys.run.patch.pending import Choice, Package
from deploys.run.patch.records import FILE, Records
from tests.unit.deploys import test_node as node_tests
from tests.unit.deploys.test_node import (
    ADDRESSES,
    APPS,
    Model,
    critical,
    having,
    model,
    silent,
    split,
    unfinished,
    unhealthy,
    unreachable,
    written,
)

# Fixtures.
__all__ = ["model", "written"]

OPENSSL = "openssl [1] (2 Debian-Security:12/stable-security [amd64])"
NGINX = "nginx [1] (2 Debian-Security:12/stable-security [amd64])"
BASH = "bash [5] (6 Debian:12.5/stable [amd64])"
PATCHED = [
    "app4", "app2", "app3", "app1", "edge1", "edge2", "edge3", "db2", "db3", "db4", "db5", "db1", "vault1",
    "provider1", "ops1",
]  # fmt: skip


class Killed(BaseException):
    """The command's end by kill -9."""


@dataclass
class Waiting:
    """What `patch` finds on a machine."""

    packages: list[str] = field(default_factory=list)
    reboot: bool = False
    stale: list[str] = field(default_factory=list)
    # What run on replaced files after the next update.
    will_be_stale: list[str] = field(default_factory=list)
    boot: int = 0
    failed: list[str] = field(default_factory=list)
    # Units that have failed after the next boot.
    will_fail: list[str] = field(default_factory=list)
    problem: str = ""
    addresses: list[str] = field(default_factory=list)


@dataclass
class Patched(Model):
    """The fleet, and what waits on its machines. `dies_at`: before which change the command is killed."""

    waiting: dict[str, Waiting] = field(default_factory=lambda: {name: Waiting() for name in ADDRESSES})
    silenced: dict[str, str] = field(default_factory=dict)
    silences: dict[str, dict[str, Any]] = field(default_factory=dict)
    drained_edges: set[str] = field(default_factory=set)
    drained_nodes: set[str] = field(default_factory=set)
    does_not_return: str = ""
    along: str = ""
    replicas: int = 4
    dies_at: int = -1
    changes: int = 0
    # Of each change: which relay nodes, database hosts and edges were out of service then.
    away: list[set[str]] = field(default_factory=list)

    def changed(self, what: str) -> None:
        if self.changes == self.dies_at:
            raise Killed
        self.changes += 1
        self.done.append(what)

    def host(self, name: str, text: str) -> tuple[int, str, str]:
        if self.changes == self.dies_at:
            # Nothing is done any more, also not by what cleans up.
            raise Killed
        words = split(text)
        if self.machines[name].error:
            return 255, "", self.machines[name].error
        if words[0] == "sh" and words[2].startswith("export LC_ALL=C\necho"):
            return 0, self.pending(name), ""
        if words[0] == "sh" and (words[2].startswith("( ") or words[2] == one_host.CUSTOMERS):
            return 0, "0" if words[2] == one_host.CUSTOMERS else "", ""
        if words[0] == "curl" and "/silence" in words[-1]:
            return 0, self.silence(words), ""
        if words[0].endswith("relay-edge") and words[1] == "status":
            state = "drain" if name in self.drained_edges else "serve"
            drained = {"open": 0, "since": 0, "reason": "why"}
            about = {f"{ADDRESSES[one]}:8000": drained | {"name": one} for one in self.drained_nodes}
            return 0, json.dumps({"state": state, "nodes": [], "drained": about}), ""
        if words[:2] == ["apt-get", "--simulate"]:
            found = [line for line in self.waiting[name].packages if f"{line.split()[0]}=" in text]
            return 0, "".join(f"Inst {line}\n" for line in found) + self.along, ""
        if words[:2] in (["docker", "ps"], ["relay-patroni", "wait"]):
            return 0, "", ""
        return self.act(name, words) if self.known(words) else super().host(name, text)

    def known(self, words: list[str]) -> bool:
        return words[0] in ("systemctl", "systemd-run", "docker", "patronictl", "apt-get") or (
            words[0].endswith("relay-edge")
        )

    def act(self, name: str, words: list[str]) -> tuple[int, str, str]:
        waits = self.waiting[name]
        if words[:2] == ["systemctl", "reboot"]:
            self.changed(f"{name}: reboot")
            waits.boot, waits.reboot, waits.stale = waits.boot + 1, False, []
            waits.failed = waits.will_fail
            if self.does_not_return == name:
                self.machines[name].error = "connection timed out"
        elif words[0] == "systemd-run":
            exact = [word for word in words if "=" in word and not word.startswith("-") and "\n" not in word]
            self.changed(f"{name}: install {' '.join(exact)}")
            names = {word.partition("=")[0] for word in exact}
            waits.packages = [line for line in waits.packages if line.split()[0] not in names]
            waits.stale = waits.will_be_stale
        elif words[:3] == ["docker", "node", "update"]:
            node = words[-1].removeprefix("id-")
            self.changed(f"{name}: {node} {words[4]}")
            self.swarm = [(*e[:3], words[4].capitalize(), e[4]) if e[0] == node else e for e in self.swarm]
        elif words[:2] == ["patronictl", "switchover"]:
            self.changed(f"{name}: switchover to {words[6]}")
            self.patroni |= {words[4]: ("Quorum Standby", "streaming"), words[6]: ("Leader", "running")}
        elif words[0] == "apt-get":
            self.changed(f"{name}: lists")
        else:
            self.changed(f"{name}: {words[1]} {words[-1] if words[1].startswith('node') else ''}".strip())
            self.edge(name, words)
        self.away.append({*self.drained_edges, *self.out_of_swarm()})
        return 0, "", ""

    def edge(self, name: str, words: list[str]) -> None:
        if words[1] == "drain":
            self.drained_edges.add(name)
        elif words[1] == "serve":
            self.drained_edges.discard(name)
        else:
            node = words[words.index("--name") + 1]
            (self.drained_nodes.add if words[1] == "node-drain" else self.drained_nodes.discard)(node)

    def out_of_swarm(self) -> set[str]:
        return {entry[0] for entry in self.swarm if entry[3] != "Active"}

    def silence(self, words: list[str]) -> str:
        if "--data" in words:
            content = json.loads(words[words.index("--data") + 1])
            about = content["matchers"][1]["value"]
            self.changed(f"silence {about}")
            identity = f"{len(self.done):08x}-0000-0000-0000-000000000000"
            self.silenced[identity] = about
            self.silences[identity] = content
            return json.dumps({"silenceID": identity})
        if words[-1].endswith("/silences"):
            active = {"status": {"state": "active"}}
            return json.dumps([active | self.silences[one] | {"id": one} for one in self.silenced])
        self.changed("silence ends")
        self.silenced.pop(words[-1].rpartition("/")[2], None)
        return ""

    def pending(self, name: str) -> str:
        waits = self.waiting[name]
        lines = [f"boot kernel:{waits.boot}", "state running", *(f"failed {one}" for one in waits.failed)]
        lines += ["reboot linux-image"] if waits.reboot else []
        lines += [f"stale {one}" for one in waits.stale] + [f"package {one}" for one in waits.packages]
        lines += [f"problem {waits.problem}"] if waits.problem else []
        return "\n".join([*lines, *(f"address {one}" for one in waits.addresses)])

    def facts(self, name: str, machine: Any) -> str:
        away = len(self.out_of_swarm())
        return (
            super()
            .facts(name, machine)
            .replace("replicas 4/4", f"replicas {self.replicas - away}/{self.replicas}")
        )

    def hosts_with(self, verb: str) -> list[str]:
        return [one.partition(":")[0] for one in self.done if f": {verb}" in one]


@pytest.fixture
def patched(model: Model, monkeypatch: pytest.MonkeyPatch) -> Patched:
    """A fleet on which nothing waits."""
    made = Patched(**{one.name: getattr(model, one.name) for one in fields(Model)})
    made.swarm = [(*entry[:4], "Leader" if entry[0] == "app1" else entry[4]) for entry in made.swarm]
    monkeypatch.setattr(subprocess, "run", made.run)
    monkeypatch.setattr(one_host, "PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(drains, "PAUSE_SECONDS", 0.005)

    @contextmanager
    def exclusive(_: releases.History, what: str) -> Iterator[None]:
        if made.holder:
            raise DeployError(f"{made.holder} is at work on this fleet")
        made.holder = "this run"
        try:
            yield
        finally:
            made.holder = ""

    monkeypatch.setattr(releases.History, "exclusive", exclusive)
    return made


def patch(*words: str) -> int:
    return cli.main(["patch", "trial", "--edge-pause", "0", "--wait", "0.02", "--drain", "0", *words])


def record(fleet: Patched) -> Any:
    return Records(fleet.directory).read()


def wait_everywhere(fleet: Patched, *packages: str) -> None:
    for waits in fleet.waiting.values():
        waits.packages = list(packages)


def test_a_dry_run_shows_versions_and_order_and_changes_nothing(
    patched: Patched, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_everywhere(patched, OPENSSL, BASH)
    patched.waiting["edge1"].packages.append(NGINX)
    patched.waiting["db1"].reboot = True
    assert patch() == 0
    told = capsys.readouterr().out
    steps = [line for line in told.splitlines() if line.startswith("  ") and ". " in line[:6]]
    assert [line.split()[1] for line in steps] == PATCHED
    assert "app1 (leader of the swarm): openssl 1 → 2; boots if the updates ask for it" in steps[3]
    assert "db1 (primary): openssl 1 → 2; boots (updates of linux-image ask for it)" in steps[11]
    assert "bash" not in told
    assert "edge1: held back without --engines: nginx 1 → 2" in told
    assert "ops1 has no second" in told
    assert "Dry run: nothing was changed" in told
    assert patched.done == []
    assert not (patched.directory / FILE).exists()


def test_nothing_waits(patched: Patched, capsys: pytest.CaptureFixture[str]) -> None:
    patched.waiting["app1"].packages = [BASH]
    assert patch("--yes") == 0
    assert {one.partition(": ")[2] for one in patched.done} == {"lists"}
    assert "no update and no reboot waits" in capsys.readouterr().out
    assert record(patched) is None


def test_all_hosts_one_after_the_other_each_well_before_the_next(patched: Patched) -> None:
    wait_everywhere(patched, OPENSSL)
    for waits in patched.waiting.values():
        waits.will_be_stale = ["sshd"]
    assert patch("--yes", "--no-refresh") == 0
    assert patched.hosts_with("install") == patched.hosts_with("reboot") == PATCHED
    assert max(map(len, patched.away)) == 1
    assert (patched.drained_nodes, patched.drained_edges, patched.out_of_swarm()) == (set(), set(), set())
    # But for the failover, of which the alert speaks for ten minutes more.
    assert list(patched.silenced.values()) == ["PostgresFailedOver"]
    assert record(patched) is None
    (line,) = [
        json.loads(one)
        for one in (patched.directory / "audit.jsonl").read_text().splitlines()
        if '"command": "patch"' in one
    ]
    assert (line["done"], line["result"], line["who"] != "") == (PATCHED, "done", True)


def test_a_relay_node_is_silenced_drained_updated_booted_and_taken_back(patched: Patched) -> None:
    patched.waiting["app2"] = Waiting([OPENSSL], reboot=True)
    assert patch("--yes", "--no-refresh") == 0
    edges = ("edge1", "edge2", "edge3")
    assert patched.done == [
        "silence app2(:.*)?",
        "silence SwarmNodeDown|SwarmManagersFew",
        *(one for one in patched.done if ": node-drain" in one),
        "app1: app2 drain",
        "app2: install openssl=2",
        "app2: reboot",
        "app1: app2 active",
        *(f"{edge}: node-return app2" for edge in edges),
        "silence ends",
        "silence ends",
    ]
    assert patched.hosts_with("node-drain") == list(edges)


def test_the_primary_hands_over_first_and_is_not_touched_where_nothing_waits(patched: Patched) -> None:
    patched.waiting["db1"].reboot = True
    assert patch("--yes", "--no-refresh") == 0
    order = [one for one in patched.done if one.startswith("db1")]
    assert order == ["db1: switchover to db2", "db1: reboot"]
    assert patched.patroni["db2"] == ("Leader", "running")
    patched.done.clear()
    patched.waiting["db3"].reboot = True
    assert patch("--yes", "--no-refresh") == 0
    assert patched.hosts_with("switchover") == []


def test_after_a_failover_in_between_the_new_primary_is_last(patched: Patched) -> None:
    for name in ("db1", "db2", "db3"):
        patched.waiting[name].reboot = True
    original = patched.act

    def act(name: str, words: list[str]) -> tuple[int, str, str]:
        if name == "db2" and words[1] == "reboot":
            patched.patroni |= {"db1": ("Quorum Standby", "streaming"), "db3": ("Leader", "running")}
        return original(name, words)

    patched.act = act  # type: ignore[method-assign]
    assert patch("--yes", "--no-refresh") == 0
    assert patched.hosts_with("reboot") == ["db2", "db1", "db3"]


def test_the_edge_with_the_shared_address_is_the_last_edge(patched: Patched) -> None:
    path = environment.INVENTORIES / "group_data/trial.py"
    path.write_text(path.read_text() + 'edge_virtual_address = "10.0.0.9/24"\n')
    patched.waiting["edge1"].addresses = ["10.0.0.11", "10.0.0.9"]
    for name in ("edge1", "edge2"):
        patched.waiting[name].reboot = True
    assert patch("--yes", "--no-refresh") == 0
    assert patched.hosts_with("reboot") == ["edge2", "edge1"]
    assert patched.hosts_with("drain") == ["edge2", "edge1"]


@pytest.mark.parametrize(
    ("words", "installed"),
    [
        ((), "openssl=2"),
        (("--engines",), "openssl=2 nginx=2"),
        (("--all",), "openssl=2 bash=6"),
        (("--all", "--engines"), "openssl=2 bash=6 nginx=2"),
    ],
)
def test_exactly_the_versions_that_were_shown_are_installed(
    patched: Patched, words: tuple[str, ...], installed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    patched.waiting["edge2"].packages = [OPENSSL, BASH, NGINX]
    assert patch(*words) == 0
    assert ("nginx 1 → 2;" in capsys.readouterr().out) == ("nginx" in installed)
    assert patch("--yes", "--no-refresh", *words) == 0
    assert f"edge2: install {installed}" in patched.done


def test_package_lists_are_fetched_before_the_first_host(patched: Patched) -> None:
    patched.waiting["app1"].packages = [OPENSSL]
    assert patch("--yes", "--limit", "app") == 0
    assert patched.done[:4] == [f"{name}: lists" for name in APPS]
    assert patched.hosts_with("install") == ["app1"]


def drained(name: str) -> Callable[[Any], None]:
    def change(fleet: Any) -> None:
        fleet.swarm = [(*e[:3], "Drain", e[4]) if e[0] == name else e for e in fleet.swarm]

    return change


def node_begun(fleet: Any) -> None:
    records = node_records.Records(fleet.directory)
    records.put(node_records.Record("db5", "replace", "10.0.0.35", "2026-01-01T00:00:00+00:00"))


def broken_apt(fleet: Any) -> None:
    fleet.waiting["edge1"].problem = "unmet dependencies"


@pytest.mark.parametrize(
    ("fault", "words", "text"),
    [
        (None, ("--limit", "ap2"), "did you mean 'app2'?"),
        (None, ("--limit", "edges"), "did you mean 'edge"),
        (silent("db4"), (), "db4 do not: start them"),
        (unhealthy("db4", "db5"), (), "without db1: 2 of 5 are healthy and 3 are needed"),
        (unreachable("app2"), (), "without app1: 1 of 3 are healthy and 2 are needed"),
        (unhealthy("db5"), (), "etcd on db5 is not healthy"),
        (drained("app3"), (), "app3 is not ready in the swarm"),
        (having(alerts=[critical("PostgresNoPrimary", "")]), (), "PostgresNoPrimary: mend that first"),
        (having(holder="somebody"), (), "somebody is"),
        (unfinished, (), "7 is: `python -m deploys release trial` goes on"),
        (node_begun, (), "db5 is in the middle of `node`"),
        (broken_apt, (), "edge1: unmet dependencies"),
    ],
)
def test_what_it_refuses_before_anything_is_changed(
    patched: Patched, fault: Any, words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_everywhere(patched, OPENSSL)
    if fault:
        fault(patched)
    for act in ((), ("--yes",)):
        assert patch(*words, *act) == 1
        assert text in capsys.readouterr().err
    assert patched.done == []
    assert record(patched) is None


def test_a_critical_alert_does_not_hinder_who_says_so(patched: Patched) -> None:
    patched.alerts = [critical("HostDiskFull", "db3")]
    patched.waiting["edge1"].reboot = True
    assert patch("--yes", "--no-refresh", "--despite-alerts") == 0
    assert patched.hosts_with("reboot") == ["edge1"]


def test_a_second_run_is_refused(patched: Patched, capsys: pytest.CaptureFixture[str]) -> None:
    patched.waiting["edge1"].reboot = True
    with held(patched.directory / "deploy.lock", "a colleague"):
        assert patch("--yes") == 1
    assert "a colleague is at work" in capsys.readouterr().err
    assert patched.done == []


def test_a_lone_edge_is_not_taken_away(patched: Patched, capsys: pytest.CaptureFixture[str]) -> None:
    path = environment.INVENTORIES / "trial.py"
    lines = [line for line in path.read_text().splitlines(keepends=True) if '("edge2"' not in line]
    path.write_text("".join(line for line in lines if '("edge3"' not in line))
    patched.waiting["edge1"].reboot = True
    assert patch("--yes") == 1
    assert "another edge serves: without edge1: there is no other one" in capsys.readouterr().err


def stopped(fleet: Patched, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert patch("--yes", "--no-refresh", *words) == 1
    assert not set(fleet.silenced.values()) - {"PostgresFailedOver"}, "whoever is on call must hear of it"
    return capsys.readouterr().err


def test_it_stops_at_a_service_that_fails_after_the_boot_and_goes_on_when_it_is_mended(
    patched: Patched, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_everywhere(patched, OPENSSL)
    patched.waiting["app2"].failed = ["old.service"]
    patched.waiting["app2"].reboot, patched.waiting["app2"].will_fail = True, ["old.service", "ssh.service"]
    told = stopped(patched, capsys)
    assert "ssh.service has failed on app2" in told
    assert "old.service" not in told
    assert "app2 is out of service. Mend that; then `python -m deploys patch trial --yes` goes on" in told
    assert patched.hosts_with("install") == ["app4", "app2"]
    assert patched.drained_nodes == {"app2"}
    assert record(patched).node == "app2"
    # Only with what is in hand.
    assert patch("--yes", "--limit", "db") == 1
    assert "app2 is in hand" in capsys.readouterr().err
    patched.waiting["app2"].failed = []
    assert patch("--yes", "--no-refresh") == 0
    assert patched.hosts_with("install") == PATCHED
    assert patched.hosts_with("reboot") == ["app2"]
    assert patched.drained_nodes == set()
    assert record(patched) is None


def test_it_stops_when_a_host_does_not_come_back(
    patched: Patched, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("db2", "db3"):
        patched.waiting[name].reboot = True
    patched.does_not_return = "db2"
    assert "db2 does not come back: look at its console" in stopped(patched, capsys)
    assert patched.hosts_with("reboot") == ["db2"]
    assert "db2 does not come back" in stopped(patched, capsys)
    patched.machines["db2"].error = ""
    assert patch("--yes", "--no-refresh") == 0
    assert patched.hosts_with("reboot") == ["db2", "db3"]


def test_it_stops_when_an_alert_fires_in_between(
    patched: Patched, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("edge1", "edge2"):
        patched.waiting[name].reboot = True
    original = patched.act

    def act(name: str, words: list[str]) -> tuple[int, str, str]:
        patched.alerts = [critical("RelayErrorRatioHigh", "")] if words[1] == "reboot" else patched.alerts
        return original(name, words)

    patched.act = act  # type: ignore[method-assign]
    told = stopped(patched, capsys)
    assert "not begun with edge2: no other critical alert fires: RelayErrorRatioHigh" in told
    assert "no host is out of service" in told
    assert patched.drained_edges == set()


@pytest.mark.parametrize(
    ("along", "text"),
    [
        ("Remv relay-tool [1]\n", "would remove relay-tool"),
        ("Inst docker.io [1] (2 Debian:12.5/stable [amd64])\n", "needs docker.io 1 → 2, which is held back"),
    ],
)
def test_what_an_update_would_do_besides_is_for_people_to_judge(
    patched: Patched, along: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    patched.waiting["app2"].packages, patched.along = [OPENSSL], along
    assert text in stopped(patched, capsys)
    assert patched.hosts_with("install") == []


def test_every_host_is_booted_once_also_by_a_run_that_was_interrupted(
    patched: Patched, capsys: pytest.CaptureFixture[str]
) -> None:
    patched.does_not_return = "app3"
    stopped(patched, capsys, "--reboot")
    patched.machines["app3"].error = ""
    assert patch("--yes", "--no-refresh", "--reboot") == 0
    assert patched.hosts_with("reboot") == PATCHED


def test_a_silence_that_cannot_be_made_is_no_reason_to_stop(
    patched: Patched, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> dict[str, str]:
        raise DeployError("no Alertmanager")

    monkeypatch.setattr(silences, "add", refuses)
    patched.waiting["edge1"].reboot = True
    assert patch("--yes", "--no-refresh") == 0
    assert "not silenced meanwhile: no Alertmanager" in capsys.readouterr().out


def test_the_answer_as_json(patched: Patched, capsys: pytest.CaptureFixture[str]) -> None:
    patched.waiting["edge1"].packages = [OPENSSL, NGINX]
    assert patch("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dry_run"], told["status"], told["error"]) == (True, 0, "")
    assert told["held_back"] == {"edge1": ["nginx 1 → 2"]}
    (host,) = told["hosts"]
    assert (host["name"], host["done"]) == ("edge1", False)
    assert host["packages"] == [{"name": "openssl", "old": "1", "new": "2", "security": True}]
    assert patch("--json", "--yes", "--no-refresh") == 0
    assert json.loads(capsys.readouterr().out)["hosts"][0]["done"]


def test_a_host_that_is_lost_while_lists_are_fetched_is_not_left_out(
    patched: Patched, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_everywhere(patched, OPENSSL)
    original = patched.act

    def act(name: str, words: list[str]) -> tuple[int, str, str]:
        if name == "app4":
            patched.waiting["app3"].problem = "the lists are broken"
        return original(name, words)

    patched.act = act  # type: ignore[method-assign]
    assert patch("--yes", "--limit", "app") == 1
    told = capsys.readouterr().err
    assert "no host was changed" in told
    assert "app3: the lists are broken" in told
    assert patched.hosts_with("install") == []
    assert record(patched) is None


def test_lists_that_cannot_be_fetched_are_an_answer_too(
    patched: Patched, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_everywhere(patched, OPENSSL)
    patched.act = lambda name, words: (100, "", "E: no mirror")  # type: ignore[method-assign]
    assert patch("--yes", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == 1
    assert "E: no mirror" in told["error"]


def test_who_has_taken_the_lost_lock_of_the_fleet_is_not_disturbed(
    patched: Patched, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is a connection, which may end at any time: then somebody else may begin."""

    @contextmanager
    def exclusive(_: releases.History, what: str) -> Iterator[None]:
        if patched.holder:
            raise DeployError(f"{patched.holder} is at work on this fleet")
        yield

    monkeypatch.setattr(releases.History, "exclusive", exclusive)
    for name in ("edge1", "edge2"):
        patched.waiting[name].reboot = True
    original = patched.act

    def act(name: str, words: list[str]) -> tuple[int, str, str]:
        if words[1] == "reboot":
            patched.holder = "a colleague"
        return original(name, words)

    patched.act = act  # type: ignore[method-assign]
    told = stopped(patched, capsys)
    assert "a colleague is at work on this fleet" in told
    assert "no host is out of service" in told
    assert patched.hosts_with("reboot") == ["edge1"]


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Also where whoever runs the tests has them ignored, as a shell does of what runs in the background."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_end_from_outside_ends_the_silences_and_says_what_is_out_of_service(
    patched: Patched, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    patched.waiting["edge1"].reboot = True
    original = patched.act

    def act(name: str, words: list[str]) -> tuple[int, str, str]:
        if words[1] == "reboot":
            signal.raise_signal(number)
        return original(name, words)

    patched.act = act  # type: ignore[method-assign]
    before = signal.getsignal(number)
    told = stopped(patched, capsys)
    assert signal.getsignal(number) == before
    assert "edge1 is out of service" in told
    assert "`python -m deploys patch trial --yes` goes on" in told
    assert record(patched).node == "edge1"
    patched.act = original  # type: ignore[method-assign]
    assert patch("--yes", "--no-refresh") == 0
    assert patched.hosts_with("reboot") == ["edge1"]


@pytest.mark.usefixtures("default_signals")
def test_what_is_ignored_stays_so(patched: Patched) -> None:
    """As under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    patched.waiting["edge1"].reboot = True
    original = patched.act

    def act(name: str, words: list[str]) -> tuple[int, str, str]:
        signal.raise_signal(signal.SIGHUP)
        return original(name, words)

    patched.act = act  # type: ignore[method-assign]
    assert patch("--yes", "--no-refresh") == 0


def test_a_silence_that_was_made_as_it_was_killed_is_ended_too(
    patched: Patched, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched.waiting["edge1"].reboot = True
    original = silences.add

    def add(*given: Any) -> dict[str, str]:
        original(*given)
        raise Killed

    silences.add("trial", ["instance=edge1"], timedelta(hours=1), "a new disk")
    with monkeypatch.context() as context:
        context.setattr(silences, "add", add)
        with pytest.raises(Killed):
            patch("--yes", "--no-refresh")
    assert patch("--yes", "--no-refresh") == 0
    # That of a person stays.
    assert list(patched.silenced.values()) == ["edge1"]


def test_silences_of_a_host_that_is_gone_are_ended(patched: Patched) -> None:
    patched.waiting["edge1"].reboot = True
    patched.dies_at = 3
    with pytest.raises(Killed):
        patch("--yes", "--no-refresh")
    patched.dies_at = -1
    patched.drained_edges.clear()
    assert patched.silenced
    path = environment.INVENTORIES / "trial.py"
    lines = [line for line in path.read_text().splitlines(keepends=True) if '("edge1"' not in line]
    path.write_text("".join(lines))
    assert patch("--yes", "--no-refresh") == 0
    assert patched.silenced == {}
    assert record(patched) is None


@pytest.mark.parametrize("taken_out", ["app3", "edge2"])
def test_what_people_have_taken_out_of_service_stays_out(
    patched: Patched, taken_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be put back, or the next one taken from those that are left."""
    (patched.drained_nodes if taken_out == "app3" else patched.drained_edges).add(taken_out)
    patched.waiting[taken_out].reboot = True
    assert patch() == 1
    assert patch("--yes") == 1
    told = capsys.readouterr().err
    assert f"{taken_out} is drained" in told
    assert ("node undrain trial app3" if taken_out == "app3" else "edge serve trial edge2") in told
    assert patched.done == []


def test_an_edge_that_does_not_say_what_is_drained_hinders(
    patched: Patched, capsys: pytest.CaptureFixture[str]
) -> None:
    patched.waiting["app1"].reboot = True
    original = patched.host

    def host(name: str, text: str) -> tuple[int, str, str]:
        broken = name == "edge2" and text.endswith("status --json")
        return (1, "", "relay-edge: no such file") if broken else original(name, text)

    patched.host = host  # type: ignore[method-assign]
    assert patch("--yes") == 1
    assert "edge2 does not say what is drained there" in capsys.readouterr().err
    assert patched.done == []


def test_an_upgrade_of_the_night_is_waited_for(patched: Patched, tmp_path: Path) -> None:
    """dpkg has one user at a time; and a boot in its middle leaves packages half installed."""
    systemctl = tmp_path / "systemctl"
    systemctl.write_text('#!/bin/sh\n[ "$1 $2" != "is-active $RUNS" ] || echo $STATE\n')
    systemctl.chmod(0o755)
    for unit, state, updating in (
        ("relay-patch.service", "active", True),
        # It is of the type oneshot.
        ("apt-daily-upgrade.service", "activating", True),
        ("ssh.service", "active", False),
    ):
        own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNS": unit, "STATE": state}
        done = node_tests.REAL_RUN(
            ["sh", "-c", pending.STATE + "true\n"], env=own, capture_output=True, text=True, check=True
        )
        found = pending.read(remote.Answer("app1", 0, done.stdout, ""))
        assert found.updating == ((unit,) if updating else ()), unit


def prepared(fleet: Patched) -> None:
    """One of each kind has an update and boots."""
    for name in ("app1", "edge1", "db2", "db1", "ops1"):
        fleet.waiting[name] = Waiting([OPENSSL], will_be_stale=["sshd"])


def smaller(fleet: Patched) -> None:
    """As many hosts as it takes: each is asked hundreds of times."""
    gone = ("edge3", "app4", "db4", "db5", "vault1", "provider1")
    path = environment.INVENTORIES / "trial.py"
    text = re.sub(r"    # The newest.\n    \(\n(.*\n){2}    \),\n", "", path.read_text())
    lines = [line for line in text.splitlines(keepends=True) if not any(f'("{one}"' in line for one in gone)]
    path.write_text("".join(lines))
    fleet.etcd = {name: well for name, well in fleet.etcd.items() if name not in gone}
    fleet.patroni = {name: about for name, about in fleet.patroni.items() if name not in gone}
    fleet.swarm = [entry for entry in fleet.swarm if entry[0] not in gone]
    fleet.replicas = len(fleet.swarm)


def test_killed_at_any_moment_it_ends_well_when_it_is_run_again(patched: Patched) -> None:
    smaller(patched)
    # `make properties` tries each moment.
    every = 1 if settings().max_examples >= 100 else 6
    for moment in count(step=every):
        patched.done.clear()
        patched.silenced.clear()
        patched.changes, patched.dies_at = 0, moment
        patched.patroni |= dict.fromkeys(patched.patroni, ("Quorum Standby", "streaming"))
        patched.patroni["db1"] = ("Leader", "running")
        prepared(patched)
        try:
            status = patch("--yes", "--no-refresh")
        except Killed:
            patched.dies_at = -1
            status = patch("--yes", "--no-refresh")
            killed = True
        else:
            killed = False
        assert status == 0, moment
        installed, booted = patched.hosts_with("install"), patched.hosts_with("reboot")
        assert sorted(installed) == sorted(booted) == ["app1", "db1", "db2", "edge1", "ops1"], moment
        assert max(map(len, patched.away)) == 1, moment
        assert (patched.drained_nodes, patched.drained_edges) == (set(), set()), moment
        assert patched.out_of_swarm() == set(), moment
        assert record(patched) is None, moment
        if not killed:
            break
    assert moment > 30


LINES = """openssl [3.0.11-1] (3.0.14-1 Debian-Security:12/stable-security [amd64])
libgcrypt20 [1.10.1-3] (1.10.1-3+deb12u1 Debian:12.15/stable, Debian-Security:12/stable-security [amd64]) []
bash [5.2.15-2+b8] (5.2.15-2+b13 Debian:12.15/oldstable [amd64])
linux-image-6.1.0-30-amd64 (6.1.124-1 Debian-Security:12/stable-security [amd64])
libc6 [2.39-0ubuntu8.3] (2.39-0ubuntu8.4 Ubuntu:24.04/noble-updates, Ubuntu:24.04/noble-security [amd64])
own [1] (2 localhost [all])
this is no line of a package"""


def test_what_apt_would_do_is_read() -> None:
    assert pending.packages(LINES.splitlines()) == (
        Package("openssl", "3.0.11-1", "3.0.14-1", True),
        Package("libgcrypt20", "1.10.1-3", "1.10.1-3+deb12u1", True),
        Package("bash", "5.2.15-2+b8", "5.2.15-2+b13", False),
        Package("linux-image-6.1.0-30-amd64", "", "6.1.124-1", True),
        Package("libc6", "2.39-0ubuntu8.3", "2.39-0ubuntu8.4", True),
        Package("own", "1", "2", False),
    )


def test_what_a_host_says_is_read() -> None:
    out = "boot k:7\nstate degraded\nfailed a.service\nreboot linux-image libc6\nstale nginx\nhalf\n"
    found = pending.read(remote.Answer("db1", 0, out, ""))
    assert (found.boot, found.booted, found.half) == ("k:7", True, True)
    assert found.failed == frozenset(["a.service"])
    assert found.reason == "updates of linux-image libc6 ask for it; nginx run replaced files"
    assert pending.read(remote.Answer("db1", 0, "state starting\n", "")).booted is False
    assert pending.read(remote.Answer("db1", 255, "", "no route\n")).problem == "no route"


def test_the_questions_are_a_shell_script() -> None:
    for text in (pending.STATE, pending.QUESTIONS, one_host.UPDATE):
        done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "held_back"),
    [
        ("docker.io", True), ("dockerXio", False), ("containerd", True), ("etcd-server", True),
        ("postgresql-17", True), ("postgresql-client-15", True), ("postgresql-common", False),
        ("nginx", True),
        ("nginx-common:amd64", True), ("libnginx-mod-http-lua", True), ("prometheus-nginx-exporter", False),
    ],
)  # fmt: skip
def test_engines_are_what_roles_hold_back(name: str, held_back: bool) -> None:
    assert Choice(tuple(roles.held())).is_engine(name) == held_back
