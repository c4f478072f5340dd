"""What the sandbox is called and where it keeps its things.

Three environment variables make a second one beside it: RELAY_SANDBOX_NAME (default `relay-sandbox`),
RELAY_SANDBOX_SUBNET (default: that of the inventory) and RELAY_SANDBOX_DIR (default `.sandbox`).
"""

from __future__ import annotations

import os
import re
import runpy
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories" / "sandbox.py"
DOMAIN = "sandbox.test"
USER = "deploy"


class SandboxError(Exception):
    """Something the person at the keyboard has to act on; the message says what to do."""


@dataclass(frozen=True)
class Host:
    """A host of the inventory. `groups` are the inventory's names, as `app` and `db`."""

    name: str
    address: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Sandbox:
    """One sandbox on this machine; `name` also names its containers, network and volumes."""

    name: str
    subnet: IPv4Network
    directory: Path
    hosts: tuple[Host, ...]

    @property
    def gateway(self) -> str:
        return str(self.subnet.network_address + 1)

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh" / "config"

    @property
    def cache(self) -> Path:
        return self.directory / "cache"

    @property
    def runtime(self) -> Path:
        """Socket and mounts of an engine that this sandbox starts itself."""
        return Path("/run") / self.name

    @property
    def engine_data(self) -> Path:
        return Path("/var/lib") / self.name

    def container(self, host: Host) -> str:
        return f"{self.name}-{host.name}"

    def host(self, name: str) -> Host:
        """Raises SandboxError for a host that the inventory does not have."""
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise SandboxError(f"no host {name!r} in {INVENTORY.relative_to(ROOT)}; it has {known}")


def load(environment: Mapping[str, str] = os.environ) -> Sandbox:
    """The sandbox that the environment asks for, with the hosts of inventories/sandbox.py."""
    name = environment.get("RELAY_SANDBOX_NAME", "relay-sandbox")
    if not re.fullmatch(r"[a-z][a-z0-9-]{1,14}", name):
        raise SandboxError(
            f"RELAY_SANDBOX_NAME={name!r}: 2 to 15 of a-z, 0-9 and '-' (it names a bridge device)"
        )
    hosts = read_hosts(runpy.run_path(str(INVENTORY)))
    subnet = IPv4Network(environment.get("RELAY_SANDBOX_SUBNET") or f"{hosts[0].address}/24", strict=False)
    directory = ROOT / environment.get("RELAY_SANDBOX_DIR", ".sandbox")
    return Sandbox(name, subnet, directory, tuple(rebase(host, subnet) for host in hosts))


def read_hosts(inventory: Mapping[str, Any]) -> list[Host]:
    """Hosts in the order of an inventory's groups (module-level lists of names or `(name, data)`)."""
    addresses: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for group, members in inventory.items():
        if group.startswith("_") or not isinstance(members, list):
            continue
        for member in members:
            name, data = (member, {}) if isinstance(member, str) else member
            addresses.setdefault(name, data.get("address", ""))
            groups.setdefault(name, []).append(group)
    for name, address in addresses.items():
        if not address:
            raise SandboxError(f"host {name!r} of {INVENTORY.name} has no `address`; add one to its data")
    return [Host(name, address, tuple(groups[name])) for name, address in addresses.items()]


def rebase(host: Host, subnet: IPv4Network) -> Host:
    """The same host number (last octet) in another /24."""
    number = int(IPv4Address(host.address)) & 0xFF
    return Host(host.name, str(subnet.network_address + number), host.groups)
