"""``python -m relay grant …``."""

from __future__ import annotations

import argparse
from typing import Any

from psycopg import AsyncConnection

from relay.commands.command import CommandError, Subparsers, leaf
from relay.ledger.grants import PRIORITIES, grant_credit
from relay.price_book.publish import moment
from relay.pricing.errors import FieldError
from relay.pricing.meter_names import QUOTA_METERS
from relay.pricing.units import usd_to_nano


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = leaf(
        subparsers,
        "grant",
        _grant,
        "grant --account 1 --amount-usd 5.00 --source manual --source-id ticket-17 --reason goodwill --json",
        about="Give an account credit or units; the same source and id grant once",
    )
    parser.add_argument("--account", type=int, required=True, help="id of the account")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--amount-usd", help="US dollars, at most nine decimals")
    amount.add_argument("--amount", type=int, help="units of --unit")
    parser.add_argument("--unit", default="credit", help=f"credit, {', '.join(QUOTA_METERS)}")
    parser.add_argument("--source", required=True, choices=sorted(PRIORITIES), help="where it comes from")
    parser.add_argument("--source-id", required=True, help="what it comes from, e.g. an invoice; grants once")
    parser.add_argument("--reason", required=True, help="for the books")
    parser.add_argument("--expires", help="ISO 8601 with offset; what is left then lapses")
    parser.add_argument("--priority", type=int, help="lower is drained first (default: by source)")


async def _grant(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    try:
        if options.amount_usd is not None:
            amount = usd_to_nano(options.amount_usd, "--amount-usd")
        else:
            amount = options.amount
        return await grant_credit(
            connection,
            account_id=options.account,
            unit=options.unit,
            amount=amount,
            source=options.source,
            source_id=options.source_id,
            reason=options.reason,
            expires_at=moment(options.expires, "--expires"),
            priority=options.priority,
        )
    except FieldError as error:
        raise CommandError(str(error)) from None
