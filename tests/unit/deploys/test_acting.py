"""What a group's hosts do once is done exactly once, whichever of its hosts are there."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

import pytest
from pyinfra.api.inventory import Inventory

from deploys import roles
from deploys.lib import acting, fleet
from tests.unit.deploys.facts import LINUX

pytestmark = pytest.mark.usefixtures("without_admission")

MANAGER = json.dumps({"LocalNodeState": "active", "ControlAvailable": True})
NODES = [
    json.dumps(
        {
            "ID": f"id-{name}",
            "CreatedAt": "2020-01-01T00:00:00.000000000Z",
            "Description": {"Hostname": name},
            "Spec": {"Labels": {}, "Role": "worker"},
            "Status": {"State": "ready", "Addr": ""},
        }
    )
    for name in ("app1", "app2", "app3", "app9")
]
MEMBERS = [f"{n}d, started, db{n}, https://172.30.77.3{n}:2380, x, false" for n in (1, 2, 3, 9)]
PATRONI = json.dumps(
    [
        {"Member": "db9", "Role": "Leader", "State": "running"},
        {"Member": "db3", "Role": "Quorum Standby", "State": "streaming", "Pending restart": "*"},
    ]
)
# A fleet where everything that is done once is due.
DUE: dict[Any, Any] = LINUX | {
    "docker info": MANAGER,
    "docker node ls -q": NODES,
    re.compile("test -d /var/lib/etcd/relay/member"): "yes",
    "member list": MEMBERS,
    "patronictl list": PATRONI,
    "show-config": "ttl: 1",
}
# What is done once, by role; all others do the same on each of their hosts.
ONCE = {
    "swarm": {
        "Choose the swarm's managers (docker node)",
        "Remove nodes that no relay host is (docker node)",
        "Label the nodes of the swarm",
    },
    "etcd": {"Remove members that left the inventory (relay-etcd-member)"},
    "postgres": {
        "Hand over from a primary that left the inventory (patronictl)",
        "Settings of the cluster (patronictl show-config)",
    },
    "relay": {
        "Build and push the relay's image (relay/)",
        "Swarm secret database_url",
        "Swarm secret redis_url",
        "Swarm secret seal_key",
        "Swarm config ca",
        "Roll the relay (/etc/relay/stack.yml)",
    },
    "probe_account": {"Make the probe's account (relay-probe-account)"},
}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploys.roles.swarm.LEADER_SECONDS", 0)
    # The made-up registry never has the image, so that it is built and rolled, which the run would refuse.
    monkeypatch.setattr("deploys.roles.relay.is_executing", lambda: False)
    monkeypatch.setattr("deploys.roles.drill.is_executing", lambda: False)


def changes(fake_role: Any, name: str, dead: Collection[str]) -> dict[str, list[str]]:
    """What a role changes on each of its hosts that is there: names of operations by host."""
    role = next(role for role in roles.table() if role.name == name)
    hosts = [node.name for node in roles.members(role) if node.name not in dead]
    found = {}
    for host in hosts:
        outcome = fake_role(lambda: roles.run(role), host, responses=DUE, dead=dead)
        found[host] = [change.rpartition(" | ")[2] for change in outcome.changes]
    return found


def done_once(found: dict[str, list[str]]) -> set[str]:
    """Names of what exactly one of several hosts changed."""
    every = [change for names in found.values() for change in set(names)]
    return {change for change in every if every.count(change) == 1 and len(found) > 1}


@pytest.mark.parametrize("name", roles.ORDER)
def test_what_is_done_once_is_done_once_without_the_first_host_too(
    fake_role: Any, sandbox_inventory: Inventory, name: str
) -> None:
    assert done_once(changes(fake_role, name, dead=())) == ONCE.get(name, set())
    first = {fleet.hosts(group)[0].name for group in roles.groups() if fleet.hosts(group)}
    left = changes(fake_role, name, dead=first)
    every = [change for names in left.values() for change in names]
    assert [change for change in ONCE.get(name, set()) if every.count(change) != 1] == []


@pytest.mark.parametrize(
    ("outside", "acts"),
    [((), "db1"), (("db1",), "db2"), (("db2",), "db1"), (("db1", "db2"), "db3"), (("db3",), "db1")],
)
def test_the_first_host_of_the_run_acts(fake_role: Any, outside: tuple[str, ...], acts: str) -> None:
    seen = []
    for host in {"db1", "db2", "db3"} - {*outside}:
        fake_role(lambda host=host: seen.append((host, acting.acts("db"))), host, outside=outside)
    assert [host for host, does in seen if does] == [acts]


def test_nobody_acts_for_a_group_that_is_not_there(fake_role: Any) -> None:
    seen: list[Any] = []
    fake_role(lambda: seen.append(acting.acting("app")), "db1", outside=["app1", "app2", "app3"])
    fake_role(lambda: seen.append(acting.acting("no_such_group")), "db1")
    assert seen == [None, None]


def test_who_can_be_asked(fake_role: Any) -> None:
    """Hosts of the run come first; a dead one is left out and told."""
    seen: dict[str, list[str]] = {}

    def ask() -> None:
        seen["answer"] = [fleet.node_of(member).name for member in acting.answering("db")]
        seen["silent"] = [fleet.node_of(member).name for member in acting.silent("db")]

    fake_role(ask, "db3", outside=["db1"], dead=["db2"])
    assert seen == {"answer": ["db3", "db1"], "silent": ["db2"]}


def test_no_role_chooses_a_host_by_its_place() -> None:
    """`first_only` roles are at a place that others know; everything else asks who is there."""
    places = r"(?:groups\[[^\]]*\]|hosts\([^)]*\)|groups\.get\([^)]*\)|inventory\))(?:\)?\[0\]|\[:1\])"
    for path in sorted((fleet.REPOSITORY / "deploys").rglob("*.py")):
        found = [line.strip() for line in path.read_text().splitlines() if re.search(places, line)]
        assert found == [line for line in found if 'hosts("ops")[0]' in line or "hosts('ops')[0]" in line], (
            path
        )
