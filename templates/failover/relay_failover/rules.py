"""The protocol by which a dead primary's leader key is released, and why that is safe.

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
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

VOTES = "/relay-failover/"
# A vote outlives its watcher by so long; etcd grants no less than one and a half election time-outs.
VOTE_SECONDS = 5
# Settings and leader must have been so for this long: Patroni's members apply a change within its loop_wait.
SETTLED_SECONDS = 30.0
# Other paths are asked when the first has been silent for so long, and etcd is read this often meanwhile.
SUSPECT_SECONDS = 0.75
LOOK_SECONDS = 2.0


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
