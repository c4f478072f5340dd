"""What the fleet's tests ask of Patroni, of hosts that may be dead and a cluster without a leader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from deploys.sandbox import remote
from tests.fleet import patroni


def listed(**roles: str) -> str:
    """``patronictl list``: role and state by member."""
    shown = ((name, *told.split(",")) for name, told in roles.items())
    return json.dumps([{"Member": name, "Role": role, "State": state} for name, role, state in shown])


WITH_LEADER = listed(db1="Replica,streaming", db2="Leader,running")
STARTING = listed(db1="Replica,streaming", db2="Leader,starting")
WITHOUT = listed(db1="Replica,streaming", db2="Replica,streaming")


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[str]], list[str]]:
    """db1 is dead and db2 gives these answers, "" for none; returns who is asked."""

    def prepare(answers: Iterator[str]) -> list[str]:
        asked: list[str] = []

        def run(host: str, *command: str, seconds: float) -> str:
            asked.append(host)
            if host == "db1" or not (answer := next(answers)):
                raise remote.RemoteError(f"{host}: no answer")
            return answer

        monkeypatch.setattr(remote, "addresses", lambda group: {"db1": "", "db2": ""})
        monkeypatch.setattr(remote, "run", run)
        monkeypatch.setattr("time.sleep", lambda _: None)
        return asked

    return prepare


def test_whoever_answers_is_asked(hosts: Callable[[Iterator[str]], list[str]]) -> None:
    asked = hosts(iter([WITH_LEADER]))
    assert [member["Member"] for member in patroni.members()] == ["db1", "db2"]
    assert asked == ["db1", "db2"]


@pytest.mark.parametrize("answer", ["", "no json"])
def test_nobody_answers(hosts: Callable[[Iterator[str]], list[str]], answer: str) -> None:
    hosts(iter([answer]))
    assert patroni.members() == []


def test_a_leader_is_waited_for_until_it_runs(hosts: Callable[[Iterator[str]], list[str]]) -> None:
    asked = hosts(iter(["", WITHOUT, STARTING, WITH_LEADER]))
    assert patroni.leader() == "db2"
    assert len(asked) == 8


def test_a_cluster_without_a_leader_is_an_error(hosts: Callable[[Iterator[str]], list[str]]) -> None:
    hosts(iter([WITHOUT]))
    with pytest.raises(AssertionError, match=r"no primary within 0 s: \[\{'Member': 'db1'"):
        patroni.leader(seconds=0)
