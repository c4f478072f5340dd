"""`make down` leaves nothing behind."""

from __future__ import annotations

import subprocess

from tests.fleet.conftest import make


def printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_down_leaves_no_trace() -> None:
    make("down").ended_well()
    mounts = printed("mount")
    assert "/var/lib/docker/" not in mounts
    assert "relay-sandbox" not in mounts
    assert "relay-sandbox" not in printed("ip", "-brief", "link")
    processes = printed("ps", "-eo", "args")
    assert not [
        line for line in processes.splitlines() if line.startswith(("dockerd", "containerd", "sshd:"))
    ]


def test_down_twice_is_no_error() -> None:
    make("down").ended_well()
