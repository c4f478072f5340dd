#!/usr/bin/env python3
"""Looks at and restarts this cluster without hurry.

    relay-patroni serves             # exits 0 when PostgreSQL here is primary or streams, else says why
    relay-patroni wait               # waits for that
    relay-patroni restart-replica    # restarts Patroni where that is due and this host is a replica
    relay-patroni restart-rest       # the same on the primary, after it has handed over
    relay-patroni restart-pending    # restarts PostgreSQL where a setting waits for it; on any database host

Patroni's own restart is due where the file --stale exists.

restart-pending brings settings into force that need a restart of PostgreSQL:

1. Replicas first, one at a time. The next one has its turn when all stream again and confirm commits as
   before.
2. Then the primary hands over to a replica that confirms commits, has no restart pending and streams. It
   comes back as a replica; to stop and start is the restart that it needed. Writes wait for the second or two
   between.
3. Where that is not possible the primary is restarted in place, and it is said why:
   - no replica confirms commits, so none may take over; or
   - a limit shrinks (max_connections, max_worker_processes, max_wal_senders, max_locks_per_transaction,
     max_prepared_transactions). A replica may not have less of these than its primary, so Patroni starts it
     with the primary's old value and leaves the restart pending. Only a restart as primary lowers the limit.
4. Replicas for which a restart is pending still, or again, follow.

Every step is checked against what the cluster says afterwards: patronictl exits 0 when Patroni refuses. Exits
1 when a member does not come back or a restart stays pending; nothing else is touched then.
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CA = "/etc/relay/tls/ca.crt"
REST_PORT = 8008
PATIENCE_SECONDS = 180
# A switchover that is under way when patronictl answers ends within the time that PostgreSQL takes to stop.
SWITCHOVER_SECONDS = 60
# A member reads a setting in one round, applies it at its end, and tells in the next that a restart is due.
# Whoever asks it for the cluster has it read etcd, too: more reads than that are waited for, this long,
# or as long as they take where rounds are rare.
READS, SETTLE_SECONDS = 4, 60
CONFIRMING = ("Quorum Standby", "Sync Standby")


class Failed(Exception):
    """Something did not become as it should; the message says what to do next."""


@dataclass(frozen=True)
class Member:
    """What Patroni says of a member."""

    name: str
    role: str
    state: str
    pending: bool
    address: str = ""

    @property
    def leads(self) -> bool:
        return self.role == "Leader"

    @property
    def confirms(self) -> bool:
        return self.role in CONFIRMING and self.state == "streaming"

    @property
    def well(self) -> bool:
        return self.state == ("running" if self.leads else "streaming")


def say(text: str) -> None:
    print(text, flush=True)


def run(command: Sequence[str], seconds: float = 30) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {seconds:.0f} s")


def members() -> list[Member]:
    """The cluster, replicas in order of their names and then the primary; empty when etcd does not answer."""
    done = run(["patronictl", "list", "--format", "json"])
    if done.returncode:
        return []
    found = [
        Member(
            row["Member"], row["Role"], row["State"], bool(row.get("Pending restart")), row.get("Host", "")
        )
        for row in json.loads(done.stdout or "[]")
    ]
    return sorted(found, key=lambda member: (member.leads, member.name))


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return ((done.stdout + done.stderr).strip().splitlines() or ["no output"])[-1]


def confirming(cluster: Sequence[Member]) -> set[str]:
    return {member.name for member in cluster if member.confirms}


@dataclass
class Restarts:
    """Restarts of PostgreSQL in a cluster whose members look every `loop_wait` seconds; `read_at` tells when
    the member at an address last read etcd (see last_read)."""

    loop_wait: float
    read_at: Callable[[str], int]

    def settle(self) -> list[Member]:
        """The cluster, after its members have had their next rounds: they see what is pending then. On a busy
        host a round comes late, so they are asked for it."""
        reads = {member.address: {self.read_at(member.address)} for member in self.healthy()}
        deadline = time.monotonic() + max(SETTLE_SECONDS, (READS + 1) * self.loop_wait)
        while any(len(read) <= READS for read in reads.values()) and time.monotonic() < deadline:
            time.sleep(self.loop_wait / 2)
            for address, read in reads.items():
                read.add(self.read_at(address) or min(read))
        return self.healthy()

    def healthy(self, confirm: set[str] | frozenset[str] = frozenset()) -> list[Member]:
        """The cluster, once it has a primary, all replicas stream, and those of `confirm` confirm commits."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            cluster = members()
            lacking = wrong(cluster, confirm)
            if not lacking:
                return cluster
            if time.monotonic() > deadline:
                raise Failed(
                    f"{lacking}. Nothing else is restarted. See: patronictl list; journalctl -u patroni"
                )
            time.sleep(1)

    def all_pending(self) -> None:
        """The order of the module's first lines."""
        self.replicas(self.settle())
        cluster = self.settle()
        if leader(cluster).pending:
            self.primary(cluster)
            self.replicas(self.settle())
            cluster = self.settle()
        left = [member.name for member in cluster if member.pending]
        if left:
            raise Failed(
                f"a restart is still pending on {', '.join(left)}: `patronictl list` says for which setting; "
                "run `relay-patroni restart-pending` again"
            )

    def replicas(self, cluster: Sequence[Member]) -> None:
        confirm = confirming(cluster)
        for member in cluster:
            if member.pending and not member.leads:
                self.restart(member)
                self.healthy(confirm)

    def primary(self, cluster: Sequence[Member]) -> None:
        """Hands over, or restarts it in place where that is not possible."""
        current, confirm = leader(cluster), confirming(cluster)
        held = [member.name for member in cluster if member.pending and not member.leads]
        if held:
            why = f"a limit shrinks, which {', '.join(held)} may do only after the primary"
        elif not confirm:
            why = "no replica confirms commits, so none may take over"
        else:
            hand_over(current.name, sorted(confirm))
            return
        say(f"{current.name} is restarted in place: {why}")
        self.restart(current)
        self.healthy(confirm)

    def restart(self, member: Member) -> None:
        say(f"restarting PostgreSQL on {member.name} ({member.role.lower()})")
        command = ["patronictl", "restart", "relay", member.name, "--force", "--pending"]
        done = run(command, seconds=PATIENCE_SECONDS)
        if done.returncode or "Failed" in done.stdout:
            raise Failed(f"{member.name} was not restarted: {last_line(done)}")
        # Until its next round the cluster shows the member as it was before.
        time.sleep(self.loop_wait + 1)


