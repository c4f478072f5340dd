"""Which channels serve a model, in which order they are tried, and what failures do to that."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from cryptography.fernet import Fernet

from relay.routing import channels as routing
from relay.routing.channels import (
    COOLDOWN_SECONDS,
    FAILURES_UNTIL_COOLDOWN,
    Channel,
    ChannelTable,
    arrange,
)
from relay.routing.key_cipher import KeyCipher
from relay.store import channels as store
from relay.telemetry.metrics import Metrics

CIPHER = KeyCipher(Fernet.generate_key().decode())


def channel(number: int, priority: int = 0, weight: int = 1) -> Channel:
    return Channel(number, f"c{number}", "openai", "http://v", "k", frozenset("m"), {}, priority, weight)


# ---------------------------------------------------------------------- the order


def test_priority_goes_first_and_what_cools_down_last() -> None:
    channels = [channel(1, 0), channel(2, 9), channel(3, 5)]
    order = arrange(channels, lambda it: it.id == 2, lambda: 0.5)
    assert [it.id for it in order] == [3, 1, 2]


def test_weights_share_the_first_attempts() -> None:
    channels = [channel(1, weight=3), channel(2, weight=1), channel(3, weight=0)]
    draws = random.Random(7)  # noqa: S311
    firsts = Counter(
        arrange(channels, lambda _: False, lambda: 1 - draws.random())[0].id for _ in range(4000)
    )
    assert firsts[3] == 0
    assert 0.72 < firsts[1] / 4000 < 0.78


@pytest.mark.parametrize("weight", [1, 1000])
def test_a_weight_of_none_comes_after_the_smallest_lot(weight: int) -> None:
    idle, used = channel(1, weight=0), channel(2, weight=weight)
    for given in ([idle, used], [used, idle]):
        assert [it.id for it in arrange(given, lambda _: False, lambda: 2.0**-53)] == [2, 1]
    # Beyond its own priority it does count.
    lower = channel(3, priority=-1)
    assert [it.id for it in arrange([lower, idle], lambda _: False, lambda: 0.5)] == [1, 3]


def test_a_channel_does_not_show_its_key() -> None:
    shown = Channel(1, "c", "openai", "http://v", "very-secret", frozenset("m"), {}, 0, 1)
    assert "very-secret" not in repr(shown)


# ---------------------------------------------------------------------- the table


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A channel as the store gives it."""
    return {
        "id": number,
        "name": f"c{number}",
        "provider": "acme",
        "format": "openai",
        "base_url": "https://api.example.com/v1",
        "api_key_sealed": CIPHER.encrypt(f"key-{number}"),
        "models": ["m"],
        "model_map": {},
        "priority": 0,
        "weight": 1,
        "unknown_fields": None,
        "output_limit_field": None,
        "status": "enabled",
    } | changes


