"""A price frozen at admission: what a call may cost at most, what it costs, and the proof of it."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any, Protocol

import orjson

from relay.pricing.bound import Bound, MaxUsage, Side
from relay.pricing.charge import Charge, Row, Table, Terms, compute, resolve, select
from relay.pricing.errors import Unpriced
from relay.pricing.meter_names import context_length
from relay.pricing.units import decimal_text, fraction_text


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """A published price. ``free``: charged nothing, and said so; quantum and minimum in n$."""

    id: int
    model: str
    side: str
    provider: str
    customer_group: str
    currency: str
    valid_from: datetime
    valid_to: datetime | None
    quantum: int
    minimum: int
    free: bool
    rows: tuple[Row, ...]

    def valid_at(self, at: datetime) -> bool:
        return self.valid_from <= at and (self.valid_to is None or at < self.valid_to)


@dataclass(frozen=True, slots=True)
class Multiplier:
    """A factor on the sum and where it comes from, e.g. Multiplier("group vip", Fraction("0.9"))."""

    name: str
    value: Fraction


@dataclass(frozen=True, slots=True)
class Cost:
    """The provider's charge in n$, exactly and rounded, and the JSON of the price that it follows."""

    amount: int
    exact: Fraction
    evidence: str


class Tariff:
    """A price version with the multipliers and exchange rate of one customer at one time."""

    def __init__(
        self,
        version: PriceVersion,
        multipliers: Iterable[Multiplier] = (),
        fx: Fraction = Fraction(1),
    ) -> None:
        self.version = version
        self.multipliers = tuple(multipliers)
        self.fx = fx
        factors = [multiplier.value for multiplier in self.multipliers]
        self.terms = Terms.of(factors, fx, version.quantum, version.minimum, version.free)
        edges = {row.context_from for row in version.rows} | {row.context_to or 0 for row in version.rows}
        self._edges = sorted(edges - {0})
        self._tables: dict[tuple[int, str], tuple[Table, str]] = {}
        self.whole_call = any(row.meter == "call" for row in version.rows)

    def charge(self, meters: Mapping[str, int], service_tier: str = "") -> Charge:
        """The exact charge of disjoint meters; a price per call counts the call itself."""
        return compute(self.table(meters, service_tier), self.counted(meters), self.terms)

    def counted(self, meters: Mapping[str, int]) -> Mapping[str, int]:
        """The meters with the call itself, where the price has a row for it."""
        return {**meters, "call": 1} if self.whole_call and "call" not in meters else meters

    def table(self, meters: Mapping[str, int], service_tier: str = "") -> Table:
        """The rows that hold for this prompt length and service tier."""
        return self._selected(meters, service_tier)[0]

    def evidence(self, meters: Mapping[str, int], service_tier: str = "") -> str:
        """JSON of everything by value that a charge of these meters was computed from, but the meters."""
        return self._selected(meters, service_tier)[1]

    def longest_tables(self, length: int, service_tier: str = "") -> list[Table]:
        """The tables of every prompt length up to ``length``: a bound must cover them all."""
        starts = [0, *(edge for edge in self._edges if edge <= length)]
        return [self.table({"in_text": start}, service_tier) for start in starts]

    def _selected(self, meters: Mapping[str, int], service_tier: str) -> tuple[Table, str]:
        length = context_length(meters) if self._edges else 0
        key = (bisect_right(self._edges, length), service_tier)
        known = self._tables.get(key)
        if known is None:
            found = select(self.version.rows, length, service_tier)
            known = self._tables[key] = (resolve(found), orjson.dumps(self._describe(found)).decode())
        return known

    def _describe(self, found: Table) -> dict[str, Any]:
        version = self.version
        return {
            "version": version.id,
            "model": version.model,
            "side": version.side,
            "currency": version.currency,
            "rows": {meter: _row_json(row) for meter, row in found.items()},
            "multipliers": [{"name": m.name, "value": decimal_text(m.value)} for m in self.multipliers],
            "fx": fraction_text(self.fx),
            "quantum": version.quantum,
            "minimum": version.minimum,
            "free": version.free,
        }


def _row_json(row: Row) -> dict[str, Any]:
    price = row.unit_price
    exact = price if price is None or isinstance(price, int) else fraction_text(price)
    return {"unit_price": exact, "fallback": row.fallback}


class CostBook(Protocol):
    """Where an admission finds the provider's price, frozen like its own."""

    def cost_tariff(self, model: str, provider: str, at: datetime, channel: str = "") -> Tariff | None: ...


@dataclass(frozen=True, slots=True)
class Admission:
    """The sell price of one call, frozen. ``at``: the moment of admission (aware)."""

    model: str
    customer_group: str
    at: datetime
    tariff: Tariff
    costs: CostBook | None = None
    service_tier: str = ""

    @property
    def free(self) -> bool:
        """Said to be free: a hold is for nothing, the record is still kept."""
        return self.tariff.version.free

    def charge(self, meters: Mapping[str, int]) -> Charge:
        """What these disjoint meters cost by the frozen price, before typed quotas and plan periods."""
        return self.tariff.charge(meters, self.service_tier)

    def cost(self, provider: str, meters: Mapping[str, int], channel: str = "") -> "Cost | None":
        """What the provider takes for them, or None where no cost price is published.

        A price of the channel goes before one of the provider, and that before one for all.
        """
        if self.costs is None:
            return None
        tariff = self.costs.cost_tariff(self.model, provider, self.at, channel)
        if tariff is None:
            return None
        charge = tariff.charge(meters, self.service_tier)
        return Cost(charge.amount, charge.exact, tariff.evidence(meters, self.service_tier))

    def has_price(self, meter: str) -> bool:
        """Whether it is known what a unit of this meter costs: by a price of its own or a fallback, in a call
        without prompt; or since calls are free, or cost the same whatever they use."""
        return self.free or self.tariff.whole_call or meter in self.tariff.table({}, self.service_tier)

    def has_cost(self, provider: str, channel: str) -> bool:
        """Whether it is known what the provider takes for a call by this channel."""
        return self.costs is not None and (
            self.costs.cost_tariff(self.model, provider, self.at, channel) is not None
        )

    def bound(self, most: MaxUsage) -> Bound:
        """The most that a call can cost.

        The whole prompt falls to its dearest meter, the maximum output too, at the dearest prompt length.
        Raises Unpriced when a meter that the call will use has neither a price nor a fallback.
        """
        if self.free:
            return Bound(0, most=most)
        needed = [meters[0] for meters, quantity in most.sides if quantity]
        beyond = most.sides_beyond_quotas
        amount = covered = 0
        for table in self.tariff.longest_tables(most.input_units, self.service_tier):
            self._check_priced(table, needed)
            amount = max(amount, self._dearest(table, most.sides))
            covered = max(covered, self._dearest(table, beyond))
        return Bound(amount, covered, most.quotas, most)

    def _dearest(self, table: Table, sides: Sequence[Side]) -> int:
        """n$ when each quantity falls to the dearest of its meters."""
        meters = {
            max(possible, key=lambda meter: _unit_price(table, meter)): quantity
            for possible, quantity in sides
        }
        return compute(table, self.tariff.counted(meters), self.tariff.terms).amount

    def _check_priced(self, table: Table, meters: Iterable[str]) -> None:
        if self.tariff.whole_call:
            return
        for meter in meters:
            if meter not in table:
                raise Unpriced(self.model, meter)


def _unit_price(table: Table, meter: str) -> Fraction | int:
    row = table.get(meter)
    return row.unit_price if row and row.unit_price is not None else -1
