"""Gemini's methods of a model: ``POST /v1beta/models/MODEL:METHOD``; some clients ask for them below /v1.

The model and what to do with it stand in the path, the key and how to stream in the query. Nothing of the
query passes to providers: ``fields``, for one, would hide the usage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import parse_qs
from uuid import UUID

from relay.asgi import Receive, Scope, Send
from relay.errors import bad_request
from relay.formats import gemini, gemini_embeddings, gemini_fields, gemini_request
from relay.formats.description import Description
from relay.formats.request import Request
from relay.gateway import count_tokens, not_offered
from relay.gateway.endpoints import Endpoint, gemini_method, generate
from relay.gateway.json_array import ArraySend
from relay.gateway.services import Services
from relay.identity.permissions import CHAT, EMBEDDINGS


@dataclass(frozen=True, slots=True)
class Method:
    """``parse`` and ``permission``: see Endpoint; ``parse`` takes the URL's model by name. ``alt``: in which
    forms its answer may be wanted, the usual one first; ``about``: see Endpoint."""

    parse: Callable[..., Request]
    permission: str
    about: Description
    alt: tuple[str, ...] = ("json",)


_GENERATE = gemini_fields.ABOUT
METHODS = {
    "generateContent": Method(gemini_request.parse, CHAT, _GENERATE),
    "streamGenerateContent": Method(
        partial(gemini_request.parse, stream=True),
        CHAT,
        replace(_GENERATE, name="StreamGenerateContent", streams=True),
        ("json", "sse"),
    ),
    "countTokens": Method(gemini_request.parse_count, CHAT, gemini_fields.ABOUT_COUNTING),
    "embedContent": Method(
        partial(gemini_embeddings.parse, batch=False), EMBEDDINGS, gemini_embeddings.ABOUT
    ),
    "batchEmbedContents": Method(
        partial(gemini_embeddings.parse, batch=True), EMBEDDINGS, gemini_embeddings.ABOUT_BATCH
    ),
}
# They change what an answer is.
_REFUSED = ("fields", "$fields", "callback", "$callback")


async def serve(services: Services, scope: Scope, receive: Receive, send: Send, request_id: UUID) -> None:
    """Serve one call; raises ApiError while nothing was sent, and ClientGone."""
    model, method = gemini_method(scope["path"])
    if method not in METHODS:
        not_offered.refuse_of_a_model(scope, method)
    alt, served = _alt(scope, method), METHODS[method]
    parse = partial(served.parse, model=model)
    if method == "countTokens":
        await count_tokens.count_for_gemini(services, parse, scope, receive, send, request_id)
        return
    if served.about.streams and alt == "json":
        send = ArraySend(send)
    endpoint = Endpoint(scope["path"], gemini, parse, served.permission, served.about)
    await generate(services, endpoint, scope, receive, send, request_id)


def _alt(scope: Scope, method: str) -> str:
    """In which form the answer is wanted; raises ApiError 400."""
    query = parse_qs(scope["query_string"].decode("latin-1"))
    for name in _REFUSED:
        if name in query:
            raise bad_request(name, f"{name}: not supported here: leave it out.", "unsupported_parameter")
    alt = str((query.get("alt") or query.get("$alt") or ["json"])[-1])
    allowed = METHODS[method].alt
    if alt not in allowed:
        raise bad_request("alt", f"alt: use {' or '.join(allowed)}.", "unsupported_parameter")
    return alt
