"""``python -m relay token …``."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from datetime import UTC, datetime
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
from relay.identity.permissions import PERMISSIONS
from relay.identity.tokens import BadToken, adopt, mint
from relay.store import identity

ALL, NEVER = "all", "never"
AS_IT_IS = object()


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    actions = add_command(subparsers, "token", "API keys of an account")
    create = leaf(
        actions,
        "create",
        _create_token,
        "token create --account 1 --name laptop --rpm 60 --json",
        about="Make an API key; it is shown only now",
    )
    create.add_argument("--account", type=int, required=True, help="id of the account")
    create.add_argument("--name", required=True, help="name, unique in the account")
    _add_bounds(create, "")
    add_limits(create, positive, "default: no limit")
    create.add_argument(
        "--token-stdin", action="store_true", help="read the token from standard input instead of making one"
    )
    listing = leaf(
        actions,
        "list",
        _list_tokens,
        "token list --prefix sk-relay-Ab1_2C --json",
        about="List the keys of an account, or find one by how it begins",
    )
    whose = listing.add_mutually_exclusive_group(required=True)
    whose.add_argument("--account", type=int, help="id of the account")
    whose.add_argument("--prefix", help="how the token begins, as logs show it; of any account")
    change = leaf(
        actions,
        "set",
        _set_token,
        "token set 1 --permissions chat,models --expires never",
        about="Change what a key may call, from where and until when",
    )
    change.add_argument("token", type=int, help="id")
    _add_bounds(change, "; default: as it is")
    add_limit_action(actions, "token", "token limit 1 --rpm 60 --tpm 100000 --concurrency none")
    for verb, status, about in (
        ("disable", "disabled", "Refuse a key from its next call on"),
        ("enable", "active", "Take a disabled key again"),
    ):
        change = leaf(actions, verb, _set_token_status, f"token {verb} 1", about=about)
        change.add_argument("token", type=int, help="id")
        change.set_defaults(status=status)


def _add_bounds(parser: argparse.ArgumentParser, kept: str) -> None:
    """What a token may be bound to; ``create`` takes the words for no bound, too."""
    kinds = ", ".join(f"{name} ({meaning})" for name, meaning in PERMISSIONS.items())
    for option, kind, meaning in (
        ("--models", _names, f"only these models, separated by commas; {ALL}: any"),
        ("--addresses", _networks, f"only from these networks, e.g. 192.0.2.0/24; {ALL}: from anywhere"),
        ("--permissions", _permissions, f"only these, separated by commas: {kinds}; {ALL}: all of them"),
        ("--expires", _moment, f"ISO 8601 with offset, e.g. 2030-01-31T00:00:00Z; {NEVER}: it does not"),
    ):
        parser.add_argument(option, type=kind, default=AS_IT_IS, help=f"{meaning}{kept}")


def _bounds(options: argparse.Namespace) -> dict[str, Any]:
    """The columns that the options say."""
    named = {name: getattr(options, name) for name in ("models", "addresses", "permissions")}
    given = named | {"expires_at": options.expires}
    return {name: value for name, value in given.items() if value is not AS_IT_IS}


async def _set_token(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    bounds = _bounds(options)
    if not bounds:
        raise CommandError("nothing is to be changed: give --models, --addresses, --permissions or --expires")
    changed = await identity.set_token(connection, options.token, bounds)
    if changed is None:
        raise CommandError(f"token {options.token} does not exist; `token list --account ID` shows them")
    return changed


async def _create_token(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    try:
        new = adopt(sys.stdin.readline().strip()) if options.token_stdin else mint()
    except BadToken as error:
        raise CommandError(f"--token-stdin: {error}") from None
    try:
        token_id = await identity.create_token(
            connection,
            account_id=options.account,
            name=options.name,
            digest=new.digest,
            prefix=new.prefix,
            rpm=options.rpm,
            tpm=options.tpm,
            concurrency=options.concurrency,
            **{"models": None, "addresses": None, "permissions": None, "expires_at": None} | _bounds(options),
        )
    except errors.UniqueViolation as error:
        if error.diag.constraint_name != "tokens_account_id_name_key":
            raise CommandError("--token-stdin: this token exists; give each a secret of its own") from None
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


def _names(text: str) -> list[str] | None:
    if text == ALL:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("give at least one name")
    return names


def _networks(text: str) -> list[str] | None:
    names = _names(text)
    try:
        return names and [str(ipaddress.ip_network(name)) for name in names]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _permissions(text: str) -> list[str] | None:
    names = _names(text)
    for name in names or ():
        if name not in PERMISSIONS:
            raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(PERMISSIONS)}, nor '{ALL}'")
    return names


def _moment(text: str) -> datetime | None:
    if text == NEVER:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not ISO 8601, e.g. 2030-01-31T00:00:00Z") from None
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"'{text}' has no offset; append Z for UTC")
    if moment <= datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"'{text}' is in the past")
    return moment
