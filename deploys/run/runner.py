"""Runs the stages of deploys.run.stages against an inventory: what `plan` and `apply` are made of.

pyinfra's own command line answers neither "would anything change?" by its exit code nor "stop between roles
until the fleet is healthy". This drives the same library: prepare a set of stages on all hosts in parallel,
list what would change, run it. Facts are remembered while nothing is executed, since nothing changes then.
"""

from __future__ import annotations

import copy
import runpy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import gevent
import pyinfra
from paramiko import SSHException
from pyinfra.api.command import StringCommand
from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.operations import run_ops
from pyinfra.api.state import BaseStateCallback, State, StateHostMeta, StateStage
from pyinfra.context import ctx_config, ctx_host, ctx_state

from deploys.lib import fleet
from deploys.lib.errors import DeployError
from deploys.lib.role import Role
from deploys.run import stages

# Global arguments of an operation that change what a fact's command sees.
_FACT_CONTEXT = ("_sudo", "_sudo_user", "_su_user", "_env", "_chdir")


@dataclass(frozen=True)
class Change:
    """An operation that would change a host, or did."""

    host: str
    stage: str
    operation: str


class Progress(BaseStateCallback):
    """Tells `report` of each operation that is about to run or that failed on a host."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report

    # pyinfra declares its callbacks as static methods and calls them on the instance.
    def operation_host_error(  # type: ignore[override]
        self, state: State, host: Host, op_hash: str, retry_count: int = 0, max_retries: int = 0
    ) -> None:
        self.report(f"{host.name}: failed: {_name(state, op_hash)}")

    def operation_end(self, state: State, op_hash: str) -> None:  # type: ignore[override]
        hosts = [host for host in state.inventory if _did_change(state, host, op_hash)]
        if hosts:
            operation = _name(state, op_hash).split(" | ")[-1]
            self.report(f"  {operation}: {', '.join(host.name for host in hosts)}")


class Runner:
    """One connected run over some hosts of an inventory."""

    def __init__(self, inventory: Inventory, hosts: Sequence[Host], report: Callable[[str], None]) -> None:
        self.hosts = list(hosts)
        self.done: Counter[str] = Counter()
        pyinfra.is_cli = True
        config = Config()
        ctx_config.set(config)
        runpy.run_path(str(fleet.REPOSITORY / "config.py"))
        self.state = State(inventory, config, initial_limit=self.hosts)
        self.state.cwd = str(fleet.REPOSITORY)
        self.state.add_callback_handler(Progress(report))
        self.facts: dict[str, Any] = {}
        for host in inventory:
            host.get_fact = partial(self._fact, host, host.get_fact)  # type: ignore[method-assign]

    @contextmanager
    def connected(self) -> Iterator[Runner]:
        """Connects to every host, or fails naming those that cannot be reached."""
        with ctx_state.use(self.state):
            self.state.current_stage = StateStage.Connect
            # It stops at the first host; those that failed are all told below.
            with suppress(PyinfraError):
                connect_all(self.state)
            unreached = [host for host in self.hosts if not host.connected]
            try:
                if unreached:
                    raise DeployError(_unreachable(unreached))
                yield self
            finally:
                disconnect_all(self.state)

    def prepare(self, wanted: Iterable[Role]) -> list[Change]:
        """Loads the stages on their hosts and returns what would change, in the order of hosts and stages."""
        self._reset()
        wanted = list(wanted)
        jobs = {host: self.state.pool.spawn(self._load, host, wanted) for host in self.hosts}
        gevent.joinall(jobs.values())
        for host, job in jobs.items():
            if isinstance(job.value, PyinfraError):
                raise DeployError(
                    f"{host.name}: its state cannot be read ({job.value}): the reason is above and in the log"
                ) from job.value
            if job.value is not None:
                raise DeployError(f"{host.name}: {job.value}") from job.value
        return [change for host in self.hosts for change in self._pending(host)]

    def execute(self) -> None:
        """Runs what is prepared; stops at the first operation that fails on a host."""
        self.state.current_stage = StateStage.Execute
        try:
            run_ops(self.state)
        except PyinfraError as error:
            raise DeployError(self._failure(error)) from error
        finally:
            self.facts.clear()
            for host in self.hosts:
                changed = sum(_did_change(self.state, host, op_hash) for op_hash in host.op_hash_order)
                self.done[host.name] += changed

    def shell(self, host: Host, command: str) -> tuple[bool, str]:
        """Runs a command as root: (whether it succeeded, its output)."""
        try:
            ok, output = host.run_shell_command(StringCommand(command), _sudo=True)
        except (OSError, EOFError, SSHException) as error:
            return False, f"{host.name} does not answer ({error})"
        return ok, output.output

    def _load(self, host: Host, wanted: list[Role]) -> Exception | None:
        try:
            with ctx_config.use(self.state.config.copy()), ctx_host.use(host):
                for role in host.loop(wanted):
                    with _labelled(host, role):
                        stages.run(role)
        except Exception as error:
            return error
        return None

    def _reset(self) -> None:
        """Forgets prepared operations, so that one connection serves many rounds."""
        state = self.state
        state.current_stage = StateStage.Prepare
        state.is_executing = False
        state.op_meta.clear()
        for host in state.inventory:
            state.ops[host] = {}
            state.meta[host] = StateHostMeta()
            host.op_hash_order.clear()
            host.loop_position.clear()

    def _fact(self, host: Host, get_fact: Callable[..., Any], fact: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.is_executing:
            return get_fact(fact, *args, **kwargs)
        arguments: Mapping[str, Any] = host.current_op_global_arguments or {}
        context = {name: arguments.get(name) for name in _FACT_CONTEXT}
        key = repr((host.name, fact.__module__, fact.__qualname__, args, sorted(kwargs.items()), context))
        if key not in self.facts:
            self.facts[key] = get_fact(fact, *args, **kwargs)
        return copy.deepcopy(self.facts[key])

    def _pending(self, host: Host) -> Iterator[Change]:
        for op_hash in host.op_hash_order:
            meta = self.state.get_op_data_for_host(host, op_hash).operation_meta
            # pyinfra asks an operation's conditions only when it runs; an operation that they stop changes
            # nothing, which later conditions must know.
            if meta.will_change and not self._conditions_hold(host, op_hash):
                meta._maybe_is_change = False
            if meta.will_change:
                stage, *_, operation = _name(self.state, op_hash).split(" | ")
                yield Change(host.name, stage, operation)

    def _conditions_hold(self, host: Host, op_hash: str) -> bool:
        conditions = self.state.get_op_data_for_host(host, op_hash).global_arguments.get("_if") or []
        try:
            return all(condition() for condition in ([conditions] if callable(conditions) else conditions))
        except RuntimeError as error:
            name = _name(self.state, op_hash)
            raise DeployError(f"{name}: its _if cannot be told before the run: use fleet.changed") from error

    def _failure(self, error: PyinfraError) -> str:
        hosts = ", ".join(host.name for host in self.state.failed_hosts)
        where = f"an operation failed on {hosts} ({error})" if hosts else str(error)
        return f"stopped: {where}; the output is above and in the log"


@contextmanager
def _labelled(host: Host, role: Role) -> Iterator[None]:
    with host.deploy(role.name, None, None, in_deploy=False):
        yield


def _name(state: State, op_hash: str) -> str:
    return ", ".join(sorted(state.get_op_meta(op_hash).names))


def _did_change(state: State, host: Host, op_hash: str) -> bool:
    data = state.ops[host].get(op_hash)
    return bool(data and data.operation_meta.is_complete() and data.operation_meta.did_change())


def _unreachable(hosts: Sequence[Host]) -> str:
    listed = ", ".join(f"{host.name} ({host.data.ssh_hostname})" for host in hosts)
    return f"cannot log in to {listed}: is the host up, the address right, the SSH key accepted?"
