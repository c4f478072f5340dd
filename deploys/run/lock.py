"""One run at a time on an environment, and a line of history for each."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from deploys.lib.errors import DeployError
from deploys.lib.lock import Busy, held

# The descriptor of the lock that a command shares with the commands that it runs.
SHARED = "RELAY_DEPLOY_LOCK"
# What a command that is interrupted may take to end in order, before it is made to.
END_SECONDS = 20.0


@contextmanager
def exclusive(directory: Path) -> Iterator[TextIO | None]:
    """Holds the environment's lock; somebody else holding it is an error that says who.

    A command that was run by the holder, with `shared`, has it already: None.
    """
    path = directory / "deploy.lock"
    if _shares(path):
        yield None
        return
    try:
        with held(path, holder()) as file:
            yield file
    except Busy as other:
        raise DeployError(f"{other} is at work here ({path}); wait for it to end") from None


def shared(file: TextIO) -> dict[str, Any]:
    """Arguments of subprocess.run for a command that works under the lock of this one."""
    number = file.fileno()
    return {"env": os.environ | {SHARED: str(number)}, "pass_fds": (number,)}


def run(words: Sequence[str], **options: Any) -> int:
    """Runs one of our own commands, as subprocess.run does, and returns its exit code. One that is
    interrupted together with this one may end in order: subprocess.run would kill it at once."""
    with subprocess.Popen(words, **options) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            for end in (process.terminate, process.kill):
                try:
                    process.wait(END_SECONDS)
                except subprocess.TimeoutExpired:
                    end()
            raise


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """What else ends a program, as a terminal that is closed, ends it as Ctrl-C does: it says how far it
    came, and silences are ended."""

    def end(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")

    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may say what a signal does.
        yield
        return
    # One that is ignored stays so, as under `nohup`.
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    replaced = {one: handler for one, handler in before.items() if handler is not signal.SIG_IGN}
    for number in replaced:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _shares(path: Path) -> bool:
    """Whether this process was given the very lock of `path`: a name in the environment proves nothing, so
    the kernel is asked, which lets nobody take a lock that somebody else has."""
    number = os.environ.get(SHARED, "")
    try:
        given, there = os.fstat(int(number)), path.stat()
        fcntl.flock(int(number), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ValueError):
        return False
    return (given.st_dev, given.st_ino) == (there.st_dev, there.st_ino)


# What this process wrote to audit logs, for the fleet to keep as well (`deploys.run.runs`).
WRITTEN: list[tuple[Path, dict[str, Any]]] = []

# pyinfra's messages of the `apply` that this process made, taken while nobody else could make one.
MESSAGES: list[str] = []


def audit(directory: Path, **entry: Any) -> None:
    """Appends one JSON line: when, who, which commit, and `entry`."""
    line = {"at": _now(), "who": operator(), "commit": commit(), **entry}
    with audit_log(directory).open("ab+") as file:
        # A line that a full disk has cut off must not spoil this one, too.
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        whole = file.read(1) in (b"", b"\n")
        file.write(("" if whole else "\n").encode() + json.dumps(line).encode() + b"\n")
    WRITTEN.append((directory, line))


def audit_log(directory: Path) -> Path:
    """Every run of this machine on the environments that keep their state in `directory`, a line each."""
    return directory / "audit.jsonl"


def holder() -> str:
    """Who holds a lock, for others to read."""
    return f"{operator()} (process {os.getpid()}, since {_now()})"


def operator() -> str:
    """The person behind the run, also behind sudo."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


def commit() -> str:
    """The repository's commit, with ``+`` when files differ from it; empty outside git."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
