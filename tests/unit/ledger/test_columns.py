"""Orders become the parameters of the database functions, whatever a provider sent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from fractions import Fraction
from importlib import resources
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.ledger.columns import (
    DOCUMENTS,
    HOLD,
    HOLD_STATEMENT,
    MAX_INTEGER,
    MAX_NESTING,
    SETTLE,
    SETTLE_STATEMENT,
    Columns,
    HoldItem,
    capture_item,
    json_text,
    of_holds,
    of_settles,
    release_item,
)
from relay.ledger.orders import CallFacts, CaptureOrder, Hold, HoldOrder
from relay.pricing.bound import Bound
from relay.pricing.charge import Row
from relay.pricing.tariff import Admission, Cost, PriceVersion, Tariff
from relay.store.ledger import literal

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
        ({"a\x00": "\x00", "n": 2**70}, {"a\ufffd": "\ufffd", "n": 2**70}),
        ([MAX_INTEGER, -MAX_INTEGER], [MAX_INTEGER, -MAX_INTEGER]),
        (MAX_INTEGER + 1, f"an integer of {MAX_INTEGER.bit_length()} bits"),
        (
            {"id": UUID(int=1), "of": Fraction(1, 3), "n": 2**70},
            {"id": str(UUID(int=1)), "of": "1/3", "n": 2**70},
        ),
        ({"of": Fraction(1, 3)}, {"of": "1/3"}),
    ],
)
def test_what_jsonb_cannot_hold_is_replaced(value: Any, kept: Any) -> None:
    assert json.loads(json_text(value)) == kept


def test_endless_nesting_ends() -> None:
    text = json_text(nested(5_000))
    assert "nested too deep" in text
    assert text.count("{") + text.count("[") <= MAX_NESTING


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["list", "object"])
def test_nesting_is_cut_at_the_limit_and_not_before(wrap: Callable[[Any], Any]) -> None:
    whole: Any = 2**70
    cut: Any = "nested too deep"
    for _ in range(MAX_NESTING):
        whole, cut = wrap(whole), wrap(cut)
    assert json.loads(json_text(whole)) == whole
    assert json.loads(json_text(wrap(whole))) == cut


# ---------------------------------------------------------------------- columns

ID, OTHER = UUID(int=1), UUID(int=2)
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def parameters(function: str) -> dict[str, str]:
    """What the database function declares, from its SQL."""
    path = resources.files("relay.store") / "migrations" / "functions" / f"{function}.sql"
    (declared,) = re.findall(rf"function {function}\((.*?)\) returns", path.read_text(), re.DOTALL)
    pairs = (parameter.split() for parameter in declared.split(","))
    return {name: kind.removesuffix("[]") for name, kind in pairs}


def types(columns: Columns) -> dict[str, str]:
    return {name: kind for name, (kind, _) in columns.items()}


def test_each_parameter_of_the_functions_is_given_by_name_and_type() -> None:
    assert types(HOLD) == parameters("ledger_hold")
    assert types(SETTLE) | DOCUMENTS == parameters("ledger_settle")
    for statement, columns in ((HOLD_STATEMENT, HOLD), (SETTLE_STATEMENT, {**SETTLE, "p_documents": ()})):
        given = re.findall(r"(p_\w+) => \$(\d+)::", statement)
        assert given == [(name, str(n)) for n, name in enumerate(columns, 1)]


def admission(minimum: int = 0) -> Admission:
    rows = (Row("in_text", 10**9), Row("out_text", 2 * 10**9))
    version = PriceVersion(7, "m", "sell", "", "", "USD", NOW, None, 5, minimum, False, rows)
    return Admission("m", "vip", NOW, Tariff(version))


def order(**changes: Any) -> HoldOrder:
    bound = changes.get("bound", Bound(900, 100, {"text_tokens": 50}))
    frozen = changes.get("admission") or admission(changes.get("minimum", 0))
    return HoldOrder(changes.get("request_id", ID), 11, changes.get("token", 12), frozen, bound, NOW)


def named(columns: Iterable[str], parameters: list[str | None]) -> dict[str, str | None]:
    return dict(zip(columns, parameters, strict=True))


def test_a_holds_columns() -> None:
    items = [HoldItem(order(), 21), HoldItem(order(request_id=OTHER, token=None, bound=Bound(3, 2)), 22)]
    assert named(HOLD, of_holds(items)) == {
        "p_request": f"{{{ID.hex},{OTHER.hex}}}",
        "p_attempt": "{21,22}",
        "p_account": "{11,11}",
        "p_token": "{12,NULL}",
        "p_amount": "{900,3}",
        "p_covered": "{100,2}",
        "p_model": '{"m","m"}',
        "p_group": '{"vip","vip"}',
        "p_expires": "{2026-11-01T00:00:00+00:00,2026-11-01T00:00:00+00:00}",
        "p_quotas": '{"{\\"text_tokens\\":50}",NULL}',
    }


def test_a_captures_columns() -> None:
    attempts = ({"channel_id": 3, "outcome": "ok"},)
    facts = CallFacts("truncated", 3, True, "a rule", NOW, 850, 120, attempts, {"provider": "acme"})
    hold = Hold(order(minimum=30), {"text_tokens": 4}, Fraction(3, 2))
    meters = {"in_text": 10, "out_text": 3, "tool:x": 2}
    cost = Cost(6, Fraction(6), '{"cost":1}')
    item = capture_item(CaptureOrder(hold, meters, {"a": 1}, facts, cost, "openai"))
    columns = named([*SETTLE, *DOCUMENTS], of_settles([item]))
    evidence = columns.pop("p_documents") or ""
    assert json.loads(evidence[2:].split('","')[0].replace('\\"', '"'))["usage_format"] == "openai"
    assert evidence.endswith(r'"{\"cost\":1}"}')
    # 4 of 13 tokens are paid by the quota: (6 * 1000 + 3 * 2000) n$, to 5; by the multiplier, likewise.
    assert columns == {
        "p_request": f"{{{ID.hex}}}",
        "p_release": "{f}",
        "p_list": "{12000}",
        "p_over": "{18000}",
        "p_numerator": "{12000}",
        "p_denominator": "{1}",
        "p_quantum": "{5}",
        "p_minimum": "{30}",
        "p_reason": '{"truncated"}',
        "p_quotas": '{"{\\"text_tokens\\":4}"}',
        "p_channel": "{3}",
        "p_outcome": '{"truncated"}',
        "p_abort": '{"a rule"}',
        "p_stream": "{t}",
        "p_started": "{2026-11-01T00:00:00+00:00}",
        "p_duration": "{850}",
        "p_first_byte": "{120}",
        "p_cost": "{6}",
        "p_meters": '{"{\\"in_text\\":10,\\"out_text\\":3,\\"tool:x\\":2}"}',
        "p_raw": '{"{\\"a\\":1}"}',
        "p_sell": "{1}",
        "p_cost_side": "{2}",
        "p_unpriced": '{"{\\"tool:x\\":2}"}',
        "p_attempts": '{"[{\\"channel_id\\":3,\\"outcome\\":\\"ok\\"}]"}',
        "p_facts": '{"{\\"provider\\":\\"acme\\"}"}',
    }


def test_what_costs_nothing_has_no_minimum_and_what_was_not_said_is_null() -> None:
    hold = Hold(order(minimum=30), {}, Fraction(1))
    item = capture_item(CaptureOrder(hold, {}, None))
    columns = named([*SETTLE, *DOCUMENTS], of_settles([item]))
    assert [columns[name] for name in ("p_list", "p_over", "p_numerator", "p_minimum")] == ["{0}"] * 4
    absent = (
        "p_quotas",
        "p_channel",
        "p_abort",
        "p_cost",
        "p_raw",
        "p_cost_side",
        "p_unpriced",
        "p_attempts",
        "p_facts",
    )
    assert [columns[name] for name in absent] == [None] * 9
    assert "usage_format" not in str(columns["p_documents"])


def test_the_minimum_is_multiplied_as_part_of_the_charge() -> None:
    hold = Hold(order(minimum=30), {}, Fraction(3, 2))
    frozen = hold.order.admission
    item = capture_item(CaptureOrder(hold, {"in_text": 1}, None))
    assert (item.charge, item.overage_charge) == (1000, 1500)
    dear = Hold(order(admission=admission(5000)), {}, Fraction(3, 2))
    item = capture_item(CaptureOrder(dear, {"in_text": 1}, None))
    assert (item.charge, item.overage_charge, item.minimum) == (5000, 7500, 5000)
    assert frozen.tariff.terms.quantum == item.quantum == 5


def test_a_capture_is_priced_and_proven_by_its_tier_and_prompt_length() -> None:
    rows = (
        Row("in_text", 10**9, context_to=100),
        Row("in_text", 3 * 10**9, context_from=100),
        Row("in_text", 7 * 10**9, service_tier="priority", context_from=100),
        Row("out_text", 333_333),
    )
    version = PriceVersion(7, "m", "sell", "", "", "USD", NOW, None, 1, 0, False, rows)
    for tier, price in (("", 3), ("priority", 7)):
        frozen = Admission("m", "vip", NOW, Tariff(version), service_tier=tier)
        hold = Hold(order(admission=frozen), {}, Fraction(2))
        item = capture_item(CaptureOrder(hold, {"in_text": 100, "out_text": 1}, None))
        exact = Fraction(price * 100_000) + Fraction(333_333, 10**6)
        assert Fraction(item.numerator, item.denominator) == exact
        assert (item.charge, item.overage_charge) == (price * 100_000, price * 200_000 + 1)
        shown = json.loads(item.sell or "")["rows"]
        assert shown["in_text"] == {"unit_price": price * 10**9, "fallback": None}


def test_documents_are_sent_once_and_releases_have_none() -> None:
    frozen = admission()
    holds = [Hold(order(admission=frozen, request_id=number), {}, Fraction(1)) for number in (ID, OTHER)]
    captures = [capture_item(CaptureOrder(hold, {"in_text": 1}, None)) for hold in holds]
    release = release_item(UUID(int=3), "", CallFacts("swept"))
    columns = named([*SETTLE, *DOCUMENTS], of_settles([captures[0], release, captures[1]]))
    assert columns["p_sell"] == "{1,NULL,1}"
    assert columns["p_request"] == f"{{{ID.hex},{UUID(int=3).hex},{OTHER.hex}}}"
    assert columns["p_release"] == "{f,t,f}"
    assert columns["p_reason"] == '{"ok","released","ok"}'
    assert columns["p_outcome"] == '{"ok","swept","ok"}'
    assert str(columns["p_documents"]).count('\\"version\\"') == 1


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        ("bigint", [1, None, -2], "{1,NULL,-2}"),
        ("bigint", [None, None], None),
        ("bigint", [], "{}"),
        ("bigint", [0], "{0}"),
        ("boolean", [False, True], "{f,t}"),
        ("text", ['a"b\\c', None, ""], '{"a\\"b\\\\c",NULL,""}'),
        ("text", ["NULL"], '{"NULL"}'),
    ],
)
def test_array_literals(kind: str, values: list[Any], text: str | None) -> None:
    assert literal(kind, values) == text
