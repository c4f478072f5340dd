"""The history of releases: the program that keeps it on the ops host, and who reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploys.lib import fleet
from deploys.lib.errors import DeployError
from deploys.run import releases
from deploys.run.releases import Release
from tests.unit.deploys.scripts import load

PROGRAM = fleet.REPOSITORY / "templates/registry/relay_releases.py"


def line(number: int, state: str, at: str = "2026-11-27T03:00:00+00:00", **more: Any) -> dict[str, Any]:
    about = {"kind": "release", "image": f"r/relay@sha256:{number}", "stack": f"h{number}", "who": "me"}
    return {"number": number, "state": state, "at": at, "reason": "", "commit": "c", "to": 0} | about | more


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = load("registry/relay_releases.py")
    monkeypatch.setattr(module, "DIRECTORY", tmp_path / "releases")
    monkeypatch.setattr(module, "FIGURES", tmp_path / "figures/releases.prom")
    monkeypatch.setattr(module, "REGISTRY", tmp_path / "registry")
    return module


def record(program: ModuleType, monkeypatch: pytest.MonkeyPatch, *lines: dict[str, Any]) -> None:
    import io

    for one in lines:
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(one)))
        assert program.main(["record"]) == 0


def figure(tmp_path: Path) -> float:
    return float((tmp_path / "figures/releases.prom").read_text().split()[-1])


def test_what_is_recorded_is_shown_and_an_unfinished_release_is_measured(
    program: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    began = line(1, "begun", at="1970-01-01T00:10:00+00:00")
    record(program, monkeypatch, began)
    assert figure(tmp_path) == 600
    record(program, monkeypatch, line(1, "canary"))
    assert figure(tmp_path) == 600
    record(program, monkeypatch, line(1, "released"))
    assert figure(tmp_path) == 0
    program.main(["show"])
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"lines": [began, line(1, "canary"), line(1, "released")], "holder": "", "stolen": {}}


def test_what_a_crash_left_half_written_spoils_nothing(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record(program, monkeypatch, line(1, "begun"))
    path = tmp_path / "releases/history.jsonl"
    path.write_text(path.read_text() + '{"number": 1, "sta')
    record(program, monkeypatch, line(1, "canary"))
    assert [one["state"] for one in program.history()] == ["begun", "canary"]


def test_a_stack_file_comes_back_as_it_was(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("services: {}\n"))
    program.main(["put", "7"])
    program.main(["get", "7"])
    assert capsys.readouterr().out == "services: {}\n"


def test_pruning_forgets_what_is_not_named_while_the_registry_stands_still(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tags = tmp_path / "registry/_manifests/tags"
    for tag, digest in (("t1", "1"), ("t2", "2"), ("t3", "3"), ("base", "4"), ("pushed today", "5")):
        link = tags / tag / "current/link"
        link.parent.mkdir(parents=True)
        link.write_text(f"sha256:{digest}")
        if tag != "pushed today":
            os.utime(link, (0, 0))
    called: list[list[str]] = []

    def run(command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        called.append(list(command)[:2])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(program.subprocess, "run", run)
    (tmp_path / "releases").mkdir()
    for number in (1, 2, 3):
        (tmp_path / f"releases/{number}.yml").write_text("")
    words = ["prune", "--numbers", "2,3", "--images", "sha256:2,sha256:3", "--tags", "base"]
    program.main(words)
    assert sorted(path.name for path in tags.iterdir()) == ["base", "pushed today", "t2", "t3"]
    assert sorted(path.name for path in (tmp_path / "releases").glob("*.yml")) == ["2.yml", "3.yml"]
    systemctl = [command for command in called if command[0] == "systemctl"]
    assert systemctl == [["systemctl", "stop"], ["systemctl", "start"]]
    assert ["docker-registry", "garbage-collect"] in called
    called.clear()
    program.main(words)
    assert called == []


def test_the_registry_comes_back_though_its_collector_fails(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "registry/_manifests/tags/t1").mkdir(parents=True)
    called: list[list[str]] = []

    def run(command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        called.append(list(command)[:2])
        if command[0] == "docker-registry":
            raise subprocess.CalledProcessError(1, command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(program.subprocess, "run", run)
    with pytest.raises(subprocess.CalledProcessError):
        program.main(["prune"])
    assert called[-1] == ["systemctl", "start"]


def test_the_lock_is_one_persons_until_their_connection_ends(tmp_path: Path) -> None:
    """Real processes: the kernel releases it, however the holder dies."""
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv.pop(1)); import relay_releases as r; "
        "r.DIRECTORY = pathlib.Path(sys.argv.pop(1)); sys.exit(r.main())"
    )
    command = [sys.executable, "-c", code, str(PROGRAM.parent), str(tmp_path), "hold"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "me"], **pipes) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        second = subprocess.run([*command, "you"], capture_output=True, text=True, input="", check=False)
        assert second.returncode == releases.BUSY
        assert second.stdout.startswith("me, since ")
        first.kill()
    third = subprocess.run([*command, "you"], capture_output=True, text=True, input="", check=False)
    assert (third.returncode, third.stdout) == (0, "held\n")


def test_lines_become_releases() -> None:
    found = releases.folded(
        [line(1, "begun", at="t1"), line(2, "begun"), line(1, "canary", at="t2", reason="x")]
    )
    assert [(one.number, one.began, one.changed, one.state, one.reason) for one in found] == [
        (1, "t1", "t2", "canary", "x"),
        (2, "2026-11-27T03:00:00+00:00", "2026-11-27T03:00:00+00:00", "begun", ""),
    ]
    assert found[0].digest == "sha256:1"


def past(*told: tuple[str, str] | tuple[str, str, int]) -> list[Release]:
    """Releases by (kind, state) or (kind, state, to)."""
    lines = [
        line(number, one[1], kind=one[0], to=one[2] if len(one) > 2 else 0)
        for number, one in enumerate(told, 1)
    ]
    return releases.folded(lines)


GOOD, BAD = ("release", "released"), ("release", "rolled back")


@pytest.mark.parametrize(
    ("told", "runs"),
    [
        ([], None),
        ([GOOD], 1),
        ([GOOD, GOOD, BAD], 2),
        ([GOOD, GOOD, ("rollback", "released", 1)], 1),
        ([GOOD, GOOD, ("rollback", "released", 1), GOOD], 4),
        ([GOOD, ("release", "canary")], 1),
    ],
)
def test_what_runs(told: list[Any], runs: int | None) -> None:
    found = releases.running(past(*told))
    assert (found.number if found else None) == runs


def test_rolling_back_again_goes_further_back_and_never_to_what_was_bad() -> None:
    told: list[Any] = [GOOD, GOOD, BAD, GOOD]
    for expected in (2, 1):
        runs = releases.running(past(*told))
        assert runs is not None
        goal = releases.before(past(*told), runs.number)
        assert goal is not None
        assert goal.number == expected
        told.append(("rollback", "released", expected))
    assert releases.before(past(*told), 1) is None


states = st.sampled_from(["released", "rolled back"])


@given(st.lists(states, min_size=1, max_size=12), st.booleans())
def test_three_good_ones_and_what_runs_are_kept(ends: list[str], open_: bool) -> None:
    told = [("release", end) for end in ends] + ([("release", "canary")] if open_ else [])
    everything = past(*told)
    kept = releases.kept(everything)
    good = [one for one in everything if one.state == "released"]
    assert good[-3:] == [one for one in kept if one.state == "released"]
    assert len(kept) <= 4
    assert (releases.unfinished(everything) in kept) or not open_


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch, sandbox_inventory: Any) -> Any:
    host = next(host for host in sandbox_inventory if host.name == "ops1")
    answer: dict[str, Any] = {"status": 0, "out": "{}", "err": ""}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, answer["status"], answer["out"], answer["err"])

    monkeypatch.setattr("deploys.run.remote.subprocess.run", run)
    return releases.History(host), answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"status": 255, "err": "timed out"}, "ops1 does not answer"),
        ({"status": 127, "err": "relay-releases: command not found"}, "ops1 has no relay-releases"),
        ({"status": 1, "err": "disk full"}, "disk full"),
        ({"out": "no json"}, "does not answer with JSON"),
    ],
)
def test_a_history_that_cannot_be_read_is_an_error(history: Any, answer: dict[str, Any], told: str) -> None:
    found, answers = history
    answers.update(answer)
    with pytest.raises(DeployError, match=told):
        found.read()


def test_whoever_holds_the_lock_is_named(history: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = history
    words = ["sh", "-c", "echo 'you, since 03:00'; exit 75", "--"]
    monkeypatch.setattr("deploys.run.releases.ssh.command", lambda *_: words)
    with pytest.raises(DeployError, match=r"you, since 03:00 is at work"), found.exclusive("release"):
        pytest.fail("two at work")
    words[2] = "echo held; cat > /dev/null; sleep 0.1"
    began = time.monotonic()
    with found.exclusive("release"):
        pass
    assert time.monotonic() - began < 5
    words[2] = "exit 255"
    with pytest.raises(DeployError, match="ops1, which has the fleet's lock, does not answer"):
        found.exclusive("release").__enter__()
    words[2] = "exit 1"
    with pytest.raises(DeployError, match="does not give the fleet's lock"), found.exclusive("release"):
        pytest.fail("no lock")
