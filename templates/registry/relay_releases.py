#!/usr/bin/env python3
"""Keeps the fleet's releases: history, stack files, images, lock. Installed by deploys/roles/registry.py.

    relay-releases show                     # JSON: lines, oldest first; who holds the lock, its last theft
    relay-releases record < LINE            # appends a line (JSON); figures for Prometheus follow it
    relay-releases put NUMBER < FILE        # keeps a release's stack file
    relay-releases get NUMBER
    relay-releases hold HOLDER              # holds the lock until standard input ends; 75: somebody else does
    relay-releases steal HOLDER --by WHO --reason TEXT  # ends the command that holds it
    relay-releases prune --numbers 5,6,7 --images sha256:…,sha256:… --tags TAG,…

`prune` forgets the stack files of other releases and takes the relay's other images out of the registry,
which stands still for it: its collector must not run beside a push.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

DIRECTORY = Path("/var/lib/relay-releases")
FIGURES = Path("/var/lib/prometheus/node-exporter/releases.prom")
REGISTRY = Path("/var/lib/docker-registry/docker/registry/v2/repositories/relay")
COLLECT = ("docker-registry", "garbage-collect", "--delete-untagged", "/etc/docker/registry/config.yml")
BUSY = 75
YOUNG_SECONDS = 86_400
STEAL_SECONDS = 10
ASK_SECONDS = 5
HELP = {"relay_release_unfinished_timestamp_seconds": "When the release began that has not ended; 0: none."}
# The states that end a release; any other one is unfinished.
ENDED = ("released", "rolled back")


def history() -> list[dict[str, Any]]:
    """Lines of the history, oldest first. What a crash left half written is none."""
    path = DIRECTORY / "history.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [parsed for line in lines if (parsed := _parsed(line)) is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def record(text: str) -> None:
    """Appends a line durably, and tells Prometheus since when a release is unfinished."""
    line = json.loads(text)
    path = DIRECTORY / "history.jsonl"
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a") as file:
        file.write(("" if whole else "\n") + json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    figures()


def unfinished_since(lines: Sequence[dict[str, Any]]) -> float:
    """When the newest release began, in seconds since 1970, if it has not ended; else 0."""
    if not lines or lines[-1]["state"] in ENDED:
        return 0
    number = lines[-1]["number"]
    began = next(line["at"] for line in lines if line["number"] == number)
    return datetime.fromisoformat(began).timestamp()


def figures() -> None:
    """In one step: the exporter never reads half a file."""
    (name, text), *_ = HELP.items()
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    new = FIGURES.with_suffix(".new")
    value = unfinished_since(history())
    new.write_text(f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {value}\n")
    new.chmod(0o644)
    new.replace(FIGURES)


def stack_file(number: int) -> Path:
    return DIRECTORY / f"{number}.yml"


def put(number: int, text: str) -> None:
    new = stack_file(number).with_suffix(".new")
    new.write_text(text)
    new.replace(stack_file(number))


def holder() -> str:
    """Who holds the lock; empty: nobody. The kernel releases it when the holder's connection ends."""
    return _held()[0]


def _held() -> tuple[str, int]:
    """Who holds the lock, and the process that does; ("", 0): nobody."""
    with lock_file().open("a+") as file:
        try:
            # Shared: others who ask at the same moment are no holders.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            name, _, process = file.read().strip().partition("\n")
            return name or "somebody", int(process) if process.isdigit() else 0
    return "", 0


def lock_file() -> Path:
    return DIRECTORY / "lock"


def stolen_file() -> Path:
    """Who takes the lock from its holder, and why, for the holder to read."""
    return DIRECTORY / "stolen"


def theft_file() -> Path:
    """The last theft, for a holder whose connection had ended."""
    return DIRECTORY / "theft.json"


def theft() -> dict[str, Any]:
    """Its holder, by whom and why, and how many seconds ago: clocks differ. Empty: there was none."""
    found = (_parsed(theft_file().read_text()) if theft_file().exists() else None) or {}
    return found | {"seconds": time.time() - found.get("at", 0)} if found else {}


def hold(name: str) -> int:
    """Holds the lock until whoever asked goes away, however they do, or it is taken from them."""
    with lock_file().open("a+") as file:
        if other := _taken(file):
            print(other, flush=True)
            return BUSY
        stolen_file().unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, _give_up)
        file.truncate(0)
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        file.write(f"{name}, since {since}\n{os.getpid()}")
        file.flush()
        print("held", flush=True)
        sys.stdin.read()
        file.truncate(0)
    return 0


def _taken(file: TextIO) -> str:
    """Takes the lock; else who holds it. Whoever asks for the holder has it for a moment, which passes."""
    end = time.monotonic() + ASK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if other := holder():
                return other
            if time.monotonic() > end:
                return "somebody"
            time.sleep(0.01)
        else:
            return ""


