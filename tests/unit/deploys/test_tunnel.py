"""A tunnel to a host's loopback: its command, its end, and what is told when there is none."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from deploys.lib import tunnel
from deploys.lib.errors import DeployError

# What stands for ssh: it listens where -L says, until it is ended.
SSH = """#!/usr/bin/env python3
import pathlib, socket, sys, time
pathlib.Path("{words}").write_text("\\n".join(sys.argv[1:]))
where = sys.argv[sys.argv.index("-L") + 1]
server = socket.create_server(("127.0.0.1", int(where.split(":")[1])))
time.sleep(60)
"""
REFUSES = "#!/bin/sh\necho 'Permission denied (publickey).' >&2\nexit 255\n"


def program(directory: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "ssh"
    path.write_text(text)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def test_it_is_open_as_long_as_the_block_runs(
    tmp_path: Path, sandbox_inventory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, SSH.format(words=tmp_path / "words"), monkeypatch)
    with tunnel.to(sandbox_inventory.get_host("app1"), 3000) as port:
        socket.create_connection(("127.0.0.1", port)).close()
        words = (tmp_path / "words").read_text().splitlines()
    assert words[-1] == "172.30.77.21"
    assert f"127.0.0.1:{port}:127.0.0.1:3000" in words
    # Not by the connection that other commands share, which would keep it open.
    assert words.index("-oControlMaster=no") < words.index("-oControlMaster=auto")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_host_that_lets_nobody_in_is_told(
    tmp_path: Path, sandbox_inventory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, REFUSES, monkeypatch)
    with (
        pytest.raises(DeployError, match=r"port 3000 of app1: Permission denied"),
        tunnel.to(sandbox_inventory.get_host("app1"), 3000),
    ):
        pytest.fail("it is open")
