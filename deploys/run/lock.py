"""One run at a time on an environment, and a line of history for each."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploys.lib.errors import DeployError


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Holds the environment's lock; somebody else holding it is an error that says who."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "deploy.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise DeployError(f"{holder} is at work here ({file.name}); wait for it to end") from None
        file.truncate(0)
        file.write(f"{operator()} (process {os.getpid()}, since {_now()})")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def audit(directory: Path, **entry: Any) -> None:
    """Appends one JSON line: when, who, which commit, and `entry`."""
    line = {"at": _now(), "who": operator(), "commit": commit(), **entry}
    with (directory / "audit.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


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
