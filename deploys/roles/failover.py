"""Fast failover: the leader key of a primary whose host is dead is released, long before its lease ends.

How, and why no acknowledged write can be lost: templates/failover/relay_failover/rules.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.facts.files import File
from pyinfra.operations import apt, files, server, systemd

from deploys.lib import fleet
from deploys.lib.config_files import LIBRARY, SYSTEMD_UNITS, ConfigFile, Configuration, render, source
from deploys.lib.role import HealthCheck, Role
from deploys.lib.timing import relation

PACKAGES = ["nftables"]
PROGRAM = "/usr/local/sbin/relay-failover-watch"
UNIT = "relay-failover-watch.service"
PACKAGE = f"{LIBRARY}/relay_failover"
FENCE = "/var/lib/relay/failover/fence.json"
FIGURES = "/var/lib/prometheus/node-exporter/failover_watch.prom"
# What Patroni does before PostgreSQL starts.
PATRONI = f"{SYSTEMD_UNITS}patroni.service.d/relay-failover.conf"
# systemd calls it active before it has looked at anything; it writes its figures every second or two.
RUNS = f"systemctl is-active --quiet {UNIT} && find {FIGURES} -newermt '-15 seconds' | grep -q ."
REMOVE = f"""if [ -e {FENCE} ]; then
    echo 'this host is fenced against a dead primary, and only the watcher can lift that safely: bring' >&2
    echo 'the cluster back first (patronictl list), see monitoring/runbooks/FailoverFenceStays.md' >&2
    exit 1
fi"""


def problems() -> Iterator[str]:
    """Relations between the watcher's time, those of Patroni and those of etcd."""
    if not fleet.setting("fast_failover"):
        return
    if not fleet.setting("postgres_synchronous_strict"):
        yield (
            "`fast_failover` needs `postgres_synchronous_strict`: without it a write may exist on the dead "
            "primary alone; switch one of them"
        )
    yield from relation(
        "fast_failover_unreachable_seconds",
        {"etcd_heartbeat_ms": 5},
        "a short hiccup would cost a healthy primary its role",
        more=0.5,
    )
    yield from relation(
        "patroni_ttl",
        {"fast_failover_unreachable_seconds": 1, "etcd_election_ms": 2},
        "a dead primary's lease would end before the watchers have agreed",
        more=5,
    )


ROLE = Role(
    "failover",
    "db",
    cluster=True,
    health_checks=(
        HealthCheck(
            "dead primaries are watched for",
            f"[ ! -e {SYSTEMD_UNITS}{UNIT} ] || {{ {RUNS}; }}",
            units=(UNIT,),
            mend="`sudo systemctl start relay-failover-watch`; its log says what it lacks",
        ),
    ),
    problems=problems,
)


@deploy("Fast failover")
def failover() -> None:
    """The watcher, on each database host; where `fast_failover` is off, its removal."""
    if host.data.fast_failover:
        apt.packages(name="Install nftables (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
        configuration().keep()
    else:
        remove()


def configuration() -> Configuration:
    """The watcher, and what puts its fence back before Patroni starts PostgreSQL."""
    data = host.data
    members = " ".join(f"--host {node.name}={node.address}" for node in fleet.hosts("db"))
    command = (
        f"{PROGRAM} --name {fleet.node_of(host).name} {members}"
        f" --unreachable-seconds {data.fast_failover_unreachable_seconds}"
        f" --fence {FENCE} --figures {FIGURES}"
    )
    unit = render("failover/relay-failover-watch.service.j2", command=command)
    written = [
        *modules(),
        ConfigFile(PROGRAM, render("failover/relay-failover-watch.j2", library=LIBRARY), mode="755"),
        ConfigFile(f"{SYSTEMD_UNITS}{UNIT}", unit),
        ConfigFile(PATRONI, render("failover/patroni.conf.j2", command=command)),
    ]
    return Configuration(UNIT, written, check=f"{PROGRAM} --help >/dev/null")


def modules() -> list[ConfigFile]:
    """The watcher's modules."""
    directory = fleet.REPOSITORY / "templates/failover/relay_failover"
    names = sorted(path.name for path in directory.glob("*.py"))
    return [ConfigFile(f"{PACKAGE}/{name}", source(f"failover/relay_failover/{name}")) for name in names]


def remove() -> None:
    """Takes the watcher away, unless it holds a fence that only it can lift safely.

    Its figures go, too: old ones would be reported as a watcher that does not run.
    """
    unit = f"{SYSTEMD_UNITS}{UNIT}"
    present = host.get_fact(File, path=unit) is not None
    server.shell(name=f"Refuse to leave a fence behind ({FENCE})", commands=[REMOVE], _if=lambda: present)
    systemd.service(
        name=f"Stop the watcher ({UNIT})", service=UNIT, running=False, enabled=False, _if=lambda: present
    )
    paths = (unit, PATRONI, PROGRAM, FIGURES)
    gone = [files.file(name=f"Remove {path}", path=path, present=False) for path in paths]
    files.directory(name=f"Remove {PACKAGE}", path=PACKAGE, present=False)
    systemd.daemon_reload(name="Let systemd forget the watcher", _if=fleet.changed(*gone))
