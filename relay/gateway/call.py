"""One call as all steps of its life see it: who asks, for what, and how far it has come."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from relay.asgi import ClientGone, Headers, Send, within
from relay.errors import ApiError
from relay.formats.format import Format
from relay.formats.refusal import Said
from relay.formats.request import Request
from relay.gateway.answer_memory import Room
from relay.gateway.disconnect_watcher import DisconnectWatcher
from relay.gateway.pinger import Pinger
from relay.gateway.services import Services
from relay.identity.token_cache import Caller
from relay.limits.shared import Slot
from relay.pricing.tariff import Admission
from relay.providers.transport import Reply
from relay.routing.channels import ApiKey, Candidates, Channel
from relay.routing.order import Affinity

SSE_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
# Of an answer that is settled: a customer that takes nothing of it for so long gets no more.
STALLED_SECONDS = 10.0
# As much of a whole answer is handed on at a time: the rest is not copied before the customer takes it.
PIECE_BYTES = 64 << 10
# Characters of the header that lists what was left out.
MAX_LEFT_OUT = 1_000
# A customer names fields as it likes, a header's value is of visible ASCII.
_UNSENDABLE = re.compile(r"[^!-+\--~]")


async def in_time(sending: Awaitable[None]) -> None:
    """Wait for a part of what is settled to be sent; raises ClientGone after STALLED_SECONDS."""
    try:
        await within(STALLED_SECONDS, sending)
    except TimeoutError:
        raise ClientGone from None


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
    """One attempt at one channel: what of it is the format of the customer or of the provider.

    ``usage_format``, of ``normalise``: in which the provider tells usage.
    """

    @property
    def usage_format(self) -> str: ...

    def post(self) -> Awaitable[Reply]:
        """Send the request to the channel's provider; raises TransportError, and ApiError."""

    def said(self, body: bytes) -> Said:
        """What the provider says in an answer with an error status."""

    def answer(self) -> Answer:
        """What will read the provider's answer."""


class Asked(Protocol):
    """What a customer has asked, and how a channel of any format is asked it."""

    @property
    def format(self) -> Format:
        """The customer's."""

    @property
    def ping(self) -> bytes:
        """A sign of life in the customer's format."""

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        """An error inside a stream that has begun, in the customer's format."""

    def fits(self, channel: Channel) -> bool:
        """Whether the channel's provider can be asked it."""

    def exchange(self, call: Call, channel: Channel, key: ApiKey) -> Exchange:
        """For one attempt, by one of the channel's keys; only for channels that fit."""


@dataclass(slots=True)
class Call:
    """A call that was let in. Times but ``started_at`` are of the monotonic clock, in seconds.

    ``exchange``: of the current attempt. ``begun``: the head of a streamed answer is sent; ``first_byte``:
    when the first part of the answer itself was. ``room``: what the current attempt's answer holds of the
    memory for whole ones. ``channel_slot``: the current attempt's within its channel's
    limits. ``affinity``: see affinity_of(); ``candidates``: whom it may be sent to. ``ask_again_at``: the
    soonest moment at which a provider of this call wants to be asked again, ``retry_after`` in how many
    seconds the one of the current attempt does; None while none has said so.
    """

    services: Services
    caller: Caller
    request: Request
    admission: Admission
    request_id: UUID
    send: Send
    watcher: DisconnectWatcher
    started: float
    slot: Slot
    room: Room
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    attempts: list[Mapping[str, Any]] = field(default_factory=list)
    provider_started: float = 0.0
    provider_seconds: float = 0.0
    attempt_started: float = 0.0
    channel: Channel | None = None
    key: ApiKey | None = None
    exchange: Exchange | None = None
    left_out: tuple[str, ...] = ()
    status: int | None = None
    answer: Answer | None = None
    provider: str = "none"
    first_byte: float | None = None
    sending: bool = False
    begun: bool = False
    pinger: Pinger | None = None
    outcome: str = "ok"
    channel_slot: Slot | None = None
    affinity: Affinity | None = None
    candidates: Candidates | None = None
    ask_again_at: float | None = None
    retry_after: float | None = None

    @property
    def seconds_left(self) -> float:
        """Until this call, sending included, has lasted as long as a call may."""
        return self.started + self.services.settings.provider_timeout_seconds - time.monotonic()

    def begin_attempt(self, channel: Channel, key: ApiKey, exchange: Exchange) -> None:
        """From now on ``channel`` is asked by ``key``."""
        self.channel, self.provider, self.key, self.exchange = channel, channel.provider, key, exchange
        self.status, self.answer, self.retry_after = None, None, None
        self.room.release()
        self.attempt_started = time.monotonic()

    def end(self) -> None:
        """It is over. Who holds each other in a circle would stay, with all bodies, until Python's garbage
        collector finds them, which costs it much."""
        self.room.release()
        self.exchange = self.answer = self.pinger = None

    async def send_part(self, part: bytes, headers: Headers) -> None:
        """Send a part of a streamed answer, and before the first one its head with ``headers``."""
        if self.pinger is not None:
            await self.pinger.pause()
        if self.first_byte is None:
            self.first_byte = time.monotonic()
        await self._send(part, headers)

    async def send_ping(self, ping: bytes, headers: Headers) -> None:
        """The same for a sign of life, which delivers nothing."""
        await self._send(ping, headers)

    async def _send(self, part: bytes, headers: Headers) -> None:
        self.sending = True
        if not self.begun:
            self.begun = True
            start = {"type": "http.response.start", "status": 200, "headers": [*headers, *self.head()]}
            await self.send(start)
        await self.send({"type": "http.response.body", "body": part, "more_body": True})
        self.sending = False

    async def send_whole(self, body: bytes, headers: Headers) -> None:
        """Send an answer that is not streamed, as fast as the customer takes it; raises ClientGone when it
        takes nothing of it in time."""
        length = (b"content-length", str(len(body)).encode())
        await self.send(
            {"type": "http.response.start", "status": 200, "headers": [*headers, *self.head(), length]}
        )
        await self.send_last(body)

    async def send_last(self, body: bytes) -> None:
        """Send the rest of an answer; raises as send_whole()."""
        for begin in range(0, max(1, len(body)), PIECE_BYTES):
            end = begin + PIECE_BYTES
            piece = {"type": "http.response.body", "body": body[begin:end], "more_body": end < len(body)}
            await in_time(self.send(piece))

    def head(self) -> Headers:
        """Headers of the answer that are the call's own: its name, and what the provider was not told."""
        named = (b"x-request-id", str(self.request_id).encode())
        if not self.left_out:
            return [named]
        names = ", ".join(_UNSENDABLE.sub("?", name) for name in self.left_out)
        return [named, (b"x-relay-left-out", names[:MAX_LEFT_OUT].encode())]

    def count_prompt(self) -> int:
        """Counted tokens of the prompt, for when the provider tells none."""
        return self.request.counted_prompt(self.services.settings.image_hold_tokens)

    def log_fields(self) -> dict[str, Any]:
        """What every log line about this call says."""
        return {
            "request_id": str(self.request_id),
            "account_id": self.caller.account_id,
            "token_id": self.caller.token_id,
            "model": self.request.model,
            "stream": self.request.stream,
        }
