"""Running programs, and saying how far things have come."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from deploys.sandbox.settings import SandboxError

Item = TypeVar("Item")
Result = TypeVar("Result")
# Mark, in the output of our own scripts, of a line that is worth showing.
PROGRESS = "PROGRESS "
STARTED = time.monotonic()


def say(message: str) -> None:
    """One line of progress, with the seconds since the command began."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {message}", flush=True)


@contextmanager
def phase(title: str) -> Iterator[None]:
    """Announce a phase and, at its end, how long it took."""
    say(f"{title} …")
    start = time.monotonic()
    yield
    say(f"{title}: done in {time.monotonic() - start:.1f} s")


def run(
    command: Sequence[str],
    *,
    check: bool = True,
    text: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, its output captured. Raises SandboxError naming command and output."""
    try:
        done = subprocess.run(
            list(command),
            input=text,
            env=env,
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SandboxError(f"no answer within {timeout:.0f} s: {shlex.join(command)}") from None
    if check and done.returncode:
        output = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise SandboxError(f"exit {done.returncode}: {shlex.join(command)[:400]}\n{output}")
    return done


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    show: Callable[[str], bool],
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a long program: all output goes to `log`, the lines that `show` picks also to the screen.

    The program ends when this process dies (a `kill -9` leaves none behind).
    Raises SandboxError with the log's tail.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    bound = ["setpriv", "--pdeathsig", "TERM", *command]
    with (
        log.open("w") as file,
        subprocess.Popen(
            bound, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=env
        ) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            if show(line):
                say(f"  {line.strip().removeprefix(PROGRESS)}")
    if process.returncode:
        raise SandboxError(f"exit {process.returncode}: {shlex.join(command)[:400]}\n{tail(log)}")


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, and where the whole of it is."""
    if not log.exists():
        return f"(no log at {log})"
    return "\n".join([*log.read_text(errors="replace").splitlines()[-lines:], f"(whole log: {log})"])


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def each(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Do the work for all items side by side; results in their order.

    All are tried; when some fail, raises one SandboxError with the message of each.
    """
    errors: list[str] = []
    results: list[Result] = []
    with ThreadPoolExecutor(max_workers=16) as pool:
        for future in [pool.submit(work, item) for item in items]:
            try:
                results.append(future.result())
            except SandboxError as error:
                errors.append(str(error))
    if errors:
        raise SandboxError("\n".join(errors))
    return results
