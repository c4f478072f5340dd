"""How a release goes: its steps, what is watched meanwhile, when it goes back. It decides; a `Fleet` acts.

begun → canary → rest → released. Whatever is wrong on the way leads to: undoing → rolled back. The state is
written down before a step begins, so that whoever comes after an interruption goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from deploys.lib.errors import DeployError
from deploys.run.canary import Limits, Sample, Snapshot, sample, worse
from deploys.run.releases import RELEASED, ROLLED_BACK

BEGUN, CANARY, REST, UNDOING = "begun", "canary", "rest", "undoing"
# Swarm's words for an update that it has undone or stopped.
UNDONE = ("rollback_started", "rollback_paused", "rollback_completed", "paused")
PAUSE_SECONDS = 5.0
# A failed question is no verdict: the database may be failing over.
PROBES_FAILED = 3


class Lost(DeployError):
    """The fleet did not answer; nothing is known of what it does. Another try may find out."""


class Bad(DeployError):
    """The new version is not to go on; the message says why."""


class Outcome(Enum):
    """How a run ended."""

    RELEASED = RELEASED
    ROLLED_BACK = ROLLED_BACK
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Look:
    """What runs: Swarm's word for the update, how many replicas there shall be, on which nodes a healthy one
    of the new and of the old version runs, and which tasks of the new one have failed."""

    state: str
    wanted: int
    new: tuple[str, ...]
    old: tuple[str, ...]
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Pace:
    """How long things may take, in seconds, and how many calls make a comparison worth something."""

    bake: float = 120
    # One replica: the old one ends its calls, the new one becomes healthy.
    replica: float = 300
    # How long answers may be missing, of hosts or of Prometheus.
    patience: float = 60
    calls: int = 50


class Fleet(Protocol):
    """What a release does to a fleet, and what it sees of it. Lost when the fleet does not answer."""

    def prepare(self) -> None:
        """Image and schema are there; Bad when they cannot be."""

    def trial(self) -> None:
        """Starts the new version where no customer reaches it, and asks it; Bad when it is not well."""

    def canary(self) -> None:
        """Lets one replica be replaced."""

    def rest(self) -> None:
        """Lets the others be replaced."""

    def back(self) -> None:
        """Lets every replica of the new version be replaced by the last good one."""

    def look(self) -> Look:
        """What runs of the version that is being released."""

    def back_look(self) -> Look:
        """What runs, seen from the last good version: `new` are replicas of it."""

    def count(self) -> Snapshot | None:
        """Prometheus' counters now; None when it cannot be asked."""

    def probe(self, nodes: Sequence[str]) -> list[str]:
        """What is wrong with the answers of these nodes' replicas to our own questions."""

    def problems(self) -> str:
        """Why tasks failed, in several lines."""

    def now(self) -> float:
        """Seconds of a clock that never goes back."""

    def sleep(self, seconds: float) -> None:
        """Waits."""


