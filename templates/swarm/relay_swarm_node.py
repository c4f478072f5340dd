#!/usr/bin/env python3
"""Takes a node out of the swarm: drained, demoted and removed, while the managers keep their quorum.

    relay-swarm-node remove app4          # a name or an ID; deploys/roles/swarm.py runs it with IDs

A node that still answers first hands its tasks to others, which may take as long as its calls; one that is
down is removed at once. Its own engine notices and keeps nothing of the swarm but an error in `docker info`.
Exit codes: 0 done, 1 failed, 2 refused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

PAUSE_SECONDS = 2.0
FAILED, REFUSED = 1, 2


class Refusal(Exception):
    """What must not be done now; the message says why."""


class Failure(Exception):
    """What the engine refused."""


def say(text: str) -> None:
    print(f"relay-swarm-node: {text}", file=sys.stderr, flush=True)


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"docker {' '.join(words[:2])}: {done.stderr.strip()}")
    return done.stdout.strip()


def nodes() -> list[dict[str, Any]]:
    ids = docker("node", "ls", "--quiet").split()
    return list(json.loads(docker("node", "inspect", *ids))) if ids else []


def hostname(node: dict[str, Any]) -> str:
    return str(node["Description"].get("Hostname") or node["ID"])


def find(present: Sequence[dict[str, Any]], wanted: str) -> dict[str, Any]:
    found = [node for node in present if wanted in (node["ID"], hostname(node))]
    if len(found) != 1:
        listed = ", ".join(f"{node['ID']} ({hostname(node)}, {node['Status']['State']})" for node in present)
        raise Refusal(f"{len(found)} nodes are called {wanted}: give the ID of one; there are {listed}")
    return found[0]


def reachable(node: dict[str, Any]) -> bool:
    return bool(node.get("ManagerStatus", {}).get("Reachability") == "reachable")


def require_quorum(present: Sequence[dict[str, Any]], leaving: dict[str, Any]) -> None:
    """Refuses when the managers that stay would have no quorum."""
    stay = [node for node in present if node.get("ManagerStatus") and node["ID"] != leaving["ID"]]
    silent = [hostname(node) for node in stay if not reachable(node)]
    if len(stay) - len(silent) < len(stay) // 2 + 1:
        raise Refusal(
            f"not safe: without {hostname(leaving)} only {len(stay) - len(silent)} of {len(stay)} managers "
            f"answer (not: {', '.join(silent) or 'there is no other'}). Bring those back first"
        )


def drain(node: dict[str, Any], seconds: float) -> None:
    """Lets the node's tasks end elsewhere; goes on when they have not after `seconds`."""
    say(f"draining {hostname(node)}")
    docker("node", "update", "--availability", "drain", node["ID"])
    end = time.monotonic() + seconds
    while running := docker("node", "ps", node["ID"], "--quiet", "--filter", "desired-state=running"):
        if time.monotonic() > end:
            say(f"after {seconds:.0f} s {len(running.split())} tasks still run on {hostname(node)}")
            return
        time.sleep(PAUSE_SECONDS)
    # What was told to stop may still be answering its last calls.
    while "Running" in docker("node", "ps", node["ID"], "--format", "{{.CurrentState}}"):
        if time.monotonic() > end:
            say(f"after {seconds:.0f} s a task still ends on {hostname(node)}")
            return
        time.sleep(PAUSE_SECONDS)


def remove(wanted: str, seconds: float) -> None:
    present = nodes()
    node = find(present, wanted)
    manager = bool(node.get("ManagerStatus"))
    if manager:
        require_quorum(present, node)
    if node["Status"]["State"] == "ready":
        drain(node, seconds)
    if manager:
        docker("node", "demote", node["ID"])
    docker("node", "rm", "--force", node["ID"])
    say(f"{hostname(node)} ({node['ID']}) is removed")


def main(words: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-swarm-node", description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(required=True, metavar="remove")
    command = commands.add_parser("remove", help="drain, demote and remove a node")
    command.add_argument("node", help="its name or ID")
    command.add_argument("--seconds", type=float, default=180, help="how long its calls may take to end")
    options = parser.parse_args(words)
    try:
        remove(options.node, options.seconds)
    except Refusal as refusal:
        say(f"refused: {refusal}")
        return REFUSED
    except Failure as failure:
        say(f"failed: {failure}")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
