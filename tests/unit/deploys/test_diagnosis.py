"""Why a role is not healthy: asked of a shell that runs the real command with a made-up systemd."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gevent.event import Event
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

from deploys import roles
from deploys.lib.errors import DeployError
from deploys.lib.role import HealthCheck, Role
from deploys.run import diagnosis, health_checks

CHECK = HealthCheck(
    "it serves", "check", units=("a.service", "b.service"), member="own-member", mend="`mend it`", seconds=0
)
SYSTEMCTL = """#!/bin/sh
for unit; do :; done
case "$1 $2" in
    "is-active --quiet") [ "$unit" != b.service ] ;;
    *ActiveState*|*"--property=ActiveState"*) echo activating ;;
    *) case "$*" in
        *ActiveState*) echo activating ;;
        *Result*) echo exit-code ;;
        *) echo 9 ;;
       esac ;;
esac
"""
JOURNALCTL = "#!/bin/sh\necho 'opening the database'\necho 'panic: page 7 is damaged'\n"


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[Any, str], tuple[bool, str]]:
    for name, text in (("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(host: Any, command: str) -> tuple[bool, str]:
        done = subprocess.run(
            ["sh", "-c", command],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        )
        return done.returncode == 0, done.stdout

    return run


def host(name: str) -> Any:
    return SimpleNamespace(name=name)


def test_a_unit_that_crashes_is_named_with_its_last_lines(shell: Any) -> None:
    (found,) = diagnosis.findings(CHECK, [host("db2")], shell)
    assert str(found).splitlines() == [
        "  db2: b.service is activating (exit-code, started again 9 times); its last lines:",
        "    opening the database",
        "    panic: page 7 is damaged",
    ]
    assert found.hopeless


def test_a_member_that_runs_and_is_not_well_says_why() -> None:
    answers = {"own-member": (False, "starting\nno space left on device\n")}
    (found,) = diagnosis.findings(CHECK, [host("db2")], lambda _, command: answers.get(command, (True, "")))
    assert str(found) == "  db2: starting\n    no space left on device"
    assert not found.hopeless


def test_a_host_that_does_not_answer_is_named() -> None:
    (found,) = diagnosis.findings(CHECK, [host("db2")], lambda *_: (False, "db2 does not answer (timed out)"))
    assert "db2" in str(found)
    assert "does not answer" in str(found)


def test_who_is_well_is_not_named() -> None:
    assert diagnosis.findings(CHECK, [host("db2")], lambda *_: (True, "")) == []


def test_the_failure_names_member_lines_and_remedy(sandbox_inventory: Inventory, shell: Any) -> None:
    def fails(host: Any, command: str) -> tuple[bool, str]:
        return shell(host, command) if "systemctl" in command and host.name == "db3" else (False, "unhealthy")

    def only_db3(host: Any, command: str) -> tuple[bool, str]:
        if command == "check" or host.name == "db3":
            return fails(host, command)
        return True, ""

    with pytest.raises(DeployError) as failure:
        health_checks.wait(Role("example", "db"), CHECK, sandbox_inventory, only_db3)
    text = str(failure.value)
    assert "example: not within" in text
    assert "panic: page 7 is damaged" in text
    assert text.splitlines()[-1] == "To mend db3: `mend it`. Then run apply again."


def test_a_unit_that_crashes_again_and_again_is_not_waited_for(
    sandbox_inventory: Inventory, shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_checks, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(health_checks, "PAUSE_SECONDS", 0.0)
    patient = HealthCheck("it serves", "false", units=("b.service",), seconds=3600)
    with pytest.raises(DeployError, match="started again 9 times"):
        health_checks.wait(Role("example", "db"), patient, sandbox_inventory, shell)


def test_hosts_are_asked_side_by_side_and_who_is_not_well_again(sandbox_inventory: Inventory) -> None:
    asked: list[str] = []
    all_asked = Event()

    def shell(host: Host, command: str) -> tuple[bool, str]:
        first = host.name not in asked
        asked.append(host.name)
        if len(asked) == 3:
            all_asked.set()
        return all_asked.wait(5) and not (first and host.name == "db2"), ""

    health_checks.wait(Role("example", "db"), HealthCheck("it serves", "check"), sandbox_inventory, shell)
    assert sorted(asked) == ["db1", "db2", "db2", "db3"]


@pytest.mark.parametrize("name", [role.name for role in roles.table() if role.health_checks])
def test_every_role_says_which_units_and_what_mends_them(name: str) -> None:
    (role,) = [role for role in roles.table() if role.name == name]
    for check in role.health_checks:
        assert check.units
        assert check.mend


# Their own programs tell systemd when they have their ports, and a socket's port is its own.
# Of others it only knows that they were started.
TELL_THEMSELVES = {"systemctl is-active nginx", "systemctl is-active redis-server"}


@pytest.mark.parametrize("command", [check.command for role in roles.table() for check in role.health_checks])
def test_a_service_that_crashes_at_its_port_is_never_healthy(command: str) -> None:
    if re.fullmatch(r"systemctl is-active --quiet [a-z-]+\.socket", command):
        return
    asked = re.sub(r"systemctl is-active [^&|;]*", "", command)
    assert command in TELL_THEMSELVES or re.search(r"[a-z]{3}", asked), command
