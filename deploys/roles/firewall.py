"""Closes what no role opened: the last stage, when every role of a host has said what it needs."""

from __future__ import annotations

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.operation import operation
from pyinfra.context import host

from deploys.roles.base import Commands, FirewallRules, wanted_rules


@operation()
def close() -> Commands:
    """Removes rules that no role asked for: of a host that left the inventory, or made by hand."""
    for rule in sorted(host.get_fact(FirewallRules) - wanted_rules()):
        proto, port, source = rule.split()
        yield StringCommand(f"ufw delete allow proto {proto} from {source} to any port {port}")


@deploy("Firewall")
def firewall() -> None:
    """The firewall role, for every host, after all others; does nothing when it is run alone."""
    if wanted_rules():
        close(name="Close ports that no role opened (/etc/ufw/user.rules)")
