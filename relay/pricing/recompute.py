"""Each charge re-derived from its own record, years later or every night."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import orjson

from relay.pricing.charge import Charge, Row, Table, Terms, compute, resolve
from relay.pricing.errors import FieldError
from relay.pricing.settlement import cover, with_overage
from relay.pricing.units import rational
from relay.pricing.usage import normalise

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """What a record says (``found``) and what its own content leads to (``expected``)."""

    request_id: str
    item: str
    expected: Any
    found: Any


@lru_cache(maxsize=1024)
def _evidence(document: str) -> tuple[Table, Terms, str | None]:
    """Prices, terms and the usage format of a record's evidence; many records share one document."""
    said = orjson.loads(document)
    rows = {
        meter: Row(meter, _price(row["unit_price"]), row["fallback"]) for meter, row in said["rows"].items()
    }
    multipliers = [rational(multiplier["value"], multiplier["name"]) for multiplier in said["multipliers"]]
    fx = rational(said["fx"], "fx")
    terms = Terms.of(multipliers, fx, said["quantum"], said["minimum"], said["free"])
    return resolve(rows), terms, said.get("usage_format")


def _price(value: Any) -> Fraction | int | None:
    return value if value is None or isinstance(value, int) else rational(value, "unit_price")


def recompute(record: Record) -> Iterator[Difference]:
    """Everything in a usage record that does not follow from the rest of it."""
    request_id = str(record["request_id"])
    for item, expected, found in _claims(record):
        if expected != found:
            yield Difference(request_id, item, expected, found)


def _claims(record: Record) -> Iterator[tuple[str, Any, Any]]:
    if record["sell"] is None:  # released or swept: nothing was charged
        yield "charge", 0, record["charge"]
        return
    table, terms, usage_format = _evidence(record["sell"])
    meters: dict[str, int] = record["meters"]
    if usage_format is not None and record["raw_usage"] is not None:
        yield "meters", _meters(usage_format, record["raw_usage"], meters), meters
    used: dict[str, int] = record["quotas_used"] or {}
    rest, covered = cover(meters, used)
    yield "quotas_used", used, covered
    charge = compute(table, rest, terms)
    yield "exact", charge.exact, Fraction(int(record["exact_numerator"]), int(record["exact_denominator"]))
    yield "unpriced", charge.unpriced, record["unpriced"] or {}
    overage = Fraction(record["overage"] or "1")
    yield "charge", with_overage(charge.exact, record["plan_paid"], overage, terms), record["charge"]
    paid = sum((record["grants_used"] or {}).values()) + record["debt"]
    yield "grants_used and debt", record["charge"], paid
    if record["cost_side"] is not None:
        yield "cost", _cost(record["cost_side"], meters).amount, record["cost"]


def _meters(usage_format: str, raw: Mapping[str, Any], recorded: Mapping[str, int]) -> dict[str, int]:
    """The usage normalised again, with the call itself where it was counted."""
    try:
        meters = normalise(usage_format, raw)
    except FieldError as error:
        return {f"unreadable: {error}": 0}
    return meters | {"call": recorded["call"]} if "call" in recorded else meters


def _cost(document: str, meters: Mapping[str, int]) -> Charge:
    table, terms, _ = _evidence(document)
    counted = {**meters, "call": 1} if "call" in table and "call" not in meters else meters
    return compute(table, counted, terms)
