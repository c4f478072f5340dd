"""What some of a host's units use while it rests; runs on the host, as root, with Python's own library alone.

    python3 - SECONDS PATTERN < units_on_host.py    # prints {"UNIT": [bytes, seconds of a processor]}

Memory is the proportional set size of a unit's processes at the end: what they have for themselves, and their
share of what several have. A program that a timer starts and that ends within the time has none. Processor
time is systemd's account of the unit, switched on for the time of the measurement alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def units(pattern: str) -> list[str]:
    """Services that run, or that a timer starts, whose names have the pattern."""
    listed = output("systemctl", "list-units", "--type=service,timer", "--plain", "--no-legend", "--no-pager")
    names = [line.split()[0].replace(".timer", ".service") for line in listed.splitlines()]
    return sorted({name for name in names if re.search(pattern, name)})


def show(unit: str, name: str) -> str:
    return output("systemctl", "show", "--property", name, "--value", unit).strip()


def memory(unit: str) -> int:
    group = Path("/sys/fs/cgroup/systemd" + show(unit, "ControlGroup"))
    if group == Path("/sys/fs/cgroup/systemd"):
        return 0
    found = 0
    for listed in group.rglob("cgroup.procs"):
        for process in listed.read_text().split():
            try:
                rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
            found += int(match[1]) * 1024 if match else 0
    return found


def running(unit: str) -> int:
    """Nanoseconds of a processor that its present run has used."""
    value = show(unit, "CPUUsageNSec")
    return int(value) if value.isdigit() and show(unit, "ActiveState") == "active" else 0


def ended(unit: str, since: float) -> int:
    """Nanoseconds of its runs that have ended since then, as systemd wrote them into the journal."""
    journal = output("journalctl", "-u", unit, f"--since=@{since:.0f}", "-o", "json", "--no-pager")
    lines = [json.loads(line) for line in journal.splitlines()]
    return sum(int(line["CPU_USAGE_NSEC"]) for line in lines if "CPU_USAGE_NSEC" in line)


def main(seconds: float, pattern: str) -> None:
    found = units(pattern)
    for unit in found:
        output("systemctl", "set-property", "--runtime", unit, "CPUAccounting=yes")
    try:
        before, since = {unit: running(unit) for unit in found}, time.time()
        time.sleep(seconds)
        used = {unit: running(unit) - before[unit] + ended(unit, since) for unit in found}
        told = {unit: [memory(unit), used[unit] / 1e9] for unit in found}
    finally:
        for unit in found:
            Path(f"/run/systemd/system.control/{unit}.d/50-CPUAccounting.conf").unlink(missing_ok=True)
        output("systemctl", "daemon-reload")
    print(json.dumps(told))


main(float(sys.argv[1]), sys.argv[2])
