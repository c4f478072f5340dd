"""The log store's program, VictoriaLogs: in no distribution, so built here by Go, where the machine has it.

Go checks every module against its checksum database; what was built is compared with the sum that is pinned
here. Built once, in about a minute, beside the rest of `sandbox up`, then kept in the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploys.sandbox.settings import Sandbox
from deploys.sandbox.shell import phase, run, say, tail, warn
from deploys.sandbox.state import write_atomically

MODULE = "github.com/VictoriaMetrics/VictoriaLogs"
VERSION = "v1.52.1"
SUM = "h1:B83xu4usTNPrpsFZFH/Dei3nWIsQizIeSRghFxj4ZJo="
LEAST_GO = (1, 26)
NAME = "victoria-logs"
ROOM, LOG = "build-", "build.log"
# No build takes so long.
ROOM_SECONDS = 3600
WITHOUT = "the log store is left out (log_store = auto); the rest works"


@dataclass
class Build:
    """A build under way; `finish` waits for it. None runs where nothing is to be done.

    Others may build at the same time: each does so in a `room` of its own, and what is ready replaces what is
    there in one step.
    """

    directory: Path
    room: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    def finish(self) -> Path | None:
        """The program, or None after a line that says why there is none."""
        if self.process and self.room:
            with phase("building the log store's program with Go"):
                status = self.process.wait()
            self._keep(self.room, status)
            shutil.rmtree(self.room, ignore_errors=True)
        return self.directory / NAME if is_current(self.directory) else None

    def _keep(self, room: Path, status: int) -> None:
        built = room / NAME
        if status:
            warn(f"the log store's program was not built: {WITHOUT}\n{tail(room / LOG, 5)}")
        elif (found := module_sum(built)) != SUM:
            warn(f"what Go built has the sum {found or '(none)'}, not {SUM}: {WITHOUT}")
        else:
            built.replace(self.directory / NAME)
            write_atomically(self.directory / "version", f"{VERSION} {SUM}\n")


def start(sandbox: Sandbox) -> Build:
    """Begins to build what the cache lacks; says in one line when the machine cannot."""
    directory = sandbox.cache / NAME
    if is_current(directory):
        return Build(directory)
    found = go_version()
    if found < LEAST_GO:
        what = f"Go {'.'.join(map(str, found))}" if found else "no Go"
        least = ".".join(map(str, LEAST_GO))
        say(f"the log store's program needs Go {least}, this machine has {what}: {WITHOUT}")
        return Build(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _forget_the_killed(directory)
    room = Path(tempfile.mkdtemp(prefix=ROOM, dir=directory))
    command = ["setpriv", "--pdeathsig", "TERM", "nice", "go", "install", f"{MODULE}/app/{NAME}@{VERSION}"]
    with (room / LOG).open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=room, env=environment(room))
    return Build(directory, room, process)


def _forget_the_killed(directory: Path) -> None:
    """Removes rooms of builds that were killed; one that goes on is younger."""
    for room in directory.glob(f"{ROOM}*"):
        with suppress(FileNotFoundError):
            if time.time() - room.stat().st_mtime > ROOM_SECONDS:
                shutil.rmtree(room, ignore_errors=True)


def environment(room: Path) -> dict[str, str]:
    """The machine's own, but that nothing switches Go's checksum database off."""
    off = {"GONOSUMDB", "GONOSUMCHECK", "GOPRIVATE", "GOFLAGS"}
    off |= {"GOSUMDB"} if os.environ.get("GOSUMDB") == "off" else set()
    kept = {name: value for name, value in os.environ.items() if name not in off}
    return kept | {"GOBIN": str(room)}


def is_current(directory: Path) -> bool:
    """Whether the cache holds the program of this version."""
    version = directory / "version"
    return version.exists() and version.read_text() == f"{VERSION} {SUM}\n" and (directory / NAME).exists()


def go_version() -> tuple[int, ...]:
    """Of the Go of this machine, such as (1, 26); empty where there is none."""
    if not shutil.which("go"):
        return ()
    found = re.search(r"go([0-9]+)\.([0-9]+)", run(["go", "version"], check=False).stdout)
    return tuple(map(int, found.groups())) if found else ()


def module_sum(program: Path) -> str:
    """The checksum of the module that a Go program was built from, as the program itself says."""
    lines = run(["go", "version", "-m", str(program)], check=False).stdout.splitlines()
    found = [line.split() for line in lines if line.split()[:2] == ["mod", MODULE]]
    return found[0][3] if found and len(found[0]) > 3 and found[0][2] == VERSION else ""
