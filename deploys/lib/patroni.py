"""The cluster as pyinfra sees it: facts that read its settings and roles, operations that mend them."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator
from typing import Any

import yaml
from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host

Commands = Generator[StringCommand, None, None]
Settings = dict[str, Any]
# Roles of replicas that have confirmed every acknowledged write.
CONFIRMING = ("Quorum Standby", "Sync Standby")


class ClusterSettings(FactBase[Settings]):
    """Settings that the cluster keeps in etcd; empty while there is no cluster."""

    def command(self) -> str:
        return "/usr/local/bin/patronictl show-config 2>/dev/null || true"

    @staticmethod
    def default() -> Settings:
        return {}

    def process(self, output: list[str]) -> Settings:
        return yaml.load("\n".join(output), Loader=yaml.CSafeLoader) or {}


class RestartPending(FactBase[bool]):
    """Whether a member waits for the restart that a setting needs."""

    def command(self) -> str:
        return "/usr/local/bin/patronictl list --format json 2>/dev/null || true"

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return any(member.get("Pending restart") for member in json.loads("\n".join(output) or "[]"))


class DatabaseDifferences(FactBase[list[str]]):
    """What the primary's roles and database lack, one line each; none on a standby or before a cluster is."""

    def command(self) -> str:
        program = "/opt/patroni/bin/python /usr/local/lib/relay/database_setup.py --check"
        return f"runuser -u postgres -- {program} 2>/dev/null || true"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return [line for line in output if line]


class Members(FactBase[list[dict[str, Any]]]):
    """The cluster's members as Patroni lists them: Member, Role, State, …; none while there is no cluster."""

    def command(self) -> str:
        return "/usr/local/bin/patronictl list --format json 2>/dev/null || true"

    @staticmethod
    def default() -> list[dict[str, Any]]:
        return []

    def process(self, output: list[str]) -> list[dict[str, Any]]:
        return list(json.loads("\n".join(output) or "[]"))


@operation()
def keep_primary(wanted: Collection[str]) -> Commands:
    """Hands over when the primary is a host that the inventory no longer names.

    A replica that left needs nothing: cut off by firewall and access rules, it loses its key in etcd.
    """
    members = host.get_fact(Members)
    leaving = [m["Member"] for m in members if m.get("Role") == "Leader" and m["Member"] not in wanted]
    if not leaving:
        return
    standbys = [
        m["Member"]
        for m in members
        if m["Member"] in wanted and m["Role"] in CONFIRMING and m.get("State") == "streaming"
    ]
    if not standbys:
        yield StringCommand(
            f"echo 'the primary {leaving[0]} left the inventory and no replica can take over: bring one "
            "back (patronictl list), or put the host back into the inventory' >&2; false"
        )
        return
    yield StringCommand(
        f"patronictl switchover relay --leader {leaving[0]} --candidate {standbys[0]} --force"
    )
    yield StringCommand("relay-patroni wait")


def missing(wanted: Settings, found: Settings) -> Settings:
    """The part of `wanted` that `found` lacks or has with another value. What only `found` has stays: a
    cluster that is paused, for instance, is not resumed by a deploy."""
    difference: Settings = {}
    for key, value in wanted.items():
        if isinstance(value, dict):
            inner = missing(value, found.get(key) or {})
            if inner:
                difference[key] = inner
        elif found.get(key) != value:
            difference[key] = value
    return difference


@operation()
def cluster_settings(wanted: Settings) -> Commands:
    """Gives the cluster the settings that it lacks. A cluster that does not exist yet starts with them.

    Settings that need a restart of PostgreSQL get it, replicas first, one node at a time; then the primary
    hands over and comes back with them as a replica.
    """
    found = host.get_fact(ClusterSettings)
    patch = missing(wanted, found) if found else {}
    if patch:
        settings = QuoteString(json.dumps(patch))
        yield StringCommand("echo", settings, "| patronictl edit-config --quiet --force --apply -")
    pending = host.get_fact(RestartPending)
    if patch or pending:
        yield StringCommand("relay-patroni restart-pending")
    else:
        host.noop("the cluster has these settings")


@operation()
def database_setup(due: bool) -> Commands:
    """Mends roles and database where something differs, or where `due` (a file that says what they should be
    has changed). A standby does nothing: the primary's changes come to it."""
    differences = host.get_fact(DatabaseDifferences)
    if not due and not differences:
        host.noop("roles and database are as they should be")
        return
    program = "/opt/patroni/bin/python /usr/local/lib/relay/database_setup.py --apply"
    yield StringCommand(f"runuser -u postgres -- {program}")
