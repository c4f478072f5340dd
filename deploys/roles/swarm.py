"""One Swarm of all relay hosts: the first few are managers, the rest workers.

pyinfra has no operations for Swarm. These look at every node before they act, so that a rebuilt first host
joins the swarm that its peers still run instead of starting a second one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Generator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from pyinfra.api.command import MaskString, StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import OperationError
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from deploys.lib import acting, fleet
from deploys.lib.config_files import ConfigFile, place, source
from deploys.lib.pyinfra_adapter import is_executing
from deploys.lib.role import HealthCheck, Opening, Role, Size, Subgroup

Commands = Generator[StringCommand, None, None]

MANAGEMENT_PORT = 2377
GOSSIP_PORT = 7946
VXLAN_PORT = 4789
# Networks of stacks; clear of the machine's own and of docker.py's.
ADDRESS_POOL = "10.201.0.0/16"
NODE_TOOL = "/usr/local/sbin/relay-swarm-node"
# How long a node may take to join; one that is tried again leaves an entry behind that has no name.
JOIN_PATIENCE = timedelta(minutes=1)
# How long the managers may take to agree on a leader, and a node that has joined to say its name.
LEADER_SECONDS = 60.0

_NODES = "docker node ls --format '{{.Hostname}} {{.Status}}'"
_STATE = "docker info --format '{{.Swarm.LocalNodeState}} {{.Swarm.Error}}'"


def problems() -> Iterator[str]:
    """Managers vote, and are the first of the relay hosts."""
    managers, nodes = int(fleet.setting("swarm_managers")), len(fleet.hosts("app"))
    if managers % 2 == 0 or not 0 < managers <= nodes:
        yield (
            f"`swarm_managers` is {managers}, but must be odd and at most {nodes}, the hosts in `app`: "
            f"set it to {min(3, nodes - (nodes + 1) % 2)}, or add hosts"
        )


ROLE = Role(
    "swarm",
    "app",
    cluster=True,
    subgroups=(Subgroup("dokploy", Size(4, 8, 100)),),
    health_checks=(
        HealthCheck(
            "every node is ready",
            f"{_NODES} >/dev/null && ! {_NODES} | grep -v Ready",
            first=True,
            units=("docker.service",),
            member=f"{_STATE} | grep -qx 'active ' || {{ {_STATE}; false; }}",
            mend="`sudo systemctl start docker` there; a host that is gone for good is taken out of the "
            "inventory, and apply removes it from the swarm",
        ),
    ),
    openings=(
        # Managers listen; a worker may become one.
        Opening((MANAGEMENT_PORT,), ("app",), some=True),
        Opening((GOSSIP_PORT,), ("app",)),
        Opening((GOSSIP_PORT, VXLAN_PORT), ("app",), proto="udp"),
    ),
    problems=problems,
)


class SwarmState(FactBase[dict[str, Any]]):
    """``docker info``'s view of the swarm on a host: LocalNodeState, ControlAvailable, NodeID and others."""

    def command(self) -> str:
        return "command -v docker >/dev/null && docker info --format '{{json .Swarm}}' 2>/dev/null || true"

    @staticmethod
    def default() -> dict[str, Any]:
        return {}

    def process(self, output: list[str]) -> dict[str, Any]:
        return dict(json.loads("".join(output) or "{}"))


class JoinToken(FactBase[str]):
    """The token that lets a node join as ``manager`` or ``worker``; empty while the swarm has no leader."""

    def command(self, role: str) -> str:
        return f"docker swarm join-token -q {role} 2>/dev/null || true"

    @staticmethod
    def default() -> str:
        return ""

    def process(self, output: list[str]) -> str:
        return "".join(output).strip()


