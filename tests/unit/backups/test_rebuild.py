"""The command rebuild: which commands it runs, when it goes on, what it says was lost."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from backups.commands import rebuild
from tests.unit.backups.scripted import Call, Fleet, members

DO = (
    "--over-cluster",
    "production/relay",
    "--yes",
    "--reason",
    "site lost",
    "--lost-at",
    "2026-11-26T05:01:00Z",
)
ANOTHER = "the repository holds the backups of another cluster (system identifier 1, ours 2)."
APPLY, RESTORE, BACKUP = "deploys apply", "backups restore", "backups backup"


class Site:
    """New hosts, on which the commands that the rebuilding runs are followed."""

    def __init__(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fleet = fleet
        self.ran: list[str] = []
        self.fails = ""
        fleet.on(".*", "true")
        fleet.on("db.", "/cluster", 7)
        fleet.on("db.", "relay-backups restore look", {"journal": None})
        monkeypatch.setattr(rebuild, "subprocess", SimpleNamespace(run=self.run))

    def run(self, words: list[str], **_: Any) -> Any:
        name = " ".join(words[2:4])
        self.ran.append(" ".join(words[2:]))
        if self.fails == name:
            return subprocess.CompletedProcess(words, 1)
        if "--until" in words:
            self.serve(ANOTHER)
        if name == RESTORE:
            self.serve("")
            self.journal(finished=True)
        return subprocess.CompletedProcess(words, 0)

    def serve(self, stanza: str) -> None:
        self.fleet.on("db.", "/cluster", members(db1="leader running", db2="replica streaming"))
        self.fleet.on("db1", "stanza --check", stanza)

    def journal(self, *, finished: bool) -> None:
        kept = {"journal": {"identity": "20261126T060000Z", "finished": finished, "first": "db1"}}
        self.fleet.on("db1", "relay-backups restore look", kept)
        self.fleet.on(
            "db1", "relay-backups restore ended 2026", {"last_transaction_at": "2026-11-26T05:00:18+00"}
        )
        self.fleet.on("db1", "psql .*from holds", "3 42000\n")

    def commands(self) -> list[str]:
        return [" ".join(line.split()[:2]) for line in self.ran]


@pytest.fixture
def site(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(fleet, monkeypatch)


def test_all_of_it_in_order_and_what_was_lost(site: Site, call: Call) -> None:
    result = call("rebuild", *DO)
    assert result.code == 0, result.err
    assert site.commands() == [APPLY, RESTORE, APPLY, BACKUP]
    assert site.ran[0].endswith("--until postgres")
    assert "--over-cluster production/relay --yes --reason site lost" in site.ran[1]
    assert "last transaction: 2026-11-26T05:00:18+00" in result.out
    assert "in the 42.0 s from then to 2026-11-26T05:01:00+00:00" in result.out
    assert "calls that ran then: 3, holding 42000 n$" in result.out
    assert [line["result"] for line in site.fleet.audit()] == ["begun", "done"]


def test_held_calls_are_counted_before_the_relay_can_end_them(site: Site, call: Call) -> None:
    applied: list[int] = []

    def count(_: str) -> str:
        applied.append(site.commands().count(APPLY))
        return "3 42000\n"

    site.journal(finished=True)
    site.fleet.on("db1", "psql .*from holds", count)
    site.journal = lambda **_: None  # type: ignore[method-assign]
    assert call("rebuild", *DO).code == 0
    assert applied == [1]
    assert site.commands().count(APPLY) == 2


def test_without_yes_nothing_is_run(site: Site, call: Call) -> None:
    result = call("rebuild", *DO[:2])
    assert result.code == 0
    assert site.ran == []
    assert "python -m deploys apply production --until postgres" in result.out


@pytest.mark.parametrize("fails", [RESTORE, BACKUP])
def test_a_failure_names_the_command_and_the_next_run_goes_on(site: Site, call: Call, fails: str) -> None:
    site.fails = fails
    result = call("rebuild", *DO)
    assert result.code == 1
    assert f"`python -m {fails} production" in result.err
    site.fails = ""
    site.ran.clear()
    assert call("rebuild", *DO).code == 0
    again = [APPLY, RESTORE, APPLY, BACKUP] if fails == RESTORE else [APPLY, BACKUP]
    assert site.commands() == again


def test_a_restore_that_is_half_done_is_gone_on_with(site: Site, call: Call) -> None:
    site.serve("")
    site.journal(finished=False)
    assert call("rebuild", *DO).code == 0
    assert RESTORE in site.commands()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--over-cluster", "production"), "write --over-cluster production/relay"),
        ((*DO[:5], "--lost-at", "yesterday"), "write a time as 2026-11-26T05:00:00Z"),
        ((*DO[:5], "--lost-at", "2026-11-26T05:00:00"), "say the zone"),
        ((*DO[:5], "--lost-at", "2126-11-26T05:00:00Z"), "has not come yet"),
        (DO[:3], "--reason is missing"),
    ],
)
def test_misuse_changes_nothing(site: Site, call: Call, words: tuple[str, ...], told: str) -> None:
    result = call("rebuild", *words)
    assert result.code == 2
    assert told in result.err
    assert site.ran == []


def test_a_host_that_is_not_there_is_named(site: Site, call: Call) -> None:
    site.fleet.down = {"app2"}
    result = call("rebuild", *DO)
    assert result.code == 2
    assert "app2: put the new hosts' addresses into the inventory" in result.err


def test_json_has_what_was_lost(site: Site, call: Call) -> None:
    answer = json.loads(call("rebuild", *DO, "--json").out)
    assert (answer["result"]["gap_seconds"], answer["result"]["held_calls"]) == (42.0, 3)
