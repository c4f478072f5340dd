"""``python -m relay route …``."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from psycopg import AsyncConnection

from relay.commands.command import CommandError, Subparsers, add_command, leaf
from relay.routing.order import Prefer, Sticky
from relay.store import routes


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    actions = add_command(subparsers, "route", "How one of the channels that serve a model is chosen")
    change = leaf(
        actions,
        "set",
        _set,
        "route set gpt-4o --sticky session --prefer latency",
        about="Say how a model's channel is chosen",
    )
    change.add_argument("model", help="as customers call it; '*': all that have no route of their own")
    change.add_argument(
        "--sticky",
        choices=get_args(Sticky),
        help="which calls of a customer go to the same channel, whose prompt cache then pays: those of a"
        " session (x-session-id, prompt_cache_key, metadata.user_id or user says which), or those whose"
        " prompts begin alike (default: as it is, at first off)",
    )
    change.add_argument(
        "--prefer",
        choices=get_args(Prefer),
        help="what decides among channels of a priority for calls that go nowhere in particular"
        " (default: as it is, at first weight)",
    )
    leaf(actions, "list", _list, "route list --json", about="List the routes")
    remove = leaf(
        actions,
        "remove",
        _remove,
        "route remove gpt-4o",
        about="Remove a model's route: the weights decide again",
    )
    remove.add_argument("model", help="as `route list` shows it")


async def _set(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    if not 1 <= len(options.model) <= 200:
        raise CommandError("MODEL: give a name of 1 to 200 characters, or '*'")
    if options.sticky is None and options.prefer is None:
        raise CommandError("nothing is to be changed: give --sticky or --prefer")
    return await routes.set_route(connection, options.model, options.sticky, options.prefer)


async def _list(connection: AsyncConnection, _: argparse.Namespace) -> list[dict[str, Any]]:
    return await routes.list_routes(connection)


async def _remove(connection: AsyncConnection, options: argparse.Namespace) -> list[dict[str, Any]]:
    if not await routes.remove_route(connection, options.model):
        raise CommandError(f"'{options.model}' has no route; `route list` shows them")
    return await routes.list_routes(connection)
