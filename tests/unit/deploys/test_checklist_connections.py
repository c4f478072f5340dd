"""The root shell that the checklist's commands run in, started here as on a host, but for ssh and sudo."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra

from tests.checklist import connections
from tests.checklist.connections import PROGRAM, Shell, Unreachable

LOCAL = [sys.executable, "-I", "-S", "-c", PROGRAM]


@pytest.fixture
def shell() -> Iterator[Shell]:
    opened = Shell("db1", LOCAL, seconds=20)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("echo out; echo err >&2; exit 7", (7, b"out\n", b"err\n")),
        ("true", (0, b"", b"")),
        ("cat", (0, b"", b"")),
        ("printf 'a\\0\\n1 2 3\\n'", (0, b"a\0\n1 2 3\n", b"")),
        ("printf 'two\\nlines' | tail -n 1", (0, b"lines", b"")),
        ("echo 'Ünïcode'", (0, "Ünïcode\n".encode(), b"")),
        ("kill -9 $$", (137, b"", b"")),
        ("exit 255", (255, b"", b"")),
        ("no-such-program 2>/dev/null", (127, b"", b"")),
    ],
)
def test_a_command_ends_as_in_a_shell(shell: Shell, command: str, answer: tuple[int, bytes, bytes]) -> None:
    assert shell.run(command.encode()) == answer
    assert shell.run(b"echo next") == (0, b"next\n", b"")


def test_large_outputs_arrive_whole(shell: Shell) -> None:
    code, out, err = shell.run(b"head -c 3000000 /dev/zero; head -c 70001 /dev/zero >&2")
    assert (code, len(out), len(err)) == (0, 3_000_000, 70_001)


def test_what_a_command_leaves_running_is_not_waited_for(shell: Shell) -> None:
    began = time.monotonic()
    code, out, _ = shell.run(b"sleep 30 & echo $!")
    assert time.monotonic() - began < 15
    assert code == 0
    shell.run(b"kill %d" % int(out))


def test_a_command_that_does_not_end_is_given_up() -> None:
    shell = Shell("db1", LOCAL, seconds=0.5)
    with pytest.raises(Unreachable, match=r"db1 does not answer .*no answer in time; asked: sleep 9"):
        shell.run(b"sleep 9")
    with pytest.raises(Unreachable, match="db1"):
        shell.run(b"echo the answer must not be that of the command before")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sh", "-c", "echo ssh: No route to host >&2; exit 255"], "ssh: No route to host"),
        (["sh", "-c", "echo Welcome"], "its first line is not the root shell's"),
        (["true"], "the connection ended"),
    ],
)
def test_a_login_that_fails_says_why(words: list[str], said: str) -> None:
    with pytest.raises(Unreachable, match=f"db1 does not answer over SSH .*{said}"):
        Shell("db1", words)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """testinfra's view of a host; what stands for ssh counts how often it is started, and starts here."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(
        f'#!/bin/sh\necho login >> {tmp_path}/logins\n[ -e {tmp_path}/down ] && exit 255\neval "exec $4"\n'
    )
    ssh.chmod(0o755)
    sudo = tmp_path / "bin" / "sudo"
    sudo.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:/usr/bin:/bin")
    found = testinfra.get_host(f"{connections.SCHEME}://db1?ssh_config={tmp_path}/config")
    yield found
    found.backend.login.close()


def logins(directory: Path) -> int:
    return len((directory / "logins").read_text().splitlines())


def test_many_commands_cost_one_login(host: Any, tmp_path: Path) -> None:
    assert host.check_output("echo %s", "a b'c") == "a b'c"
    assert host.file(str(tmp_path)).is_directory
    assert host.run("exit 3").rc == 3
    assert host.run("echo 'Ä'").stdout == "Ä\n"
    assert logins(tmp_path) == 1


def test_all_views_of_a_host_share_its_login(host: Any, tmp_path: Path) -> None:
    other = testinfra.get_hosts([f"{connections.SCHEME}://db1?ssh_config={tmp_path}/config"])
    assert [one.check_output("echo $PPID") for one in other] == [host.check_output("echo $PPID")]
    assert logins(tmp_path) == 1


def test_files_are_asked_about_without_asking_what_host_it_is(host: Any, tmp_path: Path) -> None:
    (tmp_path / "some").write_text("text")
    (tmp_path / "some").chmod(0o640)
    asked: list[bytes] = []
    run = host.backend.login.run

    def counted(command: bytes) -> tuple[int, bytes, bytes]:
        asked.append(command)
        answer: tuple[int, bytes, bytes] = run(command)
        return answer

    host.backend.login.run = counted
    file = host.file(str(tmp_path / "some"))
    assert (file.mode, file.content_string, file.exists) == (0o640, "text", True)
    assert len(asked) == 3


def test_units_are_those_of_systemd(host: Any, tmp_path: Path) -> None:
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.write_text('#!/bin/sh\n[ "$1 $2" = "is-active ssh" ] && echo active\n')
    systemctl.chmod(0o755)
    assert host.service("ssh").is_running
    assert not host.service("telnet").is_running


def test_a_host_that_is_down_is_tried_again_after_a_while(host: Any, tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    for _ in range(3):
        with pytest.raises(Unreachable, match="db1 does not answer over SSH"):
            host.run("true")
    assert logins(tmp_path) == 1
    (tmp_path / "down").unlink()
    before = time.time() - connections.FAILED_SECONDS
    os.utime(tmp_path / "db1.failed", (before, before))
    assert host.run("echo back").stdout == "back\n"
    assert logins(tmp_path) == 2


def test_a_connection_that_is_lost_is_made_again(host: Any, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"the connection ended; asked: kill -9 \$PPID"):
        host.run("kill -9 $PPID")
    assert host.run("echo back").stdout == "back\n"
    assert logins(tmp_path) == 2
