"""The command restore, over the cluster."""

from __future__ import annotations

import itertools
import json
import shlex
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backups.cluster import Answer
from tests.unit.backups import repository_answers as repository
from tests.unit.backups.scripted import Call, Fleet, members

NAME = ("--over-cluster", "production/relay")
DO = (*NAME, "--yes", "--reason", "a table was dropped")
GB = 1_000_000_000


class Hosts:
    """Three database hosts with the program of a restore; they keep the journal, and become primary."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.journals: dict[str, str] = {}
        self.primary: str | None = None
        self.broken = ""
        repository.answers(fleet)
        healthy = members(db1="quorum_standby streaming", db2="leader running", db3="replica streaming")
        fleet.on("db.", "/cluster", healthy)
        fleet.on("db.", "relay-etcdctl")
        fleet.on("db.", "psql")
        fleet.on("db.", "pgbackrest .* check$")
        fleet.on("db.", "/primary", lambda host: Answer(0 if host == self.primary else 22))
        fleet.on("db.", "relay-backups restore", self.program)
        fleet.on("db.", "relay-backups restore look", self.look)
        fleet.on(
            "db.", "relay-backups restore watch", lambda _: {"patroni": "active", "data_bytes": 1, "log": []}
        )
        fleet.on("db.", "relay-backups restore journal", self.journal)
        fleet.on("db.", "relay-backups restore ended", lambda _: {"last_transaction_at": self.last})
        self.last: str | None = "2026-11-26T05:00:00.5+00"
        self.free: dict[str, int] = {}

    def look(self, host: str) -> dict[str, Any]:
        journal = json.loads(self.journals[host]) if host in self.journals else None
        return {
            "patroni": "active",
            "server": True,
            "data_bytes": 40_000_000,
            "free_bytes": self.free.get(host, GB),
            "held": "",
            "aside": [],
            "aside_bytes": 0,
            "journal": journal,
            "pgbackrest": True,
            "time": 1_795_700_000,
        }

    def words(self) -> list[str]:
        return shlex.split(self.fleet.told[-1][1])[2:]

    def journal(self, host: str) -> str:
        self.journals[host] = self.words()[1]
        return ""

    def program(self, host: str) -> Answer:
        action = self.words()[0]
        if self.broken in (action, f"{action} {host}"):
            return Answer(1, err="restore: the disk is broken")
        if action == "bootstrap":
            self.primary = host
        return Answer(0)

    def actions(self) -> list[tuple[str, str]]:
        told = self.fleet.commands(r"relay-backups restore (?!look|journal|watch|ended)")
        acted = [(host, shlex.split(command)[2]) for host, command in told]
        return [one for _, turn in itertools.groupby(acted, self.turn) for one in sorted(turn)]

    def turn(self, acted: tuple[str, str]) -> tuple[str, bool]:
        """What hosts do at once comes in any order; the primary stops after the others."""
        host, action = acted
        return action, action == "stop" and host == "db2"


@pytest.fixture
def hosts(fleet: Fleet) -> Hosts:
    return Hosts(fleet)


ALL = [
    ("db1", "stop"),
    ("db3", "stop"),
    ("db2", "stop"),
    ("db1", "aside"),
    ("db2", "aside"),
    ("db3", "aside"),
    ("db2", "forget"),
    ("db2", "stop"),
    ("db2", "bootstrap"),
    ("db2", "settle"),
    ("db1", "join"),
    ("db3", "join"),
]


def test_a_dry_run_prints_each_command_and_changes_nothing(hosts: Hosts, call: Call) -> None:
    result = call("restore", *NAME, "--to-time", "2026-11-26T06:00:00Z")
    assert result.code == 0
    assert hosts.actions() == []
    assert hosts.journals == {}
    for host, action in ALL:
        assert f"{host}: relay-backups restore {action}" in result.out
    assert "--set=20261126-010000F" in result.out
    assert "2026-11-26 06:00:00.000000+00" in result.out
    assert "--timeline 3" in result.out


def test_it_stops_all_sets_aside_restores_one_and_lets_the_others_copy(hosts: Hosts, call: Call) -> None:
    result = call("restore", *DO, "--json")
    assert result.code == 0, result.err
    assert hosts.actions() == ALL
    assert result.json["result"]["backup"] == repository.SECOND
    assert result.json["result"]["timeline"] == 3
    assert json.loads(hosts.journals["db2"])["finished"] is True
    assert [line["result"] for line in hosts.fleet.audit()] == ["begun", "done"]
    (write,) = hosts.fleet.commands("psql")
    (check,) = hosts.fleet.commands("pgbackrest .* check$")
    assert hosts.fleet.told.index(write) < hosts.fleet.told.index(check)


@pytest.mark.parametrize("broken", ["stop", "stop db2", "aside", "forget", "bootstrap", "settle", "join"])
def test_an_interrupted_restore_goes_on_where_it_was(hosts: Hosts, call: Call, broken: str) -> None:
    hosts.broken = broken
    first = call("restore", *DO)
    assert first.code == 1
    assert "the disk is broken" in first.err
    begun = json.loads(hosts.journals["db2"])
    done = set(begun["done"])
    hosts.broken = ""
    hosts.fleet.told.clear()
    assert call("restore", *DO).code == 0
    after = json.loads(hosts.journals["db2"])
    assert (after["identity"], after["finished"]) == (begun["identity"], True)
    names = {
        "replicas": 0,
        "stop": 2,
        "aside": 3,
        "forget": 6,
        "first": 7,
        "settle": 9,
        "join": 10,
        "stream": 12,
    }
    start = next(index for name, index in names.items() if name not in done)
    assert hosts.actions() == ALL[start:]


def test_it_tells_the_last_transaction_and_the_gap(hosts: Hosts, call: Call) -> None:
    result = call("restore", *DO)
    assert "last transaction: 2026-11-26T05:00:00.5+00; " in result.out
    hosts.primary, hosts.last = None, (datetime.now(UTC) - timedelta(seconds=90)).isoformat()
    answer = call("restore", *DO, "--json").json["result"]
    assert answer["last_transaction_at"] == hosts.last
    assert 85 < answer["gap_seconds"] <= 91
    assert 0 <= answer["writable_seconds"] <= answer["streaming_seconds"]
    hosts.primary, hosts.last = None, (datetime.now(UTC) + timedelta(seconds=9)).isoformat()
    assert "nothing that was archived is missing" in call("restore", *DO).out
    hosts.primary, hosts.last = None, None
    assert "last transaction: none was replayed" in call("restore", *DO).out


def test_another_target_is_refused_until_the_unfinished_one_is_given_up(hosts: Hosts, call: Call) -> None:
    hosts.broken = "forget"
    assert call("restore", *DO).code == 1
    hosts.broken = ""
    hosts.fleet.told.clear()
    other = ("--to-lsn", "0/9000000")
    refused = call("restore", *DO, *other)
    assert refused.code == 2
    assert "run that again to go on, or add --anew" in refused.err
    assert hosts.actions() == []
    assert call("restore", *DO, *other, "--anew").code == 0
    assert hosts.actions() == ALL


def test_a_second_restore_begins_from_the_first_step(hosts: Hosts, call: Call) -> None:
    assert call("restore", *DO).code == 0
    hosts.fleet.told.clear()
    hosts.primary = None
    assert call("restore", *DO).code == 0
    assert hosts.actions() == ALL


def test_a_restore_that_fails_says_what_patroni_said(hosts: Hosts, call: Call) -> None:
    hosts.fleet.on("db2", "/primary", Answer(22))
    hosts.fleet.on(
        "db2",
        "relay-backups restore watch",
        {"patroni": "failed", "data_bytes": 0, "log": ["recovery ended"]},
    )
    result = call("restore", *DO)
    assert result.code == 1
    assert "recovery ended" in result.err
    assert ("db1", "join") not in hosts.actions()


def test_a_restore_that_takes_many_hours_is_waited_for(
    hosts: Hosts, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Patroni restores, no time-out of ours ends it: a large database takes as long as it takes."""
    looked = itertools.count()
    hosts.fleet.on("db2", "/primary", lambda _: Answer(0 if next(looked) > 20 else 22))
    clock = itertools.count(step=3600)
    monkeypatch.setattr("backups.danger.time.monotonic", lambda: float(next(clock)))
    result = call("restore", *DO)
    assert result.code == 0, result.err
    assert hosts.actions() == ALL


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*NAME, "--preview"], "leave --over-cluster out"),
        (["--over-cluster", "relay", "--yes"], "write --over-cluster production/relay"),
        ([*NAME, "--yes"], "--reason is missing"),
        ([*DO, "--to-time", "2099-01-01T00:00:00Z"], "has not come yet"),
        ([*DO, "--to-time", "2001-01-01T00:00:00Z"], "the oldest is 20261125-010000F"),
        ([*DO, "--to-time", "2026-11-26T06:00:00"], "lacks its offset"),
        ([*DO, "--without", "db9"], "no database host db9"),
        ([*DO, "--on", "db9"], "db9 is there to restore on"),
    ],
)
def test_it_is_refused_with_the_remedy(hosts: Hosts, call: Call, arguments: list[str], words: str) -> None:
    result = call("restore", *arguments)
    assert result.code == 2
    assert words in result.err
    assert hosts.actions() == []


