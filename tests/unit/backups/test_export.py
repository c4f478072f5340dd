"""`export` and `import-check`, with a scripted ops host and a real ssh-keygen."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from backups.cluster import Answer
from backups.commands.export import NAMESPACE
from deploys.lib import fleet as environment_of
from deploys.lib.secrets import signing_key
from tests.unit.backups.scripted import Call, Fleet
from tests.unit.backups.statements import rows, text

WHY = ("--reason", "ticket 17")


@pytest.fixture
def file(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    key = signing_key()
    monkeypatch.setattr(environment_of, "secret", lambda _: key)
    fleet.on("ops1", "account show", {"id": 7, "name": "acme"})
    fleet.on("ops1", "ledger statement --account 7", text(rows()))
    return tmp_path / "acme.jsonl"


def test_it_is_written_only_when_told_and_with_a_reason(fleet: Fleet, call: Call, file: Path) -> None:
    export = ("export", "--account", "acme", "--to", str(file))
    dry = call(*export)
    assert dry.code == 0
    assert "account 7 (acme) of production" in dry.out
    assert call(*export, "--yes").code == 2
    assert not file.exists()
    assert fleet.commands("ledger statement") == []
    done = call(*export, "--yes", *WHY)
    assert done.code == 0, done.err
    assert file.read_text() == text(rows())
    assert {p.name for p in file.parent.iterdir() if p.name.startswith(("acme", "."))} == {
        "acme.jsonl", "acme.jsonl.sig", "acme.jsonl.signers",
    }  # fmt: skip
    assert {file.stat().st_mode & 0o777, Path(f"{file}.sig").stat().st_mode & 0o777} == {0o600}
    (begun, ended) = fleet.audit()[-2:]
    assert (begun["reason"], ended["result"], ended["target"]) == (
        "ticket 17",
        "done",
        "account 7 (acme) of production",
    )
    assert call(*export, "--yes", *WHY).code == 2, "what is there is not overwritten"


def test_the_password_of_the_database_is_in_no_command(fleet: Fleet, call: Call, file: Path) -> None:
    call("export", "--account", "acme", "--to", str(file), "--yes", *WHY)
    for _, command in fleet.told:
        assert command.startswith('RELAY_DATABASE_URL="$(cat /etc/relay/drill.reference)" ')


def test_a_past_moment_and_costs_are_asked_for(fleet: Fleet, call: Call, file: Path) -> None:
    words = ("--restored", "restore", "--costs", "--yes")
    assert call("export", "--account", "7", "--to", str(file), *words, *WHY).code == 0
    ((_, command),) = fleet.commands("ledger statement")
    assert command.startswith("RELAY_DATABASE_URL='host=/var/lib/relay-scratch/restore/socket dbname=relay")
    assert command.endswith("--account 7 --costs")
    assert call("export", "--account", "7", "--to", f"{file}2", "--restored", "../etc").code == 2


def test_what_cannot_be_asked_is_refused_and_leaves_nothing(fleet: Fleet, call: Call, file: Path) -> None:
    fleet.on("ops1", "account show", Answer(1, err="relay: account 'x;y' does not exist"))
    result = call("export", "--account", "x;y", "--to", str(file))
    assert (result.code, "does not exist" in result.err) == (2, True)
    assert "account show 'x;y' --json" in fleet.told[-1][1]
    assert call("export", "--account", "7", "--to", str(file.parent / "none" / "f")).code == 2


@pytest.mark.parametrize("broken", [text(rows())[:-80], "", text(rows()).replace("1000", "2000")])
def test_a_statement_that_is_not_whole_is_no_file(fleet: Fleet, call: Call, file: Path, broken: str) -> None:
    fleet.on("ops1", "ledger statement", broken)
    result = call("export", "--account", "7", "--to", str(file), "--yes", *WHY)
    assert (result.code, "is not whole" in result.err) == (1, True)
    assert list(file.parent.glob("*acme*")) == []
    fleet.on("ops1", "ledger statement", Answer(1, text(rows())[:400], "the database refused"))
    assert call("export", "--account", "7", "--to", str(file), "--yes", *WHY).code == 1
    assert list(file.parent.glob("*acme*")) == []


def test_one_that_does_not_add_up_is_written_and_fails(fleet: Fleet, call: Call, file: Path) -> None:
    content = rows()
    content[1][1]["balance"] = 1
    fleet.on("ops1", "ledger statement", text(content))
    result = call("export", "--account", "7", "--to", str(file), "--yes", *WHY)
    assert (result.code, "does not add up" in result.err, file.exists()) == (1, True, True)
    checked = call("import-check", str(file))
    assert (checked.code, "the balance in credit is 1" in checked.out) == (1, True)


def test_what_was_exported_is_proven_here_and_by_openssh_alone(fleet: Fleet, call: Call, file: Path) -> None:
    call("export", "--account", "7", "--to", str(file), "--yes", *WHY)
    good = call("import-check", str(file), "--json")
    assert (good.code, good.json["problems"], good.json["account"]) == (0, [], 7)
    assert "tokens.hash" in good.json["left_out"]
    command = ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, "-I", "drill"]
    command += ["-f", f"{file}.signers", "-s", f"{file}.sig"]
    assert subprocess.run(command, input=file.read_bytes(), capture_output=True).returncode == 0


def test_a_changed_file_is_found_whoever_made_it_anew(
    fleet: Fleet, call: Call, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("export", "--account", "7", "--to", str(file), "--yes", *WHY)
    content = rows()
    content[0][1]["name"] = "globex"
    file.write_text(text(content))
    result = call("import-check", str(file))
    assert (result.code, "signature is not of this text" in result.out) == (1, True)
    file.write_bytes(text(rows()).encode() + b"\xff")
    assert call("import-check", str(file)).code == 1
    file.write_text(text(rows()))
    assert call("import-check", str(file)).code == 0
    own, other = file.parent / "own.pub", signing_key()
    own.write_text(" ".join(Path(f"{file}.signers").read_text().split()[2:]))
    monkeypatch.setattr(environment_of, "secret", lambda _: other)
    assert call("import-check", str(file)).code == 1, "another environment's key"
    assert call("import-check", str(file), "--public-key", str(own)).code == 0


def test_what_cannot_be_read_is_refused(fleet: Fleet, call: Call, file: Path) -> None:
    result = call("import-check", str(file))
    assert (result.code, "acme.jsonl.sig cannot be read" in result.err) == (2, True)
