"""What several roles need to know about services on a host."""

from __future__ import annotations

import hashlib

from pyinfra import host
from pyinfra.facts.systemd import SystemdStatus

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
