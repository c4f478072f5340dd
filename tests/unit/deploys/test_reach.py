"""What may be reached from where, derived from the roles; and the scan that proves it, with real sockets."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from deploys import roles
from deploys.lib import fleet
from deploys.lib.fleet import Node
from deploys.run import reach
from tests.contract.edge_rig import DeadHost


def node(name: str) -> Node:
    return next(one for one in fleet.all_hosts() if one.name == name)


@pytest.mark.parametrize(
    ("source", "target", "must", "may"),
    [
        (None, "edge1", {22, 80, 443}, set()),
        (None, "db1", {22}, set()),
        ("app1", "db1", {22, 5432}, set()),
        ("db2", "db1", {22, 2379, 2380, 5432, 8008}, set()),
        ("edge1", "app2", {22, 8000}, set()),
        ("app1", "app2", {22, 7946}, {2377}),
        ("ops1", "edge1", {22, 80, 443, 9100, 9113, 9118, 9120}, set()),
        ("ops1", "app1", {22, 8000, 8001, 9100, 9120, 9323, 9434}, set()),
        ("edge1", "ops1", {22, 9427, 9431}, set()),
    ],
)
def test_the_table(
    sandbox_inventory: Any, source: str | None, target: str, must: set[int], may: set[int]
) -> None:
    found = reach.table(node(source) if source else None, node(target))
    assert (set(found.must), set(found.may)) == (must, may)


@pytest.mark.parametrize(
    ("source", "target", "ports"),
    [("app1", "app2", {4789, 7946}), ("db1", "app2", set()), (None, "edge1", set()), ("ops1", "db1", set())],
)
def test_the_table_of_udp(sandbox_inventory: Any, source: str | None, target: str, ports: set[int]) -> None:
    found = reach.table(node(source) if source else None, node(target), "udp")
    assert found.must | found.may == ports
    assert found.unasked({*ports, 53}) == ["53/udp is let through, and no role opens it"]


def test_http_3_is_in_the_table_where_it_is_served(sandbox_inventory: Any) -> None:
    sandbox_inventory.override_data["edge_http3"] = "on"
    assert reach.table(None, node("edge1"), "udp").must == {443}


def test_ssh_for_some_networks_may_be_open_from_outside(sandbox_inventory: Any) -> None:
    sandbox_inventory.override_data["ssh_allowed_from"] = ["192.0.2.0/24"]
    assert reach.table(None, node("db1")) == reach.Reach(frozenset(), frozenset({22}))


def test_the_table_and_the_firewall_say_the_same(sandbox_inventory: Any) -> None:
    """Every port of every opening is in the table of somebody, and the table has no other ports."""
    nodes = fleet.all_hosts()
    tables = [reach.table(source, target) for source in [None, *nodes] for target in nodes]
    assert set().union(*(found.must | found.may for found in tables)) <= reach.declared()
    alone = {
        opening.ports for role in roles.table() for opening in role.all_openings() if opening.proto == "tcp"
    }
    assert {port for ports in alone for port in ports} == set().union(*(t.must | t.may for t in tables))


def test_each_kind_of_host_is_a_zone(sandbox_inventory: Any) -> None:
    assert [one.name for one in reach.zones()] == [
        "edge1", "app1", "app2", "db1", "ops1", "vault1", "provider1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("let_through", "open_", "fault"),
    [
        ({22, 80}, {22, 80}, ""),
        ({22, 80, 2377}, {22, 80, 2377}, ""),
        ({22, 80, 6379}, {22, 80}, "6379 is let through, and no role opens it"),
        ({22}, {22}, "80 is closed, and a role opens it"),
        ({22, 80}, {22}, "80 is let through, but nothing listens"),
    ],
)
def test_differences_are_told_both_ways(let_through: set[int], open_: set[int], fault: str) -> None:
    found = reach.Reach(frozenset({22, 80}), frozenset({2377})).faults(let_through, open_)
    assert found == ([fault] if fault else [])


def test_the_scan_tells_open_refused_and_dropped() -> None:
    dead = DeadHost()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ends = [
            server.getsockname(),
            closed.getsockname(),
            ("127.0.0.1", int(dead.address.rpartition(":")[2])),
        ]
        found = scanned(ends, [])
    dead.close()
    assert found == {"open": [list(ends[0])], "refused": [list(ends[1])], "heard": []}


def test_the_scan_hears_answers_and_refusals_of_udp() -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as answers,
        socket.socket(type=socket.SOCK_DGRAM) as silent,
        socket.socket(type=socket.SOCK_DGRAM) as gone,
    ):
        for one in (answers, silent, gone):
            one.bind(("127.0.0.1", 0))
        ends = [one.getsockname() for one in (answers, silent, gone)]
        gone.close()
        answering = threading.Thread(target=lambda: answers.sendto(b"!", answers.recvfrom(10)[1]))
        answering.start()
        found = scanned([], ends)
        answering.join()
    assert found == {"open": [], "refused": [], "heard": [list(ends[0]), list(ends[2])]}


def scanned(ends: list[Any], udp: list[Any]) -> dict[str, list[Any]]:
    """What the scan tells, run as on a host."""
    given = json.dumps({"ends": ends, "udp": udp, "seconds": 0.3})
    program = fleet.REPOSITORY / "tests/checklist/port_scan.py"
    done = subprocess.run([sys.executable, program, given], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))
