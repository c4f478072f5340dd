"""The sandbox: a whole fleet on one machine, reached over SSH like any other.

Hosts come into being with `make up`; addresses and host names here are the only ones there are. A second
sandbox beside the first takes another network: RELAY_SANDBOX_SUBNET=172.30.78.0/24. More hosts, to try what
growing and shrinking do: RELAY_SANDBOX_EXTRA="app4 db4 db5 edge3".
"""

import os
from ipaddress import ip_network
from typing import Any

_subnet = ip_network(os.environ.get("RELAY_SANDBOX_SUBNET") or "172.30.77.0/24")


def _node(number: int, cpus: int, memory_gb: int, disk_gb: int) -> dict[str, Any]:
    address = str(_subnet[number])
    return {
        "address": address,
        "ssh_hostname": address,
        "cpus": cpus,
        "memory_gb": memory_gb,
        "disk_gb": disk_gb,
    }


def _extra(group: str, first: int, *size: int) -> list[tuple[str, dict[str, Any]]]:
    """Hosts of RELAY_SANDBOX_EXTRA that belong to a group: app4 is number 24."""
    names = os.environ.get("RELAY_SANDBOX_EXTRA", "").split()
    numbers = [int(name.removeprefix(group)) for name in names if name.rstrip("0123456789") == group]
    return [(f"{group}{number}", _node(first + number, *size)) for number in numbers]


edge = [
    ("edge1", _node(11, 2, 4, 50)),
    ("edge2", _node(12, 2, 4, 50)),
    *_extra("edge", 10, 2, 4, 50),
]
app = [
    ("app1", _node(21, 8, 16, 200)),
    ("app2", _node(22, 8, 16, 200)),
    ("app3", _node(23, 8, 16, 200)),
    *_extra("app", 20, 8, 16, 200),
]
dokploy = ["app1"]
db = [
    ("db1", _node(31, 4, 8, 100)),
    ("db2", _node(32, 4, 8, 100)),
    ("db3", _node(33, 4, 8, 100)),
    *_extra("db", 30, 4, 8, 100),
]
ops = [("ops1", _node(41, 4, 8, 100))]
vault = [("vault1", _node(51, 2, 4, 100))]
provider = [("provider1", _node(61, 2, 2, 20))]
