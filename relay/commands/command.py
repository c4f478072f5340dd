"""What the admin commands share: parsers with examples, a database connection, JSON on standard output."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, TypeAlias

import psycopg
from psycopg import AsyncConnection

from relay.settings import SettingError, Settings
from relay.store import identity
from relay.store.connection import connected

# How long a command looks for a primary: one that hands over is away for seconds, and so is a busy one.
PATIENCE_SECONDS = 20.0
_NO_LIMIT = 0
_TABLES: dict[str, identity.Limited] = {"token": "tokens", "account": "accounts", "plan": "plans"}
_LIMITING = {
    "token": "Limit what a key may use",
    "account": "Limit what all keys of an account may use together",
    "plan": "Limit what each account of a plan may use",
}
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


def add_limits(parser: argparse.ArgumentParser, kind: Callable[[str], int | None], without: str) -> None:
    """Options of what a key, an account or a plan may use; ``without``: what holds where one is not given."""
    parser.add_argument("--rpm", type=kind, help=f"requests a minute ({without})")
    parser.add_argument("--tpm", type=kind, help=f"tokens a minute, prompts and answers ({without})")
    parser.add_argument("--concurrency", type=kind, help=f"calls at a time ({without})")


def add_limit_action(
    actions: Subparsers, noun: Literal["token", "account", "plan"], example: str
) -> argparse.ArgumentParser:
    """Add the action ``limit`` of keys, accounts or plans."""

    async def limit(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
        given = {name: getattr(options, name) for name in ("rpm", "tpm", "concurrency")}
        limits = {name: value or None for name, value in given.items() if value is not None}
        if not limits:
            raise CommandError("nothing is to be changed: give --rpm, --tpm or --concurrency")
        table = _TABLES[noun]
        if options.model is None:
            limited = await identity.set_limits(connection, table, options.id, limits)
        else:
            limited = await identity.set_model_limits(connection, table, options.id, options.model, limits)
        if limited is None:
            listing = "token list --account ID" if noun == "token" else f"{noun} list"
            raise CommandError(f"{noun} {options.id} does not exist; `{listing}` shows them")
        return limited

    parser = leaf(actions, "limit", limit, example, about=_LIMITING[noun])
    parser.add_argument("id", type=int, help=f"id of the {noun}")
    parser.add_argument("--model", help="what may be used of this model, beside the limits of all together")
    add_limits(parser, _positive_or_none, "none: no limit; default: as it is")
    return parser


def _positive_or_none(text: str) -> int:
    """The type of an option that is a count, or ``none``."""
    return _NO_LIMIT if text == "none" else positive(text)


def leaf(
    actions: Subparsers, name: str, action: Action, example: str, *, about: str, status: str = ""
) -> argparse.ArgumentParser:
    """Add an action whose result is printed. ``about``: what it does; ``example``: behind ``relay``."""
    parser = actions.add_parser(
        name,
        help=about,
        description=f"{about}.",
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


def patiently_connected(dsn: str) -> AbstractAsyncContextManager[AsyncConnection]:
    """A command's connection, see relay.store.connection.connected. Raises psycopg.Error."""
    return connected(dsn, patience=PATIENCE_SECONDS)


async def _with_connection(action: Action, options: argparse.Namespace, dsn: str) -> Any:
    async with patiently_connected(dsn) as connection:
        return await action(connection, options)
