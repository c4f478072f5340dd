"""kill -9 at moments spread over a command's running time, alone and with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

MOMENTS = 10


def moments(seconds: float, count: int = MOMENTS) -> Iterator[tuple[float, bool]]:
    """(When to kill, whether its whole process group) for a command that takes so long."""
    for number in range(count):
        yield seconds * (number + 0.5) / count, number % 2 == 1


def killed(command: Sequence[str], after: float, cwd: Path, *, group: bool) -> bool:
    """Starts a command and kills it; False where it had ended by then."""
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        return True
    return False


def seconds_of(run: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.monotonic()
    run()
    return time.monotonic() - begin
