"""Health between stages: what must be true of a role before the next one is built on it."""

from __future__ import annotations

import time
from collections.abc import Callable

from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

from deploys.lib.errors import DeployError
from deploys.lib.role import ALL, HealthCheck, Role

PAUSE_SECONDS = 2.0

Shell = Callable[[Host, str], tuple[bool, str]]


def wait(role: Role, check: HealthCheck, inventory: Inventory, shell: Shell) -> float:
    """Waits until the check passes and returns the seconds it took; one that keeps failing is an error."""
    hosts = list(inventory) if role.group == ALL else inventory.groups.get(role.group, [])
    start = time.monotonic()
    for host in hosts[:1] if check.first or role.first_only else hosts:
        _wait(role, check, host, shell, start + check.seconds)
    return time.monotonic() - start


def _wait(role: Role, check: HealthCheck, host: Host, shell: Shell, deadline: float) -> None:
    while True:
        ok, output = shell(host, check.command)
        if ok:
            return
        if time.monotonic() > deadline:
            last = output.strip().splitlines()[-1:] or ["no output"]
            raise DeployError(
                f"{role.name}: not within {check.seconds} s: {check.what}. {host.name} says: {last[0]}. "
                "Look at the services there (systemctl --failed), then run apply again."
            )
        time.sleep(PAUSE_SECONDS)
