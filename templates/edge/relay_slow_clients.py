#!/usr/bin/env python3
"""Cuts clients of the edge that nginx would wait for without end: who reads too slowly, or stays too long.

    relay-slow-clients --slowest 1024 --oldest 4200     # installed by deploys/roles/edge.py; systemd runs it
    relay-slow-clients --slowest 1024 --oldest 4200 --dry-run      # whom it would cut

nginx's send_timeout starts anew with every byte that a client takes. This program asks the kernel (`ss`)
every five seconds about each connection to the edge's ports and ends (`ss --kill`) a connection

- whose client has left bytes in the edge's send queue at every look for half a minute, and took less than
  `--slowest` bytes a second of them (reader). A quiet stream has nothing in its queue;
- that is older than any can be (age). nginx ends a connection itself at its first quiet moment after its
  `keepalive_time`, so an older one than that and the longest call together does not end by itself.

A slow body is nginx's own affair: relay/slow_bodies.conf.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FIGURES = "/var/lib/prometheus/node-exporter/slow_clients.prom"
HELP = {
    "relay_slow_clients_cut_total": "Connections of clients that were cut, by why.",
    "relay_slow_clients_uncut_total": "Connections that the kernel did not end when it was told to.",
    "relay_slow_clients_connections": "Connections of clients to the edge.",
    "relay_slow_clients_timestamp_seconds": "When the connections were last looked at.",
}
WHYS = ("reader", "age")
PORTS = (80, 443)
# A line of ss: queues, addresses, then facts in any order. Facts that are 0 are left out.
_LINE = re.compile(r"^\S+\s+\d+\s+\d+\s+(?P<local>\S+)\s+(?P<peer>\S+)\s(?P<facts>.*)$")
_FACT = re.compile(r"\b(sk|bytes_acked|notsent):([0-9a-f]+)")


@dataclass(frozen=True)
class Connection:
    """A connection as the kernel tells it: its cookie, both ends, bytes taken and bytes that wait."""

    cookie: str
    local: str
    peer: str
    acked: int
    waiting: int


@dataclass
class Record:
    """What is known of a connection: its first look, and since when and from which byte on some wait."""

    first: float
    since: float | None = None
    acked: int = 0


def parse(text: str) -> Iterator[Connection]:
    """The connections in what `ss --oneline --extended --info` printed."""
    for line in text.splitlines():
        found = _LINE.match(line)
        facts = dict(_FACT.findall(found["facts"])) if found else {}
        if found and "sk" in facts:
            yield Connection(
                facts["sk"],
                found["local"],
                found["peer"],
                int(facts.get("bytes_acked", 0)),
                int(facts.get("notsent", 0)),
            )


def connections(ports: Sequence[int]) -> list[Connection]:
    """Those to these ports of this host. Raises CalledProcessError."""
    which = " or ".join(f"sport = :{port}" for port in ports)
    command = ["ss", "-H", "-O", "-t", "-n", "-i", "-e", "state", "connected", f"( {which} )"]
    return list(parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def kill(connection: Connection) -> None:
    """The client gets a reset, nginx an error."""
    command = ["ss", "-K", "-H", "-t", "-n", "state", "connected"]
    subprocess.run(
        [*command, "src", connection.local, "dst", connection.peer], capture_output=True, check=False
    )


class Watch:
    """What earlier looks saw. `slowest` in bytes a second, over `window` seconds; `oldest` in seconds."""

    def __init__(self, slowest: int, window: float, oldest: float) -> None:
        self.slowest, self.window, self.oldest = slowest, window, oldest
        self.records: dict[str, Record] = {}
        self.cut: Counter[str] = Counter(dict.fromkeys(WHYS, 0))
        self.told: set[str] = set()
        self.uncut = 0

    def look(self, found: Sequence[Connection], now: float) -> list[tuple[Connection, str]]:
        """Those to cut, and why, of all that there are at the time `now` (seconds, of any clock)."""
        known = self.records
        self.records = {one.cookie: known.get(one.cookie) or Record(now) for one in found}
        self.uncut += len(self.told & self.records.keys())
        cut = [(one, why) for one in found if (why := self._why(one, self.records[one.cookie], now))]
        for one, why in cut:
            self.cut[why] += one.cookie not in self.told
        self.told = {one.cookie for one, _ in cut}
        return cut

    def _why(self, one: Connection, record: Record, now: float) -> str:
        if now - record.first > self.oldest:
            return "age"
        if not one.waiting:
            record.since = None
        elif record.since is None:
            record.since, record.acked = now, one.acked
        elif now - record.since >= self.window:
            if one.acked - record.acked < self.slowest * (now - record.since):
                return "reader"
            record.since, record.acked = now, one.acked
        return ""

    def text(self, now: float) -> str:
        """In Prometheus' format; `now` in seconds since 1970."""
        series = {
            "relay_slow_clients_cut_total": [(f'{{why="{why}"}}', n) for why, n in self.cut.items()],
            "relay_slow_clients_uncut_total": [("", self.uncut)],
            "relay_slow_clients_connections": [("", len(self.records))],
            "relay_slow_clients_timestamp_seconds": [("", now)],
        }
        lines = []
        for name, values in series.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{labels} {value}" for labels, value in values]
        return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """In one step: the exporter never reads half a file."""
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


def main(words: Sequence[str] | None = None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-slow-clients", description=__doc__, formatter_class=layout)
    parser.add_argument("--slowest", type=int, required=True, metavar="N", help="bytes a second")
    parser.add_argument("--oldest", type=float, required=True, metavar="SECONDS")
    parser.add_argument(
        "--window", type=float, default=30, metavar="SECONDS", help="how long one may be slow"
    )
    parser.add_argument("--pause", type=float, default=5, metavar="SECONDS", help="between two looks")
    parser.add_argument("--port", type=int, action="append", metavar="N", help="instead of 80 and 443")
    parser.add_argument("--figures", type=Path, default=Path(FIGURES), help="where the counters go")
    parser.add_argument("--dry-run", action="store_true", help="cut nobody, count nothing")
    parser.add_argument("--once", action="store_true", help="end after one look")
    options = parser.parse_args(words)
    watch = Watch(options.slowest, options.window, options.oldest)
    while True:
        for connection, why in watch.look(connections(options.port or PORTS), time.monotonic()):
            print(f"{'would cut' if options.dry_run else 'cut'} {connection.peer}: {why}", flush=True)
            if not options.dry_run:
                kill(connection)
        if not options.dry_run:
            write(options.figures, watch.text(time.time()))
        if options.once:
            return
        time.sleep(options.pause)


if __name__ == "__main__":
    main()
