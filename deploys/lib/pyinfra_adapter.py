"""All that the toolkit touches of pyinfra's inner workings. No other module does.

What is assumed of pyinfra 3.10.0 beyond its documentation; tests/unit/deploys/test_pyinfra_adapter.py tests
each sentence, so that another version is tried by running it:

- A `State` may be prepared and executed again once `reset` has emptied its operations.
- `state.is_executing` is false while operations are prepared and true while they run.
- Every fact is asked for through `host.get_fact`, which may be replaced on the host.
- An operation's names, its conditions (`_if`) and whether it changes its host are found by its hash.
- pyinfra asks an operation's conditions only when it runs it, and believes `_maybe_is_change` before that.
- What runs inside `host.deploy` carries its name as the first part of the operation's.
- A host that failed is only missing from `active_hosts`, `activated_hosts` and in `failed_hosts`.
- `active_hosts` never holds a host outside of the limit, one that was not reached, or one that failed.
- A host outside of the run may be connected to and asked, which does not make it one of `active_hosts`.
- `should_raise_failed_hosts` is asked when a host failed; false lets the others go on.
- An operation's `_timeout` bounds each of its commands and may be set after it was prepared.
- Callbacks are called on the instance that was added, although the base class declares them static.
- The facts of systemd's units ask for one property each, `state_key`, and find it in a longer answer.
- An operation's global arguments are the fields of one class, and each is looked for in the host's data, for
  which all its groups' are merged; one dictionary, merged once in the same order, holds the same.
- They are gathered by one function, which asks the host for nothing but its data and its deploy's arguments.
- Those of an operation are all given to the facts that it asks for, and gathering them again changes none.
- In a command line's run an operation's place is told by the lines of the functions that called it.
- A fact's arguments are bound to its `command` as a call binds them, the fact itself among them.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import runpy
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import gevent
import pyinfra
from gevent.lock import BoundedSemaphore
from paramiko import SSHClient, SSHException, Transport
from pyinfra.api import arguments, facts, util
from pyinfra.api.command import StringCommand
from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.api.host import Host, HostData
from pyinfra.api.inventory import Inventory
from pyinfra.api.operation import OperationMeta
from pyinfra.api.operations import run_ops
from pyinfra.api.state import BaseStateCallback, State, StateHostMeta, StateStage
from pyinfra.context import ctx_config, ctx_host, ctx_state, state
from pyinfra.facts.systemd import SystemdEnabled, SystemdStatus

# Global arguments of an operation that change what a fact's command sees.
_FACT_CONTEXT = ("_sudo", "_sudo_user", "_su_user", "_env", "_chdir")
# Between the names of nested deploys and of an operation.
_SEPARATOR = " | "
# One at a time connects to a host.
_connecting: WeakKeyDictionary[Host, BoundedSemaphore] = WeakKeyDictionary()

# pyinfra reads the hints of the class of global arguments for every operation of every host.
arguments.all_global_arguments = functools.cache(arguments.all_global_arguments)
_pop_global_arguments = arguments.pop_global_arguments


class _Asked(NamedTuple):
    """What of a host is looked at for global arguments."""

    data: HostData | None
    current_deploy_kwargs: Any


def _pop_quickly(state: State, host: Host, kwargs: dict[str, Any]) -> Any:
    """An operation's global arguments. Nearly no host's data gives any, and the current host is found once:
    pyinfra looks it up, and its data through, for each of the forty."""
    host = ctx_host.get() if host is ctx_host.context else host
    data: HostData | None = host.data
    if isinstance(data, _MergedData) and not data.gives_arguments():
        data = None
    return _pop_global_arguments(state, _Asked(data, host.current_deploy_kwargs), kwargs)  # type: ignore[arg-type]


def _pop_for_fact(state: State, host: Host, kwargs: dict[str, Any]) -> Any:
    """A fact's global arguments. Within an operation all of them are given: they are those that were found
    and checked for it, which pyinfra would do once more for every question of each of its two rounds."""
    names = arguments.all_argument_meta
    if names.keys() <= kwargs.keys():
        return {name: kwargs.pop(name) for name in names}, list(names)
    return _pop_quickly(state, host, kwargs)


def _bound(command: Callable[..., Any], /, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """What inspect.getcallargs answers, without taking the function apart for each fact that is asked for."""
    own = getattr(command, "__self__", None)
    found = _signature(getattr(command, "__func__", command)).bind(
        *(() if own is None else (own,)), *args, **kwargs
    )
    found.apply_defaults()
    return dict(found.arguments)


def _operation_order(state: State) -> list[int]:
    """The lines of our functions that call an operation, outermost first. pyinfra's own function reads the
    source around each of them, too, which takes milliseconds for every operation of every host."""
    lines: list[int] = []
    frame = inspect.currentframe()
    while frame := frame and frame.f_back:
        if not frame.f_code.co_filename.startswith(util.PYINFRA_INSTALL_DIR):
            lines.append(frame.f_lineno)
    return [state.current_op_file_number, *reversed(lines)]


_signature = functools.cache(inspect.signature)
# The package has functions of the same names as these two modules.
_deploy, _operation = (importlib.import_module(f"pyinfra.api.{name}") for name in ("deploy", "operation"))
for _module in (_deploy, _operation):
    _module.pop_global_arguments = _pop_quickly  # type: ignore[attr-defined]
facts.pop_global_arguments = _pop_for_fact  # type: ignore[attr-defined]
facts.getcallargs = _bound  # type: ignore[attr-defined]
_operation.get_operation_order_from_stack = _operation_order  # type: ignore[attr-defined]


def is_executing() -> bool:
    """Whether operations run now; while they are only prepared, nothing has changed yet."""
    return bool(state.is_executing)


class Progress(BaseStateCallback):
    """Tells `report` of each operation that changed hosts or failed on one."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report

    def operation_host_error(  # type: ignore[override]
        self, state: State, host: Host, op_hash: str, retry_count: int = 0, max_retries: int = 0
    ) -> None:
        self.report(f"{host.name}: failed: {operation_name(state, op_hash)}")

    def operation_end(self, state: State, op_hash: str) -> None:  # type: ignore[override]
        hosts = [host.name for host in state.inventory if did_change(state, host, op_hash)]
        if hosts:
            name = operation_name(state, op_hash).split(_SEPARATOR)[-1]
            self.report(f"  {name}: {', '.join(hosts)}")


