#!/usr/bin/env python3
"""Releases the leader key of a primary whose host is dead, long before its lease ends.

    relay-failover-watch --name db1 --host db1=10.0.0.1 --host db2=10.0.0.2 --host db3=10.0.0.3 \\
        --unreachable-seconds 2
    relay-failover-watch ... --restore     # before Patroni starts: the fence that was up, if any

It is a service of each database host; `journalctl -u relay-failover-watch` shows its decisions. Patroni
elects and promotes as ever; this only spares it the wait for the lease of a host that is gone.

Why no acknowledged write can be lost. In Patroni's strict synchronous mode the primary acknowledges a commit
only when a standby has confirmed it. A host is *fenced* when its kernel drops every packet from and to the
primary's PostgreSQL: its standby can confirm nothing from then on. When every other host of the cluster is
fenced, the primary can acknowledge nothing that no standby has on its disk already, whatever its state: dead,
frozen, or alive and in touch with its clients. From then on the key may go: Patroni promotes a standby only
if it has all that any standby has confirmed.

1. A host fences itself when the primary has been silent for --unreachable-seconds on every path (etcd,
   Patroni, PostgreSQL, SSH; a refused connection is an answer; the local WAL receiver has heard nothing
   either), the leader key names it and has not changed meanwhile, strict synchronous mode holds and has held,
   unchanged, for 30 s, the cluster is not paused, and nobody belongs to the cluster whom the inventory does
   not name.
2. The fence is on disk, so that it is back before PostgreSQL after a reboot; then in the kernel; then the
   host votes: a key of its own in etcd, under a lease, named after the leader and the revision at which it
   took the key. The file names the lease before the lease exists. So where there is a vote, there is a
   fence.
3. Who sees the votes of all other hosts deletes the leader key, in one transaction that compares them all:
   the key, the cluster's settings, its synchronous state and its members are as they were seen, each vote is
   there. etcd commits it by a majority, so a minority of hosts can do nothing.
4. The fence is lifted in two cases only. The key was not deleted: the vote's lease is revoked first, which
   also ends whatever request of it is still under way, and the key is read again after that. Or there is a
   later leader: it is the fenced host itself, or the local server already follows it (or is it). Following
   matters: a standby that still holds its old connection could confirm to the old primary the moment the
   fence is gone. While etcd does not answer, the fence stays.

A fenced host also refuses, at once, what its Patroni asks of the primary's etcd and Patroni: the election
would otherwise wait for answers of a dead host, once for each request under way. This is no part of the
argument above, and the watcher itself still gets through.

Assumed: standbys run on database hosts only (access rules and firewall see to it), nobody removes the fence's
table by hand, and commits wait for their standby (a session with synchronous_commit off asked not to).
With a second host away the votes are not complete; then Patroni's lease ends it, as without this program.
An old primary that is alive may answer reads, of old data, until its Patroni sees the new leader.

Figures go to the node exporter's directory; monitoring/rules/failover.yml watches them.
"""

from __future__ import annotations

import argparse
import base64
import enum
import http.client
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

# Named in full: a renewed certificate restarts the watcher.
AUTHORITIES, CERTIFICATE, KEY = "/etc/relay/tls/ca.crt", "/etc/relay/tls/host.crt", "/etc/relay/tls/host.key"
STATE = Path("/var/lib/relay/failover/fence.json")
FIGURES = Path("/var/lib/prometheus/node-exporter/failover_watch.prom")
TABLE = "relay_failover"
POSTGRES, PATRONI, ETCD, SSH = 5432, 8008, 2379, 22
CLUSTER, VOTES = "/db/relay/", "/relay-failover/"
# A vote outlives its watcher by so long; etcd grants no less than one and a half election time-outs.
VOTE_SECONDS = 5
# Settings and leader must have been so for this long: Patroni's members apply a change within its loop_wait.
SETTLED_SECONDS = 30.0
CALM_SECONDS, ALERT_SECONDS = 0.5, 0.15
# Alert rounds become calm ones when nothing has changed for so long.
PATIENCE_SECONDS = 30.0
# Other paths are asked when the first has been silent for so long, and etcd is read this often meanwhile.
SUSPECT_SECONDS = 0.75
LOOK_SECONDS = 2.0
# A watcher that has itself been stopped for so long (a frozen host) knows nothing about anybody's silence.
ASLEEP_SECONDS, TICK_SECONDS = 1.0, 0.2
FIGURES_SECONDS = 5.0

