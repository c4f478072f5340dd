"""``python -m relay token …``."""

from __future__ import annotations

import argparse
import ipaddress
from datetime import UTC, datetime
from typing import Any

from psycopg import AsyncConnection, errors

from relay.commands.command import CommandError, Subparsers, add_command, leaf, positive
from relay.identity.tokens import mint
from relay.store import identity


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    actions = add_command(subparsers, "token", "API keys of an account")
    create = leaf(actions, "create", _create_token, "token create --account 1 --name laptop --rpm 60 --json")
    create.add_argument("--account", type=int, required=True, help="id of the account")
    create.add_argument("--name", required=True, help="name, unique in the account")
    create.add_argument("--models", type=_names, help="only these models, separated by commas")
    create.add_argument("--addresses", type=_networks, help="only from these networks, e.g. 192.0.2.0/24")
    create.add_argument("--rpm", type=positive, help="requests a minute (default: no limit)")
    create.add_argument("--concurrency", type=positive, help="calls at a time (default: no limit)")
    create.add_argument("--expires", type=_moment, help="ISO 8601 with offset, e.g. 2030-01-31T00:00:00Z")
    listing = leaf(actions, "list", _list_tokens, "token list --prefix sk-relay-Ab1_2C --json")
    whose = listing.add_mutually_exclusive_group(required=True)
    whose.add_argument("--account", type=int, help="id of the account")
    whose.add_argument("--prefix", help="how the token begins, as logs show it; of any account")
    for verb, status in (("disable", "disabled"), ("enable", "active")):
        change = leaf(actions, verb, _set_token_status, f"token {verb} 1")
        change.add_argument("token", type=int, help="id")
        change.set_defaults(status=status)


async def _create_token(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    new = mint()
    try:
        token_id = await identity.create_token(
            connection,
            account_id=options.account,
            name=options.name,
            digest=new.digest,
            prefix=new.prefix,
            models=options.models,
            addresses=options.addresses,
            rpm=options.rpm,
            concurrency=options.concurrency,
            expires_at=options.expires,
        )
    except errors.UniqueViolation:
        raise CommandError(
            f"--name: the account has a token '{options.name}'; it cannot be shown again, choose another name"
        ) from None
    except errors.ForeignKeyViolation:
        raise CommandError(
            f"--account: {options.account} does not exist; `account list` shows them"
        ) from None
    return {"id": token_id, "token": new.clear, "prefix": new.prefix}


async def _list_tokens(connection: AsyncConnection, options: argparse.Namespace) -> list[dict[str, Any]]:
    if options.prefix is not None:
        return await identity.list_tokens_by_prefix(connection, options.prefix)
    return await identity.list_tokens(connection, options.account)


async def _set_token_status(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    if not await identity.set_token_status(connection, options.token, options.status):
        raise CommandError(f"token {options.token} does not exist; `token list --account ID` shows them")
    return {"id": options.token, "status": options.status}


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("give at least one name")
    return names


def _networks(text: str) -> list[str]:
    try:
        return [str(ipaddress.ip_network(name)) for name in _names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not ISO 8601, e.g. 2030-01-31T00:00:00Z") from None
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"'{text}' has no offset; append Z for UTC")
    if moment <= datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"'{text}' is in the past")
    return moment
