"""What ended a call early, as the word of records and metrics, and as the error that the customer gets."""

from __future__ import annotations

import asyncio

from relay import errors
from relay.asgi import ClientGone
from relay.errors import ApiError
from relay.providers.transport import TimedOut


def outcome_of(failure: BaseException) -> str:
    """The word."""
    if isinstance(failure, ClientGone):
        return "client_gone"
    if isinstance(failure, asyncio.CancelledError):
        return "shutdown"
    if isinstance(failure, ApiError):
        return failure.reason
    return "timeout" if isinstance(failure, TimedOut) else "truncated"


def error_of(failure: BaseException | None) -> ApiError:
    """The error, for what a provider did before anything was delivered."""
    return errors.gateway_timeout() if isinstance(failure, TimedOut) else errors.bad_gateway()
