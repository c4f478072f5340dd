"""``python -m relay ledger …``."""

from __future__ import annotations

import argparse
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from relay.commands import ledger_proof
from relay.commands.command import CommandError, Subparsers, add_command, leaf
from relay.pricing.errors import FieldError
from relay.pricing.units import NANO, decimal, decimal_text
from relay.store import grants as store


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    actions = add_command(subparsers, "ledger", "What an account has and how it came about")
    listing = leaf(
        actions, "list", _entries, "ledger list --account 1 --json", about="List the entries of an account"
    )
    listing.add_argument("--account", type=int, required=True, help="id of the account")
    listing.add_argument("--limit", type=int, default=1000, help="newest first (default: %(default)s)")
    balance = leaf(
        actions,
        "balance",
        _balances,
        "ledger balance --account 1 --json",
        about="Show the balances of an account",
    )
    balance.add_argument("--account", type=int, required=True, help="id of the account")
    grants = leaf(
        actions, "grants", _grants, "ledger grants --account 1 --json", about="List the grants of an account"
    )
    grants.add_argument("--account", type=int, required=True, help="id of the account")
    reverse = leaf(
        actions,
        "reverse",
        _reverse,
        "ledger reverse --entry 12 --reason 'granted twice'",
        about="Take an entry back by its opposite",
    )
    reverse.description = "Take an entry back by its opposite. What budgets count as spent stays as it is."
    what = reverse.add_mutually_exclusive_group(required=True)
    what.add_argument("--entry", type=int, help="id of the entry to take back")
    what.add_argument("--request", type=UUID, help="take back what this call was charged")
    reverse.add_argument("--reason", required=True, help="for the books")
    ledger_proof.register(actions)
    terms = leaf(
        actions,
        "terms",
        _terms,
        "ledger terms --account 1 --credit-limit-usd 100 --overage 0.9",
        about="Set the credit limit and the overage multiplier of an account",
    )
    terms.add_argument("--account", type=int, required=True, help="id of the account")
    terms.add_argument("--credit-limit-usd", help="how far below zero it may spend (postpaid)")
    terms.add_argument("--overage", help="multiplier of what no plan period pays, e.g. 0.9")


async def _entries(connection: AsyncConnection[Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    return await store.list_entries(connection, options.account, options.limit)


async def _balances(connection: AsyncConnection[Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    return await store.list_balances(connection, options.account)


async def _grants(connection: AsyncConnection[Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    return await store.list_grants(connection, options.account)


async def _reverse(connection: AsyncConnection[Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    entries = [options.entry]
    if options.request is not None:
        found = await store.entries_of_request(connection, options.request)
        entries = [entry["id"] for entry in found if entry["reverses"] is None]
        if not entries:
            raise CommandError(f"--request: {options.request} was charged nothing; see `usage list`")
    results = []
    for entry in entries:
        outcome, made = await store.reverse_entry(connection, entry, options.reason, "manual")
        if outcome not in ("made", "known"):
            raise CommandError(_REFUSALS[outcome].format(entry=entry))
        results.append({"entry": entry, "reversing_entry": made, "outcome": outcome})
    return results


_REFUSALS = {
    "unknown": "entry {entry} does not exist; `ledger list --account ID` shows them",
    "not_reversible": "entry {entry} is neither a grant nor a charge; only those are taken back",
    "debt_was_paid": "entry {entry} was debt that a grant has paid since; grant the amount instead",
}


async def _terms(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    try:
        limit, overage = options.credit_limit_usd, options.overage
        nano = None if limit is None else decimal(limit, "--credit-limit-usd") * NANO
        if nano is not None and nano.denominator != 1:
            raise FieldError("--credit-limit-usd", "it is finer than a nano-dollar", "use nine decimals")
        factor = None if overage is None else decimal_text(decimal(overage, "--overage"))
        if factor == "0":
            raise FieldError("--overage", "it is zero", "write a multiplier above zero, e.g. 0.9")
    except FieldError as error:
        raise CommandError(str(error)) from None
    terms = await store.set_terms(
        connection, options.account, credit_limit=None if nano is None else int(nano), overage=factor
    )
    if terms is None:
        raise CommandError(f"--account: {options.account} does not exist; `account list` shows them")
    return terms
