"""``python -m relay channel …``."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, get_args
from urllib.parse import urlsplit

from psycopg import AsyncConnection, errors

from relay.commands.command import CommandError, Subparsers, add_command, leaf
from relay.routing.channels import FORMATS
from relay.routing.key_cipher import KeyCipher
from relay.settings import OutputLimitField, UnknownFields
from relay.store import channels

CREATE = (
    "channel create --name main --provider acme --base-url https://api.example.com/v1"
    " --api-key-stdin --models gpt-4o,fast=gpt-4o-mini < key"
)
SET = "channel set main --priority 10 --models gpt-4o,fast=gpt-4o-mini"
USUAL = "usual"
_PROVIDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    actions = add_command(subparsers, "channel", "Accounts at providers: who serves which model")
    create = leaf(actions, "create", _create, CREATE)
    create.add_argument("--name", required=True, help="unique name")
    _add_fields(create, creating=True)
    create.add_argument("--if-missing", action="store_true", help="show the channel when the name is taken")
    change = leaf(actions, "set", _set, SET)
    change.add_argument("channel", help="name or id")
    _add_fields(change, creating=False)
    leaf(actions, "list", _list, "channel list --json")
    for verb, status in (("disable", "disabled"), ("enable", "enabled")):
        switch = leaf(actions, verb, _set_status, f"channel {verb} main")
        switch.add_argument("channel", help="name or id")
        switch.set_defaults(status=status)


def _add_fields(parser: argparse.ArgumentParser, *, creating: bool) -> None:
    """The same options for both; ``set`` leaves as it is what is not given."""
    kept = "" if creating else " (default: as it is)"
    parser.add_argument(
        "--provider",
        type=_provider,
        required=creating,
        help=f"whose bill it is; cost prices and metrics go by it{kept}",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0] if creating else None,
        help="API that it speaks" + (" (default: %(default)s)" if creating else kept),
    )
    parser.add_argument(
        "--base-url", type=_base_url, required=creating, help=f"provider's URL up to the version{kept}"
    )
    parser.add_argument(
        "--api-key-stdin",
        action="store_true",
        required=creating,
        help="read the key from standard input" + ("" if creating else ", in place of the present one"),
    )
    parser.add_argument(
        "--models",
        type=_models,
        required=creating,
        help=f"names, separated by commas; OURS=THEIRS maps a name{kept}",
    )
    parser.add_argument(
        "--priority",
        type=int,
        default=0 if creating else None,
        help="higher is tried first" + (" (default: %(default)s)" if creating else kept),
    )
    parser.add_argument(
        "--weight",
        type=_weight,
        default=1 if creating else None,
        help="share among equals" + (" (default: %(default)s)" if creating else kept),
    )
    parser.add_argument(
        "--unknown-fields",
        choices=(*get_args(UnknownFields), USUAL),
        help="what becomes of a request's fields that the relay does not know; usual: RELAY_UNKNOWN_FIELDS"
        + (" (default: usual)" if creating else kept),
    )
    parser.add_argument(
        "--output-limit-field",
        choices=(*get_args(OutputLimitField), USUAL),
        help="what the provider calls the most tokens of an answer; usual: max_completion_tokens for the"
        " providers openai and azure, max_tokens for others" + (" (default: usual)" if creating else kept),
    )


async def _create(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    rows = await channels.list_channels(connection)
    existing = next((row for row in rows if row["name"] == options.name), None)
    if existing is not None:
        if options.if_missing:
            return existing
        raise CommandError(f"--name: channel '{options.name}' exists; add --if-missing to use it")
    _check_names(rows, options.name, options.provider)
    try:
        made = await channels.create_channel(connection, {"name": options.name, **_columns(options)})
    except errors.UniqueViolation:
        raise CommandError(f"--name: channel '{options.name}' exists; choose another name") from None
    return await _find(connection, str(made))


async def _set(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    channel = await _find(connection, options.channel)
    columns = _columns(options)
    if not columns:
        raise CommandError("nothing is to be changed; give one of the options, e.g. --priority 10")
    if "provider" in columns:
        others = [row for row in await channels.list_channels(connection) if row["id"] != channel["id"]]
        _check_names(others, channel["name"], columns["provider"])
    await channels.update_channel(connection, channel["id"], columns)
    return await _find(connection, str(channel["id"]))


def _columns(options: argparse.Namespace) -> dict[str, Any]:
    """The columns that the options say."""
    named = ("provider", "format", "base_url", "priority", "weight")
    columns = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    for name in ("unknown_fields", "output_limit_field"):
        chosen = getattr(options, name)
        if chosen is not None:
            columns[name] = "" if chosen == USUAL else chosen
    if options.models is not None:
        columns["models"] = list(options.models)
        columns["model_map"] = {ours: theirs for ours, theirs in options.models.items() if ours != theirs}
    if options.api_key_stdin:
        key = sys.stdin.readline().strip()
        if not key:
            raise CommandError(
                "--api-key-stdin: standard input is empty; pipe the provider's API key into it"
            )
        columns["api_key_sealed"] = KeyCipher(options.settings.require("seal_key")).encrypt(key)
    return columns


def _check_names(others: list[dict[str, Any]], name: str, provider: str) -> None:
    """A cost price names a channel or a provider, so one name must not mean two of them."""
    for row in others:
        if row["provider"] == name != provider:
            raise CommandError(f"--name: '{name}' is the provider of channel '{row['name']}'; choose another")
        if row["name"] == provider != row["provider"]:
            raise CommandError(
                f"--provider: '{provider}' is a channel of provider '{row['provider']}'; choose another name"
            )


async def _find(connection: AsyncConnection, channel: str) -> dict[str, Any]:
    """A channel by its name, else by its id."""
    rows = await channels.list_channels(connection)
    for field in ("name", "id"):
        for row in rows:
            if str(row[field]) == channel:
                return row
    raise CommandError(f"channel '{channel}' does not exist; `channel list` shows them")


async def _list(connection: AsyncConnection, options: argparse.Namespace) -> list[dict[str, Any]]:
    return await channels.list_channels(connection)


async def _set_status(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    channel = await _find(connection, options.channel)
    await channels.update_channel(connection, channel["id"], {"status": options.status})
    return {"channel": options.channel, "status": options.status}


def _provider(text: str) -> str:
    if not _PROVIDER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a name of letters, digits, '.', '_' and '-'")
    return text


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
