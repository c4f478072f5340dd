"""Which provider answers a call: channels in the order of routing, until one has answered.

The next channel is asked only while nothing was sent to the customer, and only after a failure that it may
not share: a request that a provider calls wrong or against its content rules is wrong for all. Where a
channel's key or its account is refused, its next usable key is tried before the next channel. A channel whose
own limits are reached is passed over, and so is one that has a budget where no price says what the call
would cost. A provider that failed after the request was written may bill it: each attempt is on the call's
record with ``may_bill``. Success is decided by the body, whatever 2xx status it has (206 and 204 included: a
part of an answer, or none, is no answer); any other status is a failure.

Who cannot be connected to may be starting anew. When no channel has taken a call, those that know nothing of
it, since nothing was sent, are asked again for CONNECT_SECONDS.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any
from uuid import uuid4

from relay import errors
from relay.formats.answer import BadAnswer, ErrorAnswer
from relay.formats.refusal import MAX_ERROR_BYTES, Said
from relay.gateway import access
from relay.gateway.call import Asked, Call, Exchange
from relay.gateway.outcome import (
    NOT_SENT,
    OF_THE_KEY,
    Outcome,
    Refused,
    note_retry_after,
    outcome_of,
    overloaded,
)
from relay.limits import window
from relay.providers.transport import NotSent, Reply, TransportError
from relay.routing.channels import ApiKey, Channel

# For the words of an error whose status is known.
ERROR_BODY_SECONDS = 5.0
# As long as a server takes to start, and less than a connection to a dead host takes to fail.
CONNECT_SECONDS = 4.0
CONNECT_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)
NO_COST_PRICE = "no_cost_price"

log = logging.getLogger(__name__)


class _Full(Exception):
    """The channel's own limits are reached."""

    def __init__(self, refused: window.Refused) -> None:
        super().__init__(refused.reason)
        self.refused = refused


async def answer(call: Call, asked: Asked) -> None:
    """Have the call answered by the first channel that can; raises what the last attempt failed of.

    A channel of a format in which the request cannot be said is passed over. Attempts that another one made
    up for are recorded here, the last one is left to the caller.
    """
    await _Search(call, asked).run()


class _Search:
    """For a channel that answers one call."""

    def __init__(self, call: Call, asked: Asked) -> None:
        self._call, self._asked = call, asked
        self._channels = call.services.channels
        self._failure: Exception | None = None
        self._full: list[window.Refused] = []
        self._unreached: list[Channel] = []

    async def run(self) -> None:
        """See answer()."""
        call, model = self._call, self._call.request.model
        call.candidates = self._channels.candidates(model, call.affinity, stream=call.request.stream)
        for pause, channel in _turns(filter(self._may_ask, call.candidates), self._unreached):
            if pause:
                await asyncio.sleep(pause)
            if await self._answers(channel):
                return
        if self._failure is not None:
            raise self._failure
        if self._full:
            raise self._all_full()
        raise errors.unavailable(f"No channel serves '{model}' now.", "no_channel")

    def _all_full(self) -> errors.ApiError:
        later = [refused.retry_after for refused in self._full if refused.reason != window.TOO_MANY]
        if later:
            return overloaded(min(later))
        request = self._call.request
        most = access.most_of(self._call.services, request)
        largest = max(refused.limit.tpm or 0 for refused in self._full)
        limit = f"the {largest} tokens a minute that the model takes"
        return access.above_limit(limit, most, access.output_field(self._asked.format, request))

    def _may_ask(self, channel: Channel) -> bool:
        call = self._call
        if not self._asked.fits(channel):
            return False
        if not self._channels.has_budget(channel) or call.admission.has_cost(channel.provider, channel.name):
            return True
        call.services.metrics.channel_full.labels(channel.name, NO_COST_PRICE).inc()
        return False

    async def _answers(self, channel: Channel) -> bool:
        """Whether the channel has answered, by whichever key; raises why nobody else is to be asked."""
        for key in self._channels.keys(channel, self._call.affinity):
            try:
                await self._attempt(channel, key)
            except _Full as error:
                self._full.append(error.refused)
                return False
            except (TransportError, BadAnswer, ErrorAnswer, Refused) as error:
                self._failure, outcome = error, outcome_of(self._call, error)
                if self._call.first_byte is not None or not outcome.elsewhere:
                    raise
                count_tokens(self._call, outcome)
                if isinstance(error, NotSent):
                    self._unreached.append(channel)
                if outcome.failure not in OF_THE_KEY:
                    return False
            else:
                return True
        return False

    async def _attempt(self, channel: Channel, key: ApiKey) -> None:
        call = self._call
        with self._channels.attempt(channel, key):
            async with _place(call, channel) if channel.limited else nullcontext():
                if self._failure is not None:
                    record(call, outcome_of(call, self._failure))
                exchange = self._asked.exchange(call, channel, key)
                call.begin_attempt(channel, key, exchange)
                await _exchange(call, exchange)


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


