"""What every host is before it has a role: accounts, SSH, firewall, time, updates, logs, names, trust."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host

from deploys import fleet

Commands = Generator[StringCommand, None, None]

PACKAGES = ["ca-certificates", "chrony", "ssl-cert", "sudo", "ufw", "unattended-upgrades"]


class FirewallRules(FactBase[set[str]]):
    """Rules of ufw as ``proto port source``, for instance ``tcp 5432 172.30.77.21``; source ``any``."""

    def command(self) -> str:
        return "cat /etc/ufw/user.rules 2>/dev/null || true"

    @staticmethod
    def default() -> set[str]:
        return set()

    def process(self, output: list[str]) -> set[str]:
        rules = set()
        for line in output:
            fields = line.split()
            # ### tuple ### allow tcp 5432 0.0.0.0/0 any 172.30.77.21 in [comment=…]
            if fields[:4] == ["###", "tuple", "###", "allow"]:
                source = "any" if fields[8] in ("0.0.0.0/0", "::/0") else fields[8]
                rules.add(f"{fields[4]} {fields[5]} {source}")
        return rules


@operation()
def open_ports(
    ports: list[int], addresses: list[str], proto: str = "tcp"
) -> Commands:
    """Lets `addresses` (``any`` for everybody) reach `ports`."""
    present = host.get_fact(FirewallRules)
    for address in addresses:
        for port in ports:
            if f"{proto} {port} {address}" not in present:
                yield StringCommand(
                    "ufw", "allow", "proto", proto, "from", address, "to", "any", "port", str(port)
                )


def allow(ports: list[int], sources: list[str] | None, proto: str = "tcp") -> None:
    """Opens ports of the current host to the hosts of some groups; `sources` None means to everybody.

    The firewall refuses everything else. Roles call this for their own ports.
    """
    open_ports(
        ports=ports,
        addresses=["any"] if sources is None else _addresses(sources),
        proto=proto,
        name=f"Open {proto} {_listed(ports)} to {_listed(sources or ['everybody'])} (/etc/ufw/user.rules)",
    )


def _addresses(groups: Iterable[str]) -> list[str]:
    found = {node.address for group in groups for node in fleet.hosts(group)}
    return sorted(found)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


@deploy("Base")
def base() -> None:
    """The base role, for every host."""
