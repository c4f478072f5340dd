"""`secrets rotate | list | show | edit`: what they refuse, what they tell, and what the audit keeps."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.inventory import Inventory

from deploys import roles
from deploys.lib import fleet, rotation, secrets
from deploys.lib.lock import held
from deploys.run import cli, environment, secret_commands
from deploys.run.rotate import Fleet

WHY = ("--reason", "ticket 4711")


@pytest.fixture
def sandbox(secrets_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inventory]:
    """The sandbox with a copy of its secrets, and a state directory of its own."""
    for name in ("secrets.age", "secrets.key"):
        (tmp_path / name).write_bytes((secrets_directory / name).read_bytes())
    overrides = {
        "secrets_file": f"{tmp_path}/secrets.age",
        "secrets_key_file": f"{tmp_path}/secrets.key",
        "state_directory": f"{tmp_path}/state",
    }
    (tmp_path / "state").mkdir()
    use = environment.use

    @contextmanager
    def with_overrides(name: str) -> Iterator[Inventory]:
        with use(name) as inventory:
            inventory.override_data = overrides
            yield inventory

    monkeypatch.setattr(environment, "use", with_overrides)
    with with_overrides("sandbox") as inventory:
        yield inventory


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of the fleet, which does all of it."""
    asked: list[str] = []

    def deploys(_: Fleet, command: str) -> int:
        asked.append(command)
        return 0

    def tries(_: Fleet, trial: rotation.Trial, found: Any) -> int:
        values = fleet.store().read()
        new = all(values[name] == one.value for name, one in found.items())
        return rotation.TAKEN if new else rotation.REFUSED

    monkeypatch.setattr(Fleet, "_deploys", deploys)
    monkeypatch.setattr(Fleet, "tries", tries)
    monkeypatch.setattr(Fleet, "command", lambda _, words: asked.append(" ".join(words)))
    monkeypatch.setattr(Fleet, "trusting", lambda *_: [])
    return asked


def lines() -> list[dict[str, Any]]:
    path = fleet.state_directory() / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(*words: str) -> int:
    return cli.main(["secrets", *words])


def test_a_dry_run_tells_the_steps_and_changes_nothing(
    sandbox: Inventory, applied: list[str], capsys: Any
) -> None:
    before = fleet.store().read()
    assert run("rotate", "sandbox", "redis_password", "backup_cipher_passphrase") == 0
    told = capsys.readouterr().out
    assert [
        word for word in ("1. announced", "2. switched", "3. dropped", "Redis restarts twice") if word in told
    ]
    assert "pgBackRest cannot encrypt a repository anew" in told
    assert "nothing was changed" in told
    assert (fleet.store().read(), applied, lines()) == (before, [], [])


def test_it_rotates_and_leaves_audit_lines_without_values(
    sandbox: Inventory, applied: list[str], capsys: Any
) -> None:
    before = fleet.store().read()
    assert run("rotate", "sandbox", "relay_seal_key", "redis_password", *WHY, "--yes") == 0
    assert applied == ["plan", "apply", "apply", "channel reseal", "apply"]
    after = fleet.store().read()
    assert {name for name in before if before[name] != after[name]} == {
        "relay_seal_key",
        "redis_password",
        rotation.STATE,
    }
    told = [(line["command"], line["secrets"], line["reason"], line["result"]) for line in lines()]
    both = ["relay_seal_key", "redis_password"]
    assert told == [("secrets rotate", both, WHY[1], result) for result in ("begun", "done")]
    assert all(line["who"] and line["at"] for line in lines())
    text = json.dumps(lines()) + capsys.readouterr().out
    assert not [name for name in both for values in (before, after) if values[name] in text]


