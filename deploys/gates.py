"""Health between stages: what must be true of a role before the next one is built on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

from deploys.errors import DeployError

PAUSE_SECONDS = 2.0

Shell = Callable[[Host, str], tuple[bool, str]]


@dataclass(frozen=True)
class Gate:
    """After `role`: `command`, as root on each host of `group`, exits 0 when `what` holds."""

    role: str
    group: str
    what: str
    command: str
    # Whether one host, the first, can answer for all.
    first: bool = False
    seconds: int = 120


_MEMBERS_RUN = (
    "import json, sys; members = json.load(sys.stdin); "
    "sys.exit(not (any(m['Role'] == 'Leader' for m in members) "
    "and all(m['State'] in ('running', 'streaming') for m in members)))"
)
_NODES = "docker node ls --format '{{.Hostname}} {{.Status}}'"
_REPLICAS = "docker service ls --filter name=relay_relay --format '{{.Replicas}}'"


def _active(*units: str) -> str:
    return f"systemctl is-active {' '.join(units)}"


GATES = (
    Gate("docker", "app", "the engine answers", "docker info --format '{{.ServerVersion}}'"),
    Gate("registry", "ops", "the registry runs", _active("docker-registry"), first=True),
    Gate(
        "swarm",
        "app",
        "every node is ready",
        f"{_NODES} >/dev/null && ! {_NODES} | grep -v Ready",
        first=True,
    ),
    Gate("etcd", "db", "every member is healthy", "relay-etcdctl endpoint health --cluster", first=True),
    Gate(
        "postgres",
        "db",
        "one leader, every member streams",
        f'patronictl list -f json | python3 -c "{_MEMBERS_RUN}" || {{ patronictl list; false; }}',
        first=True,
    ),
    Gate("cache", "ops", "Redis runs", _active("redis-server"), first=True),
    Gate(
        "relay",
        "app",
        "every replica is healthy",
        # "3/3 (max 1 per node)"
        f"{_REPLICAS}; {_REPLICAS} | grep -Eq '^([1-9][0-9]*)/\\1( |$)'",
        first=True,
    ),
    Gate("edge", "edge", "nginx runs", _active("nginx")),
    Gate(
        "monitoring", "ops", "Prometheus runs", _active("prometheus", "prometheus-alertmanager"), first=True
    ),
)


def after(role: str) -> list[Gate]:
    """The gates of a role."""
    return [gate for gate in GATES if gate.role == role]


def wait(gate: Gate, inventory: Inventory, shell: Shell) -> float:
    """Waits until the gate opens and returns the seconds it took; one that stays shut is an error."""
    hosts = inventory.groups.get(gate.group, [])
    start = time.monotonic()
    for host in hosts[:1] if gate.first else hosts:
        _wait(gate, host, shell, start + gate.seconds)
    return time.monotonic() - start


def _wait(gate: Gate, host: Host, shell: Shell, deadline: float) -> None:
    while True:
        ok, output = shell(host, gate.command)
        if ok:
            return
        if time.monotonic() > deadline:
            last = output.strip().splitlines()[-1:] or ["no output"]
            raise DeployError(
                f"{gate.role}: not within {gate.seconds} s: {gate.what}. {host.name} says: {last[0]}. "
                "Look at the services there (systemctl --failed), then run apply again."
            )
        time.sleep(PAUSE_SECONDS)
