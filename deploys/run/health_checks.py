"""Health between stages: what must be true of a role before the next one is built on it."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import gevent
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

from deploys.lib.errors import DeployError
from deploys.lib.role import ALL, HealthCheck, Role
from deploys.run import diagnosis
from deploys.run.diagnosis import Finding, Shell

PAUSE_SECONDS = 2.0
# How often the reason is looked for while a check is not true.
LOOK_SECONDS = 15.0


def wait(
    role: Role, check: HealthCheck, inventory: Inventory, shell: Shell, away: Collection[str] = ()
) -> float:
    """Waits until the check passes and returns the seconds it took. Hosts named in `away` are not asked.

    One that keeps failing, or whose units crash again and again, is an error that names the members, their
    last log lines and the command that mends them.
    """
    hosts = list(inventory) if role.group == ALL else inventory.groups.get(role.group, [])
    hosts = hosts[:1] if role.first_only else hosts
    hosts = [host for host in hosts if host.name not in away] if role.wanted() else []
    start = time.monotonic()
    asked = hosts[:1] if check.first else hosts
    jobs = [gevent.spawn(shell, host, check.command) for host in asked]
    gevent.joinall(jobs)
    for host, job in zip(asked, jobs, strict=True):
        if not job.get()[0]:
            _wait(role, check, host, hosts, shell, start)
    return time.monotonic() - start


def _wait(
    role: Role, check: HealthCheck, host: Host, hosts: Sequence[Host], shell: Shell, start: float
) -> None:
    look = time.monotonic() + LOOK_SECONDS
    while True:
        ok, output = shell(host, check.command)
        if ok:
            return
        now = time.monotonic()
        late = now > start + check.seconds
        if late or now > look:
            look = now + LOOK_SECONDS
            found = diagnosis.findings(check, hosts, shell)
            if late or any(finding.hopeless for finding in found):
                raise DeployError(_failure(role, check, host, output, found, now - start))
        time.sleep(PAUSE_SECONDS)


def _failure(
    role: Role, check: HealthCheck, host: Host, output: str, found: Sequence[Finding], seconds: float
) -> str:
    last = output.strip().splitlines()[-1:] or ["no output"]
    lines = [f"{role.name}: not within {seconds:.0f} s: {check.what}. {host.name} says: {last[0]}"]
    lines += [str(finding) for finding in found]
    lines.append(diagnosis.remedy(check, found, host.name))
    return "\n".join(lines)
