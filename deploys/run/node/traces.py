"""Every place where a node's name or address may stand, and what of a removed one still does.

History is no trace: metrics, logs, backups and the audit log keep the names of those they tell of.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyinfra.api.host import Host

from deploys.run import deployed, host_keys, inventory_file, remote
from deploys.run.node import facts
from deploys.run.node.facts import Seen
from deploys.run.release import TRIAL_FILE

SECONDS = 60
# Where roles write files that name hosts (tests/unit/deploys/test_node_traces.py runs every role against it),
# and where programs keep what they were told of them. Programs themselves name none.
PLACES = (
    "/etc",
    "/root/.docker",
    "/var/lib/postgresql/*/*/*.conf",
    "/var/lib/prometheus/node-exporter",
    "/var/lib/relay-acme",
    "/var/lib/relay-edge",
    "/var/lib/relay/failover",
)
# The last release's trial, and what the last runs were limited to.
HISTORY = (Path(TRIAL_FILE).name, Path(deployed.FIGURES).name)
# What programs keep, by what it is called here, and the command that shows it.
COMMANDS = {
    "firewall": "iptables-save; ip6tables-save; nft list ruleset",
    # Not with the specification of before, which is history.
    "swarm's services": "docker service ls -q | xargs -r docker service inspect --format '{{json .Spec}}'",
    "database's settings": "patronictl show-config",
    # Those in force; expired ones are history.
    "silences": "amtool --alertmanager.url=http://127.0.0.1:9093 silence query --output=extended",
}
# Patroni keeps the slot of a member that left for half an hour.
SLOTS = (
    "cd / && runuser -u postgres -- psql -XAtqc "
    "\"select 'slot ' || slot_name from pg_replication_slots where not pg_is_in_recovery()\" relay"
)


@dataclass(frozen=True)
class Trace:
    """Something that still names a node: on which host ("" is this machine), where, and what to do.

    `passing`: it goes by itself.
    """

    host: str
    place: str
    remedy: str = ""
    passing: bool = False

    def __str__(self) -> str:
        where = f"{self.host}: {self.place}" if self.host else f"here: {self.place}"
        return f"{where}{f': {self.remedy}' if self.remedy else ''}"


def pattern(name: str, address: str) -> str:
    """An extended regular expression for the name or the address, standing alone."""
    # app1 is neither app10 nor app1-old nor /dev/app1; api-app1 and app1.example.com speak of it.
    before, after = "(^|[^[:alnum:]_.])", "([^[:alnum:]_-]|$)"
    words = "|".join(re.escape(word) for word in (name, address) if word)
    return f"{before}({words}){after}"


def script(name: str, address: str) -> str:
    """A shell script that prints a line for each place of a host where the node stands."""
    wanted = shlex.quote(pattern(name, address))
    excluded = " ".join(f"--exclude={file}" for file in HISTORY)
    lines = [
        f"grep -rIlsE {excluded} -e {wanted} {' '.join(PLACES)} 2>/dev/null | sed 's/^/file /'",
        *(
            f"{{ {command}; }} 2>/dev/null | grep -qE -e {wanted} && echo {shlex.quote(f'kept {what}')}"
            for what, command in COMMANDS.items()
        ),
        f"{SLOTS} 2>/dev/null | grep -E -e {wanted}",
        "true",
    ]
    return "\n".join(lines)


def on_hosts(hosts: Sequence[Host], name: str, address: str) -> Iterator[Trace]:
    """What hosts still hold. One that does not answer is told as such."""
    for answer in remote.ask(hosts, ["sh", "-c", script(name, address)], seconds=SECONDS):
        if answer.status:
            yield Trace(answer.host, "cannot be searched", answer.words or "it does not answer")
        for line in answer.out.splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "slot":
                remedy = "Patroni drops it within half an hour"
                yield Trace(answer.host, f"replication slot {rest}", remedy, passing=True)
            elif kind in ("file", "kept"):
                remedy = "a file that `apply` does not write any more can go" if kind == "file" else ""
                yield Trace(answer.host, rest if kind == "file" else f"the {rest}", remedy)


def in_clusters(seen: Seen, name: str, address: str) -> Iterator[Trace]:
    """What clusters still know."""
    remedies = {
        "etcd": "`sudo relay-etcd-member forget` on a database host",
        "patroni": "its key ends with its lease; is the machine still up?",
        "swarm": f"`sudo relay-swarm-node remove {name}` on a manager",
    }
    peers = {name, f"https://{address}:2380"}
    for cluster, names in facts.registered(seen).items():
        if names & peers:
            yield Trace("", f"member of {cluster}", remedies[cluster])


def here(environment: str, host: Host, secrets: Mapping[str, str]) -> Iterator[Trace]:
    """What this machine still has: the inventory, the secrets, SSH's known hosts."""
    name = host.name
    path = inventory_file.path_of(environment)
    for entry in inventory_file.entries(path.read_text(), {name}):
        yield Trace("", f"inventories/{path.name}:{entry.first} ({entry.group})", "take it out")
    for secret in (f"tls_cert:{name}", f"tls_key:{name}"):
        if secret in secrets:
            yield Trace("", f"secret {secret}", f"`python -m deploys secrets {environment}`")
    for known in host_keys.known(host):
        file = host_keys.file_of(host)
        yield Trace("", str(file), f"`ssh-keygen -R {known} -f {file}`")