def test_a_silent_host_is_not_left_out_by_itself(hosts: Hosts, call: Call) -> None:
    hosts.fleet.down = {"db3"}
    result = call("restore", *DO)
    assert result.code == 2
    assert "db3: start it, or switch it off and add --without db3" in result.err
    assert call("restore", *DO, "--without", "db3").code == 0
    assert "db3" not in {host for host, _ in hosts.actions()}


def test_no_room_is_refused_unless_the_old_data_goes(hosts: Hosts, call: Call) -> None:
    hosts.free["db3"] = 10_000_000
    result = call("restore", *DO)
    assert result.code == 2
    assert "db3 has room for the data: 10 MB are free, 48 MB are needed: add --discard" in result.err
    assert call("restore", *DO, "--discard").code == 0
    assert ("db3", "discard") in hosts.actions()
    assert "aside" not in {action for _, action in hosts.actions()}


def test_without_etcd_or_repository_nothing_is_stopped(hosts: Hosts, call: Call) -> None:
    hosts.fleet.on("db.", "relay-etcdctl", 1)
    assert "bring etcd back first" in call("restore", *DO).err
    hosts.fleet.on("db.", "relay-etcdctl")
    hosts.fleet.on("db.", "pgbackrest .* info$", 1)
    assert call("restore", *DO).code == 2
    assert hosts.actions() == []
