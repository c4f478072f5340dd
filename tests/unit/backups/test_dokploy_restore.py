"""The command dokploy-restore: what must hold, what it does in which order, how it says what it could not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from backups.commands import dokploy_restore
from deploys.lib.errors import DeployError
from tests.unit.backups import scripted
from tests.unit.backups.scripted import Call, Fleet

DO = ("--node", "app2", "--over", "production/dokploy", "--yes", "--reason", "app1 is lost")
KEY = "dokploy/day-27.tar.gpg"
LOOK: dict[str, Any] = {
    "nodes": ["app1", "app2"],
    "labelled": ["app1"],
    "missing": [],
    "backups": [
        {"key": KEY, "made": "2026-11-27T03:10:04+00:00", "host": "app1", "bytes": 7},
        {"key": "dokploy/day-26.tar.gpg", "made": "2026-11-26T03:10:04+00:00", "host": "app1", "bytes": 7},
    ],
}


@pytest.fixture
def site(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """app1 had Dokploy; the inventory names app2 now."""
    monkeypatch.setitem(scripted.HOSTS, "dokploy", ("app2",))
    monkeypatch.setattr(dokploy_restore, "prove", lambda node: f"Dokploy on {node} is proven")
    fleet.on(".*", "true")
    fleet.on("app.", "relay-dokploy (down|set-aside|restore|up)")
    fleet.on("app2", "docker node update")
    fleet.on("app2", "relay-dokploy look", LOOK)
    return fleet


def did(fleet: Fleet) -> list[str]:
    """What changed something, without stamps."""
    words = r"relay-dokploy (down|set-aside|restore|up)|docker node update"
    found = [f"{host}: {command.rpartition('sbin/')[2]}" for host, command in fleet.commands(words)]
    return [re.sub(r"\d{8}T\d{6}Z", "STAMP", line) for line in found]


def test_all_of_it_in_order(site: Fleet, call: Call) -> None:
    result = call("dokploy-restore", *DO)
    assert result.code == 0, result.err
    assert did(site) == [
        "app2: relay-dokploy down",
        "app1: relay-dokploy set-aside STAMP",
        "app2: docker node update --label-rm dokploy app1",
        "app2: docker node update --label-add dokploy=true app2",
        f"app2: relay-dokploy restore {KEY} STAMP",
        "app2: relay-dokploy up dokploy",
    ]
    assert "Dokploy on app2 is proven" in result.out
    assert "`python -m deploys apply production` does the rest" in result.out
    assert "what came later is lost" in result.out
    assert "/etc/dokploy.before-restore-2" in result.out
    # It may be run again: then an earlier try has renamed them.
    assert "each is the newest `.before-restore-*` of a date there" in result.out
    assert [(line["command"], line["result"]) for line in site.audit()] == [
        ("backups dokploy-restore", "begun"),
        ("backups dokploy-restore", "done"),
    ]
    assert site.audit()[0]["reason"] == "app1 is lost"


def test_without_yes_nothing_is_done(site: Fleet, call: Call) -> None:
    result = call("dokploy-restore", *DO[:4])
    assert result.code == 0
    assert did(site) == []
    assert "app2: /usr/local/sbin/relay-dokploy restore" in result.out
    assert "Dry run: nothing was changed" in result.out
    assert site.audit() == []


def test_a_dead_host_is_told_of_and_not_waited_for(site: Fleet, call: Call) -> None:
    site.down = {"app1"}
    result = call("dokploy-restore", *DO)
    assert result.code == 0, result.err
    assert "app1: relay-dokploy set-aside STAMP" not in did(site)
    assert "app1 does not answer: should it come back" in result.out


def test_a_container_that_still_stops_is_waited_for(site: Fleet, call: Call) -> None:
    answers = iter([1, 1, ""])
    site.on("app1", "set-aside", lambda _: next(answers))
    assert call("dokploy-restore", *DO).code == 0
    assert did(site).count("app1: relay-dokploy set-aside STAMP") == 3


def test_an_older_one_can_be_chosen(site: Fleet, call: Call) -> None:
    assert call("dokploy-restore", *DO, "--backup", "dokploy/day-26.tar.gpg").code == 0
    assert "app2: relay-dokploy restore dokploy/day-26.tar.gpg STAMP" in did(site)


@pytest.mark.parametrize(
    ("words", "changes", "told"),
    [
        (("--over", "production"), {}, "write --over production/dokploy"),
        (("--node", "db1"), {}, "--node db1: name a host of `app`"),
        (("--node", "app1"), {}, 'write dokploy = ["app1"] into inventories/production.py'),
        (("--backup", "dokploy/day-01.tar.gpg"), {}, f"it has: {KEY}, dokploy/day-26"),
        (("--reason", ""), {}, "--reason is missing"),
        ((), {"nodes": []}, "it is no manager"),
        (
            (),
            {"missing": ["secret dokploy_auth_secret"]},
            "secret dokploy_auth_secret: `python -m deploys apply",
        ),
        ((), {"backups": []}, "it has: none"),
        ((), 1, "puts the program there"),
    ],
)
def test_what_does_not_hold_changes_nothing(
    site: Fleet, call: Call, words: tuple[str, ...], changes: Any, told: str
) -> None:
    site.on("app.", "relay-dokploy look", LOOK | changes if isinstance(changes, dict) else changes)
    result = call("dokploy-restore", *DO, *words)
    assert result.code == 2
    assert told in result.err
    assert did(site) == []


def test_a_step_that_fails_is_named_and_what_follows_is_not_done(site: Fleet, call: Call) -> None:
    site.on("app2", "relay-dokploy restore", 1)
    result = call("dokploy-restore", *DO)
    assert result.code == 1
    assert "relay-dokploy restore" in result.err
    assert "app2: relay-dokploy up dokploy" not in did(site)
    assert site.audit()[-1]["result"].startswith("failed")


def test_a_dokploy_that_does_not_prove_itself_is_a_failure(
    site: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(node: str) -> str:
        raise DeployError("it refuses the API key (401)")

    monkeypatch.setattr(dokploy_restore, "prove", refuse)
    result = call("dokploy-restore", *DO)
    assert result.code == 1
    assert "does not prove itself: it refuses the API key (401)" in result.err
    assert "python -m deploys dokploy key ENV" in result.err


def test_json_has_the_proof(site: Fleet, call: Call) -> None:
    assert json.loads(call("dokploy-restore", *DO, "--json").out)["result"]["proof"].startswith(
        "Dokploy on app2"
    )
