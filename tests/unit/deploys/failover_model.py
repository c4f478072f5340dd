"""A model of a cluster under relay-failover-watch: servers, packets, etcd, elections, and whatever may fail.

The watchers are the real ones; all that they touch is made here, and they can be stopped, killed or delayed
at every step. One run is one seed. What must never happen raises Lost: a write that the old primary
acknowledged and the new one does not have.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from greenlet import GreenletExit, greenlet

HOSTS = {"db1": "10.0.0.1", "db2": "10.0.0.2", "db3": "10.0.0.3"}
LEASE_SECONDS = 5.0
# A member applies a change of the cluster's settings within this time.
APPLY_SECONDS = 10.0


class Lost(Exception):
    """An acknowledged write is not on the new primary."""


class Unfenced(Exception):
    """A vote counts, or the key was deleted, and a host could confirm to the old primary."""


@dataclass
class Server:
    """PostgreSQL of one host: how much WAL it has on disk and from whom it streams."""

    name: str
    follows: str = ""
    has: int = 0
    up: bool = True


@dataclass
class Primary:
    """The old primary. `alone`: it acknowledges without a standby, as when strict mode is off."""

    written: int = 0
    acknowledged: int = 0
    confirmed: int = 0
    running: bool = True
    frozen: bool = False
    alone: bool = False


@dataclass
class Etcd:
    """Keys and leases; every change is a revision."""

    revision: int = 10
    leader: tuple[str, int, int] | None = ("db1", 5, 5)
    strict: bool = True
    settings: int = 3
    # Revision of the synchronous state, and whether it names standbys.
    synchronous: int = 4
    standbys: bool = True
    leases: dict[int, float] = field(default_factory=dict)
    votes: dict[str, int] = field(default_factory=dict)
    # Who has been deleted by a watcher: created revision.
    released: list[int] = field(default_factory=list)


class Model:
    """One run. `watch` is the program's module; `mutate` changes it before the run."""

    def __init__(self, watch: Any, seed: int, watcher: Any = None) -> None:
        self.watch, self.random = watch, random.Random(seed)  # noqa: S311
        self.watcher_class = watcher or watch.Watcher
        self.clock = 1000.0
        self.etcd, self.primary = Etcd(), Primary()
        self.servers = {name: Server(name, "db1") for name in ("db2", "db3")}
        self.kernel: dict[str, str] = {}
        self.disk: dict[str, Any] = {}
        self.silent = dict.fromkeys(HOSTS, False)
        self.cut: set[str] = set()
        self.wal: list[tuple[str, int]] = []
        self.confirmations: list[int] = []
        self.late: list[Callable[[], Any]] = []
        self.strict_since = 0.0
        self.polls: dict[str, dict[str, int]] = {}
        # Whether the old primary holds the key, or lost it otherwise than by a watcher.
        self.taken_over = True
        self.promoted: str = ""
        self.base = 0
        self.watchers: dict[str, greenlet] = {}
        self.instances: dict[str, Any] = {}
        for name in self.servers:
            self.boot_watcher(name, settled=True)

    # --- the watchers ---

    def boot_watcher(self, name: str, *, settled: bool = False) -> None:
        instance = self.watcher_class(name, HOSTS, World(self, name), 2.0)
        if settled:
            instance.view, instance.since = self.view(), self.clock - 100
        self.instances[name] = instance

        def life() -> None:
            instance.restore()
            while True:
                with suppress(OSError):
                    instance.round()
                self.pause()

        self.watchers[name] = greenlet(life)

    def pause(self) -> None:
        """Gives the turn to the rest of the world."""
        parent = greenlet.getcurrent().parent
        assert parent is not None
        parent.switch()

    def kill_watcher(self, name: str) -> None:
        if self.watchers[name]:
            self.watchers[name].throw(GreenletExit)
        self.boot_watcher(name)

    def reboot(self, name: str) -> None:
        """The kernel forgets its rules; what runs before Patroni puts them back from the disk."""
        self.kill_watcher(name)
        self.kernel.pop(name, None)
        if self.disk.get(name):
            self.kernel[name] = self.disk[name].address

    # --- etcd ---

    def view(self) -> Any:
        watch, etcd = self.watch, self.etcd
        votes: dict[str, set[str]] = {}
        for key in etcd.votes:
            parent, _, voter = key.rpartition("/")
            votes.setdefault(f"{parent}/", set()).add(voter)
        return watch.View(
            revision=etcd.revision,
            leader=watch.Leader(*etcd.leader) if etcd.leader else None,
            strict=etcd.strict,
            paused=False,
            settings=etcd.settings,
            synchronous=etcd.synchronous,
            synchronous_leader=etcd.leader[0] if etcd.leader else "",
            standbys=frozenset(self.servers) if etcd.standbys else frozenset(),
            members=frozenset(HOSTS),
            votes={parent: frozenset(voters) for parent, voters in votes.items()},
        )

    def expire(self, lease: int) -> None:
        self.etcd.leases.pop(lease, None)
        self.etcd.votes = {key: held for key, held in self.etcd.votes.items() if held != lease}

    def grant(self, lease: int) -> None:
        self.etcd.leases[lease] = self.clock + LEASE_SECONDS

    def keep(self, lease: int) -> bool:
        if lease in self.etcd.leases:
            self.etcd.leases[lease] = self.clock + LEASE_SECONDS
        return lease in self.etcd.leases

    def put_vote(self, key: str, lease: int) -> None:
        if lease not in self.etcd.leases:
            raise self.watch.EtcdAway("no such lease")
        self.etcd.revision += 1
        self.etcd.votes[key] = lease
        self.check_votes()

    def delete_leader(self, view: Any, voters: Sequence[str]) -> bool:
        """What release_request's transaction does."""
        etcd, leader = self.etcd, view.leader
        same = etcd.leader == (leader.name, leader.created, leader.modified)
        votes = self.watch.votes_key(leader.name, leader.created)
        same = same and (etcd.settings, etcd.synchronous) == (view.settings, view.synchronous)
        if not same or not all(votes + v in etcd.votes for v in voters):
            return False
        self.etcd.revision += 1
        self.etcd.leader = None
        self.etcd.released.append(leader.created)
        self.taken_over = False
        self.check_votes()
        if self.primary.acknowledged > max(server.has for server in self.servers.values()):
            raise Lost("the key was deleted, and what was acknowledged is on the old primary alone")
        return True

    def take_leader(self, name: str) -> bool:
        if self.etcd.leader is not None:
            return False
        self.etcd.revision += 1
        self.etcd.leader = (name, self.etcd.revision, self.etcd.revision)
        self.taken_over = self.taken_over or name == "db1"
        # What candidates know of each other counts for one election.
        self.polls.clear()
        return True

    # --- what must never be ---

    def check_votes(self) -> None:
        if not self.taken_over:
            open_to_old = [n for n, s in self.servers.items() if s.follows == "db1" and n not in self.kernel]
            if open_to_old:
                raise Unfenced(f"the key was deleted, and {open_to_old} can confirm to the old primary")
        if self.etcd.leader is None or not self.etcd.votes:
            return
        name, created, _ = self.etcd.leader
        parent = self.watch.votes_key(name, created)
        for voter in self.servers:
            if parent + voter in self.etcd.votes and self.kernel.get(voter) != HOSTS[name]:
                raise Unfenced(f"{voter} votes against {name}")

    def check_loss(self) -> None:
        if self.promoted and self.primary.acknowledged > self.base:
            raise Lost(f"{self.primary.acknowledged} acknowledged, {self.promoted} has {self.base}")

    # --- everything that may happen next ---

    def connected(self, name: str) -> bool:
        """Whether packets pass between the old primary's PostgreSQL and a host's."""
        return name not in self.cut and self.kernel.get(name) != HOSTS["db1"]

    def write(self) -> None:
        primary = self.primary
        if primary.running and not primary.frozen:
            primary.written += 1
            self.acknowledge()

    def acknowledge(self) -> None:
        primary = self.primary
        if primary.running and not primary.frozen:
            limit = primary.written if primary.alone else primary.confirmed
            primary.acknowledged = max(primary.acknowledged, limit)
            self.check_loss()

    def send_wal(self) -> None:
        for server in self.servers.values():
            if server.follows == "db1" and self.primary.running and not self.primary.frozen:
                self.wal.append((server.name, self.primary.written))

    def receive_wal(self) -> None:
        if not self.wal:
            return
        name, position = self.wal.pop(self.random.randrange(len(self.wal)))
        server = self.servers[name]
        if server.follows == "db1" and self.connected(name):
            server.has = max(server.has, position)

    def confirm(self) -> None:
        server = self.random.choice(list(self.servers.values()))
        if server.follows == "db1" and self.connected(server.name):
            self.confirmations.append(server.has)

    def receive_confirmation(self) -> None:
        """It may have been on its way, or in the frozen host's buffers, for any time."""
        if self.confirmations and self.primary.running:
            at = self.random.randrange(len(self.confirmations))
            self.primary.confirmed = max(self.primary.confirmed, self.confirmations.pop(at))
            self.acknowledge()

    def poll(self) -> None:
        """A candidate asks the other how far it is, as Patroni's leader race does."""
        if self.etcd.leader is None and not self.promoted:
            name = self.random.choice(list(self.servers))
            self.polls[name] = {other: self.servers[other].has for other in self.servers if other != name}

    def race(self) -> None:
        """A candidate that knows itself ahead takes the key."""
        ready = [n for n, told in self.polls.items() if all(p <= self.servers[n].has for p in told.values())]
        if ready and self.etcd.leader is None and not self.promoted:
            self.take_leader(self.random.choice(ready))

    def promote(self) -> None:
        if self.etcd.leader and self.etcd.leader[0] in self.servers and not self.promoted:
            self.promoted = self.etcd.leader[0]
            self.servers[self.promoted].follows = self.promoted
            self.base = self.servers[self.promoted].has
            self.check_loss()

    def follow(self) -> None:
        if self.promoted:
            self.random.choice(list(self.servers.values())).follows = self.promoted

    def take_back(self) -> None:
        """The old primary, alive, takes the key again before another does."""
        if self.primary.running and not self.primary.frozen and not self.promoted:
            self.take_leader("db1")

    def demote(self) -> None:
        if self.etcd.leader and self.etcd.leader[0] != "db1" and not self.primary.frozen:
            self.primary.running = False

    def change_settings(self) -> None:
        self.etcd.strict = not self.etcd.strict
        self.etcd.revision += 1
        self.etcd.settings = self.etcd.revision
        self.strict_since = self.clock

    def apply_settings(self) -> None:
        """The primary reads the settings, as long as the key names it; late by APPLY_SECONDS at most."""
        if not self.etcd.leader or self.etcd.leader[0] != "db1":
            return
        if self.primary.alone == self.etcd.strict:
            self.primary.alone = not self.etcd.strict
            self.name_standbys(False)
        # Patroni names standbys when they have what was acknowledged without them.
        elif self.etcd.strict and not self.etcd.standbys and self.confirmed():
            self.name_standbys(True)

    def confirmed(self) -> bool:
        return self.primary.confirmed >= self.primary.acknowledged

    def name_standbys(self, named: bool) -> None:
        self.etcd.revision += 1
        self.etcd.synchronous, self.etcd.standbys = self.etcd.revision, named

    def tick(self) -> None:
        self.clock += self.random.choice((0.1, 0.5, 2.0, 11.0))
        for lease in [lease for lease, end in self.etcd.leases.items() if end < self.clock]:
            self.expire(lease)
        if self.clock - self.strict_since > APPLY_SECONDS:
            self.apply_settings()

    def come_late(self) -> None:
        """A request whose sender gave it up arrives."""
        if self.late:
            request = self.late.pop(self.random.randrange(len(self.late)))
            try:
                request()
            except self.watch.EtcdAway:
                return

    def disturb(self) -> None:
        what, name = self.random.random(), self.random.choice(list(self.servers))
        if what < 0.35:
            self.silent[name] = not self.silent[name]
        elif what < 0.55:
            self.cut ^= {name}
        elif what < 0.65:
            self.kill_watcher(name)
        elif what < 0.8:
            self.reboot(name)
        elif what < 0.9:
            self.primary.frozen = not self.primary.frozen
        elif what < 0.97:
            self.change_settings()
        else:
            self.silent = dict.fromkeys(HOSTS, True)

    def step_watcher(self) -> None:
        self.watchers[self.random.choice(list(self.watchers))].switch()
        self.check_votes()

    def run(self, steps: int) -> None:
        """Raises Lost or Unfenced when that can happen."""
        likely: list[tuple[Callable[[], None], int]] = [
            (self.step_watcher, 40),
            (self.write, 5),
            (self.send_wal, 6),
            (self.receive_wal, 10),
            (self.confirm, 8),
            (self.receive_confirmation, 8),
            (self.poll, 3),
            (self.race, 2),
            (self.promote, 3),
            (self.follow, 1),
            (self.take_back, 1),
            (self.demote, 1),
            (self.tick, 3),
            (self.come_late, 2),
            (self.disturb, 1),
        ]
        actions, weights = [action for action, _ in likely], [weight for _, weight in likely]
        try:
            for action in self.random.choices(actions, weights, k=steps):
                action()
        finally:
            for watcher in self.watchers.values():
                if watcher:
                    watcher.throw(GreenletExit)


