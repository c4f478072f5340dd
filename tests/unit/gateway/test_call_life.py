"""The life of a call against scripted providers: who pays what, who hears what, and who is asked next."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.asgi import ClientGone
from relay.errors import ApiError
from relay.formats import openai_chat_answer
from relay.gateway import call, failover, stream_response
from relay.ledger.errors import LedgerUnavailable, StatementRefused
from relay.limits.shared import Limits, Slot
from relay.limits.window import Limit
from relay.pricing.tariff import CostBook
from relay.providers.transport import Broken, NotSent, TimedOut
from relay.routing.order import affinity
from relay.telemetry.logs import JsonFormatter
from relay.telemetry.metrics import Metrics
from tests.unit.gateway.rig import (
    COUNTED,
    DONE,
    FINISH,
    IMAGE_TOKENS,
    IN,
    KEY,
    OUT,
    RESERVED,
    STREAM,
    TPM,
    USAGE_CHUNK,
    WHOLE,
    Costs,
    Customer,
    FakeLedger,
    FakeReply,
    Result,
    answers,
    content,
    event,
    good,
    run,
    says,
)

PIECE = call.PIECE_BYTES
both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


# ---------------------------------------------------------------------- what is charged


@both
def test_a_call_is_charged_by_its_usage(stream: bool) -> None:
    result = run(good(stream), stream=stream)
    assert result.raised is None
    assert result.whole
    assert result.ledger.charged == 75_000
    assert (result.ledger.facts.outcome, result.channels.health) == ("ok", [("c1", True)])


@pytest.mark.parametrize(
    ("provider", "ledger", "counted"),
    [
        (says(STREAM), FakeLedger(), 15),
        (says(content(), content(), FINISH), FakeLedger(), 5 + 2),
        (says(content(), content(), Broken("reset")), FakeLedger(), 5 + 2),
        (says(FINISH, DONE), FakeLedger(), 0),
        (says(b"{}", status=400), FakeLedger(), 0),
        (TimedOut("late"), FakeLedger(), 0),
        (says(STREAM), FakeLedger(StatementRefused("odd")), 15),
        (says(STREAM), FakeLedger(LedgerUnavailable("away")), 15),
    ],
)
def test_what_a_call_has_used_counts_against_the_limit_in_place_of_its_reservation(
    provider: FakeReply | Exception, ledger: FakeLedger, counted: int
) -> None:
    assert run(provider, ledger=ledger).counted == counted


@pytest.mark.parametrize(
    ("blocks", "charge"),
    [
        ([USAGE_CHUNK, content(), content(), USAGE_CHUNK, DONE], 75_000),
        ([event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}), STREAM], 75_000),
        ([content(), content(), FINISH], COUNTED + 2 * OUT),
        ([content(), content(), FINISH, Broken("reset")], COUNTED + 2 * OUT),
        (
            [content(), event({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}), DONE],
            COUNTED + OUT,
        ),
        (
            [
                content(),
                event(
                    {"choices": [], "usage": {"prompt_tokens": 675_947_905, "completion_tokens": 24_231_238}}
                ),
                DONE,
            ],
            COUNTED + OUT,
        ),
        (
            [
                content(),
                event({"choices": [], "usage": {"prompt_tokens": 2**64 - 1, "completion_tokens": 2**64 - 1}}),
                DONE,
            ],
            COUNTED + OUT,
        ),
        ([FINISH, DONE], 0),
        ([DONE], 0),
    ],
    ids=[
        "usage-first",
        "usage-twice",
        "no-usage",
        "reset-after-finish",
        "zero",
        "absurd",
        "2^64",
        "empty",
        "done",
    ],
)
def test_figures_are_checked_before_they_are_believed(blocks: list[Any], charge: int) -> None:
    result = run(says(*blocks))
    assert result.ledger.charged == charge
    assert result.raised is None
    assert result.body.endswith(DONE)
    assert b"error" not in result.body
    for order in result.ledger.captured:
        assert charge <= order.hold.order.bound.amount


def test_images_are_counted_where_no_usage_is_told() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    parts = [{"type": "text", "text": "Hi?"}, picture, picture]
    result = run(says(content(), FINISH, DONE), messages=[{"role": "user", "content": parts}])
    assert result.ledger.charged == COUNTED + 2 * IMAGE_TOKENS * IN + OUT


def test_what_was_told_and_what_was_counted_are_both_on_record() -> None:
    absurd = {"prompt_tokens": 10**9, "completion_tokens": 10**9}
    result = run(answers(WHOLE | {"usage": absurd}), stream=False)
    (order,) = result.ledger.captured
    assert order.raw_usage is not None
    assert order.raw_usage["provider"] == absurd
    assert order.doubt
    assert order.facts.abort_rule == "bill what was delivered"
    assert result.ledger.charged == COUNTED + 2 * OUT


@pytest.mark.parametrize(
    "odd", [{"tool_calls": 5}, {"content": 5}, {"tool_calls": [5]}, {"function_call": []}]
)
@both
def test_odd_fields_break_no_call(stream: bool, odd: dict[str, Any]) -> None:
    if stream:
        result = run(says(content() + event({"choices": [{"delta": odd}]}) + FINISH + USAGE_CHUNK + DONE))
    else:
        choices = [{"message": {"content": "abcd"} | odd}]
        result = run(answers(WHOLE | {"choices": choices}), stream=False)
    assert (result.raised, result.ledger.charged) == (None, 75_000)


def test_deep_nesting_keeps_no_hold() -> None:
    deep = b"[" * 5000 + b"]" * 5000
    result = run(says(content() + b"data: " + deep + b"\n\n" + content() + FINISH + USAGE_CHUNK + DONE))
    assert b"broke off" in result.body
    assert result.ledger.charged == COUNTED + OUT
    whole = run(says(b'{"choices": ' + deep + b"}"), stream=False)
    assert (whole.status, whole.ledger.charged) == (502, 0)


STREAM_STEP = "relay.formats.openai_chat_stream.collect_texts"
WHOLE_STEP = "relay.formats.openai_chat.read_completion"


@both
def test_a_fault_of_our_own_settles_the_call(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    target = STREAM_STEP if stream else WHOLE_STEP
    replies = says(content(), 0.01, content()) if stream else answers(WHOLE)
    calls = iter([None])
    if stream:
        real = openai_chat_answer.collect_texts
        monkeypatch.setattr(target, lambda *given: real(*given) if next(calls, 1) is None else broken())
    else:
        monkeypatch.setattr(target, broken)
    result = run(replies, stream=stream)
    assert isinstance(result.raised, ZeroDivisionError)
    assert result.ledger.charged == (COUNTED + OUT if stream else 0)
    assert result.ledger.facts.outcome == "internal_error"


@pytest.mark.parametrize("failure", [OverflowError("too large"), StatementRefused("out of range")])
def test_a_settlement_that_cannot_be_done_gives_the_hold_back(failure: Exception) -> None:
    result = run(good(True), ledger=FakeLedger(failure))
    assert result.ledger.charged == 0
    assert result.raised is None
    value = result.metrics.registry.get_sample_value(
        "relay_ledger_alerts_total", {"reason": "settlement_failed"}
    )
    assert value == 1


@both
def test_an_answer_that_cannot_be_charged_is_withheld(stream: bool) -> None:
    result = run(good(stream), stream=stream, ledger=FakeLedger(LedgerUnavailable("away")))
    assert b"[DONE]" not in result.body
    if stream:
        assert b"could not be charged" in result.body
    else:
        assert result.status == 503


# ---------------------------------------------------------------------- success is decided by the body

NO_MODEL = {
    "error": {
        "message": "The model `x` does not exist",
        "type": "invalid_request_error",
        "code": "model_not_found",
    }
}
FAILURES: dict[str, Callable[[], FakeReply | Exception]] = {
    "not-sent": lambda: NotSent("refused"),
    "broken": lambda: Broken("reset"),
    "timeout": lambda: TimedOut("slow"),
    "html": lambda: answers(b"<html><body>Bad gateway</body></html>\n\n"),
    "error-object": lambda: answers({"error": {"message": "overloaded", "type": "server_error"}}),
    "error-text": lambda: answers({"error": "overloaded"}),
    "other-object": lambda: answers({"code": 1001, "msg": "internal"}),
    "empty": lambda: answers(b""),
    "nothing": lambda: answers(b"", status=204),
    "text": lambda: answers(b"upstream connect error"),
    "number": lambda: answers(b"42"),
    "redirect": lambda: answers(b"", status=302),
    "500": lambda: answers({"error": {"message": "x"}}, status=500),
    "401": lambda: answers({"error": {"message": "Incorrect API key provided"}}, status=401),
    "402": lambda: answers({"error": {"message": "Insufficient Balance"}}, status=402),
    "403": lambda: answers({"error": {"message": "Forbidden"}}, status=403),
    "404": lambda: answers(NO_MODEL, status=404),
    "400-model": lambda: answers(NO_MODEL, status=400),
    "200-model": lambda: answers(NO_MODEL),
    "408": lambda: answers({"error": {"message": "slow"}}, status=408),
    "409": lambda: answers({"error": {"message": "conflict", "type": "invalid_request_error"}}, status=409),
    "401-openai": lambda: answers(
        {"error": {"message": "no", "type": "invalid_request_error", "code": "invalid_api_key"}}, status=401
    ),
    "429": lambda: answers({"error": {"message": "slow down"}}, status=429),
    "400-key": lambda: answers({"error": {"code": 400, "message": "API key not valid."}}, status=400),
    "400-credit": lambda: answers({"error": {"message": "Your credit balance is too low"}}, status=400),
    "broken-body": lambda: says(b'{"choices"', Broken("reset")),
    "huge-head": lambda: says(b"x" * 100_000),
}
STREAM_FAILURES: dict[str, Callable[[], FakeReply | Exception]] = {
    "error-event": lambda: says(event({"error": {"message": "overloaded"}})),
    "error-then-a-stream": lambda: says(event({"error": {"message": "overloaded"}}) + STREAM),
    "role-then-error": lambda: says(
        event({"choices": [{"delta": {"role": "assistant"}}]}),
        event({"error": {"message": "overloaded"}}),
        DONE,
    ),
    "role-then-reset": lambda: says(
        event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}), Broken("reset")
    ),
    "comments-then-close": lambda: says(b": wait\n\n", b": wait\n\n"),
    "usage-then-close": lambda: says(USAGE_CHUNK),
    "no-json": lambda: says(b"data: nonsense\n\n", content()),
    "cut-event": lambda: says(content()[:-10]),
    "too-large": lambda: says(b"data: " + b"x" * 5000),
    "stalled": lambda: says(event({"choices": [{"delta": {"role": "assistant"}}]}), TimedOut("stalled")),
}


def check_failover(failing: FakeReply | Exception, stream: bool, **settings: str) -> None:
    result = run(failing, good(stream), stream=stream, settings=settings)
    assert result.raised is None
    assert result.ledger.charged == 75_000
    assert result.channels.health == [("c1", False), ("c2", True)]
    assert [attempt["outcome"] for attempt in result.attempts][1:] == ["ok"]
    assert {"class", "may_bill"} <= result.attempts[0].keys()
    expected = STREAM.replace(USAGE_CHUNK, b"") if stream else json.dumps(WHOLE).encode()
    assert result.body == expected, "nothing of the first provider is in the answer"


@pytest.mark.parametrize("name", FAILURES)
@both
def test_what_is_no_answer_fails_over(stream: bool, name: str) -> None:
    check_failover(FAILURES[name](), stream)


@pytest.mark.parametrize("name", STREAM_FAILURES)
def test_a_stream_that_breaks_before_its_content_fails_over(name: str) -> None:
    check_failover(STREAM_FAILURES[name](), True, RELAY_MAX_EVENT_BYTES="4096")


@pytest.mark.parametrize("name", [*FAILURES, *STREAM_FAILURES])
def test_the_last_failure_is_told_and_costs_nothing(name: str) -> None:
    result = run((FAILURES | STREAM_FAILURES)[name](), settings={"RELAY_MAX_EVENT_BYTES": "4096"})
    assert isinstance(result.raised, ApiError)
    assert result.raised.status in (502, 503, 504)
    assert (result.ledger.charged, result.sent) == (0, [])
    assert len(result.attempts) == 1


REFUSALS_OF_KEYS = ("401", "402", "403", "429", "401-openai", "400-key", "400-credit")


@pytest.mark.parametrize("name", FAILURES)
@both
def test_another_key_is_tried_only_where_the_first_one_was_refused(stream: bool, name: str) -> None:
    result = run(FAILURES[name](), good(stream), stream=stream, channels=2, keys=2)
    assert (result.raised, result.ledger.charged) == (None, 75_000)
    answered = [(entry["channel_id"], entry["key"]) for entry in result.attempts]
    of_the_key = name in REFUSALS_OF_KEYS
    assert answered == [(1, "k1"), (1, "k2") if of_the_key else (2, "k1")]
    assert result.keys == [KEY, f"{KEY}-2" if of_the_key else KEY]
    assert [refusal[:2] for refusal in result.channels.refusals] == [("c1", "k1")] * of_the_key
    assert result.channels.under_way == 0


def test_a_key_is_told_what_its_own_provider_said_of_when() -> None:
    limited = answers({"error": {"message": "slow down"}}, status=429, retry_after="7")
    silent = answers({"error": {"message": "Incorrect API key provided"}}, status=401)
    result = run(limited, silent, limited, good(True), channels=2, keys=2)
    assert result.channels.refusals == [("c1", "k1", 7), ("c1", "k2", None), ("c2", "k1", 7)]
    assert result.channels.health[-1] == ("c2", True)


# ---------------------------------------------------------------------- sticky calls


@both
def test_a_record_says_why_a_channel_was_chosen_and_a_metric_whether_it_kept_its_calls(stream: bool) -> None:
    mine = affinity("session", 1, b"s")
    sticky = run(good(stream), stream=stream, channels=3, affinity=mine)
    assert [(entry["channel_id"], entry["by"]) for entry in sticky.attempts] == [(1, "session")]
    assert "instead_of" not in sticky.attempts[0]
    moved = run(answers(b"", status=500), good(stream), stream=stream, affinity=mine)
    assert [entry.get("instead_of") for entry in moved.attempts] == [None, 1]
    alone = run(good(stream), stream=stream, affinity=mine)
    assert not {"by", "instead_of"} & alone.attempts[0].keys(), "there was no choice"
    for result, outcome, count in ((sticky, "kept", 1), (moved, "moved", 1), (alone, "kept", None)):
        labels = {"type": "session", "outcome": outcome}
        assert result.metrics.registry.get_sample_value("relay_sticky_calls_total", labels) == count


def test_how_long_a_channel_took_is_measured_to_the_first_part_of_a_stream() -> None:
    streamed = run(says(0.02, content(), 0.3, FINISH, USAGE_CHUNK, DONE), channels=2)
    ((name, stream, seconds),) = streamed.channels.measurements
    assert (name, stream) == ("c1", True)
    assert 0.02 <= seconds < streamed.seconds - 0.25
    whole = run(says(0.1, json.dumps(WHOLE).encode()), stream=False, channels=2)
    ((_, stream, seconds),) = whole.channels.measurements
    assert (stream, seconds >= 0.1) == (False, True)
    assert run(answers(b"", status=500), channels=2).channels.measurements == []


# ---------------------------------------------------------------------- limits of channels


def limits_of() -> Limits:
    """Without Redis, of one replica."""
    return Limits("", None, 1, Metrics())


@both
@pytest.mark.parametrize(
    ("limit", "reason", "longest"),
    [({"concurrency": 1}, "concurrency_limit_exceeded", 1), ({"rpm": 1}, "rate_limit_exceeded", 120)],
    ids=["concurrency", "rpm"],
)
def test_a_full_channel_is_passed_over_and_when_all_are_the_model_is_overloaded(
    stream: bool, limit: dict[str, int], reason: str, longest: int
) -> None:
    limits = limits_of()

    def fill(channel: int) -> Slot:
        slot = asyncio.run(limits.acquire([Limit(f"channel:{channel}", **limit)], 0, uuid4()))
        assert isinstance(slot, Slot)
        return slot

    def call() -> Result:
        return run(good(stream), stream=stream, channels=2, limits=limits, channel_limits=limit)

    first = fill(1)
    passed = call()
    assert (passed.raised, [entry["channel_id"] for entry in passed.attempts]) == (None, [2])
    second = fill(2) if "concurrency" in limit else None
    refused = call()
    assert isinstance(refused.raised, ApiError)
    assert (refused.raised.status, refused.raised.code) == (503, "provider_overloaded")
    assert 1 <= int(refused.raised.headers["retry-after"]) <= longest
    assert (refused.sent, refused.attempts, refused.keys, refused.ledger.charged) == ([], [], [], 0)
    for number in ("c1", "c2"):
        labels = {"channel": number, "reason": reason}
        assert refused.metrics.registry.get_sample_value("relay_channel_full_total", labels) == 1
    if second is not None:
        limits.release(first)
        freed = call()
        assert [entry["channel_id"] for entry in freed.attempts] == [1]
        again = call()
        assert [entry["channel_id"] for entry in again.attempts] == [1], "a call leaves its place"


def test_what_failed_is_told_where_the_others_are_full() -> None:
    limits = limits_of()
    asyncio.run(limits.acquire([Limit("channel:2", concurrency=1)], 0, uuid4()))
    failing = answers({"error": {"message": "x"}}, status=500)
    result = run(failing, good(True), channels=2, limits=limits, channel_limits={"concurrency": 1})
    assert isinstance(result.raised, ApiError)
    assert (result.raised.code, len(result.attempts)) == ("provider_error", 1)
    assert result.channels.health == [("c1", False)]


@pytest.mark.parametrize(("costs", "served"), [(None, 2), (Costs("c2"), 2), (Costs("c1"), 1)])
def test_a_channel_with_a_budget_serves_only_what_has_a_cost_price(
    costs: CostBook | None, served: int
) -> None:
    result = run(good(True), channels=2, budgets=frozenset({1}), costs=costs)
    assert [entry["channel_id"] for entry in result.attempts] == [served]
    labels = {"channel": "c1", "reason": "no_cost_price"}
    passed = result.metrics.registry.get_sample_value("relay_channel_full_total", labels)
    assert passed == (1 if served == 2 else None)
    alone = run(good(True), budgets=frozenset({1}), costs=costs)
    if served == 2:
        assert isinstance(alone.raised, ApiError)
        assert (alone.raised.status, alone.raised.code, alone.attempts) == (503, "no_channel", [])


@pytest.mark.parametrize(
    "ending", [Broken("reset"), TimedOut("slow"), answers(b"", status=500), says(content(), Broken("x"))]
)
def test_whatever_an_attempt_comes_to_it_leaves_its_place(ending: FakeReply | Exception) -> None:
    limits = limits_of()
    for _ in range(3):
        result = run(ending, limits=limits, channel_limits={"concurrency": 1})
        assert len(result.attempts) == 1
    left = run(
        says(content(), 5.0),
        limits=limits,
        channel_limits={"concurrency": 1},
        customer=Customer(cancelled_after=0.05),
    )
    assert (left.ledger.facts.outcome, left.channels.under_way) == ("shutdown", 0)
    assert isinstance(asyncio.run(limits.acquire([Limit("channel:1", concurrency=1)], 0, uuid4())), Slot)


TOKENS_OF_ATTEMPTS: dict[str, tuple[FakeReply | Exception, int]] = {
    "not sent": (NotSent("refused"), 0),
    "refused": (answers({"error": {"message": "x"}}, status=500), 0),
    "content": (answers({"error": {"message": "x", "code": "content_filter"}}, status=400), 0),
    "broken": (Broken("reset"), RESERVED),
    "slow": (TimedOut("slow"), RESERVED),
    "error in the answer": (answers({"error": {"message": "x"}}), RESERVED),
}


@both
@pytest.mark.parametrize("name", TOKENS_OF_ATTEMPTS)
def test_a_channels_tokens_a_minute_are_what_was_used_or_may_have_been(name: str, stream: bool) -> None:
    failing, counted = TOKENS_OF_ATTEMPTS[name]
    tokens = {"tpm": TPM}
    monopoly = run(good(stream), stream=stream, channel_limits=tokens)
    assert (monopoly.counted_of, monopoly.counted) == ({1: 15}, 15)
    alone = run(*[failing] * 9, stream=stream, channels=1, channel_limits=tokens)
    assert isinstance(alone.raised, ApiError)
    assert alone.counted_of[1] == counted
    if name == "content":
        return
    both = run(failing, good(stream), stream=stream, channels=2, channel_limits=tokens)
    assert (both.raised, both.counted_of) == (None, {1: counted, 2: 15})


@pytest.mark.parametrize(
    ("behaves", "counted"),
    [
        (Customer(leaves_after=1), COUNTED // IN + 1),
        (Customer(cancelled_after=0.05), COUNTED // IN + 1),
    ],
    ids=["leaves", "is cut"],
)
def test_what_was_delivered_counts_for_the_channel(behaves: Customer, counted: int) -> None:
    result = run(says(content(), 5.0, content()), customer=behaves, channel_limits={"tpm": TPM})
    assert result.counted_of == {1: counted}
    assert result.counted == counted


def test_a_channel_without_room_for_the_tokens_is_passed_over() -> None:
    limits, tokens = limits_of(), {"tpm": TPM}
    full = asyncio.run(limits.acquire([Limit("channel:1", tpm=TPM)], TPM - RESERVED + 1, uuid4()))
    assert isinstance(full, Slot)
    passed = run(good(True), channels=2, limits=limits, channel_limits=tokens)
    assert (passed.raised, [entry["channel_id"] for entry in passed.attempts]) == (None, [2])
    labels = {"channel": "c1", "reason": "token_rate_limit_exceeded"}
    assert passed.metrics.registry.get_sample_value("relay_channel_full_total", labels) == 1
    refused = run(good(True), channels=1, limits=limits, channel_limits=tokens)
    assert isinstance(refused.raised, ApiError)
    assert (refused.raised.status, refused.raised.code) == (503, "provider_overloaded")
    assert 1 <= int(refused.raised.headers["retry-after"]) <= 120
    limits.release(full)
    again = run(good(True), channels=1, limits=limits, channel_limits=tokens)
    assert again.raised is None


def test_more_tokens_than_any_channel_takes_is_no_matter_of_waiting() -> None:
    most = {"tpm": RESERVED - 1}
    refused = run(good(True), channels=2, channel_limits=most)
    assert isinstance(refused.raised, ApiError)
    assert (refused.raised.status, refused.raised.code) == (400, "tokens_above_limit")
    assert refused.raised.param == "max_tokens"
    assert "above the 104 tokens a minute that the model takes: lower max_tokens" in refused.raised.message
    assert (refused.attempts, refused.ledger.charged) == ([], 0)


@both
@pytest.mark.parametrize("refusals", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_who_starts_anew_is_asked_again(stream: bool, refusals: int, channels: int) -> None:
    """A connection that is refused is no attempt that could have cost something."""
    refused = [NotSent("refused")] * refusals
    result = run(*refused, good(stream), stream=stream, channels=channels)
    assert (result.raised, result.ledger.charged) == (None, 75_000)
    outcomes = [attempt["outcome"] for attempt in result.attempts]
    assert outcomes == ["not_sent"] * min(refusals, channels) + ["ok"], "each channel's refusal is told once"


@pytest.mark.parametrize("failing", [Broken("reset"), TimedOut("slow"), answers(b"", status=500)])
def test_who_may_have_done_the_work_is_not_asked_again(failing: FakeReply | Exception) -> None:
    result = run(NotSent("refused"), failing, good(True), channels=1)
    assert isinstance(result.raised, ApiError)
    assert len(result.attempts) == 2
    result = run(failing, NotSent("refused"), NotSent("refused"), good(True), channels=2)
    assert result.raised is None
    assert [attempt["channel_id"] for attempt in result.attempts] == [1, 2, 2]


def test_who_is_not_there_is_asked_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "CONNECT_PAUSES", (0.1,) * 1000)
    monkeypatch.setattr(failover, "CONNECT_SECONDS", 0.5)
    result = run(NotSent("refused"))
    assert isinstance(result.raised, ApiError)
    assert 0.3 < result.seconds < 10
    assert len(result.attempts) == 1


def test_who_may_have_billed_is_on_record() -> None:
    failing: list[Any] = [
        NotSent("refused"),
        Broken("reset"),
        answers(b"", status=500),
        answers({"error": "x"}),
    ]
    result = run(*failing, good(True))
    assert [attempt.get("may_bill") for attempt in result.attempts] == [False, True, False, True, None]


def test_after_a_first_byte_nobody_else_is_asked() -> None:
    result = run(says(content(), Broken("reset")), good(True))
    assert result.ledger.charged == COUNTED + OUT
    assert result.body.startswith(content())
    assert b"broke off" in result.body
    assert result.whole
    assert (result.ledger.facts.outcome, len(result.attempts)) == ("truncated", 1)


@pytest.mark.parametrize("status", [200, 201, 202, 203, 206, 226])
@both
def test_every_success_status_is_judged_by_its_body(stream: bool, status: int) -> None:
    reply = good(stream)
    reply.status = status
    result = run(reply, stream=stream)
    assert (result.status, result.ledger.charged) == (200, 75_000)


# ---------------------------------------------------------------------- refusals

CONTEXT = "This model's maximum context length is 8192 tokens."


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (
            {
                "error": {
                    "message": CONTEXT,
                    "type": "invalid_request_error",
                    "code": "context_length_exceeded",
                }
            },
            "context_length_exceeded",
        ),
        ({"error": CONTEXT, "code": "context_length_exceeded"}, "context_length_exceeded"),
        ({"message": CONTEXT, "code": "context_length_exceeded"}, "context_length_exceeded"),
        ({"message": CONTEXT}, "provider_refused"),
        ({"detail": CONTEXT}, "provider_refused"),
        (
            {"detail": [{"loc": ["body", "messages", 0], "msg": CONTEXT, "type": "value_error"}]},
            "provider_refused",
        ),
        (
            {"type": "error", "error": {"type": "invalid_request_error", "message": CONTEXT}},
            "provider_refused",
        ),
        ({"error": {"code": 400, "message": CONTEXT, "status": "INVALID_ARGUMENT"}}, "INVALID_ARGUMENT"),
        ([{"error": {"code": 400, "message": CONTEXT, "status": "INVALID_ARGUMENT"}}], "INVALID_ARGUMENT"),
        ({"errors": [{"message": CONTEXT}]}, "provider_refused"),
        (
            {"error": {"error": {"message": CONTEXT, "code": "context_length_exceeded"}}},
            "context_length_exceeded",
        ),
        (CONTEXT.encode(), "provider_refused"),
    ],
    ids=[
        "openai",
        "text",
        "top",
        "top-bare",
        "detail",
        "fastapi",
        "anthropic",
        "google",
        "google-list",
        "errors",
        "nested",
        "plain",
    ],
)
@both
def test_words_and_codes_of_a_refusal_reach_the_customer(stream: bool, body: Any, code: str) -> None:
    result = run(answers(body, status=400), good(stream), stream=stream)
    assert isinstance(result.raised, ApiError)
    shown = result.raised.body()["error"]
    assert (result.raised.status, shown["code"]) == (400, code)
    assert CONTEXT in shown["message"]
    assert (result.ledger.charged, result.channels.health) == (0, [])
    assert result.ledger.facts.outcome == "provider_refused"


@pytest.mark.parametrize(
    "error",
    [
        {"message": CONTEXT, "code": "context_length_exceeded"},
        {"message": CONTEXT, "code": 400},
        {"message": CONTEXT, "type": "invalid_request_error"},
        {"message": CONTEXT},
    ],
)
@both
def test_a_refusal_in_the_place_of_an_answer_is_one(stream: bool, error: Any) -> None:
    reply = says(event({"error": error})) if stream else answers({"error": error})
    result = run(reply, good(stream), stream=stream)
    assert isinstance(result.raised, ApiError)
    assert (result.raised.status, result.raised.message) == (400, CONTEXT)


@pytest.mark.parametrize("status", [400, 413, 422, 500, 529])
def test_a_code_that_blames_the_request_does_so_with_any_status(status: int) -> None:
    result = run(answers({"error": {"message": CONTEXT, "code": "context_length_exceeded"}}, status=status))
    assert isinstance(result.raised, ApiError)
    assert result.raised.status == (status if status < 500 else 400)
    assert (result.raised.code, result.channels.health) == ("context_length_exceeded", [])


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, {"error": {"code": 403, "message": "Your input was flagged by moderation."}}),
        (400, {"error": {"code": "content_filter", "message": "The response was filtered"}}),
        (403, {"error": {"code": "content_policy_violation", "message": "no"}}),
        (451, {"error": {"message": "no"}}),
        (200, {"error": {"code": "data_inspection_failed", "message": "no"}}),
    ],
)
def test_a_refusal_of_the_content_does_not_count_against_the_channel(status: int, body: Any) -> None:
    result = run(answers(body, status=status), good(True))
    assert result.channels.health == []
    assert result.status in (400, 403, 451)


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize(
    ("given", "kept"), [("17", "17"), ("", "5"), ("soon", "5"), ("999999", "3600"), ("0", "1")]
)
def test_retry_after_of_the_provider_is_kept(status: int, given: str, kept: str) -> None:
    result = run(answers({"error": "slow down"}, status=status, retry_after=given))
    assert isinstance(result.raised, ApiError)
    assert (result.raised.status, result.raised.headers["retry-after"]) == (503, kept)


def failing(kind: str, retry_after: str) -> FakeReply:
    """A provider that fails before any content, and says when to come back."""
    if kind == "broken":
        return says(Broken("it broke off"), retry_after=retry_after)
    if kind == "error answer":
        return answers({"error": {"message": "busy", "code": 529}}, retry_after=retry_after)
    if kind == "no answer":
        return answers(b"<html>", retry_after=retry_after)
    return answers({"error": "busy"}, status=int(kind), retry_after=retry_after)


OVERLOADS = ("429", "503", "529", "error answer")
REFUSING = (*OVERLOADS, "500", "502", "401", "broken", "no answer")
SAID_WHEN = st.one_of(st.integers(0, 5000).map(str), st.sampled_from(["", "soon", "-3", "1.5"]))


@given(st.lists(st.tuples(st.sampled_from(REFUSING), SAID_WHEN), min_size=1, max_size=5))
@settings(max_examples=60)
def test_the_customer_is_told_the_soonest_moment_at_which_any_channel_may_be_asked_again(
    failures: list[tuple[str, str]],
) -> None:
    """However the last one failed, and whether it said when."""
    result = run(*(failing(kind, when) for kind, when in failures))
    said = [min(max(int(when), 1), 3600) for _, when in failures if when.isdigit()]
    usual = [5] if failures[-1][0] in OVERLOADS else []
    assert isinstance(result.raised, ApiError)
    expected = {"retry-after": str(min(said or usual))} if said or usual else {}
    assert result.raised.headers == expected


def test_a_channel_that_answers_makes_up_for_those_that_said_later() -> None:
    result = run(failing("429", "30"), good(True))
    assert (result.raised, result.status) == (None, 200)
    assert not [name for name, _ in result.sent[0]["headers"] if name == b"retry-after"]


# ---------------------------------------------------------------------- what must not leak

LEAKS = [
    f"Incorrect key {KEY} at http://10.1.2.3:8000/v1",
    f"Authorization: Bearer {KEY}",
    f'{{"api_key": "{KEY}"}}',
    "sk-proj-abcdefghijklmnopqrstuvwxyz",
    "key sk-ab***************yz of org-a1b2c3d4e5",
    f"escaped {KEY[:3]}\\u002d{KEY[4:]}",
]
SECRETS = (KEY.encode(), b"10.1.2.3", b"sk-proj", b"***", b"org-a1", KEY[:3].encode() + b"\\u002d")


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("shape", ["event", "event-text", "comment", "no-chunk", "400", "400-text"])
def test_nothing_of_a_providers_secrets_passes(
    shape: str, leak: str, caplog: pytest.LogCaptureFixture
) -> None:
    escaped = leak.replace('"', '\\"') if "\\u" in leak else json.dumps(leak)[1:-1]
    raw = b'{"error": {"message": "%s", "code": "%s"}}' % (escaped.encode(), escaped.encode())
    replies = {
        "event": says(content(), b"data: " + raw + b"\n\n"),
        "event-text": says(content(), b'data: {"error": "%s"}\n\n' % escaped.encode(), DONE),
        "comment": says(content(), b": " + leak.encode() + b"\n\n", FINISH + DONE),
        "no-chunk": says(content(), b'data: {"note": "%s"}\n\n' % escaped.encode(), FINISH + DONE),
        "400": answers(raw, status=400),
        "400-text": answers(leak.encode(), status=400),
    }
    with caplog.at_level(logging.INFO):
        result = run(replies[shape])
    told = result.body + (
        json.dumps(result.raised.body()).encode() if isinstance(result.raised, ApiError) else b""
    )
    logged = "\n".join(JsonFormatter().format(record) for record in caplog.records).encode()
    if shape in ("comment", "400-text") and "\\u" in leak:
        return  # there it is no escape, but other characters
    for secret in SECRETS:
        assert secret not in told
        assert secret not in logged


@pytest.mark.parametrize("choices", [{}, {"choices": []}, {"choices": 1}, {"choices": None}], ids=str)
def test_a_whole_answer_without_choices_is_cleaned(choices: dict[str, Any]) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    said = run(answers({"usage": usage, "debug": f"sent with {KEY}", **choices}), stream=False)
    told = said.body + str(said.raised).encode()
    assert KEY.encode() not in told
    ordinary = run(answers(WHOLE | {"debug": "kept"}), stream=False)
    assert json.loads(ordinary.body) == WHOLE | {"debug": "kept"}


def test_the_answer_names_the_customers_model() -> None:
    mapped = {"mine": "theirs"}
    assert b"theirs" not in run(says(STREAM), model_map=mapped).body
    assert b'"model": "mine"' in run(says(STREAM), model_map=mapped).body.replace(b'":"', b'": "')
    whole = run(answers(WHOLE), stream=False, model_map=mapped)
    assert whole.ledger.facts.others == {"provider": "openai", "provider_model": "theirs"}
    assert json.loads(whole.body) == WHOLE | {"model": "mine"}
    assert run(answers(WHOLE), stream=False).body == json.dumps(WHOLE).encode()
    refused = run(answers({"error": {"message": "theirs cannot do that"}}, status=400), model_map=mapped)
    assert isinstance(refused.raised, ApiError)
    assert refused.raised.message == "mine cannot do that"


@pytest.mark.parametrize("name", [*FAILURES, *STREAM_FAILURES])
def test_a_fault_is_one_log_line_with_a_reason(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run((FAILURES | STREAM_FAILURES)[name](), settings={"RELAY_MAX_EVENT_BYTES": "4096"})
    (line,) = caplog.records
    assert len(line.getMessage().partition(": ")[2]) > 3
    assert line.__dict__["reason"]


# ---------------------------------------------------------------------- clocks, and customers that leave


def test_a_complete_answer_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_response, "USAGE_SECONDS", 20.0)
    monkeypatch.setattr(stream_response, "CLOSE_SECONDS", 0.1)
    open_ended = run(says(content(), FINISH + USAGE_CHUNK, 30.0))
    assert (open_ended.ledger.charged, open_ended.seconds < 10) == (75_000, True)
    monkeypatch.setattr(stream_response, "USAGE_SECONDS", 0.3)
    beats = [part for _ in range(1000) for part in (0.02, b": beat\n\n")]
    without = run(says(content(), FINISH, *beats))
    assert 0.25 < without.seconds < 10
    assert without.ledger.charged == COUNTED + OUT
    for result in (open_ended, without):
        assert result.body.endswith(DONE)
        assert result.ledger.facts.outcome == "ok"


def test_usage_that_comes_late_is_waited_for() -> None:
    result = run(says(content(), FINISH, 0.3, USAGE_CHUNK, DONE))
    assert result.ledger.charged == 75_000


@pytest.mark.parametrize("first", [FINISH, content()[:-2] + b"\n\n"])
def test_hidden_reasoning_is_not_had_for_free_by_leaving_at_the_end(
    first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The customer leaves when it has the text, while finish and usage are on their way."""
    monkeypatch.setattr(stream_response, "LEAVING_SECONDS", 2.0)
    rest = [FINISH] if first != FINISH else []
    result = run(says(content(), first, 0.02, *rest, USAGE_CHUNK, DONE), customer=Customer(leaves_after=1))
    assert isinstance(result.raised, ClientGone)
    assert result.ledger.charged == 75_000
    assert result.ledger.facts.outcome == "client_gone"