HELP = {
    "failover_watch_ready": "Whether a dead primary would be acted on; on the primary itself 1.",
    "failover_watch_silence_seconds": "How long the primary has not answered on any path; 0 on itself.",
    "failover_watch_fenced": "Whether this host is fenced against a primary.",
    "failover_watch_fences_total": "Fences put up since the watcher started.",
    "failover_watch_releases_total": "Leader keys that this host deleted since the watcher started.",
    "failover_watch_incomplete": "Whether this host votes and the votes of others are missing.",
    "failover_watch_fence_lost_total": "Times that the fence was found removed by somebody else.",
}


def votes_key(leader: str, created: int) -> str:
    """Parent of the votes against the tenure of `leader` that began at revision `created`."""
    return f"{VOTES}{leader}/{created}/"


class EtcdAway(Exception):
    """etcd gave no answer that counts."""


@dataclass(frozen=True)
class Leader:
    """The leader key. `created` changes with each acquisition, `modified` with each change."""

    name: str
    created: int
    modified: int


@dataclass(frozen=True)
class View:
    """What etcd holds, read at one revision."""

    revision: int
    leader: Leader | None
    strict: bool
    paused: bool
    # Revisions of the cluster's settings and of its synchronous state.
    settings: int
    synchronous: int
    # Whom the synchronous state names as leader, and everybody who is in it or in the cluster.
    synchronous_leader: str
    standbys: frozenset[str]
    members: frozenset[str]
    # Who votes, by votes' parent key: /relay-failover/LEADER/CREATED/.
    votes: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fence:
    """A fence against the host that took the key at revision `created`; `lease` is the vote's, 0: none."""

    host: str
    address: str
    created: int
    modified: int
    lease: int = 0

    @property
    def votes(self) -> str:
        return votes_key(self.host, self.created)


class Act(enum.Enum):
    """What a round does."""

    NOTHING = "nothing"
    FENCE = "fence"
    VOTE = "vote"
    RELEASE = "release the key"
    WITHDRAW = "withdraw the vote"
    LIFT = "lift the fence"


@dataclass(frozen=True)
class Decision:
    """What to do now, and why."""

    act: Act
    why: str = ""


@dataclass(frozen=True)
class Sight:
    """What a round has seen.

    `silence` is the primary's, in seconds; `following` names the host from which the local server streams,
    this one when it is no standby, nobody when it does neither; `settled` says whether settings and leader
    have been the same for SETTLED_SECONDS.
    """

    view: View | None
    silence: float
    following: str
    settled: bool


def hindrance(hosts: Sequence[str], view: View, settled: bool) -> str:
    """Why a dead primary would not be acted on; empty when it would."""
    leader = view.leader
    if leader is None:
        return "there is no leader: Patroni elects one"
    strangers = sorted({leader.name, *view.members, *view.standbys} - set(hosts))
    if strangers:
        return f"the cluster has {', '.join(strangers)}, unknown to the inventory: apply it to all hosts"
    if view.paused:
        return "the cluster is paused (patronictl resume)"
    if not view.strict:
        return "strict synchronous mode is off, so writes may exist on the primary alone"
    if view.synchronous_leader != leader.name or not view.standbys:
        return "no standby confirms the primary's commits"
    if not settled:
        return f"settings or leader changed less than {SETTLED_SECONDS:.0f} s ago"
    return ""


