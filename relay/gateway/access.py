"""Who calls, and may they: the key, its models, the price, a channel, and the key's limits."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from relay import errors
from relay.asgi import Scope, api_key, client_address
from relay.formats.format import Format
from relay.formats.request import Request
from relay.gateway import limit_headers
from relay.gateway.services import Services
from relay.identity.token_cache import NO_RATES, Caller
from relay.limits.shared import Slot
from relay.limits.window import REQUESTS, TOKENS, TOO_MANY, Limit, Refused
from relay.pricing.errors import Unpriced
from relay.pricing.tariff import Admission

# How a request says how long its answer may be.
OUTPUT_FIELDS = {
    "openai": "max_tokens",
    "openai-responses": "max_output_tokens",
    "anthropic": "max_tokens",
    "gemini": "generationConfig.maxOutputTokens",
}


async def identify(services: Services, scope: Scope, permission: str) -> Caller:
    """Whose key this is, for a request that needs ``permission``; raises ApiError 401, 403 and 503."""
    address = client_address(scope, services.settings.trusted_networks)
    return await services.tokens.authenticate(api_key(scope), address, permission)


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


async def acquire(
    services: Services,
    caller: Caller,
    format: Format,
    request: Request,
    request_id: UUID,
    *,
    free: bool = False,
) -> Slot:
    """A place within the limits of key, account and model, to be left at the call's end. ``free``: a call in
    which no model generates anything. Raises ApiError 400 and 429 in words of ``format``.
    """
    limits = _limits(caller, request.model)
    counts_tokens = not free and any(limit.tpm is not None for limit in limits)
    most = most_of(services, request) if counts_tokens else Most(0, 0)
    slot = await services.limits.acquire(limits, most.prompt + most.answer, request_id)
    if isinstance(slot, Refused):
        error = _refusal(caller, slot, most, output_field(format, request))
        error.headers |= limit_headers.of(format, slot.standing)
        raise error
    return slot


def _limits(caller: Caller, model: str) -> list[Limit]:
    key, account = f"token:{caller.token_id}", f"account:{caller.account_id}"
    limits = [Limit(key, *caller.token_limits), Limit(account, *caller.account_limits)]
    for subject, models in ((key, caller.token_models), (account, caller.account_models)):
        if model in models:
            limits.append(Limit(f"{subject}:{model}", *models[model]))
    return limits


class Most(NamedTuple):
    """The tokens that a call reserves: its prompt as it is counted here, and the most of its answer."""

    prompt: int
    answer: int


def most_of(services: Services, request: Request) -> Most:
    """What a call reserves."""
    usage = request.max_usage()
    counted = request.counted_prompt(services.settings.image_hold_tokens)
    return Most(min(counted, usage.input_units), usage.max_output)


def output_field(format: Format, request: Request) -> str:
    """Which field of the request makes its answer shorter; empty where none does."""
    return OUTPUT_FIELDS[format.NAME] if request.OUTPUT_FIELD is None else request.OUTPUT_FIELD


def _refusal(caller: Caller, refused: Refused, most: Most, lowers: str) -> errors.ApiError:
    limit, needed = refused.limit, most.prompt + most.answer
    kind, _, rest = limit.subject.partition(":")
    whose, of = "account" if kind == "account" else "API key", rest.partition(":")[2]
    only = f" for the model '{of}'" if of else ""
    if kind == "account" and _is_the_plans(caller, refused, of):
        only += f" by its plan '{caller.plan}'"
    if refused.reason == TOO_MANY:
        return above_limit(f"the {whose}'s limit of {limit.tpm} tokens a minute{only}", most, lowers)
    reached = f"{limit.concurrency} calls at a time{only}"
    if refused.reason == REQUESTS:
        reached = f"{limit.rpm} requests a minute{only}"
    elif refused.reason == TOKENS:
        reached = f"{limit.tpm} tokens a minute{only}, of which this call needs up to {needed},"
    message = f"The {whose}'s limit of {reached} is reached: try again later."
    return errors.rate_limited(message, refused.retry_after, refused.reason)


def _is_the_plans(caller: Caller, refused: Refused, model: str) -> bool:
    """Whether the limit that is reached is one of the account's plan."""
    plan = caller.plan_models.get(model, NO_RATES) if model else caller.plan_limits
    at = {REQUESTS: 0, TOKENS: 1, TOO_MANY: 1}.get(refused.reason, 2)
    limit = refused.limit
    return plan[at] is not None and plan[at] == (limit.rpm, limit.tpm, limit.concurrency)[at]


def above_limit(limit: str, most: Most, lowers: str) -> errors.ApiError:
    """400: no waiting helps, the request must become smaller. ``limit``: whose, and how much; ``lowers``: see
    output_field()."""
    field = (lowers or None) if most.answer else None
    remedy = f"lower {field}, or shorten the prompt" if field else "send less at a time"
    parts = f"{most.prompt} of its prompt, {most.answer} of its answer"
    message = f"This call can use {most.prompt + most.answer} tokens ({parts}), above {limit}: {remedy}."
    return errors.bad_request(field, message, TOO_MANY)
