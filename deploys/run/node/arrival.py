"""`node add` and `node replace`: an empty machine becomes a host, a new one or in place of one that died."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial

from pyinfra.api.host import Host

from deploys import roles
from deploys.lib import authority, fleet, pki
from deploys.lib.errors import DeployError
from deploys.roles.swarm import NODE_TOOL
from deploys.run import host_keys, secret_commands
from deploys.run.node import checks, facts, traces
from deploys.run.node.facts import Seen, groups_of
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
DOWN_SECONDS = 90.0
# What is on one host only goes with its disk.
LOST = {
    "ops": "metrics, logs, boards' changes, silences, the history of releases and the registry's images are "
    "lost with its disk; images are built anew, limits are counted anew",
    "vault": "backups and copies of logs that only it held are lost with its disk: make a backup afterwards",
}


def replace(arguments: argparse.Namespace) -> int:
    """Takes new, empty machines in under the names of hosts that died."""
    return _take_in(arguments, "replace")


def add(arguments: argparse.Namespace) -> int:
    """Takes machines in that the inventory names and the fleet does not know."""
    return _take_in(arguments, "add")


def _take_in(arguments: argparse.Namespace, command: str) -> int:
    with session(arguments, command) as work:
        checks.require_known(work.nodes, [host.name for host in work.hosts], "the inventory has no host")
        fingerprints = host_keys.wanted(arguments.host_key, work.nodes)
        keys = {host: host_keys.offered(host, found) for host, found in _by_host(work, fingerprints)}
        work.seen = _look_with(work, keys)
        begun = work.begun()
        wanted = [valid(work), *shared_checks(work, begun), *_machine_checks(work, begun)]
        if command == "add":
            wanted += _not_known_yet(work, begun)
        work.notes += [LOST[group] for name in work.nodes for group in groups_of(name) if group in LOST]
        return carry_out(work, wanted, _take_in_steps(work, keys), _begin_taking_in)


def _by_host(work: Work, by_name: Mapping[str, str]) -> list[tuple[Host, str]]:
    return [(host, by_name[host.name]) for host in work.hosts if host.name in by_name]


def _look_with(work: Work, keys: Mapping[Host, str]) -> Seen:
    """Looks at everybody; machines whose keys are not entered yet are asked with these keys."""
    with host_keys.trusting(keys) as stand_ins:
        return facts.look([stand_ins.get(host.name, host) for host in work.hosts])


def _machine_checks(work: Work, begun: Mapping[str, Record]) -> list[Check]:
    return [
        check
        for name in work.nodes
        for check in checks.machine(work.seen.machines[name], name, begun=name in begun)
    ]


def _not_known_yet(work: Work, begun: Mapping[str, Record]) -> Iterator[Check]:
    """A name that a cluster knows is a member's, or that of one that was not removed."""
    for name in work.nodes:
        where = [cluster for cluster, names in facts.registered(work.seen).items() if name in names]
        text = f"{', '.join(where)} has it: `node replace` where its machine died" if where else ""
        yield Check(f"{name}: no cluster knows the name", "" if name in begun else text)


def _begin_taking_in(work: Work) -> None:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    begun, before = work.begun(), _addresses_before(work)
    work.records.put(
        *(
            Record(name, work.command, before[name], at, work.seen.machines[name].identity)
            for name in work.nodes
            if name not in begun
        )
    )


def _addresses_before(work: Work) -> dict[str, str]:
    """Where the fleet knew the nodes when this command began; of new ones, where they are."""
    told = facts.addresses(work.hosts) | work.seen.known
    told |= {name: record.address for name, record in work.begun().items()}
    return {name: told[name] for name in work.nodes}


