"""The command line, and a run over fake hosts: what is found, what is done, how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pyinfra
import pytest
from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.inventory import Inventory
from pyinfra.connectors.fake import FakeConnector
from pyinfra.operations import files, server

from deploys import roles
from deploys.lib import fleet, pyinfra_adapter
from deploys.lib.errors import DeployError
from deploys.lib.role import HealthCheck, Role
from deploys.lib.secrets import SecretStore
from deploys.run import cli, environment, health_checks, lock, stages, trust, validate
from deploys.run.releases import FleetBusy

PATH = "/etc/example"
TEXT = "wanted\n"
EXAMPLE = Role("example", "edge")


@deploy("Example")
def example() -> None:
    """A file, and a reload that only follows its change."""
    written = files.put(name=f"Write {PATH}", src=StringIO(TEXT), dest=PATH, mode="644")
    server.shell(name="Reload", commands=["reload-example"], _if=fleet.changed(written))


class FakeFleet:
    """Hosts whose one file can be changed by hand; an upload mends it."""

    def __init__(self) -> None:
        self.contents = {"edge1": TEXT, "edge2": TEXT}
        self.commands: list[str] = []
        self.refuse: set[str] = set()

    def inventory(self) -> Inventory:
        settings = {
            "fake_delay": 0,
            "fake_delay_jitter": 0,
            "address": "192.0.2.1",
            "ssh_hostname": "192.0.2.1",
        }
        names = [(f"@fake/{name}", settings) for name in self.contents]
        data = {
            "state_directory": str(self.directory),
            "host_silence_seconds": 30,
            "operation_seconds": 1800,
        }
        return Inventory((names, data), edge=([name for name, _ in names], {}))

    directory: Path


@pytest.fixture
def fleet_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFleet:
    fake = FakeFleet()
    fake.directory = tmp_path
    monkeypatch.setattr(environment, "load", lambda name, **more: fake.inventory())
    monkeypatch.setattr(validate, "check", lambda *_: None)
    monkeypatch.setattr(trust, "check", lambda *_: None)
    monkeypatch.setattr(trust, "record", lambda _: None)
    store = SecretStore(tmp_path / "secrets.age", tmp_path / "secrets.key")
    monkeypatch.setattr(fleet, "store", lambda: store)
    monkeypatch.setattr(roles, "certificate_subjects", list)
    monkeypatch.setattr(roles, "table", lambda _until="": (EXAMPLE,))
    monkeypatch.setattr(stages, "run", lambda _: example())
    monkeypatch.setattr(pyinfra, "is_cli", False)
    monkeypatch.setattr(FakeConnector, "run_shell_command", _shell(fake))
    monkeypatch.setattr(FakeConnector, "put_file", _put(fake))
    return fake


def _shell(fake: FakeFleet) -> Callable[..., Any]:
    original = FakeConnector.run_shell_command

    def run(self: Any, command: Any, **arguments: Any) -> Any:
        text, name = str(command), self.host.name.removeprefix("@fake/")
        fake.commands.append(f"{name}: {text}")
        content = fake.contents[name].encode()
        self.data["fake_responses"] = _answers(content) | {
            "reload-example": {"success": name not in fake.refuse, "stderr": "refused"}
        }
        return original(self, command, **arguments)

    return run


def _answers(content: bytes) -> dict[Any, Any]:
    from tests.unit.deploys.facts import existing

    return existing(PATH, content.decode())


def _put(fake: FakeFleet) -> Callable[..., bool]:
    def put_file(self: Any, source: Any, path: str, *_: Any, **__: Any) -> bool:
        fake.contents[self.host.name.removeprefix("@fake/")] = source.getvalue()
        return True

    return put_file


def reloads(fake: FakeFleet) -> list[str]:
    return [line for line in fake.commands if "reload-example" in line]


def audit(fake: FakeFleet) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (fake.directory / "audit.jsonl").read_text().splitlines()]


def test_a_clean_fleet(fleet_of_two: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "sandbox"]) == 0
    assert "nothing to change" in capsys.readouterr().out
    assert cli.main(["apply", "sandbox"]) == 0
    assert reloads(fleet_of_two) == []
    assert [(line["command"], line["result"], line["changes"]) for line in audit(fleet_of_two)] == [
        ("plan", "done", 0),
        ("apply", "done", 0),
    ]


class FleetLock:
    """The lock of a fleet, whose ops host may be away or say that somebody has it."""

    def __init__(self, problem: DeployError | None) -> None:
        self.problem = problem
        self.asked: list[str] = []

    @contextmanager
    def exclusive(self, what: str) -> Iterator[None]:
        self.asked.append(what)
        if self.problem:
            raise self.problem
        yield


@pytest.mark.parametrize(
    ("problem", "status"),
    [(None, 0), (FleetBusy("alice (patch) is at work on this fleet"), 1), (DeployError("ops1 is away"), 0)],
)
def test_an_apply_has_the_fleets_lock_or_says_why_it_goes_on_without(
    fleet_of_two: FakeFleet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    problem: DeployError | None,
    status: int,
) -> None:
    fleet_of_two.contents["edge2"] = "changed by hand\n"
    found = FleetLock(problem)
    monkeypatch.setattr("deploys.run.figures.monitor", lambda _: object())
    monkeypatch.setattr("deploys.run.releases.History", lambda _: found)
    assert cli.main(["plan", "sandbox"]) == 2
    assert found.asked == [], "to look, nobody needs to wait"
    capsys.readouterr()
    assert cli.main(["apply", "sandbox"]) == status
    told = capsys.readouterr()
    assert found.asked == ["apply"]
    assert fleet_of_two.contents["edge2"] == ("changed by hand\n" if status else TEXT)
    if problem:
        assert str(problem) in told.out + told.err
    with lock.exclusive(fleet_of_two.directory) as mine:
        assert mine is not None
        monkeypatch.setenv(lock.SHARED, str(mine.fileno()))
        assert cli.main(["apply", "sandbox"]) == 0
    assert found.asked == ["apply"], "under the lock of the command that runs it, it needs none"


@pytest.mark.usefixtures("fleet_of_two")
def test_what_is_left_out_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = replace(EXAMPLE, name="absent", wanted=lambda: False, left_out=lambda: "The example is left out")
    monkeypatch.setattr(roles, "table", lambda _until="": (absent, EXAMPLE))
    assert cli.main(["apply", "sandbox"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(told) == 1
    assert told[0].endswith("The example is left out; everything else goes on")


@pytest.mark.usefixtures("fleet_of_two")
def test_certificates_of_a_host_that_left_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    fleet.store().write({"tls_cert:app4": "certificate", "redis_password": "secret"})
    assert cli.main(["plan", "sandbox"]) == 0
    told = capsys.readouterr().out
    assert "tls_cert:app4 of hosts that left the inventory" in told
    assert "`python -m deploys secrets sandbox` removes them" in told


def test_apply_stops_after_a_role_and_does_not_know_others(
    fleet_of_two: FakeFleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet_of_two.contents["edge2"] = "changed by hand\n"
    later = (replace(EXAMPLE, name="first"), EXAMPLE)
    monkeypatch.setattr(roles, "table", lambda until="": later[:1] if until == "first" else later)
    assert cli.main(["apply", "sandbox", "--until", "first"]) == 0
    assert [line["until"] for line in audit(fleet_of_two)] == ["first"]
    monkeypatch.undo()
    assert cli.main(["apply", "sandbox", "--until", "postgre"]) == 1
    assert "no role 'postgre'; there are: base," in capsys.readouterr().err


def test_drift_is_named_mended_and_gone(fleet_of_two: FakeFleet, capsys: pytest.CaptureFixture[str]) -> None:
    fleet_of_two.contents["edge2"] = "changed by hand\n"
    assert cli.main(["plan", "sandbox"]) == 2
    out = capsys.readouterr().out
    assert f"edge2: example: Write {PATH}" in out
    assert "edge1:" not in out
    assert fleet_of_two.contents["edge2"] == "changed by hand\n"
    assert cli.main(["apply", "sandbox"]) == 0
    assert fleet_of_two.contents["edge2"] == TEXT
    assert reloads(fleet_of_two) == ["edge2: reload-example"]
    assert cli.main(["plan", "sandbox"]) == 0


def test_a_failed_operation_stops_the_run(
    fleet_of_two: FakeFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet_of_two.contents["edge2"] = "changed by hand\n"
    fleet_of_two.refuse = {"edge2"}
    assert cli.main(["apply", "sandbox"]) == 1
    assert "an operation failed on @fake/edge2" in capsys.readouterr().err
    assert audit(fleet_of_two)[-1]["result"].startswith("failed: stopped")


def freeze(fake: FakeFleet, monkeypatch: pytest.MonkeyPatch, name: str, at: str) -> None:
    """The host stops answering when a command that holds `at` runs on it."""
    frozen: list[str] = []
    original = FakeConnector.run_shell_command

    def run(self: Any, command: Any, **arguments: Any) -> Any:
        if self.host.name.endswith(name) and (frozen or at in str(command)):
            frozen.append(name)
            raise OSError("the connection ended")
        return original(self, command, **arguments)

    def alive(host: Any, _: float) -> bool:
        return not (frozen and host.name.endswith(name))

    monkeypatch.setattr(FakeConnector, "run_shell_command", run)
    monkeypatch.setattr(pyinfra_adapter, "alive", alive)


@pytest.mark.parametrize("at", ["reload-example", "sha1sum", "chmod"])
def test_the_others_go_on_when_a_host_stops_answering(
    fleet_of_two: FakeFleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: str
) -> None:
    fleet_of_two.contents = dict.fromkeys(fleet_of_two.contents, "changed by hand\n")
    freeze(fleet_of_two, monkeypatch, "edge2", at)
    assert cli.main(["apply", "sandbox"]) == 3
    assert fleet_of_two.contents["edge1"] == TEXT
    assert reloads(fleet_of_two) == ["edge1: reload-example"]
    out = capsys.readouterr().out
    assert "@fake/edge2 stopped answering: the others go on" in out
    assert "done without @fake/edge2" in out
    assert audit(fleet_of_two)[-1]["result"] == "done without @fake/edge2"


def test_a_role_whose_members_act_as_one_is_not_half_applied(
    fleet_of_two: FakeFleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    together = replace(EXAMPLE, cluster=True, health_checks=(HealthCheck("it serves", "false", seconds=0),))
    monkeypatch.setattr(roles, "table", lambda _until="": (together,))
    monkeypatch.setattr(roles, "members", lambda _: [fleet.Node("@fake/edge2", "192.0.2.1")])
    fleet_of_two.contents = dict.fromkeys(fleet_of_two.contents, "changed by hand\n")
    freeze(fleet_of_two, monkeypatch, "edge2", "sha1sum")
    assert cli.main(["apply", "sandbox"]) == 3
    assert fleet_of_two.contents["edge1"] == "changed by hand\n"
    assert "Left alone: example" in capsys.readouterr().out


def test_a_plan_names_a_host_that_stops_answering(
    fleet_of_two: FakeFleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    freeze(fleet_of_two, monkeypatch, "edge2", "sha1sum")
    assert cli.main(["plan", "sandbox"]) == 1
    assert "@fake/edge2 stopped answering" in capsys.readouterr().err


def test_a_host_that_cannot_be_reached_is_named_with_the_limit_to_go_on_without(
    fleet_of_two: FakeFleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def connect(self: Any) -> None:
        if self.host.name.endswith("edge2"):
            raise ConnectError("refused")

    monkeypatch.setattr(FakeConnector, "connect", connect)
    assert cli.main(["apply", "sandbox"]) == 1
    told = capsys.readouterr().err
    assert "cannot log in to @fake/edge2" in told
    assert "To go on without: --limit @fake/edge1" in told


def test_a_failed_operation_names_the_member_that_is_not_well_and_what_mends_it(
    fleet_of_two: FakeFleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = HealthCheck("it serves", "true", member="own-member", mend="`mend it`")
    monkeypatch.setattr(roles, "table", lambda _until="": (replace(EXAMPLE, health_checks=(check,)),))
    monkeypatch.setattr(
        pyinfra_adapter,
        "run_shell",
        lambda host, command, seconds: (not host.name.endswith("edge2"), "page 7 is damaged"),
    )
    fleet_of_two.contents["edge2"] = "changed by hand\n"
    fleet_of_two.refuse = {"edge2"}
    monkeypatch.setattr(roles, "members", lambda _: [fleet.Node("edge2", "192.0.2.1")])
    assert cli.main(["apply", "sandbox"]) == 1
    told = capsys.readouterr().err
    assert "edge2: page 7 is damaged" in told
    assert "To mend @fake/edge2: `mend it`." in told


def test_a_limit_leaves_other_hosts_alone(fleet_of_two: FakeFleet) -> None:
    fleet_of_two.contents = dict.fromkeys(fleet_of_two.contents, "changed by hand\n")
    assert cli.main(["plan", "sandbox", "--limit", "@fake/edge1"]) == 2
    assert {line.split(":")[0] for line in fleet_of_two.commands} == {"edge1"}
    assert audit(fleet_of_two)[-1]["limit"] == ["@fake/edge1"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan", "sandbx"], "no environment 'sandbx'; there are: production, sandbox"),
        (["apply", "sandbx"], "no environment 'sandbx'"),
        (["verify", "sandbx"], "no environment 'sandbx'"),
        (["secrets", "sandbx"], "no environment 'sandbx'"),
        (["plan", "sandbox", "--limit", "egde"], "no host or group 'egde'; groups: app, db"),
        (["verify", "sandbox", "--limit", "edge9"], "no host or group 'edge9'"),
        (["plan"], "required: ENV"),
        (["paln", "sandbox"], "invalid choice: 'paln'"),
    ],
)
def test_mistakes_are_errors_and_never_drift(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 1
    assert told in capsys.readouterr().err


def test_a_second_run_waits_its_turn(tmp_path: Path) -> None:
    with (
        lock.exclusive(tmp_path),
        pytest.raises(DeployError, match=r"process \d+, since .* is at work here"),
        lock.exclusive(tmp_path),
    ):
        pass
    with lock.exclusive(tmp_path):
        pass


def test_a_health_check_waits_and_then_passes(
    fleet_of_two: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_checks, "PAUSE_SECONDS", 0.0)
    answers = iter([(False, "starting"), (True, "")])
    check = HealthCheck("it serves", "check", first=True)
    assert health_checks.wait(EXAMPLE, check, fleet_of_two.inventory(), lambda *_: next(answers)) >= 0
    assert next(answers, None) is None


def test_a_health_check_that_keeps_failing_says_why(fleet_of_two: FakeFleet) -> None:
    check = HealthCheck("it serves", "check", seconds=0)
    with pytest.raises(DeployError, match=r"it serves\. @fake/edge1 says: broken"):
        health_checks.wait(EXAMPLE, check, fleet_of_two.inventory(), lambda *_: (False, "starting\nbroken\n"))


def test_a_health_check_asks_every_host_unless_one_can_answer(fleet_of_two: FakeFleet) -> None:
    asked: list[str] = []

    def shell(host: Any, _: str) -> tuple[bool, str]:
        asked.append(host.name)
        return True, ""

    health_checks.wait(EXAMPLE, HealthCheck("", ""), fleet_of_two.inventory(), shell)
    health_checks.wait(EXAMPLE, HealthCheck("", "", first=True), fleet_of_two.inventory(), shell)
    health_checks.wait(
        Role("example", "edge", first_only=True), HealthCheck("", ""), fleet_of_two.inventory(), shell
    )
    assert asked == ["@fake/edge1", "@fake/edge2", "@fake/edge1", "@fake/edge1"]