@pytest.mark.parametrize("opening", [b"", b": beat\n\n", b"event: message\n", b"\r\n\r\n"])
def test_a_first_event_of_five_megabytes_passes(opening: bytes) -> None:
    large = opening + content("z" * 5_000_000)
    blocks = [large[start : start + 60_000] for start in range(0, len(large), 60_000)]
    result = run(says(*blocks, FINISH, USAGE_CHUNK, DONE))
    assert (result.raised, result.ledger.charged) == (None, 75_000)
    assert result.body.count(b"z") == 5_000_000


def test_a_customer_that_leaves_in_the_middle_stops_the_provider_and_pays_what_it_got() -> None:
    reply = says(content(), *[part for _ in range(500) for part in (0.04, content())])
    result = run(reply, customer=Customer(leaves_after=1))
    assert isinstance(result.raised, ClientGone)
    assert reply.closed
    assert result.seconds < 10
    assert result.ledger.charged == COUNTED + OUT, "what came after it had left is not charged"
    assert (result.ledger.facts.outcome, result.channels.health) == ("client_gone", [])


def test_a_customer_that_does_not_read_is_cut_and_pays_what_it_got() -> None:
    blocks = [content() for _ in range(10)]
    settings = {"RELAY_PROVIDER_TIMEOUT_SECONDS": "0.3"}
    result = run(says(*blocks), customer=Customer(stalls_after=4), settings=settings)
    assert isinstance(result.raised, ClientGone)
    assert 0.2 < result.seconds < 10
    assert (result.ledger.facts.outcome, result.channels.health) == ("client_stalled", [])
    assert 3 * OUT <= result.ledger.charged - COUNTED <= 4 * OUT


