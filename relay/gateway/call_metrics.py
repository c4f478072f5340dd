"""What metrics learn of a call: refused, paid for, over."""

from __future__ import annotations

import time

from relay.errors import NANODOLLARS
from relay.gateway.call import Call
from relay.gateway.services import Services
from relay.ledger.orders import CaptureOrder
from relay.telemetry.metrics import OTHER


def count_refusal(services: Services, model: str | None, reason: str) -> None:
    """A call that was not let in; ``model`` None when the request could not be read."""
    label = model if model is not None and services.channels.knows(model) else OTHER
    services.metrics.of("requests", label, "none", reason, "false").inc()


def count_money(call: Call, order: CaptureOrder, charged: int, counted: bool) -> None:
    """A captured call: ``charged`` n$ by usage that was ``counted`` here or told by the provider."""
    metrics, model, provider = call.services.metrics, call.request.model, call.provider
    for meter, quantity in order.meters.items():
        metrics.of("tokens", model, meter).inc(quantity)
    metrics.of("revenue", model, provider).inc(charged / NANODOLLARS)
    if order.cost is not None:
        metrics.of("cost", model, provider).inc(order.cost.amount / NANODOLLARS)
    if counted:
        metrics.of("estimated", model, provider).inc()
    output = order.meters.get("out_text", 0)
    if call.first_byte is not None and output:
        metrics.of("per_token", model).observe((time.monotonic() - call.first_byte) / output)


def report(call: Call) -> None:
    """A call that is over: how it ended and what it took."""
    metrics, model = call.services.metrics, call.request.model
    took = time.monotonic() - call.started
    stream = "true" if call.request.stream else "false"
    metrics.of("requests", model, call.provider, call.outcome, stream).inc()
    metrics.of("duration", model, stream).observe(took)
    if call.first_byte is not None:
        metrics.of("first_token", model).observe(call.first_byte - call.started)
    if call.outcome == "ok":
        metrics.overhead.observe(max(0.0, took - call.provider_seconds))
