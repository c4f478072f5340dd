"""Orders as the columns that the ledger's statements take."""

import json
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from relay.ledger.orders import CallFacts, CaptureOrder, HoldOrder
from relay.pricing.settlement import settle, with_overage
from relay.store.ledger import hold_statement, literal, settle_statement

MAX_NESTING = 100
MAX_INTEGER = 10**1000  # a numeric of PostgreSQL holds 10**131072


class HoldItem(NamedTuple):
    """A hold order and the number that tells its own retries from somebody else's request id."""

    order: HoldOrder
    attempt: int


class SettleItem(NamedTuple):
    """One capture or release as the database takes it. JSON columns are text."""

    request_id: UUID
    release: bool
    reason: str
    facts: CallFacts
    charge: int = 0
    overage_charge: int = 0
    numerator: int = 0
    denominator: int = 1
    quantum: int = 1
    minimum: int = 0
    quotas_used: Mapping[str, int] | None = None
    cost: int | None = None
    meters: str = "{}"
    raw_usage: str | None = None
    sell: str | None = None
    cost_side: str | None = None
    unpriced: Mapping[str, int] | None = None


def capture_item(order: CaptureOrder) -> SettleItem:
    """A capture with its charge and everything that it was computed from."""
    hold = order.hold
    admission = hold.order.admission
    tariff = admission.tariff
    settlement = settle(tariff, order.meters, hold.allotted, admission.service_tier)
    charge = settlement.list_charge
    over = charge.amount
    if hold.overage != 1:
        over = with_overage(charge.exact, 0, hold.overage, tariff.terms)
    return SettleItem(
        request_id=hold.order.request_id,
        release=False,
        reason=order.facts.outcome,
        facts=order.facts,
        charge=charge.amount,
        overage_charge=over,
        numerator=charge.numerator,
        denominator=charge.denominator,
        quantum=tariff.terms.quantum,
        minimum=tariff.terms.minimum if charge.numerator else 0,
        quotas_used=settlement.quotas_used,
        cost=order.cost.amount if order.cost else None,
        meters=json_text(dict(settlement.meters)),
        raw_usage=json_text(order.raw_usage) if order.raw_usage is not None else None,
        sell=_evidence(tariff.evidence(settlement.meters, admission.service_tier), order.usage_format),
        cost_side=order.cost.evidence if order.cost else None,
        unpriced=charge.unpriced or None,
    )


def _evidence(document: str, usage_format: str | None) -> str:
    return f'{{"usage_format":"{usage_format}",{document[1:]}' if usage_format else document


def release_item(request_id: UUID, reason: str, facts: CallFacts) -> SettleItem:
    """A release: nothing is charged, the call is recorded."""
    return SettleItem(request_id, True, reason or "released", facts)


class _HoldMember(NamedTuple):
    """A hold in its batch."""

    item: HoldItem
    quotas: str | None


class _SettleMember(NamedTuple):
    """A capture or release in its batch. ``sell``, ``cost_side``: places of its documents in p_documents."""

    item: SettleItem
    quotas_used: str | None
    sell: int | None
    cost_side: int | None
    unpriced: str | None
    attempts: str | None
    others: str | None


# Parameters of the database functions: name -> (element type, attribute of a member). No other list exists.
Columns = Mapping[str, tuple[str, str]]