class World:
    """One host's view of the model, for a real Watcher."""

    def __init__(self, model: Model, name: str) -> None:
        self.model, self.name = model, name

    def now(self) -> float:
        return self.model.clock

    def silence(self, host: str) -> float:
        return 5.0 if self.model.silent[self.name] else 0.0

    def following(self) -> str:
        follows = self.model.servers[self.name].follows
        self.model.pause()
        return follows

    def _ask(self, request: Callable[[], Any]) -> Any:
        """The request is answered, or it is given up: then it was done, comes late, or never comes."""
        model = self.model
        model.pause()
        fate = model.random.random()
        if fate < 0.8:
            answer = request()
            model.pause()
            return answer
        if fate < 0.87:
            request()
        elif fate < 0.94:
            model.late.append(request)
        model.pause()
        raise model.watch.EtcdAway("no answer")

    def look(self) -> Any:
        return self._ask(self.model.view)

    def grant(self, lease: int) -> None:
        self._ask(lambda: self.model.grant(lease))

    def keep(self, lease: int) -> bool:
        return bool(self._ask(lambda: self.model.keep(lease)))

    def revoke(self, lease: int) -> None:
        self._ask(lambda: self.model.expire(lease))

    def vote(self, fence: Any, me: str) -> None:
        self._ask(lambda: self.model.put_vote(fence.votes + me, fence.lease))

    def release(self, view: Any, voters: Sequence[str]) -> bool:
        return bool(self._ask(lambda: self.model.delete_leader(view, voters)))

    def load(self) -> Any:
        return self.model.disk.get(self.name)

    def save(self, fence: Any) -> None:
        self.model.pause()
        self.model.disk[self.name] = fence
        self.model.pause()

    def raise_fence(self, address: str) -> None:
        self.model.pause()
        self.model.kernel[self.name] = address

    def fenced(self, address: str) -> bool:
        return self.model.kernel.get(self.name) == address

    def lift_fence(self) -> None:
        self.model.pause()
        self.model.kernel.pop(self.name, None)
