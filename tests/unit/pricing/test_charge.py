"""Charges of random prices and usage against exact fractions, worked out here in another way."""

from fractions import Fraction
from math import floor

from hypothesis import given
from hypothesis import strategies as st

from relay.pricing.charge import Charge, Row, Terms, compute, rounded, table_for
from relay.pricing.meter_names import DEFAULT_FALLBACK, METERS, QUOTA_METERS
from relay.pricing.settlement import cover, with_overage
from relay.pricing.units import decimal_text, round_half_up

PLAIN = [meter for meter in METERS if meter != "call"]
NAMES = st.sampled_from([*PLAIN, "tool:web_search"])
PRICES = st.dictionaries(NAMES, st.integers(0, 10**13), min_size=1)
QUANTITIES = st.dictionaries(NAMES, st.integers(0, 10**9))
FACTORS = st.lists(st.fractions(min_value=0, max_value=10, max_denominator=10**4), max_size=3)
FX = st.fractions(min_value=Fraction(1, 10**4), max_value=10**3, max_denominator=10**5)
QUANTA = st.sampled_from([1, 10, 2000, 1_000_000])
MINIMA = st.sampled_from([0, 1, 2000, 12345])


def expected_price(prices: dict[str, int], meter: str | None) -> int | None:
    """The stated fallbacks, followed by hand."""
    while meter is not None and meter not in prices:
        meter = DEFAULT_FALLBACK.get(meter)
    return None if meter is None else prices[meter]


def charge_of(prices: dict[str, int], meters: dict[str, int], terms: Terms) -> Charge:
    return compute(table_for([Row(meter, price) for meter, price in prices.items()], meters), meters, terms)


@given(PRICES, QUANTITIES, FACTORS, FX, QUANTA, MINIMA)
def test_a_charge_is_the_exact_sum_rounded_once(
    prices: dict[str, int],
    meters: dict[str, int],
    factors: list[Fraction],
    fx: Fraction,
    quantum: int,
    minimum: int,
) -> None:
    exact = Fraction(0)
    unpriced = {}
    for meter, quantity in meters.items():
        price = expected_price(prices, meter)
        if price is not None:
            exact += Fraction(quantity * price, 10**6)
        elif quantity:
            unpriced[meter] = quantity
    for factor in [*factors, fx]:
        exact *= factor
    charge = charge_of(prices, meters, Terms.of(factors, fx, quantum, minimum))
    assert charge.exact == exact
    assert charge.unpriced == unpriced
    nearest = floor(exact / quantum + Fraction(1, 2)) * quantum
    assert charge.amount == (max(nearest, minimum) if exact else 0)
    assert charge.amount >= 0


@given(PRICES, QUANTITIES, QUANTITIES)
def test_more_use_never_costs_less(
    prices: dict[str, int], meters: dict[str, int], more: dict[str, int]
) -> None:
    total = {meter: meters.get(meter, 0) + more.get(meter, 0) for meter in {*meters, *more}}
    assert charge_of(prices, total, Terms()).amount >= charge_of(prices, meters, Terms()).amount


@given(st.integers(0, 10**30), st.integers(1, 10**15), QUANTA)
def test_rounding_is_half_up(numerator: int, denominator: int, quantum: int) -> None:
    amount = round_half_up(numerator, denominator, quantum)
    distance = Fraction(amount) - Fraction(numerator, denominator)
    assert amount % quantum == 0
    assert Fraction(-quantum, 2) < distance <= Fraction(quantum, 2)


@given(
    st.fractions(min_value=0, max_value=10**12),
    st.fractions(Fraction(1, 100), 3, max_denominator=100),
    QUANTA,
)
def test_overage_multiplies_only_what_the_plan_does_not_pay(
    exact: Fraction, overage: Fraction, quantum: int
) -> None:
    terms = Terms(quantum=quantum)
    listed = rounded(exact.numerator, exact.denominator, terms)
    assert with_overage(exact, listed, overage, terms) == listed
    whole = round_half_up((exact * overage).numerator, (exact * overage).denominator, quantum)
    assert with_overage(exact, 0, overage, terms) == (whole if listed else 0)
    half = listed // 2
    mixed = with_overage(exact, half, overage, terms)
    assert abs(mixed - (half + (exact - half) * overage)) <= quantum * max(Fraction(1), overage)
    assert with_overage(exact, half, Fraction(1), terms) == listed


def test_a_multiplier_makes_no_charge_of_what_lists_at_nothing() -> None:
    assert with_overage(Fraction(1, 3), 0, Fraction(3, 2), Terms(quantum=1)) == 0
    assert with_overage(Fraction(1, 2), 0, Fraction(3, 2), Terms(quantum=1)) == 1


@given(
    st.dictionaries(st.sampled_from(PLAIN), st.integers(0, 10**6)),
    st.dictionaries(st.sampled_from(list(QUOTA_METERS)), st.integers(0, 10**6)),
)
def test_quotas_cover_units_once(meters: dict[str, int], allotted: dict[str, int]) -> None:
    rest, used = cover(meters, allotted)
    for unit, covered in QUOTA_METERS.items():
        before = sum(meters.get(meter, 0) for meter in covered)
        after = sum(rest.get(meter, 0) for meter in covered)
        assert before - after == used.get(unit, 0) == min(before, allotted.get(unit, 0))
    assert all(quantity >= 0 for quantity in rest.values())


def test_the_stated_order_of_quota_use() -> None:
    rest, used = cover({"out_text": 10, "cache_read": 10, "in_text": 10}, {"text_tokens": 15})
    assert rest == {"in_text": 0, "cache_read": 5, "out_text": 10}
    assert used == {"text_tokens": 15}


@given(st.integers(0, 10**40), st.integers(0, 20))
def test_decimal_text_is_exact(digits: int, places: int) -> None:
    value = Fraction(digits, 10**places)
    assert Fraction(decimal_text(value)) == value


def test_a_tier_prices_the_whole_call() -> None:
    rows = [
        Row("in_text", 3_000_000_000, context_to=200_001),
        Row("in_text", 6_000_000_000, context_from=200_001),
        Row("out_text", 15_000_000_000),
    ]
    for prompt, price in ((200_000, 3_000_000_000), (200_001, 6_000_000_000)):
        meters = {"in_text": 1000, "cache_read": prompt - 1000, "out_text": 10}
        charge = compute(table_for(rows, meters), meters, Terms())
        assert charge.exact == Fraction(prompt * price + 10 * 15_000_000_000, 10**6)


def test_a_price_a_call_includes_its_tokens() -> None:
    charge = charge_of({"call": 40_000_000 * 10**6}, {"call": 1, "in_text": 5000}, Terms())
    assert (charge.amount, charge.unpriced) == (40_000_000, {})


def test_a_meter_without_price_is_told() -> None:
    assert charge_of({"in_text": 10**9}, {"image": 2, "in_text": 1}, Terms()).unpriced == {"image": 2}
