"""Bans: addresses whose packets a host drops, made by operators, by alerts, and by fail2ban.

The list is a file of the host (`relay-bans`, templates/bans/relay_bans.py). Deploys write the program and
what may be banned, never the list. The edge's hosts take alerts too: Alertmanager, on the hosts of `ops`,
sends those that have the label `ban_for` to each of them, over TLS and with a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from ipaddress import ip_network

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.operations import apt, systemd

from deploys.lib import fleet, rotation, webhook
from deploys.lib.config_files import SYSTEMD_UNITS, ConfigFile, Configuration, render, source
from deploys.lib.role import ALL, HealthCheck, Role
from deploys.lib.rotation import Trial, Way
from deploys.lib.secrets import Secret
from deploys.lib.services import running
from deploys.lib.timing import seconds
from deploys.lib.trials import curl_bearer, curl_script

PACKAGES = ["nftables"]
# The second lets fail2ban read the journal.
LOGIN_PACKAGES = ["fail2ban", "python3-systemd"]
ACCESS_LOG = "/var/log/nginx/access.log"
PROGRAM = "/usr/local/sbin/relay-bans"
UNIT = "relay-bans.service"
RULES, TOKEN = "/etc/relay/bans.json", "/etc/relay/bans.token"
# Where the edge's hosts take alerts.
ALERTS_PORT = 9118
TOKEN_SECRET = "bans_token"  # noqa: S105 - its name, not its value
# Where it is told to take alerts, it has its port.
_TAKES_ALERTS = (
    f"{{ ! grep -q -- --listen {SYSTEMD_UNITS}{UNIT} || "
    f"ss --no-header --listening --tcp --numeric 'sport = :{ALERTS_PORT}' | grep -q .; }}"
)


def protected() -> dict[str, str]:
    """Networks that are never banned, and whose they are."""
    own = {
        address: f"the fleet's host {node.name}"
        for node in fleet.all_hosts()
        for address in {node.address, fleet.login_address(node)}
    }
    named = {
        network: f"in the setting `{name}`"
        for name in ("ban_never", "ssh_allowed_from", "edge_tools_allowed_from", "edge_trusted_proxies")
        for network in fleet.setting(name)
    }
    local = {"127.0.0.0/8": "this host itself", "::1": "this host itself"}
    return {text: whose for text, whose in {**named, **own, **local}.items() if _is_network(text)}


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def problems() -> Iterator[str]:
    """What would make bans impossible, or let an operator ban the operators."""
    for network in fleet.setting("ban_never"):
        if not _is_network(network):
            yield f"`ban_never`: {network!r} is no network: write a CIDR block such as 192.0.2.0/24"
    for name, least, most in (("ban_widest_ipv4", 8, 32), ("ban_widest_ipv6", 16, 128)):
        value = fleet.setting(name)
        if not isinstance(value, int) or not least <= value <= most:
            yield f"`{name}` is {value!r}: write the length of a prefix, from {least} to {most}"
    if not isinstance(fleet.setting("ban_most"), int) or not 1 <= fleet.setting("ban_most") <= 100_000:
        yield "`ban_most` is a number from 1 to 100000"
    for name in ("ban_longest_by_alert", "ban_login_window", "ban_login_time"):
        if seconds(name) < 1:
            yield f"`{name}` is at least 1s"
    if fleet.setting("ban_logins"):
        yield from _login_problems()


def _login_problems() -> Iterator[str]:
    if not fleet.setting("ssh_allowed_from") and not fleet.setting("ban_never"):
        yield (
            "operators who mistype would be banned from SSH: name where they come from in `ban_never` or "
            "`ssh_allowed_from`, or set `ban_logins` to False"
        )
    if not isinstance(fleet.setting("ban_login_failures"), int) or fleet.setting("ban_login_failures") < 2:
        yield "`ban_login_failures` is a number from 2 on"
    paths = fleet.setting("ban_login_paths")
    try:
        re.compile(paths)
    except re.error as error:
        yield f"`ban_login_paths` is no regular expression: {error}"
    if set('"%\n<>') & set(paths):
        yield "`ban_login_paths` may not hold \", %, <, > or a line's end: fail2ban reads them otherwise"


def _alert_script() -> str:
    # A message without alerts changes nothing.
    urls = [f"https://{node.address}:{ALERTS_PORT}/" for node in fleet.hosts("edge")]
    return curl_script(urls, "--data '{\"alerts\": []}'")


ROLE = Role(
    "bans",
    ALL,
    health_checks=(
        HealthCheck(
            "bans are held",
            f"systemctl is-active relay-bans && nft list table inet relay_bans >/dev/null && {_TAKES_ALERTS}",
            units=(UNIT,),
            mend="what its log names, then `sudo systemctl start relay-bans`",
        ),
    ),
    secrets=(
        Secret(
            TOKEN_SECRET,
            way=Way(
                rotation.OVERLAPPED,
                "what takes alerts on the edges restarts twice (bans stay in force), Alertmanager reloads",
                trial=Trial("ops", _alert_script, lambda found: curl_bearer(found[TOKEN_SECRET].value)),
            ),
        ),
    ),
    problems=problems,
)


def rules() -> str:
    """What the hosts let be banned, as `relay-bans` reads it."""
    settings = {
        "never": protected(),
        "widest_v4": fleet.setting("ban_widest_ipv4"),
        "widest_v6": fleet.setting("ban_widest_ipv6"),
        "most": fleet.setting("ban_most"),
        "longest_by_alert_seconds": int(seconds("ban_longest_by_alert")),
    }
    return json.dumps(settings, indent=2) + "\n"


@deploy("Bans")
def bans() -> None:
    """The bans role, for every host."""
    apt.packages(name="Install nftables", packages=PACKAGES, no_recommends=True)
    takes_alerts = fleet.node_of(host) in fleet.hosts("edge")
    words = ["keep", f"--listen 0.0.0.0:{ALERTS_PORT}", f"--token {TOKEN}"] if takes_alerts else ["keep"]
    tokens = "".join(f"{found.value}\n" for found in fleet.taken(TOKEN_SECRET))
    token = ConfigFile(TOKEN, tokens, mode="600")
    files = [
        ConfigFile(PROGRAM, source("bans/relay_bans.py"), mode="755"),
        ConfigFile(RULES, rules()),
        ConfigFile(
            f"{SYSTEMD_UNITS}{UNIT}", render("bans/relay-bans.service.j2", program=PROGRAM, words=words)
        ),
        *([token, webhook.module()] if takes_alerts else []),
    ]
    Configuration(UNIT, files, check=f"{PROGRAM} list >/dev/null").keep()
    logins()


def login_names() -> list[str]:
    """The edge's names at which people log in."""
    named = {"console": "edge_console", "tools": "edge_tools"}
    return [f"{name}.{fleet.domain()}" for name, setting in named.items() if fleet.setting(setting)]


