"""Each rule of the arithmetic by one example that no other rule explains (see `make mutation`)."""

from datetime import UTC, datetime
from fractions import Fraction

import pytest

from relay.pricing.bound import Bound, MaxUsage, beyond_quotas, quotas_of
from relay.pricing.charge import Charge, Line, Row, Terms, compute, line_json, resolve, select, table_for
from relay.pricing.errors import Unpriced
from relay.pricing.settlement import Settlement, cover, settle, with_overage
from relay.pricing.tariff import Admission, PriceVersion, Tariff

NOW = datetime(2026, 11, 1, tzinfo=UTC)
ROWS = (
    Row("in_text", 2 * 10**6),
    Row("in_text", 1 * 10**6, service_tier="flex"),
    Row("out_text", 4 * 10**6),
    Row("out_text", 8 * 10**6, context_from=100, context_to=200),
)


def tariff(rows: tuple[Row, ...] = ROWS, *, quantum: int = 1, minimum: int = 0, free: bool = False) -> Tariff:
    return Tariff(PriceVersion(1, "m", "sell", "", "", "USD", NOW, None, quantum, minimum, free, rows))


def admission(rows: tuple[Row, ...] = ROWS, tier: str = "", **terms: int) -> Admission:
    return Admission("m", "default", NOW, tariff(rows, **terms), service_tier=tier)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- terms


def test_terms_multiply_everything_into_one_factor() -> None:
    assert Terms.of([Fraction(3, 4), Fraction(2, 5)], Fraction(5, 7)) == Terms(3, 14, 1, 0, False)
    assert Terms.of([]) == Terms(1, 1, 1, 0, False) == Terms()
    assert Terms.of([Fraction(1, 2)], quantum=5, minimum=7, free=True) == Terms(1, 2, 5, 7, True)


# ---------------------------------------------------------------------- which row


@pytest.mark.parametrize(
    ("length", "tier", "price"),
    [
        (0, "", 4),
        (99, "", 4),
        (100, "", 8),
        (199, "", 8),
        (200, "", 4),
        (150, "flex", 8),  # a tier without rows of its own takes the standard ones
    ],
)
def test_a_row_holds_from_its_first_length_to_before_its_last(length: int, tier: str, price: int) -> None:
    assert select(ROWS, length, tier)["out_text"].unit_price == price * 10**6


def test_what_has_ended_prices_nothing() -> None:
    rows = [Row("in_text", 5, context_to=100)]
    assert set(select(rows, 99)) == {"in_text"}
    assert select(rows, 100) == select(rows, 101) == {}


def test_a_service_tier_goes_before_the_standard_one_wherever_it_is_written() -> None:
    for rows in (ROWS, ROWS[::-1]):
        assert select(rows, 0, "flex")["in_text"].unit_price == 10**6
        assert select(rows, 0)["in_text"].unit_price == 2 * 10**6
        assert table_for(rows, {"in_text": 1})["in_text"].unit_price == 2 * 10**6
        assert table_for(rows, {"in_text": 1}, "flex")["in_text"].unit_price == 10**6
    strange = Row("in_text", 7, service_tier="XXXX")
    assert select([strange], 0) == table_for([strange], {}) == {}


def test_the_stated_fallback_goes_before_the_usual_one() -> None:
    stated = [Row("in_text", 5), Row("out_text", 9), Row("cache_read", None, fallback="out_text")]
    assert resolve(select(stated, 0))["cache_read"].unit_price == 9
    nowhere = [Row("in_text", 5), Row("in_audio", None)]
    assert "in_audio" not in resolve(select(nowhere, 0))


def test_fallbacks_in_a_circle_price_nothing() -> None:
    circle = [Row("in_text", None, fallback="in_audio"), Row("in_audio", None, fallback="in_text")]
    assert resolve(select(circle, 0)) == {}


# ---------------------------------------------------------------------- the charge


def test_a_charge_lists_its_lines_and_what_has_no_price() -> None:
    table = resolve(select(ROWS, 0))
    charge = compute(table, {"in_text": 10, "cache_read": 3, "out_text": 0, "ms": 5}, Terms(1, 4, 1, 0))
    assert charge == Charge(
        amount=7,  # 26 / 4, half up
        numerator=13,
        denominator=2,
        lines=(
            Line("in_text", 10, "in_text", 2 * 10**6),
            Line("cache_read", 3, "in_text", 2 * 10**6),
        ),
        unpriced={"ms": 5},
    )
    assert charge.exact == Fraction(13, 2)


def test_a_free_model_and_a_price_a_call_leave_nothing_unpriced() -> None:
    assert compute({}, {"ms": 5}, Terms(free=True)) == Charge(0, 0, 1, (), {})
    whole = {"call": Row("call", 3 * 10**6)}
    assert compute(whole, {"call": 1, "ms": 5}, Terms()).unpriced == {}
    assert compute({}, {"ms": 5}, Terms()).unpriced == {"ms": 5}


@pytest.mark.parametrize(
    ("numerator", "quantum", "minimum", "amount"),
    [
        (0, 1, 9, 0),
        (1, 1, 9, 9),
        (10**6, 1, 0, 1),
        (499_999, 1, 0, 0),
        (500_000, 1, 0, 1),
        (3 * 10**6, 2, 0, 4),
    ],
)
def test_rounding_then_the_minimum(numerator: int, quantum: int, minimum: int, amount: int) -> None:
    charge = compute({"in_text": Row("in_text", numerator)}, {"in_text": 1}, Terms(1, 1, quantum, minimum))
    assert charge.amount == amount


def test_a_line_as_it_is_shown() -> None:
    line = Line("cache_read", 3, "in_text", 5)
    assert line_json(line) == {"meter": "cache_read", "quantity": 3, "priced_as": "in_text", "unit_price": 5}
    assert line_json(line._replace(unit_price=Fraction(5, 3)))["unit_price"] == "5/3"


