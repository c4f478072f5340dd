"""Another database host becomes the primary, so that this one may go."""

from __future__ import annotations

from pyinfra.api.host import Host

from deploys.lib.errors import DeployError
from deploys.run.node import checks
from deploys.run.node.facts import Seen
from deploys.run.node.work import must


def leads(seen: Seen, name: str) -> bool:
    """Whether a host's member is the primary."""
    return any(one["Member"] == name and one["Role"] == "Leader" for one in seen.patroni)


def hand_over(seen: Seen, name: str, there: Host) -> str:
    """Hands over from a primary and waits until it streams; its successor. DeployError where nobody may."""
    problems = [one.problem for one in checks.database(seen, [name], "remove") if one.problem]
    if problems:
        raise DeployError(f"{name} stays the primary: {'; '.join(problems)}")
    successor = next(
        str(one["Member"])
        for one in seen.patroni
        if one["Member"] != name and str(one["Role"]).startswith(("Sync", "Quorum"))
    )
    words = ["patronictl", "switchover", "relay", "--leader", name, "--candidate", successor, "--force"]
    must(there, words)
    must(there, ["relay-patroni", "wait"])
    return successor
