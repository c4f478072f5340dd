"""What goes on record reaches the database whatever a provider sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.ledger.columns import MAX_NESTING, json_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def nested(depth: int) -> Any:
    value: Any = 5
    for _ in range(depth):
        value = {"a": [value]}
    return value


@given(JSON)
def test_json_is_kept_as_it_is(value: Any) -> None:
    cleaned = json.loads(json.dumps(value).replace("\\u0000", "\\ufffd"))
    assert json.loads(json_text(value)) == cleaned


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"n": 2**70}, {"n": 2**70}),
        ({"n": 10**5000}, {"n": "an integer of 16610 bits"}),
        ({"n": -(10**5000), "m": 1}, {"n": "an integer of 16610 bits", "m": 1}),
        ({"half": "a\ud800b"}, {"half": "a?b"}),
        ({"n": 2**70, "x": float("inf")}, {"n": 2**70, "x": "inf"}),
        ({1: 2**70}, {"1": 2**70}),
        ((2**70, None, True), [2**70, None, True]),
        ("a\x00b", "a\ufffdb"),
    ],
)
def test_what_jsonb_cannot_hold_is_replaced(value: Any, kept: Any) -> None:
    assert json.loads(json_text(value)) == kept


def test_endless_nesting_ends() -> None:
    text = json_text(nested(5_000))
    assert "nested too deep" in text
    assert text.count("{") + text.count("[") <= MAX_NESTING
