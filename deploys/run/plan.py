"""`plan` and `apply`: the same stages, once to look and once to act."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pyinfra.api.inventory import Inventory

from deploys import roles
from deploys.lib import fleet, secrets
from deploys.lib.errors import DeployError
from deploys.lib.role import Role
from deploys.run import deployed, diagnosis, drains, environment, health_checks, lock, runs, trust, validate
from deploys.run.runner import Change, HostsLost, Runner

CLEAN, DRIFT = 0, 2
# Done, but for hosts that stopped answering.
PARTIAL = 3


@dataclass
class Run:
    """One run over an environment: its connection, its clock, and how many changes it found or made."""

    inventory: Inventory
    limited: bool
    start: float = field(default_factory=time.monotonic)
    changes: int = 0
    # Names of hosts that stopped answering, and of roles that were not touched because of them.
    without: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.start, 1)

    def say(self, text: str) -> None:
        """Prints a line with the seconds since the start."""
        print(f"[{self.seconds:6.1f} s] {text}", flush=True)

    def go_on_without(self, lost: HostsLost) -> None:
        """Remembers hosts that stopped answering."""
        self.without += lost.names
        self.say(f"{lost}: the others go on")

    def hindered(self, role: Role) -> bool:
        """Whether the role must be left alone because one of its members is away."""
        away = role.cluster and any(node.name in self.without for node in roles.members(role))
        if away and role.name not in self.left_alone:
            self.left_alone.append(role.name)
            self.say(f"{role.name}: left alone, since a member of it is away")
        return away


def plan(name: str, limits: Sequence[str]) -> int:
    """Shows every pending change and changes nothing: 0 none, 2 some."""
    with _run("plan", name, limits) as (run, runner):
        try:
            changes = runner.prepare(roles.table())
        except HostsLost as lost:
            raise DeployError(f"{lost} while its state was read") from lost
        run.changes = len(changes)
        for change in changes:
            print(f"{change.host}: {change.stage}: {change.operation}")
        run.say(_foreseen(changes))
        return DRIFT if changes else CLEAN


def apply(name: str, limits: Sequence[str], until: str = "") -> int:
    """Makes the fleet what the inventory says, stage by stage, and waits for each stage's health.

    `until` names the last role that is looked at; "" means all. 0 done, 3 done but for hosts that stopped
    answering and roles whose members they are.
    """
    wanted = roles.table(until)
    with _run("apply", name, limits, until) as (run, runner):
        pending = _prepare(run, runner, wanted)
        run.say(_foreseen(pending))
        for line in filter(None, (role.left_out() for role in wanted)):
            run.say(f"{line}; everything else goes on")
        stale = {change.stage for change in pending}
        # What follows a changed stage may depend on it, so it is looked at again.
        acting = False
        for role in wanted:
            acting = acting or role.name in stale
            if run.hindered(role):
                continue
            if acting:
                _stage(run, runner, role)
            if not run.limited and not run.hindered(role):
                _health(run, runner, role)
        run.changes = sum(runner.done.values())
        # What a lost host trusts is not known.
        if not run.limited and not run.without and not until:
            trust.record(fleet.state_directory())
        _summary(run, runner)
    if run.changes:
        _note(name)
    return PARTIAL if run.without else CLEAN


def _note(name: str) -> None:
    """Tells the monitoring of the run, which is in the audit log now."""
    with environment.use(name) as inventory:
        for host in deployed.note(name, inventory, fleet.state_directory()):
            print(f"{host} was not told of this run: alerts will name the one before as the last deploy")


def _prepare(run: Run, runner: Runner, wanted: Sequence[Role]) -> list[Change]:
    """What would change, on the hosts that still answer."""
    while True:
        try:
            return runner.prepare(wanted)
        except HostsLost as lost:
            run.go_on_without(lost)


def _stage(run: Run, runner: Runner, role: Role) -> None:
    changes = _prepare(run, runner, [role])
    if not changes or run.hindered(role):
        return
    run.say(f"{role.name}: {len(changes)} changes")
    before = run.seconds
    try:
        runner.execute(together=role.cluster)
    except HostsLost as lost:
        run.go_on_without(lost)
        _stage(run, runner, role)
        return
    except DeployError as error:
        raise DeployError("\n".join([str(error), *_reasons(run, runner, role)])) from error
    run.say(f"{role.name}: done in {run.seconds - before:.1f} s")


def _reasons(run: Run, runner: Runner, role: Role) -> list[str]:
    """What is wrong with the role's members, when its own operations failed."""
    hosts = [host for host in runner.hosts if host.connected and fleet.node_of(host) in roles.members(role)]
    lines = []
    for check in role.health_checks:
        found = diagnosis.findings(check, hosts, runner.shell)
        lines += [*map(str, found), diagnosis.remedy(check, found)] if found else []
    return lines


