"""What would this cost? Worked charges from a file without a database, and quotes by the published prices."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from relay.pricing.charge import Charge, Terms, compute, line_json, table_for
from relay.pricing.documents import compile_price
from relay.pricing.errors import FieldError
from relay.pricing.meter_names import check_meter
from relay.pricing.tariff import Admission, Multiplier, PriceVersion
from relay.pricing.units import MILLION, decimal, decimal_text, fraction_text, rational, usd_text
from relay.pricing.usage import ALIASES, FORMATS, normalise

Entry = Mapping[str, Any]

_PRICE = ("rates", "ratios", "tools", "tiers")
_TERMS = ("multipliers", "multiplier", "fx", "quantum", "min_charge", "minimum", "service_tier")
_USAGE = ("meters", "raw_usage", "usage", "format")
# Said for the reader, or known from elsewhere: they change no charge.
_SAID = [
    "name",
    "about",
    "note",
    "notes",
    "comment",
    "description",
    "source",
    "url",
    "why",
    "tags",
    "id",
    "model",
    "side",
    "provider",
    "vendor",
    "group",
    "currency",
    "at",
    "time",
    "charge_nanodollars",
    "exact",
    "expected",
    "expect",
]


def quote_entry(entry: Any) -> dict[str, Any]:
    """One entry of a file of worked charges: {"name", "meters", "exact", "charge_nanodollars"} or "error".

    An entry has rates or ratios (and tools, tiers: see relay.pricing.documents), meters or raw_usage
    ({format: usage}), and may have multipliers (decimals or fractions), fx (dollars for a unit of the
    currency), quantum and min_charge (n$), service_tier.
    """
    name = entry.get("name") if isinstance(entry, Mapping) else None
    try:
        if not isinstance(entry, Mapping):
            raise FieldError(
                "entry", "it is not an object", 'write {"name": ..., "rates": ..., "meters": ...}'
            )
        meters, charge = _work_out(entry)
    except FieldError as error:
        return {"name": name, "error": str(error)}
    return {
        "name": name,
        "meters": meters,
        "exact": fraction_text(charge.exact),
        "charge_nanodollars": charge.amount,
    }


def _work_out(entry: Entry) -> tuple[dict[str, int], Charge]:
    unknown = set(entry) - set(_PRICE) - set(_TERMS) - set(_USAGE) - set(_SAID)
    if unknown:
        raise FieldError(min(unknown), "it is not known here", f"use {', '.join(_PRICE + _TERMS + _USAGE)}")
    rows = compile_price({name: entry[name] for name in _PRICE if entry.get(name) is not None}, exact=False)[
        1
    ]
    meters = read_meters(entry)
    if any(row.meter == "call" for row in rows):
        meters.setdefault("call", 1)
    table = table_for(rows, meters, str(entry.get("service_tier") or ""))
    charge = compute(table, meters, read_terms(entry))
    if charge.unpriced:
        meter = min(charge.unpriced)
        raise FieldError(f"meters.{meter}", "it has neither a price nor a fallback", f"add rates.{meter}")
    return meters, charge


def read_terms(entry: Entry) -> Terms:
    """Multipliers, fx, quantum and minimum of an entry."""
    listed = entry.get("multipliers", [entry["multiplier"]] if "multiplier" in entry else [])
    if isinstance(listed, Mapping):
        listed = list(listed.values())
    if not isinstance(listed, list):
        raise FieldError("multipliers", "it is not a list", 'write e.g. ["0.9"]')
    multipliers = [rational(value, f"multipliers.{n}") for n, value in enumerate(listed)]
    fx = rational("1" if entry.get("fx") is None else entry["fx"], "fx")
    if not fx:
        raise FieldError("fx", "it is zero", "write dollars for one unit of the currency")
    minimum = entry.get("min_charge", entry.get("minimum"))
    quantum = _nano(entry.get("quantum"), "quantum", 1)
    return Terms.of(multipliers, fx, quantum, _nano(minimum, "min_charge", 0))


def _nano(value: Any, field: str, least: int) -> int:
    amount = decimal(least if value is None else value, field)
    if amount.denominator != 1 or amount < least:
        raise FieldError(
            field, f"{value!r} is not a whole number of n$ from {least}", f"write {least} or more"
        )
    return int(amount)


def read_meters(entry: Entry) -> dict[str, int]:
    """The disjoint meters of an entry: as they are, or normalised from the provider's usage."""
    if entry.get("meters") is not None:
        given = entry["meters"]
        if not isinstance(given, Mapping):
            raise FieldError("meters", "it is not an object", 'write e.g. {"in_text": 1000}')
        return {check_meter(m, f"meters.{m}"): _quantity(q, f"meters.{m}") for m, q in given.items()}
    raw = entry.get("raw_usage", entry.get("usage"))
    if raw is None:
        raise FieldError("meters", "neither meters nor raw_usage is given", 'write e.g. {"in_text": 1000}')
    if not isinstance(raw, Mapping):
        raise FieldError("raw_usage", "it is not an object", 'write {"openai": {...}}')
    if entry.get("format") is not None:
        return normalise(str(entry["format"]), raw)
    if isinstance(raw.get("format"), str) and isinstance(raw.get("usage"), Mapping):
        return normalise(raw["format"], raw["usage"])
    if len(raw) != 1 or next(iter(raw)) not in FORMATS.keys() | ALIASES.keys():
        raise FieldError(
            "raw_usage", "its format is not clear", f"write {{FORMAT: usage}}, {', '.join(FORMATS)}"
        )
    fmt, usage = next(iter(raw.items()))
    return normalise(fmt, usage)


def _quantity(value: Any, field: str) -> int:
    whole = decimal(value, field)
    if whole.denominator != 1:
        raise FieldError(field, f"{value!r} is not a count", "write a whole number from 0")
    return int(whole)


def derivation(admission: Admission, meters: Mapping[str, int]) -> dict[str, Any]:
    """A quote by a published price with everything that leads to its charge."""
    tariff = admission.tariff
    counted = dict(tariff.counted(meters))
    charge = admission.charge(counted)
    lines = [
        {**line_json(line), "exact": fraction_text(Fraction(line.quantity * line.unit_price, MILLION))}
        for line in charge.lines
    ]
    return {
        "model": admission.model,
        "group": admission.customer_group,
        "at": admission.at.isoformat(),
        "version": version_json(tariff.version),
        "meters": counted,
        "lines": lines,
        "multipliers": [multiplier_json(multiplier) for multiplier in tariff.multipliers],
        "fx": fraction_text(tariff.fx),
        "exact": fraction_text(charge.exact),
        "rounding": {
            "rule": "half up, once",
            "quantum": tariff.terms.quantum,
            "minimum": tariff.terms.minimum,
        },
        "unpriced": charge.unpriced,
        "charge_nanodollars": charge.amount,
        "charge_usd": usd_text(charge.amount),
    }


def version_json(version: PriceVersion) -> dict[str, Any]:
    """Which price it was."""
    return {
        "id": version.id,
        "model": version.model,
        "group": version.customer_group,
        "currency": version.currency,
        "valid_from": version.valid_from.isoformat(),
        "valid_to": version.valid_to.isoformat() if version.valid_to else None,
        "free": version.free,
    }


def multiplier_json(multiplier: Multiplier) -> dict[str, str]:
    """A multiplier and where it comes from."""
    return {"name": multiplier.name, "value": decimal_text(multiplier.value)}
