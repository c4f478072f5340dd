"""The commands failover, rejoin and reinit."""

from __future__ import annotations

import json

import pytest

from backups.commands import rejoin
from backups.commands.failover import FORCE
from tests.unit.backups.scripted import Call, Fleet, members

WHY = ("--yes", "--reason", "db1 is gone")
SYNC = json.dumps({"leader": "db1", "sync_standby": "db2,db3", "quorum": 1})


def leaderless(fleet: Fleet) -> None:
    """db1 is dead; db3 has more than db2."""
    fleet.down = {"db1"}
    fleet.on("db.", "/cluster", members(db2="quorum_standby running", db3="quorum_standby running"))
    fleet.on("db2", "/patroni", {"xlog": {"received_location": 0x5000000, "replayed_location": 0x5000000}})
    fleet.on("db3", "/patroni", {"xlog": {"received_location": 0x6000000, "replayed_location": 0x5000000}})
    fleet.on("db.", "/db/relay/sync", SYNC)
    fleet.on("db.", "patronictl failover")
    fleet.on("db.", "/primary")


def test_failover_takes_the_member_with_the_highest_lsn(fleet: Fleet, call: Call) -> None:
    leaderless(fleet)
    dry = call("failover")
    assert dry.code == 0
    assert "db2 0/5000000; db3 0/6000000" in dry.out
    assert fleet.commands("patronictl") == []
    assert call("failover", *WHY).code == 0
    assert fleet.commands("patronictl") == [("db3", "patronictl failover relay --candidate db3 --force")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "db2"], "db3 has more"),
        (["--to", "db1"], "members that answer: db2, db3"),
        (["--force", "yes"], f"write '{FORCE}'"),
    ],
)
def test_failover_is_refused_with_the_reason(
    fleet: Fleet, call: Call, arguments: list[str], words: str
) -> None:
    leaderless(fleet)
    result = call("failover", *WHY, *arguments)
    assert result.code == 2
    assert words in result.err
    assert fleet.commands("patronictl") == []


def test_failover_is_refused_while_a_member_that_may_have_confirmed_is_silent(
    fleet: Fleet, call: Call
) -> None:
    leaderless(fleet)
    fleet.down = {"db1", "db3"}
    refused = call("failover", *WHY)
    assert refused.code == 2
    assert "silent: " in refused.err
    assert "db3" in refused.err
    assert call("failover", *WHY, "--force", FORCE).code == 0
    assert fleet.commands("patronictl")[0][0] == "db2"


def test_failover_is_not_for_a_cluster_with_a_primary(fleet: Fleet, call: Call) -> None:
    leaderless(fleet)
    fleet.on("db.", "/cluster", members(db2="leader running", db3="quorum_standby streaming"))
    result = call("failover", *WHY)
    assert result.code == 2
    assert "db2 is primary: use `switchover`" in result.err


def test_failover_refuses_what_no_quorum_is_known_of(fleet: Fleet, call: Call) -> None:
    leaderless(fleet)
    fleet.on("db.", "/db/relay/sync", 1)
    assert call("failover", *WHY).code == 2
    assert fleet.commands("patronictl") == []


def damaged(fleet: Fleet, state: str = "replica starting") -> None:
    """db1 does not stream until Patroni is started anew."""
    told = {"streams": False}

    def cluster(_: str) -> object:
        one = "quorum_standby streaming" if told["streams"] else state
        return members(db1=one, db2="leader running", db3="quorum_standby streaming")

    def mend(_: str) -> str:
        told["streams"] = True
        return ""

    fleet.on("db.", "/cluster", cluster)
    fleet.on("db1", "true|restore/hold")
    fleet.on("db1", "restart patroni|patronictl reinit", mend)


def test_rejoin_starts_patroni_and_waits(fleet: Fleet, call: Call) -> None:
    damaged(fleet)
    assert call("rejoin", "db1").code == 0
    assert fleet.commands("restart") == []
    assert call("rejoin", "db1", *WHY).code == 0
    assert len(fleet.commands("restart patroni")) == 1
    assert fleet.commands("reinit") == []


def test_rejoin_makes_a_member_anew_that_does_not_rewind(
    fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged(fleet)
    fleet.on("db1", "restart patroni")
    monkeypatch.setattr(rejoin, "REWIND_SECONDS", 0.01)
    assert call("rejoin", "db1", *WHY).code == 0
    assert fleet.commands("reinit") == [("db1", "patronictl reinit relay db1 --force --wait")]


def test_rejoin_leaves_a_host_alone_that_a_restore_holds(fleet: Fleet, call: Call) -> None:
    damaged(fleet)
    fleet.on("db1", "restore/hold", 1)
    result = call("rejoin", "db1", *WHY)
    assert result.code == 2
    assert "run the same `restore` again" in result.err


@pytest.mark.parametrize(("name", "words"), [("db2", "it is the primary"), ("db9", "hosts are: db1")])
def test_rejoin_is_refused_with_the_reason(fleet: Fleet, call: Call, name: str, words: str) -> None:
    damaged(fleet)
    fleet.on("db2", "true|restore/hold")
    result = call("rejoin", name, *WHY)
    assert result.code == 2
    assert words in result.err


def test_reinit_makes_a_member_anew(fleet: Fleet, call: Call) -> None:
    damaged(fleet)
    assert "--reason is missing" in call("reinit", "db1", "--yes").err
    assert call("reinit", "db1", *WHY).code == 0
    assert fleet.commands("patronictl") == [("db1", "patronictl reinit relay db1 --force --wait")]


@pytest.mark.parametrize(("name", "words"), [("db2", "it is the primary"), ("db9", "members are: db1")])
def test_reinit_is_refused_with_the_reason(fleet: Fleet, call: Call, name: str, words: str) -> None:
    damaged(fleet)
    result = call("reinit", name, *WHY)
    assert result.code == 2
    assert words in result.err
    assert fleet.commands("patronictl") == []
