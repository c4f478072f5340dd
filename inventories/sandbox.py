"""The sandbox: a whole fleet on one machine, reached over SSH like any other.

Hosts come into being with `make up`; addresses and host names here are the only ones there are.
"""

from typing import Any


def _node(address: str, cpus: int, memory_gb: int, disk_gb: int) -> dict[str, Any]:
    return {
        "address": address,
        "ssh_hostname": address,
        "cpus": cpus,
        "memory_gb": memory_gb,
        "disk_gb": disk_gb,
    }


edge = [
    ("edge1", _node("172.30.77.11", 2, 4, 50)),
    ("edge2", _node("172.30.77.12", 2, 4, 50)),
]
app = [
    ("app1", _node("172.30.77.21", 8, 16, 200)),
    ("app2", _node("172.30.77.22", 8, 16, 200)),
    ("app3", _node("172.30.77.23", 8, 16, 200)),
]
dokploy = ["app1"]
db = [
    ("db1", _node("172.30.77.31", 4, 8, 100)),
    ("db2", _node("172.30.77.32", 4, 8, 100)),
    ("db3", _node("172.30.77.33", 4, 8, 100)),
]
ops = [("ops1", _node("172.30.77.41", 4, 8, 100))]
vault = [("vault1", _node("172.30.77.51", 2, 4, 100))]
vendor = [("vendor1", _node("172.30.77.61", 2, 2, 20))]