def decide(me: str, hosts: Sequence[str], sight: Sight, fence: Fence | None, limit: float) -> Decision:
    """The rules above, for one round. `limit` is --unreachable-seconds."""
    view = sight.view
    if view is None:
        return Decision(Act.NOTHING, "etcd does not answer" + (": the fence stays" if fence else ""))
    reason = hindrance(hosts, view, sight.settled)
    leader = view.leader
    if fence is None:
        if leader is None or leader.name == me or sight.silence < limit:
            return Decision(Act.NOTHING)
        if reason:
            return Decision(Act.NOTHING, f"{leader.name} does not answer, and nothing is done: {reason}")
        return Decision(Act.FENCE, f"{leader.name} has not answered for {sight.silence:.1f} s on any path")
    if leader is None:
        return Decision(Act.NOTHING, f"the key of {fence.host} is gone: waiting for a new leader")
    if leader.created != fence.created:
        return _after(leader, sight.following, fence)
    if reason := _alive(leader, sight.silence, fence, limit) or reason:
        return Decision(Act.WITHDRAW if fence.lease else Act.LIFT, reason)
    missing = sorted(set(hosts) - {fence.host} - view.votes.get(fence.votes, frozenset()))
    if missing:
        return Decision(Act.VOTE, f"{fence.host} is dead; missing votes: {', '.join(missing)}")
    return Decision(Act.RELEASE, f"{fence.host} is dead: every other host says so and is fenced against it")


def _alive(leader: Leader, silence: float, fence: Fence, limit: float) -> str:
    """By what the fenced host shows that it lives; empty while it shows nothing."""
    if leader.modified != fence.modified:
        return f"{fence.host} renewed its key: it is alive"
    return f"{fence.host} answers again" if silence < limit else ""


def _after(leader: Leader, following: str, fence: Fence) -> Decision:
    """What to do about a fence when there is a later leader."""
    if leader.name == fence.host:
        return Decision(Act.LIFT, f"{fence.host} took the key again")
    if following == leader.name:
        return Decision(Act.LIFT, f"{leader.name} is the leader, and this host follows it")
    return Decision(Act.NOTHING, f"{leader.name} is the leader: waiting until this host follows it")


class World(Protocol):
    """What the watcher looks at and acts on; tests have another one."""

    def now(self) -> float:
        """Seconds of a clock that is never set."""
        ...

    def look(self) -> View:
        """The present state, confirmed by a majority. Raises EtcdAway, like all that asks etcd."""
        ...

    def silence(self, host: str) -> float:
        """For how many seconds `host` has not answered on any path."""
        ...

    def following(self) -> str:
        """From which host the local server streams; see Sight."""
        ...

    def grant(self, lease: int) -> None:
        """Makes a lease of VOTE_SECONDS."""
        ...

    def keep(self, lease: int) -> bool:
        """Renews a lease; False when there is none any more."""
        ...

    def revoke(self, lease: int) -> None:
        """Ends a lease for good; one that is gone is no error."""
        ...

    def vote(self, fence: Fence, me: str) -> None:
        """Puts this host's vote, under the fence's lease."""
        ...

    def release(self, view: View, voters: Sequence[str]) -> bool:
        """Deletes the leader key if all is as in `view` and each voter's vote is there."""
        ...

    def load(self) -> Fence | None:
        """The fence on disk."""
        ...

    def save(self, fence: Fence | None) -> None:
        """Writes the fence to disk, surely, or removes it."""
        ...

    def raise_fence(self, address: str) -> None:
        """Drops packets from and to the PostgreSQL at `address`."""
        ...

    def fenced(self, address: str) -> bool:
        """Whether those packets are dropped."""
        ...

    def lift_fence(self) -> None:
        """Lets packets through again."""
        ...


