"""What an author writes as a price (rates or ratios) and the rows that it compiles to.

Price style: {"rates": {"in_text": "2.50/1M", "out_text": "10/1M"}}; a rate may also be {"fallback":
"in_text"}. Ratio style: {"ratios": {"model": "1.25", "completion": "4", "cache_read": "0.5", ...}} where a
model ratio of r prices input at $2*r for 1M tokens, and every other ratio is relative to the input price; or
{"ratios": {"call": "0.04"}}: dollars for a call.
Both styles may add "tools": {"web_search": "10/1K"}, and "tiers": a list of tables with "above" (prompt
tokens) or "service_tier" of their own. Writing both styles at once is a Conflict.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import orjson

from relay.pricing.charge import Row
from relay.pricing.errors import Conflict, FieldError
from relay.pricing.meter_names import check_meter
from relay.pricing.units import MILLION, NANO, decimal, decimal_text, rate, rate_text

RATIO_UNIT = 2 * NANO  # a model ratio of 1 is $2 for 1M tokens

# ratio -> (meter, the ratio that it multiplies; None: the model ratio itself)
RATIOS: dict[str, tuple[str, str | None]] = {
    "completion": ("out_text", None),
    "cache_read": ("cache_read", None),
    "cache_write": ("cache_write_5m", None),
    "cache_write_1h": ("cache_write_1h", None),
    "image": ("in_image", None),
    "audio": ("in_audio", None),
    "audio_completion": ("out_audio", "audio"),
    "image_completion": ("out_image", None),
}


def compile_price(document: Mapping[str, Any], *, exact: bool = True) -> tuple[str, list[Row]]:
    """The style and the rows of a price as typed. Raises FieldError, Conflict.

    ``exact``: rows must be whole nano-currency for 1M units, as the database keeps them.
    """
    rates, ratios = document.get("rates"), document.get("ratios")
    if rates is not None and ratios is not None:
        raise Conflict("rates", "the model is priced in ratios too", "send either rates or ratios")
    if rates is None and ratios is None:
        raise FieldError("rates", "neither rates nor ratios are given", 'write e.g. {"in_text": "2.50/1M"}')
    style = "price" if rates is not None else "ratio"
    rows = _table(document, "")
    for number, tier in enumerate(_mapping_list(document.get("tiers"), "tiers")):
        rows = _with_tier(rows, tier, f"tiers.{number}")
    if not rows:
        raise FieldError(style + "s", "no meter is priced", 'write e.g. {"in_text": "2.50/1M"}')
    if exact:
        rows = [_whole(row) for row in rows]
    return style, rows


def _table(document: Mapping[str, Any], prefix: str) -> list[Row]:
    rates, ratios = document.get("rates"), document.get("ratios")
    if rates is not None and ratios is not None:
        raise Conflict(prefix + "rates", "both rates and ratios are given", "send either rates or ratios")
    rows = _from_ratios(ratios, prefix) if ratios is not None else _from_rates(rates, prefix + "rates")
    tools = _mapping(document.get("tools") or {}, prefix + "tools")
    for name, value in tools.items():
        meter = check_meter(name if name.startswith("tool:") else f"tool:{name}", f"{prefix}tools.{name}")
        rows.append(Row(meter, rate(value, f"{prefix}tools.{name}")))
    return rows


def _from_rates(rates: Any, field: str) -> list[Row]:
    rows = []
    for meter, value in _mapping(rates or {}, field).items():
        where = f"{field}.{meter}"
        check_meter(meter, where)
        if isinstance(value, Mapping) and "fallback" in value:
            if set(value) != {"fallback"}:
                raise FieldError(where, "it has a price and a fallback", "give one of them")
            rows.append(Row(meter, None, check_meter(str(value["fallback"]), f"{where}.fallback")))
        else:
            rows.append(Row(meter, rate(value, where)))
    return rows


def _from_ratios(ratios: Any, prefix: str) -> list[Row]:
    field = prefix + "ratios"
    given = {name: decimal(value, f"{field}.{name}") for name, value in _mapping(ratios, field).items()}
    unknown = set(given) - set(RATIOS) - {"model", "call"}
    if unknown:
        name = min(unknown)
        raise FieldError(f"{field}.{name}", "it is not a ratio", f"use model, call, {', '.join(RATIOS)}")
    if "call" in given and len(given) > 1:
        raise Conflict(f"{field}.call", "a fixed price a call stands beside ratios", "give one of them")
    if "call" in given:
        return [Row("call", given["call"] * NANO * MILLION)]
    if "model" not in given:
        raise FieldError(f"{field}.model", "it is missing", 'write e.g. {"model": "1.25"}')
    base = given["model"] * RATIO_UNIT
    given.setdefault("completion", Fraction(1))
    if "cache_write" in given:
        given.setdefault("cache_write_1h", given["cache_write"] * Fraction("1.6"))
    rows = [Row("in_text", base)]
    for name, (meter, over) in RATIOS.items():
        if name in given:
            rows.append(Row(meter, base * given[name] * (given.get(over, Fraction(1)) if over else 1)))
    return rows


def _with_tier(rows: list[Row], tier: Mapping[str, Any], field: str) -> list[Row]:
    """Add a tier: a service tier beside the rows so far, or a prompt length above which others hold."""
    added = _table(tier, field + ".")
    service = str(tier.get("service_tier") or "")
    above = _length(tier, field)
    if above is None:
        if not service:
            raise FieldError(field, "nothing says when it holds", 'add "above": 200000 or "service_tier"')
        return rows + [replace(row, service_tier=service) for row in added]
    start = above + 1
    kept = []
    for row in rows:
        open_ended = row.service_tier == service and row.context_to is None
        if open_ended and row.context_from >= start:
            raise FieldError(
                f"{field}.above", "tiers are not in ascending order", "sort them by prompt length"
            )
        replaced = open_ended and any(new.meter == row.meter for new in added)
        kept.append(replace(row, context_to=start) if replaced else row)
    return kept + [replace(row, service_tier=service, context_from=start) for row in added]


def _length(tier: Mapping[str, Any], field: str) -> int | None:
    for name, shift in (("above", 0), ("over", 0), ("from", -1), ("min", -1), ("context_from", -1)):
        if name in tier:
            value = decimal(tier[name], f"{field}.{name}")
            if value.denominator != 1 or value + shift < 0:
                raise FieldError(f"{field}.{name}", "it is not a count of tokens", "write e.g. 200000")
            return int(value) + shift
    return None


def _whole(row: Row) -> Row:
    if row.unit_price is None:
        return row
    price = Fraction(row.unit_price)
    if price.denominator != 1:
        raise FieldError(
            f"rates.{row.meter}",
            f"{decimal_text(price / NANO)}/1M is finer than a nano-dollar for 1M units",
            "write a price, or ratios whose products have, at most nine decimals for 1M units",
        )
    if price > 2**63 - 1:
        raise FieldError(f"rates.{row.meter}", "it is above $9.2 billion for 1M units", "write a lower price")
    return replace(row, unit_price=int(price))


def _mapping(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FieldError(field, "it is not an object", 'write e.g. {"in_text": "2.50/1M"}')
    return value


def _mapping_list(value: Any, field: str) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise FieldError(field, "it is not a list", 'write e.g. [{"above": 200000, "rates": {...}}]')
    return [_mapping(item, f"{field}.{number}") for number, item in enumerate(value)]


def content_hash(document: Mapping[str, Any]) -> str:
    """SHA-256 of a price's content in canonical JSON: equal content, equal hash."""
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()


