"""Restarts in a cluster that keeps PostgreSQL's and Patroni's rules: in which order, and how the primary."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import IncompleteRead
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.deploys.scripts import load

# Settings of the scripted cluster: a limit may not be lower on a replica than it is on its primary.
Values = dict[str, int]
LIMITS = ("max_connections", "max_worker_processes")


@dataclass
class Server:
    """One member: what is in force, and whether it confirms commits."""

    name: str
    values: Values
    confirms: bool = True
    state: str = "streaming"


@dataclass
class Cluster:
    """Answers `patronictl` as Patroni does: exit 0 whatever happens, refusals in words."""

    wanted: Values
    servers: dict[str, Server]
    primary: str
    refuses: set[str] = field(default_factory=set)
    broken_by_restart: set[str] = field(default_factory=set)
    acts: list[tuple[str, ...]] = field(default_factory=list)
    silent: bool = False
    # How often members are asked when they read etcd before they do, and how often they have read it.
    asleep: int = 0
    reads: int = 0

    def read_at(self, address: str) -> int:
        """Each member's next round comes when it is asked for it."""
        self.asleep = max(0, self.asleep - 1)
        self.reads += not self.asleep
        return 1000 + self.reads

    def pending(self, server: Server) -> bool:
        return server.values != self.wanted

    def listed(self) -> str:
        rows = []
        for server in self.servers.values():
            leads = server.name == self.primary
            role = "Leader" if leads else "Quorum Standby" if server.confirms else "Replica"
            state = "running" if leads else server.state
            row = {"Member": server.name, "Role": role, "State": state, "Host": server.name}
            told = self.pending(server) and self.reads > 3 * len(self.servers)
            rows.append(row | ({"Pending restart": "*"} if told else {}))
        return json.dumps(rows)

    def start(self, server: Server) -> None:
        """A replica keeps the higher limit of its primary; a primary takes what is wanted."""
        server.values = dict(self.wanted)
        if server.name != self.primary:
            above = self.servers[self.primary].values
            server.values |= {name: max(server.values[name], above[name]) for name in LIMITS}
        if server.name in self.broken_by_restart:
            server.state = "start failed"

    def valid(self) -> bool:
        above = self.servers[self.primary].values
        replicas = [server for server in self.servers.values() if server.name != self.primary]
        return all(server.values[name] >= above[name] for server in replicas for name in LIMITS)

    def run(self, command: Sequence[str], seconds: float = 30) -> Any:
        words = tuple(command[1:])
        if words[0] == "list":
            return SimpleNamespace(returncode=int(self.silent), stdout=self.listed(), stderr="")
        self.acts.append(words)
        if words[0] == "restart":
            return self.restart(words[2])
        return self.switchover(words[3], words[5])

    def restart(self, name: str) -> Any:
        if name in self.refuses:
            return SimpleNamespace(
                returncode=0, stdout=f"Failed: restart for member {name}, 503\n", stderr=""
            )
        away = [s for s in self.servers.values() if s.state != "streaming" and s.name != self.primary]
        assert not away, "two members were away at once"
        self.start(self.servers[name])
        assert self.valid()
        return SimpleNamespace(returncode=0, stdout=f"Success: restart on member {name}\n", stderr="")

    def switchover(self, old: str, new: str) -> Any:
        assert old == self.primary
        assert self.servers[new].confirms
        if new in self.refuses:
            return SimpleNamespace(returncode=0, stdout="Switchover failed, details: 503\n", stderr="")
        self.primary = new
        # The old primary stops and starts as a replica.
        self.start(self.servers[old])
        assert self.valid()
        return SimpleNamespace(returncode=0, stdout="Successfully switched over\n", stderr="")

    def verbs(self) -> list[str]:
        """``restart db2`` or ``switchover db1 db2``, in order."""
        return [
            f"restart {act[2]}" if act[0] == "restart" else f"switchover {act[3]} {act[5]}"
            for act in self.acts
        ]


