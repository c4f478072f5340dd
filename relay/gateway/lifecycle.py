"""The life of a call that was let in: hold, provider, answer, and its report however it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from relay.asgi import ClientGone
from relay.errors import ApiError
from relay.gateway import call_metrics, failover, payment
from relay.gateway.call import Call
from relay.gateway.outcome import outcome_of
from relay.providers.transport import Reply
from relay.routing.channels import Channel

Forward = Callable[[Channel, Reply], Awaitable[None]]


async def run(call: Call, post: failover.Post, forward: Forward) -> None:
    """From the hold to the last byte; ``forward`` settles the call before it sends that byte.

    Raises ApiError while nothing was sent, and ClientGone.
    """
    try:
        call.hold = await payment.hold(call)
    except ApiError as refusal:
        call.outcome = refusal.reason
        call_metrics.report(call)
        raise
    call.provider_started = time.monotonic()
    try:
        channel, reply = await failover.first_answer(call, post)
    except (ApiError, ClientGone, asyncio.CancelledError) as failure:
        call.outcome = outcome_of(failure)
        await payment.release(call, f"no answer from a provider: {call.outcome}")
        call_metrics.report(call)
        raise
    call.channel, call.provider = channel, channel.provider
    async with reply:
        try:
            await forward(channel, reply)
        finally:
            call_metrics.report(call)
