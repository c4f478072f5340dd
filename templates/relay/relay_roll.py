#!/usr/bin/env python3
"""Brings the relay's stack to what its file says: schema first, then one replica after the other.

    relay-roll IMAGE@sha256:…               # installed by roles/relay.py, which writes the stack file
    relay-roll IMAGE@sha256:… --step STEP   # one step of `python -m deploys release`, which waits and judges

Migrations run once, as the database's owner, with the new image, while the old one serves. A roll whose new
replica does not become healthy is undone by Swarm; this then ends with 1 and says why.

A node that is down does not stop a roll. Swarm would wait for its replica in the middle of the update, so for
that time the service has as many replicas as there are nodes for them; the others start when theirs return.

The steps of a release:
    prepare  pulls the image and migrates the database
    trial    starts a replica on this host that no customer reaches, asks it, and removes it
    canary   replaces one replica; Swarm would wait for a day before it goes on
    rest     replaces the others; Swarm stops at the first that does not become healthy. Also the way back
    all      starts what could not run because a node was away
    status   prints what runs as JSON
    problems prints why tasks of the image failed

Where Dokploy deploys the stack (`relay_deployed_by`), only prepare, trial and these are used:
    possible prints how many replicas have a node now
    verify   waits like a whole roll, then compares what runs, and where, with the stack file,
             and asks the replica on this host
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

# The service's name, STACK_SERVICE. Dokploy chooses the name of its stacks.
SERVICE_FILE = Path("/etc/relay/service")
SERVICE = SERVICE_FILE.read_text().strip() if SERVICE_FILE.exists() else "relay_relay"
STACK = SERVICE.removesuffix("_relay")
STACK_FILE = "/etc/relay/stack.yml"
# Read by the stack file, which says how many there are otherwise, how long Swarm pauses between two replicas,
# and what it does when one does not become healthy.
REPLICAS = "ROLLED_REPLICAS"
PAUSE = "ROLLED_PAUSE"
ON_FAILURE = "ROLLED_ON_FAILURE"
# Until somebody decides. Swarm never goes on without: whoever began the release may be gone.
CANARY_PAUSE = "24h"
TRIAL_STACK = "relay-trial"
TRIAL_SERVICE = "relay-trial_relay"
TRIAL_FILE = "/etc/relay/trial.yml"
# Read by the trial's file: the host that it runs on.
TRIAL_NODE = "TRIAL_NODE"
TRIAL_SECONDS = 120
# Runs inside the replica: it is ready, and a call with a key that is none is refused as a call is.
TRIAL_QUESTIONS = """
import json, time, urllib.error, urllib.request

