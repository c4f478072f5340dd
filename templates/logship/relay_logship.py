#!/usr/bin/env python3
"""Measures the shipping of this host's logs, and writes a line that says that the host is there.

    relay-logship                    # installed by deploys/roles/logship.py; a timer runs it every minute

What syslog-ng has sent, holds back and has lost goes into a file that the node exporter passes on. The line
goes the way of all lines: whether it arrives is seen in the store.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import syslog
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

FIGURES = "/var/lib/prometheus/node-exporter/logship.prom"
CONFIG = "/etc/syslog-ng/syslog-ng.conf"
BUFFER = "/var/lib/syslog-ng/relay"
LINE = "this host ships its logs"
HELP = {
    "logship_queued_lines": "Lines that wait until the log store takes them.",
    "logship_sent_lines_total": "Lines that the log store has taken since syslog-ng was started.",
    "logship_lost_lines_total": "Lines that syslog-ng gave up since it was started.",
    "logship_buffer_used_ratio": "How full the fuller one of the buffers on disk is, 0 to 1.",
    "logship_timestamp_seconds": "When syslog-ng was last asked.",
}
COUNTERS = {"queued": "logship_queued_lines", "written": "logship_sent_lines_total"}
COUNTERS |= {"dropped": "logship_lost_lines_total"}


def counted(stats: str) -> dict[str, int]:
    """Series and values from what `syslog-ng-ctl stats` says of the two destinations."""
    found = {}
    for line in stats.splitlines():
        kind, name, *_, what, value = [*line.split(";"), "", "", ""][:6]
        # dst.http;d_business#0;http,https://…;a;written;100
        if kind == "dst.http" and what in COUNTERS:
            of_class = name.removeprefix("d_").partition("#")[0]
            found[f'{COUNTERS[what]}{{class="{of_class}"}}'] = int(value)
    return found


def used(buffer: Path, size: int, queued: int) -> float:
    """How full the fuller buffer is. A file shrinks when all of it is sent."""
    if not queued:
        return 0.0
    sizes = [path.stat().st_size for path in buffer.glob("*.rqf")]
    return round(min(1.0, max(sizes, default=0) / size), 4)


def buffer_size(config: str) -> int:
    """Bytes that one buffer may have, as configured."""
    return int(config.split("disk-buf-size(")[1].split(")")[0])


def text(series: Mapping[str, float]) -> str:
    """In Prometheus' format."""
    lines: list[str] = []
    for name, meaning in HELP.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
        lines += [f"{one} {value}" for one, value in series.items() if one.partition("{")[0] == name]
    return "\n".join(lines) + "\n"


def write(path: Path, content: str) -> None:
    """In one step: the exporter never reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_text(content)
    new.chmod(0o644)
    new.replace(path)


def main(words: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-logship", description=__doc__, formatter_class=layout)
    parser.add_argument("--figures", type=Path, default=Path(FIGURES), help="where the figures go")
    parser.add_argument("--config", type=Path, default=Path(CONFIG), help="syslog-ng's configuration")
    parser.add_argument("--buffer", type=Path, default=Path(BUFFER), help="where its buffers lie")
    parser.add_argument("--control", default="", help="its socket, where it is not the usual one")
    parser.add_argument("--quiet", action="store_true", help="write no line")
    options = parser.parse_args(words)
    if not options.quiet:
        syslog.openlog("relay-logship")
        syslog.syslog(syslog.LOG_NOTICE, LINE)
    command = ["syslog-ng-ctl", "stats", *([f"--control={options.control}"] if options.control else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    series: dict[str, float] = dict(counted(done.stdout))
    if done.returncode or not series:
        print(f"syslog-ng does not answer: {done.stderr.strip() or done.stdout.strip()}", file=sys.stderr)
        return 1
    queued = sum(int(value) for name, value in series.items() if name.startswith("logship_queued_lines"))
    size = buffer_size(options.config.read_text())
    series["logship_buffer_used_ratio"] = used(options.buffer, size, queued)
    series["logship_timestamp_seconds"] = round(time.time())
    write(options.figures, text(series))
    return 0


if __name__ == "__main__":
    sys.exit(main())
