"""The program that joins, restarts, replaces and forgets members of etcd, against a cluster made of dicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.deploys.scripts import load

NAMES = ("db1", "db2", "db3")


def peer(name: str) -> str:
    return f"https://{name}:2380"


def client(name: str) -> str:
    return f"https://{name}:2379"


class Cluster:
    """Members by ID, who of them is healthy, and what was done, in order."""

    def __init__(
        self, tool: ModuleType, directory: Path, own: str = "db2", fleet: tuple[str, ...] = NAMES
    ) -> None:
        self.tool, self.own = tool, own
        self.members = {number: name for number, name in enumerate(fleet, 1)}
        self.started = set(self.members)
        self.healthy = set(fleet)
        self.done: list[str] = []
        pairs = ",".join(f"{name}={peer(name)}" for name in fleet)
        tool.SETTINGS.write_text(
            f"# comment\nETCD_NAME={own}\nETCD_INITIAL_ADVERTISE_PEER_URLS={peer(own)}\n"
            f"ETCD_INITIAL_CLUSTER={pairs}\n"
        )

    def etcdctl(self, endpoints: list[str], *words: str) -> str:
        if words[:2] == ("endpoint", "health"):
            name = self.own if "127.0.0.1" in endpoints[0] else endpoints[0].split("//")[1].split(":")[0]
            if name not in self.healthy:
                raise self.tool.Failure("unhealthy")
            return ""
        if not any(client(name) in endpoints for name in self.healthy) and "127.0.0.1" not in endpoints[0]:
            raise self.tool.Failure("context deadline exceeded")
        if words[:2] == ("member", "list"):
            return json.dumps({"members": [self._entry(number) for number in self.members]})
        if words[1] == "remove":
            del self.members[int(words[2], 16)]
        if words[1] == "add":
            self.members[max(self.members, default=0) + 100] = words[2]
        self.done.append(" ".join(words))
        return ""

    def _entry(self, number: int) -> dict[str, Any]:
        name = self.members[number]
        started = {"name": name, "clientURLs": [client(name)]} if number in self.started else {}
        return {"ID": number, "peerURLs": [peer(name)], **started}

    def run(self, *words: str) -> Any:
        self.done.append(" ".join(words))
        if words[:2] == ("systemctl", "--no-block"):
            self.healthy.add(self.own)
        return type("Done", (), {"returncode": 0, "stdout": "last line", "stderr": ""})

    def changes(self) -> list[str]:
        return [line for line in self.done if line.startswith("member")]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    def make(**options: Any) -> Cluster:
        tool = load("etcd/relay_etcd_member.py")
        for name in ("SETTINGS", "DATA", "NOT_YET", "JOINING"):
            monkeypatch.setattr(tool, name, tmp_path / name.lower())
        monkeypatch.setattr(tool, "PAUSE_SECONDS", 0)
        made = Cluster(tool, tmp_path, **options)
        monkeypatch.setattr(tool, "etcdctl", made.etcdctl)
        monkeypatch.setattr(tool, "run", made.run)
        return made

    return make


def with_data(found: Cluster) -> None:
    (found.tool.DATA / "member").mkdir(parents=True)


def test_a_host_without_data_becomes_a_new_member(cluster: Callable[..., Cluster]) -> None:
    found = cluster()
    found.healthy.discard("db2")
    found.tool.NOT_YET.touch()
    assert found.tool.main(["join"]) == 0
    assert found.changes() == ["member remove 2", "member add db2 --peer-urls=https://db2:2380"]
    assert not found.tool.NOT_YET.exists()
    assert "systemctl --no-block start etcd.service" in found.done


def test_it_is_told_the_cluster_as_it_is_and_that_it_exists(
    cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cluster(own="db4", fleet=(*NAMES, "db4", "db5"))
    found.members = {1: "db1", 2: "db2", 3: "db3"}
    monkeypatch.setattr(found.tool, "start", lambda _: None)
    found.tool.admit(found.tool.settings())
    assert found.tool.JOINING.read_text().splitlines() == [
        "ETCD_INITIAL_CLUSTER=db1=https://db1:2380,db2=https://db2:2380,db3=https://db3:2380,db4=https://db4:2380",
        "ETCD_INITIAL_CLUSTER_STATE=existing",
    ]


def test_an_interrupted_join_goes_on_as_the_member_that_was_added(cluster: Callable[..., Cluster]) -> None:
    found = cluster()
    found.healthy.discard("db2")
    found.started.discard(2)
    assert found.tool.main(["join"]) == 0
    assert found.changes() == []


def test_a_member_with_data_only_starts(cluster: Callable[..., Cluster]) -> None:
    found = cluster()
    with_data(found)
    assert found.tool.main(["join"]) == 0
    assert found.changes() == []


@pytest.mark.parametrize(
    ("command", "healthy", "code"),
    [
        (["join"], {"db1", "db3"}, 0),
        (["join"], {"db1"}, 2),
        (["join"], set(), 2),
        (["replace", "--yes"], {"db1", "db3"}, 0),
        (["replace", "--yes"], {"db3"}, 2),
        (["replace", "--yes"], {"db1", "db2", "db3"}, 2),
        (["restart"], {"db1", "db2", "db3"}, 0),
        (["restart"], {"db1", "db2"}, 2),
    ],
)
def test_nothing_is_done_without_a_quorum(
    cluster: Callable[..., Cluster], command: list[str], healthy: set[str], code: int
) -> None:
    found = cluster()
    found.healthy = healthy
    if command[0] != "join":
        with_data(found)
    assert found.tool.main(command) == code
    if code:
        assert found.changes() == []
        assert not [line for line in found.done if line.startswith("systemctl")]


def test_damaged_data_is_moved_aside_not_removed(cluster: Callable[..., Cluster]) -> None:
    found = cluster()
    found.healthy.discard("db2")
    with_data(found)
    assert found.tool.main(["replace"]) == 0
    assert found.done == []
    assert found.tool.main(["replace", "--yes"]) == 0
    (aside,) = found.tool.DATA.parent.glob("data.damaged-*")
    assert (aside / "member").exists()
    assert found.changes() == ["member remove 2", "member add db2 --peer-urls=https://db2:2380"]


def test_who_left_the_fleet_is_forgotten(cluster: Callable[..., Cluster]) -> None:
    found = cluster(own="db1")
    found.members |= {4: "db4", 5: "db5"}
    found.started |= {4, 5}
    assert found.tool.main(["forget"]) == 0
    assert found.changes() == ["member remove 4", "member remove 5"]


def test_but_not_when_those_who_stay_have_no_quorum(cluster: Callable[..., Cluster]) -> None:
    found = cluster(own="db1")
    found.members |= {4: "db4", 5: "db5"}
    found.started |= {4, 5}
    found.healthy = {"db1", "db4", "db5"}
    assert found.tool.main(["forget"]) == 2
    assert found.changes() == []


def test_a_start_that_fails_shows_the_last_lines(
    cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = cluster()
    found.healthy.discard("db2")
    monkeypatch.setattr(found, "run", lambda *_: type("Done", (), {"stdout": "panic: bad page\n"}))
    monkeypatch.setattr(found.tool, "run", found.run)
    with pytest.raises(found.tool.Failure, match="panic: bad page"):
        found.tool.start(found.tool.settings(), seconds=0)
