"""How an attempt at a provider, or a whole call, ended: for the record, health and the customer."""

from __future__ import annotations

import asyncio
import math
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from relay import errors
from relay.asgi import ClientGone
from relay.errors import ApiError
from relay.formats import refusal
from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.refusal import Said
from relay.gateway.call import Call
from relay.providers.transport import NotSent, TimedOut, TransportError
from relay.routing.channels import Channel
from relay.telemetry.logs import redact

NETWORK = "network"
NOT_SENT = "not_sent"
# What a customer hears of a model that is overloaded when no provider says when to come back.
RETRY_AFTER = 5
MAX_RETRY_AFTER = 3600
MAX_LOGGED = 300
OVERLOADED = frozenset({429, 503, 529})
# Classes of failures of which a channel's other keys are free: each is another account, or its own right.
OF_THE_KEY = frozenset({refusal.AUTH, refusal.QUOTA, refusal.RATE})


class Refused(Exception):
    """A provider answered with an error status."""

    def __init__(self, status: int, said: Said) -> None:
        super().__init__(f"status {status}")
        self.status, self.said = status, said


class ProviderRefused(ApiError):
    """The provider blames the request: the customer gets its status, its words and its code."""

    @property
    def reason(self) -> str:
        """A code of the provider's is no label for a metric."""
        return "provider_refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended.

    ``word``: of the call's record and metrics. ``attempt``: of the attempt's record. ``failure``: the class
    of what the provider did wrong, None where it is not to blame. ``error``: what the customer hears.
    ``why``: for the log. ``elsewhere``: another channel may do better. ``may_bill``: the provider may have
    done the work.
    """

    word: str
    attempt: str
    failure: str | None = None
    error: ApiError | None = None
    why: str = ""
    elsewhere: bool = False
    may_bill: bool = True


def outcome_of(call: Call, failure: BaseException | None) -> Outcome:
    """How the call's current attempt ended."""
    if failure is None:
        return Outcome("ok", "ok")
    if isinstance(failure, ClientGone):
        return Outcome("client_gone", "client_gone")
    if isinstance(failure, asyncio.CancelledError):
        return Outcome("shutdown", "shutdown")
    if isinstance(failure, TimeoutError) and call.sending:
        return Outcome("client_stalled", "client_stalled", why="the customer does not read its answer")
    if isinstance(failure, ApiError):
        return Outcome(failure.reason, failure.reason, error=failure, may_bill=False)
    provider = _of_provider(call, failure)
    if provider is None:
        return Outcome("internal_error", "internal_error")
    if provider.elsewhere and provider.error is not None and call.ask_again_at is not None:
        provider.error.headers["retry-after"] = str(max(1, math.ceil(call.ask_again_at - time.monotonic())))
    return provider


def note_retry_after(call: Call, value: str) -> None:
    """Remembers a provider's Retry-After, for its key and for the customer. Of several providers' the soonest
    moment counts for a customer: from then on one of them can be asked again, whatever the others said."""
    call.retry_after = seconds = retry_seconds(value, datetime.now(UTC)) if value else None
    if seconds is not None:
        at = time.monotonic() + seconds
        call.ask_again_at = at if call.ask_again_at is None else min(call.ask_again_at, at)


def _of_provider(call: Call, failure: BaseException) -> Outcome | None:
    if isinstance(failure, Refused):
        return _refusal(call, failure.status, failure.said)
    if isinstance(failure, ErrorAnswer):
        return _refusal(call, call.status or 200, refusal.said_of(failure.error))
    if isinstance(failure, NotSent):
        error = errors.bad_gateway()
        return Outcome(error.reason, NOT_SENT, NETWORK, error, _clean(call, failure), True, may_bill=False)
    if isinstance(failure, TimedOut | TimeoutError):
        error = _undelivered(call, errors.gateway_timeout())
        word = "timeout" if call.first_byte is not None else error.reason
        why = _clean(call, failure) or "the call took too long"
        return Outcome(word, "timeout", refusal.TIMEOUT, error, why, True)
    if isinstance(failure, TransportError | BadAnswer):
        kind = NETWORK if isinstance(failure, TransportError) else refusal.BAD_ANSWER
        error = _undelivered(call, errors.bad_gateway())
        word = "truncated" if call.first_byte is not None else error.reason
        attempt = "broken" if kind == NETWORK else kind
        return Outcome(word, attempt, kind, error, _clean(call, failure), True)
    return None


def _undelivered(call: Call, error: ApiError) -> ApiError:
    """``error``, which says that nothing was charged, unless something was delivered."""
    return error if call.first_byte is None else errors.broken_off()


def _refusal(call: Call, status: int, said: Said) -> Outcome:
    """A refusal by status, or by an error in the place of an answer."""
    kind = refusal.class_of(status, said)
    attempt = f"status_{status}" if status >= 300 else "error_answer"
    words = clean(said.message, call.channel, call.request.model)
    why = f"{attempt}, {kind}: {words[:MAX_LOGGED] or 'without a word'}"
    # Whoever refuses by status has not done the work; an error in an answer may come after it.
    may_bill = status < 300
    if refusal.is_the_requests_fault(kind):
        answered = status if status >= 400 else said.status
        error = _quoted(call, answered if answered in (400, 403, 413, 415, 422, 451) else 400, said, words)
        word = error.reason if call.first_byte is None else "provider_error"
        return Outcome(word, "refused", None, error, why, may_bill=may_bill)
    error = overloaded() if (said.status or status) in OVERLOADED else errors.bad_gateway()
    word = error.reason if call.first_byte is None else "provider_error"
    return Outcome(word, attempt, kind, error, why, True, may_bill)


def _quoted(call: Call, status: int, said: Said, words: str) -> ApiError:
    message = words or f"The model's provider refused the request ({status})."
    code = clean(said.code or "provider_refused", call.channel, call.request.model)
    kind = clean(said.kind or "invalid_request_error", call.channel, call.request.model)
    param = clean(said.param, call.channel, call.request.model) if said.param else None
    return ProviderRefused(status, message, kind=kind, param=param, code=code)


def overloaded(retry_after: float = RETRY_AFTER) -> ApiError:
    """503: whoever serves the model is asked for more than it takes; try again in so many seconds."""
    message = "The model is overloaded: try again later."
    return errors.unavailable(message, "provider_overloaded", max(1, math.ceil(retry_after)))


def retry_seconds(value: str, now: datetime) -> int | None:
    """Retry-After (RFC 9110, 10.2.3: seconds or a date) in seconds from ``now``, at most an hour; None when
    it is neither.
    """
    if value.isascii() and value.isdigit():
        seconds = int(value[:9])
    else:
        try:
            seconds = int((parsedate_to_datetime(value) - now).total_seconds()) + 1
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 1), MAX_RETRY_AFTER)


def secrets_of(channel: Channel | None) -> tuple[str, ...]:
    """What of a channel no customer and no log may see."""
    if channel is None:
        return ()
    host = channel.base_url.partition("://")[2].partition("/")[0]
    return *(key.secret for key in channel.keys), channel.base_url, host


def clean(text: str, channel: Channel | None, model: str) -> str:
    """A provider's words as a customer may see them: without secrets, and with the customer's model name."""
    text = redact(text, secrets_of(channel))
    name = channel.provider_model(model) if channel else model
    if name == model:
        return text
    return re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", lambda _: model, text)


def _clean(call: Call, failure: BaseException) -> str:
    return redact(str(failure), secrets_of(call.channel))