@dataclass
class Watcher:
    """One host's watcher: it looks, decides, and acts."""

    name: str
    # Address of every database host.
    hosts: Mapping[str, str]
    world: World
    limit: float
    fences: int = 0
    releases: int = 0
    lost: int = 0
    fence: Fence | None = None
    # The lease whose grant this process has seen.
    granted: int = 0
    view: View | None = None
    away: bool = False
    silence: float = 0.0
    decision: Decision = field(default_factory=lambda: Decision(Act.NOTHING))
    since: float = 0.0
    looked: float = float("-inf")
    said: str = ""

    def restore(self) -> None:
        """The fence that an earlier run put up; before anything else."""
        self.fence = self.world.load()
        if self.fence:
            self.world.raise_fence(self.fence.address)
            self.say(f"fenced against {self.fence.host}, as before")

    def round(self) -> None:
        """One look, and what follows from it."""
        self.check_fence()
        sight = self.see()
        self.silence = sight.silence
        self.decision = decide(self.name, list(self.hosts), sight, self.fence, self.limit)
        if self.decision.why:
            self.say(self.decision.why)
        try:
            self.act(sight)
        except EtcdAway as error:
            self.say(f"etcd: {error}")

    @property
    def suspicious(self) -> bool:
        """Whether to look closely and often."""
        return self.fence is not None or self.silence >= SUSPECT_SECONDS

    @property
    def ready(self) -> bool:
        """Whether a dead primary would be acted on."""
        if self.view is None or self.away:
            return False
        leader = self.view.leader
        if leader and leader.name == self.name:
            return True
        return not hindrance(list(self.hosts), self.view, self.settled())

    def settled(self) -> bool:
        return self.world.now() - self.since >= SETTLED_SECONDS

    def see(self) -> Sight:
        """Asks etcd when it matters: often while the primary is silent, else every LOOK_SECONDS."""
        leader = self.view.leader if self.view else None
        silence = self.world.silence(leader.name) if leader and leader.name != self.name else 0.0
        closely = self.fence is not None or silence >= SUSPECT_SECONDS
        if not closely and self.world.now() - self.looked < LOOK_SECONDS:
            return Sight(self.view, silence, "", self.settled())
        try:
            seen = self.world.look()
        except EtcdAway:
            self.away = True
            return Sight(None, silence, "", False)
        self.away = False
        if self.view is None or _tenure(seen) != _tenure(self.view):
            self.since = self.world.now()
        if leader is None or seen.leader is None or seen.leader.name != leader.name:
            silence = 0.0
        self.view, self.looked = seen, self.world.now()
        if self.fence and seen.leader and seen.leader.created != self.fence.created:
            return Sight(seen, silence, self.world.following(), self.settled())
        return Sight(seen, silence, "", self.settled())

    def check_fence(self) -> None:
        """Puts the fence back when somebody removed it (`nft flush ruleset`)."""
        if self.fence and not self.world.fenced(self.fence.address):
            self.lost += 1
            self.say(f"the fence against {self.fence.host} was removed by somebody: putting it back")
            self.world.raise_fence(self.fence.address)

    def act(self, sight: Sight) -> None:
        act, view, fence = self.decision.act, sight.view, self.fence
        if act is Act.FENCE and view and view.leader:
            leader = view.leader
            self.put_up(Fence(leader.name, self.hosts[leader.name], leader.created, leader.modified))
        elif act is Act.VOTE and view and fence:
            self.vote(view, fence)
        elif act is Act.RELEASE and view and view.leader and fence:
            self.release(view, fence)
        elif act is Act.WITHDRAW and fence:
            self.withdraw(fence)
        elif act is Act.LIFT and fence:
            self.lift(fence)

    def put_up(self, fence: Fence) -> None:
        # On disk first: a host that reboots between the two must not forget a fence that was voted on.
        self.store(fence)
        self.world.raise_fence(fence.address)
        self.fences += 1
        self.say(f"fenced against {fence.host}: its PostgreSQL gets no confirmation from this host")

    def vote(self, view: View, fence: Fence) -> None:
        """Sees to it that this host's vote is there and stays."""
        if not self.granted or self.granted != fence.lease or not self.world.keep(self.granted):
            # A lease in the file is ended before another takes its place: a request of it may be under way.
            self.withdraw(fence)
            fence = replace(fence, lease=secrets.randbelow(2**62) + 1)
            self.store(fence)
            self.world.grant(fence.lease)
            self.granted = fence.lease
        if self.name not in view.votes.get(fence.votes, frozenset()):
            self.world.vote(fence, self.name)

    def release(self, view: View, fence: Fence) -> None:
        voters = [host for host in self.hosts if host != fence.host]
        if self.world.release(view, voters):
            self.releases += 1
            self.say(f"deleted the leader key of {fence.host}: Patroni elects a new primary")

    def withdraw(self, fence: Fence) -> None:
        if fence.lease:
            self.world.revoke(fence.lease)
            self.granted = 0
            self.store(replace(fence, lease=0))

    def lift(self, fence: Fence) -> None:
        # The kernel first: a fence without its file would be lost by a reboot, a file without a fence is not.
        self.world.lift_fence()
        self.store(None)
        self.granted = 0
        self.say(f"lifted the fence against {fence.host}")

    def store(self, fence: Fence | None) -> None:
        self.world.save(fence)
        self.fence = fence

    def say(self, text: str) -> None:
        """A line of the log, once for as long as nothing else is to be said. Figures in it do not count."""
        key = "".join(letter for letter in text if not letter.isdigit())
        if key != self.said:
            self.said = key
            print(text, flush=True)

    def figures(self) -> dict[str, float]:
        return {
            "failover_watch_ready": int(self.ready),
            "failover_watch_silence_seconds": round(self.silence, 2),
            "failover_watch_fenced": int(self.fence is not None),
            "failover_watch_fences_total": self.fences,
            "failover_watch_releases_total": self.releases,
            "failover_watch_incomplete": int(self.decision.act is Act.VOTE),
            "failover_watch_fence_lost_total": self.lost,
        }


