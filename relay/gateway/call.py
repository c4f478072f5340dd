"""One call as all steps of its life see it: who asks, for what, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from relay.asgi import Send
from relay.formats.request import Request
from relay.gateway.disconnect_watcher import DisconnectWatcher
from relay.gateway.services import Services
from relay.identity.token_cache import Caller
from relay.ledger.orders import Hold
from relay.pricing.tariff import Admission
from relay.routing.channels import Channel


@dataclass(slots=True)
class Call:
    """A call that was let in. Times but ``started_at`` are of the monotonic clock, in seconds.

    ``usage_format``, of ``normalise``: in which the provider tells usage. ``count_prompt`` gives counted
    tokens of the prompt, for when the provider tells none.
    """

    services: Services
    caller: Caller
    request: Request
    admission: Admission
    request_id: UUID
    send: Send
    watcher: DisconnectWatcher
    started: float
    usage_format: str
    count_prompt: Callable[[], int]
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    hold: Hold | None = None
    attempts: list[Mapping[str, Any]] = field(default_factory=list)
    provider_started: float = 0.0
    provider_seconds: float = 0.0
    channel: Channel | None = None
    provider: str = "none"
    first_byte: float | None = None
    outcome: str = "ok"

    def id_header(self) -> tuple[bytes, bytes]:
        """The header that names this call to its customer."""
        return b"x-request-id", str(self.request_id).encode()

    def log_fields(self) -> dict[str, Any]:
        """What every log line about this call says."""
        return {
            "request_id": str(self.request_id),
            "account_id": self.caller.account_id,
            "token_id": self.caller.token_id,
            "model": self.request.model,
            "stream": self.request.stream,
        }