def _health(run: Run, runner: Runner, role: Role) -> None:
    for check in role.health_checks:
        seconds = health_checks.wait(role, check, run.inventory, runner.shell, away=run.without)
        run.say(f"{role.name}: {check.what}" + (f" (after {seconds:.1f} s)" if seconds >= 1 else ""))


def _foreseen(changes: Sequence[Change]) -> str:
    if not changes:
        return "nothing to change"
    return f"{len(changes)} changes pending on {len({change.host for change in changes})} hosts"


def _summary(run: Run, runner: Runner) -> None:
    for host in runner.hosts:
        print(f"  {host.name:<10} {runner.done[host.name]:>4} changes")
    run.say(f"{run.changes} changes on {len(+runner.done)} hosts")
    if run.without:
        print(f"done without {', '.join(run.without)}, which stopped answering.")
        print(f"Left alone: {', '.join(run.left_alone) or 'no role'}. Bring it back, then run apply again.")


@contextmanager
def _run(command: str, name: str, limits: Sequence[str], until: str = "") -> Iterator[tuple[Run, Runner]]:
    with environment.use(name) as inventory:
        hosts = environment.select(inventory, limits)
        validate.check(inventory, name)
        directory = fleet.state_directory()
        run = Run(inventory, limited=bool(limits))
        about = {"command": command, "environment": name, "limit": list(limits)}
        about |= {"until": until} if until else {}
        with (
            lock.exclusive(directory) as mine,
            runs.exclusive(list(inventory), run.say) if command == "apply" and mine else nullcontext(),
            _log(directory, command),
            _audited(run, directory, about),
        ):
            patience = (fleet.setting("host_silence_seconds"), fleet.setting("operation_seconds"))
            runner = Runner(inventory, hosts, run.say, *patience)
            with runner.connected():
                run.say(f"{len(hosts)} hosts of {name}: connected")
                trust.check(name, hosts, runner.shell, directory)
                for line in drains.told(name, hosts, runner.shell):
                    run.say(line)
                if kept := secrets.departed(fleet.store().read(), roles.certificate_subjects()):
                    run.say(
                        f"the secrets hold {', '.join(kept)} of hosts that left the inventory: "
                        f"`python -m deploys secrets {name}` removes them"
                    )
                yield run, runner


@contextmanager
def _audited(run: Run, directory: Path, about: Mapping[str, object]) -> Iterator[None]:
    result = "interrupted"
    try:
        yield
        result = f"done without {', '.join(run.without)}" if run.without else "done"
    except DeployError as error:
        result = f"failed: {str(error).splitlines()[0]}"
        raise
    finally:
        lock.audit(directory, **about, result=result, changes=run.changes, seconds=run.seconds)


@contextmanager
def _log(directory: Path, command: str) -> Iterator[None]:
    """pyinfra's own messages: all of them to a file, errors to the terminal as well."""
    path = directory / "logs" / f"{command}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole, errors = logging.FileHandler(path, mode="w"), logging.StreamHandler()
    errors.setLevel(logging.ERROR)
    pyinfra, paramiko = logging.getLogger("pyinfra"), logging.getLogger("paramiko")
    pyinfra.setLevel(logging.INFO)
    # paramiko's tracebacks of refused connections would bury the line that names the host.
    added: list[tuple[logging.Logger, logging.Handler]]
    added = [(pyinfra, whole), (pyinfra, errors), (paramiko, whole)]
    for logger, handler in added:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, handler in added:
            logger.removeHandler(handler)
        whole.close()
        if command == "apply":
            lock.MESSAGES.append(path.read_text(errors="replace"))