def test_it_prints_json_for_programs(sandbox: Inventory, applied: list[str], capsys: Any) -> None:
    assert run("rotate", "sandbox", "s3_secret_key", "--json") == 0
    dry = json.loads(capsys.readouterr().out)
    assert (dry["dry_run"], dry["secrets"][0]["along"]) == (True, ["s3_secret_key"])
    assert run("list", "sandbox", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["secrets"]
    assert {row["name"] for row in rows} == set(secrets.units(roles.secrets())) & set(fleet.store().read())


def test_interrupted_it_goes_on_without_looking_for_other_changes(
    sandbox: Inventory, applied: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(Fleet, "_deploys", lambda _, command: {"plan": 0, "apply": 3}[command])
    assert run("rotate", "sandbox", "bans_token", *WHY, "--yes") == 1
    assert "a host stopped answering" in capsys.readouterr().err
    assert rotation.record(fleet.store().read(), "bans_token").step == rotation.ANNOUNCED
    assert lines()[-1]["result"].startswith("failed: a host stopped answering")
    monkeypatch.setattr(Fleet, "_deploys", lambda _, command: {"plan": 2, "apply": 0}[command])
    assert run("rotate", "sandbox", "bans_token", *WHY, "--yes") == 0
    assert rotation.record(fleet.store().read(), "bans_token").step == rotation.STEADY


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("rotate", "sandbox", "redis_pasword", *WHY, "--yes"), "did you mean 'redis_password'?"),
        (("rotate", "sandbox", "redis_password", "--yes"), "--reason is empty"),
        (
            ("rotate", "sandbox", "redis_password", "s3_sse_key", *WHY, "--yes"),
            "the store could read no object",
        ),
        (("show", "sandbox", "redis_pasword", *WHY), "did you mean 'redis_password'?"),
        (("show", "sandbox", rotation.STATE, *WHY), "no secret"),
        (("edit", "sandbox", "registry_password_hash", *WHY), "no secret"),
        (("rotate", "sandbx", "redis_password"), "no environment"),
    ],
)
def test_refused_before_anything_is_changed(
    sandbox: Inventory, applied: list[str], words: tuple[str, ...], told: str, capsys: Any
) -> None:
    before = fleet.store().read()
    assert run(*words) == 1
    assert told in capsys.readouterr().err
    assert (fleet.store().read(), applied, lines()) == (before, [], [])


@pytest.mark.parametrize(
    "words",
    [
        ("rotate", "sandbox", "redis_password", *WHY, "--yes"),
        ("edit", "sandbox", "redis_password", *WHY),
        ("sandbox",),
    ],
)
def test_one_at_a_time(sandbox: Inventory, applied: list[str], words: tuple[str, ...], capsys: Any) -> None:
    before = fleet.store().read()
    with held(fleet.state_directory() / "secrets.lock", "ann (process 7)"):
        assert run(*words) == 1
    assert "ann (process 7) changes secrets here" in capsys.readouterr().err
    assert (fleet.store().read(), applied) == (before, [])


def test_a_fleet_with_other_changes_is_refused(
    sandbox: Inventory, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before = fleet.store().read()
    monkeypatch.setattr(Fleet, "_deploys", lambda _, command: {"plan": 2}[command])
    assert run("rotate", "sandbox", "redis_password", *WHY, "--yes") == 1
    assert "`python -m deploys apply sandbox` first" in capsys.readouterr().err
    assert fleet.store().read() == before


def test_show_and_edit_say_who_and_why(
    sandbox: Inventory, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run("show", "sandbox", "redis_password", *WHY) == 0
    assert capsys.readouterr().out.strip() == fleet.secret("redis_password")
    monkeypatch.setattr("sys.stdin", io.StringIO("given by somebody else\n"))
    assert run("edit", "sandbox", "provider_api_key", *WHY) == 0
    assert fleet.secret("provider_api_key") == "given by somebody else"
    assert run("list", "sandbox") == 0
    assert run("sandbox", "--show", "redis_password") == 0
    told = [(line["command"], line["environment"]) for line in lines()]
    assert told == [(f"secrets {verb}", "sandbox") for verb in ("show", "edit", "list", "show")]
    assert "given by" not in json.dumps(lines())


def test_the_fleet_is_asked_by_the_commands_of_the_day(
    sandbox: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def answer(words: list[str], **_: Any) -> int:
        asked.append(words[1:])
        return 0

    monkeypatch.setattr("deploys.run.lock.run", answer)
    hands = Fleet("sandbox", sandbox)
    hands.look()
    hands.bring()
    assert asked == [["-m", "deploys", command, "sandbox"] for command in ("plan", "apply")]


def test_help_has_an_example(capsys: Any) -> None:
    for verb in secret_commands.VERBS:
        assert run(verb, "--help") == 0
        assert f"python -m deploys secrets {verb} " in capsys.readouterr().out