@dataclass
class Rollout:
    """One run of a release from `state` on. `record` writes a state and a reason where all can read them."""

    fleet: Fleet
    record: Callable[[str, str], None]
    say: Callable[[str], None]
    pace: Pace = field(default_factory=Pace)
    limits: Limits = field(default_factory=Limits)
    state: str = BEGUN
    reason: str = ""
    # How the way back ends: of a release it is a failure, of a `rollback` all that was wanted.
    undone: str = ROLLED_BACK
    _known: frozenset[str] | None = None
    _probes: int = 0
    _beside: Sample = field(default_factory=Sample)

    def run(self) -> Outcome:
        """Until the release has ended, or the fleet cannot be reached any more."""
        steps: Mapping[str, Callable[[], str]] = {
            BEGUN: self._begin,
            CANARY: self._canary,
            REST: self._rest,
            UNDOING: self._undo,
        }
        while self.state in steps:
            try:
                following = self._next(steps[self.state])
                self.record(following, self.reason)
            except DeployError as lost:
                self.reason = str(lost)
                return Outcome.INTERRUPTED
            self.state = following
        return Outcome(self.state)

    def _next(self, step: Callable[[], str]) -> str:
        """The state that a step leads to."""
        try:
            return step()
        except Bad as bad:
            if self.state == UNDOING:
                raise
            self.reason = str(bad)
            self.say(f"not well: {bad}")
            # Before the canary no replica was touched.
            return ROLLED_BACK if self.state == BEGUN else UNDOING

    def _begin(self) -> str:
        self.say("image and schema")
        self.fleet.prepare()
        self.say("trial: a replica that no customer reaches")
        self.fleet.trial()
        return CANARY

    def _canary(self) -> str:
        """One replica takes its share of the calls, as the edges give it to any of them."""
        self._known = self._seen().failed
        self.say("canary: one replica is replaced")
        self.fleet.canary()
        self._until(lambda seen: len(seen.new) >= 1, "the canary", 1)
        before = self._counted()
        self.say(f"canary: watched for {self.pace.bake:.0f} s beside its neighbours")
        end = self.fleet.now() + self.pace.bake
        new = Sample()
        while (left := end - self.fleet.now()) > 0:
            self.fleet.sleep(min(PAUSE_SECONDS, left))
            seen = self._watched()
            if not seen.new:
                raise Bad("the canary is gone")
            new = self._compared(before, seen, new)
        # A Prometheus that has died meanwhile proves nothing.
        self._counted()
        new = self._compared(before, self._watched(), new)
        if not new.calls and self._beside.calls >= self.pace.calls:
            raise Bad("no call reached the canary: is its node drained? `python -m deploys edge status ENV`")
        few = "" if new.calls >= self.pace.calls else ": few; the trial and our own questions are the proof"
        self.say(f"canary: {new}{few}; beside it: {self._beside}")
        return REST

    def _rest(self) -> str:
        """The others, one after the other, watched on."""
        seen = self._seen()
        self._known = seen.failed if self._known is None else self._known
        before = self._counted()
        self.say("rest: the other replicas are replaced one after the other")
        self.fleet.rest()
        self.fleet.sleep(PAUSE_SECONDS)
        new = Sample()

        def whole(seen: Look) -> bool:
            nonlocal new
            new = self._compared(before, seen, new)
            return len(seen.new) >= seen.wanted and not seen.old and seen.state in ("", "completed")

        seen = self._until(whole, "the rest", max(1, seen.wanted))
        if wrong := self.fleet.probe(seen.new):
            self.fleet.sleep(PAUSE_SECONDS)
            wrong = self.fleet.probe(seen.new)
            if wrong:
                raise Bad("; ".join(wrong))
        return RELEASED

    def _undo(self) -> str:
        """The last good version everywhere. Who cannot bring it about is interrupted and may try again."""
        self.say("going back: the last good version on every replica")
        self.fleet.back()
        self.fleet.sleep(PAUSE_SECONDS)
        seen = self.fleet.back_look()
        end = self.fleet.now() + self.pace.replica * max(1, seen.wanted)
        while not (len(seen.new) >= seen.wanted and not seen.old and seen.state in ("", "completed")):
            if self.fleet.now() > end or seen.state in UNDONE:
                raise Lost(f"the last good version does not become healthy:\n{self.fleet.problems()}")
            self.fleet.sleep(PAUSE_SECONDS)
            seen = self.fleet.back_look()
        return self.undone

    def _until(self, done: Callable[[Look], bool], what: str, replicas: int) -> Look:
        end = self.fleet.now() + replicas * self.pace.replica
        while True:
            seen = self._watched()
            if done(seen):
                return seen
            if self.fleet.now() > end:
                raise Bad(f"{what} did not become healthy in time:\n{self.fleet.problems()}")
            self.fleet.sleep(PAUSE_SECONDS)

    def _watched(self) -> Look:
        """What runs; Bad when Swarm has given up, a task failed, or answers are wrong again and again."""
        seen = self._seen()
        if seen.state in UNDONE:
            raise Bad(f"Swarm has stopped the update ({seen.state}):\n{self.fleet.problems()}")
        if seen.failed - (self._known or frozenset()):
            raise Bad(f"replicas of the new version fail:\n{self.fleet.problems()}")
        wrong = self.fleet.probe(seen.new) if seen.new else []
        self._probes = self._probes + 1 if wrong else 0
        if self._probes >= PROBES_FAILED:
            raise Bad("; ".join(wrong))
        return seen

    def _seen(self) -> Look:
        """What runs, however long the fleet takes to say so, within patience."""
        end = self.fleet.now() + self.pace.patience
        while True:
            try:
                return self.fleet.look()
            except Lost:
                if self.fleet.now() > end:
                    raise
                self.fleet.sleep(PAUSE_SECONDS)

    def _counted(self) -> Snapshot:
        """Prometheus' counters; what cannot be measured is not let through."""
        end = self.fleet.now() + self.pace.patience
        while (found := self.fleet.count()) is None:
            if self.fleet.now() > end:
                raise Bad("Prometheus does not answer: the new version cannot be compared")
            self.fleet.sleep(PAUSE_SECONDS)
        return found

    def _compared(self, before: Snapshot, seen: Look, last: Sample) -> Sample:
        """What the new replicas have done since `before`; Bad when they do worse than those beside them."""
        after = self.fleet.count()
        if after is None:
            return last
        new = sample(before, after, seen.new)
        if seen.old:
            self._beside = sample(before, after, seen.old)
        if found := worse(new, self._beside, self.limits):
            raise Bad("the new version does worse: " + "; ".join(found))
        return new
