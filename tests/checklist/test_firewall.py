"""The firewall, proven from outside: each zone of the fleet scans every host for real."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from deploys.lib import fleet
from deploys.run import reach
from tests.checklist.targets import listening, scan

# Ports that no role and no usual service of the fleet has: the firewall must drop what comes for them.
NOBODYS = {1, 23, 111, 3306, 8080, 31337, 65535}
NOBODYS_UDP = {1, 53, 69, 111, 123, 161, 1900, 5353, 11211, 65535}


def test_ports_match_what_the_roles_declare() -> None:
    """From each zone and from outside, exactly the declared ports are reached, and by UDP no others.

    Asked for are all ports that any role declares, those on which the host listens, whatever for, and a few
    on which nothing listens: what is not asked for cannot answer.
    """
    nodes = fleet.all_hosts()
    sources = [None, *reach.zones()]
    with ThreadPoolExecutor(len(nodes) + len(sources)) as pool:
        asked = dict(zip(nodes, pool.map(_asked, nodes), strict=True))
        faults = [
            fault for found in pool.map(lambda source: _faults(source, asked), sources) for fault in found
        ]
    assert not faults, "; ".join(faults)


def _asked(node: fleet.Node) -> tuple[set[int], set[int]]:
    """The ports of TCP and of UDP that are asked for."""
    tcp, udp = listening(node.name)
    return reach.declared() | NOBODYS | tcp, NOBODYS_UDP | udp


def _faults(source: fleet.Node | None, asked: dict[fleet.Node, tuple[set[int], set[int]]]) -> list[str]:
    targets = [node for node in asked if node != source]
    tcp = [(node.address, port) for node in targets for port in asked[node][0]]
    udp = [(node.address, port) for node in targets for port in asked[node][1]]
    found = scan(source.name if source else None, tcp, udp)
    where = source.name if source else "outside"
    return [
        f"{where} to {node.name}: {fault}"
        for node in targets
        for fault in (
            *reach.table(source, node).faults(
                _ports(found.open | found.refused, node), _ports(found.open, node)
            ),
            *reach.table(source, node, "udp").unasked(_ports(found.heard, node)),
        )
    ]


def _ports(ends: set[tuple[str, int]], node: fleet.Node) -> set[int]:
    return {port for address, port in ends if address == node.address}
