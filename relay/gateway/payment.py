"""The money of a call: the hold before the provider, then the capture before the last byte, or the release.

The abort rule, written on each record that it priced: what was delivered is billed. With the provider's usage
by that; without it (the customer left, the provider broke off or told none) by a counted estimate of the
prompt and of what was delivered. A call of which nothing was delivered is not charged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from relay import errors
from relay.gateway import call_metrics
from relay.gateway.call import Call
from relay.ledger.errors import (
    AccountSuspended,
    BudgetExceeded,
    InsufficientCredit,
    LedgerUnavailable,
    UnknownHold,
)
from relay.ledger.orders import CallFacts, CaptureOrder, Hold, HoldOrder
from relay.pricing.errors import FieldError, Unpriced
from relay.pricing.usage import normalise

BILL_DELIVERED = "bill what was delivered"
# What is counted here is recorded as OpenAI's usage, whatever the provider's format.
ESTIMATE_FORMAT = "openai"
RELEASE_WAIT_SECONDS = 2.0
Usage = Mapping[str, Any]

log = logging.getLogger(__name__)


async def hold(call: Call) -> Hold:
    """Reserve the most that the call can cost; raises ApiError 402, 403, 404 and 503."""
    try:
        return await call.services.ledger.hold(_hold_order(call))
    except Unpriced as error:
        raise errors.unknown_model(
            call.request.model, f"cannot be used: {error.meter} has no price"
        ) from None
    except InsufficientCredit as error:
        topup_url = call.services.settings.topup_url
        raise errors.insufficient_credit(error.missing_nanodollars, topup_url) from None
    except BudgetExceeded as error:
        raise errors.budget_exceeded(error.scope, error.missing_nanodollars) from None
    except AccountSuspended:
        raise errors.forbidden("The account is not active: ask support.", "account_not_active") from None
    except LedgerUnavailable as error:
        message = "The service cannot reserve credit right now. Nothing was charged."
        raise errors.unavailable(message, "ledger_unavailable") from error


def _hold_order(call: Call) -> HoldOrder:
    request, caller = call.request, call.caller
    bound = request.bound(call.admission)
    expires = call.started_at + timedelta(seconds=call.services.settings.hold_seconds)
    return HoldOrder(call.request_id, caller.account_id, caller.token_id, call.admission, bound, expires)


async def settle(call: Call, usage: Usage | None, counted_output: int) -> None:
    """Capture or release, as the abort rule says; raises ApiError 503, see ``capture``."""
    nothing = call.first_byte is None or (usage is None and counted_output == 0)
    if call.outcome != "ok" and nothing:
        await release(call, f"nothing was delivered: {call.outcome}")
    else:
        await capture(call, usage, lambda: counted_output)


async def capture(call: Call, usage: Usage | None, count_output: Callable[[], int]) -> None:
    """Charge by ``usage``, or by the count where the provider told none or nonsense; raises ApiError 503."""
    recorded, meters, counted = _metered(call, usage, count_output)
    order = _capture_order(call, recorded, meters, counted)
    charged = 0
    try:
        charged = await call.services.ledger.capture(order)
    except UnknownHold:
        # The sweeper was first: its rule has decided this call.
        log.error("a call was settled by the sweeper before its capture", extra=call.log_fields())
    except LedgerUnavailable as error:
        call.outcome = "ledger_unavailable"
        message = "The answer could not be charged, so its end is withheld: try again later."
        raise errors.unavailable(message, "ledger_unavailable") from error
    call_metrics.count_money(call, order, charged, counted)


def _metered(
    call: Call, usage: Usage | None, count_output: Callable[[], int]
) -> tuple[Usage, dict[str, int], bool]:
    """(usage as recorded, its meters, whether it was counted here)."""
    if usage is not None:
        try:
            return usage, normalise(call.usage_format, usage), False
        except FieldError as error:
            log.error("a provider's usage is malformed: %s", error, extra=call.log_fields())
    estimate = {"prompt_tokens": call.count_prompt(), "completion_tokens": count_output()}
    recorded = {**estimate, "estimated": True, "provider": usage}
    return recorded, normalise(ESTIMATE_FORMAT, estimate), True


def _capture_order(call: Call, recorded: Usage, meters: dict[str, int], counted: bool) -> CaptureOrder:
    if call.hold is None or call.channel is None:
        raise RuntimeError("a call is captured only after its hold and its provider")
    return CaptureOrder(
        hold=call.hold,
        meters=meters,
        raw_usage=recorded,
        facts=_facts(call, BILL_DELIVERED if counted or call.outcome != "ok" else None),
        cost=call.admission.cost(call.provider, meters, call.channel.name),
        usage_format=ESTIMATE_FORMAT if counted else call.usage_format,
    )


async def release(call: Call, reason: str) -> None:
    """Give the hold back. While the database is away the ledger goes on with it, at last the sweeper."""
    try:
        async with asyncio.timeout(RELEASE_WAIT_SECONDS):
            await call.services.ledger.release(call.request_id, reason, _facts(call, None))
    except (LedgerUnavailable, TimeoutError):
        log.warning("a hold is given back late", extra=call.log_fields())


def _facts(call: Call, abort_rule: str | None) -> CallFacts:
    first_byte = call.first_byte
    return CallFacts(
        outcome=call.outcome,
        channel_id=call.channel.id if call.channel else None,
        stream=call.request.stream,
        abort_rule=abort_rule,
        started_at=call.started_at,
        duration_ms=int((time.monotonic() - call.started) * 1000),
        first_byte_ms=None if first_byte is None else int((first_byte - call.started) * 1000),
        attempts=call.attempts,
    )
