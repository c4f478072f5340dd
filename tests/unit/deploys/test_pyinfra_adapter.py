"""What the toolkit assumes of pyinfra 3.10.0's inner workings, one test a sentence of the adapter."""

from __future__ import annotations

import importlib
import itertools
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from inspect import getcallargs
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_type_hints

import gevent
import pyinfra
import pytest
from pyinfra import context
from pyinfra.api import arguments
from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.operation import operation
from pyinfra.api.state import State
from pyinfra.api.util import get_operation_order_from_stack
from pyinfra.connectors.fake import FakeConnector
from pyinfra.context import ctx_host, ctx_inventory
from pyinfra.facts.systemd import SystemdEnabled, SystemdStatus
from pyinfra.operations import files, server
from pyinfra.operations.util import any_changed

from deploys.lib import fleet, pyinfra_adapter
from deploys.lib.pyinfra_adapter import FactMemory, Undecidable, is_executing

SETTINGS = {"fake_delay": 0, "fake_delay_jitter": 0}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def state(said: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    monkeypatch.setattr(pyinfra, "is_cli", False)
    names: list[Any] = [(f"@fake/{name}", SETTINGS) for name in ("one", "two")]
    inventory = Inventory((names, {}))
    with ctx_inventory.use(inventory):
        yield pyinfra_adapter.new_state(inventory, list(inventory), fleet.REPOSITORY, said.append)


@contextmanager
def prepared(state: State, load: Callable[[], Any]) -> Iterator[list[Host]]:
    """Both hosts, connected, with operations prepared."""
    hosts = list(state.inventory)
    with pyinfra_adapter.connected(state, hosts) as unreached:
        assert unreached == []
        prepare(state, load)
        yield hosts


def prepare(state: State, load: Callable[[], Any]) -> None:
    pyinfra_adapter.reset(state)
    for host in state.inventory:
        with pyinfra_adapter.preparing(state, host), pyinfra_adapter.labelled(host, "stage"):
            load()


def commands(host: Host) -> list[str]:
    connector: Any = host.connector
    return list(connector.executed_commands)


def test_the_version_is_the_one_that_was_tried() -> None:
    assert metadata.version("pyinfra") == "3.10.0"
    assert '"==3.10.0"' in (fleet.REPOSITORY / "config.py").read_text()


def test_the_settings_of_the_repository_hold(state: State) -> None:
    assert (state.config.SUDO, state.config.FAIL_PERCENT) == (True, 0)
    assert state.cwd == str(fleet.REPOSITORY)


def test_one_connection_serves_several_rounds(state: State) -> None:
    with prepared(state, lambda: server.shell(name="First", commands=["first"])) as hosts:
        pyinfra_adapter.execute(state)
        prepare(state, lambda: server.shell(name="Second", commands=["second"]))
        assert [name for name in pyinfra_adapter.pending(state, hosts[0])] == [["stage", "Second"]]
        pyinfra_adapter.execute(state)
        for host in hosts:
            assert commands(host) == ["first", "second"]
            assert pyinfra_adapter.changes(state, host) == 1


@operation()
def _note(seen: list[bool]) -> Generator[StringCommand, None, None]:
    seen.append(is_executing())
    yield StringCommand("true")


def test_preparing_and_running_are_told_apart(state: State) -> None:
    seen: list[bool] = []
    with prepared(state, lambda: _note(name="Note", seen=seen)):
        assert seen == [False, False]
        pyinfra_adapter.execute(state)
        assert seen[2:]
        assert all(seen[2:])
        # It stays so until the next round begins.
        pyinfra_adapter.reset(state)
        assert not is_executing()


def _put() -> None:
    files.put(name="Put", src=StringIO("text"), dest="/etc/thing")


def test_facts_are_remembered_until_something_runs(state: State) -> None:
    memory = FactMemory(state)
    memory.attach()
    with prepared(state, _put) as (host, _):
        asked = len(commands(host))
        assert asked
        prepare(state, _put)
        assert len(commands(host)) == asked
        pyinfra_adapter.execute(state)
        assert len(commands(host)) > asked
        memory.forget()
        asked = len(commands(host))
        prepare(state, _put)
        assert len(commands(host)) > asked


def test_a_remembered_fact_cannot_be_changed_by_who_asked(state: State) -> None:
    memory = FactMemory(state)
    memory.attach()
    with prepared(state, lambda: None) as (host, _), pyinfra_adapter.preparing(state, host):
        first: list[str] = host.get_fact(_List)
        first.append("changed")
        assert host.get_fact(_List) == []


def test_both_facts_of_a_unit_are_one_question(state: State) -> None:
    """And say what each of them says of its own answer."""
    lines = ["Id=a.service", "UnitFileState=enabled", "SubState=dead", "", "Id=b.timer", "SubState=waiting"]
    with prepared(state, lambda: None) as (host, _):
        connector: Any = host.connector
        connector.data["fake_responses"] = {"UnitFileState": lines}
        memory = FactMemory(state)
        memory.attach()
        with pyinfra_adapter.preparing(state, host):
            asked = len(commands(host))
            units = ["a.service", "b.timer"]
            running = host.get_fact(SystemdStatus, services=units, machine=None, user_mode=False)
            enabled = host.get_fact(SystemdEnabled, services=units)
    assert running == {"a.service": False, "b.timer": True}
    assert enabled == {"a.service": True}
    (question,) = commands(host)[asked:]
    assert "--property SubState a.service b.timer --property UnitFileState" in question


def test_where_a_unit_is_unknown_both_facts_are_empty(state: State) -> None:
    memory = FactMemory(state)
    memory.attach()
    with prepared(state, lambda: None) as (host, _), pyinfra_adapter.preparing(state, host):
        assert host.get_fact(SystemdStatus, services=["a.service"]) == {}
        assert host.get_fact(SystemdEnabled, services=["a.service"]) == {}


class _List(FactBase[list[str]]):
    def command(self) -> str:
        return "list"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return [line for line in output if line]


def test_names_begin_with_the_stage(state: State) -> None:
    @deploy("Role")
    def role() -> None:
        server.shell(name="Act", commands=["act"])

    with prepared(state, role) as (host, _):
        assert list(pyinfra_adapter.pending(state, host)) == [["stage", "Role", "Act"]]


def test_a_condition_that_does_not_hold_means_no_change_for_itself_and_for_those_that_follow(
    state: State,
) -> None:
    def load() -> None:
        first = server.shell(name="First", commands=["first"], _if=lambda: False)
        server.shell(name="Second", commands=["second"], _if=fleet.changed(first))

    with prepared(state, load) as (host, _):
        assert list(pyinfra_adapter.pending(state, host)) == []
        pyinfra_adapter.execute(state)
        assert commands(host) == []
        assert pyinfra_adapter.changes(state, host) == 0


def test_a_condition_that_only_the_run_can_tell_is_named(state: State) -> None:
    def load() -> None:
        first = server.shell(name="First", commands=["first"])
        server.shell(name="Second", commands=["second"], _if=any_changed(first))

    with prepared(state, load) as (host, _), pytest.raises(Undecidable, match=r"stage \| Second"):
        list(pyinfra_adapter.pending(state, host))


def test_what_changed_and_what_failed_is_reported(
    state: State, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FakeConnector.run_shell_command

    def refuse(self: Any, command: Any, **arguments: Any) -> Any:
        self.data["fake_responses"] = {"bad": {"success": self.host.name != "@fake/two"}}
        return original(self, command, **arguments)

    monkeypatch.setattr(FakeConnector, "run_shell_command", refuse)

    def load() -> None:
        server.shell(name="Good", commands=["good"])
        server.shell(name="Bad", commands=["bad"])

    with prepared(state, load):
        with pytest.raises(PyinfraError):
            pyinfra_adapter.execute(state)
        assert [host.name for host in state.failed_hosts] == ["@fake/two"]
    assert said[0] == "  Good: @fake/one, @fake/two"
    assert "@fake/two: failed: stage | Bad" in said


def test_hosts_that_cannot_be_reached_are_told(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: Any) -> None:
        if self.host.name == "@fake/two":
            raise ConnectError("no route")

    monkeypatch.setattr(FakeConnector, "connect", connect)
    with pyinfra_adapter.connected(state, list(state.inventory)) as unreached:
        assert [host.name for host in unreached] == ["@fake/two"]


def test_a_command_outside_operations(state: State) -> None:
    with prepared(state, lambda: None) as (host, _):
        assert pyinfra_adapter.run_shell(host, "true") == (True, "")


def test_nothing_else_touches_the_inner_workings() -> None:
    inner = (
        "is_executing", "op_meta", "op_hash", "_maybe_is_change", "is_cli", "StateStage", "connector_data",
        "current_op_global_arguments", "loop_position",
    )  # fmt: skip
    for path in sorted((fleet.REPOSITORY / "deploys").rglob("*.py")):
        text = path.read_text().replace("import is_executing", "").replace("is_executing()", "")
        found = [word for word in inner if word in text]
        assert found == [] or path.name == "pyinfra_adapter.py", f"{Path(path).name}: {found}"


def test_a_host_that_is_dropped_is_gone_on_without(state: State) -> None:
    with prepared(state, lambda: server.shell(name="First", commands=["first"])) as (one, two):
        state.failed_hosts.add(two)
        pyinfra_adapter.drop(state, [two])
        pyinfra_adapter.execute(state)
        assert (commands(one), commands(two)) == (["first"], [])
        assert two not in state.failed_hosts


def test_who_is_part_of_the_run(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a host outside of the limit, though it can be asked; nor one not reached, dropped or failed."""
    names: list[Any] = [(f"@fake/{name}", SETTINGS) for name in ("one", "two", "three", "four", "five")]
    inventory = Inventory((names, {}))
    one, two, three, four, five = inventory
    connect = FakeConnector.connect

    def reach(self: Any) -> None:
        if self.host is three:
            raise ConnectError("no route")
        connect(self)

    monkeypatch.setattr(FakeConnector, "connect", reach)
    with ctx_inventory.use(inventory):
        state = pyinfra_adapter.new_state(inventory, [one, three, four, five], fleet.REPOSITORY, print)
        with pyinfra_adapter.connected(state, list(inventory)):
            assert pyinfra_adapter.in_run(inventory) == [one, four, five]
            with pyinfra_adapter.preparing(state, one):
                assert [pyinfra_adapter.reachable(host, 1) for host in inventory] == [
                    host is not three for host in inventory
                ]
                assert two.get_fact(_List) == []
            assert pyinfra_adapter.in_run(inventory) == [one, four, five]
            pyinfra_adapter.drop(state, [four])
            with suppress(PyinfraError):
                state.fail_hosts({five})
            assert pyinfra_adapter.in_run(inventory) == [one]


def test_a_host_whose_connection_has_ended_cannot_be_asked(state: State) -> None:
    with prepared(state, lambda: None) as (host, _):
        host.connector.client = host_with("ended")[0].connector.client  # type: ignore[attr-defined]
        assert not pyinfra_adapter.reachable(host, 0.05)


@pytest.mark.parametrize(("own", "told"), [(None, 7), (3, 3)])
def test_a_time_out_bounds_each_command_and_may_be_set_late(
    state: State, monkeypatch: pytest.MonkeyPatch, own: int | None, told: int
) -> None:
    seen: list[Any] = []
    original = FakeConnector.run_shell_command

    def run(self: Any, command: Any, **arguments: Any) -> Any:
        seen.append(arguments.get("_timeout"))
        return original(self, command, **arguments)

    monkeypatch.setattr(FakeConnector, "run_shell_command", run)
    options: dict[str, Any] = {"_timeout": own} if own else {}
    with prepared(state, lambda: server.shell(name="First", commands=["first"], **options)):
        pyinfra_adapter.execute(state, seconds=7)
    assert seen == [told, told]


class Transport:
    """A connection that answers, is silent or has ended."""

    def __init__(self, answer: str) -> None:
        self.answer, self.closed = answer, False
        self.sock: object = None

    def global_request(self, kind: str, wait: bool) -> None:
        assert (kind, wait) == ("keepalive@openssh.com", True)
        if self.answer == "silent":
            gevent.sleep(60)

    def is_active(self) -> bool:
        return self.answer == "answers"

    def close(self) -> None:
        self.closed = True


def host_with(answer: str) -> tuple[Any, Transport]:
    transport = Transport(answer)
    client = SimpleNamespace(get_transport=lambda: transport)
    return SimpleNamespace(name=answer, connector=SimpleNamespace(client=client)), transport


@pytest.mark.parametrize("later", [False, True], ids=["of the run", "asked besides"])
def test_packets_are_sent_at_once(state: State, monkeypatch: pytest.MonkeyPatch, later: bool) -> None:
    """Nagle's algorithm and delayed acknowledgements cost 40 ms a packet."""
    connections: list[socket.socket] = []

    def connect(self: Any) -> None:
        connections.append(socket.socket())
        transport = Transport("answers")
        transport.sock = connections[-1]
        self.client = SimpleNamespace(get_transport=lambda: transport)

    monkeypatch.setattr(FakeConnector, "connect", connect)
    hosts = list(state.inventory)
    if later:
        assert all(pyinfra_adapter.reachable(host, 5) for host in hosts)
    else:
        with pyinfra_adapter.connected(state, hosts) as unreached:
            assert not unreached
    assert len(connections) == len(hosts)
    for connection in connections:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()


def test_a_connection_that_has_ended_since_is_no_error(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch closes a lost host's; the next role asks whether it can be reached."""

    def connect(self: Any) -> None:
        transport = Transport("ended")
        transport.sock = connection = socket.socket()
        connection.close()
        self.client = SimpleNamespace(get_transport=lambda: transport)

    monkeypatch.setattr(FakeConnector, "connect", connect)
    assert not any(pyinfra_adapter.reachable(host, 5) for host in state.inventory)


@pytest.mark.parametrize(("answer", "alive"), [("answers", True), ("silent", False), ("ended", False)])
def test_only_an_answer_is_a_sign_of_life(answer: str, alive: bool) -> None:
    host, _ = host_with(answer)
    assert pyinfra_adapter.alive(host, 0.05) == alive


def test_a_silent_host_is_named_and_its_connection_closed(said: list[str]) -> None:
    (silent, its), (well, other) = host_with("silent"), host_with("answers")
    with pyinfra_adapter.Watch([silent, well], 0.05, said.append).watching() as watch:
        gevent.sleep(0.3)
    assert watch.lost == [silent]
    assert (its.closed, other.closed) == (True, False)
    assert said == ["silent has not answered for 0 s"]


@pytest.mark.parametrize("works", [True, False])
def test_hosts_that_ask_for_the_same_one_connect_once_at_a_time(
    state: State, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    begun: list[str] = []
    most = 0

    def connect(self: Any) -> None:
        nonlocal most
        begun.append(self.host.name)
        most = max(most, begun.count(self.host.name))
        gevent.sleep(0.02)
        if works:
            return
        begun.remove(self.host.name)
        raise ConnectError("no route")

    monkeypatch.setattr(FakeConnector, "connect", connect)
    one, two = state.inventory
    jobs = [gevent.spawn(pyinfra_adapter.reachable, host, 1.0) for host in (one, two, one, two, one)]
    gevent.joinall(jobs, raise_error=True)
    assert [job.value for job in jobs] == [works] * 5
    assert most == 1
    assert len(begun) == (2 if works else 0)


def test_merged_data_is_what_pyinfra_finds() -> None:
    """Keys in every set of sources, for hosts in no, one and two groups."""
    names = ("host", "first", "second", "all", "override", "deploy")
    given: dict[str, dict[str, str]] = {name: {} for name in names}
    for number, there in enumerate(itertools.product((False, True), repeat=len(names))):
        for name in itertools.compress(names, there):
            given[name][f"_key{number}"] = name
    inventory = Inventory(
        ([("both", given["host"]), "one", "none"], given["all"]),
        override_data=given["override"],
        first=(["both", "one"], given["first"]),
        second=(["both"], given["second"]),
    )
    before = {host: host.data for host in inventory}
    pyinfra_adapter.merge_data(inventory)
    for host in inventory:
        host.current_deploy_data = given["deploy"]
        assert host.data.dict() == before[host].dict()
        for key in host.data.dict():
            assert getattr(host.data, key) == getattr(before[host], key)
        assert host.data.get("_key0", "absent") == before[host].get("_key0", "absent") == "absent"
        host.data._key63 = "set"
        assert host.data._key63 == "set"
    with pytest.raises(AttributeError, match="host none has no data 'missing'"):
        _ = inventory.get_host("none").data.missing


def test_what_a_host_gave_cannot_be_changed_by_who_asked(state: State) -> None:
    (host, _) = state.inventory
    host.data.many = [1]
    host.data.many.append(2)
    assert host.data.many == [1]


def test_global_arguments_are_those_of_the_class() -> None:
    assert arguments.all_global_arguments() == list(get_type_hints(arguments.AllArguments).items())


@pytest.mark.parametrize(
    ("given", "deploys"),
    [
        ({}, {}),
        ({"_sudo_user": "own", "_retries": 3}, {}),
        ({}, {"_sudo_user": "of the deploy"}),
        ({"edge": 1}, {"name": "x"}),
    ],
)
def test_global_arguments_are_gathered_as_pyinfra_does(
    state: State, given: dict[str, Any], deploys: dict[str, Any]
) -> None:
    """From the host's data, the deploy's, its arguments and the call's, by a host and by the current one."""
    (host, other) = state.inventory
    host.data.override_datas.update(given)
    host.current_deploy_data = deploys
    host.current_deploy_kwargs = cast(Any, {"_env": {"A": "deploy"}})
    call = {"_sudo": False, "src": "x"}
    ours, theirs = dict(call), dict(call)
    expected = arguments.pop_global_arguments(state, host, theirs)
    assert pyinfra_adapter._pop_quickly(state, host, ours) == expected
    assert ours == theirs == {"src": "x"}
    assert (expected[0]["_env"], expected[1]) == ({"A": "deploy"}, ["_sudo"])
    assert expected[0]["_sudo_user"] == (given | deploys).get("_sudo_user")
    with ctx_host.use(host):
        assert pyinfra_adapter._pop_quickly(state, context.host, dict(call)) == expected
    assert pyinfra_adapter._pop_quickly(state, other, {}) == arguments.pop_global_arguments(state, other, {})


@pytest.mark.parametrize("asked", [{}, {"_sudo": False}, {"_env": {"B": "fact"}, "path": "x"}])
def test_those_of_a_fact_are_gathered_as_pyinfra_does(state: State, asked: dict[str, Any]) -> None:
    """Within an operation, and with arguments of its own; outside of one, too."""
    (host, _) = state.inventory
    host.data.override_datas.update({"_sudo_user": "own"})
    outer, _ = arguments.pop_global_arguments(state, host, {"_env": {"A": "call"}, "_timeout": 7})
    for given in ({}, cast(dict[str, Any], outer)):
        ours, theirs = {**given, **asked}, {**given, **asked}
        found, names = pyinfra_adapter._pop_for_fact(state, host, ours)
        expected, known = arguments.pop_global_arguments(state, host, theirs)
        assert (found, set(names), ours) == (expected, set(known), theirs)


def test_arguments_of_facts_are_bound_as_pyinfra_does() -> None:
    class Asked:
        def command(self, path: str, deep: bool = False, *more: str, command: str = "x") -> str:
            return path

        @staticmethod
        def free(path: str, **more: str) -> str:
            return path

    one = Asked()
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (one.command, ("a",), {}),
        (one.command, ("a", True, "b"), {"command": "y"}),
        (one.command, (), {"path": "a"}),
        (one.free, ("a",), {"b": "c"}),
    ]
    for function, words, named in calls:
        assert pyinfra_adapter._bound(function, *words, **named) == getcallargs(function, *words, **named)
    with pytest.raises(TypeError, match="path"):
        pyinfra_adapter._bound(one.command)


def test_an_operations_place_is_the_one_that_pyinfra_finds(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyinfra, "is_cli", True)
    state.current_op_file_number = 7

    def places() -> list[list[int]]:
        return [ask(state) for ask in (pyinfra_adapter._operation_order, get_operation_order_from_stack)]

    ours, theirs = places()
    assert ours == theirs
    assert (ours[0], len(ours) > 3) == (7, True)
    assert places()[0] != ours, "another line"


def test_pyinfra_asks_the_adapter() -> None:
    for name in ("deploy", "operation"):
        module = importlib.import_module(f"pyinfra.api.{name}")
        assert module.pop_global_arguments is pyinfra_adapter._pop_quickly
    facts = importlib.import_module("pyinfra.api.facts")
    assert facts.pop_global_arguments is pyinfra_adapter._pop_for_fact
    assert facts.getcallargs is pyinfra_adapter._bound
    placing = importlib.import_module("pyinfra.api.operation").get_operation_order_from_stack
    assert placing is pyinfra_adapter._operation_order
