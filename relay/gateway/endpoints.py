"""The endpoints that have a model generate something: one row each.

A row says where requests come, how they are read, and in whose format they and all their errors are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode
from uuid import UUID

from relay.asgi import GONE, Receive, Scope, Send, header, read_form, read_json, with_headers
from relay.errors import ApiError
from relay.formats import (
    anthropic,
    anthropic_fields,
    anthropic_request,
    gemini,
    openai_chat,
    openai_chat_fields,
    openai_chat_request,
    openai_completions,
    openai_embeddings,
    openai_image_edits,
    openai_images,
    openai_moderations,
    openai_rerank,
    openai_responses,
    openai_responses_fields,
    openai_responses_request,
    openai_speech,
    openai_transcriptions,
)
from relay.formats.description import Description
from relay.formats.embeddings import EmbeddingRequest
from relay.formats.format import Format
from relay.formats.media import MediaRequest
from relay.formats.multipart import form_of
from relay.formats.passed import PassedApi
from relay.formats.request import Request
from relay.gateway import access, call_metrics, limit_headers
from relay.gateway.affinity import affinity_of
from relay.gateway.call import Call
from relay.gateway.disconnect_watcher import DisconnectWatcher
from relay.gateway.exchange import NOTHING, AskedEmbedding, AskedMedia, AskedRequest, Passed, PassedOn
from relay.gateway.lifecycle import run
from relay.gateway.services import Services
from relay.identity.permissions import AUDIO, CHAT, EMBEDDINGS, IMAGES, MODERATIONS, RERANK
from relay.settings import Settings

# Of a body, or of the Form in it.
Parse = Callable[[Any, Settings], Request]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``path``: of the URL. ``parse`` checks a body, and raises ApiError 400. ``permission``: which one of
    relay.identity.permissions a key needs. ``about``: for the OpenAPI document. ``headers``: how names of
    customers' headers begin that pass to providers of the same format; where it is None neither headers nor
    the query pass. ``api``: where requests are passed on to OpenAI's API alone, and not translated.
    """

    path: str
    format: Format
    parse: Parse
    permission: str
    about: Description
    headers: bytes | None = None
    api: PassedApi | None = None

    async def read(self, scope: Scope, receive: Receive, settings: Settings) -> Request:
        """A checked request; raises ApiError."""
        if self.about.form:
            body = await read_form(scope, receive, settings.max_form_bytes)
            return self.parse(form_of(header(scope, b"content-type"), body), settings)
        return self.parse(await read_json(scope, receive, settings.max_body_bytes), settings)

    def asked(self, settings: Settings, request: Request, scope: Scope) -> AskedRequest:
        """How channels are asked a request."""
        passed = NOTHING if self.headers is None else passed_of(scope, self.headers)
        if isinstance(request, EmbeddingRequest):
            return AskedEmbedding(settings, self.format, request, passed)
        if self.api is None:
            return AskedRequest(settings, self.format, request, passed)
        if isinstance(request, MediaRequest):
            return AskedMedia(settings, self.format, request, passed, self.api)
        return PassedOn(settings, self.format, request, passed, self.api)


ENDPOINTS = (
    Endpoint("/v1/chat/completions", openai_chat, openai_chat_request.parse, CHAT, openai_chat_fields.ABOUT),
    Endpoint(
        "/v1/responses",
        openai_responses,
        openai_responses_request.parse,
        CHAT,
        openai_responses_fields.ABOUT,
    ),
    Endpoint(
        "/v1/messages",
        anthropic,
        anthropic_request.parse,
        CHAT,
        anthropic_fields.ABOUT,
        headers=b"anthropic-",
    ),
    Endpoint("/v1/embeddings", openai_chat, openai_embeddings.parse, EMBEDDINGS, openai_embeddings.ABOUT),
    *(
        Endpoint(path, openai_chat, api.parse, permission, api.ABOUT, api=api.API)
        for path, api, permission in (
            ("/v1/completions", openai_completions, CHAT),
            ("/v1/moderations", openai_moderations, MODERATIONS),
            ("/v1/rerank", openai_rerank, RERANK),
            ("/v1/images/generations", openai_images, IMAGES),
            ("/v1/audio/speech", openai_speech, AUDIO),
        )
    ),
    *(
        Endpoint(path, openai_chat, parse, permission, about, api=api)
        for path, parse, permission, about, api in (
            (
                "/v1/images/edits",
                openai_image_edits.parse,
                IMAGES,
                openai_image_edits.ABOUT,
                openai_image_edits.API,
            ),
            (
                "/v1/audio/transcriptions",
                openai_transcriptions.parse_transcription,
                AUDIO,
                openai_transcriptions.ABOUT_TRANSCRIPTION,
                openai_transcriptions.TRANSCRIPTIONS,
            ),
            (
                "/v1/audio/translations",
                openai_transcriptions.parse_translation,
                AUDIO,
                openai_transcriptions.ABOUT_TRANSLATION,
                openai_transcriptions.TRANSLATIONS,
            ),
        )
    ),
)
_OF_PATH = {endpoint.path: endpoint for endpoint in ENDPOINTS}
# Gemini's models, in the version that Google's SDKs ask for and in the one that OpenAI's models share.
GEMINI_MODELS = ("/v1beta/models", "/v1/models")
# A method's name has a capital, by which it is told from the tag of a model, such as qwen:7b. A model that no
# provider has may be called anything, of several lines, too.
_GEMINI_METHOD = re.compile(r"/+v1(?:beta)?/+models/+(.*):([a-z]+[A-Z][A-Za-z]*|predict)/*", re.DOTALL)


