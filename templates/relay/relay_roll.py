#!/usr/bin/env python3
"""Brings the relay's stack to what its file says: schema first, then one replica after the other.

    relay-roll IMAGE@sha256:…               # installed by roles/relay.py, which writes the stack file

Migrations run once, as the database's owner, with the new image, while the old one serves. A roll whose new
replica does not become healthy is undone by Swarm; this then ends with 1 and says why.

A node that is down does not stop a roll. Swarm would wait for its replica in the middle of the update, so for
that time the service has as many replicas as there are nodes for them; the others start when theirs return.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STACK = "relay"
SERVICE = "relay_relay"
STACK_FILE = "/etc/relay/stack.yml"
# Read by the stack file, which says how many there are otherwise.
REPLICAS = "ROLLED_REPLICAS"
MIGRATION_SETTINGS = "/etc/relay/migrate.env"
CA = "/etc/relay/tls/ca.crt"
PAUSE_SECONDS = 2
LOG_LINES = 8
LOG_SECONDS = 20


def say(text: str) -> None:
    print(f"relay-roll: {text}", file=sys.stderr, flush=True)


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"relay-roll: docker {' '.join(words[:2])} failed ({done.returncode}); its output is above")
    return done.stdout.strip()


def migrate(image: str) -> None:
    """The database's schema for the new image."""
    say("migrating the database")
    options = ["--rm", "--network=host", f"--env-file={MIGRATION_SETTINGS}", f"--volume={CA}:{CA}:ro"]
    docker("run", *options, image, "migrate")


def wanted_replicas() -> int:
    """How many replicas the stack file wants."""
    found = re.search(rf"replicas: \$\{{{REPLICAS}:-(\d+)\}}", Path(STACK_FILE).read_text())
    if found is None:
        sys.exit(f"relay-roll: {STACK_FILE} names no number of replicas: run `python -m deploys apply`")
    return int(found[1])


def ready_nodes() -> int:
    """Nodes that can run a replica now."""
    shape = "{{.Status}} {{.Availability}}"
    listed = docker("node", "ls", "--filter", "node.label=relay=true", "--format", shape).splitlines()
    return listed.count("Ready Active")


def roll(replicas: int) -> None:
    os.environ[REPLICAS] = str(replicas)
    docker(
        "stack", "deploy", "--prune", "--with-registry-auth", "--resolve-image=never", "-c", STACK_FILE, STACK
    )


def wait(image: str, seconds: int) -> None:
    """Until all replicas of `image` are healthy, or the roll is undone."""
    end = time.monotonic() + seconds
    told = ""
    while time.monotonic() < end:
        service = json.loads(docker("service", "inspect", SERVICE, "--format", "{{json .}}"))
        state = (service.get("UpdateStatus") or {}).get("State", "")
        if state in ("rollback_started", "rollback_paused", "rollback_completed", "paused"):
            sys.exit(f"relay-roll: the new replicas did not become healthy ({state}):\n{problems(image)}")
        wanted = service["Spec"]["Mode"]["Replicated"]["Replicas"]
        running = healthy(image)
        if running == wanted and state in ("", "completed"):
            say(f"{running} of {wanted} replicas healthy")
            return
        if told != (told := f"{running} of {wanted} replicas healthy"):
            say(told)
        time.sleep(PAUSE_SECONDS)
    sys.exit(f"relay-roll: after {seconds} s {told}:\n{problems(image)}")


def tasks() -> list[dict[str, Any]]:
    ids = docker("service", "ps", "-q", SERVICE, "--filter", "desired-state=running").split()
    return list(json.loads(docker("inspect", "--type=task", *ids))) if ids else []


def healthy(image: str) -> int:
    """Replicas of `image` that run; Swarm calls a task running once its health check passes."""
    return sum(
        task["Status"]["State"] == "running" and task["Spec"]["ContainerSpec"]["Image"] == image
        for task in tasks()
    )


def problems(image: str) -> str:
    """Why tasks of `image` failed: the newest failure of each node, with its error and its last log lines."""
    listed = docker("service", "ps", SERVICE, "--no-trunc", "--format", "{{json .}}")
    newest: dict[str, str] = {}
    for task in map(json.loads, listed.splitlines()):
        node, state, error = task["Node"], task["CurrentState"], task["Error"]
        # What failed before this roll had another image, and another reason.
        if task["Image"] == image and (error or state.startswith(("Failed", "Rejected"))):
            why = f"{node or 'no node'}: {state}: {error or 'no reason given'}"
            newest.setdefault(node, f"  {why}\n{last_lines(task['ID'])}")
    return "\n".join(newest.values()) or "  no task has failed; they only did not start in time"


def last_lines(task: str) -> str:
    """What a task logged last; it may never have run."""
    command = ["docker", "service", "logs", "--raw", "--tail", str(LOG_LINES), task]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LOG_SECONDS)
    except subprocess.TimeoutExpired:
        return "    (its log cannot be read: its host does not answer)"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return "\n".join(f"    {line}" for line in lines[-LOG_LINES:]) or "    (it logged nothing)"


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-roll", description=__doc__, formatter_class=layout)
    parser.add_argument("image", help="reference with its digest, as in the stack file")
    parser.add_argument("--seconds", type=int, default=600, help="how long to wait for healthy replicas")
    options = parser.parse_args()
    wanted, ready = wanted_replicas(), ready_nodes()
    if not ready:
        sys.exit("relay-roll: no relay node is ready: `docker node ls`, monitoring/runbooks/SwarmNodeDown.md")
    docker("pull", "--quiet", options.image)
    migrate(options.image)
    roll(min(wanted, ready))
    wait(options.image, options.seconds)
    if ready < wanted:
        docker("service", "scale", "--detach", f"{SERVICE}={wanted}")
        say(f"{wanted - ready} of {wanted} replicas start when their nodes return")


if __name__ == "__main__":
    main()