def new_state(
    inventory: Inventory, hosts: Sequence[Host], directory: Path, report: Callable[[str], None]
) -> State:
    """A state for `hosts`, with the settings of `directory`/config.py; paths are relative to `directory`."""
    pyinfra.is_cli = True
    config = Config()
    ctx_config.set(config)
    runpy.run_path(str(directory / "config.py"))
    merge_data(inventory)
    state = State(inventory, config, initial_limit=list(hosts))
    state.cwd = str(directory)
    state.add_callback_handler(Progress(report))
    return state


def merge_data(inventory: Inventory) -> None:
    """Merges each host's data once: a role of 80 operations looks for 3,000 global arguments in it."""
    for host in inventory:
        sources = (
            inventory.get_data(),
            inventory.get_groups_data(host.groups),
            inventory.get_host_data(host.name),
            inventory.get_override_data(),
        )
        merged = {name: value for source in sources for name, value in source.items()}
        host.data = _MergedData(host, merged, host.get_deploy_data)


class _MergedData(HostData):
    """Says quickly that nobody gave a global argument."""

    def gives_arguments(self) -> bool:
        """Whether one of the sources has a global argument."""
        own, _, of_deploy = self.datas
        return bool(self._merged_gives or _gives(own) or _gives(of_deploy()))

    @functools.cached_property
    def _merged_gives(self) -> bool:
        return _gives(self.datas[1])

    def __getattr__(self, key: str) -> Any:
        own, merged, of_deploy = self.datas
        for data in (own, merged, of_deploy()):
            if key in data:
                return copy.copy(data[key])
        raise AttributeError(key if key.startswith("_") else f"host {self.host} has no data {key!r}")


def _gives(data: Mapping[str, Any]) -> bool:
    return not arguments.all_argument_meta.keys().isdisjoint(data)


@contextmanager
def connected(state: State, hosts: Sequence[Host]) -> Iterator[list[Host]]:
    """Connects to the hosts and tells those that could not be reached; the state is current inside."""
    with ctx_state.use(state):
        state.current_stage = StateStage.Connect
        try:
            # It stops at the first host that fails; all that did are told.
            with suppress(PyinfraError):
                connect_all(state)
            for host in hosts:
                _send_at_once(host)
            yield [host for host in hosts if not host.connected]
        finally:
            disconnect_all(state)


