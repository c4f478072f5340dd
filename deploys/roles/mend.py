"""What each host lets the healer do to it (templates/mend/relay_mend.py), and nothing else.

A host takes requests over TLS from the one host that may heal, by the name in its certificate; the program
runs only while it has one. What may be done depends on the host's groups: `mendable` is the whole list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from pyinfra.api.deploy import deploy
from pyinfra.context import host

from deploys.lib import fleet
from deploys.lib.config_files import SYSTEMD_UNITS, ConfigFile, Configuration, render, source
from deploys.lib.role import ALL, MONITORS, HealthCheck, Opening, Role
from deploys.roles import cache, edge, node_exporter, postgres, relay

PROGRAM, RULES = "/usr/local/sbin/relay-mend", "/etc/relay/mend.json"
PORT = 9120
SOCKET, SERVICE = "relay-mend.socket", "relay-mend@.service"
MODES = ("off", "dry", "act")
# Units that may be restarted when they have failed, by group: exporters and helpers, which hold no data.
# Never those whose restart is a failover or cuts people off: Patroni, etcd, PostgreSQL, Docker, SSH.
UNITS = {
    ALL: ("prometheus-node-exporter.service", "syslog-ng.service", "relay-bans.service", "fail2ban.service"),
    "edge": ("nginx.service", "prometheus-nginx-exporter.service", "relay-waf-log.service"),
    "db": ("prometheus-postgres-exporter.service", "relay-disk-watch.service"),
    "ops": (
        "prometheus-redis-exporter.service",
        "prometheus-blackbox-exporter.service",
        "redis-server.service",
        "relay-logs-intake.service",
    ),
}
# The exporters among them: the scrape's job and port.
EXPORTERS = {
    "prometheus-node-exporter.service": ("node", node_exporter.PORT),
    "prometheus-nginx-exporter.service": ("nginx", edge.EXPORTER_PORT),
    "prometheus-postgres-exporter.service": ("postgres", postgres.EXPORTER_PORT),
    "prometheus-redis-exporter.service": ("redis", cache.EXPORTER_PORT),
}


def mode() -> str:
    """off, dry or act."""
    return str(fleet.setting("healer"))


def wanted() -> bool:
    """Whether there is a healer at all."""
    return mode() != "off"


def groups_of(node: fleet.Node) -> list[str]:
    """The groups that a host is in, ALL among them."""
    return [ALL, *(name for name in ("edge", "app", "db", "ops") if node in fleet.hosts(name))]


def units(node: fleet.Node) -> list[str]:
    """Units of a host that may be restarted."""
    return [unit for group in groups_of(node) for unit in UNITS.get(group, ())]


def mendable(node: fleet.Node) -> dict[str, list[str]]:
    """What may be done on a host: actions, with the arguments they may have (none: the host judges)."""
    found: dict[str, list[str]] = {"restart-unit": units(node)}
    if node in fleet.hosts("app"):
        found |= {"replace-task": [relay.service()], "update-service": [relay.service()], "prune-images": []}
        found |= {"channel-off": [], "channel-on": [], "throttle-account": []}
    if node in fleet.hosts("edge"):
        found["reload-certificates"] = []
    return found


def exporters(node: fleet.Node) -> dict[str, str]:
    """The unit of each exporter of a host, by its job."""
    return {EXPORTERS[unit][0]: unit for unit in units(node) if unit in EXPORTERS}


def healer_host() -> fleet.Node:
    """The one host that may heal."""
    return fleet.hosts("ops")[0]


def problems() -> Iterator[str]:
    """What the healer's settings may be."""
    if mode() not in MODES:
        yield f"`healer` is {mode()!r}: write one of {', '.join(MODES)}"
    amount = fleet.setting("healer_throttle_usd_day")
    if not isinstance(amount, int) or isinstance(amount, bool) or amount < 0:
        yield f"`healer_throttle_usd_day` is {amount!r}: write whole US dollars, 0 or more"


ROLE = Role(
    "mend",
    ALL,
    wanted=wanted,
    health_checks=(
        HealthCheck(
            "the healer can be taken in",
            f"systemctl is-active --quiet {SOCKET}",
            units=(SOCKET,),
            mend="`sudo systemctl start relay-mend.socket`",
        ),
    ),
    openings=(Opening((PORT,), (MONITORS,)),),
    problems=problems,
)


def rules(node: fleet.Node) -> str:
    """mend.json of a host."""
    content = {
        "actions": mendable(node),
        "healers": [healer_host().fqdn],
        "ports": {unit: EXPORTERS[unit][1] for unit in units(node) if unit in EXPORTERS},
        "address": node.address,
        "task_port": relay.API_PORT,
        "throttle_usd_day": str(fleet.setting("healer_throttle_usd_day")),
    }
    return json.dumps(content, indent=1) + "\n"


@deploy("Mend")
def mend() -> None:
    """The program, and the socket that starts it."""
    node = fleet.node_of(host)
    values = {"program": PROGRAM, "address": node.address, "port": PORT}
    socket, service = f"{SYSTEMD_UNITS}{SOCKET}", f"{SYSTEMD_UNITS}{SERVICE}"
    Configuration(
        SOCKET,
        [
            ConfigFile(PROGRAM, source("mend/relay_mend.py"), mode="755"),
            ConfigFile(RULES, rules(node), mode="600"),
            ConfigFile(service, render("mend/relay-mend@.service.j2", **values)),
            ConfigFile(socket, render("mend/relay-mend.socket.j2", **values)),
        ],
        check=f"{PROGRAM} --help >/dev/null",
    ).keep()
