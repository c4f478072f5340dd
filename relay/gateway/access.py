"""Who calls, and may they: the key, its models, the price, a channel, and the key's limits."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from relay import errors
from relay.asgi import Scope, authorization, client_address
from relay.gateway.services import Services
from relay.identity.token_cache import Caller
from relay.limits.shared import Slot
from relay.limits.window import Refused
from relay.pricing.errors import Unpriced
from relay.pricing.tariff import Admission


async def identify(services: Services, scope: Scope) -> Caller:
    """Whose key this is; raises ApiError 401, 403 and 503."""
    address = client_address(scope, services.settings.trusted_networks)
    return await services.tokens.authenticate(authorization(scope), address)


def admit(services: Services, caller: Caller, model: str) -> Admission:
    """The price that holds for this call from now on; raises ApiError 403, 404 and 503."""
    if not services.channels.knows(model):
        raise errors.unknown_model(model)
    if not caller.may_use(model):
        raise errors.forbidden(f"The API key may not use the model '{model}'.", "model_not_allowed", "model")
    try:
        admission = services.prices.admit(model, group=caller.group, at=datetime.now(UTC))
    except Unpriced:
        raise errors.unknown_model(model, "has no price and cannot be used") from None
    if not services.channels.serves(model):
        raise errors.unavailable(f"No channel for the model '{model}' is in use.", "no_channel", 10)
    return admission


async def acquire(services: Services, caller: Caller, request_id: UUID) -> Slot:
    """A place within the key's limits, to be left at the call's end; raises ApiError 429."""
    slot = await services.limits.acquire(caller.token_id, caller.rpm, caller.concurrency, request_id)
    if isinstance(slot, Refused):
        raise errors.rate_limited(
            "The API key's limit is reached: try again later.", slot.retry_after, slot.reason
        )
    return slot