def reset(state: State) -> None:
    """Forgets prepared operations, so that one connection serves many rounds."""
    state.current_stage = StateStage.Prepare
    state.is_executing = False
    state.op_meta.clear()
    for host in state.inventory:
        state.ops[host] = {}
        state.meta[host] = StateHostMeta()
        host.op_hash_order.clear()
        host.loop_position.clear()


@contextmanager
def preparing(state: State, host: Host) -> Iterator[None]:
    """Operations that are called inside are prepared for the host, not run."""
    with ctx_config.use(state.config.copy()), ctx_host.use(host):
        yield


def labelled(host: Host, name: str) -> AbstractContextManager[None]:
    """Operations inside have `name` as the first part of theirs."""
    label: AbstractContextManager[None] = host.deploy(name, None, None, in_deploy=False)
    return label


def execute(state: State, seconds: int = 0, go_on: Callable[[Sequence[Host]], bool] | None = None) -> None:
    """Runs what is prepared; raises PyinfraError at the first operation that fails on a host, unless `go_on`
    says of the hosts that failed that the others may go on.

    No command of an operation may take longer than `seconds`, unless the operation says so; 0 is no limit.
    """
    for host in state.inventory:
        for data in state.ops[host].values():
            data.global_arguments["_timeout"] = data.global_arguments.get("_timeout") or seconds
    state.should_raise_failed_hosts = lambda state: not (go_on and go_on(list(state.failed_hosts)))
    state.current_stage = StateStage.Execute
    try:
        run_ops(state)
    except EOFError as error:
        # A connection that ends in the middle of an upload.
        raise PyinfraError("a connection ended") from error
    finally:
        state.should_raise_failed_hosts = None


def drop(state: State, hosts: Sequence[Host]) -> None:
    """Goes on without some hosts, as if they had never been activated."""
    state.active_hosts -= set(hosts)
    state.activated_hosts -= set(hosts)
    state.failed_hosts -= set(hosts)


def in_run(hosts: Iterable[Host]) -> list[Host]:
    """Those of `hosts` that the run acts on: within its limit, connected, neither failed nor dropped."""
    return [host for host in hosts if host in state.active_hosts]


def reachable(host: Host, seconds: float) -> bool:
    """Whether a host can be asked for facts, be it part of the run or not.

    Hosts that are prepared side by side may ask for the same one: who comes second waits, since another
    connection would take the place of the first one while it is being made.
    """
    with _connecting.setdefault(host, BoundedSemaphore()):
        try:
            host.connect(show_errors=False, raise_exceptions=True)
        except ConnectError:
            return False
        _send_at_once(host)
        return alive(host, seconds)


class Watch:
    """Finds out hosts that have stopped answering, whatever they are busy with.

    Each connection is asked for a sign of life all the time. A host that gives none within `seconds` is
    lost: its connection is closed, so that whatever waits for the host fails. A machine that has frozen keeps
    its connections open, and its kernel may even go on confirming packets: only an answer counts.
    """

    def __init__(self, hosts: Sequence[Host], seconds: float, report: Callable[[str], None]) -> None:
        self.hosts, self.seconds, self.report = list(hosts), seconds, report
        self.lost: list[Host] = []

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Watches as long as the block runs."""
        jobs = [gevent.spawn(self._watch, host) for host in self.hosts]
        try:
            yield self
        finally:
            gevent.killall(jobs)

    def _watch(self, host: Host) -> None:
        while alive(host, self.seconds):
            gevent.sleep(self.seconds / 6)
        self.lost.append(host)
        self.report(f"{host.name} has not answered for {self.seconds:.0f} s")
        if transport := _transport(host):
            transport.close()


def alive(host: Host, seconds: float) -> bool:
    """Whether the host's SSH server answers within `seconds`; true of connections that are not SSH."""
    transport = _transport(host)
    if transport is None:
        return True
    with gevent.Timeout(seconds, False):
        # Its answer is a refusal, which is an answer (RFC 4254, section 4).
        transport.global_request("keepalive@openssh.com", wait=True)
        return bool(transport.is_active())
    return False


def _transport(host: Host) -> Transport | None:
    client: SSHClient | None = getattr(host.connector, "client", None)
    return client.get_transport() if client else None


