"""From meters to what a capture writes: typed quotas, then the list charge, then the overage.

Typed quotas pay before credit: the units that the hold reserved cover the call's meters in the order of
QUOTA_METERS; what they do not cover is priced. What a plan period's credit does not pay is multiplied by the
account's overage multiplier, with one rounding of its own.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from relay.pricing.charge import Charge, Terms, compute, rounded
from relay.pricing.meter_names import QUOTA_METERS
from relay.pricing.tariff import Tariff
from relay.pricing.units import round_half_up


class Settlement(NamedTuple):
    """``meters``: as counted, with the call itself where it has a price; ``quotas_used``: typed units;
    ``list_charge``: what quotas do not pay, at list price.
    """

    meters: Mapping[str, int]
    quotas_used: Mapping[str, int]
    list_charge: Charge


def settle(
    tariff: Tariff, meters: Mapping[str, int], allotted: Mapping[str, int], service_tier: str
) -> Settlement:
    """Price a call whose hold reserved ``allotted`` typed units. The tier follows from the whole prompt."""
    counted = tariff.counted(meters)
    priced, used = cover(counted, allotted)
    charge = compute(tariff.table(counted, service_tier), priced, tariff.terms)
    return Settlement(counted, used, charge)


def cover(meters: Mapping[str, int], allotted: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """The meters that typed units leave to be priced, and the units used."""
    rest = dict(meters)
    used: dict[str, int] = {}
    for unit, units in allotted.items():
        for meter in QUOTA_METERS[unit]:
            taken = min(rest.get(meter, 0), units)
            if taken:
                rest[meter] -= taken
                units -= taken
                used[unit] = used.get(unit, 0) + taken
    return rest, used


def with_overage(exact: Fraction, plan_paid: int, overage: Fraction, terms: Terms) -> int:
    """The charge when a plan period pays ``plan_paid`` of it: that + the rest times the multiplier.

    What lists at nothing after its rounding costs nothing, whoever would pay: a multiplier makes no charge.
    The database function ledger_settle computes the same where both parts are above zero.
    """
    listed = rounded(exact.numerator, exact.denominator, terms)
    if overage == 1 or plan_paid >= listed:
        return listed
    whole = max(exact, Fraction(terms.minimum))
    rest = max(whole - plan_paid, Fraction(0)) * overage
    return plan_paid + round_half_up(rest.numerator, rest.denominator, terms.quantum)
