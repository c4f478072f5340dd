"""Orders as the columns that the ledger's statements take."""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from relay.ledger.orders import CallFacts, CaptureOrder, HoldOrder
from relay.pricing.settlement import settle, with_overage
from relay.store.ledger import booleans, numbers, texts, times, uuids

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


def of_holds(items: Sequence[HoldItem]) -> list[str | None]:
    """Parameters of relay.store.ledger.HOLD."""
    orders = [item.order for item in items]
    return [
        uuids(order.request_id for order in orders),
        numbers(item.attempt for item in items),
        numbers(order.account_id for order in orders),
        numbers(order.token_id for order in orders),
        numbers(order.bound.amount for order in orders),
        numbers(order.bound.covered_amount for order in orders),
        texts(order.admission.model for order in orders),
        texts(order.admission.customer_group for order in orders),
        times(order.expires_at for order in orders),
        _quotas(order.bound.quotas for order in orders),
    ]


def of_settles(items: Sequence[SettleItem]) -> list[str | None]:
    """Parameters of relay.store.ledger.SETTLE."""
    facts = [item.facts for item in items]
    documents = {item.sell: 0 for item in items} | {item.cost_side: 0 for item in items}
    documents.pop(None, None)
    places: dict[str | None, int] = {document: n for n, document in enumerate(documents, 1)}
    return [
        uuids(item.request_id for item in items),
        booleans(item.release for item in items),
        numbers(item.charge for item in items),
        numbers(item.overage_charge for item in items),
        numbers(item.numerator for item in items),
        numbers(item.denominator for item in items),
        numbers(item.quantum for item in items),
        numbers(item.minimum for item in items),
        texts(item.reason for item in items),
        texts(json_text(dict(item.quotas_used)) if item.quotas_used else None for item in items),
        numbers(fact.channel_id for fact in facts),
        texts(fact.outcome for fact in facts),
        texts(fact.abort_rule for fact in facts),
        booleans(fact.stream for fact in facts),
        times(fact.started_at for fact in facts),
        numbers(fact.duration_ms for fact in facts),
        numbers(fact.first_byte_ms for fact in facts),
        numbers(item.cost for item in items),
        texts(item.meters for item in items),
        texts(item.raw_usage for item in items),
        texts(documents),
        numbers(places.get(item.sell) for item in items),
        numbers(places.get(item.cost_side) for item in items),
        texts(json_text(dict(item.unpriced)) if item.unpriced else None for item in items),
        texts(json_text(list(fact.attempts)) if fact.attempts else None for fact in facts),
    ]


def _quotas(quotas: Iterable[Mapping[str, int]]) -> str | None:
    """The column of typed units as JSON; null as a whole where no member has any."""
    documents = [json_text(dict(units)) if units else None for units in quotas]
    return texts(documents) if any(documents) else None


def json_text(value: Any) -> str:
    """JSON that jsonb takes, whatever a provider sent; what jsonb cannot hold is replaced by its like."""
    try:
        text = orjson.dumps(value, default=str).decode()
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(_plain(value, MAX_NESTING), ensure_ascii=False)
    return text.replace("\\u0000", "\\ufffd") if "\\u0000" in text else text


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
    return shown.encode("utf-8", "replace").decode()
