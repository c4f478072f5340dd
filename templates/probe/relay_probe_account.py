#!/usr/bin/env python3
"""Gives the probe its account: a customer group for which its model is free, and a token that is a secret.

    relay-probe-account check      # prints what differs, a line each
    relay-probe-account apply      # makes it so

Installed by deploys/roles/probe_account.py; /etc/relay/probe-account.json says what it should be. The account
never gets credit: with its token nobody can call any model but the free one, nor that more often than `rpm`
times a minute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = "/etc/relay/probe-account.json"
# So much of a token may be shown (relay.identity.tokens).
SHOWN = len("sk-relay-") + 6


class Failure(Exception):
    """The relay refused a command; the message is what it said."""


@dataclass(frozen=True)
class Settings:
    """/etc/relay/probe-account.json."""

    account: str
    group: str
    model: str
    token: str
    rpm: int
    relayctl: tuple[str, ...] = ("relayctl",)

    @classmethod
    def read(cls, path: Path) -> Settings:
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise SystemExit(f"{path} cannot be read ({error}): run `apply` for this host") from None

    @property
    def prefix(self) -> str:
        return self.token[:SHOWN]

    def relay(self, *words: str, stdin: str = "") -> Any:
        """What a command of the relay answers."""
        command = [*self.relayctl, *words, "--json"]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failure(done.stderr.strip()[-500:])
        return json.loads(done.stdout)


def is_free(settings: Settings) -> bool:
    """Whether the model is free for the group."""
    versions = settings.relay("price", "list", "--model", settings.model)
    return any(
        one["customer_group"] == settings.group and one["free"] and not one["valid_to"] for one in versions
    )


def tokens(settings: Settings, account: int) -> tuple[bool, list[int]]:
    """Whether the account has the token, and its other tokens that still work."""
    listed = settings.relay("token", "list", "--account", str(account))
    active = [one for one in listed if one["status"] == "active"]
    ours = any(one["prefix"] == settings.prefix for one in active)
    return ours, [one["id"] for one in active if one["prefix"] != settings.prefix]


def check(settings: Settings) -> list[str]:
    """What differs."""
    try:
        account = settings.relay("account", "show", settings.account)
    except Failure:
        return [f"the account {settings.account} is missing"]
    there, others = tokens(settings, account["id"])
    return [
        *([] if account["status"] == "active" else [f"the account is {account['status']}"]),
        *([] if is_free(settings) else [f"{settings.model} is not free for the group {settings.group}"]),
        *([] if there else ["its token is missing"]),
        *(f"its old token {number} still works" for number in others),
    ]


def apply(settings: Settings) -> list[str]:
    """Makes it so; what was done."""
    create = ("account", "create", "--name", settings.account, "--group", settings.group, "--if-missing")
    account = settings.relay(*create)
    done = []
    if account["status"] != "active":
        settings.relay("account", "activate", str(account["id"]))
        done.append("activated the account")
    if not is_free(settings):
        settings.relay("price", "publish", "--model", settings.model, "--group", settings.group, "--free")
        done.append(f"made {settings.model} free for the group {settings.group}")
    there, others = tokens(settings, account["id"])
    if not there:
        words = ("--account", str(account["id"]), "--name", settings.prefix, "--rpm", str(settings.rpm))
        settings.relay("token", "create", *words, "--token-stdin", stdin=f"{settings.token}\n")
        done.append("made the token")
    for number in others:
        settings.relay("token", "disable", str(number))
        done.append(f"disabled the old token {number}")
    return done


def main(words: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-probe-account", description=__doc__, formatter_class=layout)
    parser.add_argument("action", choices=("check", "apply"))
    parser.add_argument("--settings", type=Path, default=Path(SETTINGS), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    settings = Settings.read(options.settings)
    try:
        lines = check(settings) if options.action == "check" else apply(settings)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
