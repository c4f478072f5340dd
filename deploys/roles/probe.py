"""The probe on the first host of `ops`: each minute a real call through each edge, as a customer makes it.

Its account and token: deploys/roles/probe_account.py. `ssh ops1 sudo relay-probe --json` calls now, and
prints what was seen.
"""

from __future__ import annotations

import json
import secrets as random
from collections.abc import Iterator
from pathlib import PurePosixPath

from pyinfra.api.deploy import deploy
from pyinfra.operations import apt

from deploys.lib import edge_names, fleet, rotation, services
from deploys.lib.config_files import SYSTEMD_UNITS, ConfigFile, Configuration, render, source
from deploys.lib.role import MONITORS, HealthCheck, Role
from deploys.lib.rotation import Way
from deploys.lib.secrets import Secret

PACKAGES = ["python3"]
TOOL, SETTINGS = "/usr/local/sbin/relay-probe", "/etc/relay/probe.json"
FIGURES = "/var/lib/prometheus/node-exporter/probe.prom"
UNIT = "relay-probe.service"
TOKEN = "probe_token"  # noqa: S105 - the secret's name
HTTPS_PORT = 443
# Before the next minute's calls begin.
MOST_SECONDS = 50


def wanted() -> bool:
    """Whether the environment names a model to call."""
    return bool(fleet.setting("probe_model"))


def new_token() -> str:
    """As the relay makes tokens (relay.identity.tokens.mint)."""
    return f"sk-relay-{random.token_urlsafe(32)}"


def problems() -> Iterator[str]:
    """What is wrong with the settings."""
    seconds = fleet.setting("probe_seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 1 <= seconds <= MOST_SECONDS:
        yield f"`probe_seconds` is {seconds!r}: write seconds, from 1 to {MOST_SECONDS}"
    model = fleet.setting("probe_model")
    if not isinstance(model, str) or "*" in model:
        yield f"`probe_model` is {model!r}: write the name of one model that a channel serves"


ROLE = Role(
    "probe",
    MONITORS,
    first_only=True,
    wanted=wanted,
    health_checks=(
        HealthCheck(
            "the probe calls each minute",
            f"systemctl is-active {UNIT} && find {FIGURES} -mmin -3 | grep -q .",
            first=True,
            units=(UNIT,),
            mend=f"`sudo systemctl start {UNIT}`; `sudo relay-probe --json` calls now",
        ),
    ),
    secrets=(
        Secret(
            TOKEN,
            new_token,
            way=Way(
                rotation.BY_HAND,
                remedy="`relayctl token list --prefix PREFIX` and `relayctl token disable ID` end the old "
                "one, `secrets edit ENV probe_token` and apply make another",
            ),
        ),
    ),
    problems=problems,
)


@deploy("Probe")
def probe() -> None:
    """The program, its settings and its service."""
    apt.packages(name="Install Python (/usr/bin/python3)", packages=PACKAGES, no_recommends=True)
    path = f"{SYSTEMD_UNITS}{UNIT}"
    unit = render("probe/relay-probe.service.j2", tool=TOOL, figures=str(PurePosixPath(FIGURES).parent))
    Configuration(
        UNIT,
        [
            *services.rounds(),
            ConfigFile(TOOL, source("probe/relay_probe.py"), mode="755"),
            ConfigFile(SETTINGS, json.dumps(settings(), indent=1) + "\n", mode="600"),
            ConfigFile(path, unit),
        ],
        check=f"{TOOL} --help >/dev/null && systemd-analyze verify {path}",
    ).keep()
    services.without_timer(UNIT.removesuffix(".service"))


def settings() -> dict[str, object]:
    """What the program reads."""
    return {
        "name": edge_names.api()[0],
        "console": next(iter(edge_names.console()), ""),
        "edges": {node.name: node.address for node in fleet.hosts("edge")},
        "port": HTTPS_PORT,
        "ca_file": edge_names.ca_file(),
        "model": fleet.setting("probe_model"),
        "token": fleet.secret(TOKEN),
        "seconds": fleet.setting("probe_seconds"),
    }
