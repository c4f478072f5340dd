"""The probe's account at the relay: made on a host of `app` where a replica runs, once for the fleet."""

from __future__ import annotations

import json
from collections.abc import Generator

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from deploys.lib import acting, fleet
from deploys.lib.config_files import ConfigFile, place, source
from deploys.lib.role import Role
from deploys.roles.probe import TOKEN, wanted
from deploys.roles.relay import service

TOOL, SETTINGS = "/usr/local/sbin/relay-probe-account", "/etc/relay/probe-account.json"
# Account and customer group; and calls a minute, of which each edge takes two.
NAME, CALLS_A_MINUTE = "probe", 120

ROLE = Role("probe_account", "app", wanted=wanted)


class Replicas(FactBase[list[str]]):
    """Ids of the relay's containers that run on the host."""

    def command(self) -> str:
        listing = f"docker ps --quiet --filter label=com.docker.swarm.service.name={service()}"
        return f"command -v docker >/dev/null && {listing} || true"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return [line for line in output if line]


class AccountDifferences(FactBase[list[str]]):
    """What the account lacks, one line each; none before the program is there."""

    def command(self) -> str:
        return "relay-probe-account check 2>/dev/null || true"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return [line for line in output if line]


@operation()
def account(due: bool) -> Generator[StringCommand, None, None]:
    """Makes the account, its price and its token where they are missing, or where `due`."""
    if not due and not host.get_fact(AccountDifferences):
        host.noop("the probe's account is as it should be")
        return
    yield StringCommand("relay-probe-account apply")


@deploy("Account of the probe")
def probe_account() -> None:
    """The program on each host of `app`; one that has a replica uses it."""
    tool = place(
        ConfigFile(TOOL, source("probe/relay_probe_account.py"), mode="755"),
        ConfigFile(SETTINGS, json.dumps(settings(), indent=1) + "\n", mode="600"),
    )
    if acting.acts("app", serves, lambda _: True):
        account(name="Make the probe's account (relay-probe-account)", due=tool())


def serves(member: Host) -> bool:
    """Whether a replica of the relay runs on a host."""
    return bool(member.get_fact(Replicas))


def settings() -> dict[str, object]:
    """What the program reads."""
    return {
        "account": NAME,
        "group": NAME,
        "model": fleet.setting("probe_model"),
        "token": fleet.secret(TOKEN),
        "rpm": CALLS_A_MINUTE,
    }
