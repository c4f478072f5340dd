"""The firewall, proven from outside: each zone of the fleet scans every host for real."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from deploys.lib import fleet
from deploys.run import reach
from tests.checklist.targets import listening, scan

# Ports that no role and no usual service of the fleet has: the firewall must drop what comes for them.
NOBODYS = {1, 23, 111, 3306, 8080, 31337, 65535}


def test_ports_match_what_the_roles_declare() -> None:
    """From each zone and from outside, exactly the declared ports are reached.

    Asked for are all ports that any role declares, those on which the host listens, whatever for, and a few
    on which nothing listens: what is not asked for cannot answer.
    """
    nodes = fleet.all_hosts()
    sources = [None, *reach.zones()]
    with ThreadPoolExecutor(len(nodes) + len(sources)) as pool:
        asked = {
            node: reach.declared() | NOBODYS | ports
            for node, ports in zip(nodes, pool.map(lambda node: listening(node.name), nodes), strict=True)
        }
        faults = [
            fault for found in pool.map(lambda source: _faults(source, asked), sources) for fault in found
        ]
    assert not faults, "; ".join(faults)


def _faults(source: fleet.Node | None, asked: dict[fleet.Node, set[int]]) -> list[str]:
    targets = [node for node in asked if node != source]
    found = scan(
        source.name if source else None, [(node.address, port) for node in targets for port in asked[node]]
    )
    where = source.name if source else "outside"
    return [
        f"{where} to {node.name}: {fault}"
        for node in targets
        for fault in reach.table(source, node).faults(
            _ports(found.open | found.refused, node), _ports(found.open, node)
        )
    ]


def _ports(ends: set[tuple[str, int]], node: fleet.Node) -> set[int]:
    return {port for address, port in ends if address == node.address}
