#!/usr/bin/env python3
"""Hands the primary's role over before its disk is full.

    relay-disk-watch --name db1 --data /var/lib/postgresql/15/relay --rest https://db1:8008 \\
        --handover-mb 2048 --handover-percent 5 --reserve-mb 1024

It is a service; `journalctl -u relay-disk-watch` shows its decisions.

A primary without room refuses every write, while its replicas may have plenty. Each database host runs this.
It tells the others its room through etcd, keeps a reserve file beside the data, and on the primary:

- Short is a disk with less free than --handover-percent of its size or --handover-mb, whichever is more.
- When the primary is short, the reserve is freed first: shutting down, too, needs room for WAL.
- Then Patroni is asked for a switchover, to the replica with the most room. Only to one that streams,
  confirms commits (quorum or synchronous standby), has told its room within the last 30 s, has at least twice
  as much as short, and more than this host. With none, nothing is handed over: a worse primary helps nobody.
- Not while the cluster is paused, and not twice within ten minutes, whoever did it: no ping-pong.
- Data is never touched: nothing but the reserve is removed. It is made again when there is room for it twice.
- A replica does nothing but tell its room.

Figures go to the node exporter's directory; monitoring/rules/postgres_disk.yml watches them.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CA = "/etc/relay/tls/ca.crt"
PREFIX = "/relay/disk"
ROOM_SECONDS = 30
COOLDOWN_SECONDS = 600
PAUSE_SECONDS = 5.0
FIGURES = Path("/var/lib/prometheus/node-exporter/postgres_disk.prom")
MEGABYTE = 2**20
CONFIRMING = ("quorum_standby", "sync_standby")

HELP = {
    "postgres_disk_free_bytes": "Room for PostgreSQL's data.",
    "postgres_disk_size_bytes": "Size of the file system that holds it.",
    "postgres_disk_handover_bytes": "With less room than this the primary hands over.",
    "postgres_disk_reserve_bytes": "Size of the reserve file; 0 after it was freed.",
    "postgres_disk_handovers_total": "Switchovers asked for since the watcher started.",
    "postgres_disk_handover_blocked": "Whether a hand-over is due and not possible.",
}


@dataclass(frozen=True)
class Room:
    """Bytes free to PostgreSQL, and the file system's size."""

    free: int
    size: int


@dataclass(frozen=True)
class Limits:
    """When a disk is short, and how big the reserve is."""

    handover_mb: int
    handover_percent: float
    reserve_mb: int

    def short_below(self, room: Room) -> int:
        return max(self.handover_mb * MEGABYTE, int(room.size * self.handover_percent / 100))

    def short(self, room: Room) -> bool:
        return room.free < self.short_below(room)

    def roomy(self, room: Room) -> bool:
        return room.free >= 2 * self.short_below(room)


@dataclass(frozen=True)
class Cluster:
    """What Patroni says: members by name (role, state), and whether it is paused."""

    members: Mapping[str, tuple[str, str]]
    paused: bool


@dataclass(frozen=True)
class Decision:
    """What to do now: free or make the reserve, hand over to a member; or why what is due is not possible."""

    free_reserve: bool = False
    make_reserve: bool = False
    candidate: str = ""
    blocked: str = ""


def decide(
    name: str,
    room: Room,
    limits: Limits,
    reserve: bool,
    cluster: Cluster | None,
    rooms: Mapping[str, Room],
    cooling: bool,
) -> Decision:
    """The rules above. `rooms` are those that other hosts have told lately."""
    primary = cluster is not None and cluster.members.get(name, ("", ""))[0] == "leader"
    if not limits.short(room):
        spare = room.free - 2 * limits.reserve_mb * MEGABYTE
        return Decision(
            make_reserve=not reserve and limits.reserve_mb > 0 and spare > limits.short_below(room)
        )
    if not primary or cluster is None:
        return Decision()
    candidate, reason = _candidate(name, room, limits, cluster, rooms)
    if cluster.paused:
        candidate, reason = "", "the cluster is paused (patronictl resume)"
    elif candidate and cooling:
        candidate, reason = "", f"a hand-over was less than {COOLDOWN_SECONDS} s ago"
    return Decision(free_reserve=reserve, candidate=candidate, blocked=reason)


