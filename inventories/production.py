"""An annotated example of a production fleet. Copy it and put in your own addresses. Then run these commands.

    export RELAY_SECRETS_KEY=~/.config/relay/production.key   # age identity; keep a copy off this machine
    .venv/bin/python -m deploys secrets production            # makes every password, key and certificate
    .venv/bin/python -m deploys plan production               # says what would change; changes nothing
    .venv/bin/python -m deploys apply production

One line is one host: name, then where it is and how big it is. The addresses below belong to a block that is
reserved for documentation and lead nowhere. Sizes are checked against the least each role needs.
"""

from typing import Any


def _node(address: str, cpus: int, memory_gb: int, disk_gb: int) -> dict[str, Any]:
    """`address` is the one other hosts use (private where there is a private network).

    Where SSH needs another one, replace ssh_hostname for that host.
    """
    return {
        "address": address,
        "ssh_hostname": address,
        "cpus": cpus,
        "memory_gb": memory_gb,
        "disk_gb": disk_gb,
    }


# nginx, TLS, rate limits: at least two, behind DNS or a load balancer. 2-4 CPUs, 4-8 GB, 50 GB.
edge = [
    ("edge1", _node("192.0.2.11", 4, 8, 50)),
    ("edge2", _node("192.0.2.12", 4, 8, 50)),
]
# The relay, one replica a node: at least three. 8-16 CPUs, 16-32 GB, 200 GB. All are swarm managers, so keep
# the number odd; to grow, add a line here and run apply.
app = [
    ("app1", _node("192.0.2.21", 8, 16, 200)),
    ("app2", _node("192.0.2.22", 8, 16, 200)),
    ("app3", _node("192.0.2.23", 8, 16, 200)),
]
# The app host that carries the Dokploy label.
dokploy = ["app1"]
# PostgreSQL (Patroni) and etcd: an odd number, at least three, in different failure domains.
db = [
    ("db1", _node("192.0.2.31", 8, 32, 500)),
    ("db2", _node("192.0.2.32", 8, 32, 500)),
    ("db3", _node("192.0.2.33", 8, 32, 500)),
]
# Monitoring, image registry, cache.
ops = [("ops1", _node("192.0.2.41", 4, 8, 200))]
# Groups of the sandbox only: an S3 store and a fake AI provider. Production uses real ones.
vault: list[str] = []
provider: list[str] = []
