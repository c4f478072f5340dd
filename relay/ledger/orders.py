"""What a caller hands to the ledger, and what it gets back.

The life of a call::

    admission = book.admit(model, group=account.group, at=now)     # raises Unpriced
    bound = admission.bound(MaxUsage(input_units=900, max_output=4096))
    hold = await ledger.hold(HoldOrder(request_id, account_id, token_id, admission, bound, expires_at))
    ...                                                             # call the provider
    charged = await ledger.capture(CaptureOrder(hold, meters, raw_usage, facts, cost))  # before the last byte

or, when nothing was delivered::

    await ledger.release(request_id, "provider answered 503", facts)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Any
from uuid import UUID

from relay.pricing.bound import Bound
from relay.pricing.tariff import Admission, Cost


@dataclass(frozen=True, slots=True)
class HoldOrder:
    """Reserve the most that a call can cost.

    Held are ``bound.covered_amount`` n$ when the account's typed quotas cover ``bound.quotas`` in full, else
    ``bound.amount``.
    ``expires_at``: after it the sweeper ends the hold; give the longest call plus a minute.
    """

    request_id: UUID
    account_id: int
    token_id: int | None
    admission: Admission
    bound: Bound
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Hold:
    """A durable hold.

    ``allotted``: typed units that it reserved; ``overage``: the multiplier of what no plan period pays.
    """

    order: HoldOrder
    allotted: Mapping[str, int]
    overage: Fraction


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What the record of the call says besides money.

    ``outcome``: "ok", or what went wrong ("client_gone", "provider_error", "truncated", ...);
    ``abort_rule``: the rule that priced a stream that was cut short, else None;
    ``attempts``: a mapping for each attempt at a provider (channel_id, outcome, status, cost, ms), of what
    JSON can hold;
    ``others``: what else was known of the call, by name.
    """

    outcome: str = "ok"
    channel_id: int | None = None
    stream: bool = False
    abort_rule: str | None = None
    started_at: datetime | None = None
    duration_ms: int | None = None
    first_byte_ms: int | None = None
    attempts: Sequence[Mapping[str, Any]] = ()
    others: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CaptureOrder:
    """Charge a held call for what was delivered.

    ``meters``: disjoint; ``raw_usage``: what they were derived from, by ``normalise(usage_format,
    raw_usage)``, so that an audit can derive them again; ``cost``: what the provider takes for them, None if
    unknown; ``doubt``: why the provider's figures were not taken as they came (see ``billed_usage``).
    """

    hold: Hold
    meters: Mapping[str, int]
    raw_usage: Mapping[str, Any] | None
    facts: CallFacts = CallFacts()
    cost: Cost | None = None
    usage_format: str | None = None
    doubt: str | None = None
