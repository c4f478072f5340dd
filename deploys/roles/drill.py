"""Restore drills on the first host of group `ops`: a random point of the backups, restored beside the fleet.

The host gets PostgreSQL's programs without a cluster, pgBackRest with an account that may only read, and the
relay's own programs, which prove the restored ledger and compare it with the fleet's, as relay_reader.
Receipts are signed and kept beside the backups.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator

from pyinfra.api.command import FileUploadCommand, StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.facts.files import Sha256File

from deploys.lib import backup_files, fleet, object_store, pgbackrest, relay_image, rotation
from deploys.lib.config_files import ConfigFile, place
from deploys.lib.pyinfra_adapter import is_executing
from deploys.lib.role import Role
from deploys.lib.rotation import Way
from deploys.lib.secrets import Secret, signing_key
from deploys.lib.venv import virtualenv
from deploys.roles.backup import timer
from deploys.roles.base import UPLOADS
from deploys.roles.postgres import DEFAULT_VERSION, READER, dsn, install

# "openssh-client" signs receipts.
PACKAGES = [
    *pgbackrest.PACKAGES,
    "openssh-client",
    "postgresql-common",
    f"postgresql-{DEFAULT_VERSION}",
    "python3-venv",
]
SETTINGS = "/etc/relay/drill.json"
KEY = "/etc/relay/drill.key"
# How the fleet's own database is read, to compare.
REFERENCE = "/etc/relay/drill.reference"
CONFIG, RECEIPTS_CONFIG = "/etc/pgbackrest/drill.conf", "/etc/pgbackrest/receipts.conf"
RECEIPTS_PATH = "/receipts"
RELAY = "/opt/relay"


def problems() -> Iterator[str]:
    """How often drills run, against how old the last good one may be."""
    days = fleet.setting("drill_max_age_days")
    if not isinstance(days, int) or days < 1:
        yield f"`drill_max_age_days` is {days!r}: write whole days, 8 for a drill a week"


ROLE = Role(
    "drill",
    "ops",
    first_only=True,
    secrets=(
        Secret(
            "drill_signing_key",
            signing_key,
            way=Way(
                rotation.BY_HAND,
                remedy="receipts and exports that it signed would not be verified any more: keep its public "
                "key "
                "(`ssh-keygen -y -f /etc/relay/drill.key` on the ops host) with them, give another key to "
                "`secrets edit ENV drill_signing_key` (`ssh-keygen -t ed25519 -N ''`), apply, run a drill",
            ),
        ),
        *object_store.secrets(object_store.READER),
    ),
    problems=problems,
)


@operation()
def proofs(version: str) -> Generator[StringCommand | FileUploadCommand, None, None]:
    """Installs the relay's own programs; the file `version` lies beside them once they are there."""
    marker, archive = f"{RELAY}/version", f"{UPLOADS}/relay-proofs.tar"
    if host.get_fact(Sha256File, path=marker) == hashlib.sha256(f"{version}\n".encode()).hexdigest():
        host.noop(f"the relay's programs are those of {version}")
        return
    if is_executing():
        yield FileUploadCommand(relay_image.context(), archive, remote_temp_filename=f"{archive}.part")
    wheels = f"{RELAY}/wheelhouse"
    yield StringCommand(f"rm -rf {wheels} && tar -x -f {archive} -C {RELAY} wheelhouse && rm {archive}")
    install = "install --quiet --disable-pip-version-check --no-input --no-index --no-deps --force-reinstall"
    yield StringCommand(f"{RELAY}/bin/pip {install} {wheels}/*.whl && echo {version} > {marker}")


@deploy("Restore drills")
def drill() -> None:
    """PostgreSQL's programs, two accounts of the store, what proves, and the timer."""
    install("what drills need", PACKAGES)
    virtualenv(
        name=f"Install what the relay's programs need ({RELAY}/requirements.txt)",
        path=RELAY,
        requirements="relay/requirements.txt",
    )
    proofs(name=f"Install the relay's programs ({RELAY}/version)", version=relay_image.version())
    place(
        *backup_files.programs(),
        pgbackrest.configuration(CONFIG, object_store.READER),
        pgbackrest.configuration(RECEIPTS_CONFIG, object_store.RETENTION, repository=RECEIPTS_PATH),
        ConfigFile(KEY, fleet.secret("drill_signing_key"), mode="600"),
        ConfigFile(REFERENCE, dsn(READER) + "\n", mode="600"),
        ConfigFile(SETTINGS, json.dumps(settings(), indent=1) + "\n"),
    )
    timer("relay-drill", calendar=host.data.drill_time).keep()


def settings() -> dict[str, object]:
    """What backups/host/instance.py and drill.py read."""
    return {
        "stanza": object_store.STANZA,
        "pgbackrest": CONFIG,
        "binaries": f"/usr/lib/postgresql/{host.data.postgres_version}/bin",
        "memory_max": host.data.drill_memory_max,
        "relay": [f"{RELAY}/bin/python", "-m", "relay"],
        "environment": fleet.setting("domain"),
        "receipts_pgbackrest": RECEIPTS_CONFIG,
        "signing_key": KEY,
        "reference": REFERENCE,
        "max_age_days": host.data.drill_max_age_days,
    }
