"""The programs of backups/core and backups/host on a host, and the command `relay-backups` that runs them."""

from __future__ import annotations

import json

from deploys.lib import object_store, pgbackrest
from deploys.lib.config_files import TLS, ConfigFile
from deploys.lib.fleet import REPOSITORY

DESTINATION = "/usr/local/lib/relay/backups"
COMMAND = "/usr/local/sbin/relay-backups"
SETTINGS = "/etc/relay/backups.json"
PARTS = ("core", "host")
LAUNCHER = """#!/bin/sh
# What a host does for its backups: `relay-backups --help`
exec env PYTHONPATH=/usr/local/lib/relay PYTHONDONTWRITEBYTECODE=1 python3 -m backups.host "$@"
"""


def programs(*more: str) -> list[ConfigFile]:
    """The package's files, `more` modules of backups/ itself among them, and the command."""
    found = ["__init__.py", *more]
    for part in PARTS:
        directory = REPOSITORY / "backups" / part
        found += [f"{part}/{path.name}" for path in sorted(directory.glob("*.py"))]
    sources = [
        ConfigFile(f"{DESTINATION}/{name}", (REPOSITORY / "backups" / name).read_text()) for name in found
    ]
    return [*sources, ConfigFile(COMMAND, LAUNCHER, mode="755")]


def settings(rest: str) -> ConfigFile:
    """What the programs of a database host read; `rest` is the address of its Patroni's interface."""
    values = {
        "stanza": object_store.STANZA,
        "config": pgbackrest.CONFIG,
        "rest": rest,
        "ca_file": f"{TLS}/ca.crt",
    }
    return ConfigFile(SETTINGS, json.dumps(values, indent=1) + "\n")
