#!/usr/bin/env python3
"""This host as a member of etcd's cluster: joins it, restarts, replaces damaged data, forgets others.

    relay-etcd-member join                # deploys/roles/etcd.py runs join, restart, forget
    relay-etcd-member replace             # says what it would do; --yes does it

A member whose data is lost must not start as who it was: it would have forgotten what it confirmed, and an
acknowledged write with it. So it is removed and added again under a new identity, and only while the others
have a quorum with and without it (etcd's runtime reconfiguration guide).
Exit codes: 0 done, 1 failed, 2 refused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = Path("/etc/default/etcd")
DATA = Path("/var/lib/etcd/relay")
# While it is there, etcd does not start (override.conf): the others must forget this member's old self first.
NOT_YET = Path("/etc/relay/etcd-not-yet-a-member")
# Read by etcd after its settings, for the first start of a member that joins.
JOINING = Path("/etc/default/etcd-joining")
UNIT = "etcd.service"
LOG_LINES = 5
PAUSE_SECONDS = 1.0
FAILED, REFUSED = 1, 2


class Refusal(Exception):
    """What must not be done now; the message says why and what to do first."""


class Failure(Exception):
    """What did not work."""


@dataclass(frozen=True)
class Member:
    """An entry of the cluster. A member that has been added and never started has no name yet."""

    id: str
    name: str
    peer: str
    client: str

    @property
    def shown(self) -> str:
        return self.name or self.peer


@dataclass(frozen=True)
class Settings:
    """This host's name and peer URL, and the fleet's members: name by peer URL."""

    name: str
    peer: str
    fleet: dict[str, str]

    def others(self) -> list[str]:
        """Client URLs of the other members of the fleet."""
        return [_client(peer) for peer in self.fleet if peer != self.peer]


def settings() -> Settings:
    lines = [line for line in SETTINGS.read_text().splitlines() if line and not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines)
    pairs = (pair.split("=", 1) for pair in values["ETCD_INITIAL_CLUSTER"].split(","))
    fleet = {peer: name for name, peer in pairs}
    return Settings(values["ETCD_NAME"], values["ETCD_INITIAL_ADVERTISE_PEER_URLS"], fleet)


def _client(peer: str) -> str:
    return peer.replace(":2380", ":2379")


def say(text: str) -> None:
    print(f"relay-etcd-member: {text}", file=sys.stderr, flush=True)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)


def etcdctl(endpoints: Sequence[str], *words: str) -> str:
    """What etcdctl prints; Failure with its last line otherwise."""
    # relay-etcdctl names its endpoints in the environment, which etcdctl lets nobody override by an option.
    settings = ["env", f"ETCDCTL_ENDPOINTS={','.join(endpoints)}"]
    done = run(*settings, "relay-etcdctl", "--command-timeout=5s", *words)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise Failure(f"etcdctl {' '.join(words[:2])}: {last}")
    return done.stdout


def members(endpoints: Sequence[str]) -> list[Member]:
    """The cluster as the first of `endpoints` that answers knows it."""
    problems = []
    for endpoint in endpoints:
        try:
            listed: list[dict[str, Any]] = json.loads(etcdctl([endpoint], "member", "list", "-w", "json"))[
                "members"
            ]
        except Failure as failure:
            problems.append(f"{endpoint}: {failure}")
            continue
        return [
            Member(f"{int(m['ID']):x}", m.get("name", ""), m["peerURLs"][0], (m.get("clientURLs") or [""])[0])
            for m in listed
        ]
    raise Refusal("no other member answers: " + "; ".join(problems))


def healthy(member: Member) -> bool:
    """Whether the member serves a read that the quorum confirms."""
    try:
        etcdctl([member.client or _client(member.peer)], "endpoint", "health")
    except Failure:
        return False
    return True


def require_quorum(others: Sequence[Member], size: int, what: str) -> None:
    """Refuses `what` unless enough of `others` are healthy for a cluster of `size`."""
    ill = [member.shown for member in others if not healthy(member)]
    needed = size // 2 + 1
    if len(others) - len(ill) < needed:
        raise Refusal(
            f"not safe: {what} needs {needed} healthy members besides this one, there are "
            f"{len(others) - len(ill)} (not healthy: {', '.join(ill) or 'none'}). Bring those back first; if "
            "their data is lost, too: monitoring/runbooks/EtcdNoLeader.md"
        )


def join() -> None:
    """Makes this host a member; does nothing for one that has data."""
    own = settings()
    if not DATA.joinpath("member").exists():
        admit(own)
    NOT_YET.unlink(missing_ok=True)
    start(own)
    JOINING.unlink(missing_ok=True)


def admit(own: Settings) -> None:
    """Lets the others take this host as a member without a past."""
    present = members(own.others())
    others = [member for member in present if member.peer != own.peer]
    mine = [member for member in present if member.peer == own.peer]
    require_quorum(others, len(others) + 1, f"to take {own.name} in")
    endpoints = [member.client for member in others if member.client]
    for member in mine:
        # One without a name was added by an earlier run and never started: that one it becomes.
        if member.name:
            say(f"removing the member that {own.name} was ({member.id})")
            etcdctl(endpoints, "member", "remove", member.id)
            mine = []
    if not mine:
        say(f"adding {own.name} as a new member")
        _retry(lambda: etcdctl(endpoints, "member", "add", own.name, f"--peer-urls={own.peer}"))
    names = {member.peer: member.name or own.fleet.get(member.peer, "") for member in others}
    cluster = ",".join(f"{name}={peer}" for peer, name in {**names, own.peer: own.name}.items())
    JOINING.write_text(f"ETCD_INITIAL_CLUSTER={cluster}\nETCD_INITIAL_CLUSTER_STATE=existing\n")


def _retry(work: Callable[[], object], seconds: float = 20) -> None:
    """Just after a change of members etcd refuses the next one until all have heard of it."""
    end = time.monotonic() + seconds
    while True:
        try:
            work()
        except Failure:
            if time.monotonic() > end:
                raise
            time.sleep(PAUSE_SECONDS)
        else:
            return


def start(own: Settings, verb: str = "start", seconds: float = 60) -> None:
    """Starts or restarts the service and waits until it serves; Failure shows its last log lines."""
    run("systemctl", "daemon-reload")
    run("systemctl", "reset-failed", UNIT)
    run("systemctl", "--no-block", verb, UNIT)
    me = Member("", own.name, own.peer, "https://127.0.0.1:2379")
    end = time.monotonic() + seconds
    while not healthy(me):
        if time.monotonic() > end:
            raise Failure(f"{own.name} does not serve {seconds:.0f} s after its start:\n{log()}")
        time.sleep(PAUSE_SECONDS)
    say(f"{own.name} serves")


def log() -> str:
    return run("journalctl", "-u", UNIT, "-n", str(LOG_LINES), "--no-pager", "-o", "cat").stdout.strip()


def restart() -> None:
    """Restarts the service, when the others keep the quorum meanwhile."""
    own = settings()
    present = members(["https://127.0.0.1:2379", *own.others()])
    others = [member for member in present if member.peer != own.peer]
    require_quorum(others, len(present), f"to restart {own.name}")
    start(own, "restart")


def replace(yes: bool) -> None:
    """Moves this member's data aside and joins as a new member."""
    own = settings()
    present = members(own.others())
    others = [member for member in present if member.peer != own.peer]
    if any(member.peer == own.peer and member.name and healthy(member) for member in present):
        raise Refusal(f"{own.name} is healthy: there is nothing to replace")
    require_quorum(others, len(others) + 1, f"to replace {own.name}")
    aside = DATA.with_name(f"{DATA.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    if not yes:
        say(f"would move {DATA} to {aside}, remove {own.name} from the cluster and add it as a new member;")
        say("nothing was changed; `relay-etcd-member replace --yes` does it")
        return
    NOT_YET.touch()
    run("systemctl", "stop", UNIT)
    if DATA.exists():
        DATA.rename(aside)
        say(f"the damaged data is in {aside}: remove it when the cluster is well")
    join()


def forget() -> None:
    """Removes members that the fleet no longer names, one after the other."""
    own = settings()
    here = ["https://127.0.0.1:2379", *own.others()]
    for member in [member for member in members(here) if member.peer not in own.fleet]:
        left = [other for other in members(here) if other.id != member.id]
        require_quorum(left, len(left), f"to remove {member.shown}")
        say(f"removing {member.shown} ({member.id}), which the inventory no longer names")
        _retry(lambda id=member.id: etcdctl(here, "member", "remove", id))


def main(words: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-etcd-member", description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(required=True, metavar="join|restart|replace|forget")
    for work in (join, restart, forget):
        commands.add_parser(work.__name__, help=work.__doc__).set_defaults(run=lambda _, work=work: work())
    command = commands.add_parser(
        "replace", help=replace.__doc__, epilog="example: relay-etcd-member replace --yes"
    )
    command.add_argument("--yes", action="store_true", help="do it; without it, only say what would be done")
    command.set_defaults(run=lambda options: replace(options.yes))
    options = parser.parse_args(words)
    try:
        options.run(options)
    except Refusal as refusal:
        say(f"refused: {refusal}")
        return REFUSED
    except Failure as failure:
        say(f"failed: {failure}")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
