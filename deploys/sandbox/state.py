"""Files of the state directory: written whole or not at all; one command at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploys.lib.lock import Busy, held
from deploys.sandbox.settings import SandboxError
from deploys.sandbox.shell import say

LOCK_PATIENCE_SECONDS = 900.0


def write_atomically(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Replace `path`; a reader, or a run after a crash, sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    data = content.encode() if isinstance(content, str) else content
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def mounts_below(path: Path, mountinfo: str) -> list[str]:
    """Mount points at or below `path` in a text of /proc/self/mountinfo, deepest first."""
    points = [line.split()[4].encode().decode("unicode_escape") for line in mountinfo.splitlines()]
    below = [point for point in points if Path(point).is_relative_to(path)]
    return sorted(below, key=len, reverse=True)


def remove_tree(path: Path) -> None:
    """Remove a directory if it exists. Raises SandboxError when something is mounted in it.

    Removing through a mount would remove what is mounted: the machine's own files.
    """
    mounted = mounts_below(path, Path("/proc/self/mountinfo").read_text())
    if mounted:
        raise SandboxError(f"{mounted[0]} is still mounted; `umount {mounted[0]}`, then run this again")
    shutil.rmtree(path, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """An empty dict when there is no such file."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return content


@contextmanager
def lock(path: Path, patience: float = LOCK_PATIENCE_SECONDS) -> Iterator[None]:
    """Hold the sandbox's lock.

    Raises SandboxError, naming the holder, when it stays taken for `patience` seconds.
    """

    def waiting(holder: str) -> None:
        say(f"{holder} is at work on the sandbox; waiting for it to finish")

    try:
        with held(path, f"process {os.getpid()}", patience=patience, waiting=waiting):
            yield
    except Busy as holder:
        raise SandboxError(
            f"{holder} is at work on the sandbox; wait for it or end it, then run this again"
        ) from None
