"""Ratios and prices are two views of one table."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.price_book.publish import read_document
from relay.pricing.charge import Row
from relay.pricing.documents import compile_price, price_view, ratio_view
from relay.pricing.errors import Conflict, FieldError


def rows_of(document: dict[str, Any]) -> dict[str, Fraction | int | None]:
    return {row.meter: row.unit_price for row in compile_price(document)[1]}


def as_stored(rows: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            "meter": row.meter,
            "unit_price": row.unit_price,
            "fallback": row.fallback,
            "service_tier": row.service_tier,
            "context_from": row.context_from,
            "context_to": row.context_to,
        }
        for row in rows
    ]


def test_ratios_compile_to_rows() -> None:
    ratios = {
        "model": "1.25",
        "completion": "4",
        "cache_read": "0.5",
        "cache_write": "1.25",
        "audio": "16",
        "audio_completion": "2",
    }
    assert rows_of({"ratios": ratios, "tools": {"web_search": "10/1K"}}) == {
        "in_text": 2_500_000_000,
        "out_text": 10_000_000_000,
        "cache_read": 1_250_000_000,
        "cache_write_5m": 3_125_000_000,
        "cache_write_1h": 5_000_000_000,
        "in_audio": 40_000_000_000,
        "out_audio": 80_000_000_000,
        "tool:web_search": 10_000_000_000_000,
    }


def test_a_fixed_price_is_a_call_row() -> None:
    assert rows_of({"ratios": {"call": "0.04"}}) == {"call": 40_000_000 * 10**6}


def test_output_defaults_to_the_input_price() -> None:
    assert rows_of({"ratios": {"model": "1"}}) == {"in_text": 2_000_000_000, "out_text": 2_000_000_000}


@given(
    st.decimals("0.0001", "100", places=4),
    st.decimals("0", "100", places=2),
    st.decimals("0", "10", places=2),
)
def test_both_views_lead_back_to_the_same_rows(model: Any, completion: Any, cached: Any) -> None:
    typed = {"model": str(model), "completion": str(completion), "cache_read": str(cached)}
    _, rows = compile_price({"ratios": typed})
    stored = as_stored(rows)
    view = ratio_view(stored)
    assert view is not None
    assert compile_price(view)[1] == rows
    assert compile_price(price_view(stored))[1] == rows
    assert {name: Fraction(value) for name, value in view["ratios"].items()} == {
        name: Fraction(value) for name, value in typed.items()
    }


def test_tiers_and_fallbacks_lead_back_from_the_price_view() -> None:
    document = {
        "rates": {"in_text": "3/1M", "out_text": "15/1M", "in_image": {"fallback": "out_text"}},
        "tiers": [
            {"above": 200000, "rates": {"in_text": "6/1M", "out_text": "22.50/1M"}},
            {"above": 500000, "rates": {"in_text": "9/1M"}},
            {"service_tier": "flex", "rates": {"in_text": "1/1M"}},
        ],
    }
    _, rows = compile_price(document)
    again = compile_price(price_view(as_stored(rows)))[1]
    assert sorted(map(repr, again)) == sorted(map(repr, rows))
    assert ratio_view(as_stored(rows)) is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"side": "buy"}, "side"),
        ({"currency": "dollars"}, "currency"),
        ({"valid_from": "tomorrow"}, "valid_from"),
        ({"valid_from": "2030-01-01T00:00:00"}, "valid_from"),
        ({"valid_from": "2030-01-01T00:00:00Z", "valid_to": "2030-01-01T00:00:00Z"}, "valid_to"),
        ({"quantum": 0}, "quantum"),
        ({"minimum": "-1"}, "minimum"),
        ({"free": "yes"}, "free"),
        ({"provider": "acme"}, "provider"),
        ({"side": "cost", "group": "vip"}, "group"),
        ({"rates": {"in_text": "0.0000000001/1M"}}, "rates.in_text"),
        ({"rates": {"in_text": "99999999999999/1"}}, "rates.in_text"),
        ({"rates": {"in_text": {"price": "1/1M", "fallback": "out_text"}}}, "rates.in_text"),
        ({"rates": None}, "rates"),
        ({"rates": None, "ratios": {"model": "1", "completion": "1/3"}}, "ratios.completion"),
        ({"rates": None, "ratios": {"model": "-1"}}, "ratios.model"),
        ({"rates": None, "ratios": {"model": "1", "speed": "2"}}, "ratios.speed"),
        ({"tiers": [{"rates": {"in_text": "1/1M"}}]}, "tiers.0"),
        ({"tiers": {}}, "tiers"),
        ({"price": "1"}, "price"),
    ],
)
def test_refusals_name_field_and_remedy(change: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as refusal:
        read_document({"model": "m", "rates": {"in_text": "1/1M"}, **change})
    assert refusal.value.field == field
    assert refusal.value.remedy


@pytest.mark.parametrize("change", [{"ratios": {"model": "1"}}, {"free": True}])
def test_two_modes_are_a_conflict(change: dict[str, Any]) -> None:
    with pytest.raises(Conflict):
        read_document({"model": "m", "rates": {"in_text": "1/1M"}, **change})


def test_equal_content_has_an_equal_hash() -> None:
    by_rate = read_document({"model": "m", "rates": {"in_text": "2/1M", "out_text": "2/1M"}})[0]
    other = read_document({"model": "m", "rates": {"in_text": "2.0/1M", "out_text": "0.002/1K"}})[0]
    third = read_document({"model": "m", "rates": {"in_text": "2/1M", "out_text": "3/1M"}})[0]
    assert by_rate["hash"] == other["hash"] != third["hash"]
