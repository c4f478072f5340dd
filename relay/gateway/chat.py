"""``POST /v1/chat/completions``: what of a call's life is OpenAI's format."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from functools import partial
from uuid import UUID

from relay.asgi import Receive, Scope, Send, read_json
from relay.errors import ApiError
from relay.formats.openai_chat_answer import USAGE_FORMAT
from relay.formats.openai_chat_request import ChatRequest, counted_prompt, parse, provider_request
from relay.formats.openai_chat_stream import StreamMeter
from relay.gateway import access, call_metrics
from relay.gateway.call import Answer, Call
from relay.gateway.disconnect_watcher import DisconnectWatcher
from relay.gateway.json_response import JsonAnswer
from relay.gateway.lifecycle import run
from relay.gateway.outcome import clean
from relay.gateway.services import Services
from relay.gateway.stream_response import StreamAnswer
from relay.providers import openai
from relay.providers.profiles import profile_of
from relay.providers.transport import Reply
from relay.routing.channels import Channel
from relay.telemetry.logs import redact_data


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
        estimate = partial(counted_prompt, request, services.settings.image_hold_tokens)
        call = Call(
            services, caller, request, admission, request_id, send, watcher, started, USAGE_FORMAT, estimate
        )
        await run(call, ChatExchange(call, request))
    finally:
        watcher.close()
        services.limits.release(slot)


class ChatExchange:
    """An Exchange in OpenAI's chat format."""

    def __init__(self, call: Call, request: ChatRequest) -> None:
        self._call, self._request = call, request

    def post(self, channel: Channel) -> Awaitable[Reply]:
        """See Exchange."""
        call, request = self._call, self._request
        return call.services.transport.post(
            openai.chat_url(channel.base_url),
            openai.headers(channel.api_key, call.request_id),
            provider_request(
                request,
                channel.provider_model(request.model),
                profile_of(
                    channel.provider,
                    call.services.settings,
                    output_limit=channel.output_limit_field,
                    unknown_fields=channel.unknown_fields,
                ),
            ),
        )

    def answer(self, channel: Channel) -> Answer:
        """See Exchange."""
        call, request = self._call, self._request
        mapped = channel.provider_model(request.model) != request.model
        model = request.model if mapped else None
        redact = partial(redact_data, clean=partial(clean, channel=channel, model=request.model))
        if not request.stream:
            return JsonAnswer(call, model, redact)
        meter = StreamMeter(
            keep_usage_chunk=request.include_usage,
            choices=request.choices,
            max_event_bytes=call.services.settings.max_event_bytes,
            model=model,
            redact=redact,
        )
        return StreamAnswer(call, meter)