OLD = {"max_connections": 200, "max_worker_processes": 8, "shared_buffers": 1}


def make(wanted: Values, replicas: int = 2, **options: Any) -> Cluster:
    servers = {f"db{n}": Server(f"db{n}", dict(OLD)) for n in range(1, replicas + 2)}
    return Cluster(OLD | wanted, servers, "db1", **options)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return prepared(load("postgres/relay_patroni.py"), monkeypatch)


def prepared(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, whose waits take no time but are over after a hundred looks."""
    clock = itertools.count(0, 2)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: next(clock)))
    return module


def restart_pending(module: ModuleType, cluster: Cluster) -> None:
    module.run = cluster.run  # type: ignore[attr-defined]
    module.Restarts(2, cluster.read_at).all_pending()


@pytest.mark.parametrize("wanted", [{"shared_buffers": 2}, {"max_connections": 300}])
def test_replicas_first_then_the_primary_hands_over(
    program: Any, wanted: Values, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = make(wanted)
    restart_pending(program, cluster)
    assert cluster.verbs() == ["restart db2", "restart db3", "switchover db1 db2"]
    assert "db1 hands over to db2" in capsys.readouterr().out


def test_members_that_look_late_are_waited_for(program: Any) -> None:
    """Their hosts have other work: the next round comes long after the two seconds between rounds."""
    cluster = make({"shared_buffers": 2}, asleep=30)
    restart_pending(program, cluster)
    assert cluster.verbs() == ["restart db2", "restart db3", "switchover db1 db2"]


def test_a_cluster_that_cannot_be_listed_at_once_is_waited_for(program: Any) -> None:
    """Else the primary would be the first of which something is pending, and restart in place."""
    cluster, refused = make({"shared_buffers": 2}), iter(["busy"])

    def run(command: Sequence[str], seconds: float = 30) -> Any:
        if command[1] == "list" and next(refused, None):
            return SimpleNamespace(returncode=1, stdout="", stderr="busy")
        return cluster.run(command, seconds)

    program.run = run
    program.Restarts(2, cluster.read_at).all_pending()
    assert cluster.verbs() == ["restart db2", "restart db3", "switchover db1 db2"]


@pytest.mark.parametrize("loop_wait", [2, 10, 40])
def test_members_are_waited_for_however_rare_their_rounds_are(program: Any, loop_wait: int) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    program.time = SimpleNamespace(sleep=sleep, monotonic=lambda: now[0])
    program.run = make({}).run
    program.Restarts(loop_wait, lambda address: 1000 + int(now[0] // loop_wait)).settle()
    assert now[0] >= program.READS * loop_wait


@pytest.mark.parametrize(
    "wanted", [{"max_connections": 100}, {"max_connections": 300, "max_worker_processes": 4}]
)
def test_a_limit_that_shrinks_is_lowered_by_the_primary_in_place(
    program: Any, wanted: Values, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = make(wanted)
    restart_pending(program, cluster)
    first, last = ["restart db2", "restart db3"], ["restart db2", "restart db3"]
    assert cluster.verbs() == [*first, "restart db1", *last]
    assert "db1 is restarted in place: a limit shrinks, which db2, db3 may do only" in capsys.readouterr().out
    assert all(server.values == cluster.wanted for server in cluster.servers.values())


def test_without_a_replica_that_confirms_the_primary_is_restarted_in_place(
    program: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = make({"shared_buffers": 2})
    for server in cluster.servers.values():
        server.confirms = False
    restart_pending(program, cluster)
    assert cluster.verbs() == ["restart db2", "restart db3", "restart db1"]
    assert "db1 is restarted in place: no replica confirms commits" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_where_it_was(program: Any) -> None:
    cluster = make({"shared_buffers": 2})
    for name in ("db2", "db3"):
        cluster.start(cluster.servers[name])
    restart_pending(program, cluster)
    assert cluster.verbs() == ["switchover db1 db2"]
    cluster.acts.clear()
    restart_pending(program, cluster)
    assert cluster.verbs() == []


def test_a_replica_that_does_not_come_back_ends_it(program: Any) -> None:
    """As with a setting that a host has no memory for: the primary and the other replica go on."""
    cluster = make({"shared_buffers": 2}, broken_by_restart={"db2"})
    with pytest.raises(program.Failed, match=r"db2 is start failed\. Nothing else is restarted"):
        restart_pending(program, cluster)
    assert cluster.verbs() == ["restart db2"]


def test_nothing_is_restarted_while_a_member_is_away(program: Any) -> None:
    cluster = make({"shared_buffers": 2})
    cluster.servers["db3"].state = "starting"
    with pytest.raises(program.Failed, match="db3 is starting"):
        restart_pending(program, cluster)
    assert cluster.verbs() == []


def test_a_refused_switchover_is_tried_with_the_next(program: Any) -> None:
    cluster = make({"shared_buffers": 2})
    for name in ("db2", "db3"):
        cluster.start(cluster.servers[name])
    cluster.refuses = {"db2"}
    restart_pending(program, cluster)
    assert cluster.verbs() == ["switchover db1 db2", "switchover db1 db3"]


def test_what_is_refused_is_an_error_that_says_what_to_do(program: Any) -> None:
    """patronictl exits 0 then."""
    cluster = make({"shared_buffers": 2}, refuses={"db2"})
    with pytest.raises(program.Failed, match="db2 was not restarted: Failed: restart for member db2"):
        restart_pending(program, cluster)
    for name in ("db2", "db3"):
        cluster.start(cluster.servers[name])
    cluster.refuses = {"db2", "db3"}
    with pytest.raises(program.Failed, match=r"db1 could not hand over .*It goes on as primary"):
        restart_pending(program, cluster)
    assert cluster.primary == "db1"


def test_a_cluster_that_says_nothing_is_an_error(program: Any) -> None:
    with pytest.raises(program.Failed, match="patronictl list says nothing"):
        restart_pending(program, make({"shared_buffers": 2}, silent=True))


def test_a_member_that_confirmed_must_be_there_and_confirm_again(program: Any) -> None:
    cluster = [
        program.Member("db2", "Replica", "streaming", False),
        program.Member("db1", "Leader", "running", False),
    ]
    assert program.wrong(cluster, set()) == ""
    assert program.wrong(cluster, {"db1"}) == ""
    assert program.wrong(cluster, {"db2", "db3"}) == "db2 does not confirm commits; db3 is gone"
    assert program.wrong(cluster[:1], set()) == "the cluster has no primary"


class Answer(io.BytesIO):
    """Of Patroni's interface; an exception in its place breaks it off."""

    status = 200

    def __init__(self, text: str | Exception) -> None:
        super().__init__(b"" if isinstance(text, Exception) else text.encode())
        self.broken = text if isinstance(text, Exception) else None

    def read(self, size: int | None = -1) -> bytes:
        if self.broken is not None:
            raise self.broken
        return super().read(size)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        *(('{"state": "running", "dcs_last_seen": 1764300000}', 1764300000), ('{"state": "starting"}', 0)),
        *(("[]", 0), ("<html>", 0), (OSError("reset"), 0), (IncompleteRead(b'{"sta'), 0)),
    ],
    ids=str,
)
def test_when_a_member_last_read_etcd(
    program: Any, monkeypatch: pytest.MonkeyPatch, text: str | Exception, read: int
) -> None:
    monkeypatch.setattr(program.ssl, "create_default_context", lambda cafile: None)
    monkeypatch.setattr(program.urllib.request, "urlopen", lambda url, **_: Answer(text))
    assert program.last_read("10.0.0.1") == read


