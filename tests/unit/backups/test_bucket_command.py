"""`python -m backups bucket`, with the fleet's own store."""

from __future__ import annotations

import pytest

from backups.cluster import Answer
from deploys.lib import object_store
from tests.unit.backups.scripted import Call, Fleet

MISSING = "bucket backups does not encrypt what is stored"


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "elsewhere", lambda: False)


def test_a_bucket_as_it_must_be_needs_nothing(fleet: Fleet, call: Call) -> None:
    fleet.on("vault1", "relay-bucket check")
    result = call("bucket", "--yes")
    assert result.code == 0
    assert "as it must be" in result.out
    assert fleet.commands("apply") == []


def test_what_it_lacks_is_shown_and_made_only_when_told(fleet: Fleet, call: Call) -> None:
    fleet.on("vault1", "relay-bucket check", lambda _: Answer(1, f"{MISSING}\n"))
    fleet.on("vault1", "relay-bucket apply")
    dry = call("bucket")
    assert dry.code == 0
    assert MISSING in dry.out
    assert fleet.commands("apply") == []
    assert call("bucket", "--yes").code == 0
    assert fleet.commands("apply") == [("vault1", "relay-bucket apply")]
    assert [line["result"] for line in fleet.audit()] == ["begun", "done"]


def test_a_store_that_is_silent_is_a_failure(fleet: Fleet, call: Call) -> None:
    fleet.down.add("vault1")
    result = call("bucket")
    assert result.code == 1
    assert "vault1" in result.err


def test_deleted_objects_are_shown_and_brought_back_when_told(fleet: Fleet, call: Call) -> None:
    fleet.on("vault1", "relay-bucket (un)?delete", "relay/backup/a\nrelay/backup/b\n")
    words = ("--undelete", "relay/backup", "--since", "2026-11-26T05:00:00Z")
    dry = call("bucket", *words)
    assert dry.code == 0
    assert "relay/backup/b" in dry.out
    assert fleet.commands("undelete") == []
    done = call("bucket", *words, "--yes")
    assert "2 objects are back" in done.out
    (command,) = fleet.commands("undelete")
    assert command[1].endswith("--prefix=relay/backup --since=2026-11-26T05:00:00+00:00")


@pytest.mark.parametrize("since", [(), ("--since", "noon")])
def test_how_far_back_must_be_said(fleet: Fleet, call: Call, since: tuple[str, ...]) -> None:
    result = call("bucket", "--undelete", "relay", *since)
    assert result.code == 2
    assert "2026-11-26T05:00:00Z" in result.err
