"""The sandbox's database cluster as `patronictl list` tells it, asked on whichever database host answers."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

from deploys.sandbox import remote

ANSWER_SECONDS = 40.0
LEADER_SECONDS = 180.0
CONFIRMING = ("Quorum Standby", "Sync Standby")


def members() -> list[dict[str, Any]]:
    """Member, Role, State and more of each member; none when no host answers."""
    for host in remote.addresses("db"):
        with suppress(remote.RemoteError, ValueError):
            listed = remote.run(host, "patronictl", "list", "-f", "json", seconds=ANSWER_SECONDS)
            return list(json.loads(listed))
    return []


def leader(seconds: float = LEADER_SECONDS) -> str:
    """The primary's host, once there is one that runs; AssertionError when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        found = members()
        for member in found:
            if member["Role"] == "Leader" and member["State"] == "running":
                return str(member["Member"])
        assert time.monotonic() < end, f"no primary within {seconds:.0f} s: {found or 'no host answers'}"
        time.sleep(1)


def confirmed_leader(seconds: float = LEADER_SECONDS) -> str:
    """The primary's host, once a replica that confirms its commits could take over and all others stream."""
    end = time.monotonic() + seconds
    while True:
        found = members()
        states = {member["State"] for member in found if member["Role"] != "Leader"}
        ready = any(member["Role"] in CONFIRMING for member in found)
        if found and ready and states == {"streaming"}:
            return leader(seconds)
        assert time.monotonic() < end, f"nobody could take over within {seconds:.0f} s: {found}"
        time.sleep(1)


def query(statement: str, host: str = "") -> str:
    """What the server of a host answers, the primary's by default, as its superuser in database relay.

    Access rules let clients into no other database.
    """
    command = ("runuser", "-u", "postgres", "--", "psql", "-XAtqc", statement, "relay")
    return remote.run(host or leader(), *command).strip()


def switch_over(primary: str, candidate: str = "") -> None:
    """Hands over from `primary`, to `candidate` where one is named."""
    wanted = ["--candidate", candidate] if candidate else []
    words = ("switchover", "relay", "--leader", primary, *wanted, "--force")
    remote.run(primary, "patronictl", *words, seconds=120)