def ask(path, body=None):
    headers = {"authorization": "Bearer of-no-customer", "content-type": "application/json"}
    request = urllib.request.Request("http://127.0.0.1:8000" + path, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return str(error)

call = json.dumps({"model": "none", "messages": [{"role": "user", "content": "trial"}]}).encode()
questions = [("/healthz", None, 200), ("/v1/chat/completions", call, 401)]
for path, body, wanted in questions:
    end = time.monotonic() + 20
    while (status := ask(path, body)) != wanted:
        if time.monotonic() > end:
            raise SystemExit(f"{path} answers {status}, not {wanted}")
        time.sleep(1)
"""
MIGRATION_SETTINGS = "/etc/relay/migrate.env"
CA = "/etc/relay/tls/ca.crt"
# States of a task before it has a node.
WAITING = ("New", "Pending")
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


def possible_replicas() -> int:
    """How many of them have a node now; one at least."""
    return max(1, min(wanted_replicas(), ready_nodes()))


def roll(replicas: int, **more: str) -> None:
    os.environ[REPLICAS] = str(replicas)
    os.environ.update(more)
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


def tasks(service: str = SERVICE) -> list[dict[str, Any]]:
    ids = docker("service", "ps", "-q", service, "--filter", "desired-state=running").split()
    return list(json.loads(docker("inspect", "--type=task", *ids))) if ids else []


def healthy(image: str, service: str = SERVICE) -> int:
    """Replicas of `image` that run; Swarm calls a task running once its health check passes."""
    return sum(
        task["Status"]["State"] == "running" and task["Spec"]["ContainerSpec"]["Image"] == image
        for task in tasks(service)
    )


def troubled(image: str, service: str = SERVICE) -> list[dict[str, str]]:
    """Tasks of `image` that failed or do not come to run, newest first."""
    listed = docker("service", "ps", service, "--no-trunc", "--format", "{{json .}}")
    return [
        task
        for task in map(json.loads, listed.splitlines())
        # What failed before this roll had another image, and another reason.
        if task["Image"] == image
        and (task["Error"] or task["CurrentState"].startswith(("Failed", "Rejected")))
    ]


def failed(image: str, service: str = SERVICE) -> list[dict[str, str]]:
    """Tasks of `image` that failed. One that waits, as for the port of a replica that still ends its streams,
    has an error too, and has not failed."""
    return [task for task in troubled(image, service) if not task["CurrentState"].startswith(WAITING)]


def problems(image: str, service: str = SERVICE) -> str:
    """Why tasks of `image` do not run: the newest of each node, with its error and its last log lines."""
    newest: dict[str, str] = {}
    for task in troubled(image, service):
        node, state, error = task["Node"], task["CurrentState"], task["Error"]
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


def status(image: str) -> dict[str, Any]:
    """What runs: the update's state, how many replicas are wanted, on which nodes a healthy one of `image` or
    of another one runs, and the ids of tasks of `image` that failed."""
    service = json.loads(docker("service", "inspect", SERVICE, "--format", "{{json .}}"))
    listed = docker("node", "ls", "--format", "{{.ID}} {{.Hostname}}").splitlines()
    # A node that is just joining has no name yet.
    names = dict(line.partition(" ")[::2] for line in listed)
    nodes: dict[bool, list[str]] = {True: [], False: []}
    for task in tasks():
        if task["Status"]["State"] == "running":
            own = task["Spec"]["ContainerSpec"]["Image"] == image
            nodes[own].append(names.get(task.get("NodeID", ""), "a node that left"))
    return {
        "state": (service.get("UpdateStatus") or {}).get("State", ""),
        "image": service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"],
        "labels": service["Spec"]["Labels"],
        "wanted": service["Spec"]["Mode"]["Replicated"]["Replicas"],
        "ready": ready_nodes(),
        "new": sorted(nodes[True]),
        "old": sorted(nodes[False]),
        "failed": sorted(task["ID"] for task in failed(image)),
    }


def verify(image: str, seconds: int) -> None:
    """What somebody else has deployed runs as the stack file says: its hash, its image, each replica on a
    relay node of its own. Whoever deployed it may have said so without it being so."""
    wait(image, seconds)
    found = status(image)
    wanted_hash = re.search(r'relay\.stack: "([0-9a-f]+)"', Path(STACK_FILE).read_text())
    runs = found["labels"].get("relay.stack", "none")
    if wanted_hash is None or runs != wanted_hash[1]:
        sys.exit(f"relay-roll: the stack that runs is not that of {STACK_FILE}: it was not deployed ({runs})")
    if found["image"] != image:
        sys.exit(f"relay-roll: the service has the image {found['image']}, not {image}")
    strays = sorted(set(found["new"]) - set(relay_nodes()))
    if strays or len(set(found["new"])) < found["wanted"]:
        where = ", ".join(found["new"]) or "nowhere"
        sys.exit(
            f"relay-roll: {found['wanted']} replicas must run on as many relay nodes, and run on: {where}"
        )
    # The replicas' ports are closed to this host: others ask those of other nodes.
    for container in containers(SERVICE):
        if complaint := asked(container):
            sys.exit(f"relay-roll: the replica on this host is not well: {complaint}")
    say(f"stack {runs[:12]} runs on {', '.join(found['new'])}")


def relay_nodes() -> list[str]:
    """Names of the nodes that replicas may run on."""
    return docker("node", "ls", "--filter", "node.label=relay=true", "--format", "{{.Hostname}}").split()


def trial(image: str) -> None:
    """A replica of `image` on this host, without customers: it starts, is ready, and refuses as it should."""
    os.environ[TRIAL_NODE] = docker("info", "--format", "{{.Name}}")
    remove_trial()
    try:
        options = ("--with-registry-auth", "--resolve-image=never", "-c", TRIAL_FILE)
        docker("stack", "deploy", *options, TRIAL_STACK)
        end = time.monotonic() + TRIAL_SECONDS
        while not healthy(image, TRIAL_SERVICE):
            if time.monotonic() > end or failed(image, TRIAL_SERVICE):
                sys.exit(f"relay-roll: the trial's replica did not start:\n{problems(image, TRIAL_SERVICE)}")
            time.sleep(PAUSE_SECONDS)
        if complaint := asked(containers(TRIAL_SERVICE)[0]):
            sys.exit(f"relay-roll: the trial's replica is not well: {complaint}")
    finally:
        remove_trial()


def containers(service: str) -> list[str]:
    """Ids of the service's containers on this host."""
    return docker("ps", "-q", "--filter", f"label=com.docker.swarm.service.name={service}").split()


def asked(container: str) -> str:
    """What is wrong with the answers of a replica on this host; "" when nothing is."""
    command = ["docker", "exec", container, "python3", "-c", TRIAL_QUESTIONS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        return ""
    return ((done.stderr or done.stdout).strip().splitlines()[-1:] or ["it says nothing"])[0]


def remove_trial() -> None:
    """Also what an interrupted trial left. Its network goes last; a stack of that name cannot come before."""
    if not docker("network", "ls", "-q", "--filter", f"name={TRIAL_STACK}_default"):
        return
    docker("stack", "rm", TRIAL_STACK)
    end = time.monotonic() + TRIAL_SECONDS
    while docker("network", "ls", "-q", "--filter", f"name={TRIAL_STACK}_default"):
        if time.monotonic() > end:
            sys.exit("relay-roll: the trial's network does not go: `docker network rm relay-trial_default`")
        time.sleep(PAUSE_SECONDS)


def step(image: str, name: str) -> None:
    """One step of a release. What follows it, and how it went, is decided elsewhere."""
    if name == "prepare":
        docker("pull", "--quiet", image)
        migrate(image)
    elif name == "trial":
        trial(image)
    elif name == "canary":
        roll(possible_replicas(), **{PAUSE: CANARY_PAUSE, ON_FAILURE: "rollback"})
    elif name == "rest":
        # Swarm's own previous version is that of the canary: whoever goes back does it by the stack file.
        roll(possible_replicas(), **{ON_FAILURE: "pause"})
    elif name == "all":
        if status(image)["wanted"] < wanted_replicas():
            docker("service", "scale", "--detach", f"{SERVICE}={wanted_replicas()}")
    elif name == "problems":
        print(problems(image))
    elif name == "possible":
        print(possible_replicas())
    else:
        print(json.dumps(status(image)))


STEPS = ("prepare", "trial", "canary", "rest", "all", "status", "problems", "possible", "verify")


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-roll", description=__doc__, formatter_class=layout)
    parser.add_argument("image", help="reference with its digest, as in the stack file")
    parser.add_argument("--seconds", type=int, default=600, help="how long to wait for healthy replicas")
    parser.add_argument("--step", choices=STEPS, help="one step of a release instead of a whole roll")
    options = parser.parse_args()
    if options.step == "verify":
        verify(options.image, options.seconds)
        return
    if options.step:
        step(options.image, options.step)
        return
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
