"""What hosts and clusters say of a fleet's nodes, asked of everybody at once over SSH."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

from deploys import roles
from deploys.lib import fleet
from deploys.run import doctor, remote
from deploys.run.doctor import Told

SECONDS = 60
# What a machine has only when it is, or was, a host of some fleet.
PAST = (
    "/etc/relay/tls/host.crt",
    "/etc/patroni/patroni.yml",
    "/etc/nginx/relay",
    "/var/lib/docker-registry/docker",
    "/var/lib/seaweedfs",
)
PAST_PATTERNS = ("/var/lib/etcd/*/member", "/var/lib/postgresql/*/*/PG_VERSION")
# One line a fact, as in deploys.run.doctor.
SCRIPT = f"""
echo "machine $(cat /etc/machine-id 2>/dev/null || echo unknown)"
( . /etc/os-release; echo "system $ID ${{VERSION_ID:-0}}" )
echo "clock $(date +%s.%N)"
for path in {" ".join(PAST)} {" ".join(PAST_PATTERNS)}; do [ -e "$path" ] && echo "past $path"; done
if command -v docker >/dev/null; then
  state=$(timeout 10 docker info --format '{{{{.Swarm.LocalNodeState}}}}' 2>/dev/null)
  [ "${{state:-inactive}}" = inactive ] || echo "past a swarm ($state)"
  timeout 10 docker node ls --format 'entry {{{{.ID}}}} {{{{.Hostname}}}} {{{{.Status}}}}' 2>/dev/null
fi
ss -Hltn 2>/dev/null | awk '{{print "listens " $4}}'
awk 'NF == 3 && index($2, $3 ".") == 1 {{ print "known " $1, $3 }}' /etc/hosts
if command -v relay-etcdctl >/dev/null; then
  timeout 10 relay-etcdctl member list 2>/dev/null | sed 's/^/etcd-member /'
fi
""".lstrip()
KEY_CHANGED = ("REMOTE HOST IDENTIFICATION HAS CHANGED", "Host key verification failed")


@dataclass(frozen=True)
class Machine:
    """One host, as it told of itself. `problem` says why it did not; the rest is then empty.

    `past` is what an empty machine does not have, `listens` its TCP ports that others reach, `skew` by how
    many seconds its clock is ahead of ours.
    """

    name: str
    problem: str = ""
    identity: str = ""
    system: str = ""
    version: float = 0.0
    skew: float = 0.0
    past: tuple[str, ...] = ()
    listens: frozenset[int] = frozenset()


@dataclass
class Seen:
    """What was seen. Clusters are as the first host that answers for them knows them."""

    machines: dict[str, Machine] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)
    # Name, or peer URL of one without a name, by member ID.
    etcd: dict[str, str] = field(default_factory=dict)
    # (ID, name, status) of the swarm's nodes.
    entries: list[tuple[str, str, str]] = field(default_factory=list)
    # Addresses of hosts by name, as /etc/hosts of the fleet has them.
    known: dict[str, str] = field(default_factory=dict)

    @property
    def patroni(self) -> list[dict[str, Any]]:
        """Patroni's members."""
        return next((told.patroni for told in self.told.values() if told.patroni), [])

    @property
    def nodes(self) -> list[tuple[str, str, str, str]]:
        """The swarm's nodes: name, status, availability, manager status or ""."""
        return next((told.nodes for told in self.told.values() if told.nodes), [])

    @property
    def replicas(self) -> str:
        """The relay's replicas: how many run, how many shall."""
        return next((told.replicas for told in self.told.values() if told.replicas), "")

    def etcd_healthy(self) -> set[str]:
        """Hosts whose member serves."""
        return {name for name, told in self.told.items() if told.etcd}

    def silent(self) -> list[str]:
        """Hosts that did not answer."""
        return [name for name, machine in self.machines.items() if machine.problem]


def look(hosts: Sequence[Host]) -> Seen:
    """Asks all hosts."""
    began = time.time()
    answers = remote.ask(hosts, ["sh", "-c", SCRIPT + doctor.QUESTIONS], seconds=SECONDS)
    return read(answers, began)


def read(answers: Sequence[remote.Answer], began: float) -> Seen:
    """The answers to SCRIPT, asked at `began`."""
    seen = Seen()
    for one in answers:
        if one.status:
            seen.machines[one.host] = Machine(one.host, _why(one))
            continue
        lines = [line.partition(" ") for line in one.out.splitlines()]
        seen.machines[one.host] = _machine(one.host, lines, began)
        seen.told[one.host] = doctor.told(one.out)
        _clusters(seen, lines)
    return seen


