"""``GET /v1/models`` and ``GET /v1/models/{id}`` in OpenAI's format."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from relay import errors
from relay.asgi import Scope, Send, send_json
from relay.gateway.access import identify
from relay.gateway.services import Services
from relay.identity.token_cache import Caller
from relay.pricing.errors import Unpriced

PREFIX = "/v1/models/"


async def list_models(services: Services, scope: Scope, send: Send) -> None:
    """The models that this caller may use now: served by a channel, priced, and allowed to the key."""
    caller = await identify(services, scope)
    data = [_model(name) for name in services.channels.models() if _usable(services, caller, name)]
    await send_json(send, 200, {"object": "list", "data": data})


async def show_model(services: Services, scope: Scope, send: Send) -> None:
    """One of them; raises ApiError 404."""
    caller = await identify(services, scope)
    name = scope["path"].removeprefix(PREFIX)
    if not services.channels.serves(name) or not _usable(services, caller, name):
        raise errors.unknown_model(name)
    await send_json(send, 200, _model(name))


def _usable(services: Services, caller: Caller, name: str) -> bool:
    if not caller.may_use(name):
        return False
    try:
        services.prices.admit(name, group=caller.group, at=datetime.now(UTC))
    except Unpriced:
        return False
    return True


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "relay"}
