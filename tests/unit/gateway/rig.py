"""A call's life in one process: scripted providers, a ledger and channels that remember."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, Self, cast
from uuid import uuid4

from relay.asgi import Message
from relay.errors import ApiError
from relay.formats import openai_chat, openai_chat_request
from relay.formats.openai_chat_request import ChatRequest
from relay.gateway import lifecycle
from relay.gateway.answer_memory import AnswerMemory
from relay.gateway.call import Call
from relay.gateway.disconnect_watcher import DisconnectWatcher
from relay.gateway.exchange import AskedRequest, Passed
from relay.gateway.services import Services
from relay.identity.token_cache import Caller
from relay.ledger.orders import CallFacts, CaptureOrder, Hold, HoldOrder
from relay.limits.shared import Limits, Slot
from relay.limits.window import Limit
from relay.pricing.charge import Row
from relay.pricing.tariff import Admission, CostBook, PriceVersion, Tariff
from relay.providers.transport import Came
from relay.routing.channels import ApiKey, Candidates, Channel
from relay.routing.order import Affinity
from relay.settings import Settings
from relay.telemetry.metrics import Metrics

IN, OUT = 2_500, 10_000
KEY = "the-channels-own-key"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
DONE = b"data: [DONE]\n\n"
Script = Callable[[], AsyncIterator[bytes]]


def event(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def content(text: str = "abcd") -> bytes:
    return event({"model": "theirs", "choices": [{"index": 0, "delta": {"content": text}}]})


FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
USAGE_CHUNK = event({"choices": [], "usage": USAGE})
STREAM = content("abcd") + content("efgh") + FINISH + USAGE_CHUNK + DONE
TPM, RESERVED = 1_000, 105
IMAGE_TOKENS = 2_000  # the setting's default
COUNTED = (4 + 1) * IN  # of the prompt: 4 a message and one for "Hi?"


@dataclass
class FakeReply:
    """A Reply whose blocks are given; an exception among them is raised, a number is a pause in seconds."""

    blocks_: tuple[Any, ...]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False

    async def read(self, limit: int, came: Came | None = None) -> bytes:
        whole = bytearray()
        async for block in self.blocks():
            whole += block
            if came is not None:
                await came(len(block))
        return bytes(whole[:limit])

    async def read_begin(self, limit: int) -> bytes:
        return await self.read(limit)

    async def blocks(self) -> AsyncIterator[bytes]:
        for block in self.blocks_:
            if isinstance(block, Exception):
                raise block
            if isinstance(block, float):
                await asyncio.sleep(block)
            else:
                yield block

    def close(self) -> None:
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def says(*blocks: Any, status: int = 200, **headers: str) -> FakeReply:
    return FakeReply(blocks, status, {name.replace("_", "-"): value for name, value in headers.items()})


def answers(body: Any, status: int = 200, **headers: str) -> FakeReply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return says(raw, status=status, **headers)


class FakeLedger:
    """Remembers what became of the hold. Fails of ``failure`` at the capture, of ``refusal`` at the hold, of
    ``late`` at the release; a number there is a pause in seconds. ``allotted``: typed units of the hold.
    """

    def __init__(
        self,
        failure: Exception | None = None,
        refusal: Exception | None = None,
        late: Exception | float | None = None,
        allotted: Mapping[str, int] | None = None,
    ) -> None:
        self.held: list[tuple[HoldOrder, float]] = []
        self.captured: list[CaptureOrder] = []
        self.released: list[tuple[str, CallFacts | None]] = []
        self._failure, self._refusal, self._late = failure, refusal, late
        self._allotted = allotted or {}

    async def hold(self, order: HoldOrder, *, deadline_seconds: float) -> Hold:
        if self._refusal is not None:
            raise self._refusal
        self.held.append((order, deadline_seconds))
        return Hold(order, self._allotted, Fraction(1))

    async def capture(self, order: CaptureOrder) -> int:
        if self._failure is not None:
            raise self._failure
        self.captured.append(order)
        return order.hold.order.admission.charge(order.meters).amount

    async def release(self, request_id: object, reason: str, facts: CallFacts | None = None) -> None:
        assert [request_id] == [order.request_id for order, _ in self.held]
        self.released.append((reason, facts))
        if isinstance(self._late, float):
            await asyncio.sleep(self._late)
        elif self._late is not None:
            raise self._late

    @property
    def charged(self) -> int:
        """n$; fails unless the hold was settled exactly once."""
        assert len(self.captured) + len(self.released) == 1, (self.captured, self.released)
        return sum(order.hold.order.admission.charge(order.meters).amount for order in self.captured)

    @property
    def facts(self) -> CallFacts:
        assert len(self.captured) + len(self.released) == 1
        facts = self.captured[0].facts if self.captured else self.released[0][1]
        assert facts is not None
        return facts


class FakeChannels:
    """A ChannelTable: channels in the given order, keys in theirs; remembers what it is told of them."""

    def __init__(self, channels: list[Channel]) -> None:
        self._channels = channels
        self.health: list[tuple[str, bool]] = []
        self.refusals: list[tuple[str, str, float | None]] = []
        self.measurements: list[tuple[str, bool, float]] = []
        self.under_way = 0
        self.budgets: frozenset[int] = frozenset()

    def candidates(self, model: str, affinity: Affinity | None = None, *, stream: bool = False) -> Candidates:
        by = affinity.by if affinity else "weight"
        return Candidates(by, self._channels[:] if model == "mine" else [], lambda _, __: True)

    def measured(self, channel: Channel, model: str, stream: bool, seconds: float) -> None:
        self.measurements.append((channel.name, stream, seconds))

    def has_budget(self, channel: Channel) -> bool:
        return channel.id in self.budgets

    def keys(self, channel: Channel, affinity: Affinity | None = None) -> Iterator[ApiKey]:
        return iter(channel.keys)

    @contextmanager
    def attempt(self, channel: Channel, key: ApiKey) -> Iterator[None]:
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def succeeded(self, channel: Channel, key: ApiKey, began: float) -> None:
        assert began <= time.monotonic()
        self.health.append((channel.name, True))

    def failed(self, channel: Channel) -> None:
        self.health.append((channel.name, False))

    def refused(self, channel: Channel, key: ApiKey, retry_after: float | None) -> None:
        self.health.append((channel.name, False))
        self.refusals.append((channel.name, key.name, retry_after))


@dataclass
class Result:
    """What a call came to. ``keys``: of the provider's, one an attempt."""

    ledger: FakeLedger
    channels: FakeChannels
    metrics: Metrics
    sent: list[Message]
    raised: BaseException | None
    seconds: float
    keys: list[str]
    counted: int = 0  # tokens against the limit a minute, once the call is settled
    counted_of: dict[int, int] = field(default_factory=dict)  # the same of each channel that has such a limit

    @property
    def status(self) -> int:
        if isinstance(self.raised, ApiError):
            return self.raised.status
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def whole(self) -> bool:
        """Whether the response was ended as HTTP wants it."""
        return bool(self.sent) and not self.sent[-1].get("more_body", False)

    @property
    def attempts(self) -> list[Mapping[str, Any]]:
        return list(self.ledger.facts.attempts)


