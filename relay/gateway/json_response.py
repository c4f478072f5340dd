"""Passing on an answer that arrives whole: read, captured, sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from relay.asgi import ClientGone, send_body
from relay.formats.openai_chat_answer import Completion
from relay.gateway import payment
from relay.gateway.call import Call
from relay.gateway.failover import note_attempt, note_failure
from relay.gateway.outcome import error_of, outcome_of
from relay.providers.transport import Reply, TransportError
from relay.routing.channels import Channel


async def forward_json(
    call: Call, decode: Callable[[bytes], Completion], channel: Channel, reply: Reply
) -> None:
    """Send the provider's bytes on once they are paid for; raises ApiError, and ClientGone.

    ``decode`` raises ValueError when they are no answer.
    """
    try:
        with call.watcher:
            body = await reply.read(call.services.settings.max_answer_bytes)
        completion = decode(body)
    except (TransportError, ValueError, ClientGone, asyncio.CancelledError) as failure:
        call.outcome = outcome_of(failure)
        await payment.release(call, f"nothing was delivered: {call.outcome}")
        if isinstance(failure, TransportError | ValueError):
            note_failure(call, channel, call.outcome, call.provider_started, failure, reply.status)
            raise error_of(failure) from failure
        raise
    note_attempt(call, channel, "ok", call.provider_started, reply.status)
    call.provider_seconds = time.monotonic() - call.provider_started
    await payment.capture(call, completion.usage, completion.estimate)
    await send_body(call.send, 200, body, [(b"content-type", b"application/json"), call.id_header()])
