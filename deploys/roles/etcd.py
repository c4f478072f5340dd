"""etcd: the quorum that holds Patroni's leader key. Mutual TLS; one member a database host."""

from __future__ import annotations

from collections.abc import Iterator

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.operations import apt, server, systemd

from deploys.lib import fleet
from deploys.lib.config_files import SYSTEMD_UNITS, ConfigFile, Configuration, place, render, source
from deploys.lib.role import HealthCheck, Opening, Role, Scrape
from deploys.lib.timing import relation

PACKAGES = ["etcd-server", "etcd-client"]
OVERRIDE = f"{SYSTEMD_UNITS}etcd.service.d/override.conf"
CLIENT_PORT, PEER_PORT, METRICS_PORT = 2379, 2380, 2381


def problems() -> Iterator[str]:
    """etcd itself refuses less than five heartbeats; ten keep a slow disk from costing an election."""
    yield from relation(
        "etcd_election_ms",
        {"etcd_heartbeat_ms": 10},
        "etcd would elect a new leader whenever a heartbeat is late",
    )


ROLE = Role(
    "etcd",
    "db",
    hosts=3,
    odd=True,
    health_checks=(
        HealthCheck("every member is healthy", "relay-etcdctl endpoint health --cluster", first=True),
    ),
    scrapes=(Scrape("etcd", METRICS_PORT),),
    openings=(Opening((CLIENT_PORT, PEER_PORT), ("db",)),),
    problems=problems,
)

# The next member is restarted only when this one serves again: two at once would lose the quorum.
RESTART = (
    "systemctl restart etcd.service && "
    "timeout 60 sh -c 'until relay-etcdctl --command-timeout=3s endpoint health --cluster; do sleep 1; done'"
)


@deploy("etcd")
def etcd() -> None:
    """A member of the cluster, on each host of group `db`. Its data is never touched."""
    # Account and configuration come before the package, whose installation starts the service.
    server.user(
        name="Let account etcd read the host's key (/etc/group)",
        user="etcd",
        home="/var/lib/etcd",
        system=True,
        groups=["ssl-cert"],
        append=True,
    )
    member = configuration()
    written = member.write()
    place(ConfigFile("/usr/local/sbin/relay-etcdctl", source("etcd/relay-etcdctl"), mode="755"))
    apt.packages(name="Install etcd (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
    systemd.service(name="Run etcd (etcd.service)", service="etcd.service", enabled=True)
    member.load(written, serial=True)


def configuration() -> Configuration:
    """A member; one that changes is restarted alone, for two at once would lose the quorum."""
    text = render(
        "etcd/etcd.env.j2",
        node=fleet.node_of(host),
        members=fleet.hosts("db"),
        heartbeat_ms=host.data.etcd_heartbeat_ms,
        election_ms=host.data.etcd_election_ms,
    )
    files = [ConfigFile("/etc/default/etcd", text), ConfigFile(OVERRIDE, source("etcd/override.conf"))]
    return Configuration("etcd.service", files, action=RESTART)
