"""The healer, on the first host of `ops`: acts upon alerts that a machine can mend (templates/healer).

Only one acts. One host may heal, so the lease is the lock of a file there: with etcd or PostgreSQL
it would depend on what may be ill. Should the first host of `ops` become another one, the old one's
healer asks in vain, for every host takes requests only from the certificate of the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from pyinfra.api.deploy import deploy

from deploys import roles
from deploys.lib import fleet, rotation, webhook
from deploys.lib.config_files import SYSTEMD_UNITS, ConfigFile, Configuration, render, source
from deploys.lib.role import MONITORS, HealthCheck, Role
from deploys.lib.rotation import Trial, Way
from deploys.lib.secrets import Secret
from deploys.lib.timing import seconds
from deploys.lib.trials import curl_bearer, curl_script
from deploys.roles import mend, relay

PROGRAM, UNIT = "/usr/local/sbin/relay-healer", "relay-healer.service"
SETTINGS, TOKEN = "/etc/relay/healer.json", "/etc/relay/healer.token"
TOKEN_SECRET = "healer_token"  # noqa: S105 - its name, not its value
# On loopback: Alertmanager is on the same host.
PORT = 9119


def problems() -> Iterator[str]:
    """How often it may act, and for how long it waits."""
    for name in ("healer_cooldown", "healer_verify", "healer_channel_rest"):
        if seconds(name) < 1:
            yield f"`{name}` is at least 1s"
    most = fleet.setting("healer_most_an_hour")
    if not isinstance(most, int) or isinstance(most, bool) or not 0 <= most <= 60:
        yield f"`healer_most_an_hour` is {most!r}: write a number from 0 to 60"


def _empty_message() -> str:
    """A message without an alert, of which nothing comes."""
    return curl_script([f"http://127.0.0.1:{PORT}/"], "--data '{\"alerts\": []}'")


ROLE = Role(
    "healer",
    MONITORS,
    first_only=True,
    wanted=mend.wanted,
    health_checks=(
        HealthCheck(
            "the healer listens",
            f"systemctl is-active {UNIT} && "
            f"ss --no-header --listening --tcp --numeric 'sport = :{PORT}' | grep -q .",
            units=(UNIT,),
            mend="what its log names, then `sudo systemctl start relay-healer`",
        ),
    ),
    secrets=(
        Secret(
            TOKEN_SECRET,
            way=Way(
                rotation.OVERLAPPED,
                "the healer restarts twice, Alertmanager reloads",
                trial=Trial("ops", _empty_message, lambda found: curl_bearer(found[TOKEN_SECRET].value)),
            ),
        ),
    ),
    problems=problems,
)


def settings() -> str:
    """healer.json."""
    hosts = {
        node.name: {
            "address": node.address,
            "actions": mend.mendable(node),
            "exporters": mend.exporters(node),
        }
        for node in roles.members(mend.ROLE)
    }
    content = {
        "mode": mend.mode(),
        "hosts": hosts,
        "service": relay.service(),
        "port": mend.PORT,
        "cooldown_seconds": seconds("healer_cooldown"),
        "most_an_hour": fleet.setting("healer_most_an_hour"),
        "verify_seconds": seconds("healer_verify"),
        "rest_seconds": seconds("healer_channel_rest"),
    }
    return json.dumps(content, indent=1) + "\n"


@deploy("Healer")
def healer() -> None:
    """The healer's service."""
    unit = f"{SYSTEMD_UNITS}{UNIT}"
    tokens = "".join(f"{found.value}\n" for found in fleet.taken(TOKEN_SECRET))
    Configuration(
        UNIT,
        [
            webhook.module(),
            ConfigFile(PROGRAM, source("healer/relay_healer.py"), mode="755"),
            ConfigFile(SETTINGS, settings(), mode="600"),
            ConfigFile(TOKEN, tokens, mode="600"),
            ConfigFile(unit, render("healer/relay-healer.service.j2", program=PROGRAM, port=PORT)),
        ],
        check=f"{PROGRAM} --help >/dev/null && {PROGRAM} status >/dev/null",
    ).keep()
