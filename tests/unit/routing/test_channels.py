"""Which channels serve a model, in which order they are tried, and what failures do to that."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, cast

import pytest
from cryptography.fernet import Fernet

from relay.routing import channels as routing
from relay.routing.breaker import PROBE_SECONDS
from relay.routing.budgets import ChannelBudgets
from relay.routing.channels import (
    COOLDOWN_SECONDS,
    FAILURES_UNTIL_COOLDOWN,
    KEY_COOLDOWN_SECONDS,
    LONGEST_KEY_COOLDOWN_SECONDS,
    ApiKey,
    Channel,
    ChannelTable,
)
from relay.routing.key_cipher import KeyCipher
from relay.routing.order import arrange
from relay.store import channels as store
from relay.telemetry.metrics import Metrics

CIPHER = KeyCipher(Fernet.generate_key().decode())


def channel(number: int, priority: int = 0, weight: int = 1) -> Channel:
    return Channel(
        number,
        f"c{number}",
        "openai",
        "http://v",
        (ApiKey("first", "k"),),
        frozenset("m"),
        {},
        priority,
        weight,
    )


# ---------------------------------------------------------------------- the order


def test_priority_goes_first() -> None:
    channels = [channel(1, 0), channel(2, 9), channel(3, 5)]
    assert [it.id for it in arrange(channels, lambda _: 0.5)] == [2, 3, 1]


def test_weights_share_the_first_attempts() -> None:
    channels = [channel(1, weight=3), channel(2, weight=1), channel(3, weight=0)]
    draws = random.Random(7)  # noqa: S311
    firsts = Counter(arrange(channels, lambda _: 1 - draws.random())[0].id for _ in range(4000))
    assert firsts[3] == 0
    assert 0.72 < firsts[1] / 4000 < 0.78


@pytest.mark.parametrize("weight", [1, 1000])
def test_a_weight_of_none_comes_after_the_smallest_lot(weight: int) -> None:
    idle, used = channel(1, weight=0), channel(2, weight=weight)
    for given in ([idle, used], [used, idle]):
        assert [it.id for it in arrange(given, lambda _: 2.0**-53)] == [2, 1]
    # Beyond its own priority it does count.
    lower = channel(3, priority=-1)
    assert [it.id for it in arrange([lower, idle], lambda _: 0.5)] == [1, 3]


def test_a_channel_does_not_show_its_key() -> None:
    shown = Channel(1, "c", "openai", "http://v", (ApiKey("a", "very-secret"),), frozenset("m"), {}, 0, 1)
    assert "very-secret" not in repr(shown)


# ---------------------------------------------------------------------- the table


def sealed(name: str, key: str, cipher: KeyCipher = CIPHER) -> dict[str, str]:
    return {"name": name, "api_key_sealed": cipher.encrypt(key)}


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A channel as the store gives it."""
    return {
        "id": number,
        "name": f"c{number}",
        "provider": "acme",
        "format": "openai",
        "base_url": "https://api.example.com/v1",
        "sealed_keys": [sealed("first", f"key-{number}")],
        "models": ["m"],
        "model_map": {},
        "priority": 0,
        "weight": 1,
        "rpm": None,
        "tpm": None,
        "concurrency": None,
        "unknown_fields": None,
        "output_limit_field": None,
        "transcript_format": "",
        "status": "enabled",
    } | changes


