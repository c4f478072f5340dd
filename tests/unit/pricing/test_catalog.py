"""Which price holds: the documented order of precedence, groups, currencies, time."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pricing import catalog as module
from relay.pricing.bound import MaxUsage
from relay.pricing.catalog import Catalog, FxRate, GroupMultiplier, matches
from relay.pricing.charge import Row
from relay.pricing.errors import Unpriced
from relay.pricing.tariff import PriceVersion, Tariff

NOW = datetime(2026, 11, 1, tzinfo=UTC)
EVER = datetime(2020, 1, 1, tzinfo=UTC)


def version(
    number: int,
    model: str,
    *,
    side: str = "sell",
    provider: str = "",
    group: str = "",
    currency: str = "USD",
    start: datetime = EVER,
    end: datetime | None = None,
    rows: tuple[Row, ...] = (Row("in_text", 10**9), Row("out_text", 4 * 10**9)),
    minimum: int = 0,
) -> PriceVersion:
    return PriceVersion(number, model, side, provider, group, currency, start, end, 1, minimum, False, rows)


def chosen(catalog: Catalog, model: str, group: str = "default", at: datetime = NOW) -> int:
    return catalog.admit(model, group=group, at=at).tariff.version.id


PATTERNS = Catalog(
    tuple(
        version(number, model)
        for number, model in enumerate(
            (
                "*",
                "o3*",
                "o3-mini",
                "o3-mini-*",
                "o3-mini-high",
                "gemini-2.5-flash-thinking-*",
                "gpt-4-gizmo-*",
                "*-4",
            )
        )
    )
)


@pytest.mark.parametrize(
    ("model", "number"),
    [
        ("o3-mini-high", 4),
        ("o3-mini-low", 3),
        ("o3-mini-2025", 3),
        ("o3-mini", 2),
        ("o3", 1),
        ("o3-high", 1),
        ("gemini-2.5-flash-thinking-1024", 5),
        ("gpt-4-gizmo-g-123", 6),
        ("claude-4", 7),
        ("anything", 0),
    ],
)
def test_the_most_literal_pattern_holds(model: str, number: int) -> None:
    assert chosen(PATTERNS, model) == number


def test_an_effort_suffix_is_a_variant_of_its_base() -> None:
    catalog = Catalog((version(1, "o3-mini"), version(2, "o3*")))
    assert chosen(catalog, "o3-mini-high") == 1
    assert chosen(catalog, "o3-mini-2025") == 2
    assert not matches("o3-mini", "o3-mini-2025")


def test_equal_patterns_are_ordered_by_name_not_by_age() -> None:
    for numbers in ((1, 2), (2, 1)):
        catalog = Catalog((version(numbers[0], "gpt-4*"), version(numbers[1], "*gpt-4")))
        assert catalog.admit("gpt-4", group="", at=NOW).tariff.version.model == "*gpt-4"


def test_patterns_are_no_regular_expressions() -> None:
    assert not matches("gpt.4", "gpt-4")
    assert matches("gpt.4*", "gpt.4+x")


def test_the_model_counts_before_the_group() -> None:
    catalog = Catalog((version(1, "m"), version(2, "m", group="vip"), version(3, "*", group="vip")))
    assert chosen(catalog, "m") == 1
    assert chosen(catalog, "m", "vip") == 2
    assert chosen(catalog, "other", "vip") == 3


def test_a_cost_is_found_by_provider() -> None:
    catalog = Catalog(
        (version(1, "m"), version(2, "m", side="cost"), version(3, "m", side="cost", provider="acme"))
    )
    admission = catalog.admit("m", group="default", at=NOW)
    for provider, number in (("acme", 3), ("other", 2)):
        tariff = catalog.cost_tariff("m", provider, NOW)
        assert tariff is not None
        assert tariff.version.id == number
        cost = admission.cost(provider, {"in_text": 10})
        assert cost is not None
        assert cost.amount == 10_000


BILLS = {
    1: "",
    2: "acme",
    3: "acme-eu",  # a channel of acme
    4: "other",
    5: "other-us",  # a channel of other
}


@pytest.mark.parametrize(
    ("provider", "channel", "number"),
    [
        ("acme", "acme-eu", 3),
        ("acme", "acme-us", 2),
        ("acme", "", 2),
        ("other", "other-us", 5),
        ("other", "other-eu", 4),
        ("third", "third-1", 1),
        ("acme", "other-us-2", 2),
        ("openai", "openai", 1),
    ],
)
def test_a_cost_by_channel_goes_before_one_by_provider_before_one_for_all(
    provider: str, channel: str, number: int
) -> None:
    for numbers in (sorted(BILLS), sorted(BILLS, reverse=True)):
        versions = [
            version(n, "m", side="cost", provider=BILLS[n], rows=(Row("in_text", n * 10**9),))
            for n in numbers
        ]
        admission = Catalog((version(9, "m"), *versions)).admit("m", group="", at=NOW)
        for _ in range(2):  # found, then remembered
            cost = admission.cost(provider, {"in_text": 1000}, channel)
            assert cost is not None
            assert cost.amount == number * 1_000_000


@pytest.mark.parametrize("provider", ["acme", "acme-eu"])
def test_a_cost_of_somebody_else_is_none(provider: str) -> None:
    catalog = Catalog((version(1, "m"), version(2, "m", side="cost", provider=provider)))
    admission = catalog.admit("m", group="", at=NOW)
    assert admission.cost("other", {"in_text": 10}, "other-1") is None
    assert admission.cost("acme", {"in_text": 10}, "acme-eu") is not None


def test_the_models_pattern_goes_before_whose_price_it_is() -> None:
    catalog = Catalog(
        (
            version(1, "m"),
            version(2, "m", side="cost", rows=(Row("in_text", 2 * 10**9),)),
            version(3, "*", side="cost", provider="acme-eu", rows=(Row("in_text", 3 * 10**9),)),
        )
    )
    cost = catalog.admit("m", group="", at=NOW).cost("acme", {"in_text": 1000}, "acme-eu")
    assert cost is not None
    assert cost.amount == 2_000_000


def test_the_version_of_the_moment_holds() -> None:
    change = NOW + timedelta(hours=1)
    catalog = Catalog((version(1, "m", end=change), version(2, "m", start=change)))
    assert chosen(catalog, "m", at=NOW) == 1
    assert chosen(catalog, "m", at=change - timedelta(microseconds=1)) == 1
    assert chosen(catalog, "m", at=change) == 2


def test_an_expired_special_price_gives_way_to_the_general_one() -> None:
    catalog = Catalog((version(1, "m*"), version(2, "m", end=NOW)))
    assert chosen(catalog, "m", at=NOW - timedelta(seconds=1)) == 2
    assert chosen(catalog, "m", at=NOW) == 1


def test_no_price_is_refused() -> None:
    with pytest.raises(Unpriced, match="'m' has no price"):
        Catalog((version(1, "m", start=NOW + timedelta(days=1)),)).admit("m", group="", at=NOW)


GROUPS = (
    GroupMultiplier(1, "vip", "", Fraction("0.9"), EVER, None),
    GroupMultiplier(2, "reseller", "", Fraction("0.7"), EVER, None),
    GroupMultiplier(3, "vip", "reseller", Fraction("0.8"), EVER, None),
)


@pytest.mark.parametrize(
    ("group", "using", "factor"),
    [
        ("default", "", "1"),
        ("vip", "", "0.9"),
        ("vip", "reseller", "0.8"),  # the override replaces both multipliers
        ("default", "reseller", "0.7"),
        ("reseller", "vip", "0.9"),
    ],
)
def test_group_for_group(group: str, using: str, factor: str) -> None:
    catalog = Catalog((version(1, "m"),), GROUPS)
    charge = catalog.admit("m", group=group, at=NOW, using_group=using).charge({"in_text": 1000})
    assert charge.exact == 1_000_000 * Fraction(factor)


def test_a_cost_has_no_group_multiplier() -> None:
    catalog = Catalog((version(1, "m"), version(2, "m", side="cost")), GROUPS)
    cost = catalog.admit("m", group="vip", at=NOW).cost("any", {"in_text": 1000})
    assert cost is not None
    assert cost.amount == 1_000_000


def test_a_currency_by_the_rate_of_the_moment() -> None:
    change = NOW + timedelta(hours=1)
    rates = (FxRate(1, "CNY", Fraction(10, 73), EVER, change), FxRate(2, "CNY", Fraction(1, 7), change, None))
    catalog = Catalog((version(1, "m", currency="CNY"), version(2, "e", currency="EUR")), (), rates)
    assert catalog.admit("m", group="", at=NOW).charge({"in_text": 73}).amount == 10_000
    assert catalog.admit("m", group="", at=change).charge({"in_text": 7}).amount == 1000
    with pytest.raises(Unpriced, match="EUR"):
        catalog.admit("e", group="", at=NOW)


def test_a_bound_takes_the_dearest_input_and_tier() -> None:
    rows = (
        Row("in_text", 3 * 10**9, context_to=1001),
        Row("in_text", 6 * 10**9, context_from=1001),
        Row("cache_write_5m", 4 * 10**9),
        Row("in_audio", 40 * 10**9),
        Row("out_text", 15 * 10**9),
    )
    admission = Catalog((version(1, "m", rows=rows),)).admit("m", group="", at=NOW)
    assert admission.bound(MaxUsage(input_units=1000, max_output=100)).amount == 1000 * 4000 + 100 * 15000
    assert admission.bound(MaxUsage(input_units=2000, max_output=0)).amount == 2000 * 6000
    spoken = admission.bound(MaxUsage(input_units=1000, max_output=100, prompt=("text", "audio")))
    assert spoken.amount == 1000 * 40000 + 100 * 15000


def test_a_bound_knows_what_quotas_may_cover() -> None:
    rows = (Row("in_text", 10**9), Row("out_text", 10**9), Row("tool:web_search", 10**13))
    admission = Catalog((version(1, "m", rows=rows),)).admit("m", group="", at=NOW)
    bound = admission.bound(MaxUsage(input_units=10, max_output=5, others={"tool:web_search": 2}))
    assert bound.quotas == {"text_tokens": 15}
    assert bound.covered_amount == 20_000_000
    assert bound.amount == 20_000_000 + 15_000


def test_a_meter_without_price_is_refused_before_the_call() -> None:
    admission = Catalog((version(1, "m", rows=(Row("in_text", 10**9),)),)).admit("m", group="", at=NOW)
    with pytest.raises(Unpriced, match="out_text"):
        admission.bound(MaxUsage(input_units=10, max_output=5))
    with pytest.raises(Unpriced, match="image"):
        admission.bound(MaxUsage(input_units=10, others={"image": 1}))


def test_a_minimum_is_held_too() -> None:
    admission = Catalog((version(1, "m", minimum=5000),)).admit("m", group="", at=NOW)
    assert admission.bound(MaxUsage(input_units=1, max_output=0)).amount == 5000


def test_a_price_a_call_is_held_beside_quotas() -> None:
    rows = (Row("in_text", 10**9), Row("out_text", 10**9), Row("call", 40_000_000 * 10**6))
    admission = Catalog((version(1, "m", rows=rows),)).admit("m", group="", at=NOW)
    bound = admission.bound(MaxUsage(input_units=10, max_output=5))
    assert (bound.amount, bound.covered_amount, bound.quotas) == (40_015_000, 40_000_000, {"text_tokens": 15})


def test_images_are_held_where_quotas_pay_for_the_text() -> None:
    rows = (Row("in_text", 3 * 10**9), Row("in_image", 2 * 10**9), Row("out_text", 10**9))
    admission = Catalog((version(1, "m", rows=rows),)).admit("m", group="", at=NOW)
    bound = admission.bound(MaxUsage(input_units=10, max_output=5, prompt=("text", "image")))
    assert (bound.amount, bound.covered_amount) == (35_000, 20_000)
    assert bound.held({"text_tokens": 15}) == 20_000
    assert bound.held({"text_tokens": 14}) == 35_000
    assert bound.held({}) == 35_000


HOURS = [NOW + timedelta(hours=hour) for hour in range(4)]
PERIODS = st.tuples(st.sampled_from([EVER, *HOURS]), st.sampled_from([None, *HOURS]))
GROUP_NAMES, MODELS = st.sampled_from(["", "vip", "reseller"]), st.sampled_from(["m", "m-high", "n"])
AROUND = [hour + timedelta(microseconds=more) for hour in HOURS for more in (-1, 0, 1)]
CALLS = st.tuples(MODELS, GROUP_NAMES, GROUP_NAMES, st.sampled_from(["", "acme"]))


@st.composite
def catalogs(draw: Any) -> Catalog:
    """Prices, multipliers and rates that begin and end at the same few moments."""
    versions = []
    for number in range(draw(st.integers(1, 6))):
        side, (start, end) = draw(st.sampled_from(["sell", "cost"])), draw(PERIODS)
        named = (
            {"group": draw(GROUP_NAMES)}
            if side == "sell"
            else {"provider": draw(st.sampled_from(["", "acme"]))}
        )
        named |= {"currency": draw(st.sampled_from(["USD", "CNY"]))}
        pattern = draw(st.sampled_from(["m", "m*", "*", "n"]))
        versions.append(version(number, pattern, side=side, start=start, end=end, **named))
    groups = [
        GroupMultiplier(number, draw(GROUP_NAMES), draw(GROUP_NAMES), Fraction(number + 2), *draw(PERIODS))
        for number in range(draw(st.integers(0, 4)))
    ]
    rates = [
        FxRate(number, "CNY", Fraction(1, number + 2), *draw(PERIODS))
        for number in range(draw(st.integers(0, 2)))
    ]
    return Catalog(tuple(versions), tuple(groups), tuple(rates))


def priced(catalog: Catalog, call: tuple[str, str, str, str], at: datetime) -> list[Any]:
    """What a call's sell price and cost price are, or why they are none."""
    model, group, using, provider = call

    def sell() -> Tariff | None:
        return catalog.admit(model, group=group, at=at, using_group=using).tariff

    def cost() -> Tariff | None:
        return catalog.cost_tariff(model, provider, at, "main")

    found: list[Any] = []
    for side in (sell, cost):
        try:
            tariff = side()
        except Unpriced as error:
            found.append(str(error))
        else:
            found.append(tariff and (tariff.version, tariff.multipliers, tariff.fx, tariff.terms))
    return found


@given(
    catalogs(), st.lists(CALLS, min_size=1, max_size=3), st.permutations(AROUND), st.sampled_from([0, 1, 100])
)
def test_what_a_catalog_remembers_is_what_it_would_find(
    catalog: Catalog, calls: list[tuple[str, str, str, str]], moments: list[datetime], remembered: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_REMEMBERED", remembered)
        for call, at in [(call, at) for _ in range(2) for at in moments for call in calls]:
            anew = Catalog(catalog.versions, catalog.groups, catalog.fx)
            assert priced(catalog, call, at) == priced(anew, call, at)
