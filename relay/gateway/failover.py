"""Which provider answers a call: channels in the order of routing, until one has answered.

The next channel is asked only while nothing was sent to the customer, and only after a failure that it may
not share: a request that a provider calls wrong or against its content rules is wrong for all. A provider
that failed after the request was written may bill it: each attempt is on the call's record with
``may_bill``. Success is decided by the body, whatever 2xx status it has (206 and 204 included: a part of an
answer, or none, is no answer); any other status is a failure.

Who cannot be connected to may be starting anew. When no channel has taken a call, those that know nothing of
it, since nothing was sent, are asked again for CONNECT_SECONDS.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator

from relay import errors
from relay.formats.openai_chat_answer import BadAnswer, ErrorAnswer
from relay.formats.refusal import MAX_ERROR_BYTES, Said, read_refusal
from relay.gateway.call import Call, Exchange
from relay.gateway.outcome import NOT_SENT, Outcome, Refused, note_retry_after, outcome_of
from relay.providers.transport import NotSent, Reply, TransportError
from relay.routing.channels import Channel

# For the words of an error whose status is known.
ERROR_BODY_SECONDS = 5.0
# As long as a server takes to start, and less than a connection to a dead host takes to fail.
CONNECT_SECONDS = 4.0
CONNECT_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)

log = logging.getLogger(__name__)


async def answer(call: Call, exchange: Exchange) -> None:
    """Have the call answered by the first channel that can; raises what the last attempt failed of.

    Attempts that another one made up for are recorded here, the last one is left to the caller.
    """
    failure: Exception = errors.unavailable(f"No channel serves '{call.request.model}' now.", "no_channel")
    unreached: list[Channel] = []
    for pause, channel in _turns(call.services.channels.candidates(call.request.model), unreached):
        if pause:
            await asyncio.sleep(pause)
        if call.channel is not None:
            record(call, outcome_of(call, failure))
        call.begin_attempt(channel)
        try:
            await _attempt(call, exchange, channel)
        except (TransportError, BadAnswer, ErrorAnswer, Refused) as error:
            failure = error
            if call.first_byte is not None or not outcome_of(call, error).elsewhere:
                raise
            if isinstance(error, NotSent):
                unreached.append(channel)
        else:
            return
    raise failure


def _turns(channels: Iterable[Channel], unreached: list[Channel]) -> Iterator[tuple[float, Channel]]:
    """Whom to ask, and the seconds to wait before: each of ``channels``, then again those that the caller
    has put into ``unreached`` meanwhile."""
    deadline = time.monotonic() + CONNECT_SECONDS
    for channel in channels:
        yield 0, channel
    for pause in CONNECT_PAUSES:
        again = unreached[:]
        unreached.clear()
        if not again or time.monotonic() + pause > deadline:
            return
        yield pause, again[0]
        for channel in again[1:]:
            yield 0, channel


async def _attempt(call: Call, exchange: Exchange, channel: Channel) -> None:
    async with await exchange.post(channel) as reply:
        call.status = reply.status
        note_retry_after(call, reply.headers.get("retry-after", "").strip())
        if reply.status // 100 != 2:
            raise Refused(reply.status, await _said(reply))
        call.answer = exchange.answer(channel)
        await call.answer.read(reply)


async def _said(reply: Reply) -> Said:
    try:
        async with asyncio.timeout(ERROR_BODY_SECONDS):
            return read_refusal(await reply.read_begin(MAX_ERROR_BYTES))
    except TimeoutError:
        return Said()


def record(call: Call, outcome: Outcome) -> None:
    """An attempt that is over: on the call's record, and a failed one counted, logged, told to routing.

    That a channel could not be reached is told once, however often the call has tried."""
    channel = call.channel
    if channel is None or (outcome.attempt == NOT_SENT and _unreached_before(call, channel)):
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


def _unreached_before(call: Call, channel: Channel) -> bool:
    return any(entry["channel_id"] == channel.id and entry["outcome"] == NOT_SENT for entry in call.attempts)
