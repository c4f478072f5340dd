"""The money of a call: what is held, captured, given back and recorded, and what the customer hears."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from relay.errors import ApiError
from relay.gateway import failover, payment
from relay.ledger.errors import (
    AccountSuspended,
    BudgetExceeded,
    InsufficientCredit,
    LedgerUnavailable,
    SpendBreakerOpen,
    StatementRefused,
    UnknownHold,
)
from relay.pricing.errors import Unpriced
from relay.providers.transport import Broken, NotSent
from relay.settings import Settings
from tests.unit.gateway.rig import (
    COUNTED,
    DONE,
    FINISH,
    OUT,
    WHOLE,
    Costs,
    Customer,
    FakeLedger,
    FakeReply,
    Result,
    answers,
    content,
    good,
    run,
    says,
)


def sample(result: Result, name: str, **labels: str) -> float | None:
    return result.metrics.registry.get_sample_value(name, labels)


def ended(result: Result, outcome: str, provider: str = "openai", stream: str = "true") -> float | None:
    """How many calls ended so."""
    labels = {"model": "mine", "provider": provider, "outcome": outcome, "stream": stream}
    return sample(result, "relay_requests_total", **labels)


# ---------------------------------------------------------------------- the hold


def test_a_hold_names_whose_it_is_and_outlives_the_call() -> None:
    settings = {"RELAY_HOLD_WAIT_SECONDS": "3"}
    result = run(good(True), settings=settings)
    ((order, deadline),) = result.ledger.held
    assert (order.account_id, order.token_id, deadline) == (1, 2, 3)
    started = result.ledger.facts.started_at
    assert started is not None
    assert order.expires_at - started == timedelta(seconds=Settings.read(settings).hold_seconds)
    assert result.ledger.captured[0].hold.order is order


REFUSALS: list[tuple[Exception, int, str, str, dict[str, Any]]] = [
    (
        Unpriced("mine", "in_audio"),
        404,
        "model_not_found",
        "The model 'mine' cannot be used: in_audio has no price. GET /v1/models lists what is available.",
        {},
    ),
    (
        InsufficientCredit(1_500_000_000),
        402,
        "insufficient_credit",
        "Insufficient credit: $1.5 more is needed for this call. Top up at https://top.example/up",
        {
            "missing_nanodollars": 1_500_000_000,
            "missing_usd": "1.5",
            "topup_url": "https://top.example/up",
        },
    ),
    (
        BudgetExceeded("account", 7),
        402,
        "budget_exceeded",
        "The budget of the account is used up: raise it or wait for its next period.",
        {"missing_nanodollars": 7},
    ),
    (
        SpendBreakerOpen(datetime(2099, 1, 31, 10, tzinfo=UTC), 5_250_000_000, 5_000_000_000),
        429,
        "hourly_spend_exceeded",
        "The API key has spent $5.25 in this hour, its limit is $5: calls are refused until"
        " 2099-01-31T10:00:00Z. If the spending is meant, ask support to lift the limit for this hour.",
        {
            "type": "rate_limit_error",
            "spent_nanodollars": 5_250_000_000,
            "limit_nanodollars": 5_000_000_000,
            "until": "2099-01-31T10:00:00Z",
        },
    ),
    (AccountSuspended(), 403, "account_not_active", "The account is not active: ask support.", {}),
    (
        LedgerUnavailable("away"),
        503,
        "ledger_unavailable",
        "The service cannot reserve credit right now. Nothing was charged.",
        {},
    ),
]


@pytest.mark.parametrize(
    ("refusal", "status", "code", "message", "extra"), REFUSALS, ids=[row[2] for row in REFUSALS]
)
def test_a_hold_that_is_refused_asks_no_provider(
    refusal: Exception, status: int, code: str, message: str, extra: dict[str, Any]
) -> None:
    ledger = FakeLedger(refusal=refusal)
    result = run(good(True), ledger=ledger, settings={"RELAY_TOPUP_URL": "https://top.example/up"})
    assert isinstance(result.raised, ApiError)
    shown = result.raised.body()["error"]
    assert (result.raised.status, shown["code"], shown["message"]) == (status, code, message)
    assert extra.items() <= shown.items()
    assert (ledger.captured, ledger.released, result.channels.health) == ([], [], [])
    assert ended(result, code, "none") == 1


# ---------------------------------------------------------------------- the record


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_record_says_who_answered_and_how_long_it_took(stream: bool) -> None:
    before = datetime.now(UTC)
    reply = says(0.06, content(), 0.06, FINISH, DONE) if stream else says(0.12, good(False).blocks_[0])
    result = run(answers(b"", status=500), reply, stream=stream)
    facts = result.ledger.facts
    assert (facts.outcome, facts.channel_id, facts.stream) == ("ok", 2, stream)
    assert facts.started_at is not None
    assert before <= facts.started_at <= datetime.now(UTC)
    assert facts.duration_ms is not None
    assert 110 <= facts.duration_ms <= result.seconds * 1000 + 50
    if stream:
        assert facts.first_byte_ms is not None
        assert 50 <= facts.first_byte_ms <= facts.duration_ms - 50
    else:
        assert facts.first_byte_ms is None
    first, second = result.attempts
    assert second.pop("ms") >= 110  # type: ignore[attr-defined]
    assert 0 <= first.pop("ms") <= facts.duration_ms  # type: ignore[attr-defined]
    failed = {"channel_id": 1, "key": "k1", "outcome": "status_500", "status": 500, "by": "weight"}
    assert first == failed | {"class": "server", "may_bill": False}
    answered = {"channel_id": 2, "key": "k1", "outcome": "ok", "status": 200}
    assert second == answered | {"by": "weight", "instead_of": 1}


@pytest.mark.parametrize(
    ("providers", "stream", "rule"),
    [
        ([good(True)], True, None),
        ([good(False)], False, None),
        ([says(content(), FINISH, DONE)], True, payment.BILL_DELIVERED),
        ([says(content(), Broken("reset"))], True, payment.BILL_DELIVERED),
    ],
    ids=["stream", "whole", "counted", "broken"],
)
def test_what_was_not_told_by_the_provider_is_billed_by_a_named_rule(
    providers: list[FakeReply], stream: bool, rule: str | None
) -> None:
    assert run(*providers, stream=stream).ledger.facts.abort_rule == rule


ABOVE = {"prompt_tokens": 10, "completion_tokens": 150}


@pytest.mark.parametrize(
    ("allotted", "meters", "doubt"),
    [
        ({}, {"in_text": 10, "out_text": 100}, "50 units above the call's bound are not charged"),
        ({"text_tokens": 100}, {"in_text": 10, "out_text": 150}, None),
        (
            {"text_tokens": 140},
            {"in_text": 10, "out_text": 100},
            "50 units above the call's bound are not charged",
        ),
    ],
    ids=["no quota", "a quota pays enough of it", "the quota is all that was held"],
)
def test_a_usage_above_the_bound_costs_no_more_than_was_held(
    allotted: dict[str, int], meters: dict[str, int], doubt: str | None
) -> None:
    """The call is held by 140 units, 1,100,000 n$ in all; the provider tells 160, as it may."""
    result = run(answers(WHOLE | {"usage": ABOVE}), stream=False, ledger=FakeLedger(allotted=allotted))
    ((held, _),), (order,) = result.ledger.held, result.ledger.captured
    assert (held.bound.amount, held.bound.quotas) == (1_100_000, {"text_tokens": 140})
    assert (order.meters, order.doubt) == (meters, doubt)


def test_a_capture_is_proven_by_the_format_of_its_usage() -> None:
    (told,) = run(good(True)).ledger.captured
    assert (told.usage_format, told.doubt) == ("openai", None)
    (counted,) = run(says(content(), FINISH, DONE)).ledger.captured
    assert counted.usage_format == "meters"


def test_without_a_channel_nothing_is_recorded_of_one() -> None:
    result = run()
    assert isinstance(result.raised, ApiError)
    assert (result.status, result.raised.code) == (503, "no_channel")
    assert result.raised.message == "No channel serves 'mine' now."
    facts = result.ledger.facts
    assert (facts.channel_id, facts.others, facts.attempts) == (None, {}, [])
    assert result.ledger.released[0][0] == "nothing was delivered: no_channel"
    assert ended(result, "no_channel", "none") == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda: says(FINISH, DONE), "nothing was generated, and no usage was told"),
        (lambda: NotSent("refused"), "nothing was delivered: provider_error"),
    ],
)
def test_a_release_says_why(reply: Any, reason: str) -> None:
    result = run(reply())
    assert (result.ledger.charged, result.ledger.released[0][0]) == (0, reason)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_the_times_of_a_record_are_milliseconds_since_the_call_came(stream: bool) -> None:
    settings = {"RELAY_PROVIDER_TIMEOUT_SECONDS": "6000"}
    facts = run(good(stream), stream=stream, age=5_000, settings=settings).ledger.facts
    assert facts.duration_ms is not None
    assert 5_000_000 <= facts.duration_ms < 5_005_000
    if stream:
        assert facts.first_byte_ms is not None
        assert 5_000_000 <= facts.first_byte_ms <= facts.duration_ms


# ---------------------------------------------------------------------- the provider's bill


def test_the_cost_is_that_of_the_channel_which_answered() -> None:
    result = run(good(True), costs=Costs("c1"))
    (order,) = result.ledger.captured
    assert order.cost is not None
    assert order.cost.amount == 10 * 1_000 + 5 * 2_000
    assert sample(result, "relay_cost_usd_total", model="mine", provider="openai") == 20_000 / 10**9
    (other,) = run(NotSent("refused"), good(True), costs=Costs("c1")).ledger.captured
    assert other.cost is None


# ---------------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    ("reply", "charge", "estimated"),
    [(lambda: good(True), 75_000, None), (lambda: says(content(), FINISH, DONE), COUNTED + OUT, 1)],
    ids=["told", "counted"],
)
def test_revenue_and_estimates_are_counted(reply: Any, charge: int, estimated: float | None) -> None:
    result = run(reply())
    labels = {"model": "mine", "provider": "openai"}
    assert sample(result, "relay_revenue_usd_total", **labels) == charge / 10**9
    assert sample(result, "relay_estimated_usage_total", **labels) == estimated
    assert ended(result, "ok") == 1


def test_the_time_at_the_provider_is_no_overhead_of_ours() -> None:
    result = run(says(0.3, good(False).blocks_[0]), stream=False)
    overhead = sample(result, "relay_overhead_seconds_sum")
    assert overhead is not None
    assert 0 < overhead < 0.2


def test_failures_are_counted_by_channel_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = run(answers(b"", status=500), good(True))
    labels = {"provider": "openai", "channel": "c1", "class": "server"}
    assert sample(result, "relay_provider_errors_total", **labels) == 1
    (line,) = caplog.records
    assert line.getMessage() == "a provider failed: status_500, server: without a word"
    said = {name: line.__dict__[name] for name in ("channel", "reason", "status", "model")}
    assert said == {"channel": "c1", "reason": "server", "status": 500, "model": "mine"}


# ---------------------------------------------------------------------- when the ledger cannot


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Messages and the model of their call: each names its call."""
    return [(line.getMessage(), line.__dict__["model"]) for line in caplog.records]