class Nodes(FactBase[list[dict[str, Any]]]):
    """Nodes of the swarm as a manager sees them: ID, Description, Spec, Status."""

    def command(self) -> str:
        return (
            "command -v docker >/dev/null && docker node ls -q 2>/dev/null"
            " | xargs -r docker node inspect --format '{{json .}}' || true"
        )

    @staticmethod
    def default() -> list[dict[str, Any]]:
        return []

    def process(self, output: list[str]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in output if line.startswith("{")]


def manages(member: Host) -> bool:
    """Whether a host is one of the swarm's managers now."""
    return bool(member.get_fact(SwarmState).get("ControlAvailable"))


def shall_manage(member: Host) -> bool:
    """Whether the inventory makes a host one of the swarm's managers."""
    return fleet.node_of(member) in managers()


def stays_manager(member: Host) -> bool:
    """Whether a host is a manager, and shall be one."""
    return shall_manage(member) and manages(member)


def first_manager() -> Host | None:
    """A host whose swarm answers as a manager, one of this run before any other; None without one."""
    return next((member for member in acting.answering("app") if manages(member)), None)


def _local_state(member: Host) -> str:
    return str(member.get_fact(SwarmState).get("LocalNodeState", "inactive"))


@operation()
def create() -> Commands:
    """Starts the swarm when no relay host is in one; by one host of the run."""
    if not acting.acts("app", stays_manager, manages, shall_manage):
        return
    if any(_local_state(member) != "inactive" for member in acting.answering("app")):
        return
    silent = ", ".join(fleet.node_of(member).name for member in acting.silent("app"))
    if silent and is_executing():
        raise OperationError(
            f"{silent} cannot be asked whether there is a swarm, and there must not be two: bring {silent} "
            "back, or put another machine in its place, then apply again"
        )
    yield StringCommand(
        "docker swarm init --advertise-addr", host.data.address, "--default-addr-pool", ADDRESS_POOL
    )


@operation()
def join(role: str) -> Commands:
    """Joins the swarm as ``manager`` or ``worker``; a member that only waits for a leader is one."""
    if _local_state(host) != "inactive":
        return
    manager = first_manager()
    if manager is None and is_executing():
        raise OperationError("no relay host is a swarm manager yet: apply without --limit")
    # Before the run there may be no swarm yet; the command is then only a sign of the change to come.
    token = _token(manager, role) if manager else ""
    address = f"{manager.data.address}:{MANAGEMENT_PORT}" if manager else ""
    yield StringCommand(
        "docker swarm join --advertise-addr", host.data.address, "--token", MaskString(token), address
    )


def _token(manager: Host, role: str) -> str:
    """The token to join with. Each manager that joins makes the others elect anew for a moment."""
    token: str = _until(lambda: manager.get_fact(JoinToken, role=role), bool)
    if is_executing() and not token:
        raise OperationError("the swarm has no leader: see monitoring/runbooks/SwarmNoLeader.md")
    return token