def _candidate(
    name: str, room: Room, limits: Limits, cluster: Cluster, rooms: Mapping[str, Room]
) -> tuple[str, str]:
    """The replica to hand over to, or an empty name and why each is none."""
    unfit = {}
    for member, (role, state) in cluster.members.items():
        if member == name:
            continue
        told = rooms.get(member)
        if role not in CONFIRMING or state != "streaming":
            unfit[member] = f"is a {role} that is {state}"
        elif told is None:
            unfit[member] = f"has not told its room for {ROOM_SECONDS} s"
        elif not limits.roomy(told) or told.free <= room.free:
            unfit[member] = f"has only {told.free // MEGABYTE} MB"
    fit = [member for member in cluster.members if member != name and member not in unfit]
    if fit:
        return max(fit, key=lambda member: rooms[member].free), ""
    return "", "; ".join(f"{member} {why}" for member, why in unfit.items()) or "there is no replica"


@dataclass
class Watcher:
    """One host's watcher: how it looks and acts."""

    name: str
    data: Path
    rest: str
    limits: Limits
    handovers: int = 0
    said: str = field(default="", repr=False)

    @property
    def reserve(self) -> Path:
        return self.data.parent / "relay-reserve"

    def look(self) -> None:
        """One round."""
        room = measure(self.data)
        tell_room(self.name, room)
        # Asked only when it matters: this runs every few seconds for years.
        short = self.limits.short(room)
        decision = decide(
            self.name,
            room,
            self.limits,
            self.reserve.exists(),
            cluster(self.rest) if short else None,
            told_rooms() if short else {},
            cooling_down() if short else False,
        )
        self.act(room, decision)
        self.write_figures(measure(self.data), decision)

    def act(self, room: Room, decision: Decision) -> None:
        if decision.make_reserve:
            self.make_reserve()
        if decision.free_reserve:
            self.say(
                f"{room.free // MEGABYTE} MB are free: freeing the reserve of {self.limits.reserve_mb} MB"
            )
            self.reserve.unlink(missing_ok=True)
        if decision.blocked:
            self.say(f"short of room ({room.free // MEGABYTE} MB), and no hand-over: {decision.blocked}")
        if decision.candidate:
            self.say(f"short of room ({room.free // MEGABYTE} MB): handing over to {decision.candidate}")
            self.hand_over(decision.candidate)

    def make_reserve(self) -> None:
        new = self.reserve.with_suffix(".new")
        with new.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.limits.reserve_mb * MEGABYTE)
        new.replace(self.reserve)
        self.say(f"made a reserve of {self.limits.reserve_mb} MB: {self.reserve}")

    def hand_over(self, candidate: str) -> None:
        put(f"{PREFIX}-handover", self.name, COOLDOWN_SECONDS)
        self.handovers += 1
        command = [
            "patronictl",
            "switchover",
            "relay",
            "--leader",
            self.name,
            "--candidate",
            candidate,
            "--force",
        ]
        done = run(command, seconds=120)
        last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["no output"]
        self.say(f"Patroni answers: {last[0]}" if done.returncode else f"{candidate} is the primary now")

    def say(self, text: str) -> None:
        """A line of the log, once for as long as nothing else is to be said."""
        if text != self.said:
            self.said = text
            print(text, flush=True)

    def write_figures(self, room: Room, decision: Decision) -> None:
        figures = {
            "postgres_disk_free_bytes": room.free,
            "postgres_disk_size_bytes": room.size,
            "postgres_disk_handover_bytes": self.limits.short_below(room),
            "postgres_disk_reserve_bytes": self.reserve.stat().st_size if self.reserve.exists() else 0,
            "postgres_disk_handovers_total": self.handovers,
            "postgres_disk_handover_blocked": int(bool(decision.blocked)),
        }
        FIGURES.parent.mkdir(parents=True, exist_ok=True)
        new = FIGURES.with_suffix(".new")
        new.write_text("".join(_figure(name, value) for name, value in figures.items()))
        new.chmod(0o644)
        new.replace(FIGURES)


