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
    """After `role`: `command`, as root on the first host of `group`, exits 0 when `what` holds."""

    role: str
    group: str
    what: str
    command: str
    seconds: int = 120


GATES: tuple[Gate, ...] = ()


def after(role: str) -> list[Gate]:
    """The gates of a role."""
    return [gate for gate in GATES if gate.role == role]


def wait(gate: Gate, inventory: Inventory, shell: Shell) -> float:
    """Waits until the gate opens and returns the seconds it took; one that stays shut is an error."""
    hosts = inventory.groups.get(gate.group, [])
    if not hosts:
        return 0.0
    start = time.monotonic()
    while True:
        ok, output = shell(hosts[0], gate.command)
        if ok:
            return time.monotonic() - start
        if time.monotonic() - start > gate.seconds:
            last = output.strip().splitlines()[-1:] or ["no output"]
            raise DeployError(
                f"{gate.role}: not within {gate.seconds} s: {gate.what}. {hosts[0].name} says: {last[0]}. "
                "Look at the services there (systemctl --failed), then run apply again."
            )
        time.sleep(PAUSE_SECONDS)
