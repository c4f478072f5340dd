"""``POST /v1/chat/completions``: what of a call's life is OpenAI's format."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from functools import partial
from uuid import UUID

from relay.asgi import Receive, Scope, Send, read_json
from relay.errors import ApiError
from relay.formats.openai_chat_answer import USAGE_FORMAT, read_completion
from relay.formats.openai_chat_request import ChatRequest, parse, prompt_estimate, provider_request
from relay.formats.openai_chat_stream import StreamMeter
from relay.gateway import access, call_metrics
from relay.gateway.call import Call
from relay.gateway.disconnect_watcher import DisconnectWatcher
from relay.gateway.json_response import forward_json
from relay.gateway.lifecycle import Forward, run
from relay.gateway.services import Services
from relay.gateway.stream_response import forward_stream
from relay.providers import openai
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
        slot = await access.acquire(services, caller, request_id)
    except ApiError as error:
        call_metrics.count_refusal(services, request.model if request else None, error.reason)
        raise
    watcher = DisconnectWatcher(receive)
    try:
        estimate = partial(prompt_estimate, request.messages)
        call = Call(
            services, caller, request, admission, request_id, send, watcher, started, USAGE_FORMAT, estimate
        )
        await run(call, partial(_post, call, request), _forwarding(call, request))
    finally:
        watcher.close()
        services.limits.release(slot)


def _post(call: Call, request: ChatRequest, channel: Channel) -> Awaitable[Reply]:
    return call.services.transport.post(
        openai.chat_url(channel.base_url),
        openai.headers(channel.api_key, call.request_id),
        provider_request(request, channel.provider_model(request.model)),
    )


def _forwarding(call: Call, request: ChatRequest) -> Forward:
    if request.stream:
        return partial(forward_stream, call, StreamMeter(keep_usage_chunk=request.include_usage))
    return partial(forward_json, call, read_completion)