def _figure(name: str, value: int) -> str:
    kind = "counter" if name.endswith("_total") else "gauge"
    return f"# HELP {name} {HELP[name]}\n# TYPE {name} {kind}\n{name} {value}\n"


def measure(data: Path) -> Room:
    """Room in the file system of `data`, or of its nearest parent before there is a database."""
    while not data.exists():
        data = data.parent
    found = os.statvfs(data)
    return Room(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


def run(command: Sequence[str], seconds: float = 10) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {seconds:.0f} s")


def etcdctl(*words: str) -> str:
    """What etcdctl prints; empty when etcd does not serve."""
    done = run(["relay-etcdctl", "--command-timeout=3s", *words])
    return "" if done.returncode else done.stdout


def put(key: str, value: str, seconds: int) -> None:
    """A key that vanishes after `seconds`."""
    # lease 694d77aa9e38260f granted with TTL(30s)
    granted = etcdctl("lease", "grant", str(seconds)).split()
    if len(granted) > 1:
        etcdctl("put", f"--lease={granted[1]}", key, value)


def tell_room(name: str, room: Room) -> None:
    put(f"{PREFIX}/{name}", json.dumps({"free": room.free, "size": room.size}), ROOM_SECONDS)


def told_rooms() -> dict[str, Room]:
    """Rooms that hosts have told within ROOM_SECONDS."""
    lines = etcdctl("get", "--prefix", f"{PREFIX}/").splitlines()
    pairs = zip(lines[::2], lines[1::2], strict=False)
    return {key.rpartition("/")[2]: Room(**json.loads(value)) for key, value in pairs}


def cooling_down() -> bool:
    return bool(etcdctl("get", f"{PREFIX}-handover"))


def cluster(rest: str) -> Cluster | None:
    """The cluster as Patroni's interface tells it; None when it does not answer."""
    try:
        context = ssl.create_default_context(cafile=CA)
        # The address is this host's own, from the unit.
        with urllib.request.urlopen(f"{rest}/cluster", timeout=5, context=context) as answer:  # noqa: S310
            told: dict[str, Any] = json.load(answer)
    except (OSError, ValueError):
        return None
    members = {member["name"]: (member["role"], member["state"]) for member in told["members"]}
    return Cluster(members, bool(told.get("pause")))


def main(words: Sequence[str] | None = None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-disk-watch", description=__doc__, formatter_class=layout)
    parser.add_argument("--name", required=True, help="this host's name in Patroni")
    parser.add_argument("--data", required=True, type=Path, help="PostgreSQL's data directory")
    parser.add_argument(
        "--rest", required=True, help="Patroni's interface on this host, https://ADDRESS:8008"
    )
    parser.add_argument("--handover-mb", required=True, type=int, help="hand over with less room than this")
    parser.add_argument(
        "--handover-percent", required=True, type=float, help="... or than this share of the disk"
    )
    parser.add_argument("--reserve-mb", required=True, type=int, help="size of the reserve file; 0: none")
    parser.add_argument("--once", action="store_true", help="look once, act, and end")
    options = parser.parse_args(words)
    limits = Limits(options.handover_mb, options.handover_percent, options.reserve_mb)
    watcher = Watcher(options.name, options.data, options.rest, limits)
    while True:
        try:
            watcher.look()
        except OSError as error:
            watcher.say(f"this round failed: {error}")
        if options.once:
            return
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