VALUES = st.fixed_dictionaries({name: st.integers(1, 3) for name in OLD})


@settings(
    max_examples=2 * settings().max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(old=VALUES, wanted=VALUES, confirm=st.lists(st.booleans(), max_size=3), done=st.integers(0, 3))
def test_every_change_ends_in_force_everywhere(
    program: Any, old: Values, wanted: Values, confirm: list[bool], done: int
) -> None:
    """However many replicas there are and confirm, and wherever an earlier run ended; the scripted cluster
    refuses a replica with a lower limit than its primary's. In place only where there was no other way."""
    servers = {f"db{n}": Server(f"db{n}", dict(old), ok) for n, ok in enumerate([True, *confirm], start=1)}
    cluster = Cluster(wanted, servers, "db1")
    for server in list(servers.values())[1 : done + 1]:
        cluster.start(server)
    due = cluster.pending(servers["db1"])
    restart_pending(program, cluster)
    assert not [server.name for server in servers.values() if cluster.pending(server)]
    shrinks = bool(confirm) and any(wanted[name] < old[name] for name in LIMITS)
    in_place = "restart db1" in cluster.verbs()
    assert in_place == (due and (shrinks or not any(confirm)))
    assert (cluster.primary != "db1") == (due and not in_place)


@pytest.fixture
def host(program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """db1 of a cluster whose Patroni must restart; `host.cluster` and `host.commands` tell what happened."""
    cluster = make({})
    commands: list[str] = []

    def run(command: Sequence[str], seconds: float = 30) -> Any:
        if command[0] == "patronictl":
            return cluster.run(command, seconds)
        commands.append(" ".join(command))
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    made = program.Host("db1", "https://db1:8008", tmp_path / "stale")
    made.stale.touch()
    monkeypatch.setattr(program, "run", run)
    monkeypatch.setattr(program.Host, "says", lambda self, path: (answers(cluster, self.name, path), "{}"))
    made.cluster, made.commands = cluster, commands
    return made


def answers(cluster: Cluster, name: str, path: str) -> int:
    """Patroni's interface: 200 or 503."""
    leads = cluster.primary == name
    server = cluster.servers[name]
    streams = not leads and server.state == "streaming"
    found = {"primary": leads, "quorum": streams and server.confirms}
    found["replica?replication_state=streaming"] = streams
    return 200 if found.get(path) else 503


RESTARTED = ["systemctl daemon-reload", "systemctl restart patroni.service"]


def test_a_primary_whose_patroni_must_restart_hands_over_first(host: Any) -> None:
    host.restart_replica()
    assert host.commands == []
    host.restart_rest()
    assert host.cluster.verbs() == ["switchover db1 db2"]
    assert host.commands == RESTARTED
    assert not host.stale.exists()
    host.restart_rest()
    assert host.commands == RESTARTED


def test_a_replica_restarts_as_it_is(host: Any) -> None:
    host.cluster.primary = "db3"
    host.restart_replica()
    assert host.commands == RESTARTED
    assert host.cluster.verbs() == []


def test_a_lone_primary_restarts_in_place_and_says_so(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for server in host.cluster.servers.values():
        server.confirms = False
    host.restart_rest()
    assert host.commands == RESTARTED
    assert "db1 is restarted in place: no replica confirms commits" in capsys.readouterr().out


def test_a_member_that_does_not_serve_is_told(host: Any, program: Any) -> None:
    host.serves()
    host.cluster.primary, host.cluster.servers["db1"].state = "db2", "starting"
    with pytest.raises(program.Failed, match="db1 neither is primary nor streams; Patroni says"):
        host.serves()
    with pytest.raises(program.Failed, match="after 180 s"):
        host.wait()


def test_a_command_that_does_not_exist_is_refused(program: Any) -> None:
    options = ["--name", "db1", "--rest", "https://db1:8008", "--loop-wait", "2", "--stale", "/run/stale"]
    with pytest.raises(SystemExit) as ended:
        program.main([*options, "restart-everything"])
    assert ended.value.code == 2