HOLD: Columns = {
    "p_request": ("uuid", "item.order.request_id"),
    "p_attempt": ("bigint", "item.attempt"),
    "p_account": ("bigint", "item.order.account_id"),
    "p_token": ("bigint", "item.order.token_id"),
    "p_amount": ("bigint", "item.order.bound.amount"),
    "p_covered": ("bigint", "item.order.bound.covered_amount"),
    "p_model": ("text", "item.order.admission.model"),
    "p_group": ("text", "item.order.admission.customer_group"),
    "p_expires": ("timestamptz", "item.order.expires_at"),
    "p_quotas": ("text", "quotas"),
}
SETTLE: Columns = {
    "p_request": ("uuid", "item.request_id"),
    "p_release": ("boolean", "item.release"),
    "p_list": ("bigint", "item.charge"),
    "p_over": ("bigint", "item.overage_charge"),
    "p_numerator": ("numeric", "item.numerator"),
    "p_denominator": ("numeric", "item.denominator"),
    "p_quantum": ("bigint", "item.quantum"),
    "p_minimum": ("bigint", "item.minimum"),
    "p_reason": ("text", "item.reason"),
    "p_quotas": ("text", "quotas_used"),
    "p_channel": ("bigint", "item.facts.channel_id"),
    "p_outcome": ("text", "item.facts.outcome"),
    "p_abort": ("text", "item.facts.abort_rule"),
    "p_stream": ("boolean", "item.facts.stream"),
    "p_started": ("timestamptz", "item.facts.started_at"),
    "p_duration": ("bigint", "item.facts.duration_ms"),
    "p_first_byte": ("bigint", "item.facts.first_byte_ms"),
    "p_cost": ("bigint", "item.cost"),
    "p_meters": ("text", "item.meters"),
    "p_raw": ("text", "item.raw_usage"),
    "p_sell": ("integer", "sell"),
    "p_cost_side": ("integer", "cost_side"),
    "p_unpriced": ("text", "unpriced"),
    "p_attempts": ("text", "attempts"),
    "p_facts": ("text", "others"),
}
DOCUMENTS = {"p_documents": "text"}  # evidence that members share: not one a member, but one a document


def _types(columns: Columns) -> dict[str, str]:
    return {name: kind for name, (kind, _) in columns.items()}


HOLD_STATEMENT = hold_statement(_types(HOLD))
SETTLE_STATEMENT = settle_statement({**_types(SETTLE), **DOCUMENTS})


def _literals_of(columns: Columns) -> Callable[[Sequence[Any]], list[str | None]]:
    """What makes the parameters of a batch of members."""
    kinds = list(_types(columns).values())
    values = attrgetter(*(attribute for _, attribute in columns.values()))
    return lambda members: list(map(literal, kinds, zip(*map(values, members), strict=True)))


_hold_literals, _settle_literals = _literals_of(HOLD), _literals_of(SETTLE)


def of_holds(items: Sequence[HoldItem]) -> list[str | None]:
    """Parameters of HOLD_STATEMENT; at least one item."""
    return _hold_literals([_HoldMember(item, _json_or_null(item.order.bound.quotas)) for item in items])


def of_settles(items: Sequence[SettleItem]) -> list[str | None]:
    """Parameters of SETTLE_STATEMENT; at least one item."""
    evidence = (document for item in items for document in (item.sell, item.cost_side))
    documents = list(dict.fromkeys(document for document in evidence if document is not None))
    places = {document: place for place, document in enumerate(documents, 1)}
    members = [_settle_member(item, places) for item in items]
    return [*_settle_literals(members), literal("text", documents)]


def _settle_member(item: SettleItem, places: Mapping[str, int]) -> _SettleMember:
    return _SettleMember(
        item,
        quotas_used=_json_or_null(item.quotas_used),
        sell=places.get(item.sell or ""),
        cost_side=places.get(item.cost_side or ""),
        unpriced=_json_or_null(item.unpriced),
        attempts=_json_or_null(item.facts.attempts),
        others=_json_or_null(item.facts.others),
    )


def _json_or_null(value: Any) -> str | None:
    """JSON; null for what is empty."""
    return json_text(value) if value else None


def json_text(value: Any) -> str:
    """JSON that jsonb takes, whatever a provider sent; what jsonb cannot hold is replaced by its like."""
    try:
        text = orjson.dumps(value).decode()
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(_plain(value, MAX_NESTING))
    return text.replace("\\u0000", "\\ufffd")


def _plain(value: Any, depth: int) -> Any:
    """Integers of any usual size, no lone surrogates, no endless nesting."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= MAX_INTEGER else f"an integer of {value.bit_length()} bits"
    if isinstance(value, Mapping) and depth:
        return {_text(key): _plain(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple) and depth:
        return [_plain(inner, depth - 1) for inner in value]
    if isinstance(value, float) and isfinite(value):
        return value
    return _text(value)


def _text(value: Any) -> str:
    shown = "nested too deep" if isinstance(value, Mapping | list | tuple) else str(value)
    return shown.encode(errors="replace").decode()
