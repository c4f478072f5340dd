"""``python -m relay allowance …``."""

from __future__ import annotations

import argparse
from typing import Any

from psycopg import AsyncConnection

from relay.commands.command import CommandError, Subparsers, add_command, leaf
from relay.ledger.grants import check_unit
from relay.price_book.publish import moment
from relay.pricing.errors import FieldError
from relay.pricing.meter_names import QUOTA_METERS
from relay.store import grants as store


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    allowances = add_command(subparsers, "allowance", "What an account is given anew each period")
    give = leaf(
        allowances,
        "set",
        _set_allowance,
        "allowance set --account 1 --unit text_tokens --amount 1000000 --source-id plan-7 --reason Pro",
        about="Set what an account is given each period",
    )
    give.add_argument("--account", type=int, required=True, help="id of the account")
    give.add_argument("--unit", required=True, help=f"credit (n$), {', '.join(QUOTA_METERS)}")
    give.add_argument("--amount", type=int, required=True, help="units each period; the rest lapses")
    give.add_argument("--months", type=int, default=1, help="length of a period (default: %(default)s)")
    give.add_argument("--anchor", help="first period's start, ISO 8601 (default: the account's own)")
    give.add_argument("--ends", help="no period begins after this, ISO 8601")
    give.add_argument("--source-id", required=True, help="the subscription; the same id changes it")
    give.add_argument("--reason", required=True, help="for the books")


async def _set_allowance(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    try:
        check_unit(options.unit, "--unit")
        return await store.set_allowance(
            connection,
            account_id=options.account,
            unit=options.unit,
            amount=options.amount,
            months=options.months,
            anchor=moment(options.anchor, "--anchor"),
            ends_at=moment(options.ends, "--ends"),
            source_id=options.source_id,
            reason=options.reason,
        )
    except (FieldError, LookupError) as error:
        raise CommandError(str(error)) from None