def _tenure(view: View) -> tuple[object, ...]:
    """What must not have changed lately."""
    return (view.leader and view.leader.created, view.settings)


def _text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def _plain(value: str) -> str:
    return base64.b64decode(value).decode()


def _end(prefix: str) -> str:
    """The first key behind all that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def read_view(answer: Mapping[str, Any]) -> View:
    """The View that a transaction of look_request tells."""
    entries: dict[str, Mapping[str, Any]] = {}
    for response in answer["responses"]:
        for entry in response["response_range"].get("kvs", []):
            entries[_plain(entry["key"])] = entry
    values = {key: _plain(entry.get("value", "")) for key, entry in entries.items()}
    votes: dict[str, set[str]] = {}
    for key in entries:
        if key.startswith(VOTES):
            parent, _, voter = key.rpartition("/")
            votes.setdefault(f"{parent}/", set()).add(voter)
    settings = json.loads(values.get(f"{CLUSTER}config") or "{}")
    synchronous = json.loads(values.get(f"{CLUSTER}sync") or "{}")
    standbys = [name for name in (synchronous.get("sync_standby") or "").split(",") if name]
    leader = entries.get(f"{CLUSTER}leader")
    return View(
        revision=int(answer["header"]["revision"]),
        leader=leader
        and Leader(values[f"{CLUSTER}leader"], int(leader["create_revision"]), int(leader["mod_revision"])),
        strict=settings.get("synchronous_mode") in (True, "on", "quorum")
        and settings.get("synchronous_mode_strict") is True,
        paused=bool(settings.get("pause")),
        settings=_modified(entries, f"{CLUSTER}config"),
        synchronous=_modified(entries, f"{CLUSTER}sync"),
        synchronous_leader=synchronous.get("leader") or "",
        standbys=frozenset(standbys),
        members=frozenset(key.rpartition("/")[2] for key in entries if key.startswith(f"{CLUSTER}members/")),
        votes={parent: frozenset(voters) for parent, voters in votes.items()},
    )


def _modified(entries: Mapping[str, Mapping[str, Any]], key: str) -> int:
    return int(entries[key]["mod_revision"]) if key in entries else 0


def look_request() -> dict[str, Any]:
    """One transaction that reads everything at one revision."""
    ranges = [{"key": _text(f"{CLUSTER}{name}")} for name in ("leader", "config", "sync")]
    for prefix in (f"{CLUSTER}members/", VOTES):
        ranges.append({"key": _text(prefix), "range_end": _text(_end(prefix))})
    return {"success": [{"request_range": wanted} for wanted in ranges]}


def release_request(view: View, voters: Sequence[str]) -> dict[str, Any]:
    """One transaction that deletes the leader key if nothing has changed since `view` and all vote."""
    leader = view.leader
    if leader is None:
        raise ValueError("there is no leader key to delete")
    key = _text(f"{CLUSTER}leader")
    votes = votes_key(leader.name, leader.created)
    members = f"{CLUSTER}members/"
    compare: list[dict[str, Any]] = [
        {"key": key, "target": "VALUE", "value": _text(leader.name)},
        {"key": key, "target": "CREATE", "create_revision": leader.created},
        {"key": key, "target": "MOD", "mod_revision": leader.modified},
        {"key": _text(f"{CLUSTER}config"), "target": "MOD", "mod_revision": view.settings},
        {"key": _text(f"{CLUSTER}sync"), "target": "MOD", "mod_revision": view.synchronous},
        # Of all members: none has joined since.
        {
            "key": _text(members),
            "range_end": _text(_end(members)),
            "target": "CREATE",
            "result": "LESS",
            "create_revision": view.revision + 1,
        },
    ]
    for voter in voters:
        vote = {"key": _text(f"{votes}{voter}"), "target": "VERSION", "result": "GREATER", "version": 0}
        compare.append(vote)
    return {"compare": compare, "success": [{"request_delete_range": {"key": key}}]}


@dataclass
class Etcd:
    """etcd's JSON interface (its gRPC gateway), one member after the other: this host's own comes first."""

    addresses: Sequence[str]
    seconds: float = 1.0
    # None: without TLS, for tests.
    context: ssl.SSLContext | None = None
    port: int = ETCD
    connections: dict[str, http.client.HTTPConnection] = field(default_factory=dict)
    turn: int = 0
    # Asked only when there is no other: a host that is silent.
    avoided: str = ""

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of one member; EtcdAway without one, and then the next member's turn comes."""
        answering = [address for address in self.addresses if address != self.avoided] or self.addresses
        address = answering[self.turn % len(answering)]
        try:
            answer, status = self._post(address, path, json.dumps(body))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.connections.pop(address, None)
            self.turn += 1
            raise EtcdAway(f"{address} does not answer: {error or type(error).__name__}") from error
        if status != http.HTTPStatus.OK:
            if answer.get("code") == 5:  # not found: gRPC's code
                raise KeyError(path)
            self.turn += 1
            raise EtcdAway(f"{address}: {answer.get('error') or answer.get('message') or status}")
        return answer

    def _post(self, address: str, path: str, body: str) -> tuple[dict[str, Any], int]:
        connection = self.connections.pop(address, None) or _connect(
            address, self.port, self.seconds, self.context
        )
        try:
            connection.request("POST", f"/v3/{path}", body)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        except BaseException:
            connection.close()
            raise
        self.connections[address] = connection
        return answer, response.status

    def look(self) -> View:
        return read_view(self.ask("kv/txn", look_request()))

    def grant(self, lease: int) -> None:
        self.ask("lease/grant", {"ID": str(lease), "TTL": VOTE_SECONDS})

    def keep(self, lease: int) -> bool:
        answer = self.ask("lease/keepalive", {"ID": str(lease)})
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    def revoke(self, lease: int) -> None:
        try:
            self.ask("lease/revoke", {"ID": str(lease)})
        except KeyError:
            return

    def vote(self, fence: Fence, me: str) -> None:
        body = {"key": _text(fence.votes + me), "value": _text("fenced"), "lease": str(fence.lease)}
        try:
            self.ask("kv/put", body)
        except KeyError as error:
            raise EtcdAway("the vote's lease has ended") from error

    def release(self, view: View, voters: Sequence[str]) -> bool:
        return bool(self.ask("kv/txn", release_request(view, voters)).get("succeeded"))


