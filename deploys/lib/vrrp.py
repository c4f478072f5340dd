"""An address that one of several hosts holds: keepalived's configuration, and what its settings must be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_interface

from deploys.lib import fleet
from deploys.lib.config_files import render

# The first host of the group is preferred, by so much before the next.
FIRST_PRIORITY, STEP = 200, 10


def configuration(own: fleet.Node, nodes: Sequence[fleet.Node]) -> str:
    """keepalived.conf of host `own`, one of `nodes`."""
    return render(
        "edge/keepalived.conf.j2",
        name=own.name,
        own=own.address,
        peers=[node.address for node in nodes if node != own],
        priority=FIRST_PRIORITY - STEP * list(nodes).index(own),
        address=fleet.setting("edge_virtual_address"),
        interface=fleet.setting("edge_virtual_interface"),
        router_id=fleet.setting("edge_virtual_router_id"),
    )


def check(path: str) -> str:
    """The shell command that tests a configuration. keepalived 2.2.7 ends itself by SIGTERM in a test of one
    that has scripts, before it has looked at all of it."""
    return f"(trap '' TERM; keepalived -t -f {path})"


def problems(nodes: Sequence[fleet.Node]) -> Iterator[str]:
    """What is wrong with the settings, where an address is set."""
    text = fleet.setting("edge_virtual_address")
    if not text:
        return
    try:
        address = ip_interface(text)
    except ValueError:
        yield f"`edge_virtual_address` is {text!r}: write an address and its network's prefix: 192.0.2.10/24"
        return
    if "/" not in text:
        yield f"`edge_virtual_address` has no prefix: write {text}/24, or what the network has"
    for node in fleet.all_hosts():
        if ip_address(node.address) == address.ip:
            yield f"`edge_virtual_address` is the address of {node.name}: it must be of no host"
    if any(ip_address(node.address).version != address.version for node in nodes):
        yield "`edge_virtual_address` is not of the kind (IPv4 or IPv6) that the edges' addresses are of"
    if not 2 <= len(nodes) <= FIRST_PRIORITY // STEP - 1:
        yield "`edge_virtual_address` needs two edges or more, and 19 at the most"
    if not re.fullmatch(r"[A-Za-z0-9_.@-]{1,15}", str(fleet.setting("edge_virtual_interface"))):
        yield "`edge_virtual_interface` is no interface: write for instance eth0, as `ip link` shows"
    number = fleet.setting("edge_virtual_router_id")
    if not isinstance(number, int) or not 1 <= number <= 255:
        yield "`edge_virtual_router_id` is a number from 1 to 255 that nobody else in the network uses"
