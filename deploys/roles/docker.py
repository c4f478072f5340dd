"""Docker Engine from the distribution, and a firewall around the ports that it publishes.

Docker answers packets to published ports before ufw sees them. The only chain that it leaves to others is
DOCKER-USER, which ufw loads from its after.rules here: published ports are closed but to those that their
roles open them to.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Generator
from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import apt, files, systemd

from deploys import roles
from deploys.lib import fleet
from deploys.lib.config_files import ConfigFile, Configuration, place, source
from deploys.lib.role import HealthCheck, Role, Scrape
from deploys.lib.timing import seconds

PACKAGES = ["docker.io"]

AFTER_RULES = "/etc/ufw/after.rules"
REGISTRY_PORT = 5000
# Its second account, while a password is rotated, has a name of its own.
REGISTRY_ACCOUNT = "relay"
METRICS_PORT = 9323
RESTART = "/usr/local/sbin/relay-docker-restart"
# What Docker itself needs to stop containers, beyond their grace.
DRAIN_MARGIN_SECONDS = 20
# Engines older than 23 cannot test their settings.
VALIDATE = (
    "! dockerd --help | grep -q -- --validate || dockerd --validate --config-file=/etc/docker/daemon.json"
)

ROLE = Role(
    "docker",
    "app",
    cluster=True,
    health_checks=(
        HealthCheck(
            "the engine answers",
            "docker info --format '{{.ServerVersion}}'",
            units=("docker.service", "containerd.service"),
            mend="what its log names, then `sudo systemctl start docker`",
        ),
    ),
    held=(r"docker(\.io|-cli)", "containerd", "runc"),
    scrapes=(Scrape("docker", METRICS_PORT),),
)


def registry() -> str:
    """Where the fleet's images live: ``ops1.sandbox.test:5000``."""
    return f"{fleet.hosts('ops')[0].fqdn}:{REGISTRY_PORT}"


def daemon() -> dict[str, Any]:
    """daemon.json. Live-restore would be refused by a swarm; the pools stay clear of those of swarm.py."""
    return {
        "log-driver": "json-file",
        "log-opts": {"max-size": "20m", "max-file": "5"},
        "bip": "10.203.0.1/24",
        "default-address-pools": [{"base": "10.204.0.0/16", "size": 24}],
        "live-restore": False,
        # On every address, since the engine does not start when the one it is told is late; ufw guards it.
        "metrics-addr": f"0.0.0.0:{METRICS_PORT}",
    }


def login() -> str:
    """The account at the registry and its password."""
    found = fleet.shown("registry_password")
    return f"{found.account(REGISTRY_ACCOUNT)}:{found.value}"


def credentials() -> dict[str, Any]:
    """Docker's own file of logins, for root."""
    return {"auths": {registry(): {"auth": base64.b64encode(login().encode()).decode()}}}


def allowed(node: fleet.Node) -> list[tuple[str, int]]:
    """Who reaches which published port of a host: (address, port)."""
    openings = roles.openings(node, published=True)
    return [
        (client.address, port)
        for opening in openings
        for port in opening.ports
        for group in opening.groups or ()
        for client in fleet.hosts(group)
    ]


def published_rules(node: fleet.Node) -> str:
    """The part of ufw's after.rules that guards published ports.

    Only packets whose destination Docker rewrote (state DNAT) are looked at, by the port they were sent to.
    """
    lines = ["*filter", ":DOCKER-USER - [0:0]"]
    for address, port in allowed(node):
        lines.append(
            f"-A DOCKER-USER -p tcp -s {address} -m conntrack --ctstate DNAT --ctdir ORIGINAL "
            f"--ctorigdstport {port} -j RETURN"
        )
    lines += ["-A DOCKER-USER -m conntrack --ctstate DNAT --ctdir ORIGINAL -j DROP"]
    lines += ["-A DOCKER-USER -j RETURN", "COMMIT"]
    return "\n".join(lines)


class GuardedPorts(FactBase[set[tuple[str, int]]]):
    """What DOCKER-USER lets through: (address, port); empty when it does not drop the rest."""

    def command(self) -> str:
        return "iptables -S DOCKER-USER 2>/dev/null || true"

    @staticmethod
    def default() -> set[tuple[str, int]]:
        return set()

    def process(self, output: list[str]) -> set[tuple[str, int]]:
        if not any(line.endswith("--ctstate DNAT --ctdir ORIGINAL -j DROP") for line in output):
            return set()
        rules = (
            re.search(r"-s ([0-9.]+)/32 .*--ctorigdstport ([0-9]+) .*-j RETURN", line) for line in output
        )
        return {(rule[1], int(rule[2])) for rule in rules if rule}


@operation()
def load_guard(changed: Callable[[], bool]) -> Generator[StringCommand, None, None]:
    """Reloads ufw when its rules changed or when the kernel holds others."""
    if changed() or host.get_fact(GuardedPorts) != set(allowed(fleet.node_of(host))):
        yield StringCommand("ufw reload")


@deploy("Docker")
def docker() -> None:
    """The docker role, for hosts that run containers."""
    engine = configuration()
    written = engine.write()
    apt.packages(name="Install Docker (/usr/sbin/dockerd)", packages=PACKAGES, no_recommends=True)
    systemd.service(name="Run Docker (docker.service)", service="docker", enabled=True)
    place(ConfigFile(RESTART, source("docker/docker_restart.py"), mode="755"))
    engine.load(written, serial=True)
    guard()
    trust_registry()


def configuration() -> Configuration:
    """The engine's settings; a change restarts it, host after host."""
    return Configuration(
        "docker",
        [ConfigFile("/etc/docker/daemon.json", json.dumps(daemon(), indent=2) + "\n")],
        check=VALIDATE,
        # Calls may end within the grace of their stack.
        action=f"{RESTART} --drain-seconds {seconds('relay_stop_grace') + DRAIN_MARGIN_SECONDS:g}",
    )


def guard() -> None:
    """Published ports are for those that their roles name."""
    rules = files.block(
        name=f"Guard published ports ({AFTER_RULES})",
        path=AFTER_RULES,
        content=published_rules(fleet.node_of(host)),
        marker="# {mark} PUBLISHED PORTS OF DOCKER",
    )
    load_guard(name=f"Load the guard ({AFTER_RULES})", changed=fleet.changed(rules))


def trust_registry() -> None:
    """Root may pull from and push to the fleet's registry."""
    path = f"/etc/docker/certs.d/{registry()}/ca.crt"
    place(
        ConfigFile(path, fleet.secret("ca_trusted")),
        ConfigFile("/root/.docker/config.json", json.dumps(credentials(), indent="\t"), mode="600"),
    )
