"""`make down` leaves nothing behind."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

from deploys.sandbox import settings
from tests.fleet.conftest import make


def printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def processes_of(directories: list[str]) -> list[str]:
    """Processes of the sandbox's engine, and those of its hosts, whose root lies in the engine's data.

    Other engines of this machine are none of the sandbox's business.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_text(errors="replace").replace("\0", " ")
            if any(name in command + (process / "mountinfo").read_text() for name in directories):
                found.append(f"{process.name} {command}")
    return found


def test_down_leaves_no_trace() -> None:
    sandbox = settings.load()
    directories = [f"{sandbox.runtime}/", f"{sandbox.engine_data}/"]
    make("down").ended_well()
    assert [line for line in printed("mount").splitlines() if any(name in line for name in directories)] == []
    assert sandbox.name not in printed("ip", "-brief", "link")
    assert processes_of(directories) == []


def test_down_twice_is_no_error() -> None:
    make("down").ended_well()