def _take_in_steps(work: Work, keys: Mapping[Host, str]) -> list[Step]:
    names = ", ".join(work.nodes)
    steps = [
        Step(
            f"enter the SSH host key of {host.name} into {host_keys.file_of(host)}",
            partial(host_keys.enter, host, line),
            partial(host_keys.has, host, line),
        )
        for host, line in keys.items()
    ]
    if work.command == "replace":
        steps += [_forget_step(work, name) for name in work.nodes if "app" in groups_of(name)]
        steps += [_certificate_step(work, name) for name in work.nodes]
    else:
        steps.append(secrets_step(work, f"make the certificates of {names}"))
    return [
        *steps,
        Step(
            "apply to the whole fleet: an old member of etcd is removed and a new one added, the swarm "
            "joined, a replica of the database made; the others hear of it",
            lambda: apply(work),
        ),
        Step(f"wait until {names} is whole, {work.options.wait:.0f} s at the most", lambda: _wait(work)),
        plan_step(work),
        *_search_steps(work),
    ]


def _search_steps(work: Work) -> Iterator[Step]:
    """Of a machine at another address than the old one's, the old address must not stand anywhere."""
    now = facts.addresses(work.hosts)
    for name, address in _addresses_before(work).items():
        if address != now[name]:
            yield Step(
                f"search every host for {name}'s old address {address}", partial(_search, work, address)
            )


def _search(work: Work, address: str) -> None:
    work.remains += traces.on_hosts(work.hosts, "", address)


def _forget_step(work: Work, name: str) -> Step:
    return Step(
        f"swarm: remove what {name} was",
        lambda: _forget_node(work, name),
        lambda: not _old_entries(work, facts.look(work.hosts), name),
    )


def _old_entries(work: Work, seen: Seen, name: str) -> list[tuple[str, str]]:
    """(ID, status) of the swarm's entries that are not the new machine's."""
    joined = any("swarm" in one for one in seen.machines[name].past)
    found = [(identity, status) for identity, one, status in seen.entries if one == name]
    return [entry for entry in found if not joined or entry[1] == "Down"]


def _forget_node(work: Work, name: str) -> None:
    """A manager removes the entries; one that has just died is only seen to be down after a while."""
    end = time.monotonic() + DOWN_SECONDS
    while True:
        seen = facts.look(work.hosts)
        entries = _old_entries(work, seen, name)
        if all(status == "Down" for _, status in entries):
            break
        if time.monotonic() >= end:
            raise DeployError(
                f"the swarm still sees a ready {name} after {DOWN_SECONDS:.0f} s: is the old machine up?"
            )
        time.sleep(PAUSE_SECONDS)
    manager = next((host for host in work.others() if _manages(seen, host.name)), None)
    for identity, _ in entries:
        if manager is None:
            raise DeployError("no other relay host manages the swarm: monitoring/runbooks/SwarmNoLeader.md")
        must(manager, [NODE_TOOL, "remove", identity])


def _manages(seen: Seen, name: str) -> bool:
    return name in seen.told and bool(seen.told[name].nodes)


def _certificate_step(work: Work, name: str) -> Step:
    return Step(
        f"issue {name} a new key and certificate: the old ones are on a disk that is out of our hands",
        lambda: _reissue(work, name),
        lambda: name in work.records.read() and work.records.read()[name].certificate,
    )


def _reissue(work: Work, name: str) -> None:
    address = facts.addresses(work.hosts)[name]
    subject = pki.host_subject(name, fleet.domain(), address)
    store = fleet.store()
    with secret_commands.exclusive():
        values = {
            key: value
            for key, value in store.read().items()
            if key not in (subject.cert, subject.private_key)
        }
        store.write(authority.completed(values, roles.certificate_subjects()))
    secret_commands.audit("reissue", {"environment": work.name, "secrets": [subject.cert]})
    work.records.change(name, certificate=True)


def _wait(work: Work) -> None:
    end = time.monotonic() + work.options.wait
    while True:
        seen = facts.look(work.hosts)
        missing = [words for name in work.nodes for words in facts.not_yet(seen, name, groups_of(name))]
        if not missing:
            return
        if time.monotonic() >= end:
            raise DeployError(f"not yet: {'; '.join(missing)}. The same command waits again")
        work.say(f"not yet: {'; '.join(missing)}")
        time.sleep(PAUSE_SECONDS)
