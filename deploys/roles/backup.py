"""Backups run on the fleet by themselves: a full one a day, WAL within a minute, both looked at.

pgBackRest, its configuration and our programs come with the role postgres: its archive_command needs them,
and so does a restore on new hosts, whose empty cluster the repository refuses here. Here are the stanza, the
first backup, and the timers; every database host has those, and the primary alone acts.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host

from deploys.lib import backup_files, fleet, object_store, pgbackrest, rotation
from deploys.lib.config_files import SYSTEMD_UNITS, ConfigFile, Configuration, render, source
from deploys.lib.role import Role
from deploys.lib.rotation import Way
from deploys.lib.secrets import Secret


def problems() -> Iterator[str]:
    """Where backups go, and how far WAL may be behind."""
    yield from object_store.problems()
    seconds = fleet.setting("backup_archive_seconds")
    if not isinstance(seconds, int) or not 1 <= seconds <= 3600:
        yield f"`backup_archive_seconds` is {seconds!r}: write seconds from 1 to 3600, 60 as a rule"


ROLE = Role(
    "backup",
    "db",
    cluster=True,
    secrets=(
        Secret(
            pgbackrest.PASSPHRASE,
            way=Way(
                rotation.KEPT,
                remedy="pgBackRest cannot encrypt a repository anew: with another passphrase no backup could "
                "be "
                "read. Set another `backup_path`, `secrets edit` the passphrase, apply (a full backup is "
                "made there), "
                "keep the old passphrase as long as the old path, then remove that path",
            ),
        ),
        *object_store.secrets(object_store.BACKUP),
    ),
    problems=problems,
)


class StanzaDifferences(FactBase[list[str]]):
    """What the repository lacks for the cluster, one line each; none on a replica."""

    def command(self) -> str:
        return f"{backup_files.COMMAND} stanza --check 2>&1 || true"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return [line for line in output if line]


@operation()
def stanza() -> Generator[StringCommand, None, None]:
    """Makes the stanza on the primary where it is missing, and starts the first backup beside the deploy."""
    if host.get_fact(StanzaDifferences):
        yield StringCommand(f"{backup_files.COMMAND} stanza")
    else:
        host.noop("the repository is this cluster's and has a backup")


@deploy("Backups")
def backup() -> None:
    """On each host of group `db`, whose PostgreSQL runs already."""
    timer("relay-backup", calendar=host.data.backup_time).keep()
    stanza(name=f"Make the stanza and a first backup ({backup_files.COMMAND})")
    timer("relay-backup-check").keep()


def timer(name: str, **values: object) -> Configuration:
    """A timer and its service, of templates/backup."""
    service = f"{SYSTEMD_UNITS}{name}.service"
    return Configuration(
        f"{name}.timer",
        [
            ConfigFile(service, source(f"backup/{name}.service")),
            ConfigFile(f"{SYSTEMD_UNITS}{name}.timer", render(f"backup/{name}.timer.j2", **values)),
        ],
        check=f"systemd-analyze verify {service} {SYSTEMD_UNITS}{name}.timer",
        label=name,
    )
