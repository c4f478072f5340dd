"""Why a role is not healthy: which host's member, what it logged last, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pyinfra.api.host import Host

from deploys.lib.role import HealthCheck

LOG_LINES = 6
# A unit that systemd has started again this often will not come up by being waited for.
HOPELESS_RESTARTS = 5
_UNIT = "unit:"

Shell = Callable[[Host, str], tuple[bool, str]]


@dataclass(frozen=True)
class Finding:
    """What is wrong on a host. `hopeless`: waiting longer is of no use."""

    host: str
    lines: tuple[str, ...]
    hopeless: bool = False

    def __str__(self) -> str:
        first, *rest = self.lines
        return "\n".join([f"  {self.host}: {first}", *(f"    {line}" for line in rest)])


def findings(check: HealthCheck, hosts: Iterable[Host], shell: Shell) -> list[Finding]:
    """What the role's hosts say is wrong with them; nothing from those that are well."""
    return [found for host in hosts for found in _of(check, host, shell)]


def remedy(check: HealthCheck, found: Iterable[Finding], otherwise: str = "the hosts") -> str:
    """The line that says what mends the hosts of ``found``."""
    named = ", ".join(dict.fromkeys(finding.host for finding in found)) or otherwise
    mend = check.mend or "look at the services there (systemctl --failed)"
    return f"To mend {named}: {mend}. Then run apply again."


def _of(check: HealthCheck, host: Host, shell: Shell) -> list[Finding]:
    found = [_unit(host, block) for block in _units(check, host, shell)]
    if found or not check.member:
        return found
    well, output = shell(host, check.member)
    lines = output.strip().splitlines()[-LOG_LINES:] or ["its member is not well and says nothing"]
    return [] if well else [Finding(host.name, tuple(lines))]


def _units(check: HealthCheck, host: Host, shell: Shell) -> list[list[str]]:
    """For each unit that does not run: ``unit: NAME STATE RESULT RESTARTS``, then its last log lines."""
    if not check.units:
        return []
    ok, output = shell(host, units_command(check.units))
    if not ok:
        return [[f"{_UNIT} {host.name} does-not-answer {output.strip() or 'nothing'} 0"]]
    blocks: list[list[str]] = []
    for line in output.splitlines():
        if line.startswith(_UNIT):
            blocks.append([line])
        elif blocks:
            blocks[-1].append(line)
    return blocks


def units_command(units: Iterable[str]) -> str:
    """A shell command that tells of those units that do not run."""
    show = "systemctl show --value --property"
    return (
        f"for u in {' '.join(units)}; do systemctl is-active --quiet $u || {{ "
        f'echo "{_UNIT} $u $({show}=ActiveState $u) $({show}=Result $u) $({show}=NRestarts $u)"; '
        f"journalctl --unit $u --lines {LOG_LINES} --no-pager --output cat; }}; done"
    )


def _unit(host: Host, block: list[str]) -> Finding:
    _, unit, state, *result, restarts = block[0].split()
    if state == "does-not-answer":
        return Finding(host.name, (f"does not answer: {' '.join(result)}",))
    told = f"{unit} is {state} ({' '.join(result)}, started again {restarts} times); its last lines:"
    hopeless = state == "failed" or int(restarts) >= HOPELESS_RESTARTS
    return Finding(host.name, (told, *block[1:]), hopeless)
