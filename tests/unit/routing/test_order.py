"""Sticky calls and least latency: who is asked first, who moves when a channel goes, and who does not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.routing.channels import FAILURES_UNTIL_COOLDOWN
from relay.routing.order import Affinity, Latencies, Routes, affinity, arrange, at_random
from tests.unit.routing.test_channels import Table, row, sealed


@dataclass(frozen=True)
class One:
    id: int
    weight: int = 1
    priority: int = 0


def session(number: int, account: int = 1) -> Affinity:
    return affinity("session", account, b"s%d" % number)


def order(channels: list[One], which: Affinity) -> list[int]:
    return [one.id for one in arrange(channels, lambda channel: which.lot(str(channel.id)))]


CHANNELS = st.lists(
    st.builds(One, st.integers(1, 10**6), st.integers(0, 1000), st.integers(-1, 1)),
    min_size=1,
    max_size=8,
    unique_by=lambda one: one.id,
)


@given(CHANNELS, st.integers(0, 10**9), st.randoms())
def test_a_session_has_one_order_whatever_the_replica(
    channels: list[One], number: int, shuffled: Any
) -> None:
    other = channels[:]
    shuffled.shuffle(other)
    assert order(channels, session(number)) == order(other, session(number))


@given(CHANNELS, st.integers(0, 10**9), st.integers(0, 7))
def test_whoever_goes_leaves_the_order_of_the_others(channels: list[One], number: int, gone: int) -> None:
    """So only sessions that had the channel move, and each of them to its own next one."""
    left = [one for one in channels if one.id != channels[gone % len(channels)].id]
    all_of_them = order(channels, session(number))
    assert order(left, session(number)) == [id for id in all_of_them if id in {one.id for one in left}]


@given(CHANNELS, st.integers(0, 10**9))
def test_a_higher_priority_goes_first_and_no_weight_last(channels: list[One], number: int) -> None:
    by_id = {one.id: one for one in channels}
    ranks = [(-by_id[id].priority, not by_id[id].weight) for id in order(channels, session(number))]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (5, 3, 2), (1000, 1000, 1), (1, 0)])
def test_sessions_are_shared_by_weight(weights: tuple[int, ...]) -> None:
    channels = [One(number, weight) for number, weight in enumerate(weights, 1)]
    count = 6000
    firsts = Counter(order(channels, session(number))[0] for number in range(count))
    for channel in channels:
        share = channel.weight / sum(weights)
        allowed = 5 * (share * (1 - share) / count) ** 0.5  # five standard deviations
        assert abs(firsts[channel.id] / count - share) <= allowed, firsts


def test_the_same_name_of_another_account_is_another_session() -> None:
    channels = [One(number) for number in range(1, 9)]
    of_the_first = order(channels, session(0, 1))
    assert not [other for other in range(2, 50) if order(channels, session(0, other)) == of_the_first]
    assert affinity("prefix", 1, b"x").by == "prefix"


# ---------------------------------------------------------------------- the table


def table_of(monkeypatch: pytest.MonkeyPatch, count: int, **route: str) -> Table:
    """Channels c1, c2 … of weights 1, 2 …, and a route for the model m."""
    made = Table(monkeypatch, [row(number, weight=number) for number in range(1, count + 1)])
    made.routes = [{"model": "m", "sticky": "off", "prefer": "weight"} | route] if route else []
    made.reload()
    return made


def test_a_session_stays_while_its_channel_is_healthy_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(monkeypatch, 3, sticky="session")
    sessions = [session(number) for number in range(200)]
    home = {which.key: next(iter(table.table.candidates("m", which))).id for which in sessions}
    assert set(home.values()) == {1, 2, 3}
    ill = next(it for it in table.table.of("m") if it.id == 2)
    now = [100.0]
    monkeypatch.setattr("relay.routing.channels.time.monotonic", lambda: now[0])
    for _ in range(FAILURES_UNTIL_COOLDOWN):
        table.table.failed(ill)
    for which in sessions:
        candidates = table.table.candidates("m", which)
        asked = next(iter(candidates)).id
        assert candidates.preferred is not None
        assert (candidates.by, candidates.preferred.id) == ("session", home[which.key])
        assert (asked == home[which.key]) == (home[which.key] != 2), "only those of the ill channel move"
        assert asked != 2
    now[0] += 60
    table.table.succeeded(ill, ill.keys[0], now[0])
    assert {which.key: next(iter(table.table.candidates("m", which))).id for which in sessions} == home


def test_a_session_stays_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [sealed(name, f"key-{name}") for name in ("a", "b", "c")]
    table = Table(monkeypatch, [row(1, sealed_keys=keys)])
    channel = table.only()
    used: Counter[str] = Counter()
    for number in range(90):
        first = next(iter(table.table.keys(channel, session(number))))
        with table.table.attempt(channel, first):
            assert next(iter(table.table.keys(channel, session(number)))) == first
        used[first.name] += 1
    assert min(used.values()) > 10
    table.table.refused(channel, first, None)
    assert next(iter(table.table.keys(channel, session(number)))) != first


def test_without_a_route_calls_go_by_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(monkeypatch, 2)
    assert (table.table.route("m").sticky, table.table.candidates("m").by) == ("off", "weight")
    table.routes = [{"model": "*", "sticky": "prefix", "prefer": "latency"}]
    table.reload()
    assert (table.table.route("m").sticky, table.table.route("other").prefer) == ("prefix", "latency")
    table.routes.append({"model": "m", "sticky": "off", "prefer": "weight"})
    table.reload()
    assert table.table.route("m").sticky == "off"


def test_the_quickest_channel_is_asked_first_and_the_others_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = table_of(monkeypatch, 3, prefer="latency")
    channels = {it.id: it for it in table.table.of("m")}
    seconds = {1: 0.2, 2: 0.5, 3: 0.9}
    asked: Counter[int] = Counter()
    by: Counter[str] = Counter()
    for _ in range(2000):
        candidates = table.table.candidates("m", stream=True)
        first = next(iter(candidates)).id
        asked[first] += 1
        by[candidates.by] += 1
        table.table.measured(channels[first], "m", True, seconds[first])
    assert asked[1] > 1800, asked
    assert min(asked[2], asked[3]) > 10, "who is slow is measured again"
    assert 0.02 < by["weight"] / 2000 < 0.09
    for _ in range(40):  # the quickest one has become slow
        table.table.measured(channels[1], "m", True, 5.0)
    asked.clear()
    for _ in range(200):
        asked[next(iter(table.table.candidates("m", stream=True))).id] += 1
    assert asked[2] > 170, asked
    assert next(iter(table.table.candidates("m", session(1), stream=True))).id in channels, "sticky ones stay"


def test_what_was_measured_is_forgotten_with_its_channel() -> None:
    latencies = Latencies()
    latencies.measured(1, "m", True, 1.0)
    latencies.measured(1, "m", True, 2.0)
    latencies.measured(2, "m", False, 3.0)
    assert latencies.of(1, "m", True) == pytest.approx(1.2)
    assert (latencies.of(1, "m", False), latencies.of(2, "m", False)) == (0.0, 3.0)
    latencies.keep(frozenset({2}))
    assert (latencies.of(1, "m", True), latencies.of(2, "m", False)) == (0.0, 3.0)


def test_a_route_of_the_model_goes_before_that_of_all() -> None:
    routes = Routes(
        [
            {"model": "*", "sticky": "session", "prefer": "weight"},
            {"model": "m", "sticky": "off", "prefer": "latency"},
        ]
    )
    assert (routes.of("m").sticky, routes.of("m").prefer) == ("off", "latency")
    assert (routes.of("n").sticky, Routes().of("n").sticky) == ("session", "off")


def test_lots_are_above_zero() -> None:
    assert all(0 < at_random(None) <= 1 for _ in range(1000))
    assert all(0 < session(number).lot("c") <= 1 for number in range(1000))