def _send_at_once(host: Host) -> None:
    """Has a host's connection send each packet at once.

    paramiko leaves Nagle's algorithm on (RFC 896): of the few small packets that a command or a file is made
    of, each would wait for the host to acknowledge the one before, which it delays by 40 ms.
    """
    transport = _transport(host)
    # Behind another host it is a channel of that one's connection, which has no such option; and one that has
    # ended in the meantime is found by whoever asks the host.
    if transport is not None and hasattr(transport.sock, "setsockopt"):
        with suppress(OSError):
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def run_shell(host: Host, command: str, seconds: int = 0) -> tuple[bool, str]:
    """Runs a command as root: (whether it succeeded, its output)."""
    try:
        ok, output = host.run_shell_command(StringCommand(command), _sudo=True, _timeout=seconds or None)
    except (OSError, EOFError, SSHException) as error:
        return False, f"{host.name} does not answer ({error})"
    return ok, output.output


class UnitStates(SystemdStatus):
    """What `SystemdStatus` and `SystemdEnabled` say of units, by one question."""

    @staticmethod
    def default() -> dict[type, dict[str, bool]]:  # type: ignore[override]
        return {SystemdStatus: {}, SystemdEnabled: {}}

    def command(  # type: ignore[override]
        self, services: list[str], machine: str | None = None, user_name: str | None = None
    ) -> StringCommand:
        one = super().command(machine=machine, user_name=user_name, services=services)
        return StringCommand(one, "--property", SystemdEnabled.state_key)

    def process(self, output: Iterable[str]) -> dict[type, dict[str, bool]]:  # type: ignore[override]
        lines = list(output)
        return {fact: fact().process(lines) for fact in (SystemdStatus, SystemdEnabled)}


@dataclass
class FactMemory:
    """Remembers facts while nothing is executed, since nothing changes then."""

    state: State
    facts: dict[str, Any] = field(default_factory=dict)

    def attach(self) -> None:
        """Every host asks the memory first."""
        for host in self.state.inventory:
            host.get_fact = partial(self._ask, host, host.get_fact)  # type: ignore[method-assign]

    def forget(self) -> None:
        """After something may have changed."""
        self.facts.clear()

    def _ask(self, host: Host, get_fact: Callable[..., Any], fact: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.is_executing:
            return get_fact(fact, *args, **kwargs)
        if fact in (SystemdStatus, SystemdEnabled) and kwargs.get("services") and not kwargs.get("user_mode"):
            given = {name: value for name, value in kwargs.items() if value}
            return self._ask(host, get_fact, UnitStates, **given)[fact]
        arguments: Mapping[str, Any] = host.current_op_global_arguments or {}
        context = {name: arguments.get(name) for name in _FACT_CONTEXT}
        key = repr((host.name, fact.__module__, fact.__qualname__, args, sorted(kwargs.items()), context))
        if key not in self.facts:
            self.facts[key] = get_fact(fact, *args, **kwargs)
        return copy.deepcopy(self.facts[key])


class Undecidable(Exception):
    """An operation has a condition that cannot be told before the run; the message is the operation."""


def pending(state: State, host: Host) -> Iterator[list[str]]:
    """Names, from the outermost deploy to the operation, of what would change the host, in order."""
    for op_hash in host.op_hash_order:
        meta = _meta(state, host, op_hash)
        # An operation that its conditions stop changes nothing, which later conditions must know.
        if meta.will_change and not _conditions_hold(state, host, op_hash):
            meta._maybe_is_change = False
        if meta.will_change:
            yield operation_name(state, op_hash).split(_SEPARATOR)


def changes(state: State, host: Host) -> int:
    """How many of the operations that ran changed the host."""
    return sum(did_change(state, host, op_hash) for op_hash in host.op_hash_order)


def did_change(state: State, host: Host, op_hash: str) -> bool:
    """Whether an operation ran on the host and changed it."""
    if op_hash not in state.ops[host]:
        return False
    meta = _meta(state, host, op_hash)
    return bool(meta.is_complete() and meta.did_change())


def operation_name(state: State, op_hash: str) -> str:
    """An operation's name, those of the deploys around it in front."""
    return ", ".join(sorted(state.get_op_meta(op_hash).names))


def _meta(state: State, host: Host, op_hash: str) -> OperationMeta:
    return state.get_op_data_for_host(host, op_hash).operation_meta


def _conditions_hold(state: State, host: Host, op_hash: str) -> bool:
    conditions = state.get_op_data_for_host(host, op_hash).global_arguments.get("_if") or []
    try:
        return all(condition() for condition in ([conditions] if callable(conditions) else conditions))
    except RuntimeError as error:
        raise Undecidable(operation_name(state, op_hash)) from error
