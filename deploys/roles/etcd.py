"""etcd: the quorum that holds Patroni's leader key. Mutual TLS; one member a database host."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import apt, files, server, systemd

from deploys.lib import acting, fleet
from deploys.lib.config_files import SYSTEMD_UNITS, ConfigFile, Configuration, place, render, source
from deploys.lib.errors import DeployError
from deploys.lib.role import HealthCheck, Opening, Role, Scrape
from deploys.lib.timing import relation

Commands = Generator[StringCommand, None, None]

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
    cluster=True,
    hosts=3,
    odd=True,
    health_checks=(
        HealthCheck(
            "every member is healthy",
            "relay-etcdctl endpoint health --cluster",
            first=True,
            units=("etcd.service",),
            member="relay-etcdctl endpoint health 2>&1",
            mend="where its log speaks of damaged or missing data, `sudo relay-etcd-member replace` moves it "
            "aside and joins as a new member; without --yes it says what it would do",
        ),
    ),
    held=("etcd-(server|client)",),
    scrapes=(Scrape("etcd", METRICS_PORT),),
    openings=(Opening((CLIENT_PORT, PEER_PORT), ("db",)),),
    problems=problems,
)

MEMBER = "/usr/local/sbin/relay-etcd-member"
NOT_YET = "/etc/relay/etcd-not-yet-a-member"
# The next member is restarted only when this one serves again: two at once would lose the quorum.
RESTART = "relay-etcd-member restart"


class HasData(FactBase[bool]):
    """Whether the host holds a member's data and is not in the middle of joining."""

    def command(self) -> str:
        return f"test -d /var/lib/etcd/relay/member && test ! -e {NOT_YET} && echo yes || true"

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return output == ["yes"]


class PeerUrls(FactBase[set[str]]):
    """Peer URLs of the cluster's members; none where etcd does not serve."""

    def command(self) -> str:
        return "command -v relay-etcdctl >/dev/null && relay-etcdctl member list 2>/dev/null || true"

    @staticmethod
    def default() -> set[str]:
        return set()

    def process(self, output: list[str]) -> set[str]:
        # 8e9e05c52164694d, started, db1, https://172.30.77.31:2380, https://172.30.77.31:2379, false
        return {fields[3] for fields in (line.split(", ") for line in output) if len(fields) > 3}


@operation()
def forget(wanted: set[str]) -> Commands:
    """Removes members that the inventory no longer names, while the others keep the quorum."""
    if host.get_fact(PeerUrls) - wanted:
        yield StringCommand(f"{MEMBER} forget")


@deploy("etcd")
def etcd() -> None:
    """A member of the cluster, on each host of group `db`. A host without data whose peers have some joins
    them as a new member; its data is never touched."""
    joins = not host.get_fact(HasData) and _peers_have_data()
    # Account and configuration come before the package, whose installation starts the service.
    server.user(
        name="Let account etcd read the host's key (/etc/group)",
        user="etcd",
        home="/var/lib/etcd",
        system=True,
        groups=["ssl-cert"],
        append=True,
    )
    if joins:
        files.file(name=f"Hold etcd back until it is a member ({NOT_YET})", path=NOT_YET)
    member = configuration()
    written = member.write()
    place(
        ConfigFile("/usr/local/sbin/relay-etcdctl", source("etcd/relay-etcdctl"), mode="755"),
        ConfigFile(MEMBER, source("etcd/relay_etcd_member.py"), mode="755"),
    )
    apt.packages(name="Install etcd (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
    # Who holds no data yet is no member, and may not know the cluster.
    if acting.acts("db", lambda member: member.get_fact(HasData)):
        urls = {f"https://{node.address}:{PEER_PORT}" for node in fleet.hosts("db")}
        forget(name="Remove members that left the inventory (relay-etcd-member)", wanted=urls)
    if joins:
        server.shell(name="Join the cluster (/var/lib/etcd/relay)", commands=[f"{MEMBER} join"], _serial=True)
    systemd.service(name="Run etcd (etcd.service)", service="etcd.service", enabled=True)
    member.load(written, serial=True)


def _peers_have_data() -> bool:
    """Whether a cluster exists that the current host, which is empty, must join.

    When no peer has data and one cannot be asked, it may be the one that holds all of it.
    """
    if any(peer.get_fact(HasData) for peer in acting.answering("db") if peer != host):
        return True
    if silent := acting.silent("db"):
        names = ", ".join(fleet.node_of(peer).name for peer in silent)
        raise DeployError(
            f"etcd has no data here, and {names} cannot be asked whether a cluster exists; a second one "
            f"would know nothing of what that holds. Bring {names} back, or put another machine in its place"
        )
    return False


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
