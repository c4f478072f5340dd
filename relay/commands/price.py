"""``python -m relay price …``."""

import argparse
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection

from relay.commands.command import CommandError, Subparsers, add_command, leaf
from relay.price_book import publish
from relay.pricing.errors import FieldError
from relay.pricing.meter_names import METERS
from relay.store import prices as store

_RATE_OPTIONS = {f"--{meter.replace('_', '-')}": meter for meter in METERS}


def register(subparsers: Subparsers) -> None:
    """Add ``price``."""
    actions = add_command(subparsers, "price", "What models cost, dated and versioned")
    for name, action, example, about in (
        (
            "publish",
            _publish,
            "price publish --model gpt-4o --in-text 2.50/1M --out-text 10/1M --json",
            "Publish a price; the one before ends where it begins",
        ),
        (
            "draft",
            _draft,
            "price draft --model gpt-4o --ratio model=1.25 --ratio completion=4",
            "Keep a price to be published later",
        ),
    ):
        _document_options(leaf(actions, name, action, example, about=about), optional=name == "publish")
    listing = leaf(actions, "list", _list, "price list --json", about="List the price versions")
    listing.add_argument("--model", help="only this pattern")
    listing.add_argument("--drafts", action="store_true", help="drafts instead of published versions")
    show = leaf(actions, "show", _show, "price show 12", about="Show a price version")
    show.add_argument("version", type=int, help="id")
    end = leaf(actions, "end", _end, "price end 12 --at 2030-01-31T00:00:00Z", about="End a price version")
    end.add_argument("version", type=int, help="id")
    end.add_argument("--at", help="ISO 8601 (default: now)")
    group = leaf(
        actions,
        "group",
        _group,
        "price group vip --multiplier 0.9",
        about="Set what the prices of a customer group are multiplied by",
    )
    group.add_argument("group", help="customer group")
    group.add_argument("--using", default="", help="only when it uses this group (replaces its multiplier)")
    group.add_argument("--multiplier", required=True, help='decimal, e.g. "0.9"')
    group.add_argument("--source", default="manual", help="who says so (default: %(default)s)")
    fx = leaf(actions, "fx", _fx, "price fx CNY 10/73", about="Set the exchange rate of a currency")
    fx.add_argument("currency", help="ISO 4217 code")
    fx.add_argument("rate", help="US dollars for one unit: a decimal or a fraction")
    fx.add_argument("--source", default="manual", help="who says so (default: %(default)s)")
    leaf(actions, "groups", _groups, "price groups --json", about="List the multipliers of customer groups")
    leaf(actions, "rates", _rates, "price rates --json", about="List the exchange rates")


def _document_options(parser: argparse.ArgumentParser, *, optional: bool) -> None:
    if optional:
        parser.add_argument("--draft", type=int, metavar="ID", help="publish this draft instead")
        parser.add_argument(
            "--keep-others", action="store_true", help="refuse instead of ending the predecessor"
        )
    parser.add_argument(
        "--file", help="a JSON price document, - for standard input; options below override it"
    )
    parser.add_argument("--model", help="name, or a pattern with *")
    for option, meter in _RATE_OPTIONS.items():
        parser.add_argument(option, dest=f"rate_{meter}", metavar="RATE", help=argparse.SUPPRESS)
    parser.add_argument(
        "--rate",
        action="append",
        default=[],
        metavar="METER=RATE",
        help="e.g. cache_read=1.25/1M, tool:web_search=10/1K; meters also as options: --in-text 2.50/1M",
    )
    parser.add_argument("--ratio", action="append", default=[], metavar="NAME=N", help="e.g. model=1.25")
    parser.add_argument("--side", choices=("sell", "cost"), help="(default: sell)")
    parser.add_argument("--provider", help="cost of this provider only")
    parser.add_argument("--channel", help="cost of this channel only; goes before its provider's")
    parser.add_argument("--group", help="sale price of this customer group only")
    parser.add_argument("--currency", help="ISO 4217 (default: USD)")
    parser.add_argument("--from", dest="valid_from", help="ISO 8601 (default: now)")
    parser.add_argument("--to", dest="valid_to", help="ISO 8601 (default: no end)")
    parser.add_argument("--quantum", help="round to this many n$ (default: 1)")
    parser.add_argument("--minimum", help="least charge above zero, n$ (default: 0)")
    parser.add_argument("--free", action="store_true", help="charge nothing, on purpose")
    parser.add_argument("--source", help="who says so (default: manual)")


def _document(options: argparse.Namespace) -> dict[str, Any]:
    document = _read_file(options.file) if options.file else {}
    rates = {meter: value for meter in METERS if (value := getattr(options, f"rate_{meter}"))}
    rates |= dict(_pair(text, "--rate") for text in options.rate)
    ratios = dict(_pair(text, "--ratio") for text in options.ratio)
    if rates:
        document["rates"] = {**document.get("rates", {}), **rates}
    if ratios:
        document["ratios"] = {**document.get("ratios", {}), **ratios}
    for name in publish.VALUES:
        if getattr(options, name) is not None:
            document[name] = getattr(options, name)
    if options.free:
        document["free"] = True
    return document


def _read_file(path: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        document = json.loads(text, parse_float=Decimal)
    except (OSError, ValueError) as error:
        raise CommandError(f"--file: {path} cannot be read as JSON: {error}") from None
    if not isinstance(document, dict):
        raise CommandError(f"--file: {path} holds no object; write one price document")
    return document


def _pair(text: str, option: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name or not value:
        raise CommandError(f"{option}: {text!r} is not NAME=VALUE")
    return name, value


async def _publish(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    try:
        supersede = not options.keep_others
        if options.draft is not None:
            return await publish.publish_draft(connection, options.draft, supersede=supersede)
        return await publish.publish_document(connection, _document(options), supersede=supersede)
    except FieldError as error:
        raise CommandError(str(error)) from None


async def _draft(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    try:
        return await publish.write_draft(connection, _document(options))
    except FieldError as error:
        raise CommandError(str(error)) from None


async def _list(connection: AsyncConnection[Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    status = "draft" if options.drafts else "published"
    versions = await store.list_versions(connection, model=options.model, status=status)
    return [publish.shown(version) for version in versions]


async def _show(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    try:
        return await publish.show(connection, options.version)
    except FieldError as error:
        raise CommandError(str(error)) from None


async def _end(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    try:
        if not await store.end_version(connection, options.version, publish.moment(options.at, "--at")):
            raise CommandError(f"there is no published version {options.version}; `price list` shows them")
        return await publish.show(connection, options.version)
    except FieldError as error:
        raise CommandError(str(error)) from None


async def _group(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    try:
        return await publish.set_group(
            connection, options.group, options.using, options.multiplier, options.source
        )
    except FieldError as error:
        raise CommandError(str(error)) from None


async def _fx(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    try:
        return await publish.set_fx(connection, options.currency, options.rate, options.source)
    except FieldError as error:
        raise CommandError(str(error)) from None


async def _groups(connection: AsyncConnection[Any], _: argparse.Namespace) -> list[dict[str, Any]]:
    return await store.list_multipliers(connection)


async def _rates(connection: AsyncConnection[Any], _: argparse.Namespace) -> list[dict[str, Any]]:
    return await store.list_fx(connection)