def test_a_call_that_the_sweeper_settled_counts_no_money_twice(caplog: pytest.LogCaptureFixture) -> None:
    result = run(good(True), ledger=FakeLedger(UnknownHold()))
    assert (result.raised, result.whole) == (None, True)
    assert sample(result, "relay_revenue_usd_total", model="mine", provider="openai") == 0
    assert logged(caplog) == [("a call was settled by the sweeper before its capture", "mine")]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_call_that_cannot_be_charged_ends_as_such(stream: bool) -> None:
    result = run(good(stream), stream=stream, ledger=FakeLedger(LedgerUnavailable("away")))
    if stream:
        error = json.loads(result.body.rpartition(b"data: ")[2])["error"]
    else:
        assert isinstance(result.raised, ApiError)
        error = result.raised.body()["error"]
    message = "The answer could not be charged, so its end is withheld: try again later."
    assert (error["message"], error["code"]) == (message, "ledger_unavailable")
    assert ended(result, "ledger_unavailable", stream=str(stream).lower()) == 1


def test_a_hold_that_cannot_be_settled_is_given_back_with_its_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = run(good(True), ledger=FakeLedger(StatementRefused("out of range")))
    assert result.ledger.released[0][0] == "it could not be settled"
    assert logged(caplog) == [("a call could not be settled, its hold is given back", "mine")]
    assert caplog.records[0].exc_info


