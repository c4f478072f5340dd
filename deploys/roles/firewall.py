"""The host's firewall: it refuses what no role of the host opens. Base switches it on and opens; this role,
the last one, closes what nobody needs: a rule for a host that left the inventory, or one made by hand.
"""

from __future__ import annotations

from collections.abc import Collection, Generator

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host

from deploys import roles
from deploys.lib import fleet
from deploys.lib.role import ALL, Opening, Role

Commands = Generator[StringCommand, None, None]

ROLE = Role("firewall", ALL)
ANYBODY = "any"
# What ufw writes in place of a port.
NO_PORT = "any"


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
                source = ANYBODY if fields[8] in ("0.0.0.0/0", "::/0") else fields[8]
                rules.add(f"{fields[4]} {fields[5]} {source}")
        return rules


class FirewallEnabled(FactBase[bool]):
    """Whether ufw is switched on and its rules are loaded."""

    def command(self) -> str:
        return "grep -qx ENABLED=yes /etc/ufw/ufw.conf && iptables -S ufw-user-input >&2 && echo on || true"

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return output == ["on"]


def wanted_rules() -> set[str]:
    """The rules that the roles of the current host need, as FirewallRules writes them."""
    rules: set[str] = set()
    for opening in roles.openings(fleet.node_of(host), published=False):
        for source in _sources(opening):
            rules |= {f"{opening.proto} {port} {source}" for port in opening.ports or (NO_PORT,)}
    # Where everybody may, nobody needs a rule of their own.
    return {rule for rule in rules if rule.endswith(f" {ANYBODY}") or _for_anybody(rule) not in rules}


def _sources(opening: Opening) -> list[str]:
    if opening.groups is None:
        networks: list[str] = fleet.setting(opening.networks) if opening.networks else []
        return networks or [ANYBODY]
    return [node.address for group in opening.groups for node in fleet.hosts(group)]


def _for_anybody(rule: str) -> str:
    return f"{rule.rpartition(' ')[0]} {ANYBODY}"


def _present() -> set[str]:
    rules: set[str] = host.get_fact(FirewallRules)
    return rules


def _change(verb: str, rules: Collection[str]) -> Commands:
    for rule in sorted(rules):
        proto, port, source = rule.split()
        to = "to any" if port == NO_PORT else f"to any port {port}"
        yield StringCommand(f"ufw {verb} proto {proto} from {source} {to}")


@operation()
def open_ports(wanted: set[str]) -> Commands:
    """Adds the rules that are missing, then refuses everything else; SSH stays open throughout."""
    yield from _change("allow", wanted - _present())
    if not host.get_fact(FirewallEnabled):
        yield StringCommand("ufw default deny incoming")
        yield StringCommand("ufw default allow outgoing")
        yield StringCommand("ufw --force enable")


@operation()
def close_ports(wanted: set[str]) -> Commands:
    """Removes the rules that no role needs, and ends the connections that they let in: the firewall itself
    lets those go on, so a host that left would keep its place in the cluster."""
    surplus = _present() - wanted
    yield from _change("delete allow", surplus)
    for rule in sorted(surplus):
        proto, port, source = rule.split()
        # Not SSH: this run itself came in that way.
        if proto == "tcp" and port != "22" and source != ANYBODY:
            yield StringCommand(f"ss --kill --no-header dst {source} sport = :{port} >/dev/null 2>&1 || true")


def open_wanted() -> None:
    """Opens what the current host's roles need and closes the rest to newcomers; base calls this."""
    open_ports(name="Open the ports of this host's roles (/etc/ufw/user.rules)", wanted=wanted_rules())


@deploy("Firewall")
def firewall() -> None:
    """The firewall role, for every host, after all others."""
    close_ports(name="Close ports that no role opened (/etc/ufw/user.rules)", wanted=wanted_rules())
