"""The life of a call that was let in: hold, vendor, answer, and its report however it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from relay.gateway import call_metrics, payment, vendors
from relay.gateway.call import Call
from relay.gateway.errors import ApiError
from relay.gateway.http import ClientGone
from relay.gateway.outcome import outcome_of
from relay.providers.transport import Reply
from relay.routing.channels import Channel

PassOn = Callable[[Channel, Reply], Awaitable[None]]


async def run(call: Call, post: vendors.Post, pass_on: PassOn) -> None:
    """From the hold to the last byte; ``pass_on`` settles the call before it sends that byte.

    Raises ApiError while nothing was sent, and ClientGone.
    """
    try:
        call.hold = await payment.hold(call)
    except ApiError as refusal:
        call.outcome = refusal.reason
        call_metrics.report(call)
        raise
    call.vendor_started = time.monotonic()
    try:
        channel, reply = await vendors.first_answer(call, post)
    except (ApiError, ClientGone, asyncio.CancelledError) as failure:
        call.outcome = outcome_of(failure)
        await payment.release(call, f"no answer from a vendor: {call.outcome}")
        call_metrics.report(call)
        raise
    call.channel, call.provider = channel, channel.provider
    async with reply:
        try:
            await pass_on(channel, reply)
        finally:
            call_metrics.report(call)