@pytest.mark.parametrize(
    ("late", "why"),
    [
        (LedgerUnavailable("no primary"), "no primary"),
        (LedgerUnavailable(), "the database did not answer within 0.05 s"),
        (30.0, "the database did not answer within 0.05 s"),
    ],
)
def test_a_release_that_takes_long_keeps_nobody_waiting(
    late: Exception | float, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(payment, "RELEASE_WAIT_SECONDS", 0.05)
    result = run(says(FINISH, DONE), ledger=FakeLedger(late=late))
    assert (result.raised, result.seconds < 5) == (None, True)
    assert logged(caplog) == [(f"a hold is given back late: {why}", "mine")]


def test_a_usage_that_is_doubted_is_logged_with_its_call(caplog: pytest.LogCaptureFixture) -> None:
    absurd = {"prompt_tokens": 10**9, "completion_tokens": 10**9}
    (order,) = run(answers(WHOLE | {"usage": absurd}), stream=False).ledger.captured
    assert logged(caplog) == [(f"a provider's usage is doubted: {order.doubt}", "mine")]
    caplog.clear()
    run(good(True))
    assert logged(caplog) == []


def test_a_customer_that_is_cut_is_logged_with_its_call(caplog: pytest.LogCaptureFixture) -> None:
    settings = {"RELAY_PROVIDER_TIMEOUT_SECONDS": "0.3"}
    run(says(*[content()] * 9), customer=Customer(stalls_after=4), settings=settings)
    assert logged(caplog) == [("a call was cut: the customer does not read its answer", "mine")]
    assert caplog.records[0].__dict__["outcome"] == "client_stalled"


# ---------------------------------------------------------------------- the words of a refusal


def test_the_words_of_a_refusal_are_waited_for_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "ERROR_BODY_SECONDS", 0.05)
    result = run(says(b"{", 30.0, status=500), good(True))
    assert (result.raised, result.seconds < 5) == (None, True)
    assert result.attempts[0]["outcome"] == "status_500"


def test_the_words_of_a_refusal_are_read_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "MAX_ERROR_BYTES", 5)
    result = run(answers(b"0123456789", status=400))
    assert isinstance(result.raised, ApiError)
    assert result.raised.message == "01234"
