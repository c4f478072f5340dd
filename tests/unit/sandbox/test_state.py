from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploys.sandbox import engine, shell, state
from deploys.sandbox.settings import ROOT, Sandbox, SandboxError


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "below" / "secret"
    state.write_atomically(path, "one", mode=0o600)
    state.write_atomically(path, b"two", mode=0o600)
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["secret"]


def test_a_missing_file_is_an_empty_dict(tmp_path: Path) -> None:
    assert state.read_json(tmp_path / "absent") == {}


def test_the_lock_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        state.lock(path),
        pytest.raises(SandboxError, match=f"process {os.getpid()} "),
        state.lock(path, 0.0),
    ):
        pass
    with state.lock(path, patience=0.0):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    hold = "from pathlib import Path\nfrom deploys.sandbox import state\n"
    hold += f"with state.lock(Path({str(path)!r})):\n"
    hold += "    print('held', flush=True)\n    input()\n"
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SandboxError), state.lock(path, patience=0.0):
            pass
        holder.kill()
    with state.lock(path, patience=0.0):
        pass


MOUNTINFO = """24 1 0:22 / /proc rw - proc proc rw
70 1 0:27 / /srv/a/dev/shm rw - tmpfs tmpfs rw
71 1 0:27 / /srv/a rw - tmpfs tmpfs rw
72 1 0:27 / /srv/ab rw - tmpfs tmpfs rw
73 1 0:27 / /srv/a/with\\040space rw - tmpfs tmpfs rw
"""


def test_mounts_below_a_directory_are_found_deepest_first() -> None:
    assert state.mounts_below(Path("/srv/a"), MOUNTINFO) == [
        "/srv/a/with space",
        "/srv/a/dev/shm",
        "/srv/a",
    ]


def test_a_directory_with_a_mount_in_it_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path / "tree" / "shm" / "file"
    precious.parent.mkdir(parents=True)
    precious.touch()
    monkeypatch.setattr(state, "mounts_below", lambda path, text: [str(precious.parent)])
    with pytest.raises(SandboxError, match="still mounted"):
        state.remove_tree(tmp_path / "tree")
    assert precious.exists()
    monkeypatch.undo()
    state.remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    state.remove_tree(tmp_path / "tree")


def test_work_side_by_side_reports_every_failure() -> None:
    def halve(number: int) -> int:
        if number % 2:
            raise SandboxError(f"{number} is odd")
        return number // 2

    assert shell.each(halve, [4, 2, 8]) == [2, 1, 4]
    with pytest.raises(SandboxError, match=r"(?s)1 is odd.*3 is odd"):
        shell.each(halve, [1, 2, 3])


def test_a_failed_program_is_named_with_its_words() -> None:
    with pytest.raises(SandboxError, match=r"(?s)exit 3: sh -c .*no luck"):
        shell.run(["sh", "-c", "echo no luck >&2; exit 3"])


def test_a_long_program_fails_with_the_tail_of_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "echo PROGRESS half; echo detail; exit 4"
    with pytest.raises(SandboxError, match=r"(?s)exit 4.*detail.*whole log"):
        shell.run_logged(
            ["sh", "-c", script], tmp_path / "log", show=lambda line: line.startswith("PROGRESS")
        )
    shown = capsys.readouterr().out
    assert "  half" in shown
    assert "detail" not in shown


def test_a_long_program_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    start = "from pathlib import Path\nfrom deploys.sandbox import shell\n"
    start += f"shell.run_logged(['sh', '-c', 'echo $$; exec sleep 60'], Path({str(log)!r}), "
    start += "show=lambda line: bool(print(line, end='', flush=True)))\n"
    with subprocess.Popen(
        [sys.executable, "-c", start], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        sleeper = int(starter.stdout.readline())
        assert engine.alive(sleeper)
        starter.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while engine.alive(sleeper) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not engine.alive(sleeper)


def test_the_engine_keeps_apart_from_any_other(sandbox: Sandbox) -> None:
    command = engine.engine_command(sandbox)
    socket = f"unix://{sandbox.runtime}/docker.sock"
    assert f"--data-root={sandbox.engine_data}" in command
    assert f"--host={socket}" in command
    assert "--bridge=none" in command
    assert engine.own_engine(sandbox).environment()["DOCKER_HOST"] == socket


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("failed to create NAT chain DOCKER: iptables failed: No chain/target/match by that name", "legacy"),
        ("error initializing graphdriver: overlay2: driver not supported", "ext4"),
        ("something else", "preflight"),
    ],
)
def test_known_failures_of_the_engine_come_with_advice(tmp_path: Path, log: str, words: str) -> None:
    path = tmp_path / "engine.log"
    path.write_text(log)
    assert words in engine.advice(path)


def test_settings_of_the_machine_are_kept_as_first_found(sandbox: Sandbox) -> None:
    engine.remember(sandbox, {"net.ipv4.ip_forward": "0"})
    engine.remember(sandbox, {"net.ipv4.ip_forward": "1", "fs.inotify.max_user_instances": "128"})
    assert state.read_json(sandbox.directory / "machine-before.json") == {
        "net.ipv4.ip_forward": "0",
        "fs.inotify.max_user_instances": "128",
    }