@dataclass
class Customer:
    """How the customer behaves: leaves after that many messages, or does not read after them, or takes each
    after a pause in seconds; and when the server cancels the call, in seconds.
    """

    leaves_after: int | None = None
    stalls_after: int | None = None
    pause: float = 0.0
    cancelled_after: float | None = None


class Connection:
    """The customer's side of a call."""

    def __init__(self, customer: Customer) -> None:
        self.sent: list[Message] = []
        self.customer = customer
        self._tell_gone: Callable[[], None] = lambda: None

    def when_gone(self, tell: Callable[[], None]) -> None:
        self._tell_gone = tell

    async def send(self, message: Message) -> None:
        who = self.customer
        if who.stalls_after is not None and len(self.sent) >= who.stalls_after:
            await asyncio.sleep(60)
        await asyncio.sleep(who.pause)
        self.sent.append(message)
        if who.leaves_after is not None and len(self.sent) > who.leaves_after:
            asyncio.get_running_loop().call_soon(self._tell_gone)
            await asyncio.sleep(0)


class FakeTransport:
    """What each attempt comes to; the last one's again for each that follows."""

    def __init__(self, providers: Sequence[FakeReply | Exception]) -> None:
        self._waiting = list(providers)
        self.keys: list[str] = []

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> FakeReply:
        self.keys.append(headers["authorization"].removeprefix("Bearer "))
        reply = self._waiting.pop(0) if len(self._waiting) > 1 else self._waiting[0]
        if isinstance(reply, Exception):
            raise reply
        return reply


