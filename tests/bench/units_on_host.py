"""What some of a host's units use while it rests; runs on the host, as root, with Python's own library alone.

    python3 - SECONDS PATTERN < units_on_host.py    # prints {"UNIT": [bytes, seconds of a processor]}

Memory is the proportional set size of a unit's processes at the end: what they have for themselves, and their
share of what several have. Processor time is that of the processes which a unit has at the end, with their
children's, by /proc: systemd accounts for none where a host is a container. What ended in between, such as
the programs that timers start, is told as one line, ENDED: all that the first process has waited for.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ENDED = "ended meanwhile, of any unit"
GROUPS = next(path for path in map(Path, ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup")) if path.exists())
TICKS = os.sysconf("SC_CLK_TCK")
# Of /proc/PID/stat, after the command's closing parenthesis.
OWN, OF_CHILDREN = slice(11, 13), slice(13, 15)


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def units(pattern: str) -> list[str]:
    """Services that run, or that a timer starts, whose names have the pattern."""
    listed = output("systemctl", "list-units", "--type=service,timer", "--plain", "--no-legend", "--no-pager")
    names = [line.split()[0].replace(".timer", ".service") for line in listed.splitlines()]
    return sorted({name for name in names if re.search(pattern, name)})


def processes(unit: str) -> Iterator[Path]:
    group = output("systemctl", "show", "--property", "ControlGroup", "--value", unit).strip()
    if group:
        for listed in (GROUPS / group.lstrip("/")).rglob("cgroup.procs"):
            yield from (Path("/proc", process) for process in listed.read_text().split())


def memory(process: Path) -> int:
    """Bytes."""
    try:
        rollup = (process / "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def used(process: Path, *which: slice) -> float:
    """Seconds of a processor."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(ticks) for one in which for ticks in fields[one]) / TICKS


def times(found: list[str]) -> dict[Path, float]:
    return {process: used(process, OWN, OF_CHILDREN) for unit in found for process in processes(unit)}


def main(seconds: float, pattern: str) -> None:
    found, first = units(pattern), Path("/proc/1")
    before, ended = times(found), used(first, OF_CHILDREN)
    time.sleep(seconds)
    told = {}
    for unit in found:
        now = list(processes(unit))
        spent = (used(process, OWN, OF_CHILDREN) - before.get(process, 0.0) for process in now)
        told[unit] = [sum(map(memory, now)), sum(spent)]
    told[ENDED] = [0, used(first, OF_CHILDREN) - ended]
    print(json.dumps(told))


main(float(sys.argv[1]), sys.argv[2])
