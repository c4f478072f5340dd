"""``python -m relay audit recompute | conserve``."""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import AsyncConnection

from relay.commands.command import Subparsers, add_command, patiently_connected
from relay.price_book.publish import moment
from relay.pricing.errors import FieldError
from relay.pricing.recompute import recompute
from relay.settings import Settings
from relay.store import audit as store

Audit = Callable[[AsyncConnection[Any], argparse.Namespace], Awaitable[dict[str, Any]]]

_STATUS = "exit status: 0 the books agree; 1 they do not, or could not be read; 2 misused"


def register(subparsers: Subparsers) -> None:
    """Add ``audit``."""
    actions = add_command(subparsers, "audit", "Proofs that the books agree")
    again = _leaf(
        actions,
        "recompute",
        _recompute,
        "audit recompute --since 2026-11-01T00:00:00Z --json",
        about="Derive each charge again from its own record; stop at the first difference",
    )
    again.add_argument("--since", help="settled at or after, ISO 8601 (default: a day ago)")
    again.add_argument("--until", help="settled before, ISO 8601 (default: now)")
    again.add_argument("--all", action="store_true", help="count every difference instead of stopping")
    kept = _leaf(
        actions,
        "conserve",
        _conserve,
        "audit conserve --json",
        about="Prove that balances are their entries' sums, and grants, holds, budgets and records agree",
    )
    kept.add_argument("--most", type=int, default=20, help="differences shown of each check (default: 20)")


def _leaf(
    actions: Subparsers, name: str, action: Audit, example: str, *, about: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=about,
        description=f"{about}.",
        epilog=f"example:\n  python -m relay {example}\n\n{_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.set_defaults(run=lambda options, settings: _run(action, options, settings))
    return parser


def _run(action: Audit, options: argparse.Namespace, settings: Settings) -> int:
    try:
        report = asyncio.run(_connected(action, options, settings.require("database_url")))
    except (psycopg.Error, FieldError) as error:
        print(f"relay: audit: {str(error).strip()}", file=sys.stderr)
        return 1
    print(json.dumps(report, default=str, indent=None if options.json else 2))
    return 0 if report["ok"] else 1


async def _connected(action: Audit, options: argparse.Namespace, dsn: str) -> dict[str, Any]:
    async with patiently_connected(dsn) as connection:
        return await action(connection, options)


async def _recompute(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    until = moment(options.until, "--until") or datetime.now(UTC) + timedelta(seconds=1)
    since = moment(options.since, "--since") or until - timedelta(days=1)
    return await recompute_span(connection, since, until, stop=not options.all)


async def recompute_span(
    connection: AsyncConnection[Any], since: datetime, until: datetime, *, stop: bool
) -> dict[str, Any]:
    """Re-derive all charges settled in a span; ``stop`` at the first record that differs."""
    checked = different = 0
    differences: list[dict[str, Any]] = []
    async with aclosing(store.records(connection, since, until)) as records:
        async for record in records:
            checked += 1
            wrong = [asdict(difference) for difference in recompute(record)]
            different += bool(wrong)
            differences += wrong[: 20 - len(differences)]
            if wrong and stop:
                break
    return {
        "ok": not different,
        "since": since,
        "until": until,
        "checked": checked,
        "different": different,
        "differences": differences,
    }


async def _conserve(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    totals, wrong = await store.conserve(connection, options.most)
    return {"ok": not wrong, "checks": len(store.CHECKS), **totals, "differences": wrong}
