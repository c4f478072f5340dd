"""The life of a call that was let in: hold, attempts and reading along, settlement, last bytes.

This module alone decides how a call ended. The steps raise what went wrong; whatever it is, a fault of our
own included, the hold is settled or given back here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AbstractAsyncContextManager, nullcontext

from relay.asgi import ClientGone
from relay.errors import ApiError
from relay.gateway import call_metrics, failover, payment
from relay.gateway.call import SSE_HEADERS, Asked, Call, in_time
from relay.gateway.outcome import Outcome, outcome_of
from relay.gateway.pinger import Pinger
from relay.ledger.orders import Hold

log = logging.getLogger(__name__)


async def run(call: Call, asked: Asked) -> None:
    """From the hold to the last byte; raises ApiError while nothing was sent, and ClientGone."""
    try:
        await _live(call, asked)
    finally:
        call.end()


async def _live(call: Call, asked: Asked) -> None:
    try:
        hold = await payment.hold(call)
    except ApiError as refusal:
        call.outcome = refusal.reason
        call_metrics.report(call)
        raise
    async with _signs_of_life(call, asked):
        failure = await _answer(call, asked)
        outcome = outcome_of(call, failure)
        call.outcome = outcome.word
        failover.record(call, outcome)
        try:
            await _settle(call, hold)
        except ApiError as unsettled:
            failure, outcome = unsettled, outcome_of(call, unsettled)
        finally:
            call.services.limits.correct(call.slot)
            failover.count_tokens(call, outcome)
            call_metrics.report(call)
    await _finish(call, asked, outcome, failure)


def _signs_of_life(call: Call, asked: Asked) -> AbstractAsyncContextManager[None]:
    if not call.request.stream:
        return nullcontext()
    call.pinger = Pinger(
        call.services.settings.ping_seconds,
        lambda: call.sending or call.watcher.gone,
        lambda: call.send_ping(asked.ping, SSE_HEADERS),
    )
    return call.pinger


async def _answer(call: Call, asked: Asked) -> BaseException | None:
    """Have the call answered, within its time and while the customer is there; returns what cut it short."""
    call.provider_started = time.monotonic()
    try:
        async with asyncio.timeout(max(0.0, call.seconds_left)):
            with call.watcher:
                await failover.answer(call, asked)
    except BaseException as failure:  # settled first, then raised again by _finish
        return failure
    finally:
        call.provider_seconds = time.monotonic() - call.provider_started
    return ClientGone() if call.watcher.gone else None


async def _settle(call: Call, hold: Hold) -> None:
    """Charge or give back; a fault of our own in it gives back. Raises ApiError 503."""
    try:
        await payment.settle(call, hold)
    except ApiError:
        raise
    except Exception:
        log.exception("a call could not be settled, its hold is given back", extra=call.log_fields())
        call.services.metrics.ledger_alerts.labels("settlement_failed").inc()
        await payment.release(call, "it could not be settled")


async def _finish(call: Call, asked: Asked, outcome: Outcome, failure: BaseException | None) -> None:
    if outcome.word == "client_stalled":
        log.warning("a call was cut: %s", outcome.why, extra=call.log_fields() | {"outcome": outcome.word})
        raise ClientGone
    if failure is not None and outcome.error is None:
        raise failure
    if call.answer is None:
        if outcome.error is None:
            raise RuntimeError("a call without answer ended without error")
        if not call.begun:
            raise outcome.error
    if call.answer is not None:
        await call.answer.finish(outcome.error)
    elif outcome.error is not None:
        event = asked.error_event(outcome.error, str(call.request_id))
        await in_time(call.send({"type": "http.response.body", "body": event}))
