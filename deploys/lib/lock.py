"""One at a time: a lock on a file, which the kernel releases when the holder dies, however it dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

PAUSE_SECONDS = 0.2


class Busy(Exception):
    """Somebody else holds the lock; the message is what they wrote into it."""


@contextmanager
def held(
    path: Path, holder: str, *, patience: float = 0, waiting: Callable[[str], None] = lambda _: None
) -> Iterator[TextIO]:
    """Holds the lock at `path`, in which `holder` is written for others to read.

    Waits for `patience` seconds, telling `waiting` once whom for, then raises Busy. A process that inherits
    the file's descriptor keeps the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _acquire(file, patience, waiting)
        file.truncate(0)
        file.write(holder)
        file.flush()
        try:
            yield file
        finally:
            file.truncate(0)


def holder(path: Path) -> str:
    """What whoever holds the lock at `path` has written into it; empty when nobody does."""
    if not path.exists():
        return ""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "another process"
    return ""


def _acquire(file: TextIO, patience: float, waiting: Callable[[str], None]) -> None:
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            file.seek(0)
            other = file.read().strip() or "another process"
            if time.monotonic() >= deadline:
                raise Busy(other) from None
            if not told:
                waiting(other)
            told = True
            time.sleep(PAUSE_SECONDS)