def leader(cluster: Sequence[Member]) -> Member:
    return next(member for member in cluster if member.leads)


def wrong(cluster: Sequence[Member], confirm: set[str] | frozenset[str]) -> str:
    """What the cluster lacks; empty when nothing."""
    if not any(member.leads for member in cluster):
        return "the cluster has no primary" if cluster else "patronictl list says nothing"
    ill = [f"{member.name} is {member.state}" for member in cluster if not member.well]
    present = {member.name: member for member in cluster}
    for name in sorted(confirm - confirming(cluster)):
        if name not in present:
            ill.append(f"{name} is gone")
        # Whoever leads by now confirms nothing.
        elif present[name].well and not present[name].leads:
            ill.append(f"{name} does not confirm commits")
    return "; ".join(ill)


def hand_over(current: str, candidates: Sequence[str]) -> None:
    """Makes the first of `candidates` that can the primary; the old one comes back as a replica."""
    answers = []
    for candidate in candidates:
        say(f"{current} hands over to {candidate}")
        command = [
            "patronictl",
            "switchover",
            "relay",
            "--leader",
            current,
            "--candidate",
            candidate,
            "--force",
        ]
        done = run(command, seconds=SWITCHOVER_SECONDS)
        if another_leads(current):
            return
        answers.append(f"{candidate}: {last_line(done)}")
    raise Failed(
        f"{current} could not hand over ({'; '.join(answers)}). It goes on as primary; when `patronictl "
        "list` shows every member streaming, run the command again"
    )


def another_leads(current: str) -> bool:
    """Whether another member has become primary, once that is decided."""
    deadline = time.monotonic() + SWITCHOVER_SECONDS
    while True:
        leading = [member for member in members() if member.leads]
        if any(member.name != current for member in leading):
            return True
        # Refused: the old primary has never stopped.
        if any(member.well for member in leading) or time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def asked(url: str) -> tuple[int, str]:
    """Status and text of Patroni's interface; status 0 when it does not answer."""
    try:
        context = ssl.create_default_context(cafile=CA)
        # The address is this host's own, from the launcher, or that of a member.
        with urllib.request.urlopen(url, timeout=3, context=context) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return 0, str(error)


