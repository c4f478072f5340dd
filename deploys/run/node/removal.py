"""`node remove`: out of service, of the inventory and of every cluster; then every place is searched."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

from pyinfra.api.host import Host

from deploys import roles
from deploys.lib import fleet, secrets, whole_files
from deploys.lib.errors import DeployError
from deploys.roles.edge import TOOL
from deploys.roles.relay import API_PORT
from deploys.run import drains, environment, host_keys, inventory_file, remote
from deploys.run.node import checks, facts, traces
from deploys.run.node.facts import groups_of
from deploys.run.node.records import Record
from deploys.run.node.work import (
    Step,
    Work,
    apply,
    carry_out,
    must,
    plan_step,
    secrets_step,
    session,
    shared_checks,
    valid,
)
from deploys.run.preview import Check

PAUSE_SECONDS = 5.0
ENGINE = ("docker.service", "containerd.service")
# Patroni's lease, and what the swarm needs to see that a node is away.
GONE_SECONDS = 120.0
RETIRE = """
for unit in $(systemctl list-unit-files --no-legend 'relay-*' 2>/dev/null | cut -d' ' -f1) "$@"; do
  systemctl disable --now "$unit" >/dev/null 2>&1 || true
done
if command -v docker >/dev/null && systemctl is-active --quiet docker; then
  docker swarm leave --force >/dev/null 2>&1 || true
