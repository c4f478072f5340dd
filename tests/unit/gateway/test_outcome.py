"""How an attempt ended, by what went wrong and how far the call had come: for record, health and customer."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay import errors
from relay.asgi import ClientGone
from relay.errors import ApiError
from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.refusal import Said
from relay.gateway.call import Call
from relay.gateway.outcome import (
    MAX_LOGGED,
    MAX_RETRY_AFTER,
    Outcome,
    Refused,
    clean,
    note_retry_after,
    outcome_of,
    retry_seconds,
    secrets_of,
)
from relay.providers.transport import Broken, NotSent, TimedOut
from relay.routing.channels import ApiKey, Channel

KEY = "the-channels-own-key"
KEYS = (ApiKey("k1", KEY),)
CHANNEL = Channel(
    1, "c1", "openai", "http://10.1.2.3:8000/v1/x", KEYS, frozenset({"mine"}), {"mine": "theirs"}, 0, 1
)
LEAK = f"{KEY} at http://10.1.2.3:8000/v1/x and 10.1.2.3:8000"
CLEANED = "[redacted] at [redacted] and [redacted]"


def call(
    *,
    begun: bool = False,
    sending: bool = False,
    status: int | None = None,
    channel: Channel | None = CHANNEL,
) -> Call:
    """As much of a call as its outcome depends on."""
    facts = {"first_byte": 1.5 if begun else None, "sending": sending, "status": status, "channel": channel}
    return cast(Call, SimpleNamespace(request=SimpleNamespace(model="mine"), ask_again_at=None, **facts))


def told(outcome: Outcome) -> tuple[Any, ...]:
    """An outcome with what its error says, which has no equality."""
    error = outcome.error
    said = error and (error.status, error.body()["error"], error.headers)
    return (
        outcome.word,
        outcome.attempt,
        outcome.failure,
        said,
        outcome.why,
        outcome.elsewhere,
        outcome.may_bill,
    )


def error(status: int, message: str, code: str, kind: str = "server_error", **rest: Any) -> tuple[Any, ...]:
    shown = {"message": message, "type": kind, "param": rest.get("param"), "code": code}
    return status, shown, rest.get("headers", {})


FREE = "The model's provider failed to answer. Nothing was charged."
BROKEN_OFF = error(502, "The model's provider broke off. What was delivered is charged.", "provider_error")
BAD_GATEWAY = error(502, FREE, "provider_error")
LATE = error(504, "The model's provider did not answer in time. Nothing was charged.", "provider_timeout")


def overloaded(seconds: str) -> tuple[Any, ...]:
    message = "The model is overloaded: try again later."
    return error(503, message, "provider_overloaded", headers={"retry-after": seconds})


def refused(status: int, message: str, code: str = "provider_refused", **rest: Any) -> tuple[Any, ...]:
    return error(status, message, code, rest.pop("kind", "invalid_request_error"), **rest)


# ---------------------------------------------------------------------- who is to blame

WORDLESS = "The model's provider refused the request (400)."
SAID = Said("too long", "messages", "context_length_exceeded", "their_type")


@pytest.mark.parametrize(
    ("failure", "state", "expected"),
    [
        (None, {}, ("ok", "ok", None, None, "", False, True)),
        (ClientGone(), {}, ("client_gone", "client_gone", None, None, "", False, True)),
        (asyncio.CancelledError(), {}, ("shutdown", "shutdown", None, None, "", False, True)),
        (ZeroDivisionError(), {}, ("internal_error", "internal_error", None, None, "", False, True)),
        (
            TimeoutError(),
            {"sending": True, "begun": True},
            (
                "client_stalled",
                "client_stalled",
                None,
                None,
                "the customer does not read its answer",
                False,
                True,
            ),
        ),
        # Only the call's own clock says that: while something is sent the provider may still be too slow.
        (
            TimedOut("slow"),
            {"sending": True, "begun": True},
            ("timeout", "timeout", "timeout", BROKEN_OFF, "slow", True, True),
        ),
        (
            TimeoutError(),
            {},
            ("provider_timeout", "timeout", "timeout", LATE, "the call took too long", True, True),
        ),
        (
            TimeoutError(),
            {"begun": True},
            ("timeout", "timeout", "timeout", BROKEN_OFF, "the call took too long", True, True),
        ),
        (TimedOut(LEAK), {}, ("provider_timeout", "timeout", "timeout", LATE, CLEANED, True, True)),
        (
            errors.unavailable("Away.", "ledger_unavailable", 7),
            {},
            (
                "ledger_unavailable",
                "ledger_unavailable",
                None,
                error(503, "Away.", "ledger_unavailable", headers={"retry-after": "7"}),
                "",
                False,
                False,
            ),
        ),
        (NotSent(LEAK), {}, ("provider_error", "not_sent", "network", BAD_GATEWAY, CLEANED, True, False)),
        (Broken(LEAK), {}, ("provider_error", "broken", "network", BAD_GATEWAY, CLEANED, True, True)),
        (
            Broken("reset"),
            {"begun": True},
            ("truncated", "broken", "network", BROKEN_OFF, "reset", True, True),
        ),
        (
            BadAnswer(LEAK),
            {},
            ("provider_error", "bad_answer", "bad_answer", BAD_GATEWAY, CLEANED, True, True),
        ),
        (
            BadAnswer("odd"),
            {"begun": True},
            ("truncated", "bad_answer", "bad_answer", BROKEN_OFF, "odd", True, True),
        ),
        # A refusal by status: the provider has not done the work.
        (
            Refused(500, Said(LEAK)),
            {},
            (
                "provider_error",
                "status_500",
                "server",
                BAD_GATEWAY,
                f"status_500, server: {CLEANED}",
                True,
                False,
            ),
        ),
        (
            Refused(300, Said()),
            {},
            (
                "provider_error",
                "status_300",
                "server",
                BAD_GATEWAY,
                "status_300, server: without a word",
                True,
                False,
            ),
        ),
        (
            Refused(429, Said("slow")),
            {},
            (
                "provider_overloaded",
                "status_429",
                "rate",
                overloaded("5"),
                "status_429, rate: slow",
                True,
                False,
            ),
        ),
        (
            Refused(529, Said("x")),
            {},
            (
                "provider_overloaded",
                "status_529",
                "server",
                overloaded("5"),
                "status_529, server: x",
                True,
                False,
            ),
        ),
        (
            Refused(400, SAID),
            {},
            (
                "provider_refused",  # a word of ours, whatever the provider's code is
                "refused",
                None,
                refused(400, "too long", "context_length_exceeded", kind="their_type", param="messages"),
                "status_400, request: too long",
                False,
                False,
            ),
        ),
        (
            Refused(400, Said()),
            {},
            (
                "provider_refused",
                "refused",
                None,
                refused(400, WORDLESS),
                "status_400, request: without a word",
                False,
                False,
            ),
        ),
        # An error in the place of an answer, or after a part of one: the work may be done.
        (
            ErrorAnswer("overloaded"),
            {"status": 200},
            (
                "provider_error",
                "error_answer",
                "server",
                BAD_GATEWAY,
                "error_answer, server: overloaded",
                True,
                True,
            ),
        ),
        (
            ErrorAnswer("x"),
            {"status": None},
            ("provider_error", "error_answer", "server", BAD_GATEWAY, "error_answer, server: x", True, True),
        ),
        (
            ErrorAnswer({"message": "x", "code": 503}),
            {"status": 206},
            (
                "provider_overloaded",
                "error_answer",
                "server",
                overloaded("5"),
                "error_answer, server: x",
                True,
                True,
            ),
        ),
        (
            ErrorAnswer("x"),
            {"status": 299, "begun": True},
            ("provider_error", "error_answer", "server", BAD_GATEWAY, "error_answer, server: x", True, True),
        ),
        (
            ErrorAnswer({"message": "flagged", "code": "content_filter", "status": 403}),
            {"status": 200},
            (
                "provider_refused",
                "refused",
                None,
                refused(403, "flagged", "content_filter"),
                "error_answer, content: flagged",
                False,
                True,
            ),
        ),
        (
            ErrorAnswer({"message": "flagged", "code": "content_filter"}),
            {"status": 200, "begun": True},
            (
                "provider_error",
                "refused",
                None,
                refused(400, "flagged", "content_filter"),
                "error_answer, content: flagged",
                False,
                True,
            ),
        ),
        (
            ErrorAnswer({"message": "overloaded", "code": 529}),
            {"status": 200, "begun": True},
            (
                "provider_error",
                "error_answer",
                "server",
                overloaded("5"),
                "error_answer, server: overloaded",
                True,
                True,
            ),
        ),
    ],
    ids=repr,
)
def test_how_an_attempt_ended(
    failure: BaseException | None, state: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert told(outcome_of(call(**state), failure)) == expected


def test_a_log_line_has_a_bounded_part_of_what_a_provider_said() -> None:
    said = outcome_of(call(), Refused(500, Said("word " * 1000))).why.partition(": ")[2]
    assert said == ("word " * 1000)[:MAX_LOGGED]
    assert MAX_LOGGED == 300


@pytest.mark.parametrize(
    ("status", "told_status", "shown"),
    [
        *((status, None, status) for status in (400, 403, 413, 415, 422, 451)),
        (401, None, 400),
        (404, None, 400),
        (500, None, 400),
        (529, None, 400),
        (400, 413, 400),
        (200, 413, 413),
        (200, 500, 400),
        (299, 422, 422),
        (200, None, 400),
        (302, 413, 413),
        (302, None, 400),
    ],
)
def test_a_refusal_has_a_status_that_blames_the_request(
    status: int, told_status: int | None, shown: int
) -> None:
    said = Said("too long", code="context_length_exceeded", status=told_status)
    outcome = outcome_of(call(), Refused(status, said))
    assert outcome.error is not None
    assert (outcome.error.status, outcome.elsewhere, outcome.failure) == (shown, False, None)
    assert outcome.may_bill == (status < 300)


def test_everything_that_a_provider_says_of_a_request_is_cleaned() -> None:
    said = Said(f"theirs: {LEAK}", f"theirs {KEY}", f"theirs {KEY} context_length", f"theirs {KEY}")
    outcome = outcome_of(call(), Refused(400, said))
    assert outcome.error is not None
    assert outcome.error.body()["error"] == {
        "message": f"mine: {CLEANED}",
        "param": "mine [redacted]",
        "code": "mine [redacted] context_length",
        "type": "mine [redacted]",
    }


def test_a_failure_before_a_channel_was_chosen_is_told_as_it_is() -> None:
    outcome = outcome_of(call(channel=None), Refused(400, Said("theirs", "theirs", "theirs", "theirs")))
    assert outcome.error is not None
    assert set(outcome.error.body()["error"].values()) == {"theirs"}


# ---------------------------------------------------------------------- when to come back

NOW = datetime(2026, 11, 26, 4, 0, tzinfo=UTC)


def at(seconds: float) -> str:
    return format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 1),
        ("1", 1),
        ("2", 2),
        ("17", 17),
        (str(MAX_RETRY_AFTER), MAX_RETRY_AFTER),
        (str(MAX_RETRY_AFTER + 1), MAX_RETRY_AFTER),
        ("9" * 5000, MAX_RETRY_AFTER),
        ("000000001", 1),
        (at(30), 31),
        (at(-30), 1),
        (at(10**6), MAX_RETRY_AFTER),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("Thu, 26 Nov 2026 04:00:00", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: int | None) -> None:
    assert retry_seconds(value, NOW) == seconds


def test_an_hour_is_the_longest_that_a_customer_is_sent_away() -> None:
    assert MAX_RETRY_AFTER == 3600


def test_a_date_of_the_provider_is_read_by_the_present_time() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    asked = call()
    note_retry_after(asked, date)
    outcome = outcome_of(asked, Refused(429, Said()))
    assert isinstance(outcome.error, ApiError)
    assert 590 <= int(outcome.error.headers["retry-after"]) <= 601


@pytest.mark.parametrize(
    ("after", "told"), [(0.0, "30"), (0.5, "30"), (10.5, "20"), (29.9, "1"), (30.0, "1"), (90.0, "1")]
)
def test_what_a_provider_said_grows_old(monkeypatch: pytest.MonkeyPatch, after: float, told: str) -> None:
    """The next one may have taken long to fail."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    asked = call()
    note_retry_after(asked, "30")
    clock[0] += after
    outcome = outcome_of(asked, NotSent("refused"))
    assert isinstance(outcome.error, ApiError)
    assert (outcome.error.status, outcome.error.headers) == (502, {"retry-after": told})


