"""``python -m relay quote``."""

import argparse
import json
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection

from relay.commands.command import CommandError, Subparsers, leaf, run
from relay.price_book.load import load_catalog
from relay.price_book.publish import moment
from relay.pricing.errors import FieldError, Unpriced
from relay.pricing.quote import derivation, quote_entry, read_meters
from relay.settings import Settings

_FILE_HELP = """\
files:
  FILE is {"vectors": [ENTRY, ...]} or a list of entries. An ENTRY has
    name
    rates       {METER: "2.50/1M"}, a price for a count of units (1M, 1K, 1), or
    ratios      {"model": "1.25", "completion": "4"} ($2 for 1M tokens times the ratio)
    tools       {"web_search": "10/1K"}, the same as rates of tool:web_search
    tiers       [{"above": 200000, "rates": {...}}]: prompts longer than that, for the whole call
    meters      {METER: quantity}; or, where there are none,
    raw_usage   {FORMAT: the provider's usage}, FORMAT one of openai, openai_responses (or responses),
                anthropic, gemini, embeddings, images, audio
    multipliers ["0.9", "6/5"], exact decimals or fractions
    fx          "10/73" or "0.137": dollars for one unit of the rates' currency
    quantum     round half up to this many n$ (default 1)
    min_charge  n$, where the exact sum is above zero
  A meter without a rate is charged as the one that it specialises (cache_read, in_image, in_audio as
  in_text; cache_write_1h as cache_write_5m, that as in_text; out_audio, out_image as out_text), else it is
  an error. A rate of "call" prices the whole call: tokens without a rate are then included in it.
  Each entry becomes one line of JSON: name, meters, exact (n$ before rounding), charge_nanodollars; or
  name and error. No database is needed.

exit status: 0 every entry has a charge; 1 an entry, or the whole file, has an error (the others are still
  printed); 2 the command was misused.

examples:
  python -m relay quote --file tests/unit/pricing/pricing-vectors.json
  python -m relay quote --model gpt-4o --group vip --meters '{"in_text": 1000, "out_text": 500}'
  python -m relay quote --model gpt-4o --raw-usage '{"openai": {"prompt_tokens": 9, "completion_tokens": 5}}'
"""


def register(subparsers: Subparsers) -> None:
    """Add ``quote``."""
    parser = leaf(
        subparsers,
        "quote",
        _quote,
        "quote",
        about="Say what a call would cost, and how that follows from the price",
    )
    parser.epilog = _FILE_HELP
    parser.add_argument("--file", help="price each entry of a file, - for standard input")
    parser.add_argument("--model", help="quote by the published price of this model")
    parser.add_argument("--group", default="default", help="customer group (default: %(default)s)")
    parser.add_argument("--using", default="", help="group whose channels it uses")
    parser.add_argument("--service-tier", default="", help="e.g. priority, flex")
    parser.add_argument("--at", help="ISO 8601 (default: now)")
    parser.add_argument("--meters", help='JSON, e.g. {"in_text": 1000}')
    parser.add_argument("--raw-usage", help='JSON, {"openai": {...}}')
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace, settings: Settings) -> int:
    if options.file:
        return _quote_file(options.file)
    if not options.model:
        print("relay: quote: give --file FILE, or --model with --meters or --raw-usage", file=sys.stderr)
        return 2
    return run(_quote, options, settings)


def _quote_file(path: str) -> int:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        document = json.loads(text, parse_float=Decimal)
    except (OSError, ValueError) as error:
        print(f"relay: --file: {path} cannot be read as JSON: {error}", file=sys.stderr)
        return 1
    entries = document.get("vectors") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        print(f'relay: --file: {path} has no list of entries; write {{"vectors": [...]}}', file=sys.stderr)
        return 1
    failed = False
    for entry in entries:
        result = quote_entry(entry)
        failed = failed or "error" in result
        print(json.dumps(result))
    return 1 if failed else 0


async def _quote(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    try:
        at = moment(options.at, "--at") or datetime.now(UTC)
        catalog = await load_catalog(connection, since=at)
        admission = catalog.admit(
            options.model,
            group=options.group,
            at=at,
            using_group=options.using,
            service_tier=options.service_tier,
        )
        entry = {
            "meters": _json(options.meters, "--meters"),
            "raw_usage": _json(options.raw_usage, "--raw-usage"),
        }
        return derivation(admission, read_meters(entry))
    except (FieldError, Unpriced) as error:
        raise CommandError(str(error)) from None


def _json(text: str | None, option: str) -> Any:
    try:
        return None if text is None else json.loads(text, parse_float=Decimal)
    except ValueError as error:
        raise CommandError(f"{option}: it is not JSON: {error}") from None
