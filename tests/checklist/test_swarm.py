"""The Swarm of relay hosts."""

from __future__ import annotations

from typing import Any

from deploys.roles import swarm
from tests.checklist.targets import address, engine, hosts, names, on, reached

testinfra_hosts = hosts("app")


def test_every_node_is_ready() -> None:
    """Every relay host is a ready node, an odd number of them managers that see each other."""
    nodes = inspect()
    assert {node["Description"]["Hostname"]: node["Status"]["State"] for node in nodes} == dict.fromkeys(
        names("app"), "ready"
    )
    managers = [node for node in nodes if node["Spec"]["Role"] == "manager"]
    assert len(managers) == len(swarm.managers())
    assert len(managers) % 2 == 1
    assert all(node["ManagerStatus"]["Reachability"] == "reachable" for node in managers)


def test_labels() -> None:
    """Nodes carry the labels of their roles."""
    labels = {node["Description"]["Hostname"]: node["Spec"]["Labels"] for node in inspect()}
    assert labels == {
        name: {"relay": "true"} | ({"dokploy": "true"} if name in names("dokploy") else {})
        for name in names("app")
    }


def test_one_swarm(host: Any) -> None:
    """All relay hosts are in the same swarm."""
    state = engine(host, "info")["Swarm"]
    first = engine(on(names("app")[0]), "info")["Swarm"]
    assert state["LocalNodeState"] == "active"
    assert state["Cluster"]["ID"] == first["Cluster"]["ID"]


def test_swarm_ports_are_closed_to_others() -> None:
    """Only relay hosts reach each other's swarm ports."""
    ports = (swarm.MANAGEMENT_PORT, swarm.GOSSIP_PORT)
    ends = {(address(name), port) for name in names("app") for port in ports}
    assert reached(names("app")[0], ends) == ends
    assert reached(names("edge")[0], ends) == set()
    assert reached(None, ends) == set()


def inspect() -> list[dict[str, Any]]:
    """Nodes as the first manager sees them."""
    return list(engine(on(names("app")[0]), "nodes"))
