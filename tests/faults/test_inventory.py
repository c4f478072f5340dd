"""Hosts that join and leave the inventory, alive or dead."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from deploys.sandbox import remote
from tests.fleet import patroni
from tests.fleet.conftest import deploys

EXTRA = "app4 db4 db5 edge3"


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    yield monkeypatch
    monkeypatch.delenv("RELAY_SANDBOX_EXTRA", raising=False)
    deploys("sandbox", "up").ended_well()


def members() -> dict[str, set[str]]:
    """Who belongs to the swarm, to etcd and to Patroni."""
    nodes = remote.run("app1", "docker", "node", "ls", "--format", "{{.Hostname}} {{.Status}}").splitlines()
    etcd = json.loads(remote.run("db1", "relay-etcdctl", "member", "list", "-w", "json"))["members"]
    return {
        "swarm": set(nodes),
        "etcd": {member.get("name", "") for member in etcd},
        "patroni": {member["Member"] for member in patroni.members()},
    }


@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
def test_hosts_come_and_go(extra: pytest.MonkeyPatch, alive: bool) -> None:
    extra.setenv("RELAY_SANDBOX_EXTRA", EXTRA)
    deploys("sandbox", "up").ended_well()
    deploys("secrets", "sandbox").ended_well()
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()
    assert members()["etcd"] == {"db1", "db2", "db3", "db4", "db5"}
    primary = patroni.leader()
    if alive and primary != "db4":
        # The primary itself leaves.
        patroni.switch_over(primary, "db4")
    if not alive:
        for host in EXTRA.split():
            deploys("sandbox", "kill", host).ended_well()
    extra.delenv("RELAY_SANDBOX_EXTRA")
    planned = deploys("plan", "sandbox")
    assert planned.status == 2
    assert "Remove members that left the inventory" in planned.output
    assert "Remove nodes that no relay host is" in planned.output
    assert "tls_cert:db5" in planned.output
    deploys("secrets", "sandbox").ended_well()
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()
    found = members()
    assert found["swarm"] == {"app1 Ready", "app2 Ready", "app3 Ready"}
    assert found["etcd"] == {"db1", "db2", "db3"}
    assert not found["patroni"] - {"db1", "db2", "db3", "db4", "db5"}
    deploys("verify", "sandbox", "--wait", "90").ended_well()
