"""Runs roles against an inventory: what `plan` and `apply` are made of.

pyinfra's own command line answers neither "would anything change?" by its exit code nor "stop between roles
until the fleet is healthy". This drives the same library: prepare a set of roles on all hosts in parallel,
list what would change, run it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import gevent
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

from deploys.lib import fleet, pyinfra_adapter
from deploys.lib.errors import DeployError
from deploys.lib.role import Role
from deploys.run import stages

# For a question that a healthy host answers at once, and for one sign of life.
SHELL_SECONDS = 60


@dataclass(frozen=True)
class Change:
    """An operation that would change a host."""

    host: str
    stage: str
    operation: str


class HostsLost(Exception):
    """Hosts that stopped answering in the middle of a run; `names` are theirs."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"{', '.join(names)} stopped answering")
        self.names = list(names)


class Runner:
    """One connected run over some hosts of an inventory.

    A host that has not answered for `silence_seconds` is lost: HostsLost names it, and the run may go on
    without it. A command of an operation may take `operation_seconds`.
    """

    def __init__(
        self,
        inventory: Inventory,
        hosts: Sequence[Host],
        report: Callable[[str], None],
        silence_seconds: int = 30,
        operation_seconds: int = 1800,
    ) -> None:
        self.hosts = list(hosts)
        self.silence_seconds, self.operation_seconds = silence_seconds, operation_seconds
        self.watch = pyinfra_adapter.Watch(hosts, silence_seconds, report)
        self.done: Counter[str] = Counter()
        self.state = pyinfra_adapter.new_state(inventory, hosts, fleet.REPOSITORY, report)
        self.facts = pyinfra_adapter.FactMemory(self.state)
        self.facts.attach()

    @contextmanager
    def connected(self) -> Iterator[Runner]:
        """Connects to every host, or fails naming those that cannot be reached."""
        with pyinfra_adapter.connected(self.state, self.hosts) as unreached:
            if unreached:
                raise DeployError(_unreachable(unreached, self.hosts))
            with self.watch.watching():
                yield self

    def prepare(self, wanted: Iterable[Role]) -> list[Change]:
        """Loads the roles on their hosts and returns what would change, in the order of hosts and roles."""
        pyinfra_adapter.reset(self.state)
        wanted = list(wanted)
        jobs = {host: self.state.pool.spawn(self._load, host, wanted) for host in self.hosts}
        gevent.joinall(jobs.values())
        if any(job.value is not None for job in jobs.values()):
            self._raise_lost()
        for host, job in jobs.items():
            if isinstance(job.value, PyinfraError):
                raise DeployError(
                    f"{host.name}: its state cannot be read ({job.value}): the reason is above and in the log"
                ) from job.value
            if job.value is not None:
                raise DeployError(f"{host.name}: {job.value}") from job.value
        return [change for host in self.hosts for change in self._pending(host)]

    def execute(self, *, together: bool = False) -> None:
        """Runs what is prepared; stops at the first operation that fails on a host.

        When it failed because the host is lost, the others go on to the end, unless they act `together`.
        """

        def go_on(failed: Sequence[Host]) -> bool:
            return not together and set(failed) <= set(self._lost())

        try:
            pyinfra_adapter.execute(self.state, self.operation_seconds, go_on)
            self._raise_lost()
        except PyinfraError as error:
            self._raise_lost()
            raise DeployError(self._failure(error)) from error
        finally:
            self.facts.forget()
            for host in self.hosts:
                self.done[host.name] += pyinfra_adapter.changes(self.state, host)

    def shell(self, host: Host, command: str) -> tuple[bool, str]:
        """Runs a command as root: (whether it succeeded, its output)."""
        return pyinfra_adapter.run_shell(host, command, seconds=SHELL_SECONDS)

    def _lost(self) -> list[Host]:
        return [
            host
            for host in self.hosts
            if host in self.watch.lost or not pyinfra_adapter.alive(host, self.silence_seconds)
        ]

    def _raise_lost(self) -> None:
        """Leaves hosts out that no longer answer, and names them by HostsLost."""
        lost = self._lost()
        if lost:
            self.hosts = [host for host in self.hosts if host not in lost]
            pyinfra_adapter.drop(self.state, lost)
            raise HostsLost([host.name for host in lost])

    def _load(self, host: Host, wanted: list[Role]) -> Exception | None:
        try:
            with pyinfra_adapter.preparing(self.state, host):
                for role in host.loop(wanted):
                    with pyinfra_adapter.labelled(host, role.name):
                        stages.run(role)
        except Exception as error:
            return error
        return None

    def _pending(self, host: Host) -> Iterator[Change]:
        try:
            for stage, *_, operation in pyinfra_adapter.pending(self.state, host):
                yield Change(host.name, stage, operation)
        except pyinfra_adapter.Undecidable as name:
            raise DeployError(f"{name}: its _if cannot be told before the run: use fleet.changed") from name

    def _failure(self, error: PyinfraError) -> str:
        hosts = ", ".join(host.name for host in self.state.failed_hosts)
        where = f"an operation failed on {hosts} ({error})" if hosts else str(error)
        return f"stopped: {where}; the output is above and in the log"


def _unreachable(hosts: Sequence[Host], wanted: Sequence[Host]) -> str:
    listed = ", ".join(f"{host.name} ({host.data.ssh_hostname})" for host in hosts)
    rest = " ".join(host.name for host in wanted if host not in hosts)
    without = f" To go on without: --limit {rest}" if rest else ""
    return f"cannot log in to {listed}: is the host up, the address right, the SSH key accepted?{without}"
