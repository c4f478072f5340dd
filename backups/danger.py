"""What keeps a tired person from a mistake: dry run, preconditions, exact name, reason, audit, exit codes.

A command makes a `Plan` (what must hold, what is done in which order, how to go back) and hands it to
`carry_out`. Without ``--yes`` the plan is printed and nothing is changed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from backups.cluster import Answer, Cluster, HostFailed
from deploys.lib.errors import DeployError
from deploys.run import lock

DONE, FAILED, REFUSED = 0, 1, 2
WAIT_PAUSE_SECONDS = 0.5


class Refused(DeployError):
    """A precondition does not hold; nothing was changed. The message names it and the remedy."""


@dataclass(frozen=True)
class Outcome:
    """What a command came to: its exit code, its answer for programs and for people."""

    code: int
    data: Mapping[str, Any]
    text: str = ""


@dataclass(frozen=True)
class Check:
    """A precondition: `what` must hold; `problem` says why it does not and what to do, "" when it holds."""

    what: str
    problem: str = ""


@dataclass(frozen=True)
class Call:
    """A command on a host, as it is printed and run."""

    host: str
    command: str
    seconds: float = 120

    def __str__(self) -> str:
        return f"{self.host}: {self.command}"


@dataclass(frozen=True)
class Step:
    """Something that is done: `calls` one after the other, or `act` where waiting or choosing is more than
    that; then `calls` only show what `act` runs. `seconds` is the estimate."""

    what: str
    calls: Sequence[Call] = ()
    act: Callable[[], None] | None = None
    seconds: float = 1


@dataclass
class Plan:
    """What a command will do. `destroys` names what cannot be brought back by the undo alone; such a plan
    needs a reason. `result` is filled by the steps and becomes part of the answer."""

    target: str
    checks: Sequence[Check]
    steps: Sequence[Step]
    undo: str
    destroys: str = ""
    notes: Sequence[str] = ()
    result: dict[str, Any] = field(default_factory=dict)
    # Lines that are printed at the end, once the steps have filled `result`.
    summary: Callable[[], Sequence[str]] = tuple


class Late(HostFailed):
    """Something did not come in time."""


@dataclass
class Session:
    """One run of a command: where it acts, its options and its clock."""

    cluster: Cluster
    options: argparse.Namespace
    command: str
    start: float = field(default_factory=time.monotonic)
    target: str = ""
    begun: bool = False

    @property
    def yes(self) -> bool:
        return bool(getattr(self.options, "yes", False))

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.start, 1)

    def say(self, text: str) -> None:
        """Prints a line; with --json standard output belongs to the answer."""
        print(text, file=sys.stderr if self.options.json else sys.stdout, flush=True)

    def progress(self, text: str) -> None:
        """Prints a line with the seconds since the start."""
        self.say(f"[{self.seconds:6.1f} s] {text}")

    def call(self, call: Call) -> Answer:
        """Runs a call; HostFailed when it fails."""
        answer = self.cluster.run(call.host, call.command, seconds=call.seconds)
        if not answer.ok:
            state = "does not answer" if not answer.reached else f"exit code {answer.code}"
            raise HostFailed(f"{call}: {state}: {answer.words}")
        return answer

    def calls(self, calls: Sequence[Call]) -> None:
        """Runs calls at once; HostFailed when one fails, after the others have ended."""
        self.cluster.everywhere([str(n) for n in range(len(calls))], lambda n: self.call(calls[int(n)]))

    def perform(self, step: Step) -> None:
        """Does what a step says."""
        if step.act is not None:
            step.act()
        else:
            for call in step.calls:
                self.call(call)

    def wait(self, what: str, seconds: float, ready: Callable[[], bool], every: float = 10) -> float:
        """Waits until `ready`, with a line now and then; returns how long. Late after `seconds`."""
        begin = told = time.monotonic()
        while not ready():
            now = time.monotonic()
            if now - begin > seconds:
                raise Late(f"{what}: not after {seconds:.0f} s")
            if now - told >= every:
                told = now
                self.progress(f"  waiting: {what} ({now - begin:.0f} s of at most {seconds:.0f} s)")
            time.sleep(WAIT_PAUSE_SECONDS)
        return time.monotonic() - begin

    def audit(self, result: str) -> None:
        """A line of the environment's audit log: when, who, commit, what, why, outcome."""
        self.cluster.state_directory.mkdir(parents=True, exist_ok=True)
        lock.audit(
            self.cluster.state_directory,
            command=f"backups {self.command}",
            environment=self.cluster.environment,
            target=self.target,
            reason=getattr(self.options, "reason", None) or "",
            result=result,
            seconds=self.seconds,
        )


