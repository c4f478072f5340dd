"""From meters and prices to a charge: one exact sum, one rounding (see ``compute``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Any, NamedTuple

from relay.pricing.meter_names import DEFAULT_FALLBACK, METERS, context_length
from relay.pricing.units import MILLION, round_half_up


@dataclass(frozen=True, slots=True)
class Row:
    """The price of one meter: nano-currency for 1,000,000 units, or None to be priced as ``fallback``.

    The row holds where ``context_from <= prompt length < context_to`` (all input meters together, None: no
    end) and for the given service tier ('' is the standard one, also used by tiers without own rows).
    """

    meter: str
    unit_price: Fraction | int | None
    fallback: str | None = None
    service_tier: str = ""
    context_from: int = 0
    context_to: int | None = None


class Line(NamedTuple):
    """One priced meter of a charge: quantity times unit_price (of the meter ``priced_as``)."""

    meter: str
    quantity: int
    priced_as: str
    unit_price: Fraction | int


class Charge(NamedTuple):
    """The result. ``amount`` and ``exact`` are n$; ``exact`` is the sum before rounding and minimum."""

    amount: int
    numerator: int
    denominator: int
    lines: tuple[Line, ...]
    unpriced: dict[str, int]

    @property
    def exact(self) -> Fraction:
        return Fraction(self.numerator, self.denominator)


@dataclass(frozen=True, slots=True)
class Terms:
    """What turns a sum of rows into n$: multipliers and fx as one factor, and how to round.

    ``free``: the model is free because somebody said so; no meter of it needs a price.
    """

    numerator: int = 1
    denominator: int = 1
    quantum: int = 1
    minimum: int = 0
    free: bool = False

    @classmethod
    def of(
        cls,
        multipliers: Sequence[Fraction],
        fx: Fraction = Fraction(1),
        quantum: int = 1,
        minimum: int = 0,
        free: bool = False,
    ) -> "Terms":
        factor = fx
        for multiplier in multipliers:
            factor *= multiplier
        return cls(factor.numerator, factor.denominator, quantum, minimum, free)


Table = dict[str, Row]


def select(rows: Sequence[Row], length: int, service_tier: str = "") -> Table:
    """The rows by meter that hold for a prompt length and a service tier; they price the whole call."""
    found: Table = {}
    for tier in ("", service_tier) if service_tier else ("",):
        for row in rows:
            ends = row.context_to is not None and row.context_to <= length
            if row.service_tier == tier and row.context_from <= length and not ends:
                found[row.meter] = row
    return found


def resolve(found: Table) -> Table:
    """The row that prices each meter: its own, or its fallback's, and so on; without any it is absent."""
    priced = {meter: _priced_row(found, meter) for meter in {*found, *METERS}}
    return {meter: row for meter, row in priced.items() if row is not None}


def _priced_row(found: Table, meter: str) -> Row | None:
    seen = set()
    while meter not in seen:
        seen.add(meter)
        row = found.get(meter)
        if row is not None and row.unit_price is not None:
            return row
        following = row.fallback if row is not None else DEFAULT_FALLBACK.get(meter)
        if following is None:
            return None
        meter = following
    return None


def table_for(rows: Sequence[Row], meters: Mapping[str, int], service_tier: str = "") -> Table:
    """What prices each meter of a call with these meters."""
    return resolve(select(rows, context_length(meters), service_tier))


def compute(table: Table, meters: Mapping[str, int], terms: Terms) -> Charge:
    """Charge = ROUND_HALF_UP(sum of quantity * unit price * factor / 10**6) to quantum, then the minimum.

    The minimum holds where the exact sum is above zero. A meter without a price or fallback adds nothing and
    is listed in ``unpriced``, unless a ``call`` row prices the whole call or the model is free.
    """
    total: Fraction | int = 0
    lines = []
    unpriced = {}
    included = "call" in table or terms.free
    for meter, quantity in meters.items():
        if quantity == 0:
            continue
        row = table.get(meter)
        if row is None or row.unit_price is None:
            if not included:
                unpriced[meter] = quantity
            continue
        total += quantity * row.unit_price
        lines.append(Line(meter, quantity, row.meter, row.unit_price))
    numerator = total.numerator * terms.numerator
    denominator = total.denominator * terms.denominator * MILLION
    common = gcd(numerator, denominator)
    numerator, denominator = numerator // common, denominator // common
    return Charge(rounded(numerator, denominator, terms), numerator, denominator, tuple(lines), unpriced)


def rounded(numerator: int, denominator: int, terms: Terms) -> int:
    """The one rounding, then the minimum where the exact sum is above zero."""
    if numerator == 0:
        return 0
    return max(round_half_up(numerator, denominator, terms.quantum), terms.minimum)


def line_json(line: Line) -> dict[str, Any]:
    """A line as the usage record and a quote show it."""
    price = line.unit_price
    shown = price if isinstance(price, int) else f"{price.numerator}/{price.denominator}"
    return {"meter": line.meter, "quantity": line.quantity, "priced_as": line.priced_as, "unit_price": shown}
