"""Passing on an answer as events while it arrives: its end is kept back until the call is paid for."""

from __future__ import annotations

import asyncio
import time

from relay import errors
from relay.asgi import ClientGone, Headers
from relay.errors import ApiError
from relay.formats.openai_chat_stream import BadStream, StreamMeter
from relay.gateway import payment
from relay.gateway.call import Call
from relay.gateway.failover import note_attempt, note_failure
from relay.gateway.outcome import error_of, outcome_of
from relay.providers.transport import Reply, TransportError
from relay.routing.channels import Channel

AFTER_DONE_SECONDS = 1.0
# Outcomes for which the provider is not to blame.
PROVIDER_DID_WELL = frozenset({"ok", "client_gone", "shutdown"})
SSE_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def forward_stream(call: Call, meter: StreamMeter, channel: Channel, reply: Reply) -> None:
    """From the first block to the last byte; raises ApiError while nothing was sent, and ClientGone."""
    failure = await _read_along(call, reply, meter)
    call.provider_seconds = time.monotonic() - call.provider_started
    call.outcome = _outcome(meter, failure)
    if call.outcome in PROVIDER_DID_WELL:
        note_attempt(call, channel, call.outcome, call.provider_started, reply.status)
    else:
        problem = failure if isinstance(failure, Exception) else RuntimeError(str(meter.error))
        note_failure(call, channel, call.outcome, call.provider_started, problem, reply.status)
    try:
        await payment.settle(call, meter.usage, meter.estimate())
    except ApiError as error:
        if call.first_byte is None:
            raise
        await call.send({"type": "http.response.body", "body": errors.stream_event(error)})
    else:
        await _end(call, meter, failure)


async def _read_along(call: Call, reply: Reply, meter: StreamMeter) -> BaseException | None:
    """Send on what arrives until the end; returns what cut it short."""
    loop = asyncio.get_running_loop()
    try:
        with call.watcher:
            async with asyncio.timeout(None) as limit:
                async for block in reply.blocks():
                    part = meter.feed(block)
                    if meter.error is not None and call.first_byte is None:
                        return None
                    if part:
                        await _send_part(call, part)
                    if meter.done:
                        # Only the body's end is missing, which frees the connection for the next call.
                        limit.reschedule(loop.time() + AFTER_DONE_SECONDS)
    except (TransportError, BadStream, TimeoutError) as failure:
        return None if meter.done else failure
    except (ClientGone, asyncio.CancelledError) as failure:
        return failure
    return None


async def _send_part(call: Call, part: bytes) -> None:
    if call.first_byte is None:
        call.first_byte = time.monotonic()
        headers = [*SSE_HEADERS, call.id_header()]
        await call.send({"type": "http.response.start", "status": 200, "headers": headers})
    await call.send({"type": "http.response.body", "body": part, "more_body": True})


def _outcome(meter: StreamMeter, failure: BaseException | None) -> str:
    if failure is not None:
        return outcome_of(failure)
    if meter.error is not None:
        return "provider_error"
    return "ok" if meter.complete else "truncated"


async def _end(call: Call, meter: StreamMeter, failure: BaseException | None) -> None:
    """The last bytes, after the capture; a stream that broke off ends with an error event instead."""
    if isinstance(failure, ClientGone | asyncio.CancelledError):
        raise failure
    if call.outcome != "ok" and call.first_byte is None:
        raise error_of(failure)
    tail = meter.tail()
    if call.outcome in ("truncated", "timeout"):
        tail = errors.stream_event(errors.broken_off())
    if call.first_byte is None:
        await _send_part(call, tail)
        tail = b""
    await call.send({"type": "http.response.body", "body": tail})
