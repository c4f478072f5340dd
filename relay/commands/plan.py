"""``python -m relay plan …``."""

from __future__ import annotations

import argparse
from typing import Any

from psycopg import AsyncConnection, errors

from relay.commands.command import (
    CommandError,
    Subparsers,
    add_command,
    add_limit_action,
    add_limits,
    leaf,
    positive,
)
from relay.store import plans


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    actions = add_command(subparsers, "plan", "Plans: what each of their accounts may use")
    create = leaf(
        actions, "create", _create, "plan create --name pro --rpm 600 --tpm 1000000", about="Make a plan"
    )
    create.add_argument("--name", required=True, help="unique name; `account set 3 --plan NAME` gives it")
    add_limits(create, positive, "default: no limit")
    leaf(actions, "list", _list, "plan list --json", about="List the plans")
    limit = add_limit_action(actions, "plan", "plan limit 1 --rpm 600 --concurrency none")
    limit.description = "What each account of a plan may use; of this and its own limits the stricter holds."
    remove = leaf(actions, "remove", _remove, "plan remove pro", about="Remove a plan that no account has")
    remove.add_argument("name", help="of a plan that no account has")


async def _create(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    if not 1 <= len(options.name) <= 64 or options.name == "none":
        raise CommandError("--name: give a name of 1 to 64 characters, other than 'none'")
    limits = {name: getattr(options, name) for name in ("rpm", "tpm", "concurrency")}
    try:
        return await plans.create_plan(connection, options.name, **limits)
    except errors.UniqueViolation:
        raise CommandError(f"--name: plan '{options.name}' exists; `plan limit` changes it") from None


async def _list(connection: AsyncConnection, _: argparse.Namespace) -> list[dict[str, Any]]:
    return await plans.list_plans(connection)


async def _remove(connection: AsyncConnection, options: argparse.Namespace) -> list[dict[str, Any]]:
    plan = await plans.lock_plan(connection, options.name)
    if plan is None:
        raise CommandError(f"plan '{options.name}' does not exist; `plan list` shows them")
    if not await plans.remove_plan(connection, plan):
        raise CommandError(
            f"accounts have the plan '{options.name}'; give them another one: account set ID --plan NAME"
        )
    return await plans.list_plans(connection)
