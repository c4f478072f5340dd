"""``python -m relay account …``."""

from __future__ import annotations

import argparse
from typing import Any

from psycopg import AsyncConnection, errors

from relay.commands.command import (
    CommandError,
    Subparsers,
    add_command,
    add_limit_action,
    leaf,
)
from relay.store import identity, plans

NO_PLAN = "none"


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    actions = add_command(subparsers, "account", "Customers: who pays")
    create = leaf(
        actions,
        "create",
        _create_account,
        "account create --name acme --group default --json",
        about="Make an account",
    )
    create.add_argument("--name", required=True, help="unique name")
    create.add_argument("--group", default="default", help="customer group of prices (default: %(default)s)")
    create.add_argument("--if-missing", action="store_true", help="show the account when the name is taken")
    show = leaf(actions, "show", _show_account, "account show 1 --json", about="Show an account")
    show.add_argument("account", help="id or name")
    listing = leaf(actions, "list", _list_accounts, "account list --json", about="List the accounts")
    listing.add_argument("--limit", type=int, default=100, help="newest first (default: %(default)s)")
    change = leaf(
        actions,
        "set",
        _set_account,
        "account set 3 --plan pro",
        about="Give an account a plan, or take it away",
    )
    change.add_argument("account", type=int, help="id")
    change.add_argument("--plan", required=True, help=f"whose limits hold for it, too; {NO_PLAN}: no plan")
    limit = add_limit_action(actions, "account", "account limit 1 --model gpt-4o --tpm 1000000 --rpm none")
    limit.description = "What all of an account's keys may use together, beside what each key may."
    for verb, status, about in (
        ("suspend", "suspended", "Refuse the calls of an account until it is activated again"),
        ("activate", "active", "Take the calls of an account again"),
        ("close", "closed", "Refuse the calls of an account, since it has ended"),
    ):
        change = leaf(actions, verb, _set_account_status, f"account {verb} 1", about=about)
        change.add_argument("account", type=int, help="id")
        change.set_defaults(status=status)


async def _create_account(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    existing = await identity.find_account(connection, name=options.name)
    if existing is not None and options.if_missing:
        return existing
    try:
        account_id = await identity.create_account(connection, options.name, options.group)
    except errors.UniqueViolation:
        raise CommandError(f"--name: account '{options.name}' exists; add --if-missing to use it") from None
    return await _account(connection, str(account_id))


async def _show_account(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    return await _account(connection, options.account)


async def _account(connection: AsyncConnection, key: str) -> dict[str, Any]:
    found = await identity.find_account(connection, account_id=int(key)) if key.isdigit() else None
    found = found or await identity.find_account(connection, name=key)
    if found is None:
        raise CommandError(f"account '{key}' does not exist; `account list` shows them")
    return found


async def _list_accounts(connection: AsyncConnection, options: argparse.Namespace) -> list[dict[str, Any]]:
    return await identity.list_accounts(connection, options.limit)


async def _set_account(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    plan = None if options.plan == NO_PLAN else await plans.lock_plan(connection, options.plan)
    if plan is None and options.plan != NO_PLAN:
        raise CommandError(f"--plan: plan '{options.plan}' does not exist; `plan list` shows them")
    if not await identity.set_account_plan(connection, options.account, plan):
        raise CommandError(f"account {options.account} does not exist; `account list` shows them")
    return await _account(connection, str(options.account))


async def _set_account_status(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    if not await identity.set_account_status(connection, options.account, options.status):
        raise CommandError(f"account {options.account} does not exist; `account list` shows them")
    return await _account(connection, str(options.account))