def _give_up(*_: object) -> None:
    """Tells whoever asked for the lock that it is theirs no more, if it was taken."""
    if stolen_file().exists():
        print(f"stolen {stolen_file().read_text()}", flush=True)
        stolen_file().unlink()
    os._exit(0)


def steal(name: str, by: str, reason: str) -> int:
    """Takes the lock from `name`, and from nobody else: its command is told, and stops."""
    found, process = _held()
    if not found:
        print("nobody holds the lock")
        return 0
    # "alice (apply), since …"
    if found.partition(" (")[0].partition(", since ")[0] != name:
        print(f"{found} holds the lock, not {name}", file=sys.stderr)
        return 1
    if not process:
        print(f"{found} took the lock with an older version, which names no process", file=sys.stderr)
        return 1
    words = f"by {by}: {' '.join(reason.split())}"
    stolen_file().write_text(words)
    theft_file().write_text(json.dumps({"holder": found, "words": words, "at": time.time()}))
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
    end = time.monotonic() + STEAL_SECONDS
    while _held()[1] == process:
        if time.monotonic() > end:
            print(f"process {process} of {found} does not end", file=sys.stderr)
            return 1
        time.sleep(0.1)
    print(f"taken from {found}")
    return 0


def prune(numbers: Sequence[int], images: Sequence[str], tags: Sequence[str]) -> None:
    """Forgets what is not named."""
    for path in DIRECTORY.glob("*.yml"):
        if path.stem not in map(str, numbers):
            path.unlink()
    doomed = [tag for tag in tag_directories() if unwanted(tag, images, tags)]
    if not doomed:
        print("no image to forget")
        return
    with registry_stopped():
        for tag in doomed:
            shutil.rmtree(tag)
        subprocess.run(COLLECT, check=True, stdout=subprocess.DEVNULL)
    print(f"images forgotten: {', '.join(sorted(tag.name for tag in doomed))}")


def tag_directories() -> list[Path]:
    tags = REGISTRY / "_manifests/tags"
    return sorted(tags.iterdir()) if tags.is_dir() else []


def unwanted(tag: Path, images: Sequence[str], tags: Sequence[str]) -> bool:
    """Whether a tag is not to be kept, nor what it points at. What was pushed lately may yet be released."""
    link = tag / "current/link"
    if not link.exists():
        return tag.name not in tags
    young = time.time() - link.stat().st_mtime < YOUNG_SECONDS
    return not young and tag.name not in tags and link.read_text().strip() not in images


@contextmanager
def registry_stopped() -> Iterator[None]:
    """The collector, as its owner, finds nobody else at work; the registry comes back in any case."""
    subprocess.run(["systemctl", "stop", "docker-registry"], check=True)
    try:
        yield
    finally:
        subprocess.run(["chown", "-R", "docker-registry:", str(REGISTRY.parents[4])], check=False)
        subprocess.run(["systemctl", "start", "docker-registry"], check=True)


def show() -> None:
    print(json.dumps({"lines": history(), "holder": holder(), "stolen": theft()}))


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(prog="relay-releases", description=__doc__, formatter_class=layout)
    commands = found.add_subparsers(dest="command", required=True)
    commands.add_parser("show", help="print history and holder as JSON")
    commands.add_parser("record", help="append a line from standard input")
    for name, text in (("put", "keep a stack file"), ("get", "print a stack file")):
        commands.add_parser(name, help=text).add_argument("number", type=int)
    commands.add_parser("hold", help="hold the lock").add_argument("holder")
    command = commands.add_parser("steal", help="take the lock from its holder")
    command.add_argument("holder")
    for name, text in (("--by", "who takes it"), ("--reason", "why, for the holder to read")):
        command.add_argument(name, required=True, help=text)
    command = commands.add_parser("prune", help="forget old releases and their images")
    command.add_argument("--numbers", default="", help="releases whose stack files stay")
    command.add_argument("--images", default="", help="digests that stay")
    command.add_argument("--tags", default="", help="tags that stay")
    return found


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    if options.command == "show":
        show()
    elif options.command == "record":
        record(sys.stdin.read())
    elif options.command == "put":
        put(options.number, sys.stdin.read())
    elif options.command == "get":
        print(stack_file(options.number).read_text(), end="")
    elif options.command == "hold":
        return hold(options.holder)
    elif options.command == "steal":
        return steal(options.holder, options.by, options.reason)
    else:
        numbers = [int(word) for word in _words(options.numbers)]
        prune(numbers, _words(options.images), _words(options.tags))
    return 0


if __name__ == "__main__":
    sys.exit(main())
