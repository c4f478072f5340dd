"""Which provider answers a call: channels in the order of routing, until one has answered.

The next channel is asked only while nothing was sent to the customer, and only after a failure that it may
not share: a request that a provider calls wrong or against its content rules is wrong for all. A provider
that failed after the request was written may bill it: each attempt is on the call's record with
``may_bill``. Success is decided by the body, whatever 2xx status it has (206 and 204 included: a part of an
answer, or none, is no answer); any other status is a failure.
"""

from __future__ import annotations

import asyncio
import logging
import time

from relay import errors
from relay.formats.openai_chat_answer import BadAnswer, ErrorAnswer
from relay.formats.refusal import MAX_ERROR_BYTES, Said, read_refusal
from relay.gateway.call import Call, Exchange
from relay.gateway.outcome import Outcome, Refused, outcome_of
from relay.providers.transport import Reply, TransportError
from relay.routing.channels import Channel

# For the words of an error whose status is known.
ERROR_BODY_SECONDS = 5.0

log = logging.getLogger(__name__)


async def answer(call: Call, exchange: Exchange) -> None:
    """Have the call answered by the first channel that can; raises what the last attempt failed of.

    Attempts that another channel made up for are recorded here, the last one is left to the caller.
    """
    failure: Exception = errors.unavailable(f"No channel serves '{call.request.model}' now.", "no_channel")
    for channel in call.services.channels.candidates(call.request.model):
        if call.channel is not None:
            record(call, outcome_of(call, failure))
        call.begin_attempt(channel)
        try:
            await _attempt(call, exchange, channel)
        except (TransportError, BadAnswer, ErrorAnswer, Refused) as error:
            failure = error
            if call.first_byte is not None or not outcome_of(call, error).elsewhere:
                raise
        else:
            return
    raise failure


async def _attempt(call: Call, exchange: Exchange, channel: Channel) -> None:
    async with await exchange.post(channel) as reply:
        call.status = reply.status
        if reply.status // 100 != 2:
            raise Refused(reply.status, await _said(reply), reply.headers.get("retry-after", "").strip())
        call.answer = exchange.answer(channel)
        await call.answer.read(reply)


async def _said(reply: Reply) -> Said:
    try:
        async with asyncio.timeout(ERROR_BODY_SECONDS):
            return read_refusal(await reply.read_begin(MAX_ERROR_BYTES))
    except TimeoutError:
        return Said()


def record(call: Call, outcome: Outcome) -> None:
    """An attempt that is over: on the call's record, and a failed one counted, logged, told to routing."""
    channel = call.channel
    if channel is None:
        return
    took = int((time.monotonic() - call.attempt_started) * 1000)
    entry = {"channel_id": channel.id, "outcome": outcome.attempt, "status": call.status, "ms": took}
    if outcome.failure is not None:
        entry |= {"class": outcome.failure, "may_bill": outcome.may_bill}
    call.attempts.append(entry)
    if outcome.word == "ok":
        call.services.channels.succeeded(channel)
    elif outcome.failure is not None:
        call.services.channels.failed(channel)
        call.services.metrics.provider_errors.labels(channel.provider, channel.name, outcome.failure).inc()
        fields = {"channel": channel.name, "reason": outcome.failure, "status": call.status}
        log.warning("a provider failed: %s", outcome.why, extra=call.log_fields() | fields)