class Table:
    """A ChannelTable over rows in memory; ``reload()`` does what a change does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: Iterable[dict[str, Any]]) -> None:
        self.rows = list(rows)
        self.routes: list[dict[str, Any]] = []
        self.metrics = Metrics()
        self._followed: dict[str, Callable[[int | None], Awaitable[None]]] = {}
        connection = object()

        @asynccontextmanager
        async def connected() -> AsyncIterator[object]:
            yield connection

        async def load(given: object) -> list[dict[str, Any]]:
            assert given is connection
            return self.rows

        async def load_routes(given: object) -> list[dict[str, Any]]:
            assert given is connection
            return self.routes

        monkeypatch.setattr(store, "load_channels", load)
        monkeypatch.setattr(routing, "list_routes", load_routes)
        pool = type("Pool", (), {"connection": staticmethod(connected)})()
        self.budgets = ChannelBudgets(cast(Any, pool), self.metrics)
        self.table = ChannelTable(cast(Any, pool), CIPHER, self.metrics, self.budgets)
        changes = type("Changes", (), {"on": staticmethod(self._followed.__setitem__)})()
        assert (self.table.models(), list(self.table.candidates("m"))) == ([], [])
        assert not self.table.knows("m")
        self.table.follow(cast(Any, changes))
        self.reload()

    def reload(self) -> None:
        (follow,) = (self._followed[name] for name in ["channels"])
        asyncio.run(cast(Any, follow(None)))

    def only(self, model: str = "m") -> Channel:
        (found,) = self.table.candidates(model)
        return found

    def usable(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value("relay_channel_keys_usable", {"channel": name})

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
        rpm=60,
        tpm=9_000,
        concurrency=4,
        sealed_keys=[sealed("a", "key-a"), sealed("b", "key-b")],
        unknown_fields="drop",
        output_limit_field="max_tokens",
        transcript_format="json",
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
        keys=(ApiKey("a", "key-a"), ApiKey("b", "key-b")),
        models=frozenset({"m", "n"}),
        model_map={"n": "theirs"},
        priority=5,
        weight=3,
        format="another",
        unknown_fields="drop",
        output_limit_field="max_tokens",
        transcript_format="json",
        rpm=60,
        tpm=9_000,
        concurrency=4,
    )
    assert (shown.provider_model("n"), shown.provider_model("m")) == ("theirs", "m")
    assert table.only("n") is shown
    other = table.only("o")
    assert (other.unknown_fields, other.output_limit_field, other.transcript_format) == (None, None, None)


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
    assert list(served.candidates("off")) == []
    assert [table.state(f"c{n}") for n in (1, 2, 3)] == [1, 1, 0]


def test_a_change_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, [row(1)])
    table.rows = [row(1, status="disabled"), row(2, models=["n"])]
    table.reload()
    assert (table.table.models(), list(table.table.candidates("m"))) == (["n"], [])
    assert [table.state(f"c{n}") for n in (1, 2)] == [0, 1]


OTHER_CIPHER = KeyCipher(Fernet.generate_key().decode())
NO_SEAL = "a channel's key is left out: RELAY_SEAL_KEY does not decrypt this channel's API key"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"format": "newer"},
            ["a channel is left out: this version does not speak its format 'newer'"],
        ),
        (
            {"sealed_keys": [sealed("a", "k", OTHER_CIPHER)]},
            [NO_SEAL, "a channel is left out: none of its keys can be used"],
        ),
    ],
    ids=["format", "key"],
)
def test_a_channel_that_cannot_be_used_is_left_out_and_the_others_serve(
    wrong: dict[str, Any],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        table = Table(monkeypatch, [row(1, **wrong), row(2)])
    assert table.only().id == 2
    assert [table.state(f"c{n}") for n in (1, 2)] == [0, 1]
    assert [(line.getMessage(), line.__dict__["channel"]) for line in caplog.records] == [
        (line, "c1") for line in said
    ]


def test_a_key_that_cannot_be_used_is_left_out_and_the_channels_others_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [sealed("a", "k", OTHER_CIPHER), sealed("b", "key-b")]
    with caplog.at_level(logging.ERROR):
        table = Table(monkeypatch, [row(1, sealed_keys=keys)])
    assert table.only().keys == (ApiKey("b", "key-b"),)
    assert [(line.getMessage(), line.__dict__["channel_key"]) for line in caplog.records] == [(NO_SEAL, "a")]


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
    return {next(table.table.candidates("m")).id for _ in range(draws)}


def test_a_channel_that_fails_three_times_is_tried_last_for_a_while(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    table = Table(monkeypatch, [row(1, priority=9), row(2), row(3)])
    first, channels = next(table.table.candidates("m")), table.table
    for _ in range(FAILURES_UNTIL_COOLDOWN - 1):
        channels.failed(first)
    assert (firsts(table), table.state("c1")) == ({1}, 1)
    channels.failed(first)
    assert (firsts(table), table.state("c1")) == ({2, 3}, 0.5)
    assert {list(channels.candidates("m"))[-1].id for _ in range(20)} == {1}, "it is tried all the same"
    clock.now += COOLDOWN_SECONDS - 0.001
    assert firsts(table) == {2, 3}
    clock.now += 0.001
    assert firsts(table) == {1}
    # It has not answered yet: the next failure is one too many again.
    channels.failed(first)
    assert firsts(table) == {2, 3}


def test_an_answer_ends_the_cooling_and_the_count(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    table = Table(monkeypatch, [row(1, priority=9), row(2)])
    first, channels = next(table.table.candidates("m")), table.table
    for _ in range(FAILURES_UNTIL_COOLDOWN):
        channels.failed(first)
    channels.succeeded(first, first.keys[0], clock.now)
    assert (firsts(table), table.state("c1")) == ({1}, 1)
    for _ in range(FAILURES_UNTIL_COOLDOWN - 1):
        channels.failed(first)
    assert firsts(table) == {1}
    other = list(channels.candidates("m"))[-1]
    channels.succeeded(other, other.keys[0], clock.now)  # says nothing of the first
    channels.failed(first)
    assert firsts(table) == {2}


def test_the_health_of_a_channel_outlives_a_change(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    table = Table(monkeypatch, [row(1, priority=9), row(2)])
    for _ in range(FAILURES_UNTIL_COOLDOWN):
        table.table.failed(next(table.table.candidates("m")))
    table.reload()
    assert (firsts(table), table.state("c1"), table.state("c2")) == ({2}, 0.5, 1)
    table.rows[0]["status"] = "disabled"
    table.reload()
    assert table.state("c1") == 0


def test_equals_share_the_first_attempts_and_weights_count(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(7)
    table = Table(monkeypatch, [row(1, weight=3), row(2), row(3, weight=0)])
    counted = Counter(next(table.table.candidates("m")).id for _ in range(4000))
    assert counted[3] == 0
    assert 0.72 < counted[1] / 4000 < 0.78


def opened(monkeypatch: pytest.MonkeyPatch) -> Table:
    """Two channels, of which the preferred one has just failed too often."""
    table = Table(monkeypatch, [row(1, priority=9), row(2)])
    for _ in range(FAILURES_UNTIL_COOLDOWN):
        table.table.failed(next(table.table.candidates("m")))
    return table


class Calls:
    """Calls at the same time, each at the channel and by the key that it would try first."""

    def __init__(self, table: ChannelTable) -> None:
        self._table = table
        self._ending: list[ExitStack] = []

    def begin(self) -> tuple[int, str]:
        channel = next(self._table.candidates("m"))
        key = next(self._table.keys(channel))
        stack = ExitStack()
        stack.enter_context(self._table.attempt(channel, key))
        self._ending.append(stack)
        return channel.id, key.name

    def end(self, number: int) -> None:
        self._ending[number].close()


def test_after_its_rest_a_channel_gets_one_probe_at_a_time(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    table = opened(monkeypatch)
    clock.now += COOLDOWN_SECONDS
    calls = Calls(table.table)
    assert [calls.begin()[0] for _ in range(50)] == [1] + [2] * 49
    calls.end(1)
    assert calls.begin()[0] == 2, "it is the probe's end that lets the next probe go, not another call's"
    calls.end(0)  # without a word: the customer left
    assert [calls.begin()[0] for _ in range(50)] == [1] + [2] * 49
    clock.now += PROBE_SECONDS - 0.001
    assert calls.begin()[0] == 2
    clock.now += 0.001
    assert [calls.begin()[0] for _ in range(3)] == [1, 2, 2], "a probe that shows nothing keeps nobody"


def test_a_probe_that_fails_begins_the_rest_anew_and_one_that_succeeds_ends_it(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    table = opened(monkeypatch)
    first = next(channel for channel in table.table.candidates("m") if channel.id == 1)
    clock.now += COOLDOWN_SECONDS
    calls = Calls(table.table)
    assert calls.begin()[0] == 1
    calls.end(0)
    table.table.failed(first)
    assert firsts(table) == {2}
    clock.now += COOLDOWN_SECONDS
    began = clock.now
    assert calls.begin()[0] == 1
    clock.now += 1
    calls.end(1)
    table.table.succeeded(first, first.keys[0], began)
    assert [calls.begin()[0] for _ in range(50)] == [1] * 50
    assert table.state("c1") == 1


def test_the_success_of_a_call_that_began_before_the_failure_ends_no_rest(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    began = clock.now - 30
    table = opened(monkeypatch)
    first = next(channel for channel in table.table.candidates("m") if channel.id == 1)
    table.table.succeeded(first, first.keys[0], began)
    assert (firsts(table), table.state("c1")) == ({2}, 0.5)
    table.table.refused(first, first.keys[0], 60)
    table.table.succeeded(first, first.keys[0], clock.now)
    assert (firsts(table), table.usable("c1")) == ({1}, 1), "it was asked in spite of its rest, and answered"


def test_who_is_next_is_judged_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    table = Table(monkeypatch, [row(1, priority=9), row(2, priority=5), row(3)])
    candidates = table.table.candidates("m")
    assert next(candidates).id == 1
    second = next(it for it in table.table.candidates("m") if it.id == 2)
    for _ in range(FAILURES_UNTIL_COOLDOWN):
        table.table.failed(second)
    assert [it.id for it in candidates] == [3, 2]


# ---------------------------------------------------------------------- keys


def keyed(monkeypatch: pytest.MonkeyPatch, count: int = 3) -> Table:
    """A preferred channel with keys k1, k2, …, and another one with one key."""
    keys = [sealed(f"k{n}", f"key-{n}") for n in range(1, count + 1)]
    return Table(monkeypatch, [row(1, priority=9, sealed_keys=keys), row(2)])


def test_calls_take_turns_among_keys(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    table = keyed(monkeypatch)
    calls = Calls(table.table)
    assert [calls.begin() for _ in range(6)] == [(1, "k1"), (1, "k2"), (1, "k3")] * 2
    preferred = next(table.table.candidates("m"))
    table.table.refused(preferred, preferred.keys[1], None)
    used = Counter(calls.begin()[1] for _ in range(40))
    assert used == {"k1": 20, "k3": 20}, "what rests leaves its share to all others"
    assert table.usable("c1") == 2


def test_a_channel_is_passed_over_only_when_none_of_its_keys_is_usable(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    table = keyed(monkeypatch)
    preferred, channels = next(table.table.candidates("m")), table.table
    for number, key in enumerate(preferred.keys):
        assert firsts(table) == {1}
        channels.refused(preferred, key, 60 + number)
    assert (firsts(table), table.usable("c1"), table.state("c1")) == ({2}, 0, 1)
    last = list(channels.candidates("m"))[-1]
    assert [key.name for key in channels.keys(last)] == ["k1"], (
        "when all else has failed: what rests shortest"
    )
    clock.now += 60
    assert (firsts(table), table.usable("c1")) == ({1}, 1)


def test_within_a_call_a_key_is_tried_once(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    table = keyed(monkeypatch)
    preferred, channels = next(table.table.candidates("m")), table.table
    tried = []
    for key in channels.keys(preferred):
        tried.append(key.name)
        channels.refused(preferred, key, None)
    assert tried == ["k1", "k2", "k3"]


def test_a_key_rests_longer_each_time_that_it_is_refused_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    table = keyed(monkeypatch)
    preferred, channels = next(table.table.candidates("m")), table.table
    key, rests = preferred.keys[0], []
    for _ in range(9):
        for _ in range(20):  # calls that were under way together
            channels.refused(preferred, key, None)
        began = clock.now
        while table.usable("c1") == 2:
            clock.now += 1
        rests.append(clock.now - began)
    longest = LONGEST_KEY_COOLDOWN_SECONDS
    assert rests == [5, 10, 20, 40, 80, 160, longest, longest, longest]
    channels.succeeded(preferred, key, clock.now)
    channels.refused(preferred, key, None)
    clock.now += KEY_COOLDOWN_SECONDS
    assert table.usable("c1") == 3, "an answer ends the count"


@pytest.mark.parametrize("said", [1.0, 30.0, 3600.0])
def test_a_key_rests_for_as_long_as_its_provider_says(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, said: float
) -> None:
    table = keyed(monkeypatch)
    preferred, channels = next(table.table.candidates("m")), table.table
    channels.refused(preferred, preferred.keys[0], said)
    channels.refused(preferred, preferred.keys[0], said / 2)  # the longest of what was said counts
    clock.now += said - 0.001
    assert table.usable("c1") == 2
    clock.now += 0.001
    assert table.usable("c1") == 3


def test_after_its_rest_a_key_gets_one_probe_at_a_time(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    table = keyed(monkeypatch, 2)
    preferred = next(table.table.candidates("m"))
    table.table.refused(preferred, preferred.keys[0], 10)
    clock.now += 10
    calls = Calls(table.table)
    assert [calls.begin() for _ in range(20)] == [(1, "k1")] + [(1, "k2")] * 19


def test_another_key_of_the_same_name_has_nothing_behind_it(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    table = keyed(monkeypatch, 1)
    preferred = next(table.table.candidates("m"))
    table.table.refused(preferred, preferred.keys[0], 3600)
    table.reload()
    assert firsts(table) == {2}, "a change of something else ends no rest"
    table.rows[0]["sealed_keys"] = [sealed("k1", "a new one")]
    table.reload()
    assert (firsts(table), table.usable("c1")) == ({1}, 1)


def test_keys_of_channels_that_are_off_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    table = keyed(monkeypatch)
    assert [table.usable(f"c{n}") for n in (1, 2)] == [3, 1]
    table.rows[0]["status"] = "disabled"
    table.reload()
    assert [table.usable(f"c{n}") for n in (1, 2)] == [None, 1]


# ---------------------------------------------------------------------- budgets


def budget(channel: int, spent: int, maximum: int = 100) -> dict[str, Any]:
    """A budget as the store gives it."""
    return {"channel_id": channel, "channel": f"c{channel}", "spent": spent, "maximum": maximum}


def test_a_channel_whose_budget_is_spent_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, [row(1, priority=9), row(2)])
    budgets: list[dict[str, Any]] = []

    async def load(_: object) -> list[dict[str, Any]]:
        return budgets

    monkeypatch.setattr(store, "list_budgets", load)
    channels = list(table.table.candidates("m"))

    def read(*found: dict[str, Any]) -> list[int]:
        budgets[:] = found
        asyncio.run(table.budgets.read())
        return [it.id for it in table.table.candidates("m")]

    def used(name: str) -> float | None:
        return table.metrics.registry.get_sample_value("relay_channel_budget_used_ratio", {"channel": name})

    assert read(budget(1, 99)) == [1, 2]
    assert (used("c1"), used("c2")) == (0.99, None)
    assert [table.table.has_budget(it) for it in channels] == [True, False]
    assert read(budget(1, 100)) == [2]
    assert read(budget(1, 100), budget(2, 250)) == []
    # The fuller of two counts, whichever comes first.
    assert read(budget(1, 100), budget(1, 0)) == read(budget(1, 0), budget(1, 100)) == [2]
    assert (used("c1"), used("c2")) == (1, None)
    assert read() == [1, 2]
    assert (used("c1"), table.table.has_budget(channels[0])) == (None, False)
