#!/usr/bin/env python3
"""Restarts this host's Docker engine and ends when the swarm and its services are whole again.

    relay-docker-restart                 # installed by deploys/docker.py, which runs it host after host

It refuses (exit 1) while something else is missing, so that a host which did not come back is the last one
that was restarted. A worker sees its own tasks only, a manager the whole swarm.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

PAUSE_SECONDS = 1.0
TASKS = ("ps", "--quiet", "--filter", "label=com.docker.swarm.task.id", "--filter", "health=healthy")


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
    nodes = [line.split() for line in docker("node", "ls", "--format", "{{.Hostname}} {{.Status}}")]
    # A host that was built anew leaves an entry behind that is down for ever.
    ready = {name for name, status in nodes if status == "Ready"}
    for name, status in nodes:
        if name not in ready:
            return f"node {name} is {status}: bring it back, or remove it with `docker node rm`"
    for service in docker("service", "ls", "--format", "{{.Name}} {{.Replicas}}"):
        running, _, wanted = service.split()[1].partition("/")
        if running != wanted:
            return f"service {service}"
    return ""


def amiss(tasks: int = 0) -> str:
    """What is not as it should be: the engine, a node, a service, fewer than `tasks` healthy tasks here."""
    try:
        (manager,) = docker("info", "--format", "{{.Swarm.ControlAvailable}}")
        found = swarm_amiss() if manager == "true" else ""
        here = len(docker(*TASKS))
    except Unanswered as refusal:
        return str(refusal)
    return found or ("" if here >= tasks else f"{here} of {tasks} tasks are healthy here")


def wait(look: Callable[[], str], seconds: float) -> str:
    """Looks until nothing is amiss; returns what still is after `seconds`."""
    end = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < end:
        time.sleep(PAUSE_SECONDS)
    return found


def restart(seconds: float) -> None:
    """Raises SystemExit with the reason when it must not be done or does not end well."""
    if found := wait(amiss, seconds):
        sys.exit(f"relay-docker-restart: not restarted, since the swarm is not whole: {found}")
    tasks = len(docker(*TASKS))
    subprocess.run(["systemctl", "restart", "docker"], check=True)
    if found := wait(lambda: amiss(tasks), seconds):
        sys.exit(f"relay-docker-restart: restarted, but after {seconds:.0f} s: {found}")


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-docker-restart", description=__doc__, formatter_class=layout)
    parser.add_argument("--seconds", type=float, default=120, help="how long to wait before and after")
    restart(parser.parse_args().seconds)


if __name__ == "__main__":
    main()
