"""Health between stages: what must be true of a role before the next one is built on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

from deploys.lib.errors import DeployError

PAUSE_SECONDS = 2.0

Shell = Callable[[Host, str], tuple[bool, str]]


@dataclass(frozen=True)
class HealthCheck:
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


HEALTH_CHECKS = (
    HealthCheck("docker", "app", "the engine answers", "docker info --format '{{.ServerVersion}}'"),
    HealthCheck("registry", "ops", "the registry runs", _active("docker-registry"), first=True),
    HealthCheck(
        "swarm",
        "app",
        "every node is ready",
        f"{_NODES} >/dev/null && ! {_NODES} | grep -v Ready",
        first=True,
    ),
    HealthCheck(
        "etcd", "db", "every member is healthy", "relay-etcdctl endpoint health --cluster", first=True
    ),
    HealthCheck(
        "postgres",
        "db",
        "one leader, every member streams",
        f'patronictl list -f json | python3 -c "{_MEMBERS_RUN}" || {{ patronictl list; false; }}',
        first=True,
    ),
    HealthCheck("cache", "ops", "Redis runs", _active("redis-server"), first=True),
    HealthCheck(
        "relay",
        "app",
        "every replica is healthy",
        # "3/3 (max 1 per node)"
        f"{_REPLICAS}; {_REPLICAS} | grep -Eq '^([1-9][0-9]*)/\\1( |$)'",
        first=True,
    ),
    HealthCheck("edge", "edge", "nginx runs", _active("nginx")),
    HealthCheck(
        "monitoring", "ops", "Prometheus runs", _active("prometheus", "prometheus-alertmanager"), first=True
    ),
)


def after(role: str) -> list[HealthCheck]:
    """The health checks of a role."""
    return [check for check in HEALTH_CHECKS if check.role == role]


def wait(check: HealthCheck, inventory: Inventory, shell: Shell) -> float:
    """Waits until the check passes and returns the seconds it took; one that keeps failing is an error."""
    hosts = inventory.groups.get(check.group, [])
    start = time.monotonic()
    for host in hosts[:1] if check.first else hosts:
        _wait(check, host, shell, start + check.seconds)
    return time.monotonic() - start


def _wait(check: HealthCheck, host: Host, shell: Shell, deadline: float) -> None:
    while True:
        ok, output = shell(host, check.command)
        if ok:
            return
        if time.monotonic() > deadline:
            last = output.strip().splitlines()[-1:] or ["no output"]
            raise DeployError(
                f"{check.role}: not within {check.seconds} s: {check.what}. {host.name} says: {last[0]}. "
                "Look at the services there (systemctl --failed), then run apply again."
            )
        time.sleep(PAUSE_SECONDS)
