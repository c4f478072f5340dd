"""How a release decides: every order of answers ends it, or leaves it to be gone on with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploys.lib.errors import DeployError
from deploys.run import canary, rollout
from deploys.run.canary import QUERIES, TIMES, Limits, Sample, Snapshot, quantile, sample, worse
from deploys.run.figures import Row
from deploys.run.rollout import Bad, Look, Lost, Outcome, Pace, Rollout
from tests.documents import yaml_of

NODES = ("app1", "app2", "app3")
PACE = Pace(bake=60, replica=100, patience=20, calls=50)
GOOD = "good"
# What may go wrong at any question or act.
EVENTS = (
    GOOD, "lost", "bad", "swarm gives up", "task fails", "unhealthy", "probe", "unmeasured", "errors", "slow",
)  # fmt: skip


class Fleet:
    """A model of a fleet under Swarm. `script` is what happens next; once it is used up all is well."""

    def __init__(self, script: Sequence[str] = (), new: int = 0) -> None:
        self.script = list(script)
        self.new = new
        self.clock = 0.0
        self.state = ""
        self.failed: set[str] = set()
        self.acts: list[str] = []
        self.unhealthy_until = 0.0
        self.starved = False
        self.calls, self.broken, self.quick = (dict.fromkeys(NODES, 0.0) for _ in range(3))

    def event(self, *possible: str) -> str:
        if not self.script or self.script[0] not in (*possible, GOOD):
            # Not of this question: it comes with one that it can happen to.
            return GOOD
        return self.script.pop(0)

    def act(self, name: str) -> None:
        found = self.event("lost", "bad")
        if found == "lost":
            raise Lost("no route to host")
        if found == "bad":
            raise Bad(f"{name} failed")
        self.acts.append(name)

    def prepare(self) -> None:
        self.act("prepare")

    def trial(self) -> None:
        self.act("trial")

    def canary(self) -> None:
        self.act("canary")
        self.new, self.state = max(1, self.new), "updating"

    def rest(self) -> None:
        self.act("rest")
        self.new, self.state = len(NODES), "completed"

    def back(self) -> None:
        self.act("back")
        self.new, self.state = 0, "completed"

    def look(self) -> Look:
        found = self.event("lost", "swarm gives up", "task fails", "unhealthy")
        if found == "lost":
            raise Lost("no route to host")
        if found == "swarm gives up":
            self.state = "rollback_started"
        if found == "task fails":
            self.failed.add(f"t{len(self.failed)}")
        if found == "unhealthy":
            self.unhealthy_until = self.clock + 150
        new = NODES[: self.new] if self.clock >= self.unhealthy_until else ()
        return Look(self.state, len(NODES), new, NODES[self.new :], frozenset(self.failed))

    def back_look(self) -> Look:
        found = self.event("lost", "unhealthy")
        if found == "lost":
            raise Lost("no route to host")
        if found == "unhealthy":
            self.unhealthy_until = self.clock + 150
        old = NODES[self.new :] if self.clock >= self.unhealthy_until else ()
        return Look(self.state, len(NODES), old, NODES[: self.new])

    def count(self) -> Snapshot | None:
        found = self.event("unmeasured", "errors", "slow")
        if found == "unmeasured":
            return None
        for node in NODES:
            new = node in NODES[: self.new]
            self.calls[node] += 0 if self.starved and new else 100
            self.broken[node] += 50 if found == "errors" and new else 0
            self.quick[node] += 0 if found == "slow" and new else 100
        timed: dict[tuple[str, str], float] = {}
        for node in NODES:
            whole = self.calls[node]
            timed |= {(node, "0.05"): self.quick[node], (node, "1"): whole, (node, "+Inf"): whole}
        calls = {(node, ""): whole for node, whole in self.calls.items()}
        failed = {(node, ""): broken for node, broken in self.broken.items()}
        return Snapshot(dict.fromkeys(NODES, 1.0), calls, failed, [timed, {}])

    def probe(self, nodes: Sequence[str]) -> list[str]:
        return [f"{nodes[0]} answers 500"] if self.event("probe") == "probe" else []

    def problems(self) -> str:
        return "  app1: Failed"

    def now(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.clock += seconds


Recorded = list[tuple[str, str]]


def run(fleet: Fleet, state: str = rollout.BEGUN, undone: str = "rolled back") -> tuple[Outcome, Recorded]:
    recorded: Recorded = []

    def record(state: str, reason: str) -> None:
        recorded.append((state, reason))

    one = Rollout(fleet, record, lambda _: None, PACE, state=state, undone=undone)
    return one.run(), recorded


def states(recorded: list[tuple[str, str]]) -> list[str]:
    return [state for state, _ in recorded]


def test_a_good_release() -> None:
    fleet = Fleet()
    outcome, recorded = run(fleet)
    assert outcome is Outcome.RELEASED
    assert states(recorded) == ["canary", "rest", "released"]
    assert fleet.acts == ["prepare", "trial", "canary", "rest"]
    assert fleet.clock >= PACE.bake


@settings(max_examples=4 * settings().max_examples)
@given(st.lists(st.sampled_from(EVENTS), max_size=60))
def test_any_order_of_answers_ends_in_one_of_three_ways(script: list[str]) -> None:
    fleet = Fleet(script)
    outcome, recorded = run(fleet)
    last = recorded[-1][0] if recorded else rollout.BEGUN
    if outcome is Outcome.RELEASED:
        assert last == "released"
        assert fleet.new == len(NODES)
        assert "back" not in fleet.acts
    elif outcome is Outcome.ROLLED_BACK:
        assert last == "rolled back"
        assert fleet.new == 0
        assert recorded[-1][1], "a reason is told"
    else:
        assert last in (rollout.BEGUN, rollout.CANARY, rollout.REST, rollout.UNDOING)
        # Whoever comes next, to a fleet that is well again, ends it.
        fleet.script, fleet.unhealthy_until, fleet.failed = [], 0, set()
        again, more = run(fleet, last)
        assert again is (Outcome.ROLLED_BACK if last == rollout.UNDOING else Outcome.RELEASED)
        assert more[-1][0] == again.value
        assert fleet.new == (0 if again is Outcome.ROLLED_BACK else len(NODES))
    assert states(recorded).count("released") + states(recorded).count("rolled back") <= 1
    # The rest is never replaced before a canary was watched, and nothing after the way back.
    if "rest" in fleet.acts:
        assert "canary" in fleet.acts[: fleet.acts.index("rest")]


BAD = [
    (["bad"], [], "prepare failed"),
    ([GOOD, "bad"], ["prepare"], "trial failed"),
    ([GOOD, GOOD, GOOD, "bad"], ["prepare", "trial", "back"], "canary failed"),
    ([GOOD] * 4 + ["swarm gives up"], ["prepare", "trial", "canary", "back"], "rollback_started"),
    (
        [GOOD, GOOD, GOOD, GOOD, "task fails"],
        ["prepare", "trial", "canary", "back"],
        "replicas of the new version",
    ),
    ([GOOD] * 4 + ["unhealthy"], ["prepare", "trial", "canary", "back"], "did not become healthy in time"),
    (["probe"] * 3, ["prepare", "trial", "canary", "back"], "answers 500"),
    (["errors"] * 2, ["prepare", "trial", "canary", "back"], "calls failed"),
    (["slow"] * 2, ["prepare", "trial", "canary", "back"], "the relay's own time"),
    (["unmeasured"] * 30, ["prepare", "trial", "canary", "back"], "Prometheus does not answer"),
]


@pytest.mark.parametrize(("script", "acts", "reason"), BAD)
def test_what_is_bad_is_undone_and_told(script: list[str], acts: list[str], reason: str) -> None:
    fleet = Fleet(script)
    outcome, recorded = run(fleet)
    assert outcome is Outcome.ROLLED_BACK
    assert fleet.acts == acts
    assert reason in recorded[-1][1]
    assert fleet.new == 0


@pytest.mark.parametrize(("wrong", "ends"), [("xx.xx.", Outcome.RELEASED), ("xxx", Outcome.ROLLED_BACK)])
def test_a_few_wrong_answers_are_no_verdict(
    wrong: str, ends: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, answers = Fleet(), iter(wrong)
    monkeypatch.setattr(fleet, "probe", lambda _: ["500"] if next(answers, ".") == "x" else [])
    assert run(fleet)[0] is ends


def test_a_canary_that_no_call_reaches_proves_nothing() -> None:
    """Its node is drained at the edges, perhaps; with nobody calling at all, the trial must do."""
    fleet = Fleet()
    fleet.starved = True
    outcome, recorded = run(fleet)
    assert outcome is Outcome.ROLLED_BACK
    assert "no call reached the canary" in recorded[-1][1]
    quiet = Fleet()
    quiet.count = lambda: Snapshot({}, {}, {}, [{}, {}])  # type: ignore[method-assign]
    assert run(quiet)[0] is Outcome.RELEASED


def test_a_fleet_that_is_silent_for_a_moment_is_waited_for() -> None:
    assert run(Fleet([GOOD] * 6 + ["lost"] * 2))[0] is Outcome.RELEASED
    assert run(Fleet([GOOD] * 6 + ["lost"] * 30))[0] is Outcome.INTERRUPTED


def test_a_state_that_cannot_be_written_down_is_an_interruption() -> None:
    """The step before is done again by whoever goes on."""
    fleet = Fleet()

    def record(state: str, _: str) -> None:
        if state == "rest":
            raise DeployError("ops1 does not answer")

    one = Rollout(fleet, record, lambda _: None, PACE)
    assert one.run() is Outcome.INTERRUPTED
    assert one.state == "canary"
    assert "rest" not in fleet.acts


def test_a_way_back_that_fails_is_gone_on_with_and_not_called_done() -> None:
    fleet = Fleet(["bad"], new=3)
    assert run(fleet, rollout.UNDOING)[0] is Outcome.INTERRUPTED
    stuck = Fleet(new=3)
    stuck.unhealthy_until = math.inf
    assert run(stuck, rollout.UNDOING)[0] is Outcome.INTERRUPTED
    assert run(fleet, rollout.UNDOING)[0] is Outcome.ROLLED_BACK


def test_an_operators_way_back_is_a_release_of_its_own() -> None:
    outcome, recorded = run(Fleet(new=3), rollout.UNDOING, undone="released")
    assert outcome is Outcome.RELEASED
    assert states(recorded) == ["released"]


def test_tasks_that_failed_before_do_not_count() -> None:
    fleet = Fleet()
    fleet.failed = {"t-of-another-day"}
    assert run(fleet)[0] is Outcome.RELEASED


def rows(**values: float) -> list[Row]:
    return [Row({"instance": name}, value) for name, value in values.items()]


def histogram(**values: Sequence[float]) -> list[Row]:
    bounds = ("0.1", "0.5", "+Inf")
    return [
        Row({"instance": name, "le": bound}, value)
        for name, found in values.items()
        for bound, value in zip(bounds, found, strict=True)
    ]


def test_a_replica_counts_from_its_own_start() -> None:
    before = Snapshot.of(
        [
            rows(app1=1, app2=1),
            rows(app1=1000, app2=500),
            rows(app1=30),
            histogram(app1=(900, 1000, 1000)),
            [],
        ]
    )
    after = Snapshot.of(
        [rows(app1=2, app2=1), rows(app1=40, app2=560), rows(app1=4), histogram(app1=(20, 40, 40)), []]
    )
    new = sample(before, after, ["app1"])
    assert (new.calls, new.failed) == (40, 4)
    counted, p95 = new.times[TIMES[0]]
    assert counted == 40
    assert p95 == pytest.approx(0.1 + 0.4 * 18 / 20)
    assert sample(before, after, ["app2"]) == Sample(60, 0, {})
    assert sample(before, after, []) == Sample()
    assert len(QUERIES) == 5


@given(st.lists(st.floats(0.001, 0.9), min_size=1, max_size=200))
def test_a_quantile_lies_in_the_bucket_of_its_value(values: list[float]) -> None:
    bounds = [0.01, 0.05, 0.1, 0.5, 1.0, math.inf]
    buckets = {str(bound): float(sum(value <= bound for value in values)) for bound in bounds}
    found = quantile(0.95, buckets)
    exact = sorted(values)[math.ceil(0.95 * len(values) - 1e-9) - 1]
    upper = next(bound for bound in bounds if exact <= bound)
    assert max([bound for bound in bounds if bound < exact], default=0.0) <= found <= upper


def test_a_quantile_beyond_all_buckets_is_the_last_bound() -> None:
    assert quantile(0.95, {"1": 0.0, "+Inf": 10.0}) == 1.0


def timed(own: float = 0.01, first: float = 0.1, calls: float = 100) -> dict[str, tuple[float, float]]:
    return {TIMES[0]: (calls, own), TIMES[1]: (calls, first)}


@pytest.mark.parametrize(
    ("new", "old", "found"),
    [
        (Sample(100, 0, timed()), Sample(200, 0, timed()), 0),
        (Sample(100, 2), Sample(200, 0), 0),
        (Sample(100, 3), Sample(200, 0), 1),
        (Sample(3, 3), Sample(0, 0), 1),
        # The provider fails both.
        (Sample(100, 50), Sample(200, 100), 0),
        (Sample(100, 52), Sample(200, 100), 1),
        (Sample(1000, 9), Sample(2000, 0), 0),
        # Slow: against what is beside it, and never below the floor.
        (Sample(100, 0, timed(own=0.09)), Sample(200, 0, timed(own=0.001)), 0),
        (Sample(100, 0, timed(own=0.11)), Sample(200, 0, timed(own=0.001)), 1),
        (Sample(100, 0, timed(own=0.3)), Sample(200, 0, timed(own=0.2)), 0),
        (Sample(100, 0, timed(own=0.3)), Sample(0, 0), 1),
        (Sample(100, 0, timed(own=9, calls=19)), Sample(200, 0, timed()), 0),
        (Sample(100, 0, timed(own=0.3)), Sample(200, 0, timed(own=0.2, calls=19)), 1),
        (Sample(100, 0, timed(first=1.5)), Sample(200, 0, timed(first=0.2)), 1),
        (Sample(100, 0, timed(first=1.5)), Sample(200, 0, timed(first=0.8)), 0),
        (Sample(100, 50, timed(own=9, first=9)), Sample(200, 0, timed()), 3),
        (Sample(), Sample(), 0),
    ],
)
def test_what_is_worse(new: Sample, old: Sample, found: int) -> None:
    assert len(worse(new, old, Limits())) == found


@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 10))
def test_a_version_is_never_worse_than_itself(calls: int, failed: int, own: float) -> None:
    same = Sample(max(calls, failed), failed, timed(own=own))
    assert worse(same, same, dataclasses.replace(Limits())) == []


def test_failures_are_those_that_the_alert_counts() -> None:
    root = Path(__file__).resolve().parents[3]
    groups = yaml_of((root / "monitoring/rules/relay.yml").read_text())["groups"]
    alerts = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
    assert f'outcome=~"{canary.FAILED}"' in alerts["RelayErrorRatioHigh"]
