"""``GET /v1/models`` and ``GET /v1/models/{id}``, in OpenAI's format, in Anthropic's or in Gemini's, as they
are asked; ``/v1beta/models`` is always Gemini's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from relay import errors
from relay.asgi import Scope, Send, send_json
from relay.errors import bad_request
from relay.gateway.access import identify
from relay.gateway.endpoints import GEMINI_MODELS, is_anthropics, is_googles
from relay.gateway.services import Services
from relay.identity.permissions import MODELS
from relay.identity.token_cache import Caller
from relay.pricing.errors import Unpriced
from relay.pricing.tariff import Admission

PATHS = GEMINI_MODELS
# Of a page in Anthropic's format, and in Gemini's.
USUAL_LIMIT, GOOGLES_LIMIT, MAX_LIMIT = 20, 50, 1000


async def list_models(services: Services, scope: Scope, send: Send) -> None:
    """The models that this caller may use now: served by a channel, priced, and allowed to the key."""
    caller = await identify(services, scope, MODELS)
    found = {name: _admission(services, caller, name) for name in services.channels.models()}
    usable = {name: admission for name, admission in found.items() if admission is not None}
    query = parse_qs(scope["query_string"].decode("latin-1"))
    if is_googles(scope):
        await send_json(send, 200, _googles_page(usable, query))
        return
    names = list(usable)
    if is_anthropics(scope):
        await send_json(send, 200, _page(names, query))
        return
    await send_json(send, 200, {"object": "list", "data": [_model(name) for name in names]})


async def show_model(services: Services, scope: Scope, send: Send) -> None:
    """One of them; raises ApiError 404."""
    caller = await identify(services, scope, MODELS)
    name = next(scope["path"].removeprefix(f"{path}/") for path in PATHS if scope["path"].startswith(path))
    admission = _admission(services, caller, name) if services.channels.serves(name) else None
    if admission is None:
        raise errors.unknown_model(name)
    if is_googles(scope):
        await send_json(send, 200, _googles_model(name, admission))
        return
    await send_json(send, 200, (_anthropics_model if is_anthropics(scope) else _model)(name))


def _admission(services: Services, caller: Caller, name: str) -> Admission | None:
    """By which price the caller may use the model; None where it may not."""
    if not caller.may_use(name):
        return None
    try:
        return services.prices.admit(name, group=caller.group, at=datetime.now(UTC))
    except Unpriced:
        return None


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "relay"}


def _anthropics_model(name: str) -> dict[str, Any]:
    """When it was made is not known here, which Anthropic writes like this."""
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
    }


def _googles_model(name: str, admission: Admission) -> dict[str, Any]:
    """Which limits it has is not known here; what it is for, its price tells."""
    methods: list[str] = []
    if admission.has_price("out_text"):
        methods = ["generateContent", "countTokens"]
    elif admission.has_price("in_text"):
        methods = ["embedContent", "batchEmbedContents"]
    return {
        "name": f"models/{name}",
        "version": "1",
        "displayName": name,
        "supportedGenerationMethods": methods,
    }


def _googles_page(usable: dict[str, Admission], query: dict[str, list[str]]) -> dict[str, Any]:
    """A page in Gemini's format: up to ``pageSize`` models after the one that ``pageToken`` names."""
    limit = _limit(query, "pageSize", GOOGLES_LIMIT)
    after = query.get("pageToken", [""])[-1]
    found = [name for name in usable if name > after]
    more = {"nextPageToken": found[limit - 1]} if len(found) > limit else {}
    return {"models": [_googles_model(name, usable[name]) for name in found[:limit]]} | more


def _limit(query: dict[str, list[str]], name: str, usual: int) -> int:
    given = query.get(name, [str(usual)])[-1]
    if not given.isascii() or not given.isdigit() or not 1 <= int(given[:9]) <= MAX_LIMIT:
        raise bad_request(name, f"{name}: use a number from 1 to {MAX_LIMIT}.")
    return int(given)


def _page(names: list[str], query: dict[str, list[str]]) -> dict[str, Any]:
    """A page in Anthropic's format: up to ``limit`` models after ``after_id``, or before ``before_id``."""
    limit = _limit(query, "limit", USUAL_LIMIT)
    after, before = query.get("after_id", [""])[-1], query.get("before_id", [""])[-1]
    found = [name for name in names if name > after and (not before or name < before)]
    page = found[-limit:] if before else found[:limit]
    return {
        "data": [_anthropics_model(name) for name in page],
        "has_more": len(page) < len(found),
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }
