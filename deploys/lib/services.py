"""What several roles need to know about services on a host."""

from __future__ import annotations

from pyinfra.context import host
from pyinfra.facts.systemd import SystemdStatus

from deploys.lib.config_files import ConfigFile, Configuration, render


def running(unit: str) -> bool:
    """Whether the unit ran before this deploy began."""
    return bool((host.get_fact(SystemdStatus, services=[unit]) or {}).get(unit))


def options(unit: str, *words: str) -> Configuration:
    """The command-line options of a service of Debian's Prometheus packages."""
    text = render("monitoring/options.j2", options=words)
    return Configuration(unit, [ConfigFile(f"/etc/default/{unit}", text)], label=f"{unit}-options")
