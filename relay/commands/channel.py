"""``python -m relay channel …``."""

from __future__ import annotations

import argparse
import sys
from typing import Any
from urllib.parse import urlsplit

from psycopg import AsyncConnection, errors

from relay.commands.command import CommandError, Subparsers, add_command, leaf
from relay.routing.key_cipher import KeyCipher
from relay.store import channels

PROVIDERS = ("openai",)
EXAMPLE = (
    "channel create --name main --provider openai --base-url https://api.example.com/v1"
    " --api-key-stdin --models gpt-4o,fast=gpt-4o-mini < key"
)


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    actions = add_command(subparsers, "channel", "Accounts at providers: who serves which model")
    create = leaf(actions, "create", _create, EXAMPLE)
    create.add_argument("--name", required=True, help="unique name")
    create.add_argument(
        "--provider", required=True, choices=PROVIDERS, help="format that the provider speaks"
    )
    create.add_argument("--base-url", type=_base_url, required=True, help="provider's URL up to the version")
    create.add_argument("--api-key-stdin", action="store_true", required=True, help="read the key from stdin")
    create.add_argument(
        "--models", type=_models, required=True, help="names, separated by commas; OURS=THEIRS maps a name"
    )
    create.add_argument("--priority", type=int, default=0, help="higher is tried first (default: 0)")
    create.add_argument("--weight", type=_weight, default=1, help="share among equals (default: 1)")
    create.add_argument("--if-missing", action="store_true", help="show the channel when the name is taken")
    leaf(actions, "list", _list, "channel list --json")
    for verb, status in (("disable", "disabled"), ("enable", "enabled")):
        change = leaf(actions, verb, _set_status, f"channel {verb} main")
        change.add_argument("channel", help="name or id")
        change.set_defaults(status=status)


async def _create(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    existing = await _find(connection, options.name)
    if existing is not None:
        if options.if_missing:
            return existing
        raise CommandError(f"--name: channel '{options.name}' exists; add --if-missing to use it")
    key = sys.stdin.readline().strip()
    if not key:
        raise CommandError("--api-key-stdin: standard input is empty; pipe the provider's API key into it")
    own = options.models
    try:
        await channels.create_channel(
            connection,
            name=options.name,
            provider=options.provider,
            base_url=options.base_url,
            api_key_sealed=KeyCipher(options.settings.require("seal_key")).encrypt(key),
            models=list(own),
            model_map={ours: theirs for ours, theirs in own.items() if ours != theirs},
            priority=options.priority,
            weight=options.weight,
        )
    except errors.UniqueViolation:
        raise CommandError(f"--name: channel '{options.name}' exists; choose another name") from None
    created = await _find(connection, options.name)
    if created is None:
        raise CommandError(f"channel '{options.name}' was disabled or renamed meanwhile; try again")
    return created


async def _find(connection: AsyncConnection, name: str) -> dict[str, Any] | None:
    rows = await channels.list_channels(connection)
    return next((row for row in rows if row["name"] == name), None)


async def _list(connection: AsyncConnection, options: argparse.Namespace) -> list[dict[str, Any]]:
    return await channels.list_channels(connection)


async def _set_status(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    if not await channels.set_channel_status(connection, options.channel, options.status):
        raise CommandError(f"channel '{options.channel}' does not exist; `channel list` shows them")
    return {"channel": options.channel, "status": options.status}


def _models(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in text.split(","):
        ours, _, theirs = item.strip().partition("=")
        if not ours or ("=" in item and not theirs):
            raise argparse.ArgumentTypeError(f"'{item}' is neither NAME nor OURS=THEIRS")
        found[ours] = theirs or ours
    return found


def _base_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.query or parts.username:
        raise argparse.ArgumentTypeError(f"'{text}' is not like https://api.example.com/v1")
    return text.rstrip("/")


def _weight(text: str) -> int:
    if not text.isdigit() or int(text) > 1_000_000:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to 1000000")
    return int(text)
