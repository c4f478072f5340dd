"""What every change of nodes has: the command's words, checks, steps, locks, and how it is told."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from pyinfra.api.host import Host

from deploys.lib import fleet
from deploys.lib import lock as locks
from deploys.lib.errors import DeployError
from deploys.run import environment, figures, lock, preview, releases, remote, validate
from deploys.run.node import checks, facts
from deploys.run.node.facts import Seen, groups_of
from deploys.run.node.records import Record, Records
from deploys.run.node.traces import Trace
from deploys.run.preview import Check

DONE, FAILED, REMAINS = 0, 1, 2
PARTIAL = 3
STEP_SECONDS = 600.0


@dataclass(frozen=True)
class Step:
    """Something to do; `done` looks whether that is necessary."""

    what: str
    do: Callable[[], None]
    done: Callable[[], bool] = lambda: False


@dataclass
class Work:
    """One command: its words, the fleet as it was seen, and how far it has come."""

    command: str
    name: str
    nodes: Sequence[str]
    options: argparse.Namespace
    hosts: list[Host]
    lock: TextIO | None
    records: Records
    # Where the answer goes as JSON.
    out: TextIO
    seen: Seen = field(default_factory=Seen)
    start: float = field(default_factory=time.monotonic)
    # The fleet's lock, on the host that measures it.
    fleet_lock: ExitStack = field(default_factory=ExitStack)
    # What the line of the audit log says besides.
    audit: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    remains: list[Trace] = field(default_factory=list)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:6.1f} s] {text}", flush=True)

    def others(self) -> list[Host]:
        """The hosts that are none of the nodes."""
        return [host for host in self.hosts if host.name not in self.nodes]

    def monitor(self) -> Host | None:
        """The host that measures the fleet; None where it is one of the nodes, or there is none."""
        if not fleet.hosts("ops") or fleet.hosts("ops")[0].name in self.nodes:
            return None
        return figures.monitor(self.hosts)

    def hold_fleet(self) -> None:
        """Takes the fleet's lock, where a host outside of the nodes keeps it."""
        if monitor := self.monitor():
            what = " ".join([self.command, *self.nodes])
            self.fleet_lock.enter_context(releases.History(monitor).exclusive(what))

    def begun(self) -> dict[str, Record]:
        """The nodes that this command was interrupted with; of replaced and added ones, the same machine."""
        return {
            name: record
            for name, record in self.records.read().items()
            if name in self.nodes and record.command == self.command and self._same(record)
        }

    def _same(self, record: Record) -> bool:
        machine = self.seen.machines.get(record.name)
        return self.command == "remove" or bool(machine and machine.identity == record.machine)

    def deploys(self, *words: str) -> int:
        """Runs one of our own commands under the lock of this one; returns its exit code."""
        shared: dict[str, Any] = lock.shared(self.lock) if self.lock else {}
        command = [sys.executable, "-m", "deploys", *words]
        # sys.stdout is standard error where the answer is JSON.
        output = sys.stderr if self.options.json else None
        return lock.run(command, cwd=fleet.REPOSITORY, stdout=output, **shared)


def shared_checks(work: Work, begun: Mapping[str, Record]) -> list[Check]:
    """What every change of members needs."""
    away = [name for name in work.nodes if name not in begun or not _whole(work, name)]
    return [
        checks.others_answer(work.seen, work.nodes),
        *nobody_else(work),
        checks.calm(alerts(work), work.nodes, work.options.despite_alerts),
        *checks.etcd(work.seen, away, work.command),
        *checks.swarm(work.seen, away, work.command),
        *checks.database(work.seen, away, work.command),
    ]


def valid(work: Work, without: Sequence[str] = ()) -> Check:
    """The inventory that the change leaves must be one; its certificates are made later."""
    try:
        with environment.use(work.name, without=without) as inventory:
            problems = [*validate.hosts(inventory, work.name)] or [*validate.settings()]
    except DeployError as error:
        problems = [str(error)]
    rest = f" without {', '.join(without)}" if without else ""
    return Check(f"the inventory{rest} describes a fleet", "; ".join(problems))


def _whole(work: Work, name: str) -> bool:
    return work.command != "remove" and not facts.not_yet(work.seen, name, groups_of(name))


def alerts(work: Work) -> list[figures.Alert] | DeployError | None:
    """What fires, or why that is not known; None where the monitoring is one of the nodes."""
    monitor = work.monitor()
    if monitor is None:
        return None
    try:
        return figures.alerts(monitor)
    except DeployError as error:
        return error


def nobody_else(work: Work) -> Iterator[Check]:
    """Where something is done the locks are held already."""
    what, unfinished = "nobody else is at work", "no release is unfinished"
    here = "" if work.lock else locks.holder(fleet.state_directory() / "deploy.lock")
    monitor = work.monitor()
    if monitor is None:
        yield Check(what, f"{here} is; wait for it to end" if here else "")
        return
    try:
        history = releases.History(monitor)
        holder = here or ("" if work.lock else history.holder())
        open_ = releases.unfinished(history.read())
    except DeployError as error:
        yield Check(what, str(error))
        return
    yield Check(what, f"{holder} is; wait for it to end" if holder else "")
    remedy = f"{open_.number} is: `python -m deploys release {work.name}` goes on" if open_ else ""
    yield Check(unfinished, remedy)