class Table:
    """A ChannelTable over rows in memory; ``reload()`` does what a change does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: Iterable[dict[str, Any]]) -> None:
        self.rows = list(rows)
        self.metrics = Metrics()
        self._followed: dict[str, Callable[[int | None], Awaitable[None]]] = {}
        connection = object()

        @asynccontextmanager
        async def connected() -> AsyncIterator[object]:
            yield connection

        async def load(given: object) -> list[dict[str, Any]]:
            assert given is connection
            return self.rows

        monkeypatch.setattr(store, "load_channels", load)
        pool = type("Pool", (), {"connection": staticmethod(connected)})()
        self.table = ChannelTable(cast(Any, pool), CIPHER, self.metrics)
        changes = type("Changes", (), {"on": staticmethod(self._followed.__setitem__)})()
        assert (self.table.models(), self.table.candidates("m")) == ([], [])
        assert not self.table.knows("m")
        self.table.follow(cast(Any, changes))
        self.reload()

    def reload(self) -> None:
        (follow,) = (self._followed[name] for name in ["channels"])
        asyncio.run(cast(Any, follow(None)))

    def only(self, model: str = "m") -> Channel:
        (found,) = self.table.candidates(model)
        return found

    def state(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value("relay_channel_state", {"channel": name})


def test_a_channel_is_what_its_row_says(monkeypatch: pytest.MonkeyPatch) -> None:
    full = row(
        7,
        base_url="https://api.example.com/X//",
        models=["m"],
        model_map={"n": "theirs"},
        priority=5,
        weight=3,
        unknown_fields="drop",
        output_limit_field="max_tokens",
        format="another",
    )
    monkeypatch.setattr(routing, "FORMATS", ("openai", "another"))
    table = Table(monkeypatch, [full, row(8, models=["o"], unknown_fields="", output_limit_field="")])
    shown = table.only()
    assert shown == Channel(
        id=7,
        name="c7",
        provider="acme",
        base_url="https://api.example.com/X",
        api_key="key-7",
        models=frozenset({"m", "n"}),
        model_map={"n": "theirs"},
        priority=5,
        weight=3,
        format="another",
        unknown_fields="drop",
        output_limit_field="max_tokens",
    )
    assert (shown.provider_model("n"), shown.provider_model("m")) == ("theirs", "m")
    assert table.only("n") is shown
    other = table.only("o")
    assert (other.unknown_fields, other.output_limit_field) == (None, None)


def test_models_of_enabled_channels_are_served_and_the_others_known(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        row(1, models=["b", "a"]),
        row(2, models=["a"], model_map={"mapped": "x"}),
        row(3, models=["off"], model_map={"off-mapped": "y"}, status="disabled"),
    ]
    table = Table(monkeypatch, rows)
    served = table.table
    assert served.models() == ["a", "b", "mapped"]
    assert [served.serves(model) for model in ("a", "mapped", "off", "x")] == [True, True, False, False]
    known = ("a", "mapped", "off", "off-mapped", "x", "y")
    assert [served.knows(model) for model in known] == [True, True, True, True, False, False]
    assert sorted(it.id for it in served.candidates("a")) == [1, 2]
    assert served.candidates("off") == []
    assert [table.state(f"c{n}") for n in (1, 2, 3)] == [1, 1, 0]


def test_a_change_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, [row(1)])
    table.rows = [row(1, status="disabled"), row(2, models=["n"])]
    table.reload()
    assert (table.table.models(), table.table.candidates("m")) == (["n"], [])
    assert [table.state(f"c{n}") for n in (1, 2)] == [0, 1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"format": "newer"}, "a channel is left out: this version does not speak its format 'newer'"),
        (
            {"api_key_sealed": KeyCipher(Fernet.generate_key().decode()).encrypt("k")},
            "a channel is left out: RELAY_SEAL_KEY does not decrypt this channel's API key",
        ),
    ],
    ids=["format", "key"],
)
def test_a_channel_that_cannot_be_used_is_left_out_and_the_others_serve(
    wrong: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        table = Table(monkeypatch, [row(1, **wrong), row(2)])
    assert table.only().id == 2
    assert [table.state(f"c{n}") for n in (1, 2)] == [0, 1]
    assert [(line.getMessage(), line.__dict__["channel"]) for line in caplog.records] == [(said, "c1")]


# ---------------------------------------------------------------------- health


class Clock:
    """Stands still until it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(routing, "time", made)
    return made


def firsts(table: Table, draws: int = 200) -> set[int]:
    """Which channels are tried first."""
    return {table.table.candidates("m")[0].id for _ in range(draws)}


def test_a_channel_that_fails_three_times_is_tried_last_for_a_while(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    table = Table(monkeypatch, [row(1, priority=9), row(2), row(3)])
    first, channels = table.table.candidates("m")[0], table.table
    for _ in range(FAILURES_UNTIL_COOLDOWN - 1):
        channels.failed(first)
    assert (firsts(table), table.state("c1")) == ({1}, 1)
    channels.failed(first)
    assert (firsts(table), table.state("c1")) == ({2, 3}, 0.5)
    assert {channels.candidates("m")[-1].id for _ in range(20)} == {1}, "it is tried all the same"
    clock.now += COOLDOWN_SECONDS - 0.001
    assert firsts(table) == {2, 3}
    clock.now += 0.001
    assert firsts(table) == {1}
    # It has not answered yet: the next failure is one too many again.
    channels.failed(first)
    assert firsts(table) == {2, 3}


def test_an_answer_ends_the_cooling_and_the_count(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    table = Table(monkeypatch, [row(1, priority=9), row(2)])
    first, channels = table.table.candidates("m")[0], table.table
    for _ in range(FAILURES_UNTIL_COOLDOWN):
        channels.failed(first)
    channels.succeeded(first)
    assert (firsts(table), table.state("c1")) == ({1}, 1)
    for _ in range(FAILURES_UNTIL_COOLDOWN - 1):
        channels.failed(first)
    assert firsts(table) == {1}
    channels.succeeded(channels.candidates("m")[-1])  # says nothing of the first
    channels.failed(first)
    assert firsts(table) == {2}


def test_the_health_of_a_channel_outlives_a_change(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    table = Table(monkeypatch, [row(1, priority=9), row(2)])
    for _ in range(FAILURES_UNTIL_COOLDOWN):
        table.table.failed(table.table.candidates("m")[0])
    table.reload()
    assert firsts(table) == {2}


def test_equals_share_the_first_attempts_and_weights_count(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(7)
    table = Table(monkeypatch, [row(1, weight=3), row(2), row(3, weight=0)])
    counted = Counter(table.table.candidates("m")[0].id for _ in range(4000))
    assert counted[3] == 0
    assert 0.72 < counted[1] / 4000 < 0.78
