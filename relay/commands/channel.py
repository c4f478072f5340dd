"""``python -m relay channel …``."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC, datetime
from typing import Any, get_args
from urllib.parse import urlsplit

from psycopg import AsyncConnection, errors

from relay.commands.command import CommandError, Subparsers, add_command, leaf, positive
from relay.price_book.load import load_catalog
from relay.pricing.errors import FieldError
from relay.pricing.units import NANO, decimal
from relay.routing.channels import FORMATS
from relay.routing.key_cipher import KeyCipher
from relay.settings import OutputLimitField, SettingError, TranscriptFormat, UnknownFields
from relay.store import channels

CREATE = (
    "channel create --name main --provider acme --base-url https://api.example.com/v1"
    " --api-key-stdin --models gpt-4o,fast=gpt-4o-mini < key"
)
SET = "channel set main --priority 10 --models gpt-4o,fast=gpt-4o-mini"
ADD_KEY = "channel key add main --name second --api-key-stdin < key"
USUAL = "usual"
UNLIMITED = "none"
PERIODS = ("day", "month")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    actions = add_command(subparsers, "channel", "Accounts at providers: who serves which model")
    create = leaf(
        actions,
        "create",
        _create,
        CREATE,
        about="Make a channel: an account at a provider and the models that it serves",
    )
    create.add_argument("--name", required=True, help="unique name")
    _add_fields(create, creating=True)
    create.add_argument("--if-missing", action="store_true", help="show the channel when the name is taken")
    change = leaf(actions, "set", _set, SET, about="Change a channel in place")
    change.add_argument("channel", help="name or id")
    _add_fields(change, creating=False)
    leaf(actions, "list", _list, "channel list --json", about="List the channels")
    _register_keys(actions)
    _register_budgets(actions)
    leaf(
        actions,
        "reseal",
        _reseal,
        "channel reseal --json",
        about="Encrypt the providers' keys anew, by the newest seal key",
    )
    opens = leaf(
        actions,
        "opens",
        _opens,
        "channel opens --seal-key-stdin --json < key",
        about="Say how many of the providers' keys a seal key opens",
    )
    opens.add_argument(
        "--seal-key-stdin",
        action="store_true",
        required=True,
        help="read the seal key to try from standard input",
    )
    for verb, status, about in (
        ("disable", "disabled", "Send a channel no more calls"),
        ("enable", "enabled", "Send a channel calls again"),
    ):
        switch = leaf(actions, verb, _set_status, f"channel {verb} main", about=about)
        switch.add_argument("channel", help="name or id")
        switch.set_defaults(status=status)


def _register_keys(actions: Subparsers) -> None:
    keys = add_command(actions, "key", "A channel's keys at its provider: calls take turns among them")
    add = leaf(keys, "add", _add_key, ADD_KEY, about="Add a key")
    add.add_argument("channel", help="name or id")
    add.add_argument("--name", type=_name, required=True, help="how you call the key")
    add.add_argument(
        "--api-key-stdin", action="store_true", required=True, help="read it from standard input"
    )
    shown = leaf(
        keys,
        "list",
        _list_keys,
        "channel key list main --json",
        about="List the keys; their values are never shown",
    )
    shown.add_argument("channel", help="name or id")
    remove = leaf(keys, "remove", _remove_key, "channel key remove main first", about="Remove a key")
    remove.add_argument("channel", help="name or id")
    remove.add_argument("name", help="of the key, as `channel key list` shows it")


def _register_budgets(actions: Subparsers) -> None:
    budgets = add_command(actions, "budget", "What a channel may cost in a period, by cost prices")
    change = leaf(
        budgets,
        "set",
        _set_budget,
        "channel budget set main --period month --amount-usd 500",
        about="Set the budget of a channel",
    )
    change.add_argument("channel", help="name or id")
    change.add_argument("--period", choices=PERIODS, required=True, help="UTC")
    change.add_argument("--amount-usd", required=True, help="US dollars a period")
    leaf(budgets, "list", _list_budgets, "channel budget list --json", about="List the channels' budgets")
    remove = leaf(
        budgets,
        "remove",
        _remove_budget,
        "channel budget remove main --period month",
        about="Remove a budget",
    )
    remove.add_argument("channel", help="name or id")
    remove.add_argument("--period", choices=PERIODS, required=True, help="UTC")


def _add_fields(parser: argparse.ArgumentParser, *, creating: bool) -> None:
    """The same options for both; ``set`` leaves as it is what is not given."""
    _add_account(parser, creating)
    _add_share(parser, creating)
    _add_limits(parser, creating)
    _add_habits(parser, creating)


def _otherwise(creating: bool, usual: str = "") -> str:
    """What an option's help says of its absence; ``usual``: of a new channel's."""
    if not creating:
        return " (default: as it is)"
    return f" (default: {usual})" if usual else ""


def _add_account(parser: argparse.ArgumentParser, creating: bool) -> None:
    kept = _otherwise(creating)
    parser.add_argument(
        "--provider",
        type=_name,
        required=creating,
        help=f"whose bill it is; cost prices and metrics go by it{kept}",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0] if creating else None,
        help="API that it speaks" + _otherwise(creating, "%(default)s"),
    )
    parser.add_argument(
        "--base-url", type=_base_url, required=creating, help=f"provider's URL up to the version{kept}"
    )
    parser.add_argument(
        "--api-key-stdin",
        action="store_true",
        required=creating,
        help="read the key from standard input" + ("" if creating else ", in place of the present first one"),
    )


def _add_share(parser: argparse.ArgumentParser, creating: bool) -> None:
    parser.add_argument(
        "--models",
        type=_models,
        required=creating,
        help=f"names, separated by commas; OURS=THEIRS maps a name{_otherwise(creating)}",
    )
    parser.add_argument(
        "--priority",
        type=int,
        default=0 if creating else None,
        help="higher is tried first" + _otherwise(creating, "%(default)s"),
    )
    parser.add_argument(
        "--weight",
        type=_weight,
        default=1 if creating else None,
        help="share among equals" + _otherwise(creating, "%(default)s"),
    )


def _add_limits(parser: argparse.ArgumentParser, creating: bool) -> None:
    usual = _otherwise(creating, "no limit")
    for name, meaning in (
        ("--rpm", "requests a minute that it is sent at most"),
        ("--tpm", "tokens a minute, prompts and answers, that it is sent at most"),
        ("--concurrency", "requests at a time that it is sent at most"),
    ):
        parser.add_argument(name, type=_limit, help=f"{meaning}, by all relays; {UNLIMITED}: no limit{usual}")


def _add_habits(parser: argparse.ArgumentParser, creating: bool) -> None:
    """What its provider takes differently."""
    usual = _otherwise(creating, USUAL)
    parser.add_argument(
        "--unknown-fields",
        choices=(*get_args(UnknownFields), USUAL),
        help="what becomes of a request's fields that the relay does not know; usual: RELAY_UNKNOWN_FIELDS"
        + usual,
    )
    parser.add_argument(
        "--output-limit-field",
        choices=(*get_args(OutputLimitField), USUAL),
        help="what the provider calls the most tokens of an answer; usual: max_completion_tokens for the"
        " providers openai and azure, max_tokens for others" + usual,
    )
    parser.add_argument(
        "--transcript-format",
        choices=(*get_args(TranscriptFormat), USUAL),
        help="what it is asked for where a customer wants a transcript as text, srt or vtt, which tell no"
        " usage: verbose_json; json, which has no times, so that srt and vtt stay; or just that (as_asked);"
        " usual: verbose_json for models that it calls whisper, json for others" + usual,
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
    for name in ("unknown_fields", "output_limit_field", "transcript_format"):
        chosen = getattr(options, name)
        if chosen is not None:
            columns[name] = "" if chosen == USUAL else chosen
    for name in ("rpm", "tpm", "concurrency"):
        limit = getattr(options, name)
        if limit is not None:
            columns[name] = limit or None
    if options.models is not None:
        columns["models"] = list(options.models)
        columns["model_map"] = {ours: theirs for ours, theirs in options.models.items() if ours != theirs}
    if options.api_key_stdin:
        columns["api_key_sealed"] = _cipher(options).encrypt(_given_key())
    return columns


def _given_key() -> str:
    key = sys.stdin.readline().strip()
    if not key:
        raise CommandError("--api-key-stdin: standard input is empty; pipe the provider's API key into it")
    return key


def _cipher(options: argparse.Namespace) -> KeyCipher:
    return KeyCipher(options.settings.require("seal_key"))


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


async def _list_keys(connection: AsyncConnection, options: argparse.Namespace) -> list[dict[str, Any]]:
    channel = await _find(connection, options.channel)
    return await channels.list_keys(connection, channel["id"])


async def _add_key(connection: AsyncConnection, options: argparse.Namespace) -> list[dict[str, Any]]:
    key, cipher = _given_key(), _cipher(options)
    found = await _find(connection, options.channel)
    channel = await channels.lock_channel(connection, found["id"])
    if options.name in channel["keys"]:
        raise CommandError(
            f"--name: channel '{channel['name']}' has a key '{options.name}'; choose another name, "
            "or remove that key first"
        )
    for sealed in channel["sealed_keys"]:
        if cipher.opens(sealed["api_key_sealed"]) and cipher.decrypt(sealed["api_key_sealed"]) == key:
            raise CommandError(f"--api-key-stdin: the channel has this key already, as '{sealed['name']}'")
    await channels.add_key(connection, channel["id"], options.name, cipher.encrypt(key))
    return await channels.list_keys(connection, channel["id"])


async def _remove_key(connection: AsyncConnection, options: argparse.Namespace) -> list[dict[str, Any]]:
    found = await _find(connection, options.channel)
    channel = await channels.lock_channel(connection, found["id"])
    if options.name not in channel["keys"]:
        raise CommandError(
            f"channel '{channel['name']}' has no key '{options.name}'; it has {', '.join(channel['keys'])}"
        )
    if not await channels.remove_key(connection, channel["id"], options.name):
        raise CommandError(
            f"'{options.name}' is the only key of channel '{channel['name']}'; add another one first "
            "(`channel key add`), or switch the channel off (`channel disable`)"
        )
    return await channels.list_keys(connection, channel["id"])


async def _list_budgets(connection: AsyncConnection, _: argparse.Namespace) -> list[dict[str, Any]]:
    return await channels.list_budgets(connection)


async def _set_budget(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    channel = await _find(connection, options.channel)
    try:
        maximum = int(decimal(options.amount_usd, "--amount-usd") * NANO)
    except FieldError as error:
        raise CommandError(str(error)) from None
    if maximum <= 0:
        raise CommandError("--amount-usd: it must be above 0; `channel disable` switches a channel off")
    await _check_costs(connection, channel)
    await channels.set_budget(connection, channel["id"], options.period, maximum)
    rows = await channels.list_budgets(connection)
    return next(row for row in rows if (row["channel_id"], row["period"]) == (channel["id"], options.period))


async def _check_costs(connection: AsyncConnection, channel: dict[str, Any]) -> None:
    """What has no cost price would count as nothing, so a channel with a budget does not serve it."""
    now = datetime.now(UTC)
    catalog = await load_catalog(connection, since=now)
    unknown = [
        model
        for model in channel["models"]
        if catalog.cost_tariff(model, channel["provider"], now, channel["name"]) is None
    ]
    if unknown:
        raise CommandError(
            f"channel '{channel['name']}' has no cost price for {', '.join(unknown[:5])}; publish it first: "
            f"price publish --model {unknown[0]} --side cost --channel {channel['name']} …"
        )


async def _remove_budget(connection: AsyncConnection, options: argparse.Namespace) -> list[dict[str, Any]]:
    channel = await _find(connection, options.channel)
    if not await channels.remove_budget(connection, channel["id"], options.period):
        raise CommandError(
            f"channel '{channel['name']}' has no budget a {options.period}; `channel budget list` shows them"
        )
    return await channels.list_budgets(connection)


async def _reseal(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    """Seals every provider's key by the newest seal key. Run again, it has nothing to do."""
    cipher = _cipher(options)
    rows = await channels.load_channels(connection)
    resealed = 0
    for row, key in _sealed_keys(rows):
        try:
            again = cipher.renewed(key["api_key_sealed"])
        except SettingError as error:
            raise CommandError(f"channel '{row['name']}': {error}; {_remedy(row, key['name'])}") from None
        if again is not None:
            sealed = key["api_key_sealed"]
            resealed += await channels.reseal_key(connection, row["id"], key["name"], sealed, again)
    now = _sealed_keys(await channels.load_channels(connection))
    if any(cipher.renewed(key["api_key_sealed"]) for _, key in now):
        raise CommandError("a key was given meanwhile; run it again")
    return {"channels": len(rows), "keys": len(now), "resealed": resealed}


def _sealed_keys(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Each key of each channel, with its channel."""
    return [(row, key) for row in rows for key in row["sealed_keys"]]


def _remedy(channel: dict[str, Any], key: str) -> str:
    if key == channel["keys"][0]:
        return "give it anew: `channel set`"
    return f"remove it, and give it anew: `channel key remove {channel['name']} {key}`"


async def _opens(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    """How many providers' keys a seal key opens, and whether the relay has it."""
    key = sys.stdin.readline().strip()
    cipher = KeyCipher(key)
    rows = await channels.load_channels(connection)
    keys = _sealed_keys(rows)
    opened = sum(cipher.opens(sealed["api_key_sealed"]) for _, sealed in keys)
    known = _cipher(options).has(key)
    return {"channels": len(rows), "keys": len(keys), "opened": opened, "known": known}


async def _set_status(connection: AsyncConnection, options: argparse.Namespace) -> dict[str, Any]:
    channel = await _find(connection, options.channel)
    await channels.update_channel(connection, channel["id"], {"status": options.status})
    return {"channel": options.channel, "status": options.status}


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
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


def _limit(text: str) -> int:
    """0: none."""
    if text == UNLIMITED:
        return 0
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor '{UNLIMITED}'") from None