def last_read(address: str) -> int:
    """When the member at an address last read etcd, in seconds since 1970; 0 when it does not say."""
    _, text = asked(f"https://{address}:{REST_PORT}/patroni")
    try:
        return int(json.loads(text)["dcs_last_seen"])
    except (ValueError, KeyError, TypeError):
        return 0


@dataclass
class Host:
    """This host's own member."""

    name: str
    rest: str
    stale: Path

    def answers(self, path: str) -> bool:
        """Whether Patroni's interface says 200 to it."""
        return self.says(path)[0] == 200

    def says(self, path: str) -> tuple[int, str]:
        """Status and text; status 0 when it does not answer."""
        return asked(f"{self.rest}/{path}")

    def serving(self) -> bool:
        return self.answers("primary") or self.answers("replica?replication_state=streaming")

    def serves(self) -> None:
        if not self.serving():
            _, text = self.says("patroni")
            raise Failed(
                f"PostgreSQL on {self.name} neither is primary nor streams; Patroni says:\n{text}\n"
                "See: journalctl -u patroni"
            )

    def wait(self) -> None:
        self._until(self.serving, f"PostgreSQL on {self.name} neither is primary nor streams")

    def _until(self, reached: Callable[[], bool], lacking: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            if time.monotonic() > deadline:
                raise Failed(f"{lacking} after {PATIENCE_SECONDS} s; see: journalctl -u patroni")
            time.sleep(1)

    def restart_replica(self) -> None:
        if self.stale.exists() and not self.answers("primary"):
            self.restart()

    def restart_rest(self) -> None:
        if not self.stale.exists():
            return
        if self.answers("primary"):
            self.give_up_primary()
        self.restart()

    def give_up_primary(self) -> None:
        candidates = sorted(confirming(members()))
        if not candidates:
            say(f"{self.name} is restarted in place: no replica confirms commits, so none may take over")
            return
        hand_over(self.name, candidates)
        self._until(
            lambda: self.answers("replica?replication_state=streaming"),
            f"{self.name} handed over but does not stream from the new primary",
        )

    def restart(self) -> None:
        """Patroni stops PostgreSQL with itself. It is over when the host confirms commits as before."""
        confirmed = self.name in confirming(members())
        for command in (["systemctl", "daemon-reload"], ["systemctl", "restart", "patroni.service"]):
            done = run(command, seconds=PATIENCE_SECONDS)
            if done.returncode:
                raise Failed(f"`{' '.join(command)}` failed on {self.name}: {last_line(done)}")
        self.wait()
        if confirmed:
            self._until(self.confirms_or_leads, f"{self.name} streams but does not confirm commits")
        self.stale.unlink(missing_ok=True)

    def confirms_or_leads(self) -> bool:
        return any(self.answers(path) for path in ("quorum", "sync", "primary"))


def main(words: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-patroni", description=__doc__, formatter_class=layout)
    parser.add_argument("--name", required=True, help="this host's name in Patroni")
    parser.add_argument(
        "--rest", required=True, help="Patroni's interface on this host, https://ADDRESS:8008"
    )
    parser.add_argument(
        "--loop-wait", required=True, type=float, help="seconds between two rounds of Patroni"
    )
    parser.add_argument("--stale", required=True, type=Path, help="file that says that Patroni must restart")
    actions = ("serves", "wait", "restart-replica", "restart-rest", "restart-pending")
    parser.add_argument("action", choices=actions)
    options = parser.parse_args(words)
    host = Host(options.name, options.rest, options.stale)
    acts: dict[str, Callable[[], None]] = {
        "serves": host.serves,
        "wait": host.wait,
        "restart-replica": host.restart_replica,
        "restart-rest": host.restart_rest,
        "restart-pending": Restarts(options.loop_wait, last_read).all_pending,
    }
    try:
        acts[options.action]()
    except Failed as failure:
        print(failure, file=sys.stdout if options.action == "serves" else sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