def login_files(names: list[str], *, access_log: str = ACCESS_LOG, program: str = PROGRAM) -> dict[str, str]:
    """fail2ban's files by their path below /etc/fail2ban; `names` are the edge's, none elsewhere."""
    jail = render(
        "bans/jail.local.j2",
        never=list(protected()),
        failures=fleet.setting("ban_login_failures"),
        window_seconds=int(seconds("ban_login_window")),
        ban_seconds=int(seconds("ban_login_time")),
        names=names,
        access_log=access_log,
    )
    written = {"jail.d/relay.local": jail, "action.d/relay-bans.conf": _action(program)}
    if names:
        escaped = [re.escape(name) for name in names]
        text = render("bans/edge-login.conf.j2", names=escaped, paths=fleet.setting("ban_login_paths"))
        written["filter.d/relay-edge-login.conf"] = text
    return written


def _action(program: str) -> str:
    return render("bans/action.conf.j2", program=program)


def logins() -> None:
    """fail2ban, where the environment wants it; otherwise it does not run."""
    if not fleet.setting("ban_logins"):
        if running("fail2ban.service"):
            systemd.service(name="Stop fail2ban", service="fail2ban", running=False, enabled=False)
        return
    apt.packages(name="Install fail2ban", packages=LOGIN_PACKAGES, no_recommends=True)
    names = login_names() if fleet.node_of(host) in fleet.hosts("edge") else []
    files = [ConfigFile(f"/etc/fail2ban/{path}", text) for path, text in login_files(names).items()]
    Configuration("fail2ban", files, check="fail2ban-client -t >/dev/null").keep()