def _connect(
    address: str, port: int, seconds: float, context: ssl.SSLContext | None
) -> http.client.HTTPConnection:
    if context is None:
        return http.client.HTTPConnection(address, port, timeout=seconds)
    return http.client.HTTPSConnection(address, port, timeout=seconds, context=context)


Question = Callable[[str, float], None]


def ask_https(port: int, context: ssl.SSLContext) -> Question:
    """Asks a program for its version; whatever it says, it lives. The connection is kept."""
    kept: list[http.client.HTTPConnection] = []

    def ask(address: str, seconds: float) -> None:
        connection = kept.pop() if kept else _connect(address, port, seconds, context)
        connection.request("GET", "/version")
        connection.getresponse().read()
        kept.append(connection)

    return ask


def ask_postgres(address: str, seconds: float) -> None:
    """Asks whether TLS is spoken: the server itself answers, in one byte."""
    with socket.create_connection((address, POSTGRES), timeout=seconds) as connection:
        connection.sendall((8).to_bytes(4, "big") + (80877103).to_bytes(4, "big"))
        if not connection.recv(1):
            raise ConnectionResetError


def ask_ssh(address: str, seconds: float) -> None:
    """Waits for the greeting."""
    with socket.create_connection((address, SSH), timeout=seconds) as connection:
        if not connection.recv(1):
            raise ConnectionResetError


def answered(question: Question, address: str, seconds: float) -> bool:
    """Whether there was an answer, be it a refusal. A connection that only the kernel took is none."""
    try:
        question(address, seconds)
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
        return True
    except (ssl.SSLError, http.client.HTTPException):
        return True
    except OSError:
        return False
    return True