def price_view(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of the database as the price style: {"rates": {...}, "tiers": [...]}."""
    base: dict[str, Any] = {}
    tiers: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        price = row["unit_price"]
        value: Any = {"fallback": row["fallback"]} if price is None else _rate_shown(row["meter"], price)
        key = (row["service_tier"], row["context_from"])
        (base if key == ("", 0) else tiers.setdefault(key, {}))[row["meter"]] = value
    view: dict[str, Any] = {"rates": base}
    if tiers:
        view["tiers"] = [_tier_shown(key, rates) for key, rates in sorted(tiers.items())]
    return view


def _tier_shown(key: tuple[str, int], rates: dict[str, Any]) -> dict[str, Any]:
    service, start = key
    shown: dict[str, Any] = {"service_tier": service} if service else {}
    if start:
        shown["above"] = start - 1
    return {**shown, "rates": rates}


def _rate_shown(meter: str, unit_price: int) -> str:
    per = "1" if meter in ("image", "call") else "1K" if meter.startswith("tool:") or meter == "ms" else "1M"
    return rate_text(unit_price, per)


def ratio_view(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The same rows as ratios, exact; None when they have no finite decimal ratios (tiers, free input)."""
    table: dict[str, int] = {}
    for row in rows:
        if row["service_tier"] or row["context_from"] or row["context_to"] or row["unit_price"] is None:
            return None
        table[row["meter"]] = row["unit_price"]
    tools = {meter: _rate_shown(meter, price) for meter, price in table.items() if meter.startswith("tool:")}
    plain = {meter: Fraction(price) for meter, price in table.items() if meter not in tools}
    ratios = _as_ratios(plain)
    if ratios is None or any("/" in value for value in ratios.values()):
        return None
    return {"ratios": ratios, "tools": tools} if tools else {"ratios": ratios}


def _as_ratios(plain: dict[str, Fraction]) -> dict[str, str] | None:
    if set(plain) == {"call"}:
        return {"call": decimal_text(plain["call"] / NANO / MILLION)}
    base = plain.get("in_text")
    known = {meter for meter, _ in RATIOS.values()} | {"in_text"}
    if not base or set(plain) - known or "out_text" not in plain:
        return None
    ratios = {"model": decimal_text(base / RATIO_UNIT)}
    for name, (meter, over) in RATIOS.items():
        if meter in plain:
            divisor = plain.get(RATIOS[over][0], base) if over else base
            if not divisor:
                return None
            ratios[name] = decimal_text(plain[meter] / divisor)
    return ratios
