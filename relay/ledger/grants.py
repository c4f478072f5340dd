"""Granting credit and typed units: once for each source, drained in a stated order.

Order: plan periods first, then by priority (lower first), then by expiry (none last), then by id.
"""

from datetime import UTC, datetime
from typing import Any

from psycopg import AsyncConnection

from relay.pricing.errors import Conflict, FieldError
from relay.pricing.meter_names import QUOTA_METERS
from relay.pricing.units import MAX_NANODOLLARS
from relay.store import grants as store

PRIORITIES = {"plan_period": 0, "initial": 10, "bonus": 20, "purchase": 30, "manual": 40}
UNITS = ("credit", *QUOTA_METERS)


def check_unit(unit: str, field: str) -> str:
    """A unit that can be granted. Raises FieldError."""
    if unit not in UNITS:
        raise FieldError(field, f"{unit!r} is not a unit", f"use one of {', '.join(UNITS)}")
    return unit


async def grant_credit(
    connection: AsyncConnection[Any],
    *,
    account_id: int,
    amount: int,
    source: str,
    source_id: str,
    reason: str,
    unit: str = "credit",
    expires_at: datetime | None = None,
    priority: int | None = None,
    actor: str = "cli",
) -> dict[str, Any]:
    """Grant ``amount`` (n$ for credit) once by (source, source_id, unit); granting again changes nothing.

    Returns id and outcome ("made" or "known"). Raises FieldError; Conflict when the source id was used for
    another account or amount.
    """
    check_unit(unit, "unit")
    if source not in PRIORITIES:
        raise FieldError("source", f"{source!r} is not a source", f"use one of {', '.join(PRIORITIES)}")
    for name, text in (("source_id", source_id), ("reason", reason)):
        if not text or not text.strip() or len(text) > 200:
            raise FieldError(name, "it is missing or longer than 200 characters", "say where it comes from")
    if not 0 < amount <= MAX_NANODOLLARS:
        raise FieldError("amount", f"{amount} is not above zero", "to take credit back, reverse its entry")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise FieldError("expires_at", "it is in the past", "write a later time or leave it out")
    grant_id, outcome = await store.grant(
        connection,
        account_id=account_id,
        unit=unit,
        amount=amount,
        source=source,
        source_id=source_id,
        priority=PRIORITIES[source] if priority is None else priority,
        expires_at=expires_at,
        reason=reason,
        actor=actor,
    )
    if outcome == "no_account":
        raise FieldError("account", f"{account_id} does not exist", "`relay account list` shows them")
    if outcome == "conflict":
        raise Conflict("source_id", f"{source}:{source_id} granted something else", "use another source id")
    return {"id": grant_id, "outcome": outcome, "unit": unit, "amount": amount, "account_id": account_id}
