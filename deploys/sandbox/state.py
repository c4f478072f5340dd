"""Files of the state directory: written whole or not at all; one command at a time."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    """Hold the sandbox's lock. The kernel releases it when the holder dies, however it dies.

    Raises SandboxError, naming the holder, when it stays taken for `patience` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _wait_for(file.fileno(), path, patience)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _wait_for(descriptor: int, path: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = path.read_text() or "unknown"
            if time.monotonic() >= deadline:
                raise SandboxError(
                    f"process {holder} is at work on the sandbox; wait for it or end it, then run this again"
                ) from None
            if not told:
                say(f"process {holder} is at work on the sandbox; waiting for it to finish")
                told = True
            time.sleep(0.2)
