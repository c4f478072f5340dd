"""The programs of backups/core and backups/host on a host, and the command `relay-backups` that runs them."""

from __future__ import annotations

from deploys.lib.config_files import ConfigFile
from deploys.lib.fleet import REPOSITORY

DESTINATION = "/usr/local/lib/relay/backups"
COMMAND = "/usr/local/sbin/relay-backups"
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
