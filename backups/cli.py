"""Backups, restores and the members of the database, in any environment, over SSH.

Exit codes: 0 done, 1 failed, 2 refused (a precondition does not hold, or the command was misused).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib import import_module

from backups.cluster import Cluster, connect
from backups.command import Command
from backups.commands import NAMES
from backups.danger import DONE, FAILED, REFUSED, Outcome, Refused, Session, audited
from deploys.lib.errors import DeployError

EXIT_CODES = "exit codes: 0 done, 1 failed, 2 refused (nothing was changed)"
Connect = Callable[[str], AbstractContextManager[Cluster]]


def commands() -> list[Command]:
    """All commands, in the order of the help."""
    found: list[Command] = [import_module(f"backups.commands.{name}").COMMAND for name in NAMES]
    return found


def parser() -> argparse.ArgumentParser:
    """Commands and their options."""
    layout = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="python -m backups",
        description=__doc__,
        epilog="example:\n  python -m backups status production\n\nthe database is gone: backups/RUNBOOK.md",
        formatter_class=layout,
    )
    nouns = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in commands():
        one = nouns.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[:1].upper()}{command.summary[1:]}.\n{command.description}".strip(),
            epilog=f"example:\n  python -m backups {command.example}\n\n{EXIT_CODES}",
            formatter_class=layout,
        )
        one.add_argument("environment", metavar="ENV", help="a file of inventories/, without .py")
        one.add_argument("--json", action="store_true", help="print one JSON object; progress goes to stderr")
        command.options(one)
        if command.acts:
            one.add_argument(
                "--yes", action="store_true", help="do it; without this, only say what would be done"
            )
            one.add_argument("--reason", metavar="TEXT", help="why, for the audit log")
        one.set_defaults(chosen=command)
    return top


def main(argv: Sequence[str] | None = None, connected: Connect = connect) -> int:
    """Runs a command; 0 done, 1 failed, 2 refused."""
    try:
        options = parser().parse_args(argv)
    except SystemExit as stop:
        return REFUSED if stop.code else DONE
    try:
        with connected(options.environment) as cluster:
            session = Session(cluster, options, options.command)
            with audited(session):
                outcome: Outcome = options.chosen.run(session)
    except Refused as error:
        return _failed(options, REFUSED, "refused", error)
    except DeployError as error:
        return _failed(options, FAILED, "failed", error)
    except KeyboardInterrupt:
        return _failed(options, FAILED, "interrupted", "run the same command again to go on")
    if options.json:
        about = {"command": options.command, "environment": options.environment}
        print(json.dumps(about | dict(outcome.data), default=str))
    elif outcome.text:
        print(outcome.text)
    return outcome.code


def _failed(options: argparse.Namespace, code: int, outcome: str, error: object) -> int:
    print(f"{outcome}: {error}", file=sys.stderr)
    if options.json:
        about = {"command": options.command, "environment": options.environment}
        print(json.dumps(about | {"outcome": outcome, "error": str(error)}))
    return code