class Pulse:
    """Asks one host on all paths, each in a thread: the first always, the others when it is silent."""

    def __init__(self, address: str, paths: Sequence[Question], seconds: float):
        self.address = address
        self.seconds = seconds
        self.heard = time.monotonic()
        self.ended = threading.Event()
        for number, path in enumerate(paths):
            threading.Thread(target=self._run, args=(path, number == 0), daemon=True).start()
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        before = time.monotonic()
        while not self.ended.wait(TICK_SECONDS):
            now = time.monotonic()
            if now - before > ASLEEP_SECONDS:
                self.heard = now
            before = now

    def _run(self, path: Question, always: bool) -> None:
        while not self.ended.is_set():
            due = always or self.silence() >= SUSPECT_SECONDS
            if due and answered(path, self.address, self.seconds):
                self.heard = time.monotonic()
            self.ended.wait(CALM_SECONDS if due else CALM_SECONDS / 2)

    def silence(self) -> float:
        return time.monotonic() - self.heard


RECEIVER = (
    "select pg_is_in_recovery(), coalesce((select concat_ws(' ', status, sender_host,"
    " extract(epoch from clock_timestamp() - last_msg_receipt_time)) from pg_stat_wal_receiver), '')"
)


class Host:
    """The real world: this host, its peers, etcd."""

    def __init__(self, name: str, addresses: Mapping[str, str], limit: float):
        self.name, self.addresses, self.seconds = name, addresses, limit
        context = ssl.create_default_context(cafile=AUTHORITIES)
        context.load_cert_chain(CERTIFICATE, KEY)
        # Liveness only: a certificate that has run out is no sign of death.
        self.lenient = ssl.create_default_context(cafile=AUTHORITIES)
        self.lenient.check_hostname, self.lenient.verify_mode = False, ssl.CERT_NONE
        self.lenient.load_cert_chain(CERTIFICATE, KEY)
        self.pulse: Pulse | None = None
        own = [name, *(other for other in addresses if other != name)]
        self.etcd = Etcd([addresses[host] for host in own], context=context)
        self.now = time.monotonic
        self.look, self.grant, self.keep = self.etcd.look, self.etcd.grant, self.etcd.keep
        self.revoke, self.vote, self.release = self.etcd.revoke, self.etcd.vote, self.etcd.release

    def silence(self, host: str) -> float:
        if host not in self.addresses:
            return 0.0
        address = self.addresses[host]
        if self.pulse is None or self.pulse.address != address:
            if self.pulse:
                self.pulse.ended.set()
            https = [ask_https(port, self.lenient) for port in (ETCD, PATRONI)]
            self.pulse = Pulse(address, [*https, ask_postgres, ask_ssh], self.seconds)
        silence = self.pulse.silence()
        self.etcd.avoided = address if silence >= SUSPECT_SECONDS else ""
        if silence >= SUSPECT_SECONDS:
            sender, age = self.receiver()
            return min(silence, age) if sender == address else silence
        return silence

    def receiver(self) -> tuple[str, float]:
        """From which address the local server streams, and since when it has heard nothing, in seconds.

        The own address when it is no standby, an empty one when it streams from nobody."""
        command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "psql", "-XAtF,", "-c"]
        done = run([*command, RECEIVER], seconds=1)
        standby, _, told = done.stdout.strip().partition(",")
        if standby == "f":
            return self.addresses[self.name], 0.0
        status, sender, age, *_ = [*told.split(), "", "", ""]
        return (sender, float(age)) if status == "streaming" and age else ("", float("inf"))

    def following(self) -> str:
        sender, _ = self.receiver()
        return next((host for host, address in self.addresses.items() if address == sender), "")

    def load(self) -> Fence | None:
        return load_fence()

    def save(self, fence: Fence | None) -> None:
        save_fence(fence)

    def raise_fence(self, address: str) -> None:
        raise_fence(address)

    def fenced(self, address: str) -> bool:
        return fenced(address)

    def lift_fence(self) -> None:
        nft(f"add table inet {TABLE}\ndelete table inet {TABLE}\n")


def load_fence() -> Fence | None:
    return Fence(**json.loads(STATE.read_text())) if STATE.exists() else None


