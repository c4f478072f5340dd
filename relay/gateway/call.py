"""One call as all steps of its life see it: who asks, for what, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from relay.gateway.departure import Departure
from relay.gateway.http import Send
from relay.gateway.request import Request
from relay.gateway.services import Services
from relay.identity.directory import Caller
from relay.money.admission import Admission
from relay.money.orders import Hold
from relay.routing.channels import Channel


@dataclass(slots=True)
class Call:
    """A call that was let in. Times but ``started_at`` are of the monotonic clock, in seconds.

    ``usage_format``, of ``normalise``: in which the vendor tells usage. ``count_prompt`` gives counted tokens
    of the prompt, for when the vendor tells none.
    """

    services: Services
    caller: Caller
    request: Request
    admission: Admission
    request_id: UUID
    send: Send
    departure: Departure
    started: float
    usage_format: str
    count_prompt: Callable[[], int]
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    hold: Hold | None = None
    attempts: list[Mapping[str, Any]] = field(default_factory=list)
    vendor_started: float = 0.0
    vendor_seconds: float = 0.0
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