def _until(look: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    """What `look` sees: a plan looks once, a run until it is good or LEADER_SECONDS have passed."""
    end = time.monotonic() + LEADER_SECONDS
    seen = look()
    while is_executing() and not good(seen) and time.monotonic() < end:
        time.sleep(1)
        seen = look()
    return seen


@operation()
def forget(wanted: Collection[str], addresses: Collection[str]) -> Commands:
    """Removes nodes that no relay host is: of hosts that left the inventory or have a new identity."""
    for node in _nobodys(host.get_fact(Nodes), wanted, addresses):
        yield StringCommand(f"{NODE_TOOL} remove", node["ID"])


def _nobodys(
    nodes: list[dict[str, Any]], wanted: Collection[str], addresses: Collection[str]
) -> Iterator[dict[str, Any]]:
    ready = _ready(nodes)
    own = {member.get_fact(SwarmState).get("NodeID") for member in acting.there("app")}
    # An entry without a name may be of a relay host that still joins, unless every one is there.
    nobody_joins = ready.issuperset(wanted)
    for node in nodes:
        name, address = _hostname(node), node["Status"].get("Addr", "")
        twin = node["Status"]["State"] == "down" and name in ready
        nameless = not name and (nobody_joins or _old(node))
        # A host's own name for itself need not be the inventory's.
        left = name and name not in wanted and address not in addresses
        if node["ID"] not in own and (twin or nameless or left):
            yield node


@operation()
def manage(wanted: Collection[str], managing: Collection[str]) -> Commands:
    """Makes those in `managing` managers and the other relay hosts workers; promotes before it demotes.

    It waits for nodes that have just joined; what follows finds them there.
    """
    joined = {fleet.node_of(member).name for member in acting.there("app")}
    ready = [node for node in _settled(joined) if node["Status"]["State"] == "ready"]
    for verb, role in (("promote", "worker"), ("demote", "manager")):
        for node in ready:
            changes = _hostname(node) in wanted and (_hostname(node) in managing) == (verb == "promote")
            if changes and node["Spec"]["Role"] == role:
                yield StringCommand(f"docker node {verb}", node["ID"])


@operation()
def label(wanted: dict[str, dict[str, str]]) -> Commands:
    """Gives nodes their labels."""
    nodes = host.get_fact(Nodes)
    if not nodes:
        yield StringCommand("docker node ls")
        return
    for node in nodes:
        labels = wanted.get(_hostname(node), {})
        present = node["Spec"].get("Labels") or {}
        changes = [f"--label-add {key}={value}" for key, value in labels.items() if present.get(key) != value]
        changes += [f"--label-rm {key}" for key in present if key in KNOWN_LABELS and key not in labels]
        if changes and node["Status"]["State"] == "ready":
            yield StringCommand("docker node update", *changes, node["ID"])


KNOWN_LABELS = ("relay", "dokploy")


def _settled(joined: Collection[str]) -> list[dict[str, Any]]:
    """The nodes, once those just joined say their names, which may be a moment after `join` has returned."""
    nodes: list[dict[str, Any]] = _until(
        lambda: host.get_fact(Nodes), lambda nodes: _ready(nodes).issuperset(joined)
    )
    return nodes


def _ready(nodes: list[dict[str, Any]]) -> set[str]:
    return {_hostname(node) for node in nodes if node["Status"]["State"] == "ready"}


def _hostname(node: dict[str, Any]) -> str:
    return str(node["Description"].get("Hostname", ""))


def _old(node: dict[str, Any]) -> bool:
    """Whether no join that began with this entry can still be under way."""
    created = datetime.fromisoformat(f"{node['CreatedAt'][:19]}+00:00")
    return datetime.now(UTC) - created > JOIN_PATIENCE


def labels() -> dict[str, dict[str, str]]:
    """Labels of each relay host by name."""
    dokploy = {node.name for node in fleet.hosts("dokploy")}
    return {
        node.name: {"relay": "true"} | ({"dokploy": "true"} if node.name in dokploy else {})
        for node in fleet.hosts("app")
    }


def managers() -> list[fleet.Node]:
    """The relay hosts that manage the swarm: an odd number."""
    return fleet.hosts("app")[: int(fleet.setting("swarm_managers"))]


@deploy("Swarm")
def swarm() -> None:
    """The swarm role, for relay hosts."""
    place(ConfigFile(NODE_TOOL, source("swarm/relay_swarm_node.py"), mode="755"))
    create(name="Start the swarm (/var/lib/docker/swarm)")
    role = "manager" if fleet.node_of(host) in managers() else "worker"
    join(name="Join the swarm (/var/lib/docker/swarm)", role=role)
    if acting.acts("app", stays_manager, manages, shall_manage):
        wanted = labels()
        addresses = [node.address for node in fleet.hosts("app")]
        managing = [node.name for node in managers()]
        manage(name="Choose the swarm's managers (docker node)", wanted=wanted, managing=managing)
        forget(name="Remove nodes that no relay host is (docker node)", wanted=wanted, addresses=addresses)
        label(name="Label the nodes of the swarm", wanted=wanted)
