#!/usr/bin/env python3
"""Keeps what operators ran on the fleet: who, when, what, how it ended, and what it printed.

    relay-runs record < FILE          # {"lines": [...], "log": "...", "of": {...}}; known lines are left out
    relay-runs list --last 20         # JSON lines, oldest first; `log` says that its output is kept
    relay-runs log ID                 # what that run printed

Lines also go to the journal, and so to the log store's security class. Installed by the role registry.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import hashlib
import json
import os
import sys
import syslog
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DIRECTORY = Path("/var/lib/relay-runs")
KEPT_LOGS = 300


def path() -> Path:
    return DIRECTORY / "runs.jsonl"


def known() -> list[dict[str, Any]]:
    """The runs, oldest first. What a crash left half written is none."""
    lines = path().read_text().splitlines() if path().exists() else []
    return [found for line in lines if isinstance(found := _parsed(line), dict)]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def identity(line: dict[str, Any]) -> str:
    """The same line has the same one, whoever sends it."""
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()[:12]


def record(lines: Sequence[dict[str, Any]], log: str, of: dict[str, Any] | None = None) -> None:
    """Appends the lines that are new, durably; the log is that of the line `of`, by default of the last."""
    with alone():
        before = {str(one.get("id")) for one in known()}
        new = [line | {"id": identity(line)} for line in lines if identity(line) not in before]
        append(new)
        # Lines first: on a full disk there may be room for them alone.
        if log and lines:
            keep(identity(of or lines[-1]), log)


@contextmanager
def alone() -> Iterator[None]:
    """Two commands that end together would both find a line unknown."""
    with (DIRECTORY / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def append(new: Sequence[dict[str, Any]]) -> None:
    if not new:
        return
    whole = not path().exists() or path().read_bytes()[-1:] in (b"", b"\n")
    with path().open("a") as file:
        file.write(("" if whole else "\n") + "".join(json.dumps(line) + "\n" for line in new))
        file.flush()
        os.fsync(file.fileno())
    syslog.openlog("relay-runs", 0, syslog.LOG_AUTHPRIV)
    for line in new:
        syslog.syslog(syslog.LOG_NOTICE, json.dumps(line))


def log_file(name: str) -> Path:
    return DIRECTORY / "logs" / f"{name}.gz"


def keep(name: str, text: str) -> None:
    """A run's log, whole or not at all; the oldest beyond the most that are kept are forgotten."""
    log_file(name).parent.mkdir(mode=0o700, exist_ok=True)
    new = log_file(name).with_suffix(".new")
    try:
        new.write_bytes(gzip.compress(text.encode(errors="replace")))
        new.replace(log_file(name))
    finally:
        new.unlink(missing_ok=True)
    logs = sorted(log_file(name).parent.glob("*.gz"), key=lambda one: one.stat().st_mtime)
    for old in logs[:-KEPT_LOGS]:
        old.unlink()


def show(last: int) -> None:
    for line in known()[-last:] if last > 0 else ():
        print(json.dumps(line | {"log": log_file(str(line.get("id"))).exists()}))


def show_log(name: str) -> int:
    if not name.isalnum() or not log_file(name).exists():
        print(f"no log of a run {name}; `relay-runs list` says which have one", file=sys.stderr)
        return 1
    print(gzip.decompress(log_file(name).read_bytes()).decode(), end="")
    return 0


def parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(prog="relay-runs", description=__doc__, formatter_class=layout)
    commands = found.add_subparsers(dest="command", required=True)
    commands.add_parser("record", help="keep runs, from standard input")
    listed = commands.add_parser("list", help="print runs, a JSON object a line")
    listed.add_argument("--last", type=int, default=20, metavar="N", help="so many (default: %(default)s)")
    commands.add_parser("log", help="print what a run printed").add_argument("id")
    return found


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
    if options.command == "record":
        sent = json.loads(sys.stdin.read())
        try:
            record(sent["lines"], sent.get("log", ""), sent.get("of"))
        except OSError as error:
            print(f"runs cannot be kept: {error}", file=sys.stderr)
            return 1
    elif options.command == "list":
        show(options.last)
    else:
        return show_log(options.id)
    return 0


if __name__ == "__main__":
    sys.exit(main())