def test_the_last_bytes_wait_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "STALLED_SECONDS", 0.2)
    result = run(good(True), customer=Customer(stalls_after=2))
    assert isinstance(result.raised, ClientGone)
    assert (result.ledger.charged, result.seconds < 8) == (75_000, True)


def whole_answer(size: int) -> bytes:
    """An answer of ``size`` bytes."""
    empty = len(json.dumps({**WHOLE, "system_fingerprint": ""}))
    return json.dumps({**WHOLE, "system_fingerprint": "x" * (size - empty)}).encode()


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 5 * PIECE + 7])
def test_a_whole_answer_is_handed_on_in_pieces(size: int) -> None:
    body = whole_answer(size)
    result = run(answers(body), stream=False)
    assert (len(body), result.body, result.whole) == (size, body, True)
    assert (b"content-length", str(size).encode()) in result.sent[0]["headers"]
    assert max(len(message["body"]) for message in result.sent[1:]) <= PIECE
    assert len(result.sent) == 1 + -(-size // PIECE)


def test_who_takes_a_whole_answer_slowly_gets_all_of_it_and_who_stops_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(call, "STALLED_SECONDS", 1.0)
    body = whole_answer(8 * PIECE)
    slow = run(answers(body), stream=False, customer=Customer(pause=0.2))
    assert (slow.body, slow.seconds > 1.0) == (body, True)
    stalled = run(answers(body), stream=False, customer=Customer(stalls_after=3))
    assert isinstance(stalled.raised, ClientGone)
    assert (stalled.ledger.charged, stalled.whole) == (slow.ledger.charged, False)


def test_a_large_end_of_a_stream_is_handed_on_in_pieces_as_fast_as_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(call, "STALLED_SECONDS", 1.0)
    last = event({"choices": [{"delta": {"content": "z" * 3 * PIECE}, "finish_reason": "stop"}]})
    for begin in (b"", content()):
        result = run(says(begin + last + DONE), customer=Customer(pause=0.3))
        assert (result.raised, result.whole, result.body.endswith(last + DONE)) == (None, True, True)
        assert max(len(message["body"]) for message in result.sent[1:]) <= PIECE
        assert result.seconds > 1.0


@pytest.mark.parametrize(
    "end", [Broken("reset"), TimedOut("silent"), 30.0], ids=["cut", "timeout", "silence"]
)
def test_an_end_without_its_blank_line_ends_the_call(end: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_response, "CLOSE_SECONDS", 0.05)
    result = run(says(content(), b"data: [DONE]", end))
    assert (result.raised, result.body, result.ledger.charged) == (None, content() + DONE, COUNTED + OUT)
    assert result.seconds < 10
    assert (result.ledger.facts.outcome, result.channels.health) == ("ok", [("c1", True)])


def test_what_is_cut_without_its_blank_line_is_neither_sent_nor_charged() -> None:
    result = run(says(content(), content("never delivered").rstrip(), Broken("reset")))
    assert (b"never" in result.body, result.ledger.charged) == (False, COUNTED + OUT)
    assert result.ledger.facts.outcome == "truncated"


def test_a_large_first_event_may_begin_with_fields_that_the_standard_ignores() -> None:
    first = b"x-unknown: 1\r\n" + content("abcd" * 40_000)
    blocks = [first[start : start + 1400] for start in range(0, len(first), 1400)]
    result = run(says(*blocks, FINISH, USAGE_CHUNK, DONE))
    assert (result.raised, result.status, result.ledger.charged) == (None, 200, 75_000)


def test_all_attempts_share_the_calls_time() -> None:
    slow = [says(content()[:5], 30.0), good(True)]
    result = run(*slow, settings={"RELAY_PROVIDER_TIMEOUT_SECONDS": "0.2"})
    assert (result.status, result.ledger.charged) == (504, 0)
    assert result.channels.health == [("c1", False)]


def test_heartbeats_pass_while_a_provider_thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_response, "OPENING_SECONDS", 0.05)
    beats = [part for _ in range(6) for part in (0.03, b": beat\n\n")]
    result = run(says(*beats, STREAM))
    assert result.body == b": beat\n\n" * 6 + STREAM.replace(USAGE_CHUNK, b"")
    assert len(result.sent) > 4


@pytest.mark.parametrize(("blocks", "charge"), [([content(), 5.0], COUNTED + OUT), ([5.0], 0)])
def test_a_shutdown_settles_what_was_delivered(blocks: list[Any], charge: int) -> None:
    result = run(says(*blocks), good(True), customer=Customer(cancelled_after=0.05))
    assert isinstance(result.raised, asyncio.CancelledError)
    assert result.ledger.charged == charge
    assert (result.ledger.facts.outcome, len(result.attempts)) == ("shutdown", 1)


# ---------------------------------------------------------------------- what is left of it


@both
def test_nothing_of_a_call_is_left_to_the_garbage_collector(stream: bool) -> None:
    def calls() -> int:
        return sum(type(it) is call.Call for it in gc.get_objects())

    gc.collect()
    before = calls()
    gc.disable()
    try:
        result = run(says(STREAM) if stream else answers(WHOLE), stream=stream)
        assert result.ledger.charged
        assert calls() == before
    finally:
        gc.enable()
