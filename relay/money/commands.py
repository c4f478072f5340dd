"""`python -m relay price | grant | ledger | usage | budget | allowance | quote | audit`."""

import argparse
import asyncio
import json
import sys
from contextlib import aclosing
from typing import Any
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from relay.command import CommandError, Subparsers, add_command, leaf
from relay.money.credit import PRIORITIES, check_unit, grant_credit
from relay.money.errors import FieldError
from relay.money.publish import moment
from relay.money.units import NANO, decimal, decimal_text, usd_to_nano
from relay.money.vocabulary import QUOTA_METERS
from relay.settings import Settings
from relay.store import grants as store
from relay.store.connection import connected


def register(subparsers: Subparsers) -> None:
    """Add the commands about money."""
    from relay.money import audit_commands, price_commands, quote_commands

    price_commands.register(subparsers)
    quote_commands.register(subparsers)
    audit_commands.register(subparsers)
    _register_grant(subparsers)
    _register_ledger(subparsers)
    _register_limits(subparsers)


def _register_grant(subparsers: Subparsers) -> None:
    parser = leaf(
        subparsers,
        "grant",
        _grant,
        "grant --account 1 --amount-usd 5.00 --source manual --source-id ticket-17 --reason goodwill --json",
    )
    parser.description = "Give an account credit or typed units; the same source and id grant once."
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


def _register_ledger(subparsers: Subparsers) -> None:
    actions = add_command(subparsers, "ledger", "What an account has and how it came about")
    listing = leaf(actions, "list", _entries, "ledger list --account 1 --json")
    listing.add_argument("--account", type=int, required=True, help="id of the account")
    listing.add_argument("--limit", type=int, default=1000, help="newest first (default: %(default)s)")
    balance = leaf(actions, "balance", _balances, "ledger balance --account 1 --json")
    balance.add_argument("--account", type=int, required=True, help="id of the account")
    grants = leaf(actions, "grants", _grants, "ledger grants --account 1 --json")
    grants.add_argument("--account", type=int, required=True, help="id of the account")
    reverse = leaf(actions, "reverse", _reverse, "ledger reverse --entry 12 --reason 'granted twice'")
    reverse.description = "Takes an entry back by its opposite. What budgets count as spent stays as it is."
    what = reverse.add_mutually_exclusive_group(required=True)
    what.add_argument("--entry", type=int, help="id of the entry to take back")
    what.add_argument("--request", type=UUID, help="take back what this call was charged")
    reverse.add_argument("--reason", required=True, help="for the books")
    terms = leaf(actions, "terms", _terms, "ledger terms --account 1 --credit-limit-usd 100 --overage 0.9")
    terms.add_argument("--account", type=int, required=True, help="id of the account")
    terms.add_argument("--credit-limit-usd", help="how far below zero it may spend (postpaid)")
    terms.add_argument("--overage", help="multiplier of what no plan period pays, e.g. 0.9")
    usage = add_command(subparsers, "usage", "Records of calls")
    calls = leaf(usage, "list", _usage, "usage list --account 1 --json")
    calls.add_argument("--account", type=int, help="id of the account (default: all)")
    calls.add_argument("--since", help="settled at or after, ISO 8601")
    calls.add_argument("--until", help="settled before, ISO 8601")
    calls.add_argument("--limit", type=int, default=1000, help="newest first (default: %(default)s)")
    export = leaf(usage, "export", _usage, "usage export --since 2026-11-01T00:00:00Z > usage.jsonl")
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
        connected(dsn) as connection,
        aclosing(store.export_usage(connection, options.account, *span)) as records,
    ):
        async for record in records:
            print(json.dumps(record, default=str))


async def _entries(connection: AsyncConnection[Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    return await store.list_entries(connection, options.account, options.limit)


async def _balances(connection: AsyncConnection[Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    return await store.list_balances(connection, options.account)


async def _grants(connection: AsyncConnection[Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    return await store.list_grants(connection, options.account)


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


def _register_limits(subparsers: Subparsers) -> None:
    actions = add_command(subparsers, "budget", "What a token, an account or everybody may spend at most")
    change = leaf(actions, "set", _set_budget, "budget set --token 3 --period month --amount-usd 20 --json")
    scope = change.add_mutually_exclusive_group(required=True)
    scope.add_argument("--token", type=int, help="id of a token")
    scope.add_argument("--account", type=int, help="id of an account")
    scope.add_argument("--global", dest="everybody", action="store_true", help="the whole platform")
    change.add_argument(
        "--period", choices=("total", "day", "month"), default="total", help="UTC; %(default)s"
    )
    change.add_argument("--amount-usd", required=True, help="US dollars a period")
    leaf(actions, "list", _list_budgets, "budget list --json")
    allowances = add_command(subparsers, "allowance", "What an account is given anew each period")
    give = leaf(
        allowances,
        "set",
        _set_allowance,
        "allowance set --account 1 --unit text_tokens --amount 1000000 --source-id plan-7 --reason Pro",
    )
    give.add_argument("--account", type=int, required=True, help="id of the account")
    give.add_argument("--unit", required=True, help=f"credit (n$), {', '.join(QUOTA_METERS)}")
    give.add_argument("--amount", type=int, required=True, help="units each period; the rest lapses")
    give.add_argument("--months", type=int, default=1, help="length of a period (default: %(default)s)")
    give.add_argument("--anchor", help="first period's start, ISO 8601 (default: the account's own)")
    give.add_argument("--ends", help="no period begins after this, ISO 8601")
    give.add_argument("--source-id", required=True, help="the subscription; the same id changes it")
    give.add_argument("--reason", required=True, help="for the books")


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
