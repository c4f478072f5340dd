"""A price frozen at admission: what a call may cost at most, what it costs, and the proof of it."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import orjson

from relay.pricing.bound import Bound, MaxUsage, Side, beyond_quotas, quotas_of
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


class Dearest(dict[tuple[str, ...], str]):
    """Which of several meters costs most by a table; of equal ones the first."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._table = table

    def __missing__(self, possible: tuple[str, ...]) -> str:
        if len(possible) == 1:
            return possible[0]  # not remembered: it may be any tool
        meter = self[possible] = max(possible, key=lambda meter: _unit_price(self._table, meter))
        return meter


class Selection(NamedTuple):
    """The rows of a tariff that hold for a prompt length and a service tier. ``evidence``: their JSON."""

    table: Table
    evidence: str
    dearest: Dearest


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
        self._selections: dict[tuple[int, str], Selection] = {}
        self.whole_call = any(row.meter == "call" for row in version.rows)

    def charge(self, meters: Mapping[str, int], service_tier: str = "") -> Charge:
        """The exact charge of disjoint meters; a price per call counts the call itself."""
        return compute(self.table(meters, service_tier), self.counted(meters), self.terms)

    def counted(self, meters: Mapping[str, int]) -> Mapping[str, int]:
        """The meters with the call itself, where the price has a row for it."""
        return {**meters, "call": 1} if self.whole_call and "call" not in meters else meters

    def table(self, meters: Mapping[str, int], service_tier: str = "") -> Table:
        """The rows that hold for this prompt length and service tier."""
        return self._selected(meters, service_tier).table

    def evidence(self, meters: Mapping[str, int], service_tier: str = "") -> str:
        """JSON of everything by value that a charge of these meters was computed from, but the meters."""
        return self._selected(meters, service_tier).evidence

    def selections(self, length: int, service_tier: str = "") -> list[Selection]:
        """Those of every prompt length up to ``length``: a bound must cover them all."""
        starts = [0, *(edge for edge in self._edges if edge <= length)]
        return [self._selected({"in_text": start}, service_tier) for start in starts]

    def _selected(self, meters: Mapping[str, int], service_tier: str) -> Selection:
        length = context_length(meters) if self._edges else 0
        key = (bisect_right(self._edges, length), service_tier)
        known = self._selections.get(key)
        if known is None:
            found = select(self.version.rows, length, service_tier)
            table, evidence = resolve(found), orjson.dumps(self._describe(found)).decode()
            known = self._selections[key] = Selection(table, evidence, Dearest(table))
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
        sides = most.sides
        needed = [meters[0] for meters, quantity in sides if quantity]
        beyond = beyond_quotas(sides)
        amount = covered = 0
        for selection in self.tariff.selections(most.input_units, self.service_tier):
            self._check_priced(selection.table, needed)
            amount = max(amount, self._most(selection, sides))
            covered = max(covered, self._most(selection, beyond))
        return Bound(amount, covered, quotas_of(sides), most)

    def _most(self, selection: Selection, sides: Sequence[Side]) -> int:
        """n$ when each quantity falls to the dearest of its meters."""
        dearest = selection.dearest
        meters = self.tariff.counted({dearest[possible]: quantity for possible, quantity in sides})
        return compute(selection.table, meters, self.tariff.terms).amount if meters else 0

    def _check_priced(self, table: Table, meters: Iterable[str]) -> None:
        if self.tariff.whole_call:
            return
        for meter in meters:
            if meter not in table:
                raise Unpriced(self.model, meter)


def _unit_price(table: Table, meter: str) -> Fraction | int:
    row = table.get(meter)
    return row.unit_price if row and row.unit_price is not None else -1
