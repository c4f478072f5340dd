"""When a primary hands over before its disk is full, to whom, and when it does not."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.deploys.scripts import load

MB = 2**20
LEADER, STANDBY = ("leader", "running"), ("quorum_standby", "streaming")


@pytest.fixture
def watch() -> ModuleType:
    return load("postgres/relay_disk_watch.py")


def decision(
    watch: ModuleType,
    free: int = 50,
    *,
    size: int = 1000,
    members: dict[str, tuple[str, str]] | None = None,
    paused: bool = False,
    reserve: bool = True,
    rooms: dict[str, int] | None = None,
    cooling: bool = False,
    name: str = "db1",
    silent: bool = False,
) -> Any:
    """What is decided with `free` of `size` MB; short is below 100 MB, a replica needs 200."""
    members = members or {"db1": LEADER, "db2": STANDBY, "db3": STANDBY}
    told = {"db2": 500, "db3": 800} if rooms is None else rooms
    return watch.decide(
        name,
        watch.Room(free * MB, size * MB),
        watch.Limits(100, 5, 40),
        reserve,
        None if silent else watch.Cluster(members, paused),
        {member: watch.Room(room * MB, size * MB) for member, room in told.items()},
        cooling,
    )


def test_a_short_primary_frees_its_reserve_and_hands_over_to_the_one_with_most_room(watch: Any) -> None:
    assert decision(watch) == watch.Decision(free_reserve=True, candidate="db3")
    assert decision(watch, reserve=False) == watch.Decision(candidate="db3")


def test_one_with_room_does_nothing(watch: Any) -> None:
    assert decision(watch, free=300) == watch.Decision()


@pytest.mark.parametrize(("size", "hands_over"), [(2000, False), (3000, True)])
def test_the_share_counts_where_it_is_more(watch: Any, size: int, hands_over: bool) -> None:
    """120 MB are more than 100, but less than 5 % of 3,000."""
    rooms = {"db2": 1500, "db3": 1500}
    assert bool(decision(watch, free=120, size=size, rooms=rooms).candidate) == hands_over


def test_a_replica_and_a_host_whose_patroni_is_silent_only_tell(watch: Any) -> None:
    assert decision(watch, name="db2", rooms={"db3": 800}) == watch.Decision()
    assert decision(watch, silent=True) == watch.Decision()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"rooms": {"db2": 150, "db3": 199}}, "db2 has only 150 MB; db3 has only 199 MB"),
        ({"rooms": {}}, "db2 has not told its room for 30 s; db3 has not told its room for 30 s"),
        ({"members": {"db1": LEADER}}, "there is no replica"),
        ({"members": {"db1": LEADER, "db2": ("replica", "streaming")}}, "db2 is a replica that is streaming"),
        (
            {"members": {"db1": LEADER, "db2": ("quorum_standby", "starting")}},
            "db2 is a quorum_standby that is starting",
        ),
        ({"paused": True}, "the cluster is paused (patronictl resume)"),
        ({"cooling": True}, "a hand-over was less than 600 s ago"),
    ],
)
def test_why_it_is_not_possible_is_said_and_the_reserve_is_freed(
    watch: Any, case: dict[str, Any], reason: str
) -> None:
    assert decision(watch, **case) == watch.Decision(free_reserve=True, blocked=reason)


@pytest.mark.parametrize(("free", "made"), [(170, False), (190, True)])
def test_the_reserve_is_made_again_when_there_is_room_for_it_twice(watch: Any, free: int, made: bool) -> None:
    assert decision(watch, free=free, reserve=False).make_reserve == made


@pytest.fixture
def watcher(watch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A watcher of a directory whose commands are remembered."""
    commands: list[list[str]] = []

    def run(command: list[str], seconds: float = 10) -> Any:
        commands.append(list(command))
        told = "lease 694d granted with TTL(30s)" if command[2:4] == ["lease", "grant"] else ""
        return watch.subprocess.CompletedProcess(command, 0, told, "")

    monkeypatch.setattr(watch, "run", run)
    monkeypatch.setattr(watch, "FIGURES", tmp_path / "figures" / "postgres_disk.prom")
    made = watch.Watcher("db1", tmp_path / "15" / "relay", "https://db1:8008", watch.Limits(1, 0.0, 2))
    made.data.mkdir(parents=True)
    made.commands = commands
    return made


def figures(watch: Any) -> dict[str, int]:
    lines = [line.split() for line in watch.FIGURES.read_text().splitlines() if not line.startswith("#")]
    return {name: int(value) for name, value in lines}


def test_a_round_makes_the_reserve_tells_the_room_and_writes_figures(watch: Any, watcher: Any) -> None:
    watcher.look()
    assert watcher.reserve.stat().st_size == 2 * MB
    assert watcher.reserve.stat().st_blocks * 512 >= 2 * MB
    (put,) = [command for command in watcher.commands if "put" in command]
    assert put[3:5] == ["--lease=694d", "/relay/disk/db1"]
    assert set(json.loads(put[5])) == {"free", "size"}
    watcher.look()
    found = figures(watch)
    assert set(found) == set(watch.HELP)
    assert found["postgres_disk_reserve_bytes"] == 2 * MB
    assert found["postgres_disk_handover_bytes"] == MB


def test_a_hand_over_frees_the_reserve_first_and_leaves_a_mark(
    watch: Any, watcher: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watcher.look()
    monkeypatch.setattr(watch, "measure", lambda _: watch.Room(0, 100 * MB))
    monkeypatch.setattr(watch, "cluster", lambda _: watch.Cluster({"db1": LEADER, "db2": STANDBY}, False))
    monkeypatch.setattr(watch, "told_rooms", lambda: {"db2": watch.Room(50 * MB, 100 * MB)})
    watcher.look()
    assert not watcher.reserve.exists()
    assert figures(watch)["postgres_disk_handovers_total"] == 1
    assert watcher.commands[-1] == [
        *("patronictl", "switchover", "relay"),
        *("--leader", "db1", "--candidate", "db2", "--force"),
    ]
    assert any("/relay/disk-handover" in command for command in watcher.commands)
    assert "handing over to db2" in capsys.readouterr().out


def test_what_is_said_is_said_once(watcher: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("a", "a", "b", "a"):
        watcher.say(text)
    assert capsys.readouterr().out.split() == ["a", "b", "a"]


def test_rooms_that_others_told(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = '/relay/disk/db2\n{"free": 5, "size": 9}\n/relay/disk/db3\n{"free": 6, "size": 9}\n'
    monkeypatch.setattr(watch, "etcdctl", lambda *_: told)
    assert watch.told_rooms() == {"db2": watch.Room(5, 9), "db3": watch.Room(6, 9)}
