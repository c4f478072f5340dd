"""``POST /v1/chat/completions``: what of a call's life is OpenAI's format."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from functools import partial
from uuid import UUID

from relay.gateway import access, call_metrics
from relay.gateway.call import Call
from relay.gateway.chat_request import ChatRequest, parse, prompt_estimate
from relay.gateway.departure import Departure
from relay.gateway.errors import ApiError
from relay.gateway.http import Receive, Scope, Send, read_json
from relay.gateway.lifecycle import PassOn, run
from relay.gateway.services import Services
from relay.gateway.streamed_answer import pass_on_stream
from relay.gateway.whole_answer import pass_on_whole
from relay.providers import openai
from relay.providers.openai import USAGE_FORMAT
from relay.providers.openai_stream import StreamMeter
from relay.providers.transport import Reply
from relay.routing.channels import Channel


async def chat_completions(
    services: Services, scope: Scope, receive: Receive, send: Send, request_id: UUID
) -> None:
    """Serve one call; raises ApiError while nothing was sent, and ClientGone."""
    started = time.monotonic()
    request: ChatRequest | None = None
    try:
        caller = await access.identify(services, scope)
        body = await read_json(scope, receive, services.settings.max_body_bytes)
        request = parse(body, services.settings)
        admission = access.admit(services, caller, request.model)
        admitted = await access.enter(services, caller, request_id)
    except ApiError as error:
        call_metrics.count_refusal(services, request.model if request else None, error.reason)
        raise
    departure = Departure(receive)
    try:
        estimate = partial(prompt_estimate, request.messages)
        call = Call(
            services, caller, request, admission, request_id, send, departure, started, USAGE_FORMAT, estimate
        )
        await run(call, partial(_post, call, request), _passing_on(call, request))
    finally:
        departure.close()
        services.limits.leave(admitted)


def _post(call: Call, request: ChatRequest, channel: Channel) -> Awaitable[Reply]:
    return call.services.transport.post(
        openai.chat_url(channel),
        openai.chat_headers(channel, call.request_id),
        openai.chat_body(channel, request),
    )


def _passing_on(call: Call, request: ChatRequest) -> PassOn:
    if request.stream:
        return partial(pass_on_stream, call, StreamMeter(keep_usage_chunk=request.include_usage))
    return partial(pass_on_whole, call, openai.read_completion)
