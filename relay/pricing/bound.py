"""The most that a call can use, and the most that it can cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

from relay.pricing.meter_names import QUOTA_METERS, TEXT_INPUT

PROMPT_METERS = {"text": TEXT_INPUT, "image": ("in_image",), "audio": ("in_audio",)}
ANSWER_METERS = {"text": "out_text", "image": "out_image", "audio": "out_audio"}
METER_UNIT = {meter: unit for unit, meters in QUOTA_METERS.items() for meter in meters}

# Meters of which any may be the one that a quantity of units falls to.
Side = tuple[tuple[str, ...], int]


@dataclass(frozen=True, slots=True)
class MaxUsage:
    """The most units that a call can use.

    ``input_units`` bounds all input meters together, ``max_output`` all output meters of all choices.
    ``prompt`` and ``answer`` are the kinds (text, image, audio) that the call can have. ``others``: the most
    of any other meter (image, ms, char, tool:*); a meter that is not named there cannot occur.
    """

    input_units: int = 0
    max_output: int = 0
    prompt: tuple[str, ...] = ("text",)
    answer: tuple[str, ...] = ("text",)
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Input meters that can occur."""
        return _inputs(self.prompt)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Output meters that can occur."""
        return _outputs(self.answer)

    @property
    def sides(self) -> list[Side]:
        """Everything that the call can use."""
        others = [((meter,), quantity) for meter, quantity in self.others.items()]
        return [(self.inputs, self.input_units), (self.outputs, self.max_output), *others]


def beyond_quotas(sides: Sequence[Side]) -> list[Side]:
    """What of them no typed quota pays for."""
    return [(beyond, quantity) for meters, quantity in sides if (beyond := _beyond_quotas(meters))]


def quotas_of(sides: Sequence[Side]) -> dict[str, int]:
    """The most units of each typed quota (see QUOTA_METERS) that they can use."""
    most: dict[str, int] = {}
    for meters, quantity in sides:
        for unit in _units(meters) if quantity else ():
            most[unit] = most.get(unit, 0) + quantity
    return most


@cache
def _inputs(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(meter for kind in kinds for meter in PROMPT_METERS[kind])


@cache
def _outputs(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(ANSWER_METERS[kind] for kind in kinds)


@lru_cache(maxsize=1000)
def _units(meters: tuple[str, ...]) -> frozenset[str]:
    return frozenset(METER_UNIT[meter] for meter in meters if meter in METER_UNIT)


@lru_cache(maxsize=1000)
def _beyond_quotas(meters: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(meter for meter in meters if meter not in METER_UNIT)


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that a call can cost.

    ``amount``: n$ at list price; ``covered_amount``: what remains of it where typed quotas pay ``quotas`` in
    full; ``most``: the units that it was priced from.
    """

    amount: int
    covered_amount: int = 0
    quotas: Mapping[str, int] = field(default_factory=dict)
    most: MaxUsage = MaxUsage()

    def held(self, allotted: Mapping[str, int]) -> int:
        """n$ at list price that a hold has reserved which was allotted so many typed units."""
        if not self.quotas or any(allotted.get(unit, 0) < units for unit, units in self.quotas.items()):
            return self.amount
        return self.covered_amount
