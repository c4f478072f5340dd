"""How many tokens a prompt has, at no charge: Anthropic's ``POST /v1/messages/count_tokens`` and Gemini's
``POST /v1beta/models/MODEL:countTokens``.

A channel of the same format that serves the model is asked, by the order of routing. Where there is none, or
none answers, the answer is counted here, and the header ``x-relay-estimate`` says so: 4 tokens a message, one
for each 4 ASCII characters and for each other character of its texts, and what is held for an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from relay.asgi import Receive, Scope, Send, read_json, send_body, send_json
from relay.errors import ApiError
from relay.formats import anthropic, anthropic_request, gemini, gemini_fields
from relay.formats.answer import loads
from relay.formats.format import Format
from relay.formats.request import Request
from relay.formats.top_level import replace_string
from relay.gateway import access
from relay.gateway.endpoints import Parse, passed_of
from relay.gateway.exchange import NOTHING, AskedRequest, Passed
from relay.gateway.services import Services
from relay.identity.permissions import CHAT
from relay.providers import anthropic as anthropic_provider
from relay.providers import gemini as gemini_provider
from relay.providers.transport import TransportError
from relay.routing.channels import Channel

PATH = "/v1/messages/count_tokens"
MAX_ANSWER_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class _Counting:
    """How one API counts. ``asks``: (URL, body) for a channel; ``total``: the answer's field."""

    format: Format
    total: str
    request: Request
    passed: Passed
    asks: Callable[[Channel], tuple[str, bytes]]


async def count_tokens(
    services: Services, scope: Scope, receive: Receive, send: Send, request_id: UUID
) -> None:
    """Serve one request of Anthropic's; raises ApiError."""
    settings = services.settings

    def read(body: bytes) -> _Counting:
        request = anthropic_request.parse(body, settings, counting=True)
        passed = passed_of(scope, b"anthropic-")
        asked = AskedRequest(settings, anthropic, request, passed)

        def asks(channel: Channel) -> tuple[str, bytes]:
            model = channel.provider_model(request.model)
            url = anthropic_provider.count_url(channel.base_url, passed.query)
            return url, request.native(model, asked.profile(channel))

        return _Counting(anthropic, "input_tokens", request, passed, asks)

    await _serve(services, read, scope, receive, send, request_id)


async def count_for_gemini(
    services: Services, parse: Parse, scope: Scope, receive: Receive, send: Send, request_id: UUID
) -> None:
    """Serve one request of Gemini's; raises ApiError."""

    def read(body: bytes) -> _Counting:
        request = parse(body, services.settings)
        return _Counting(gemini, "totalTokens", request, NOTHING, partial(_asks_gemini, body, request.model))

    await _serve(services, read, scope, receive, send, request_id)


def _asks_gemini(body: bytes, model: str, channel: Channel) -> tuple[str, bytes]:
    """The body as it came, but for the model's name, which may also stand in the request inside it."""
    theirs = channel.provider_model(model)
    for depth in (1, 2) if theirs != model else ():
        body = replace_string(body, "model", gemini_fields.MODELS + theirs, depth)
    return gemini_provider.count_url(channel.base_url, theirs), body


async def _serve(
    services: Services,
    read: Callable[[bytes], _Counting],
    scope: Scope,
    receive: Receive,
    send: Send,
    request_id: UUID,
) -> None:
    settings = services.settings
    caller = await access.identify(services, scope, CHAT)
    counting = read(await read_json(scope, receive, settings.max_body_bytes))
    request = counting.request
    access.admit(services, caller, request.model)
    slot = await access.acquire(services, caller, counting.format, request, request_id, free=True)
    try:
        for channel in services.channels.candidates(request.model):
            if channel.format == counting.format.NAME:
                counted = await _ask(services, channel, counting, request_id)
                if counted is not None:
                    await send_body(send, 200, counted, [(b"content-type", b"application/json")])
                    return
        estimate = request.counted_prompt(settings.image_hold_tokens)
        await send_json(send, 200, {counting.total: estimate}, [(b"x-relay-estimate", b"counted by text")])
    finally:
        services.limits.release(slot)


async def _ask(services: Services, channel: Channel, counting: _Counting, request_id: UUID) -> bytes | None:
    """A provider's answer as it came; None where it gives none."""
    try:
        url, body = counting.asks(channel)
        key = next(services.channels.keys(channel))
        headers = counting.format.PROVIDER.headers(key.secret, request_id, counting.passed.headers)
        async with await services.transport.post(url, headers, body) as reply:
            if reply.status != 200:
                return None
            answer = await reply.read(MAX_ANSWER_BYTES)
    except (TransportError, ApiError):
        return None
    value = loads(answer)
    return answer if isinstance(value, dict) and isinstance(value.get(counting.total), int) else None
