"""Makes the cluster's stanza in the repository; refuses a repository that belongs to another cluster."""

from __future__ import annotations

import argparse
import subprocess
import time

from backups.core.errors import explain_stanza
from backups.core.pgbackrest import PgBackRest
from backups.core.repository import Stanza, parse_info
from backups.host.common import HostError, Settings, is_primary, output, query, run_as_account

MISSING = 1
FOREIGN = "the repository holds the backups of another cluster"
# Pushes of WAL that wait for the stanza hold the lock that its creation needs.
TRIES, PAUSE_SECONDS = 30, 2
UPGRADE = "sudo relay-backups stanza --upgrade"


def options(parser: argparse.ArgumentParser) -> None:
    """The noun's options."""
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="only say what is missing, one line each")
    text = "go on in this repository with a cluster that is not the one whose backups it holds"
    mode.add_argument("--upgrade", action="store_true", help=text)


def run(options: argparse.Namespace) -> int:
    """Only the primary acts. 0, or HostError."""
    settings = Settings.read()
    if not is_primary(settings):
        return 0
    program = PgBackRest(settings.stanza, settings.config)
    found = parse_info(output(program.info(), "pgbackrest info", 120), settings.stanza)
    if not found.usable and found.status != MISSING:
        raise HostError(str(explain_stanza(found)))
    own = int(query("select system_identifier from pg_control_system()"))
    if options.check:
        for line in differences(found, own):
            print(line)
        return 0
    if options.upgrade:
        output(program.stanza_upgrade(), "stanza-upgrade", 120)
    elif found.status == MISSING:
        create(program)
    elif foreign := stranger(found, own):
        raise HostError(foreign)
    output(program.check(), "the archive does not take this cluster's WAL", 180)
    if not found.backups or options.upgrade:
        subprocess.run(["systemctl", "start", "--no-block", "relay-backup.service"], check=True)
    return 0


def differences(found: Stanza, own: int) -> list[str]:
    """What the repository lacks for the cluster whose system identifier is `own`."""
    if found.status == MISSING:
        return ["the stanza is missing"]
    if foreign := stranger(found, own):
        return [foreign]
    if not found.backups and not found.busy:
        return ["there is no backup yet"]
    return []


def stranger(found: Stanza, own: int) -> str:
    """Why the repository is not this cluster's; empty when it is."""
    current = found.databases.get(found.database() or 0)
    if current in (None, own):
        return ""
    return (
        f"{FOREIGN} (system identifier {current}, ours {own}). "
        "If those are the data, restore them: python -m backups restore. If this is a new cluster, or of a "
        f"new major version, that shall go on there, then on the primary: {UPGRADE}"
    )


def create(program: PgBackRest) -> None:
    """Creates the stanza, while the archiver may hold the lock now and then."""
    for left in reversed(range(TRIES)):
        done = run_as_account(program.stanza_create(), 120)
        if not done.returncode:
            return
        if "unable to acquire lock" not in done.stderr + done.stdout or not left:
            raise HostError(f"stanza-create: {(done.stderr or done.stdout).strip()[:600]}")
        time.sleep(PAUSE_SECONDS)
