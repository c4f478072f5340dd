"""`make up`: the whole platform on this machine, phase by phase, each with its time.

Every phase can be interrupted and run again: one that has nothing to do ends in seconds.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from typing import TextIO

from deploys.lib.lock import held
from deploys.sandbox.remote import CA_FILE, ROOT, STATE

TIMES = STATE / "up.json"

DEPLOYS = ("-m", "deploys")
PHASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("hosts", (*DEPLOYS, "sandbox", "up")),
    ("secrets", (*DEPLOYS, "secrets", "sandbox")),
    ("apply", (*DEPLOYS, "apply", "sandbox")),
    # What the probe calls, before somebody looks at how its calls went.
    ("channel", ("-m", "deploys.sandbox.firstcall", "--only-channel")),
    # What has only now started may need a moment to be found well.
    ("checklist", (*DEPLOYS, "verify", "sandbox", "--wait", "180")),
    ("first call", ("-m", "deploys.sandbox.firstcall")),
)


def only_run() -> AbstractContextManager[TextIO]:
    """Holds the lock of `make up`, once nobody else does.

    The lock's descriptor is handed down to the phases: a run whose parent was killed still holds it.
    """

    def waiting(_: str) -> None:
        print("an earlier `make up` is still at work on this machine; waiting for it to end ...", flush=True)

    return held(STATE / "up.lock", f"process {os.getpid()}", patience=math.inf, waiting=waiting)


def run_phases(lock: TextIO) -> dict[str, float]:
    """Run each phase in a process of its own; return its seconds by name. Stops at the first that fails."""
    times: dict[str, float] = {}
    for number, (name, arguments) in enumerate(PHASES, 1):
        print(f"\n=== {number}/{len(PHASES)} {name}", flush=True)
        start = time.monotonic()
        status = run_python(*arguments, lock=lock)
        if name == "secrets" and not status:
            write_ca()
        times[name] = round(time.monotonic() - start, 1)
        if status:
            print(
                f"\n`make up` stopped in phase {name!r} (exit {status}) after {times[name]} s.\n"
                "Mend what the lines above name, then run `make up` again: it goes on where it stopped.",
                file=sys.stderr,
            )
            raise SystemExit(1)
    return times


def run_python(*arguments: str, lock: TextIO) -> int:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, check=False, pass_fds=[lock.fileno()]).returncode


def write_ca() -> None:
    """The fleet's CA where `curl --cacert` and the SDKs find it."""
    show = [sys.executable, *DEPLOYS, "secrets", "sandbox", "--show", "ca_trusted"]
    CA_FILE.write_bytes(subprocess.run(show, cwd=ROOT, check=True, capture_output=True).stdout)


def main() -> None:
    """Entry point of `make up`; exits 0 when the platform has served and billed a call, else 1."""
    with only_run() as lock:
        times = run_phases(lock)
    TIMES.write_text(json.dumps(times))
    print("\nphase        seconds")
    for name, seconds in times.items():
        print(f"{name:<12} {seconds:>7.1f}")
    print(f"{'total':<12} {sum(times.values()):>7.1f}")


if __name__ == "__main__":
    main()
