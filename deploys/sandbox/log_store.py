"""The log store's program, VictoriaLogs: in no distribution, so built here by Go, where the machine has it.

Go checks every module against its checksum database; what was built is compared with the sum that is pinned
here. Built once, in about a minute, beside the rest of `sandbox up`, then kept in the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from deploys.sandbox.settings import Sandbox
from deploys.sandbox.shell import phase, run, say, tail, warn

MODULE = "github.com/VictoriaMetrics/VictoriaLogs"
VERSION = "v1.52.1"
SUM = "h1:B83xu4usTNPrpsFZFH/Dei3nWIsQizIeSRghFxj4ZJo="
LEAST_GO = (1, 26)
NAME = "victoria-logs"
WITHOUT = "the log store is left out (log_store = auto); the rest works"


@dataclass
class Build:
    """A build under way; `finish` waits for it. None runs where nothing is to be done."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.directory / "build.log"

    def finish(self) -> Path | None:
        """The program, or None after a line that says why there is none."""
        if self.process:
            with phase("building the log store's program with Go"):
                status = self.process.wait()
            if status:
                warn(f"the log store's program was not built: {WITHOUT}\n{tail(self.log, 5)}")
                return None
            built = self.directory / "new" / NAME
            if (found := module_sum(built)) != SUM:
                warn(f"what Go built has the sum {found}, not {SUM}: {WITHOUT}")
                return None
            built.replace(self.directory / NAME)
            (self.directory / "version").write_text(f"{VERSION} {SUM}\n")
        return self.directory / NAME if is_current(self.directory) else None


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
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "new").mkdir(parents=True)
    build = Build(directory)
    command = ["setpriv", "--pdeathsig", "TERM", "nice", "go", "install", f"{MODULE}/app/{NAME}@{VERSION}"]
    with build.log.open("wb") as log:
        build.process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=directory, env=environment(directory)
        )
    return build


def environment(directory: Path) -> dict[str, str]:
    """The machine's own, but that nothing switches Go's checksum database off."""
    off = {"GONOSUMDB", "GONOSUMCHECK", "GOPRIVATE", "GOFLAGS"}
    off |= {"GOSUMDB"} if os.environ.get("GOSUMDB") == "off" else set()
    kept = {name: value for name, value in os.environ.items() if name not in off}
    return kept | {"GOBIN": str(directory / "new")}


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
