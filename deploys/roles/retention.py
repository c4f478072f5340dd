"""Retention of backups, on the first host of group `ops`: the only host whose account may delete.

It reads the whole repository again once a day, and drops nothing of a damaged one. Beside it, whether the
bucket is still as it must be.
"""

from __future__ import annotations

import json

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.operations import apt

from deploys.lib import backup_files, object_store, pgbackrest
from deploys.lib.config_files import ConfigFile, place
from deploys.lib.role import Role
from deploys.roles.backup import timer

PACKAGES = [*pgbackrest.PACKAGES, "python3-boto3"]
BUCKET_SETTINGS = "/etc/relay/bucket.json"
ROLE = Role(
    "retention",
    "ops",
    first_only=True,
    secrets=object_store.secrets(object_store.RETENTION),
)


@deploy("Retention of backups")
def retention() -> None:
    """pgBackRest with the deleting account, and the timers."""
    apt.packages(name="Install pgBackRest (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
    data = host.data
    settings = {
        "stanza": object_store.STANZA,
        "config": pgbackrest.RETENTION_CONFIG,
        "days": data.backup_keep_days,
        "weeks": data.backup_keep_weeks,
        "months": data.backup_keep_months,
    }
    bucket = json.dumps(object_store.bucket_settings(object_store.RETENTION), indent=1) + "\n"
    place(
        *backup_files.programs("bucket.py"),
        ConfigFile(BUCKET_SETTINGS, bucket, mode="600"),
        pgbackrest.configuration(pgbackrest.RETENTION_CONFIG, object_store.RETENTION),
        ConfigFile(backup_files.SETTINGS, json.dumps(settings, indent=1) + "\n"),
    )
    timer("relay-retention").keep()
    timer("relay-bucket-check").keep()
