"""How an environment's settings become an `ssh` command: the same login that pyinfra makes.

As with pyinfra, ``~/.ssh/config`` is read as well and the settings win over it, so that jump hosts and agents
of the operator work for both.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyinfra.api.host import Host

# A host that dies in the middle of a command is noticed after their product in seconds.
ALIVE_SECONDS, ALIVE_TRIES = 5, 4
# It counts until sshd has greeted, which an overloaded host does late: there commands are needed soonest.
CONNECT_SECONDS = 15
_SETTINGS = {
    "ssh_user": "User",
    "ssh_port": "Port",
    "ssh_key": "IdentityFile",
    "ssh_known_hosts_file": "UserKnownHostsFile",
    "ssh_strict_host_key_checking": "StrictHostKeyChecking",
}


def command(host: Host, sockets: Path) -> list[str]:
    """`ssh OPTIONS ADDRESS`, to which a remote command is appended. Commands to a host share a connection,
    whose socket is in the directory `sockets`."""
    options = [f"-o{name}={value}" for name, value in _options(host, sockets)]
    return ["ssh", *options, str(host.data.get("ssh_hostname") or host.name)]


def as_root(command: list[str], shell: str) -> list[str]:
    """The command that runs a shell command as root on the host of `command`."""
    # Nobody's home directory may be in the way: root and postgres cannot always enter the operator's.
    return [*command, "sudo -n sh -c " + shlex.quote(f"cd / && {shell}")]


def disconnect(host: Host, sockets: Path) -> list[str]:
    """The command that ends the shared connection."""
    return [*command(host, sockets)[:-1], "-Oexit", command(host, sockets)[-1]]


def _options(host: Host, sockets: Path) -> Iterator[tuple[str, object]]:
    for setting, option in _SETTINGS.items():
        value = host.data.get(setting)
        if value:
            yield option, value
    if host.data.get("ssh_key"):
        yield "IdentitiesOnly", "yes"
    yield "BatchMode", "yes"
    yield "LogLevel", "ERROR"
    yield "ConnectTimeout", CONNECT_SECONDS
    yield "ServerAliveInterval", ALIVE_SECONDS
    yield "ServerAliveCountMax", ALIVE_TRIES
    yield "ControlMaster", "auto"
    yield "ControlPath", sockets / "%C"
    yield "ControlPersist", 30
