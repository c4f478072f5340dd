"""The command switchover."""

from __future__ import annotations

import pytest

from tests.unit.backups.scripted import Call, Fleet, members

WELL = {"db1": "leader running", "db2": "replica streaming 0", "db3": "quorum_standby streaming 0"}


def healthy(fleet: Fleet, **states: str) -> None:
    fleet.on("db.", "/cluster", members(**(WELL | states)))
    fleet.on("db.", "patronictl switchover")
    fleet.on("db.", "/primary")


def test_a_dry_run_says_each_command_and_changes_nothing(fleet: Fleet, call: Call) -> None:
    healthy(fleet)
    result = call("switchover")
    assert result.code == 0
    assert "db3: patronictl switchover relay --leader db1 --candidate db3 --force" in result.out
    assert "Dry run: nothing was changed" in result.out
    assert fleet.commands("patronictl") == []
    assert fleet.audit() == []


def test_it_hands_over_and_says_how_long_it_took(fleet: Fleet, call: Call) -> None:
    healthy(fleet)
    result = call("switchover", "--yes", "--reason", "kernel of db1", "--json")
    assert result.code == 0
    assert fleet.commands("patronictl") == [
        ("db3", "patronictl switchover relay --leader db1 --candidate db3 --force")
    ]
    assert result.json["outcome"] == "done"
    assert result.json["result"]["switched_seconds"] >= 0
    assert "switchover production --to db1 --yes" in result.json["undo"]
    assert [(line["command"], line["reason"], line["result"]) for line in fleet.audit()] == [
        ("backups switchover", "kernel of db1", "begun"),
        ("backups switchover", "kernel of db1", "done"),
    ]
    assert fleet.audit()[-1]["target"] == "production/relay: db1 → db3"


@pytest.mark.parametrize(
    ("arguments", "states", "words"),
    [
        (["--to", "db2"], {}, "it is replica, streaming; choose one of: db3"),
        (["--to", "db1"], {}, "it is the primary already"),
        (["--to", "db9"], {}, "there are: db1, db2, db3"),
        ([], {"db3": "replica streaming"}, "none streams"),
        ([], {"db3": "quorum_standby starting"}, "none streams"),
        ([], {"db1": "replica stopped"}, "see `failover`"),
    ],
)
def test_it_is_refused_with_the_reason(
    fleet: Fleet, call: Call, arguments: list[str], states: dict[str, str], words: str
) -> None:
    healthy(fleet, **states)
    result = call("switchover", "--yes", *arguments)
    assert result.code == 2
    assert words in result.err
    assert fleet.commands("patronictl") == []
    assert fleet.audit()[-1]["result"].startswith("refused: ")


def test_the_standby_that_is_least_behind_is_chosen(fleet: Fleet, call: Call) -> None:
    healthy(fleet, db2="quorum_standby streaming 10", db3="quorum_standby streaming 20")
    assert call("switchover", "--yes").code == 0
    assert fleet.commands("patronictl")[0][0] == "db2"


def test_a_cluster_that_does_not_answer_is_no_cluster(fleet: Fleet, call: Call) -> None:
    fleet.down = {"db1", "db2", "db3"}
    result = call("switchover", "--yes")
    assert result.code == 2
    assert "no Patroni answers" in result.err


def test_a_failure_is_told_and_recorded(fleet: Fleet, call: Call) -> None:
    healthy(fleet)
    fleet.on("db3", "patronictl", 1)
    result = call("switchover", "--yes", "--json")
    assert result.code == 1
    assert result.json["outcome"] == "failed"
    assert "it failed" in result.json["error"]
    assert fleet.audit()[-1]["result"].startswith("failed: db3: patronictl switchover")