# ---------------------------------------------------------------------- the settlement


def test_a_settlement_covers_units_then_prices_the_rest() -> None:
    meters = {"in_text": 10, "out_text": 5}
    settled = settle(tariff(), meters, {"text_tokens": 12}, "flex")
    assert settled == Settlement(
        meters, {"text_tokens": 12}, Charge(12, 12, 1, (Line("out_text", 3, "out_text", 4 * 10**6),), {})
    )
    assert settle(tariff(), meters, {}, "").list_charge.amount == 40
    assert settle(tariff(), meters, {}, "flex").list_charge.amount == 30
    assert settle(tariff(), meters, {}, "").quotas_used == {}


def test_the_tier_follows_from_the_whole_prompt_though_units_pay_for_it() -> None:
    settled = settle(tariff(), {"in_text": 150, "out_text": 5}, {"text_tokens": 150}, "")
    assert settled.list_charge.amount == 5 * 8


def test_the_call_itself_is_counted_once() -> None:
    whole = tariff((*ROWS, Row("call", 100 * 10**6)))
    settled = settle(whole, {"in_text": 1}, {"calls": 1}, "")
    assert (settled.meters, settled.quotas_used) == ({"in_text": 1, "call": 1}, {"calls": 1})
    assert settled.list_charge.amount == 2
    assert settle(whole, {"call": 3}, {}, "").list_charge.amount == 300


def test_units_pay_meters_in_their_order_and_each_unit_its_own() -> None:
    meters = {"in_text": 2, "out_text": 3, "image": 4}
    rest, used = cover(meters, {"text_tokens": 4, "images": 9})
    assert (rest, used) == ({"in_text": 0, "out_text": 1, "image": 0}, {"text_tokens": 4, "images": 4})
    assert meters == {"in_text": 2, "out_text": 3, "image": 4}
    assert cover({"image": 4}, {"text_tokens": 4}) == ({"image": 4}, {})


@pytest.mark.parametrize(
    ("exact", "plan_paid", "overage", "terms", "charge"),
    [
        (Fraction(100), 0, Fraction(3, 2), Terms(), 150),
        (Fraction(100), 40, Fraction(3, 2), Terms(), 130),
        (Fraction(100), 100, Fraction(3, 2), Terms(), 100),
        (Fraction(100), 101, Fraction(3, 2), Terms(), 100),
        (Fraction(100), 99, Fraction(1), Terms(), 100),
        (Fraction(0), 0, Fraction(3, 2), Terms(minimum=10), 0),
        (Fraction(1), 0, Fraction(3, 2), Terms(minimum=10), 15),
        (Fraction(1), 4, Fraction(3, 2), Terms(minimum=10), 13),
        (Fraction(101), 0, Fraction(3, 2), Terms(quantum=10), 150),
        (Fraction(49, 10), 4, Fraction(2), Terms(), 6),
        (Fraction(100), 0, Fraction(1, 2), Terms(), 50),
    ],
)
def test_overage_by_example(
    exact: Fraction, plan_paid: int, overage: Fraction, terms: Terms, charge: int
) -> None:
    assert with_overage(exact, plan_paid, overage, terms) == charge


# ---------------------------------------------------------------------- the bound


def test_what_a_call_can_use() -> None:
    most = MaxUsage(7, 5, ("text", "image"), ("text", "audio"), {"tool:x": 2})
    assert most.inputs == ("in_text", "cache_read", "cache_write_5m", "cache_write_1h", "in_image")
    assert most.outputs == ("out_text", "out_audio")
    assert most.sides == [(most.inputs, 7), (most.outputs, 5), (("tool:x",), 2)]
    assert beyond_quotas(most.sides) == [(("in_image",), 7), (("tool:x",), 2)]
    assert quotas_of(most.sides) == {"text_tokens": 12, "audio_tokens": 5}
    assert quotas_of(MaxUsage(0, 0, others={"image": 3, "ms": 0}).sides) == {"images": 3}
    assert quotas_of(MaxUsage(7, 5, ("audio",)).sides) == {"audio_tokens": 7, "text_tokens": 5}


def test_a_bound_holds_the_dearest_of_each_side_at_any_length() -> None:
    bound = admission().bound(MaxUsage(99, 10))
    assert bound == Bound(99 * 2 + 10 * 4, 0, {"text_tokens": 109}, MaxUsage(99, 10))
    assert admission().bound(MaxUsage(100, 10)).amount == 100 * 2 + 10 * 8
    assert admission(tier="flex").bound(MaxUsage(10, 1)).amount == 10 + 4
    assert admission(minimum=500).bound(MaxUsage(10, 1)).amount == 500
    assert admission(()).bound(MaxUsage()).amount == 0


def test_what_is_held_depends_on_what_was_allotted() -> None:
    bound = Bound(100, 30, {"text_tokens": 10, "images": 2})
    assert bound.held({"text_tokens": 10, "images": 2}) == 30
    assert bound.held({"text_tokens": 11, "images": 3, "calls": 1}) == 30
    assert bound.held({"text_tokens": 9, "images": 2}) == 100
    assert bound.held({"images": 2}) == 100
    assert Bound(100, 30).held({}) == 100
    assert Bound(100, 30, {"images": 1}).held({}) == 100


def test_a_side_without_price_is_refused_by_its_meter() -> None:
    with pytest.raises(Unpriced) as refused:
        admission().bound(MaxUsage(1, 1, answer=("text",), others={"ms": 1}))
    assert refused.value.meter == "ms"
    assert admission().bound(MaxUsage(1, 1, others={"ms": 0})).amount == 6