def run(
    *providers: FakeReply | Exception,
    stream: bool = True,
    customer: Customer | None = None,
    ledger: FakeLedger | None = None,
    settings: Mapping[str, str] | None = None,
    model_map: Mapping[str, str] | None = None,
    costs: CostBook | None = None,
    channels: int | None = None,
    keys: int = 1,
    limits: Any = None,
    channel_limits: Mapping[str, int] | None = None,
    budgets: frozenset[int] = frozenset(),
    age: float = 0.0,
    affinity: Affinity | None = None,
    **fields: Any,
) -> Result:
    """One call; ``providers``: what each attempt comes to, the last one's again for each that follows. There
    are as many channels, or ``channels``, each with so many ``keys``; those in ``budgets``
    have one. ``age``: how many seconds ago the call came.
    """
    read = Settings.read(dict(settings or {}))
    request = _request(read, stream, fields)
    count = len(providers) if channels is None else channels
    table = FakeChannels(
        [_channel(n, model_map or {}, keys, channel_limits or {}) for n in range(1, count + 1)]
    )
    table.budgets = budgets
    connection = Connection(customer or Customer())
    post = FakeTransport(providers)
    result = Result(ledger or FakeLedger(), table, Metrics(), connection.sent, None, 0.0, post.keys)
    parts = (table, limits or Limits("", None, 1, result.metrics), None, result.ledger, post, result.metrics)
    services = Services(*cast(Any, (read, None, *parts, AnswerMemory(read.answers_bytes))))
    asyncio.run(_serve(services, connection, request, _admission(costs), age, affinity, result))
    return result


async def _serve(
    services: Services,
    connection: Connection,
    request: ChatRequest,
    admission: Admission,
    age: float,
    affinity: Affinity | None,
    result: Result,
) -> None:
    """The call from its slot to its end, of which ``result`` is told."""
    watcher = DisconnectWatcher(connection.when_gone)
    slot = await services.limits.acquire([Limit("token:2", tpm=TPM)], RESERVED, uuid4())
    assert isinstance(slot, Slot)
    call = Call(
        services,
        cast(Caller, SimpleNamespace(account_id=1, token_id=2)),
        request,
        admission,
        uuid4(),
        connection.send,
        watcher,
        time.monotonic() - age,
        slot,
        services.answers.room(),
        affinity=affinity,
    )
    _cancel_after(connection.customer.cancelled_after)
    began = time.monotonic()
    try:
        await lifecycle.run(call, AskedRequest(services.settings, openai_chat, request, Passed()))
    except (Exception, asyncio.CancelledError) as error:
        result.raised = error
    finally:
        result.seconds = time.monotonic() - began
        _count(services.limits, result)
        watcher.close()


def _cancel_after(seconds: float | None) -> None:
    """As the server does with the task that serves."""
    task = asyncio.current_task()
    if seconds is not None and task is not None:
        asyncio.get_running_loop().call_later(seconds, task.cancel)


def _count(limits: Limits, result: Result) -> None:
    """What the limits have counted of it."""
    uses = limits._local._uses
    result.counted = uses["token:2"].counts.tokens
    result.counted_of = {
        channel.id: uses[f"channel:{channel.id}"].counts.tokens
        for channel in result.channels.candidates("mine")
        if f"channel:{channel.id}" in uses
    }


def _request(settings: Settings, stream: bool, fields: Mapping[str, Any]) -> ChatRequest:
    body = {
        "model": "mine",
        "messages": [{"role": "user", "content": "Hi?"}],
        "stream": stream,
        "max_tokens": 100,
    }
    return openai_chat_request.parse(json.dumps(body | dict(fields)).encode(), settings)


def _admission(costs: CostBook | None) -> Admission:
    rows = (Row("in_text", IN * 10**6), Row("out_text", OUT * 10**6))
    now = datetime.now(UTC)
    version = PriceVersion(1, "mine", "sell", "", "", "USD", now, None, 1, 0, False, rows)
    return Admission("mine", "", now, Tariff(version), costs)


def _channel(number: int, model_map: Mapping[str, str], count: int, limits: Mapping[str, int]) -> Channel:
    url = "http://10.1.2.3:8000/v1"
    keys = tuple(ApiKey(f"k{n}", KEY if n == 1 else f"{KEY}-{n}") for n in range(1, count + 1))
    made = Channel(number, f"c{number}", "openai", url, keys, frozenset(), dict(model_map), 0, 1)
    rpm, tpm, concurrency = (limits.get(name) for name in ("rpm", "tpm", "concurrency"))
    return replace(made, rpm=rpm, tpm=tpm, concurrency=concurrency)


WHOLE: dict[str, Any] = {
    "model": "theirs",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "abcdefgh"}, "finish_reason": "stop"}
    ],
    "usage": USAGE,
}


class Costs:
    """A cost price for one channel alone."""

    def __init__(self, priced: str) -> None:
        self._priced = priced

    def cost_tariff(self, model: str, provider: str, at: datetime, channel: str = "") -> Tariff | None:
        if (model, provider, channel) != ("mine", "openai", self._priced):
            return None
        rows = (Row("in_text", 1_000 * 10**6), Row("out_text", 2_000 * 10**6))
        return Tariff(PriceVersion(2, "mine", "cost", "", channel, "USD", at, None, 1, 0, False, rows))


def good(stream: bool) -> FakeReply:
    return says(STREAM) if stream else answers(WHOLE)