@pytest.mark.parametrize("failure", [Refused(400, SAID), ClientGone(), ValueError(), None], ids=repr)
def test_when_another_try_is_of_no_use_no_time_for_it_is_told(failure: BaseException | None) -> None:
    asked = call()
    note_retry_after(asked, "30")
    error = outcome_of(asked, failure).error
    assert error is None or error.headers == {}


# ---------------------------------------------------------------------- names and secrets


@pytest.mark.parametrize(
    ("base_url", "host"),
    [
        ("http://10.1.2.3:8000/v1/x", "10.1.2.3:8000"),
        ("https://api.example.com", "api.example.com"),
        ("https://api.example.com/?to=http://other.example/x", "api.example.com"),
    ],
)
def test_secrets_of_a_channel_are_its_keys_and_its_address(base_url: str, host: str) -> None:
    channel = Channel(1, "c", "p", base_url, (*KEYS, ApiKey("k2", "another")), frozenset(), {}, 0, 1)
    assert secrets_of(channel) == (KEY, "another", base_url, host)
    assert secrets_of(None) == ()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("theirs", "mine"),
        ("theirs, 'theirs' and theirs.", "mine, 'mine' and mine."),
        ("not-theirs theirs-2 my.theirs xtheirs theirs_b", "not-theirs theirs-2 my.theirs xtheirs theirs_b"),
        (f"theirs with {KEY}", "mine with [redacted]"),
    ],
)
def test_a_customer_reads_its_own_models_name(text: str, shown: str) -> None:
    assert clean(text, CHANNEL, "mine") == shown


@pytest.mark.parametrize("names", [{"mine": "a.b+c"}, {r"m\1": "theirs"}])
def test_names_are_no_patterns(names: dict[str, str]) -> None:
    ((mine, theirs),) = names.items()
    channel = Channel(1, "c", "p", "http://v", KEYS, frozenset(names), names, 0, 1)
    assert clean(f"{theirs} azb+c abbc", channel, mine) == f"{mine} azb+c abbc"


def test_a_model_that_has_one_name_is_not_looked_for() -> None:
    assert clean("other and theirs", CHANNEL, "other") == "other and theirs"
    assert clean(f"theirs {KEY}", None, "theirs") == f"theirs {KEY}"
