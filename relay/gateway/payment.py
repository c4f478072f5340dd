"""The money of a call: the hold before the provider, then the capture before the last byte, or the release.

The abort rule, written on each record that it priced: what was delivered is billed. With the provider's usage
by that, as far as the call can have used so much; without it (the customer left, the provider broke off or
told none) by a counted estimate of the prompt and of what was delivered. A call of which nothing was
delivered is not charged, nor one for which nothing was generated and no usage told.
"""

from __future__ import annotations

import asyncio
import logging
import time
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
    SpendBreakerOpen,
    StatementRefused,
    UnknownHold,
)
from relay.ledger.orders import CallFacts, CaptureOrder, Hold, HoldOrder
from relay.pricing.errors import Unpriced
from relay.pricing.meter_names import TOKEN_METERS
from relay.pricing.plausibility import BilledUsage, billed_usage
from relay.routing.channels import Channel

BILL_DELIVERED = "bill what was delivered"
RELEASE_WAIT_SECONDS = 2.0

log = logging.getLogger(__name__)


async def hold(call: Call) -> Hold:
    """Reserve the most that the call can cost; raises ApiError 402, 403, 404, 429 and 503."""
    try:
        wait = call.services.settings.hold_wait_seconds
        return await call.services.ledger.hold(_hold_order(call), deadline_seconds=wait)
    except Unpriced as error:
        raise errors.unknown_model(
            call.request.model, f"cannot be used: {error.meter} has no price"
        ) from None
    except InsufficientCredit as error:
        topup_url = call.services.settings.topup_url
        raise errors.insufficient_credit(error.missing_nanodollars, topup_url) from None
    except BudgetExceeded as error:
        raise errors.budget_exceeded(error.scope, error.missing_nanodollars) from None
    except SpendBreakerOpen as error:
        raise errors.hourly_spend_exceeded(error.spent, error.maximum, error.until) from None
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


async def settle(call: Call, hold: Hold) -> None:
    """Capture or release, as the abort rule says; durable when it returns.

    Raises ApiError 503 when the database is away for too long, and StatementRefused.
    """
    answer, channel, exchange = call.answer, call.channel, call.exchange
    undelivered = call.outcome != "ok" and call.first_byte is None
    if answer is None or channel is None or exchange is None or undelivered:
        await release(call, f"nothing was delivered: {call.outcome}")
        return
    billed = billed_usage(
        call.admission,
        hold.order.bound,
        hold.allotted,
        exchange.usage_format,
        answer.usage,
        call.count_prompt,
        answer.counted,
    )
    call.slot.used = sum([billed.meters.get(meter, 0) for meter in TOKEN_METERS])
    if not billed.meters:
        await release(call, "nothing was generated, and no usage was told")
        return
    await _capture(call, channel, hold, billed)


async def _capture(call: Call, channel: Channel, hold: Hold, billed: BilledUsage) -> None:
    if billed.doubt is not None:
        log.warning("a provider's usage is doubted: %s", billed.doubt, extra=call.log_fields())
    abort_rule = BILL_DELIVERED if billed.counted or call.outcome != "ok" else None
    order = CaptureOrder(
        hold=hold,
        meters=billed.meters,
        raw_usage=billed.recorded,
        facts=_facts(call, abort_rule),
        cost=call.admission.cost(channel.provider, billed.meters, channel.name),
        usage_format=billed.usage_format,
        doubt=billed.doubt,
    )
    charged = 0
    try:
        charged = await call.services.ledger.capture(order)
    except UnknownHold:
        # The sweeper was first: its rule has decided this call.
        log.error("a call was settled by the sweeper before its capture", extra=call.log_fields())
    except StatementRefused:
        raise  # no other try will do: the caller gives the hold back
    except LedgerUnavailable as error:
        call.outcome = "ledger_unavailable"
        message = "The answer could not be charged, so its end is withheld: try again later."
        raise errors.unavailable(message, "ledger_unavailable") from error
    call_metrics.count_money(call, order, charged, billed.counted)


async def release(call: Call, reason: str) -> None:
    """Give the hold back. While the database is away the ledger goes on with it, at last the sweeper."""
    try:
        async with asyncio.timeout(RELEASE_WAIT_SECONDS):
            await call.services.ledger.release(call.request_id, reason, _facts(call, None))
    except (LedgerUnavailable, TimeoutError) as error:
        why = str(error) or f"the database did not answer within {RELEASE_WAIT_SECONDS:g} s"
        log.warning("a hold is given back late: %s", why, extra=call.log_fields())


def _facts(call: Call, abort_rule: str | None) -> CallFacts:
    first_byte, channel = call.first_byte, call.channel
    return CallFacts(
        outcome=call.outcome,
        channel_id=channel.id if channel else None,
        stream=call.request.stream,
        abort_rule=abort_rule,
        started_at=call.started_at,
        duration_ms=int((time.monotonic() - call.started) * 1000),
        first_byte_ms=None if first_byte is None else int((first_byte - call.started) * 1000),
        attempts=call.attempts,
        others=_others(call, channel) if channel else {},
    )


def _others(call: Call, channel: Channel) -> dict[str, Any]:
    """Whom the call was sent to, as it was then: a channel's settings may change later."""
    return {"provider": channel.provider, "provider_model": channel.provider_model(call.request.model)}
