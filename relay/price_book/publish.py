"""Writing prices: a document as typed becomes a draft, a draft becomes a published version."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from psycopg import AsyncConnection, errors

from relay.price_book.load import load_catalog
from relay.pricing.catalog import Catalog
from relay.pricing.charge import Row
from relay.pricing.documents import compile_price, content_hash, price_view, ratio_view
from relay.pricing.errors import Conflict, FieldError
from relay.pricing.units import MAX_NANODOLLARS, decimal, decimal_text, fraction_text, rational
from relay.store import prices as store

Document = Mapping[str, Any]

# Fields of one value each; the price command has an option for each of them.
VALUES = (
    "model",
    "side",
    "provider",
    "channel",
    "group",
    "currency",
    "valid_from",
    "valid_to",
    "quantum",
    "minimum",
    "source",
)
_FIELDS = {*VALUES, "free", "rates", "ratios", "tools", "tiers"}


def read_document(document: Document) -> tuple[dict[str, Any], list[Row]]:
    """The columns and rows of a price as typed. Raises FieldError, Conflict.

    Fields: model (a name or a pattern with *), rates or ratios, tools, tiers (see relay.pricing.documents),
    side (sell | cost), provider or channel (cost), group (sell), currency, valid_from, valid_to (ISO 8601),
    quantum and minimum (n$), free (true: charged nothing), source (who says so).
    """
    unknown = set(document) - _FIELDS
    if unknown:
        raise FieldError(min(unknown), "it is not a field of a price", f"use {', '.join(sorted(_FIELDS))}")
    free = _flag(document, "free")
    if free and any(document.get(name) for name in ("rates", "ratios", "tools", "tiers")):
        raise Conflict("free", "the model is said to be free and has a price", "send one of them")
    style, rows = ("price", []) if free else compile_price(document)
    columns = {
        "model": _text(document, "model"),
        "side": _choice(document, "side", ("sell", "cost")),
        "provider": _billed(document),
        "customer_group": _text(document, "group", ""),
        "currency": _currency(document),
        "valid_from": moment(document.get("valid_from"), "valid_from"),
        "valid_to": moment(document.get("valid_to"), "valid_to"),
        "free": free,
        "quantum": _amount(document, "quantum", 1),
        "minimum": _amount(document, "minimum", 0),
        "style": style,
        "source": _text(document, "source", "manual"),
    }
    _check_ends(columns)
    typed = {name: document[name] for name in ("rates", "ratios", "tools", "tiers") if document.get(name)}
    content = {
        name: value for name, value in columns.items() if name not in ("valid_from", "valid_to", "source")
    }
    shown = [(r.meter, r.unit_price, r.fallback, r.service_tier, r.context_from, r.context_to) for r in rows]
    return {**columns, "typed": typed, "hash": content_hash({**content, "rows": shown})}, rows


def _check_ends(columns: Mapping[str, Any]) -> None:
    start, end = columns["valid_from"], columns["valid_to"]
    if end is not None and end <= (start or datetime.now(UTC)):
        raise FieldError("valid_to", "it is not after valid_from", "write a later time or leave it out")
    if columns["side"] == "cost" and columns["customer_group"]:
        raise FieldError("group", "a cost has no customer group", "leave it out or write side sell")
    if columns["side"] == "sell" and columns["provider"]:
        raise FieldError(
            "provider", "a sale price holds for every provider", "leave it out or write side cost"
        )


def _text(document: Document, name: str, default: str | None = None) -> str:
    value = document.get(name, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise FieldError(name, "it is missing or not text", f'write "{name}": "..."')
    if len(value) > 200:
        raise FieldError(name, "it is longer than 200 characters", "write a shorter one")
    return value.strip()


def _billed(document: Document) -> str:
    """Whose price it is: a provider's, or a channel's, which goes before its provider's."""
    provider, channel = _text(document, "provider", ""), _text(document, "channel", "")
    if provider and channel:
        raise Conflict("channel", "a provider is named too", "write the provider or one of its channels")
    return provider or channel


def _choice(document: Document, name: str, allowed: Sequence[str]) -> str:
    value = document.get(name, allowed[0])
    if value not in allowed:
        raise FieldError(name, f"{value!r} is not known", f"use {' or '.join(allowed)}")
    return str(value)


def _flag(document: Document, name: str) -> bool:
    value = document.get(name, False)
    if not isinstance(value, bool):
        raise FieldError(name, f"{value!r} is neither true nor false", "write true or false")
    return value


def _currency(document: Document) -> str:
    value = document.get("currency", "USD")
    if not isinstance(value, str) or len(value) != 3 or not value.isascii() or not value.isupper():
        raise FieldError("currency", f"{value!r} is not a currency", 'write its ISO 4217 code, e.g. "USD"')
    return value


