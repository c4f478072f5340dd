"""Which price holds: name patterns and their one order of precedence, groups, currencies.

Precedence, the same for sell and cost prices:

1. *The model's pattern with the most literal characters.* The full name has them all; ``o3-mini-*`` beats
   ``o3*``, which beats ``*``. A name with an effort suffix (see EFFORTS) is also a variant of the name
   without it, and matches that name's own price with its characters:
   ``o3-mini-high`` takes ``o3-mini-high``, else ``o3-mini-*``, else ``o3-mini``, else ``o3*``.
   Equal counts: the pattern that sorts first (so none depends on the order of writing).
2. A price for the customer's group before one for all groups.
3. For cost prices: one for the channel before one for its provider before one for all. Both are named in
   the version's ``provider``; no channel has the name of another's provider (``relay channel`` sees to it).
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import TypeVar

from relay.pricing.errors import Unpriced
from relay.pricing.tariff import Admission, Multiplier, PriceVersion, Tariff

MAX_REMEMBERED = 100_000
EFFORTS = ("-minimal", "-low", "-medium", "-high", "-xhigh", "-none")

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class GroupMultiplier:
    """What a customer group pays.

    ``for_group`` empty: in general. Else the multiplier holds when the customer uses that group's channels,
    and then it *replaces* the general one.
    """

    id: int
    customer_group: str
    for_group: str
    value: Fraction
    valid_from: datetime
    valid_to: datetime | None


@dataclass(frozen=True, slots=True)
class FxRate:
    """US dollars for one unit of a currency, exact."""

    id: int
    currency: str
    value: Fraction
    valid_from: datetime
    valid_to: datetime | None


@lru_cache(maxsize=4096)
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


def literals(pattern: str) -> int:
    """How many characters of a pattern are literal: its specificity."""
    return len(pattern) - pattern.count("*")


def base_name(model: str) -> str | None:
    """The model without its effort suffix, or None when it has none."""
    for suffix in EFFORTS:
        if model.endswith(suffix) and len(model) > len(suffix):
            return model.removesuffix(suffix)
    return None


def matches(pattern: str, model: str) -> bool:
    """Whether a price of this pattern can hold for the model (see the module's precedence)."""
    if "*" in pattern:
        return _pattern(pattern).fullmatch(model) is not None
    return pattern in (model, base_name(model))


@dataclass(frozen=True)
class Catalog:
    """Everything that pricing needs, at one revision; never changed, only replaced."""

    versions: tuple[PriceVersion, ...] = ()
    groups: tuple[GroupMultiplier, ...] = ()
    fx: tuple[FxRate, ...] = ()
    revision: int = 0
    _found: dict[tuple[str, str, str, str, str], list[PriceVersion]] = field(default_factory=dict, repr=False)
    _tariffs: dict[tuple[int, str, str, int | None, int | None], Tariff] = field(
        default_factory=dict, repr=False
    )
    # What holds in an era: between two moments at which anything begins or ends.
    _sold: dict[tuple[int, str, str, str], Tariff] = field(default_factory=dict, repr=False)
    _costs: dict[tuple[int, str, str, str], Tariff | None] = field(default_factory=dict, repr=False)

    def admit(
        self, model: str, *, group: str, at: datetime, using_group: str = "", service_tier: str = ""
    ) -> Admission:
        """The frozen sell price of a model for a customer group. Raises Unpriced."""
        key = (bisect_right(self._edges, at), model, group, using_group)
        tariff = self._sold.get(key)
        if tariff is None:
            version = self.version(model, side="sell", group=group, at=at)
            if version is None:
                raise Unpriced(model)
            tariff = self._tariff(version, group, using_group, at)
            _remember(self._sold, key, tariff)
        return Admission(model, group, at, tariff, self, service_tier)

    def cost_tariff(self, model: str, provider: str, at: datetime, channel: str = "") -> Tariff | None:
        """What a provider takes at that time for calls by this channel, or None."""
        key = (bisect_right(self._edges, at), model, provider, channel)
        if key not in self._costs:
            version = self.version(model, side="cost", provider=provider, channel=channel, at=at)
            _remember(self._costs, key, self._tariff(version, "", "", at) if version else None)
        return self._costs[key]

    @cached_property
    def _edges(self) -> list[datetime]:
        dated: list[PriceVersion | GroupMultiplier | FxRate] = [*self.versions, *self.groups, *self.fx]
        moments = {moment for one in dated for moment in (one.valid_from, one.valid_to)}
        return sorted(moment for moment in moments if moment is not None)

    def version(
        self, model: str, *, side: str, at: datetime, group: str = "", provider: str = "", channel: str = ""
    ) -> PriceVersion | None:
        """The version that holds at a time, by the precedence above."""
        key = (model, side, group, provider, channel)
        if key not in self._found:
            _remember(self._found, key, self._candidates(model, side, group, _named(channel, provider)))
        return next((version for version in self._found[key] if version.valid_at(at)), None)

    def _candidates(self, model: str, side: str, group: str, billed: tuple[str, ...]) -> list[PriceVersion]:
        """Versions that can hold, best first; ``billed``: whose prices can, best first."""
        fitting = [
            version
            for version in self.versions
            if version.side == side
            and version.customer_group in ("", group)
            and version.provider in billed
            and matches(version.model, model)
        ]
        return sorted(
            fitting,
            key=lambda v: (-literals(v.model), v.model, v.customer_group == "", billed.index(v.provider)),
        )

    def _tariff(self, version: PriceVersion, group: str, using_group: str, at: datetime) -> Tariff:
        multiplier = self._multiplier(group, using_group, at) if version.side == "sell" else None
        fx = self._fx(version.currency, at)
        fx_id, value = (fx.id, fx.value) if fx else (None, Fraction(1))
        key = (version.id, group, using_group, multiplier.id if multiplier else None, fx_id)
        if key not in self._tariffs:
            name = f"group {group}" + (f" using {using_group}" if multiplier and multiplier.for_group else "")
            factors = [Multiplier(name, multiplier.value)] if multiplier else []
            self._tariffs[key] = Tariff(version, factors, value)
        return self._tariffs[key]

    def _multiplier(self, group: str, using_group: str, at: datetime) -> GroupMultiplier | None:
        own = using_group or group
        override = self._group(group, own, at)
        return override or self._group(own, "", at)

    def _group(self, customer_group: str, for_group: str, at: datetime) -> GroupMultiplier | None:
        fitting = self._groups_by_name.get((customer_group, for_group), ())
        return next((group for group in fitting if _valid(group, at)), None)

    @cached_property
    def _groups_by_name(self) -> dict[tuple[str, str], list[GroupMultiplier]]:
        found: dict[tuple[str, str], list[GroupMultiplier]] = {}
        for group in self.groups:
            found.setdefault((group.customer_group, group.for_group), []).append(group)
        return found

    def _fx(self, currency: str, at: datetime) -> FxRate | None:
        if currency == "USD":
            return None
        rate = next((f for f in self.fx if f.currency == currency and _valid(f, at)), None)
        if rate is None:
            raise Unpriced(f"{currency} (no exchange rate in force)")
        return rate


def _remember(memory: dict[K, V], key: K, value: V) -> None:
    if len(memory) > MAX_REMEMBERED:  # names come from callers
        memory.clear()
    memory[key] = value


def _named(channel: str, provider: str) -> tuple[str, ...]:
    return (*(name for name in (channel, provider) if name), "")


def _valid(dated: GroupMultiplier | FxRate, at: datetime) -> bool:
    return dated.valid_from <= at and (dated.valid_to is None or at < dated.valid_to)
