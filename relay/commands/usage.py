"""``python -m relay usage …``."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import aclosing
from typing import Any

import psycopg
from psycopg import AsyncConnection

from relay.commands.command import CommandError, Subparsers, add_command, leaf, patiently_connected
from relay.price_book.publish import moment
from relay.pricing.errors import FieldError
from relay.settings import Settings
from relay.store import grants as store


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    usage = add_command(subparsers, "usage", "Records of calls")
    calls = leaf(
        usage,
        "list",
        _usage,
        "usage list --account 1 --json",
        about="List the records of calls, newest first",
    )
    calls.add_argument("--account", type=int, help="id of the account (default: all)")
    calls.add_argument("--since", help="settled at or after, ISO 8601")
    calls.add_argument("--until", help="settled before, ISO 8601")
    calls.add_argument("--limit", type=int, default=1000, help="newest first (default: %(default)s)")
    export = leaf(
        usage,
        "export",
        _usage,
        "usage export --since 2026-11-01T00:00:00Z > usage.jsonl",
        about="Print all records of calls, oldest first",
    )
    export.description = "One line of JSON for each call, oldest first, however many there are."
    export.add_argument("--account", type=int, help="id of the account (default: all)")
    export.add_argument("--since", help="settled at or after, ISO 8601")
    export.add_argument("--until", help="settled before, ISO 8601")
    export.set_defaults(run=_export)


def _export(options: argparse.Namespace, settings: Settings) -> int:
    try:
        asyncio.run(_export_lines(options, settings.require("database_url")))
    except (psycopg.Error, FieldError) as error:
        print(f"relay: usage export: {str(error).strip()}", file=sys.stderr)
        return 1
    return 0


async def _export_lines(options: argparse.Namespace, dsn: str) -> None:
    span = moment(options.since, "--since"), moment(options.until, "--until")
    async with (
        patiently_connected(dsn) as connection,
        aclosing(store.export_usage(connection, options.account, *span)) as records,
    ):
        async for record in records:
            print(json.dumps(record, default=str))


async def _usage(connection: AsyncConnection[Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    try:
        return await store.list_usage(
            connection,
            account_id=options.account,
            since=moment(options.since, "--since"),
            until=moment(options.until, "--until"),
            limit=options.limit,
        )
    except FieldError as error:
        raise CommandError(str(error)) from None
