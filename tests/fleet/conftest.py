"""The platform from nothing, once for all fleet tests: files run in the order of their numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# A fixture: tests name it.
from tests.fleet.customers import customers as customers

ROOT = Path(__file__).resolve().parents[2]
LOG = ROOT / ".sandbox" / "logs"
# Against hanging; how long `up` takes is measured, not tested.
COMMAND_LIMIT_SECONDS = 60 * 60
LAST_LINES = 20


@dataclass(frozen=True)
class Run:
    """How a command ended: its status, what it printed (both streams), and its seconds."""

    status: int
    output: str
    seconds: float

    def ended_well(self) -> Run:
        """The run itself; fails the test with what the command named as failed, and its last lines."""
        if self.status:
            lines = self.output.splitlines()
            named = [line for line in lines[:-LAST_LINES] if "✘" in line or "error" in line.lower()]
            shown = "\n".join([*named, "...", *lines[-LAST_LINES:]])
            pytest.fail(f"exit {self.status} after {self.seconds:.0f} s\n{shown}", pytrace=False)
        return self


def make(*arguments: str) -> Run:
    """Run make in the repository, its output shown as it comes and kept."""
    return finish(start("make", "--no-print-directory", *arguments))


def deploys(*arguments: str) -> Run:
    """Run `python -m deploys`, whose exit codes make would hide (make's own is 2 for any failure)."""
    return finish(start(sys.executable, "-m", "deploys", *arguments))


def backups(*words: str, seconds: float = 900) -> dict[str, Any]:
    """What `python -m backups … --json` answers; AssertionError with its words when it fails."""
    command = [sys.executable, "-m", "backups", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def finish(process: subprocess.Popen[str]) -> Run:
    """Show the rest of what a command prints, and wait for its end."""
    began = time.monotonic()
    watchdog = threading.Timer(COMMAND_LIMIT_SECONDS, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    lines: list[str] = []
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    watchdog.cancel()
    return Run(process.returncode, "".join(lines), time.monotonic() - began)


def start(*command: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, so that a test can kill all of it."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def read_until(process: subprocess.Popen[str], marker: str) -> str:
    """Show what a command prints until `marker` comes, and return it; fails when the command ends before."""
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        print(line, end="", flush=True)
        seen.append(line)
        if marker in line:
            return "".join(seen)
    pytest.fail(f"the command ended ({process.wait()}) before it printed {marker!r}")


def kill_when(process: subprocess.Popen[str], marker: str, after: float, *, group: bool) -> str:
    """Read the output until `marker`, wait `after` seconds, kill -9 make or all of its processes.

    Returns what was printed; fails when make ends before the marker comes.
    """
    seen = read_until(process, marker)
    time.sleep(after)
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    return seen


@contextmanager
def held_at(process: subprocess.Popen[str], marker: str, after: float) -> Iterator[None]:
    """For so long a command that printed `marker` some seconds ago stands still: what is done meanwhile is
    done in the middle of its run, however long that takes."""
    read_until(process, marker)
    time.sleep(after)
    assert process.poll() is None, "the command has ended already"
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGCONT)


@pytest.fixture(scope="session", autouse=True)
def clean_machine() -> Iterator[None]:
    """No trace of an earlier run before the first test, none of this one after the last."""
    make("down").ended_well()
    yield
    make("down").ended_well()
