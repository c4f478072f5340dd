"""Which provider answers a call: channels in the order of routing, one attempt at each until one answers.

Another channel is tried only while the provider cannot have done the work, or said that it has not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from relay import errors
from relay.errors import ApiError
from relay.formats.refusal import MAX_ERROR_BYTES, read_error
from relay.gateway.call import Call
from relay.gateway.outcome import error_of
from relay.providers.transport import Broken, NotSent, Reply, TimedOut, TransportError
from relay.routing.channels import Channel
from relay.telemetry.logs import redact

# A provider's answer with one of these blames the request, so another channel would say the same.
CUSTOMERS_FAULT = frozenset({400, 413, 415, 422})
Post = Callable[[Channel], Awaitable[Reply]]

log = logging.getLogger(__name__)


async def first_answer(call: Call, post: Post) -> tuple[Channel, Reply]:
    """The first channel that answers 200; raises ApiError when none does, and ClientGone."""
    channels = call.services.channels
    failure = errors.unavailable(f"No channel serves '{call.request.model}' now.", "no_channel")
    for channel in channels.candidates(call.request.model):
        began = time.monotonic()
        try:
            with call.watcher:
                reply = await post(channel)
        except NotSent as error:
            failure = errors.bad_gateway()
            note_failure(call, channel, "not_sent", began, error)
            continue
        except (TimedOut, Broken) as error:
            note_failure(call, channel, "timeout" if isinstance(error, TimedOut) else "broken", began, error)
            raise error_of(error) from error
        if reply.status == 200:
            channels.succeeded(channel)
            return channel, reply
        failure = await _refusal(call, channel, reply, began)
    raise failure


async def _refusal(call: Call, channel: Channel, reply: Reply, began: float) -> ApiError:
    """What to say when no other channel does better; raises ApiError when the request is at fault."""
    async with reply:
        try:
            message, param = read_error(await reply.read(MAX_ERROR_BYTES))
        except TransportError:
            message, param = "", None
    status = reply.status
    if status in CUSTOMERS_FAULT:
        note_attempt(call, channel, "refused", began, status)
        said = redact(message) or f"The model's provider refused the request ({status})."
        raise ApiError(status, said, param=param, code="provider_refused")
    note_failure(call, channel, f"status_{status}", began, RuntimeError(message), status)
    if status == 429:
        return errors.unavailable("The model is overloaded: try again later.", "provider_overloaded", 5)
    return errors.bad_gateway()


def note_failure(
    call: Call, channel: Channel, kind: str, began: float, error: Exception, status: int | None = None
) -> None:
    """A failed attempt: count it, log it, let routing know, and put it on record."""
    call.services.channels.failed(channel)
    call.services.metrics.provider_errors.labels(channel.provider, channel.name, kind).inc()
    fields = call.log_fields() | {"channel": channel.name, "reason": kind, "status": status}
    log.warning("a provider failed: %s", error, extra=fields)
    note_attempt(call, channel, kind, began, status)


def note_attempt(call: Call, channel: Channel, kind: str, began: float, status: int | None) -> None:
    """Put an attempt on the call's record; ``began`` as ``time.monotonic()`` gave it."""
    took = int((time.monotonic() - began) * 1000)
    call.attempts.append({"channel_id": channel.id, "outcome": kind, "status": status, "ms": took})
