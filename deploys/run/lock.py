"""One run at a time on an environment, and a line of history for each."""

from __future__ import annotations

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
from deploys.lib.lock import Busy, held


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Holds the environment's lock; somebody else holding it is an error that says who."""
    path = directory / "deploy.lock"
    try:
        with held(path, f"{operator()} (process {os.getpid()}, since {_now()})"):
            yield
    except Busy as holder:
        raise DeployError(f"{holder} is at work here ({path}); wait for it to end") from None


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