fi
systemctl disable --now docker.socket docker.service containerd.service >/dev/null 2>&1 || true
"""


def remove(arguments: argparse.Namespace) -> int:
    """Drains nodes, takes them out of the inventory and of every cluster, and looks what still names them."""
    with session(arguments, "remove") as work:
        present = [host for host in work.hosts if host.name in work.nodes]
        work.seen = facts.look(work.hosts)
        departed = secrets.departed(fleet.store().read(), roles.certificate_subjects())
        left = {key.partition(":")[2] for key in departed} | set(work.records.read()) | set(work.seen.known)
        left |= {name for names in facts.registered(work.seen).values() for name in names}
        known = {host.name for host in work.hosts} | {name for name in left if ":" not in name}
        checks.require_known(work.nodes, known, "no host of the inventory or of the fleet is called")
        leaving = present + [_gone(work, name) for name in work.nodes if name not in _names(present)]
        wanted = [valid(work, work.nodes), *_lines(work, present), *shared_checks(work, work.begun())]
        if any("edge" in groups_of(name) for name in _names(present)):
            work.notes.append("take the edge's address out of DNS and of balancers first")
        work.notes.append(
            "wipe the machines afterwards: keys and, of database hosts, customers' data are on them"
        )
        return carry_out(work, wanted, _remove_steps(work, present, leaving), _begin_removing(leaving))


def _names(hosts: Sequence[Host]) -> list[str]:
    return [host.name for host in hosts]


def _gone(work: Work, name: str) -> Host:
    """A host that left the inventory already, as far as it is known where it was."""
    record = work.records.read().get(name)
    address = record.address if record else work.seen.known.get(name, "")
    return facts.stranger(name, address, work.hosts[0])


def _lines(work: Work, present: Sequence[Host]) -> Iterator[Check]:
    """What this command cannot take out of the inventory, somebody must."""
    found = _entries(work, present)
    path = f"inventories/{work.name}.py"
    for host in present:
        mine = [one for one in found if one.host == host.name]
        by_hand = [f"{path}:{one.first} ({one.group})" for one in mine if not one.whole]
        text = f"take it out by hand: {', '.join(by_hand)}" if by_hand else ""
        if not mine:
            text = f"{path} computes it: take it out by hand, then run the same command"
        yield Check(f"{host.name}: its lines in the inventory can be taken out", text)


def _entries(work: Work, present: Sequence[Host]) -> list[inventory_file.Entry]:
    return inventory_file.entries(inventory_file.path_of(work.name).read_text(), _names(present))


def _begin_removing(leaving: Sequence[Host]) -> Callable[[Work], None]:
    def begin(work: Work) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        there = work.begun()
        fresh = [host for host in leaving if host.name not in there]
        work.records.put(*(Record(one.name, work.command, str(one.data.address), at) for one in fresh))

    return begin


def _remove_steps(work: Work, present: Sequence[Host], leaving: Sequence[Host]) -> list[Step]:
    names = ", ".join(work.nodes)
    lines = _entries(work, present)
    where = ", ".join(f"{one.host} line {one.first}" for one in lines)
    silent = [host for host in leaving if not _answers(host)]
    steps = [step for host in present for step in _drain_steps(work, host)]
    if present:
        text = f"take the lines out of inventories/{work.name}.py ({where})"
        steps.append(Step(text, lambda: _take_out(work, present)))
    steps += [
        secrets_step(work, f"forget the certificates of {names}"),
        Step(
            "apply to the whole fleet: another primary where that leaves, then out of etcd, the swarm, "
            "targets, upstreams, firewalls, access rules",
            lambda: apply(work),
        ),
        Step(f"end the marks of {names} as drained, at every edge", lambda: _unmark(work, leaving)),
    ]
    for host in leaving:
        if host in silent:
            work.notes.append(f"{host.name} does not answer: what runs on it is stopped by nobody")
        else:
            text = f"stop what runs on {host.name}, and its part of the swarm"
            steps.append(Step(text, partial(_retire, host)))
    return [
        *steps,
        *(
            Step(f"forget the SSH host key of {host.name}", partial(host_keys.forget, host))
            for host in leaving
        ),
        Step(f"wait until no cluster knows {names}", lambda: _wait_gone(work, leaving)),
        plan_step(work),
        Step(f"search every host for {names}", lambda: _search(work, leaving)),
    ]


def _answers(host: Host) -> bool:
    if not host.data.get("ssh_hostname"):
        return False
    (answer,) = remote.ask([host], ["true"])
    return not answer.status


def _units() -> list[str]:
    """The units of all roles, the last ones first; Docker's engine leaves the swarm before it stops. A shared
    address goes before the edge that serves it."""
    checks_ = [check for role in reversed(roles.table()) for check in role.health_checks]
    units = [unit for check in checks_ for unit in check.units]
    return ["keepalived.service", *dict.fromkeys(unit for unit in units if unit not in ENGINE)]


def _drain_steps(work: Work, host: Host) -> Iterator[Step]:
    reason = f"node remove {host.name}"
    if "app" in groups_of(host.name):
        yield Step(
            f"drain {host.name} at every edge",
            lambda: _drained(
                drains.drain_node(work.name, host.name, reason, work.options.wait, work.seen.silent())
            ),
        )
    if "edge" in groups_of(host.name) and not work.seen.machines[host.name].problem:
        yield Step(
            f"drain {host.name}, so that balancers and DNS services send nobody new",
            lambda: _drained(drains.drain_edge(work.name, host.name, reason)),
        )


def _drained(status: int) -> None:
    # What is still open ends while the swarm hands its tasks over.
    if status not in (0, drains.STILL_OPEN):
        raise DeployError("not drained; the reason is above. Then run the same command again")


def _take_out(work: Work, present: Sequence[Host]) -> None:
    """The file is put back as it was when it is no inventory any more, or still names them."""
    path = inventory_file.path_of(work.name)
    before = path.read_text()
    whole_files.write(path, inventory_file.without(before, _entries(work, present)).encode())
    try:
        left = set(_names(present)) & set(environment.load(work.name).hosts)
    except Exception as error:
        whole_files.write(path, before.encode())
        raise DeployError(f"{path} without these lines is no inventory ({error}): do it by hand") from error
    if left:
        whole_files.write(path, before.encode())
        raise DeployError(f"{path} names {', '.join(sorted(left))} elsewhere, too: take them out by hand")


def _unmark(work: Work, leaving: Sequence[Host]) -> None:
    edges = [host for host in work.others() if host.name in {node.name for node in fleet.hosts("edge")}]
    for host in leaving:
        if address := host.data.get("address"):
            words = [TOOL, "node-return", f"{address}:{API_PORT}", "--name", host.name]
            failed = [one.host for one in remote.ask(edges, words) if one.status]
            if failed:
                raise DeployError(
                    f"{', '.join(failed)} keeps the mark: mend that, then run the command again"
                )


def _retire(host: Host) -> None:
    must(host, ["sh", "-c", RETIRE, "sh", *_units()])


def _wait_gone(work: Work, leaving: Sequence[Host]) -> None:
    end = time.monotonic() + GONE_SECONDS
    while True:
        seen = facts.look(work.others())
        left = [
            trace for host in leaving for trace in traces.in_clusters(seen, host.name, str(host.data.address))
        ]
        if not left:
            return
        if time.monotonic() >= end:
            work.remains += left
            return
        time.sleep(PAUSE_SECONDS)


def _search(work: Work, leaving: Sequence[Host]) -> None:
    values = fleet.store().read()
    for host in leaving:
        work.remains += traces.on_hosts(work.others(), host.name, str(host.data.address))
        work.remains += traces.here(work.name, host, values)