def _why(answer: remote.Answer) -> str:
    if any(words in answer.err for words in KEY_CHANGED):
        return "its SSH host key is not the one that is known"
    return (answer.err or answer.out).strip().splitlines()[-1] if answer.err or answer.out else "no answer"


def _machine(name: str, lines: Sequence[tuple[str, str, str]], began: float) -> Machine:
    facts: dict[str, list[str]] = {}
    for kind, _, rest in lines:
        facts.setdefault(kind, []).append(rest.strip())
    system, _, version = facts.get("system", [" "])[0].partition(" ")
    return Machine(
        name,
        identity=facts.get("machine", [""])[0],
        system=system,
        version=float(version or 0),
        skew=_skew(float(facts["clock"][0]), began) if "clock" in facts else 0.0,
        past=tuple(facts.get("past", ())),
        listens=frozenset(_ports(facts.get("listens", ()))),
    )


def _skew(clock: float, began: float) -> float:
    """By how much a clock is off that was read at some moment between `began` and now."""
    if clock < began:
        return clock - began
    return max(0.0, clock - time.time())


def _ports(listeners: Sequence[str]) -> set[int]:
    found = set()
    for listener in listeners:
        address, _, port = listener.rpartition(":")
        if port.isdigit() and not address.startswith(("127.", "[::1]")):
            found.add(int(port))
    return found


def _clusters(seen: Seen, lines: Sequence[tuple[str, str, str]]) -> None:
    members, entries = {}, []
    for kind, _, rest in lines:
        words = rest.split()
        if kind == "etcd-member":
            # 8e9e05c52164694d, started, db1, https://172.30.77.31:2380, https://172.30.77.31:2379, false
            identity, _, name, peer = (word.strip() for word in rest.split(",")[:4])
            members[identity] = name or peer
        elif kind == "entry" and words:
            name, status = (["", *words[1:]] if len(words) == 2 else words[1:])[:2]
            entries.append((words[0], name, status))
        elif kind == "known" and len(words) == 2:
            seen.known.setdefault(words[1], words[0])
    seen.etcd = seen.etcd or members
    seen.entries = seen.entries or entries


def groups_of(name: str) -> list[str]:
    """The groups of a host of the inventory."""
    return [group for group in roles.groups() if name in {node.name for node in fleet.hosts(group)}]


def registered(seen: Seen) -> dict[str, set[str]]:
    """Names that each cluster knows."""
    return {
        "etcd": set(seen.etcd.values()),
        "patroni": {str(one["Member"]) for one in seen.patroni},
        "swarm": {name for _, name, _ in seen.entries if name},
    }


def not_yet(seen: Seen, name: str, groups: Collection[str]) -> list[str]:
    """Why a host is not whole: empty when it is a member of all that its groups make it one of."""
    machine = seen.machines.get(name)
    if machine is None or machine.problem:
        return [f"{name} does not answer: {machine.problem if machine else 'it was not asked'}"]
    wrong = []
    if "db" in groups:
        wrong += [] if seen.told[name].etcd else [f"etcd on {name} is not healthy"]
        wrong += _database_not_yet(seen.patroni, name)
    if "app" in groups:
        state = [(status, use) for one, status, use, _ in seen.nodes if one == name]
        wrong += [] if ("Ready", "Active") in state else [f"{name} is not ready in the swarm"]
        have, _, want = seen.replicas.partition("/")
        wrong += [] if have and have == want else [f"{seen.replicas or 'no'} replicas of the relay run"]
    return wrong


def _database_not_yet(members: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    found = next((one for one in members if one["Member"] == name), None)
    if found is None:
        return [f"{name} is no member of the database's cluster"]
    role, state = str(found.get("Role")), str(found.get("State"))
    if role == "Leader" and state == "running":
        return []
    if role.startswith(("Sync", "Quorum")) and state == "streaming":
        return []
    return [f"{name} is {role} and {state}, not yet a synchronous replica"]


def addresses(hosts: Sequence[Host]) -> dict[str, str]:
    """Addresses of hosts by name."""
    return {host.name: str(host.data.address) for host in hosts}


def stranger(name: str, address: str, like: Host) -> Host:
    """A host that the inventory does not name, logged in to as to another one."""
    kept = ("ssh_user", "ssh_port", "ssh_key", "ssh_known_hosts_file", "ssh_strict_host_key_checking")
    data = {key: like.data.get(key) for key in kept if like.data.get(key)}
    inventory = Inventory(([(name, data | {"address": address, "ssh_hostname": address})], {}))
    return next(iter(inventory))
