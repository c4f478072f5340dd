"""What the admin commands share: parsers with examples, a database connection, JSON on standard output."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import psycopg
from psycopg import AsyncConnection

from relay.settings import SettingError, Settings
from relay.store.connection import connected

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Action = Callable[[AsyncConnection, argparse.Namespace], Awaitable[Any]]


class CommandError(Exception):
    """The command cannot be done; the message names the option and the remedy."""


class Failed(Exception):
    """What was to be proven is not so: ``report`` is printed as a result is, and the status is 1."""

    def __init__(self, report: Any) -> None:
        super().__init__("not proven")
        self.report = report


def add_command(subparsers: Subparsers, name: str, summary: str) -> Any:
    """Add a command that has actions; returns where to add them."""
    parser = subparsers.add_parser(name, help=summary, description=summary)
    return parser.add_subparsers(metavar="ACTION", required=True)


def positive(text: str) -> int:
    """The type of an option that is a count."""
    if not text.isdigit() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def leaf(
    actions: Subparsers, name: str, action: Action, example: str, *, status: str = ""
) -> argparse.ArgumentParser:
    """Add an action whose result is printed; ``example`` follows ``python -m relay``."""
    parser = actions.add_parser(
        name,
        help=f"e.g. {example}",
        epilog=f"example:\n  python -m relay {example}\n\n{status}".rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.set_defaults(run=lambda options, settings: run(action, options, settings))
    return parser


def run(action: Action, options: argparse.Namespace, settings: Settings) -> int:
    """Run ``action`` in one transaction and print what it returns; 0 done, 1 failed."""
    options.settings = settings
    try:
        result = asyncio.run(_with_connection(action, options, settings.require("database_url")))
    except (CommandError, SettingError) as error:
        print(f"relay: {error}", file=sys.stderr)
        return 1
    except psycopg.Error as error:
        print(f"relay: the database refused: {str(error).strip()}", file=sys.stderr)
        return 1
    except Failed as failed:
        _print(failed.report, options)
        return 1
    _print(result, options)
    return 0


def _print(result: Any, options: argparse.Namespace) -> None:
    print(json.dumps(result, default=str, indent=None if options.json else 2))


async def _with_connection(action: Action, options: argparse.Namespace, dsn: str) -> Any:
    async with connected(dsn) as connection:
        return await action(connection, options)
