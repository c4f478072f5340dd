"""The status page on hosts: the package monitoring.status as the program `relay-status`, and its services."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from deploys.lib import fleet, object_store, services
from deploys.lib.config_files import SYSTEMD_UNITS, ConfigFile, Configuration, render
from deploys.lib.fleet import REPOSITORY

SOURCE = REPOSITORY / "monitoring/status"
DESTINATION = "/usr/local/lib/relay/monitoring"
COMMAND = "/usr/local/sbin/relay-status"
# A host may be both: it makes the page, and serves it.
SETTINGS = {"publish": "/etc/relay/status.json", "pull": "/etc/relay/status-page.json"}
# As monitoring.status.host has it; nginx on an edge serves it.
DIRECTORY = "/var/lib/relay-status"
# Debian's Python library for S3.
PACKAGES = ["python3-boto3"]
# Of each minute. The probe calls at the minute; Prometheus has recorded what it saw half a minute later; then
# the page is made, then taken. The second time is for a probe that had to wait.
SECONDS = {"publish": "10,40", "pull": "18,48"}
LAUNCHER = """#!/bin/sh
# Makes and keeps the status page: `relay-status --help`
case "${1:-}" in
    publish) set -- "$@" --settings /etc/relay/status.json ;;
    pull) set -- "$@" --settings /etc/relay/status-page.json ;;
esac
exec env PYTHONPATH=/usr/local/lib/relay PYTHONDONTWRITEBYTECODE=1 python3 -m monitoring.status.host "$@"
"""


def wanted() -> bool:
    """Whether the environment has a status page."""
    return bool(fleet.setting("edge_status_page"))


def programs() -> list[ConfigFile]:
    """The package's files and the command."""
    names = [*sorted(path.name for path in SOURCE.glob("*.py")), "page.css", "page.js"]
    found = services.rounds()
    found += [ConfigFile(f"{DESTINATION}/status/{name}", (SOURCE / name).read_text()) for name in names]
    return [*found, ConfigFile(COMMAND, LAUNCHER, mode="755")]


def settings(action: str, account: str, **rest: object) -> ConfigFile:
    """What an action of the program reads, for an account of the bucket; `rest` is the ops host's."""
    values = {"bucket": bucket(account), **rest}
    return ConfigFile(SETTINGS[action], json.dumps(values, indent=1) + "\n", mode="600")


def bucket(account: str) -> dict[str, Any]:
    """The page's place in the environment's bucket."""
    found = object_store.store()
    return {
        "bucket": found.bucket,
        "endpoint": f"https://{found.endpoint}:{found.port}",
        "region": found.region,
        "uri_style": found.uri_style,
        "ca_file": found.ca_file,
        "path": found.status,
        "keys": list(object_store.keys(account)),
    }


def unit(action: str) -> str:
    """The service that runs an action."""
    return f"relay-status-{action}.service"


def keep(action: str, text: str, *files: ConfigFile) -> None:
    """The service that does an action twice a minute and reads `files`; `text` describes it."""
    path = f"{SYSTEMD_UNITS}{unit(action)}"
    command = f"{COMMAND} {action} --at {SECONDS[action]}"
    Configuration(
        unit(action),
        [*programs(), *files, ConfigFile(path, render("status/service.j2", command=command, text=text))],
        check=f"{check(action)} && systemd-analyze verify {path}",
    ).keep()
    services.without_timer(unit(action).removesuffix(".service"))


def check(action: str) -> str:
    """The command by which the program says whether it can read what an action reads."""
    return f"{COMMAND} check --settings {SETTINGS[action]}"


def policy() -> str:
    """The page's Content-Security-Policy without who may frame it, as monitoring.status.page has it."""
    style, script = (
        base64.b64encode(hashlib.sha256((SOURCE / name).read_bytes()).digest()).decode()
        for name in ("page.css", "page.js")
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
