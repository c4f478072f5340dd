#!/usr/bin/env python3
"""Restarts this host's Docker engine and ends when the swarm and its services are whole again.

    relay-docker-restart                 # installed by deploys/roles/docker.py, which runs it host after host

It refuses (exit 1) while something else is missing, so that a host which did not come back is the last one
that was restarted. A manager sees the whole swarm and drains its host first: calls then end within the grace
of their stack. A worker sees its own tasks only and may not drain: a stopping engine grants ten seconds.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE_SECONDS = 1.0
TASKS = ("ps", "--quiet", "--filter", "label=com.docker.swarm.task.id")
HEALTHY = (*TASKS, "--filter", "health=healthy")


class Unanswered(Exception):
    """The engine refused a question; the message is what it said."""


def docker(*words: str) -> list[str]:
    """Lines of docker's answer."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unanswered(f"docker {words[0]}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def swarm_amiss() -> str:
    """The first node or service that is not as it should be, as a manager sees it."""
    # Tabs: a node that has never answered has no name.
    shape = "{{.Hostname}}\t{{.Status}}\t{{.Availability}}"
    nodes = [line.split("\t") for line in docker("node", "ls", "--format", shape)]
    # A host that was built anew leaves an entry behind that is down for ever.
    ready = {name for name, status, _ in nodes if status == "Ready"}
    for name, status, availability in nodes:
        if name not in ready:
            return f"node {name} is {status}: bring it back, or remove it with `docker node rm`"
        if availability != "Active" and status == "Ready":
            return f"node {name} is drained: `docker node update --availability active {name}` ends that"
    for service in docker("service", "ls", "--format", "{{.Name}} {{.Replicas}}"):
        running, _, wanted = service.split()[1].partition("/")
        if running != wanted:
            return f"service {service}"
    return ""


def managed_node() -> str:
    """This node's id where it is a manager, else empty."""
    (manager, *node) = docker("info", "--format", "{{.Swarm.ControlAvailable}} {{.Swarm.NodeID}}")[0].split()
    return node[0] if manager == "true" else ""


def amiss(tasks: int = 0) -> str:
    """What is not as it should be: the engine, a node, a service, fewer than `tasks` healthy tasks here."""
    try:
        found = swarm_amiss() if managed_node() else ""
        here = len(docker(*HEALTHY))
    except Unanswered as refusal:
        return str(refusal)
    return found or ("" if here >= tasks else f"{here} of {tasks} tasks are healthy here")


def wait(look: Callable[[], str], seconds: float) -> str:
    """Looks until nothing is amiss; returns what still is after `seconds`."""
    end = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < end:
        time.sleep(PAUSE_SECONDS)
    return found


def tasks_left() -> str:
    """How many tasks still run here; empty when none does."""
    left = len(docker(*TASKS))
    return f"{left} tasks still run" if left else ""


@contextmanager
def drained(seconds: float, drain_seconds: float) -> Iterator[None]:
    """This host without tasks, where a manager can see to it; they may come back afterwards."""
    node = managed_node()
    if not node:
        yield
        return

    def activate() -> str:
        try:
            docker("node", "update", "--availability", "active", node)
        except Unanswered as refusal:
            return str(refusal)
        return ""

    try:
        docker("node", "update", "--availability", "drain", node)
        if left := wait(tasks_left, drain_seconds):
            print(f"relay-docker-restart: after {drain_seconds:.0f} s {left}", file=sys.stderr)
        yield
    finally:
        if refused := wait(activate, seconds):
            print(f"relay-docker-restart: this node stays drained: {refused}", file=sys.stderr)


def restart(seconds: float, drain_seconds: float) -> None:
    """Raises SystemExit with the reason when it must not be done or does not end well."""
    if found := wait(amiss, seconds):
        sys.exit(f"relay-docker-restart: not restarted, since the swarm is not whole: {found}")
    try:
        tasks = len(docker(*HEALTHY))
        with drained(seconds, drain_seconds):
            subprocess.run(["systemctl", "restart", "docker"], check=True)
    except (Unanswered, subprocess.CalledProcessError) as reason:
        sys.exit(f"relay-docker-restart: not done: {reason}. `journalctl -u docker -n 50` says more.")
    if found := wait(lambda: amiss(tasks), seconds):
        sys.exit(f"relay-docker-restart: restarted, but after {seconds:.0f} s: {found}")


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-docker-restart", description=__doc__, formatter_class=layout)
    parser.add_argument("--seconds", type=float, default=120, help="how long to wait before and after")
    parser.add_argument("--drain-seconds", type=float, default=150, help="how long to wait for calls to end")
    options = parser.parse_args()
    # Ended from outside, it still takes the node back into service.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    restart(options.seconds, options.drain_seconds)


if __name__ == "__main__":
    main()
