"""The watcher's protocol against a world that does its worst.

No acknowledged write is lost, and each rule of the protocol is needed for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.deploys.failover_model import Lost, Model, Unfenced
from tests.unit.deploys.scripts import load

RUNS, STEPS = 200, 1500
# Of these seeds an early one shows the rarest loss, so that the tests are quick.
BROKEN_SEEDS = range(400, 1900)


@pytest.fixture(autouse=True)
def quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """What the watchers say is not of interest here."""


def run(watch: Any, seed: int, watcher: Any = None) -> Model:
    model = Model(watch, seed, watcher)
    model.run(STEPS)
    return model


def test_no_acknowledged_write_is_lost() -> None:
    watch = load("failover/relay_failover/rules.py")
    released = promoted = lifted = 0
    for seed in range(RUNS):
        model = run(watch, seed)
        released += len(model.etcd.released)
        promoted += bool(model.promoted)
        lifted += bool(model.promoted) and not model.kernel
    # The runs are worth something: keys were deleted, others promoted, fences lifted after that.
    assert released > RUNS / 10
    assert promoted > RUNS / 10
    assert lifted > RUNS / 20


def unfenced(watch: Any, watcher: Any) -> None:
    """Votes, and lets packets through."""
    watcher.put_up = lambda self, fence: self.store(fence)
    watcher.check_fence = lambda self: None


def vote_before_fence(watch: Any, watcher: Any) -> None:
    """Puts the fence up after the vote."""

    def vote(self: Any, view: Any, fence: Any) -> None:
        watch.Watcher.vote(self, view, fence)
        self.world.raise_fence(self.fence.address)

    watcher.put_up, watcher.vote = (lambda self, fence: self.store(fence)), vote
    watcher.check_fence = lambda self: None


def forgetful(watch: Any, watcher: Any) -> None:
    """Keeps the fence in memory only."""

    def store(self: Any, fence: Any) -> None:
        self.fence = fence

    watcher.store = store


def fence_late_on_disk(watch: Any, watcher: Any) -> None:
    """Writes the fence to disk after the first vote."""

    def put_up(self: Any, fence: Any) -> None:
        self.world.raise_fence(fence.address)
        self.fence = fence

    watcher.put_up = put_up
    original = watch.Watcher.vote

    def vote(self: Any, view: Any, fence: Any) -> None:
        self.world_save, self.world.save = self.world.save, lambda fence: None
        try:
            original(self, view, fence)
        finally:
            self.world.save = self.world_save
        self.store(self.fence)

    watcher.vote = vote


def majority(watch: Any, watcher: Any) -> None:
    """Is content with one vote of two."""
    decide = watch.decide

    def lax(me: str, hosts: Any, sight: Any, fence: Any, limit: float) -> Any:
        decision = decide(me, hosts, sight, fence, limit)
        voting = fence and sight.view and me in sight.view.votes.get(fence.votes, ())
        return watch.Decision(watch.Act.RELEASE) if decision.act is watch.Act.VOTE and voting else decision

    watch.decide = lax
    watcher.release = lambda self, view, fence: self.world.release(view, [self.name])


def stale_votes(watch: Any, watcher: Any) -> None:
    """Deletes the key without comparing the votes once more."""
    watcher.release = lambda self, view, fence: self.world.release(view, [])


def stale_settings(watch: Any, watcher: Any) -> None:
    """Deletes the key though the settings have changed since they were read."""

    def release(self: Any, view: Any, fence: Any) -> None:
        voters = [host for host in self.hosts if host != fence.host]
        model = self.world.model

        def delete() -> bool:
            etcd = model.etcd
            same = replace(view, settings=etcd.settings, synchronous=etcd.synchronous)
            return bool(model.delete_leader(same, voters))

        self.world._ask(delete)

    watcher.release = release


def unconfirmed(watch: Any, watcher: Any) -> None:
    """Does not ask whether a standby has what was acknowledged before strict mode was on."""
    look = watcher.see

    def see(self: Any) -> Any:
        sight = look(self)
        named = sight.view and replace(sight.view, standbys=frozenset({"db2", "db3"}))
        return replace(sight, view=named)

    watcher.see = see


def unsettled(watch: Any, watcher: Any) -> None:
    """Trusts settings that were made a moment ago."""
    watcher.settled = lambda self: True


def lift_without_revoking(watch: Any, watcher: Any) -> None:
    """Lifts while its vote may still be counted."""
    watcher.withdraw = lambda self, fence: self.store(replace(fence, lease=0))


def lift_at_once(watch: Any, watcher: Any) -> None:
    """Lifts without reading the key again after the vote was withdrawn."""
    withdraw = watch.Watcher.withdraw

    def both(self: Any, fence: Any) -> None:
        withdraw(self, fence)
        if self.decision.act is watch.Act.WITHDRAW:
            self.lift(fence)

    watcher.withdraw = both


def lift_for_any_leader(watch: Any, watcher: Any) -> None:
    """Lifts as soon as there is a new leader, while the local server still streams from the old one."""
    watch._after = lambda leader, following, fence: watch.Decision(watch.Act.LIFT)


def lift_without_a_leader(watch: Any, watcher: Any) -> None:
    """Lifts when the key is gone."""
    decide = watch.decide

    def hasty(me: str, hosts: Any, sight: Any, fence: Any, limit: float) -> Any:
        if fence and sight.view and sight.view.leader is None:
            return watch.Decision(watch.Act.LIFT)
        return decide(me, hosts, sight, fence, limit)

    watch.decide = hasty


def forget_the_lease(watch: Any, watcher: Any) -> None:
    """Takes a new lease without ending the old one, whose vote may still be under way."""

    def vote(self: Any, view: Any, fence: Any) -> None:
        self.store(replace(fence, lease=watch.secrets.randbelow(2**62) + 1))
        self.world.grant(self.fence.lease)
        self.world.vote(self.fence, self.name)

    watcher.vote = vote


BREAKS = [
    unfenced,
    vote_before_fence,
    forgetful,
    fence_late_on_disk,
    majority,
    stale_votes,
    unconfirmed,
    lift_without_revoking,
    lift_at_once,
    lift_for_any_leader,
    lift_without_a_leader,
    forget_the_lease,
]


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
def test_without_a_rule_a_write_is_lost(broken: Callable[[Any, Any], None]) -> None:
    watch = load("failover/relay_failover/rules.py")
    watcher = type("Broken", (watch.Watcher,), {})
    broken(watch, watcher)
    for seed in BROKEN_SEEDS:
        try:
            run(watch, seed, watcher)
        except (Lost, Unfenced):
            return
    pytest.fail(f"{broken.__name__}: not noticed in {len(BROKEN_SEEDS)} runs")
