"""What roles, tests and tools ask about the fleet. Everything is read from pyinfra's current inventory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyinfra.context import inventory

from deploys.lib import rotation
from deploys.lib.errors import DeployError
from deploys.lib.rotation import Credential
from deploys.lib.secrets import SecretStore

if TYPE_CHECKING:
    from pyinfra.api.host import Host
    from pyinfra.api.operation import OperationMeta

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Node:
    """A host of the fleet: its short name and the address that other hosts reach it by."""

    name: str
    address: str

    @property
    def fqdn(self) -> str:
        """NAME.domain, as in /etc/hosts and in the host's certificate."""
        return f"{self.name}.{domain()}"


def node_of(host: Host) -> Node:
    """The node behind a pyinfra host."""
    # The @fake connector, which unit tests use, prefixes names.
    return Node(host.name.removeprefix("@fake/"), host.data.address)


def hosts(group: str) -> list[Node]:
    """Hosts of a group in inventory order; an unknown group is an error, an empty one an empty list."""
    # pyinfra forgets groups without hosts, but keeps their (empty) data.
    if group not in inventory.group_data:
        known = ", ".join(sorted(inventory.group_data))
        raise DeployError(f"no group {group!r} in the inventory; it has: {known}")
    return [node_of(host) for host in inventory.groups.get(group, [])]


def all_hosts() -> list[Node]:
    """Every host in inventory order."""
    return [node_of(host) for host in inventory]


def login_address(node: Node) -> str:
    """Where deploys log in to a host: an address, or a name."""
    found = next((host for host in inventory if node_of(host) == node), None)
    return str(found.data.get("ssh_hostname") or node.address) if found else node.address


def setting(name: str) -> Any:
    """A setting of the environment (inventories/group_data), the same for all hosts."""
    for host in inventory:
        try:
            return getattr(host.data, name)
        except AttributeError:
            raise DeployError(f"no setting {name!r}: add it to inventories/group_data/all.py") from None
    raise DeployError("the inventory has no hosts")


def domain() -> str:
    """DNS domain of the fleet, for instance ``sandbox.test``."""
    return str(setting("domain"))


def store() -> SecretStore:
    """The environment's encrypted secrets file."""
    return SecretStore.at(REPOSITORY, setting("secrets_file"), setting("secrets_key_file"))


def state_directory() -> Path:
    """Where the control machine keeps locks, logs and what it knows of the environment's runs."""
    return Path(REPOSITORY, Path(setting("state_directory")).expanduser())


def secret(name: str) -> str:
    """A secret's value; SecretMissing names the command that makes it."""
    return store()[name]


def shown(name: str) -> Credential:
    """A secret that roles show, and whose account it is; like `secret`, where there are two by turns."""
    secret(name)
    return rotation.shown(store().read(), name)


def taken(name: str) -> list[Credential]:
    """What roles that check a secret take: what is shown first, and in the middle of a rotation another
    one."""
    secret(name)
    return rotation.taken(store().read(), name)


def changed(*operations: OperationMeta) -> Callable[[], bool]:
    """Condition for ``_if=``: some operation changes its host. Can be answered before the run, unlike
    pyinfra's ``any_changed``, so that `plan` shows no reload that will not happen."""
    return lambda: any(operation.changed for operation in operations)
