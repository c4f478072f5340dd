"""``python -m relay budget …``."""

from __future__ import annotations

import argparse
from typing import Any

from psycopg import AsyncConnection

from relay.commands.command import CommandError, Subparsers, add_command, leaf
from relay.pricing.errors import FieldError
from relay.pricing.units import NANO, decimal
from relay.store import grants as store


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    actions = add_command(subparsers, "budget", "What a token, an account or everybody may spend at most")
    change = leaf(
        actions,
        "set",
        _set_budget,
        "budget set --token 3 --period month --amount-usd 20 --json",
        about="Set a budget",
    )
    scope = change.add_mutually_exclusive_group(required=True)
    scope.add_argument("--token", type=int, help="id of a token")
    scope.add_argument("--account", type=int, help="id of an account")
    scope.add_argument("--global", dest="everybody", action="store_true", help="the whole platform")
    change.add_argument(
        "--period", choices=("total", "day", "month"), default="total", help="UTC; %(default)s"
    )
    change.add_argument("--amount-usd", required=True, help="US dollars a period")
    leaf(actions, "list", _list_budgets, "budget list --json", about="List the budgets")


async def _set_budget(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    scope = "token" if options.token else "account" if options.account else "global"
    try:
        maximum = decimal(options.amount_usd, "--amount-usd") * NANO
    except FieldError as error:
        raise CommandError(str(error)) from None
    return await store.set_budget(
        connection,
        scope=scope,
        scope_id=options.token or options.account or 0,
        period=options.period,
        maximum=int(maximum),
    )


async def _list_budgets(connection: AsyncConnection[Any], _: argparse.Namespace) -> list[dict[str, Any]]:
    return await store.list_budgets(connection)
