"""What several roles need to know about services on a host."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from pyinfra.context import host
from pyinfra.facts.systemd import SystemdStatus
from pyinfra.operations import server, systemd

from deploys import fleet


def running(unit: str) -> bool:
    """Whether the unit ran before this deploy began: only then does a changed file call for a restart;
    a unit that starts afterwards reads the new file anyway."""
    return bool((host.get_fact(SystemdStatus, services=[unit]) or {}).get(unit))


def certificate_fingerprint() -> str:
    """SHA-256 of the current host's certificate. Written into a service's configuration it makes a renewed
    certificate a change of that file, so that the service loads it."""
    certificate = fleet.secret(f"tls_cert:{fleet.node_of(host).name}")
    return hashlib.sha256(certificate.encode()).hexdigest()


def keep_running(
    unit: str, changed: Callable[[], bool], unit_changed: Callable[[], bool] | None = None
) -> None:
    """Runs a unit now and after a boot; (re)starts it when what it reads has changed.

    The restart comes first: a package may have started the unit before its configuration was written.
    """
    if unit_changed:
        systemd.daemon_reload(name=f"Read /etc/systemd/system/{unit} again", _if=unit_changed)
    server.shell(name=f"Restart {unit}", commands=[f"systemctl restart {unit}"], _if=changed)
    systemd.service(name=f"Run {unit}", service=unit, enabled=True)
