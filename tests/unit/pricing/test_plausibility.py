"""What a provider reports is charged only as far as the call can have used it, and never above the hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.ledger.columns import json_text
from relay.pricing.bound import Bound, MaxUsage, beyond_quotas
from relay.pricing.charge import Row, compute, table_for
from relay.pricing.plausibility import OUTPUT_ALLOWANCE, PROMPT_ALLOWANCE, BilledUsage, billed_usage
from relay.pricing.settlement import settle
from relay.pricing.tariff import Admission, PriceVersion, Tariff
from relay.pricing.usage import FORMATS, normalise

NOW = datetime(2026, 11, 1, tzinfo=UTC)
IN, OUT = 2_500, 10_000  # n$ a token
SMALL = MaxUsage(input_units=60, max_output=100)
PLAIN = (Row("in_text", IN * 10**6), Row("out_text", OUT * 10**6))


def admission(rows: tuple[Row, ...] = PLAIN, **terms: Any) -> Admission:
    fixed = {"quantum": 1, "minimum": 0, "free": False} | terms
    version = PriceVersion(1, "m", "sell", "", "", "USD", NOW, None, rows=rows, **fixed)
    return Admission("m", "default", NOW, Tariff(version))


def judged(
    usage: Any,
    *,
    most: MaxUsage = SMALL,
    output: int = 5,
    prompt: int = 10,
    usage_format: str = "openai",
    rows: tuple[Row, ...] = PLAIN,
) -> BilledUsage:
    priced = admission(rows)
    return billed_usage(priced, priced.bound(most), {}, usage_format, usage, lambda: prompt, lambda: output)


def told(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


def test_what_the_call_can_have_used_is_charged_as_told() -> None:
    usage = told(10, 5, total_tokens=15)
    assert judged(usage) == BilledUsage({"in_text": 10, "out_text": 5}, usage, "openai")
    assert not judged(usage).counted


@pytest.mark.parametrize(
    "usage",
    [
        told(675_947_905, 24_231_238),
        told(2**64 - 1, 5),
        told(10, 2**64 - 1),
        told(2**64, 2**64),
        told(10, 2**80),
        told(10, 10**31),
        told(10, 10**5000),
        told(10, 5, total_tokens=2**64 - 1),
        told(10, 1e300),
        told(float("inf"), 5),
        told(float("nan"), 5),
        told("10", "5"),
        told("x" * 10**5, 5),
        told(10.5, 5),
        told(-1, 5),
        told([[10**5000]], 5),
        told(True, False),
        told(0, 0),
        told(None, None),
        told(0, 5),
        told(10, 0),
        told(10, 5, prompt_tokens_details={"audio_tokens": 4}),
        told(10, 5, completion_tokens_details={"image_tokens": 4}),
        told(10, 5, prompt_tokens_details={"cached_tokens": 10**6}),
        told(10, 5, tools={"web_search": 1}),
        {},
        [],
        "usage",
        17,
        {"prompt_tokens": 10},
        {"prompt_tokens": {"n": 10}, "completion_tokens": 5},
    ],
    ids=lambda usage: repr(usage)[:60] if not any_huge(usage) else "thousands of digits",
)
def test_what_it_cannot_have_used_is_counted_and_both_go_on_record(usage: Any) -> None:
    billed = judged(usage)
    assert billed.meters == {"in_text": 10, "out_text": 5}
    assert billed.counted
    assert billed.doubt
    assert billed.recorded["provider"] is usage
    assert billed.recorded["why"] == billed.doubt
    assert normalise(billed.usage_format, billed.recorded) == billed.meters


def any_huge(usage: Any) -> bool:
    try:
        repr(usage)
    except ValueError:
        return True
    return False


def test_no_usage_is_no_doubt() -> None:
    billed = judged(None)
    assert (billed.meters, billed.counted, billed.doubt) == ({"in_text": 10, "out_text": 5}, True, None)


@pytest.mark.parametrize("usage", [None, {}, told(0, 0), told(2**64, 0), told("a", "b")])
def test_nothing_generated_and_no_usage_costs_nothing(usage: Any) -> None:
    assert judged(usage, output=0).meters == {}


def test_a_prompt_that_gave_no_answer_is_charged_as_told() -> None:
    assert judged(told(10, 0), output=0).meters == {"in_text": 10}


@pytest.mark.parametrize(
    "odd", [{"prompt_tokens_details": []}, {"completion_tokens_details": "none"}, {"total_tokens": "15"}]
)
def test_details_that_cannot_be_read_leave_the_totals(odd: dict[str, Any]) -> None:
    billed = judged(told(10, 5, **odd))
    assert billed.meters == {"in_text": 10, "out_text": 5}
    assert not billed.counted
    assert normalise(billed.usage_format, billed.recorded) == billed.meters


def test_the_stated_allowances() -> None:
    for usage in (told(60 + PROMPT_ALLOWANCE, 5), told(10, 100 + OUTPUT_ALLOWANCE)):
        billed = judged(usage)
        assert not billed.counted
        assert "not charged" in str(billed.doubt)
    for usage in (told(61 + PROMPT_ALLOWANCE, 5), told(10, 101 + OUTPUT_ALLOWANCE)):
        assert judged(usage).counted


def test_what_a_template_adds_is_charged_while_the_hold_covers_it() -> None:
    most = MaxUsage(input_units=60, max_output=4096)
    assert judged(told(100, 5), most=most).meters == {"in_text": 100, "out_text": 5}
    # 4,100 tokens for a limit of 4,096: the prompt was held for more than it took.
    assert judged(told(10, 4_100), most=most).meters == {"in_text": 10, "out_text": 4_100}


def test_what_costs_more_than_the_hold_is_left_out() -> None:
    billed = judged(told(100, 100))
    assert billed.meters == {"in_text": 60, "out_text": 100}
    assert billed.doubt == "40 units above the call's bound are not charged"
    assert billed.recorded["provider"] == told(100, 100)
    assert billed.recorded["why"] == billed.doubt
    assert normalise(billed.usage_format, billed.recorded) == billed.meters


def test_what_costs_as_much_as_the_hold_is_charged_as_told() -> None:
    assert judged(told(100, 90)).meters == {"in_text": 100, "out_text": 90}
    assert judged(told(100, 91)).meters == {"in_text": 60, "out_text": 91}


def test_quotas_and_the_service_tier_decide_what_the_hold_covers() -> None:
    rows = (*PLAIN, Row("in_text", 2 * IN * 10**6, service_tier="priority"))
    priced = replace(admission(rows), service_tier="priority")
    bound = priced.bound(SMALL)

    def billed(prompt: int, completion: int, allotted: dict[str, int]) -> dict[str, int]:
        usage = told(prompt, completion)
        return dict(billed_usage(priced, bound, allotted, "openai", usage, lambda: 1, lambda: 1).meters)

    # 60 * 5,000 + 100 * 10,000 n$ are held, or 160 units of text.
    assert billed(100, 80, {}) == {"in_text": 100, "out_text": 80}
    assert billed(100, 81, {}) == {"in_text": 60, "out_text": 81}
    assert billed(100, 60, {"text_tokens": 160}) == {"in_text": 100, "out_text": 60}
    assert billed(100, 61, {"text_tokens": 160}) == {"in_text": 60, "out_text": 61}
    # Half of the units: all of the money is held, and the units pay a part.
    assert billed(140, 80, {"text_tokens": 80}) == {"in_text": 140, "out_text": 80}


def test_a_prompt_that_was_cached_whole_is_cut_too() -> None:
    usage = told(100, 100, prompt_tokens_details={"cached_tokens": 100})
    assert judged(usage).meters == {"cache_read": 60, "out_text": 100}


@pytest.mark.parametrize(
    ("usage", "doubt"),
    [
        (told(0, 0), "an answer of 0 units, though one was generated"),
        (told(0, 5), "a prompt of 0 units, though there is an answer"),
        (told(2_000, 5), "a prompt of 2000 units, where the call's has 60 at most"),
        (told(10, 500), "an answer of 500 units, where the call's has 100 at most"),
        (told(10, 5, prompt_tokens_details={"audio_tokens": 4}), "in_audio: 4, where the call can have 0"),
    ],
)
def test_the_doubt_is_said(usage: dict[str, Any], doubt: str) -> None:
    assert judged(usage).doubt == doubt


def test_text_goes_before_what_is_cached() -> None:
    billed = judged(told(100, 100, prompt_tokens_details={"cached_tokens": 50}))
    assert billed.meters == {"in_text": 10, "cache_read": 50, "out_text": 100}


def test_a_count_stays_within_the_bound() -> None:
    assert judged(None, prompt=10**9, output=10**9).meters == {"in_text": 60, "out_text": 100}
    assert judged(told(-1, -1), prompt=-5, output=1).meters == {"out_text": 1}
    embedding = MaxUsage(input_units=60)
    assert judged(None, most=embedding).meters == {"in_text": 10}


def test_pieces_stand_for_both_sides() -> None:
    rows = (*PLAIN, Row("image", 10**13))
    most = MaxUsage(input_units=60, max_output=0, others={"image": 2})
    assert judged({"n": 2}, most=most, usage_format="images", rows=rows).meters == {"image": 2}
    assert judged({"n": 3}, most=most, usage_format="images", rows=rows).counted
    both = MaxUsage(input_units=60, max_output=100, others={"image": 2})
    assert judged({"n": 2}, most=both, usage_format="images", rows=rows).meters == {"image": 2}
    assert judged({"n": 3}, most=both, usage_format="images", rows=rows).doubt == (
        "image: 3, where the call can have 2"
    )


def test_the_record_of_a_count() -> None:
    usage = told("ten", 5)
    why = "prompt_tokens: 'ten' is not a whole number; pass the usage as it came"
    assert judged(usage, output=1).recorded == {
        "prompt_tokens": 10,
        "completion_tokens": 1,
        "meters": {"in_text": 10, "out_text": 1},
        "estimated": True,
        "why": why,
        "provider": usage,
    }
    nothing = judged(None, output=-1)
    assert (nothing.meters, nothing.recorded["completion_tokens"], nothing.counted) == ({}, 0, True)


def test_the_record_of_totals_without_their_details() -> None:
    usage = told(10, 5, prompt_tokens_details=[])
    why = "prompt_tokens_details: it is not an object; pass the usage as it came"
    billed = judged(usage)
    assert billed.recorded == {**told(10, 5), "why": why, "provider": usage}
    assert billed.doubt == why


def test_a_side_is_judged_by_the_sum_of_its_meters() -> None:
    half = told(2_000, 5, prompt_tokens_details={"cached_tokens": 1_000})
    assert judged(half).doubt == "a prompt of 2000 units, where the call's has 60 at most"
    drawn = told(10, 200, completion_tokens_details={"image_tokens": 100})
    most = MaxUsage(60, 100, answer=("text", "image"))
    assert judged(drawn, most=most).doubt == "an answer of 200 units, where the call's has 100 at most"


def test_images_are_charged_in_a_call_that_has_some() -> None:
    usage = told(40, 5, prompt_tokens_details={"image_tokens": 30})
    most = MaxUsage(input_units=2_060, max_output=100, prompt=("text", "image"))
    assert judged(usage, most=most).meters == {"in_text": 10, "in_image": 30, "out_text": 5}


# ---------------------------------------------------------------------- any usage, any price

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(0, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
COUNT = st.integers(0, 400) | st.integers(0, 2**70) | JSON
KINDS = ("audio_tokens", "image_tokens", "cached_tokens", "reasoning_tokens", "text_tokens")
DETAILS = st.dictionaries(st.sampled_from(KINDS), COUNT) | JSON
OPENAI = st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": DETAILS,
        "completion_tokens_details": DETAILS,
        "tools": st.dictionaries(st.sampled_from(["web_search", "x y"]), COUNT) | JSON,
        "usage": JSON,
        "meters": JSON,
    },
)
MODALITY = st.fixed_dictionaries(
    {}, optional={"modality": st.sampled_from(["AUDIO", "TEXT"]), "tokenCount": COUNT}
)
GEMINI = st.fixed_dictionaries(
    {},
    optional={
        "promptTokenCount": COUNT,
        "candidatesTokenCount": COUNT,
        "thoughtsTokenCount": COUNT,
        "totalTokenCount": COUNT,
        "cachedContentTokenCount": COUNT,
        "promptTokensDetails": st.lists(MODALITY, max_size=2) | JSON,
        "candidatesTokensDetails": st.lists(MODALITY, max_size=2) | JSON,
    },
)
ANTHROPIC = st.fixed_dictionaries(
    {},
    optional={
        "input_tokens": COUNT,
        "output_tokens": COUNT,
        "cache_read_input_tokens": COUNT,
        "cache_creation": st.dictionaries(st.sampled_from(["ephemeral_1h_input_tokens"]), COUNT) | JSON,
        "server_tool_use": st.dictionaries(st.sampled_from(["web_search_requests"]), COUNT) | JSON,
        "seconds": COUNT,
        "n": COUNT,
    },
)
USAGE = st.none() | OPENAI | GEMINI | ANTHROPIC | JSON
PRICE = st.integers(0, 10**11)
METER_NAMES = ("in_text", "out_text", "cache_read", "cache_write_5m", "in_image", "in_audio", "out_image")


@st.composite
def admissions(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Admission:
    """Prices of any meters, with tiers by prompt length, a quantum and a minimum."""
    edge = draw(st.sampled_from([50, 120, 10**6]))
    rows = []
    for meter in METER_NAMES:
        if meter in ("in_text", "out_text") or draw(st.booleans()):
            rows.append(Row(meter, draw(PRICE), context_to=edge))
            rows.append(Row(meter, draw(PRICE), context_from=edge))
    rows += [Row("tool:web_search", draw(PRICE)), Row("image", draw(PRICE)), Row("ms", draw(PRICE))]
    if draw(st.booleans()):
        rows.append(Row("call", draw(PRICE)))
    terms = {"quantum": draw(st.sampled_from([1, 2000])), "minimum": draw(st.sampled_from([0, 2000, 10**7]))}
    free = draw(st.integers(0, 9)) == 0
    return admission(() if free else tuple(rows), **terms, free=free)


@st.composite
def bounds(draw: Callable[[st.SearchStrategy[Any]], Any]) -> MaxUsage:
    plain = ("text",)
    tools = st.dictionaries(st.sampled_from(["tool:web_search", "image", "ms"]), st.integers(0, 5))
    return MaxUsage(
        input_units=draw(st.integers(0, 300)),
        max_output=draw(st.integers(0, 300)),
        prompt=draw(st.just(plain) | st.sampled_from([("text", "image"), ("text", "audio"), ("audio",)])),
        answer=draw(st.just(plain) | st.sampled_from([("text", "image"), ("image",)])),
        others=draw(st.just({}) | tools),
    )


def bound_by_definition(priced: Admission, most: MaxUsage) -> tuple[int, int]:
    """(amount, covered amount): each side at its dearest meter, at the dearest of all prompt lengths."""
    rows, amounts, covered = priced.tariff.version.rows, [0], [0]
    for start in {0} | {row.context_from for row in rows if row.context_from <= most.input_units}:
        table = table_for(rows, {"in_text": start})
        for sides, into in ((most.sides, amounts), (beyond_quotas(most.sides), covered)):
            meters = {"call": 1} if priced.tariff.whole_call else {}
            for possible, quantity in sides:
                prices = [table[meter].unit_price or 0 if meter in table else -1 for meter in possible]
                meters[possible[prices.index(max(prices))]] = quantity
            into.append(compute(table, meters, priced.tariff.terms).amount)
    return max(amounts), max(covered)


@given(admissions(), st.lists(bounds(), min_size=1, max_size=5))
def test_a_bound_is_as_defined_whatever_was_asked_before(priced: Admission, asked: list[MaxUsage]) -> None:
    for most in [*asked, *asked]:
        bound = priced.bound(most)
        assert (bound.amount, bound.covered_amount) == (
            (0, 0) if priced.free else bound_by_definition(priced, most)
        )
        assert bound.most is most


def granted(bound: Bound, share: str) -> dict[str, int]:
    """Typed units as the ledger allots them: all, some or none."""
    if share == "all":
        return dict(bound.quotas)
    return {unit: quantity // 2 for unit, quantity in bound.quotas.items()} if share == "some" else {}


@given(
    admissions(),
    bounds(),
    st.sampled_from(["all", "some", "none"]),
    st.sampled_from(sorted(FORMATS)),
    USAGE,
    st.integers(0, 500),
    st.integers(0, 500),
)
@settings(max_examples=4 * settings().max_examples)
def test_no_usage_leads_to_a_charge_above_the_hold(
    priced: Admission, most: MaxUsage, share: str, usage_format: str, usage: Any, prompt: int, output: int
) -> None:
    bound = priced.bound(most)
    allotted = granted(bound, share)
    billed = billed_usage(priced, bound, allotted, usage_format, usage, lambda: prompt, lambda: output)
    charge = settle(priced.tariff, billed.meters, allotted, "").list_charge
    if billed.meters:
        assert charge.amount <= bound.held(allotted)
    assert normalise(billed.usage_format, billed.recorded) == billed.meters
    # What the database keeps gives the same meters to an audit.
    assert normalise(billed.usage_format, json.loads(json_text(billed.recorded))) == billed.meters


@given(st.sampled_from(sorted(FORMATS)), USAGE)
def test_plausible_figures_are_believed(usage_format: str, usage: Any) -> None:
    """Whatever is within a bound that is wide enough for it is charged as it was told."""
    wide = MaxUsage(10**40, 10**40, ("text", "image", "audio"), ("text", "image", "audio"), ANY)
    priced = admission((*PLAIN, Row("image", 1), Row("ms", 1), Row("char", 1)))
    billed = billed_usage(priced, Bound(10**60, most=wide), {}, usage_format, usage, lambda: 1, lambda: 0)
    try:
        expected = normalise(usage_format, usage)
    except ValueError:
        assert billed.doubt or usage is None
    else:
        assert billed.meters == expected or "a prompt of 0 units" in (billed.doubt or "")


class _Any(dict[str, int]):
    def get(self, key: str, default: Any = None) -> Any:
        return 10**40


ANY = _Any()


@pytest.mark.parametrize("usage", [told(0, 0), {"total_tokens": 0}, None])
def test_embeddings_with_a_prompt_of_nothing_are_counted(usage: Any) -> None:
    vectors = MaxUsage(input_units=60, max_output=0)
    billed = judged(usage, most=vectors, output=1, usage_format="embeddings")
    assert (billed.meters, billed.counted) == ({"in_text": 10}, True)
    assert judged(usage, most=vectors, output=0, usage_format="embeddings").meters == {}
