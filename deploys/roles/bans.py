"""Bans: addresses whose packets a host drops, made by operators, by alerts, and by fail2ban.

The list is a file of the host (`relay-bans`, templates/bans/relay_bans.py). Deploys write the program and
what may be banned, never the list. The edge's hosts take alerts too: Alertmanager, on the hosts of `ops`,
sends those that have the label `ban_for` to each of them, over TLS and with a token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_network

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.operations import apt

from deploys.lib import fleet
from deploys.lib.config_files import SYSTEMD_UNITS, ConfigFile, Configuration, render, source
from deploys.lib.role import ALL, HealthCheck, Role
from deploys.lib.secrets import Secret
from deploys.lib.timing import seconds

PACKAGES = ["nftables"]
PROGRAM = "/usr/local/sbin/relay-bans"
UNIT = "relay-bans.service"
RULES, TOKEN = "/etc/relay/bans.json", "/etc/relay/bans.token"
# Where the edge's hosts take alerts.
ALERTS_PORT = 9118
TOKEN_SECRET = "bans_token"  # noqa: S105 - its name, not its value


def protected() -> dict[str, str]:
    """Networks that are never banned, and whose they are."""
    own = {
        address: f"the fleet's host {node.name}"
        for node in fleet.all_hosts()
        for address in {node.address, fleet.login_address(node)}
    }
    named = {
        network: f"in the setting `{name}`"
        for name in ("ban_never", "ssh_allowed_from", "edge_tools_allowed_from", "edge_trusted_proxies")
        for network in fleet.setting(name)
    }
    local = {"127.0.0.0/8": "this host itself", "::1": "this host itself"}
    return {text: whose for text, whose in {**named, **own, **local}.items() if _is_network(text)}


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def problems() -> Iterator[str]:
    """What would make bans impossible, or let an operator ban the operators."""
    for network in fleet.setting("ban_never"):
        if not _is_network(network):
            yield f"`ban_never`: {network!r} is no network: write a CIDR block such as 192.0.2.0/24"
    for name, least, most in (("ban_widest_ipv4", 8, 32), ("ban_widest_ipv6", 16, 128)):
        value = fleet.setting(name)
        if not isinstance(value, int) or not least <= value <= most:
            yield f"`{name}` is {value!r}: write the length of a prefix, from {least} to {most}"
    if not isinstance(fleet.setting("ban_most"), int) or not 1 <= fleet.setting("ban_most") <= 100_000:
        yield "`ban_most` is a number from 1 to 100000"
    if seconds("ban_longest_by_alert") < 1:
        yield "`ban_longest_by_alert` is at least 1s"


ROLE = Role(
    "bans",
    ALL,
    health_checks=(
        HealthCheck(
            "bans are held",
            "systemctl is-active relay-bans",
            units=(UNIT,),
            mend="`sudo systemctl restart relay-bans`",
        ),
    ),
    secrets=(Secret(TOKEN_SECRET),),
    problems=problems,
)


def rules() -> str:
    """What the hosts let be banned, as `relay-bans` reads it."""
    settings = {
        "never": protected(),
        "widest_v4": fleet.setting("ban_widest_ipv4"),
        "widest_v6": fleet.setting("ban_widest_ipv6"),
        "most": fleet.setting("ban_most"),
        "longest_by_alert_seconds": int(seconds("ban_longest_by_alert")),
    }
    return json.dumps(settings, indent=2) + "\n"


@deploy("Bans")
def bans() -> None:
    """The bans role, for every host."""
    apt.packages(name="Install nftables", packages=PACKAGES, no_recommends=True)
    takes_alerts = fleet.node_of(host) in fleet.hosts("edge")
    words = ["keep", f"--listen 0.0.0.0:{ALERTS_PORT}", f"--token {TOKEN}"] if takes_alerts else ["keep"]
    token = [ConfigFile(TOKEN, fleet.secret(TOKEN_SECRET) + "\n", mode="600")] if takes_alerts else []
    files = [
        ConfigFile(PROGRAM, source("bans/relay_bans.py"), mode="755"),
        ConfigFile(RULES, rules()),
        ConfigFile(
            f"{SYSTEMD_UNITS}{UNIT}", render("bans/relay-bans.service.j2", program=PROGRAM, words=words)
        ),
        *token,
    ]
    Configuration(UNIT, files, check=f"{PROGRAM} list >/dev/null").keep()