def save_fence(fence: Fence | None) -> None:
    STATE.parent.mkdir(parents=True, exist_ok=True)
    if fence is None:
        STATE.unlink(missing_ok=True)
    else:
        new = STATE.with_suffix(".new")
        with new.open("w") as file:
            json.dump(asdict(fence), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(STATE)
    directory = os.open(STATE.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def fence_rules(address: str) -> str:
    """What nft makes of a fence: ahead of all rules that let packets through, established ones too."""
    family = "ip6" if ":" in address else "ip"
    return f"""add table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  chain in {{
    type filter hook input priority -400
    {family} saddr {address} tcp sport {POSTGRES} drop
  }}
  chain out {{
    type filter hook output priority -400
    {family} daddr {address} tcp dport {POSTGRES} drop
    {family} daddr {address} tcp dport {{ {ETCD}, {PATRONI} }} meta skuid postgres reject with tcp reset
  }}
}}
"""


def raise_fence(address: str) -> None:
    """Raises OSError when the kernel does not take it."""
    nft(fence_rules(address))
    # Who waits for an answer already sends nothing that could be refused.
    waiting = f"( dport = :{ETCD} or dport = :{PATRONI} )"
    run(["ss", "--kill", "--no-header", "--tcp", "dst", address, waiting], seconds=1)


def fenced(address: str) -> bool:
    listed = run(["nft", "list", "table", "inet", TABLE]).stdout
    rules = f"saddr {address} tcp sport {POSTGRES} drop", f"daddr {address} tcp dport {POSTGRES} drop"
    return all(rule in listed for rule in rules)


def nft(rules: str) -> None:
    """Raises OSError when the kernel does not take the rules: without a fence nothing may go on."""
    done = subprocess.run(
        ["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False, timeout=10
    )
    if done.returncode:
        raise OSError(f"nft: {done.stderr.strip() or done.returncode}")


def run(command: Sequence[str], seconds: float = 10) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, cwd="/")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {seconds:.0f} s")


def write_figures(figures: Mapping[str, float]) -> None:
    lines = []
    for name, value in figures.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines.append(f"# HELP {name} {HELP[name]}\n# TYPE {name} {kind}\n{name} {value}\n")
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    new = FIGURES.with_suffix(".new")
    new.write_text("".join(lines))
    new.chmod(0o644)
    new.replace(FIGURES)


def watch(watcher: Watcher, once: bool) -> None:
    """Rounds without end; one only with `once`."""
    written, changed = float("-inf"), 0.0
    figures: dict[str, float] = {}
    watcher.restore()
    while True:
        try:
            watcher.round()
        except (OSError, subprocess.SubprocessError) as error:
            watcher.say(f"this round failed: {error}")
        now = time.monotonic()
        counted = {name: value for name, value in watcher.figures().items() if "silence" not in name}
        if counted != figures or not watcher.suspicious:
            changed = now
        if counted != figures or now - written >= FIGURES_SECONDS:
            write_figures(watcher.figures())
            written, figures = now, counted
        if once:
            return
        alert = watcher.suspicious and now - changed < PATIENCE_SECONDS
        time.sleep(ALERT_SECONDS if alert else CALM_SECONDS)


def main(words: Sequence[str] | None = None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-failover-watch", description=__doc__, formatter_class=layout)
    parser.add_argument("--name", required=True, help="this host's name in Patroni")
    parser.add_argument(
        "--host",
        required=True,
        action="append",
        metavar="NAME=ADDRESS",
        help="a database host of the inventory; all of them, this one too",
    )
    parser.add_argument(
        "--unreachable-seconds", required=True, type=float, help="how long a dead primary must be silent"
    )
    parser.add_argument("--once", action="store_true", help="look once, act, and end")
    parser.add_argument("--restore", action="store_true", help="put the fence back that was up, and end")
    options = parser.parse_args(words)
    addresses = dict(pair.split("=", 1) for pair in options.host)
    if options.restore:
        if fence := load_fence():
            raise_fence(fence.address)
        return
    world = Host(options.name, addresses, options.unreachable_seconds)
    watch(Watcher(options.name, addresses, world, options.unreachable_seconds), options.once)


if __name__ == "__main__":
    sys.exit(main())
