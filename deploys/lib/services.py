"""What several roles need to know about services on a host."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable

from pyinfra.api.facts import FactBase
from pyinfra.context import host
from pyinfra.facts.systemd import SystemdStatus
from pyinfra.operations import server, systemd

from deploys.lib import fleet
from deploys.lib.config_files import ConfigFile, guarded, render


class Outdated(FactBase[bool]):
    """Whether a running unit has not read one of its files: the file is newer than the unit's start, and than
    the file `stamp` (touched after a reload) where there is one. That happens when a deploy is interrupted
    between writing the file and restarting the unit; nothing would change the file again."""

    def command(self, unit: str, paths: list[str], stamp: str = "/nonexistent") -> str:
        started = f"systemctl show --timestamp=us --property ActiveEnterTimestamp --value {unit}"
        files = " ".join(shlex.quote(path) for path in paths)
        newer = f'find {files} -newermt "$since" $stamp 2>/dev/null | grep -q . && echo yes'
        return (
            f'since=$({started} 2>/dev/null); stamp=; test -e {stamp} && stamp="-newer {stamp}";'
            f' if test -n "$since"; then {newer}; fi; true'
        )

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return output == ["yes"]


def running(unit: str) -> bool:
    """Whether the unit ran before this deploy began: only then does a changed file call for a restart;
    a unit that starts afterwards reads the new file anyway."""
    return bool((host.get_fact(SystemdStatus, services=[unit]) or {}).get(unit))


def outdated(unit: str, paths: list[str], stamp: str = "/nonexistent") -> bool:
    """See Outdated."""
    return bool(host.get_fact(Outdated, unit=unit, paths=paths, stamp=stamp))


def certificate_fingerprint() -> str:
    """SHA-256 of the current host's certificate. Written into a service's configuration it makes a renewed
    certificate a change of that file, so that the service loads it."""
    certificate = fleet.secret(f"tls_cert:{fleet.node_of(host).name}")
    return hashlib.sha256(certificate.encode()).hexdigest()


def keep_running(unit: str, paths: list[str], changed: Callable[[], bool]) -> None:
    """Runs a unit now and after a boot; restarts it when one of the files that it reads (`paths`) changed.

    The restart comes first: a package may have started the unit before its configuration was written.
    """
    stale = outdated(unit, paths)
    server.shell(
        name=f"Restart {unit}",
        commands=[f"systemctl daemon-reload && systemctl restart {unit}"],
        _if=lambda: stale or changed(),
    )
    systemd.service(name=f"Run {unit}", service=unit, enabled=True)


def keep_running_with(unit: str, options: list[str]) -> None:
    """A service of Debian's Prometheus packages with its command-line options, running."""
    text = render("monitoring/options.j2", options=options)
    guarded(unit, [ConfigFile(f"/etc/default/{unit}", text)], "true", "restart", f"{unit}-options")
    systemd.service(name=f"Run {unit}", service=unit, running=True, enabled=True)