def must(host: Host, words: Sequence[str]) -> str:
    """What a command prints; DeployError when it fails."""
    (answer,) = remote.ask([host], words, seconds=STEP_SECONDS)
    if answer.status:
        raise DeployError(f"{host.name}: {words[0]} failed: {answer.words or answer.status}")
    return answer.out


def secrets_step(work: Work, what: str) -> Step:
    """`secrets ENV`: makes what is missing, removes what is for no host."""

    def do() -> None:
        if work.deploys("secrets", work.name):
            raise DeployError("the secrets could not be made; the reason is above")

    return Step(what, do)


def apply(work: Work) -> None:
    """`apply ENV`; DeployError unless every host has taken part."""
    status = work.deploys("apply", work.name)
    if status == PARTIAL:
        raise DeployError("a host stopped answering: bring it back, then run the same command again")
    if status:
        raise DeployError("the apply failed; the reason is above. Then run the same command again")


def plan_step(work: Work) -> Step:
    """`plan ENV`; drift is told as what remains."""

    def do() -> None:
        status = work.deploys("plan", work.name)
        if status == REMAINS:
            work.remains.append(Trace("", "plan shows drift", f"`python -m deploys apply {work.name}`"))
        elif status:
            raise DeployError("plan failed; the reason is above. Then run the same command again")

    return Step("look whether `plan` is clean", do)


@contextmanager
def session(
    arguments: argparse.Namespace, command: str, *, noun: str = "node ", nodes: Sequence[str] | None = None
) -> Iterator[Work]:
    """The environment; its locks where something is done, and a line of the audit log however that ends.

    `nodes` are those that change all at once, by default those of `arguments`.
    """
    name = arguments.environment
    with ExitStack() as stack:
        inventory = stack.enter_context(environment.use(name))
        out = sys.stdout
        if arguments.json:
            stack.enter_context(redirect_stdout(sys.stderr))
        directory = fleet.state_directory()
        hosts, records = list(inventory), Records(directory)
        nodes = arguments.nodes if nodes is None else nodes
        work = Work(command, name, nodes, arguments, hosts, None, records, out)
        if not arguments.yes:
            yield work
            return
        work.lock = stack.enter_context(lock.exclusive(directory))
        stack.enter_context(work.fleet_lock)
        work.hold_fleet()
        result = "interrupted"
        try:
            yield work
            result = "done" if not work.remains else "done, but something remains"
        except DeployError as error:
            result = f"failed: {str(error).splitlines()[0]}"
            raise
        finally:
            about = {"command": f"{noun}{command}", "environment": name, "nodes": list(work.nodes)}
            seconds = round(time.monotonic() - work.start, 1)
            lock.audit(directory, **about | work.audit, result=result, seconds=seconds)


def carry_out(
    work: Work, wanted: Sequence[Check], steps: Sequence[Step], begin: Callable[[Work], None]
) -> int:
    """Shows checks and steps; where all holds and `--yes` was said, does the steps."""
    title = f"{work.name}: {work.command} {', '.join(work.nodes)}"
    broken = preview.show(title, wanted, [step.what for step in steps])
    for note in work.notes:
        print(f"Note: {note}")
    if broken:
        _answer(work, wanted, steps, FAILED)
        raise DeployError(f"refused, nothing was changed; must hold: {broken}")
    if not work.options.yes:
        print(preview.DRY_RUN)
        return _answer(work, wanted, steps, DONE)
    begin(work)
    try:
        _do(work, steps)
    except DeployError as error:
        _answer(work, wanted, steps, FAILED, str(error))
        raise
    lasting = [trace for trace in work.remains if not trace.passing]
    if not lasting:
        work.records.drop(work.nodes)
    for trace in work.remains:
        print(f"{'goes by itself' if trace.passing else 'remains'}: {trace}")
    done_words = {"add": "is a host", "replace": "is back", "remove": "is gone"}[work.command]
    work.say(f"{', '.join(work.nodes)} {done_words}{'; see what remains, above' if lasting else ''}")
    return _answer(work, wanted, steps, REMAINS if lasting else DONE)


def _do(work: Work, steps: Sequence[Step]) -> None:
    for number, step in enumerate(steps, 1):
        done = step.done()
        work.say(f"{number} of {len(steps)}: {step.what}{': done already' if done else ''}")
        if not done:
            step.do()


def _answer(work: Work, wanted: Sequence[Check], steps: Sequence[Step], status: int, error: str = "") -> int:
    if work.options.json:
        about = {
            "environment": work.name,
            "command": work.command,
            "nodes": list(work.nodes),
            "dry_run": not work.options.yes,
            "checks": [asdict(check) for check in wanted],
            "steps": [step.what for step in steps],
            "notes": work.notes,
            "remains": [asdict(trace) for trace in work.remains],
            "error": error,
            "status": status,
        }
        # Standard output is for the answer alone; everything else went to standard error.
        print(json.dumps(about, ensure_ascii=False), file=work.out, flush=True)
    return status
