"""One call as all steps of its life see it: who asks, for what, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from relay.asgi import Headers, Send
from relay.errors import ApiError
from relay.formats.request import Request
from relay.gateway.disconnect_watcher import DisconnectWatcher
from relay.gateway.services import Services
from relay.identity.token_cache import Caller
from relay.pricing.tariff import Admission
from relay.providers.transport import Reply
from relay.routing.channels import Channel


class Answer(Protocol):
    """A provider's answer on its way to the customer: read along, then, once it is settled, finished."""

    @property
    def usage(self) -> Any:
        """The provider's usage of everything that it generated, as it came; None when it told none."""

    def counted(self) -> int:
        """Counted tokens of what was delivered."""

    async def read(self, reply: Reply) -> None:
        """Read to the end and send on what may be sent before the call is settled.

        Raises BadAnswer, ErrorAnswer and TransportError.
        """

    async def finish(self, error: ApiError | None) -> None:
        """Send the last bytes, or ``error`` where the answer is not whole; raises it while nothing was
        sent.
        """


class Exchange(Protocol):
    """What of a call's life is its format."""

    def post(self, channel: Channel) -> Awaitable[Reply]:
        """Send the request to a channel's provider; raises TransportError."""

    def answer(self, channel: Channel) -> Answer:
        """What will read the answer of that provider."""


@dataclass(slots=True)
class Call:
    """A call that was let in. Times but ``started_at`` are of the monotonic clock, in seconds.

    ``usage_format``, of ``normalise``: in which the provider tells usage. ``count_prompt`` gives counted
    tokens of the prompt, for when the provider tells none. ``ask_again_at``: the soonest moment at which a
    provider of this call wants to be asked again; None while none has said so.
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
    attempts: list[Mapping[str, Any]] = field(default_factory=list)
    provider_started: float = 0.0
    provider_seconds: float = 0.0
    attempt_started: float = 0.0
    channel: Channel | None = None
    status: int | None = None
    answer: Answer | None = None
    provider: str = "none"
    first_byte: float | None = None
    sending: bool = False
    outcome: str = "ok"
    ask_again_at: float | None = None

    @property
    def seconds_left(self) -> float:
        """Until this call, sending included, has lasted as long as a call may."""
        return self.started + self.services.settings.provider_timeout_seconds - time.monotonic()

    def begin_attempt(self, channel: Channel) -> None:
        """From now on ``channel`` is asked."""
        self.channel, self.provider = channel, channel.provider
        self.status, self.answer = None, None
        self.attempt_started = time.monotonic()

    async def send_part(self, part: bytes, headers: Headers) -> None:
        """Send a part of a streamed answer, and before the first one its head with ``headers``."""
        self.sending = True
        if self.first_byte is None:
            self.first_byte = time.monotonic()
            start = {"type": "http.response.start", "status": 200, "headers": [*headers, self.id_header()]}
            await self.send(start)
        await self.send({"type": "http.response.body", "body": part, "more_body": True})
        self.sending = False

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