@asynccontextmanager
async def _place(call: Call, channel: Channel) -> AsyncIterator[None]:
    """A place within the limits of a channel that has some, which all replicas share; raises _Full. What the
    attempt has used is known later, see count_tokens()."""
    limit = window.Limit(f"channel:{channel.id}", channel.rpm, channel.tpm, channel.concurrency)
    limits, metrics = call.services.limits, call.services.metrics
    slot = await limits.acquire([limit], 0 if limit.tpm is None else _most_tokens(call), uuid4())
    if isinstance(slot, window.Refused):
        metrics.channel_full.labels(channel.name, slot.reason).inc()
        raise _Full(slot)
    call.channel_slot = slot
    try:
        yield
    finally:
        limits.free(slot)


def _most_tokens(call: Call) -> int:
    return call.slot.reserved or sum(access.most_of(call.services, call.request))


def count_tokens(call: Call, outcome: Outcome) -> None:
    """An attempt is over, and settled if it was to be: its channel's limit counts what it has used, or what
    it reserved where a provider may have done work of which nobody knows how much."""
    slot, call.channel_slot = call.channel_slot, None
    if slot is not None:
        slot.used = call.slot.used or (slot.reserved if outcome.may_bill else 0)
        call.services.limits.correct(slot)


async def _exchange(call: Call, exchange: Exchange) -> None:
    async with await exchange.post() as reply:
        call.status = reply.status
        note_retry_after(call, reply.headers.get("retry-after", "").strip())
        if reply.status // 100 != 2:
            raise Refused(reply.status, await _said(reply, exchange))
        call.answer = exchange.answer()
        await call.answer.read(reply)


async def _said(reply: Reply, exchange: Exchange) -> Said:
    try:
        async with asyncio.timeout(ERROR_BODY_SECONDS):
            return exchange.said(await reply.read_begin(MAX_ERROR_BYTES))
    except TimeoutError:
        return Said()


def record(call: Call, outcome: Outcome) -> None:
    """An attempt that is over: on the call's record, and a failed one counted, logged, told to routing.

    That a channel could not be reached is told once, however often the call has tried."""
    channel, key = call.channel, call.key
    if channel is None or key is None or (outcome.attempt == NOT_SENT and _unreached_before(call, channel)):
        return
    took = int((time.monotonic() - call.attempt_started) * 1000)
    entry: dict[str, Any] = {"channel_id": channel.id, "key": key.name, "outcome": outcome.attempt}
    entry |= {"status": call.status, "ms": took} | _why(call, channel)
    if outcome.failure is not None:
        entry |= {"class": outcome.failure, "may_bill": outcome.may_bill}
    call.attempts.append(entry)
    if outcome.word == "ok":
        call.services.channels.succeeded(channel, key, call.attempt_started)
        _tell_success(call, channel)
    elif outcome.failure is not None:
        _tell_failure(call, channel, key, outcome.failure)
        named = {"channel": channel.name, "channel_key": key.name}
        fields = named | {"reason": outcome.failure, "status": call.status}
        log.warning("a provider failed: %s", outcome.why, extra=call.log_fields() | fields)


def _why(call: Call, channel: Channel) -> dict[str, Any]:
    """What the choice of this channel went by, where there was a choice, and in whose place it stands."""
    candidates = call.candidates
    if candidates is None or candidates.preferred is None or not candidates.several:
        return {}
    if channel.id == candidates.preferred.id:
        return {"by": candidates.by}
    return {"by": candidates.by, "instead_of": candidates.preferred.id}


def _tell_success(call: Call, channel: Channel) -> None:
    services, request, candidates = call.services, call.request, call.candidates
    if candidates is None or not candidates.several or candidates.preferred is None:
        return
    ended = call.first_byte if request.stream and call.first_byte is not None else time.monotonic()
    services.channels.measured(channel, request.model, request.stream, ended - call.attempt_started)
    if call.affinity is not None:
        outcome = "kept" if channel.id == candidates.preferred.id else "moved"
        services.metrics.of("sticky", call.affinity.by, outcome).inc()


def _tell_failure(call: Call, channel: Channel, key: ApiKey, kind: str) -> None:
    services = call.services
    if kind in OF_THE_KEY:
        services.channels.refused(channel, key, call.retry_after)
    else:
        services.channels.failed(channel)
    services.metrics.provider_errors.labels(channel.provider, channel.name, kind).inc()


def _unreached_before(call: Call, channel: Channel) -> bool:
    return any(entry["channel_id"] == channel.id and entry["outcome"] == NOT_SENT for entry in call.attempts)