def _amount(document: Document, name: str, default: int) -> int:
    value = decimal(document.get(name, default), name)
    if value.denominator != 1 or not default <= value <= MAX_NANODOLLARS:
        raise FieldError(name, "it is not a whole number of nano-dollars", f"write {default} or more")
    return int(value)


def moment(value: Any, field: str) -> datetime | None:
    """An aware time from ISO 8601 text; None stays None. Raises FieldError."""
    if value is None or value == "":
        return None
    try:
        parsed = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise FieldError(field, f"{value!r} is not ISO 8601", "write e.g. 2030-01-31T00:00:00Z") from None
    if parsed.tzinfo is None:
        raise FieldError(field, f"{value!r} has no offset", "append Z for UTC")
    return parsed.astimezone(UTC)


async def write_draft(connection: AsyncConnection[Any], document: Document) -> dict[str, Any]:
    """Save a draft; it holds for nobody until it is published."""
    columns, rows = read_document(document)
    await _check_currency(connection, columns["currency"])
    draft = await store.insert_version(connection, columns, [asdict(row) for row in rows])
    return await show(connection, draft)


async def _check_currency(connection: AsyncConnection[Any], currency: str) -> None:
    if currency != "USD":
        catalog: Catalog = await load_catalog(connection, datetime.now(UTC))
        if all(rate.currency != currency for rate in catalog.fx):
            raise FieldError(
                "currency", f"{currency} has no exchange rate", f"`relay price fx {currency} RATE`"
            )


async def publish_document(
    connection: AsyncConnection[Any], document: Document, *, supersede: bool = True
) -> dict[str, Any]:
    """Draft and publish in one step. A price that holds already with the same content is left as it is."""
    columns, _ = read_document(document)
    for version in await store.list_versions(
        connection, model=columns["model"], status="published", at=datetime.now(UTC)
    ):
        same = version["hash"] == columns["hash"] and version["valid_to"] == columns["valid_to"]
        if same and columns["valid_from"] is None:
            return {**shown(version), "unchanged": True}
    async with connection.transaction():
        draft = await write_draft(connection, document)
        return await publish_draft(connection, draft["id"], supersede=supersede)


async def publish_draft(
    connection: AsyncConnection[Any], version_id: int, *, supersede: bool = True
) -> dict[str, Any]:
    """Publish; raises Conflict when another published version of the same price overlaps."""
    try:
        version = await store.publish(connection, version_id, supersede=supersede)
    except errors.ExclusionViolation as error:
        raise Conflict(
            "valid_from",
            f"another published version overlaps ({error.diag.message_detail})",
            "end that version first (`relay price end ID`) or choose other dates",
        ) from None
    if version is None:
        raise FieldError("id", f"there is no draft {version_id}", "`relay price list --drafts` shows them")
    return await show(connection, version_id)


async def show(connection: AsyncConnection[Any], version_id: int) -> dict[str, Any]:
    """One version with both views. Raises FieldError when there is none."""
    versions = await store.list_versions(connection, version_id=version_id)
    if not versions:
        raise FieldError("id", f"there is no price version {version_id}", "`relay price list` shows them")
    return shown(versions[0])


def shown(version: Mapping[str, Any]) -> dict[str, Any]:
    """A version for people: its columns, the price view, and the ratio view where there is one."""
    rows = version["rows"]
    view = {name: value for name, value in version.items() if name != "rows"}
    return {**view, "price_view": price_view(rows), "ratio_view": ratio_view(rows)}


async def set_group(
    connection: AsyncConnection[Any], group: Any, using: Any, multiplier: Any, source: str
) -> dict[str, Any]:
    """Replace from now on what a group pays, in general or (``using``) on another group's channels."""
    if not isinstance(group, str) or not group.strip() or not isinstance(using, str):
        raise FieldError("group", "it is missing or not text", 'write e.g. "vip"')
    value = decimal_text(decimal(multiplier, "multiplier"))
    made = await store.set_multiplier(
        connection, group=group, for_group=using, multiplier=value, source=source
    )
    return {"id": made, "group": group, "using": using, "multiplier": value}


async def set_fx(connection: AsyncConnection[Any], currency: Any, rate: Any, source: str) -> dict[str, Any]:
    """Replace from now on the US dollars for one unit of a currency (a decimal or a fraction)."""
    if _currency({"currency": currency}) == "USD":
        raise FieldError("currency", "USD is the unit of account", 'write a foreign one, e.g. "CNY"')
    value = rational(rate, "rate")
    if not value or max(value.numerator, value.denominator) >= 2**63:
        raise FieldError("rate", "it is zero or too fine", 'write e.g. "10/73"')
    made = await store.set_fx(connection, currency=currency, value=value, source=source)
    return {"id": made, "currency": currency, "rate": fraction_text(value)}