def format_of(scope: Scope) -> Format:
    """In whose format a request is, and its errors are to be: by its path, else by its headers."""
    path = "/" + "/".join(filter(None, scope["path"].split("/")))  # as relay.app reads it
    endpoint = _OF_PATH.get(path)
    if endpoint is not None:
        return endpoint.format
    if is_googles(scope):
        return gemini
    if path.startswith("/v1/messages/") or is_anthropics(scope):
        return anthropic
    return openai_chat


def error_body(scope: Scope, error: ApiError, request_id: str) -> Any:
    """An error in the shape that the client reads; Gemini's streams are arrays without ``alt=sse``."""
    body = format_of(scope).error_body(error, request_id)
    if gemini_method(scope["path"])[1] != "streamGenerateContent" or b"alt=sse" in scope["query_string"]:
        return body
    return [body]


def gemini_method(path: str) -> tuple[str, str]:
    """(model, method) of Gemini's ``…/models/MODEL:METHOD``; empty where a path is no such one."""
    found = _GEMINI_METHOD.fullmatch(path)
    return (found[1], found[2]) if found is not None else ("", "")


def is_googles(scope: Scope) -> bool:
    """Whether a request is one of Google's clients: its paths are their own, but for the list of models."""
    path = scope["path"].lstrip("/")
    if path.startswith(("v1beta", "upload/v1beta")) or gemini_method(scope["path"])[1]:
        return True
    if not path.startswith("v1/models") or header(scope, b"authorization") or header(scope, b"x-api-key"):
        return False
    return bool(header(scope, b"x-goog-api-key")) or b"key" in parse_qs(scope["query_string"])


def request_id_headers(scope: Scope) -> tuple[bytes, ...]:
    """Headers of an answer that name the call; Anthropic's SDK knows it by another name."""
    return (
        (b"x-request-id", b"request-id") if scope["path"].startswith("/v1/messages") else (b"x-request-id",)
    )


def is_anthropics(scope: Scope) -> bool:
    """Whether a request to a path that several APIs have is Anthropic's."""
    if header(scope, b"anthropic-version"):
        return True
    return bool(header(scope, b"x-api-key")) and not header(scope, b"authorization")


def passed_of(scope: Scope, prefix: bytes) -> Passed:
    """What passes to providers of the same format: the query without a key, and headers by ``prefix``."""
    query = [item for item in parse_qsl(scope["query_string"].decode("latin-1"), True) if item[0] != "key"]
    named = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in scope["headers"]
        if name.startswith(prefix)
    ]
    joined: dict[str, str] = {}
    for name, value in named:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return Passed(f"?{urlencode(query)}" if query else "", joined)


async def generate(
    services: Services, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send, request_id: UUID
) -> None:
    """Serve one call; raises ApiError while nothing was sent, and ClientGone."""
    started = time.monotonic()
    settings = services.settings
    request: Request | None = None
    try:
        caller = await access.identify(services, scope, endpoint.permission)
        request = await endpoint.read(scope, receive, settings)
        admission = access.admit(services, caller, request.model)
        request = request.priced(admission)
        asked = endpoint.asked(settings, request, scope)
        asked.check(services.channels.of(request.model))
        slot = await access.acquire(services, caller, endpoint.format, request, request_id)
    except ApiError as error:
        call_metrics.count_refusal(services, request.model if request else None, error.reason)
        raise
    watcher = DisconnectWatcher(scope["extensions"][GONE])
    left = limit_headers.of(endpoint.format, slot.standing)
    if left:
        send = with_headers(send, [(name.encode(), value.encode()) for name, value in left.items()])
    try:
        room = services.answers.room()
        call = Call(services, caller, request, admission, request_id, send, watcher, started, slot, room)
        call.affinity = affinity_of(services, caller, request, scope)
        await run(call, asked)
    except ApiError as error:
        error.headers = left | error.headers
        raise
    finally:
        watcher.close()
        services.limits.release(slot)