def carry_out(session: Session, plan: Plan, *, locked: bool = True) -> Outcome:
    """Prints the plan; with --yes does it, under the environment's lock. Refused when a check fails.

    `locked` is False where the steps take the lock themselves, or change nothing of the fleet.
    """
    session.target = plan.target
    broken = [check for check in plan.checks if check.problem]
    _show(session, plan)
    if broken:
        raise Refused("; ".join(f"{check.what}: {check.problem}" for check in broken))
    if session.yes and plan.destroys and not (session.options.reason or "").strip():
        raise Refused(f'--reason is missing: it destroys {plan.destroys}; say why, e.g. --reason "ticket 17"')
    if not session.yes:
        more = ' and --reason "…"' if plan.destroys else ""
        session.say(f"\nDry run: nothing was changed. To do it, add --yes{more}.")
        return Outcome(DONE, _answer(session, plan, "dry run", 0))
    with lock.exclusive(session.cluster.state_directory) if locked else nullcontext():
        session.audit("begun")
        session.begun = True
        _run(session, plan)
    session.say("")
    session.progress("done")
    for line in plan.summary():
        session.say(line)
    session.say(f"Undo: {plan.undo}")
    return Outcome(DONE, _answer(session, plan, "done", len(plan.steps)))


@contextmanager
def audited(session: Session) -> Iterator[None]:
    """Writes how a run with --yes ended, whatever the end."""
    result = "interrupted"
    try:
        yield
        result = "done"
    except Refused as error:
        result = f"refused: {_first(error)}"
        raise
    except DeployError as error:
        result = f"failed: {_first(error)}"
        raise
    finally:
        if session.yes:
            session.audit(result)


def moment(option: str, text: str | None) -> datetime:
    """The time given with `option`: in the past, with its zone; else Refused says how to write it."""
    if not text:
        raise Refused(f"{option} is missing: write a time, e.g. {option} 2026-11-26T05:00:00Z")
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(f"{option} {text!r}: write a time as 2026-11-26T05:00:00Z") from None
    if found.tzinfo is None:
        raise Refused(f"{option} {text!r}: say the zone, e.g. {text}Z")
    if found > datetime.now(UTC):
        raise Refused(f"{option} {text!r}: that time has not come yet")
    return found


def exact_name(given: str | None, name: str, option: str) -> Check:
    """The check that a person typed the name of what will be destroyed."""
    what = f"the exact name is given ({option} {name})"
    return Check(what, "" if given == name else f"it is {given!r}; write {option} {name}")


def _first(error: DeployError) -> str:
    return str(error).splitlines()[0]


def _show(session: Session, plan: Plan) -> None:
    session.say(f"{session.command} {plan.target}")
    if plan.checks:
        session.say("Must hold:")
    for check in plan.checks:
        session.say(f"  {'✘' if check.problem else '✔'} {check.what}")
        if check.problem:
            session.say(f"      {check.problem}")
    session.say("Steps:")
    for number, step in enumerate(plan.steps, 1):
        session.say(f"  {number}. {step.what} (about {step.seconds:.0f} s)")
        for call in step.calls:
            session.say(f"       {call}")
    if plan.destroys:
        session.say(f"Destroys: {plan.destroys}")
    for note in plan.notes:
        session.say(f"Note: {note}")
    session.say(f"Undo: {plan.undo}")


def _run(session: Session, plan: Plan) -> None:
    left = sum(step.seconds for step in plan.steps)
    session.say("")
    for number, step in enumerate(plan.steps, 1):
        session.progress(f"{number}/{len(plan.steps)} {step.what} (about {left:.0f} s left)")
        left -= step.seconds
        session.perform(step)


def _answer(session: Session, plan: Plan, outcome: str, finished: int) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "target": plan.target,
        "checks": [{"what": check.what, "problem": check.problem} for check in plan.checks],
        "steps": [
            {"what": step.what, "calls": list(map(str, step.calls)), "done": number <= finished}
            for number, step in enumerate(plan.steps, 1)
        ],
        "destroys": plan.destroys,
        "undo": plan.undo,
        "result": plan.result,
        "seconds": session.seconds,
    }
