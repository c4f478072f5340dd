#!/usr/bin/env python3
"""Checks this host's Grafana for deploys: its configuration, and the administrator's password.

Examples:
  relay-grafana check       the installed Grafana knows every key of grafana.ini; boards are readable
  relay-grafana password    make the administrator's password that of /etc/relay/grafana/admin.password
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

# https://grafana.com/docs/grafana/latest/administration/cli/
PROGRAMS = ("/usr/sbin/grafana", "/usr/share/grafana/bin/grafana")
START_SECONDS = 90


class Failure(Exception):
    """What is wrong, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 done, 1 not."""
    options = parser().parse_args(arguments)
    try:
        check(options) if options.noun == "check" else password(options)
    except Failure as failure:
        print(f"relay-grafana: {failure}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The two nouns, and where things are."""
    raw = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(prog="relay-grafana", description=__doc__, formatter_class=raw)
    found.add_argument("noun", choices=("check", "password"))
    for name, path in (
        ("config", "/etc/grafana/grafana.ini"),
        ("defaults", "/usr/share/grafana/conf/defaults.ini"),
        ("boards", "/usr/local/share/relay-grafana/content/boards"),
        ("password-file", "/etc/relay/grafana/admin.password"),
    ):
        found.add_argument(f"--{name}", type=Path, default=Path(path), help=f"default: {path}")
    found.add_argument("--url", default="http://127.0.0.1:3000", help="of this host's Grafana")
    found.add_argument("--admin", default="admin", help="the administrator's name")
    found.add_argument("--program", default="", help="Grafana's program, where it is not found by itself")
    return found


def check(options: argparse.Namespace) -> None:
    """Grafana ignores a key that it does not know: one that was renamed would open what it closed."""
    known = set(keys(options.defaults))
    unknown = [f"[{section}] {key}" for section, key in keys(options.config) if (section, key) not in known]
    if unknown:
        raise Failure(
            f"{options.config}: the installed Grafana does not know {', '.join(unknown)}. Look what took "
            "their place: change templates/grafana/grafana.ini.j2, or go back to the version before "
            "(`grafana_version`)"
        )
    boards = sorted(options.boards.glob("*.json"))
    if not boards:
        raise Failure(f"{options.boards} holds no boards: run `apply`")
    for path in boards:
        try:
            board = json.loads(path.read_text())
        except ValueError as error:
            raise Failure(f"{path} is no JSON ({error}): run `make boards`") from None
        if not board.get("uid") or not board.get("title"):
            raise Failure(f"{path} has no uid or no title: run `make boards`")


def keys(path: Path) -> Iterator[tuple[str, str]]:
    """(section, key) of every line that sets one."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise Failure(
            f"{path} cannot be read ({error.strerror}): is the package grafana installed?"
        ) from None
    section = ""
    for line in map(str.strip, lines):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif "=" in line and not line.startswith(("#", ";")):
            yield section, line.partition("=")[0].strip()


def password(options: argparse.Namespace) -> None:
    """Sets the password where Grafana has another: from grafana.ini it takes only the first one."""
    wanted = options.password_file.read_text().strip()
    if login(options, wanted):
        return
    program = options.program or next((path for path in PROGRAMS if Path(path).exists()), "")
    if not program:
        raise Failure(f"none of {', '.join(PROGRAMS)} is there: is the package grafana installed?")
    command = ["runuser", "-u", "grafana", "--", program, "cli", "--homepath", "/usr/share/grafana"]
    command += ["--config", str(options.config), "admin", "reset-admin-password", "--password-from-stdin"]
    done = subprocess.run(command, input=f"{wanted}\n", capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(
            f"the administrator's password was not set: {done.stderr.strip() or done.stdout.strip()}"
        )
    if not login(options, wanted):
        raise Failure(
            "Grafana still refuses the administrator's password: see `journalctl -u grafana-server`"
        )


def login(options: argparse.Namespace, word: str) -> bool:
    """Whether Grafana takes the password; waits for one that is only starting."""
    credentials = base64.b64encode(f"{options.admin}:{word}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}"}
    request = urllib.request.Request(f"{options.url}/api/user", headers=headers)  # noqa: S310 - our own
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10):  # noqa: S310
                return True
        except urllib.error.HTTPError as answer:
            if answer.code in (401, 403):
                return False
            reason = f"HTTP {answer.code}"
        except OSError as error:
            reason = str(error)
        if time.monotonic() > end:
            raise Failure(f"Grafana does not answer ({reason}): see `journalctl -u grafana-server`")
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
