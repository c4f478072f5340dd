"""``python -m relay breaker …``."""

from __future__ import annotations

import argparse
from typing import Any, Literal

from psycopg import AsyncConnection

from relay.commands.command import CommandError, Subparsers, add_command, leaf
from relay.pricing.errors import FieldError
from relay.pricing.units import usd_to_nano
from relay.store import breakers as store


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    actions = add_command(subparsers, "breaker", "Stop a key that spends too much in an hour")
    change = leaf(
        actions,
        "set",
        _set,
        'breaker set --token 3 --usd-per-hour 20 --reason "agents" --by ann --json',
        about="Set how much a key may spend in an hour",
    )
    change.description = "Once a key has been charged so much in an hour (UTC), it is refused until the next."
    change.add_argument("--usd-per-hour", required=True, help="US dollars, at most nine decimals")
    lift = leaf(
        actions,
        "lift",
        _lift,
        'breaker lift --token 3 --reason "a batch that is meant" --by ann',
        about="Let a key that is refused spend as much once more in this hour",
    )
    clear = leaf(
        actions,
        "clear",
        _clear,
        'breaker clear --token 3 --reason "has a budget now" --by ann',
        about="Remove the breaker of a key",
    )
    listing = leaf(actions, "list", _list, "breaker list --open --json", about="List the breakers")
    listing.add_argument("--open", action="store_true", help="only those that refuse calls")
    history = leaf(
        actions,
        "history",
        _history,
        "breaker history --token 3 --json",
        about="Show who changed a key's breaker, when and why",
    )
    history.add_argument("--limit", type=int, default=100, help="newest first (default: %(default)s)")
    for parser in (change, lift, clear, history):
        parser.add_argument("--token", type=int, required=True, help="id of the key")
    for parser in (change, lift, clear):
        parser.add_argument("--reason", required=True, help="for the history")
        parser.add_argument("--by", required=True, help="who does it, for the history")


async def _set(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    try:
        maximum = usd_to_nano(options.usd_per_hour, "--usd-per-hour")
    except FieldError as error:
        raise CommandError(str(error)) from None
    await _change(connection, "set", options, maximum)
    return await store.find(connection, options.token) or {}


async def _lift(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    await _change(connection, "lift", options)
    return await store.find(connection, options.token) or {}


async def _clear(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    await _change(connection, "clear", options)
    return {"token_id": options.token, "cleared": True}


async def _change(
    connection: AsyncConnection[Any],
    kind: Literal["set", "lift", "clear"],
    options: argparse.Namespace,
    maximum: int | None = None,
) -> None:
    for name in ("reason", "by"):
        if not getattr(options, name).strip():
            raise CommandError(f"--{name}: write something, it is kept in the history")
    outcome = await store.change(
        connection, kind, options.token, maximum=maximum, reason=options.reason, actor=options.by
    )
    problems = {
        "no_token": f"token {options.token} does not exist; `token list --account ID` shows them",
        "none": f"token {options.token} has no breaker; `breaker set` gives it one",
        "closed": f"the breaker of token {options.token} refuses nothing; `breaker list` shows why",
    }
    if outcome != "made":
        raise CommandError(f"--token: {problems[outcome]}")


async def _list(connection: AsyncConnection[Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    return await store.list_all(connection, only_open=options.open)


async def _history(connection: AsyncConnection[Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    return await store.changes(connection, options.token, options.limit)
