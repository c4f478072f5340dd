"""``POST /v1/chat/completions``: hold, vendor, capture, last byte.

The abort rule, written on each record that it priced: what was delivered is billed. With the vendor's usage
by that; without it (the customer left, the vendor broke off or told none) by a counted estimate of the prompt
and of what was delivered. A call of which nothing was delivered is not charged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from relay.gateway import errors
from relay.gateway.chat_request import ChatRequest, parse, prompt_estimate, split_text, text_estimate
from relay.gateway.departure import Departure
from relay.gateway.errors import ApiError
from relay.gateway.http import (
    ClientGone,
    Headers,
    Receive,
    Scope,
    Send,
    client_address,
    header,
    read_body,
    send_body,
)
from relay.gateway.services import Services
from relay.identity.directory import Caller
from relay.limits.shared import Pass
from relay.limits.window import Refused
from relay.money.admission import Admission
from relay.money.errors import (
    AccountSuspended,
    BudgetExceeded,
    FieldError,
    InsufficientCredit,
    LedgerUnavailable,
    UnknownHold,
    Unpriced,
)
from relay.money.meters import normalise
from relay.money.orders import CallFacts, CaptureOrder, Hold, HoldOrder
from relay.providers import openai
from relay.providers.openai_stream import BadStream, StreamMeter
from relay.providers.transport import Broken, NotSent, Reply, TimedOut, TransportError
from relay.routing.channels import Channel
from relay.telemetry.logs import redact
from relay.telemetry.metrics import OTHER

FORMAT = "openai"
BILL_DELIVERED = "bill what was delivered"
RELEASE_WAIT_SECONDS = 2.0
AFTER_DONE_SECONDS = 1.0
# A vendor's answer with one of these blames the request, so another channel would say the same.
CUSTOMERS_FAULT = frozenset({400, 413, 415, 422})
SSE_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

log = logging.getLogger(__name__)


async def chat_completions(
    services: Services, scope: Scope, receive: Receive, send: Send, request_id: UUID
) -> None:
    """Serve one call; raises ApiError while nothing was sent."""
    started = time.monotonic()
    request: ChatRequest | None = None
    try:
        caller = await _identify(services, scope)
        request = await _read(services, scope, receive)
        admission = _admit(services, caller, request)
        admitted = await _enter(services, caller, request_id)
    except ApiError as error:
        known = request is not None and services.channels.knows(request.model)
        model = request.model if request is not None and known else OTHER
        services.metrics.of("requests", model, "none", error.reason, "false").inc()
        raise
    departure = Departure(receive)
    try:
        await _Call(services, caller, request, admission, request_id, send, departure, started).run()
    finally:
        departure.close()
        services.limits.leave(admitted)


async def _identify(services: Services, scope: Scope) -> Caller:
    address = client_address(scope, services.settings.trusted_networks)
    return await services.directory.authenticate(header(scope, b"authorization"), address)


async def _read(services: Services, scope: Scope, receive: Receive) -> ChatRequest:
    content_type = header(scope, b"content-type").partition(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise errors.unsupported_media_type(content_type.decode("latin-1"))
    settings = services.settings
    return parse(await read_body(scope, receive, settings.max_body_bytes), settings)


async def _enter(services: Services, caller: Caller, request_id: UUID) -> Pass:
    admitted = await services.limits.enter(caller.token_id, caller.rpm, caller.concurrency, request_id)
    if isinstance(admitted, Refused):
        raise errors.rate_limited(
            "The API key's limit is reached: try again later.", admitted.retry_after, admitted.reason
        )
    return admitted


def _admit(services: Services, caller: Caller, request: ChatRequest) -> Admission:
    model = request.model
    if not services.channels.knows(model):
        raise errors.unknown_model(model)
    if not caller.may_use(model):
        raise errors.forbidden(f"The API key may not use the model '{model}'.", "model_not_allowed", "model")
    try:
        admission = services.prices.admit(model, group=caller.group, at=datetime.now(UTC))
    except Unpriced:
        raise errors.unknown_model(model, "has no price and cannot be used") from None
    if not services.channels.serves(model):
        raise errors.unavailable(f"No channel for the model '{model}' is in use.", "no_channel", 10)
    return admission


@dataclass(slots=True)
class _Call:
    services: Services
    caller: Caller
    request: ChatRequest
    admission: Admission
    request_id: UUID
    send: Send
    departure: Departure
    started: float
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    attempts: list[Mapping[str, Any]] = field(default_factory=list)
    hold: Hold | None = None
    channel: Channel | None = None
    first_byte: float | None = None
    vendor_seconds: float = 0.0
    outcome: str = "ok"
    charged: int = 0

    async def run(self) -> None:
        """From the hold to the last byte."""
        try:
            self.hold = await self._reserve()
        except ApiError as refusal:
            self.outcome = refusal.reason
            self._report()
            raise
        vendor_started = time.monotonic()
        try:
            channel, reply = await self._open()
        except (ApiError, ClientGone, asyncio.CancelledError) as failure:
            self.outcome = _outcome_of(failure)
            await self._release(f"no answer from a vendor: {_outcome_of(failure)}")
            self._report()
            raise
        self.channel = channel
        async with reply:
            serve = self._stream if self.request.stream else self._whole
            try:
                await serve(channel, reply, vendor_started)
            finally:
                self._report()

    # ------------------------------------------------------------------ money

    async def _reserve(self) -> Hold:
        request, settings = self.request, self.services.settings
        try:
            bound = self.admission.bound(
                input_units=request.input_bound,
                max_output=request.max_output,
                prompt=("text", "image") if request.images else ("text",),
            )
            expires = self.started_at + timedelta(seconds=settings.hold_seconds)
            order = HoldOrder.of(
                self.request_id,
                self.caller.account_id,
                self.caller.token_id,
                self.admission,
                bound,
                expires,
            )
            return await self.services.ledger.hold(order)
        except Unpriced as error:
            raise errors.unknown_model(request.model, f"cannot be used: {error.meter} has no price") from None
        except InsufficientCredit as error:
            raise errors.insufficient_credit(error.missing_nanodollars, settings.topup_url) from None
        except BudgetExceeded as error:
            raise errors.budget_exceeded(error.scope, error.missing_nanodollars) from None
        except AccountSuspended:
            raise errors.forbidden("The account is not active: ask support.", "account_not_active") from None
        except LedgerUnavailable as error:
            message = "The service cannot reserve credit right now. Nothing was charged."
            raise errors.unavailable(message, "ledger_unavailable") from error

    async def _capture(self, usage: Mapping[str, Any] | None, counted_output: int) -> None:
        """Charge by ``usage``, or by the count where the vendor told none; raises LedgerUnavailable."""
        if self.hold is None or self.channel is None:
            raise RuntimeError("a call is captured only after its hold and its vendor")
        raw, meters, counted = self._metered(usage, counted_output)
        order = CaptureOrder(
            hold=self.hold,
            meters=meters,
            raw_usage=raw,
            facts=self._facts(BILL_DELIVERED if counted or self.outcome != "ok" else None),
            cost=self.admission.cost(self.channel.provider, meters),
            usage_format=FORMAT,
        )
        try:
            self.charged = await self.services.ledger.capture(order)
        except UnknownHold:
            # The sweeper was first: its rule has decided this call.
            log.error("a call was settled by the sweeper before its capture", extra=self._log_fields())
        self._count_money(meters, order, counted)

    def _metered(
        self, usage: Mapping[str, Any] | None, counted_output: int
    ) -> tuple[Mapping[str, Any], dict[str, int], bool]:
        """(usage as recorded, its meters, whether it was counted here)."""
        if usage is not None:
            try:
                return usage, normalise(FORMAT, usage), False
            except FieldError as error:
                log.error("a vendor's usage is malformed: %s", error, extra=self._log_fields())
        prompt = prompt_estimate(self.request.messages)
        estimate = {"prompt_tokens": prompt, "completion_tokens": counted_output}
        recorded = {**estimate, "estimated": True, "vendor": usage}
        return recorded, normalise(FORMAT, estimate), True

    async def _release(self, reason: str) -> None:
        """Give the hold back. While the database is away the ledger goes on with it, at last the sweeper."""
        try:
            async with asyncio.timeout(RELEASE_WAIT_SECONDS):
                await self.services.ledger.release(self.request_id, reason, self._facts(None))
        except (LedgerUnavailable, TimeoutError):
            log.warning("a hold is given back late", extra=self._log_fields())

    def _facts(self, abort_rule: str | None) -> CallFacts:
        return CallFacts(
            outcome=self.outcome,
            channel_id=self.channel.id if self.channel else None,
            stream=self.request.stream,
            abort_rule=abort_rule,
            started_at=self.started_at,
            duration_ms=int((time.monotonic() - self.started) * 1000),
            first_byte_ms=None if self.first_byte is None else int((self.first_byte - self.started) * 1000),
            attempts=self.attempts,
        )

    # ------------------------------------------------------------------ vendors

    async def _open(self) -> tuple[Channel, Reply]:
        """The first channel that answers; raises ApiError when none does, and ClientGone."""
        failure = errors.unavailable(f"No channel serves '{self.request.model}' now.", "no_channel")
        for channel in self.services.channels.candidates(self.request.model):
            began = time.monotonic()
            try:
                with self.departure:
                    reply = await self._post(channel)
            except NotSent as error:
                failure = errors.bad_gateway()
                self._attempt(channel, "not_sent", began, error)
                continue
            except TimedOut as error:
                self._attempt(channel, "timeout", began, error)
                raise errors.gateway_timeout() from error
            except Broken as error:
                self._attempt(channel, "broken", began, error)
                raise errors.bad_gateway() from error
            if reply.status == 200:
                self.services.channels.succeeded(channel)
                return channel, reply
            failure = await self._refusal(channel, reply, began)
        raise failure

    async def _post(self, channel: Channel) -> Reply:
        return await self.services.transport.post(
            openai.chat_url(channel),
            openai.chat_headers(channel, self.request_id),
            openai.chat_body(channel, self.request),
        )

    async def _refusal(self, channel: Channel, reply: Reply, began: float) -> ApiError:
        """What to say when no other channel does better; raises ApiError when the request is at fault."""
        async with reply:
            try:
                message, param = openai.read_error(await reply.read(openai.MAX_ERROR_BYTES))
            except TransportError:
                message, param = "", None
        if reply.status in CUSTOMERS_FAULT:
            self._note_attempt(channel, "refused", began, reply.status)
            said = redact(message) or f"The model's vendor refused the request ({reply.status})."
            raise ApiError(reply.status, said, param=param, code="upstream_refused")
        self._attempt(channel, f"status_{reply.status}", began, RuntimeError(message), reply.status)
        if reply.status == 429:
            return errors.unavailable("The model is overloaded: try again later.", "upstream_overloaded", 5)
        return errors.bad_gateway()

    def _attempt(
        self, channel: Channel, kind: str, began: float, error: Exception, status: int | None = None
    ) -> None:
        """A failed attempt: count it, log it, and let routing know."""
        self.services.channels.failed(channel)
        self.services.metrics.upstream_errors.labels(channel.provider, channel.name, kind).inc()
        fields = self._log_fields() | {"channel": channel.name, "reason": kind, "status": status}
        log.warning("a vendor failed: %s", error, extra=fields)
        self._note_attempt(channel, kind, began, status)

    def _note_attempt(self, channel: Channel, kind: str, began: float, status: int | None) -> None:
        took = int((time.monotonic() - began) * 1000)
        self.attempts.append({"channel_id": channel.id, "outcome": kind, "status": status, "ms": took})

    # ------------------------------------------------------------------ answers

    async def _whole(self, channel: Channel, reply: Reply, vendor_started: float) -> None:
        try:
            with self.departure:
                body = await reply.read(self.services.settings.max_answer_bytes)
            completion = openai.read_completion(body)
        except (TransportError, ValueError, ClientGone, asyncio.CancelledError) as failure:
            self.outcome = _outcome_of(failure)
            await self._release(f"nothing was delivered: {self.outcome}")
            if isinstance(failure, TransportError | ValueError):
                self._attempt(channel, self.outcome, vendor_started, failure, reply.status)
                raise _error_of(failure) from failure
            raise
        self._note_attempt(channel, "ok", vendor_started, reply.status)
        self.vendor_seconds = time.monotonic() - vendor_started
        counted = 0
        if completion.usage is None:
            counted = sum(text_estimate(*split_text(text)) for text in openai.completion_texts(completion))
        await self._captured_or_unavailable(completion.usage, counted)
        headers = [(b"content-type", b"application/json"), self._id_header()]
        await send_body(self.send, 200, body, headers)

    async def _captured_or_unavailable(self, usage: Mapping[str, Any] | None, counted: int) -> None:
        try:
            await self._capture(usage, counted)
        except LedgerUnavailable as error:
            self.outcome = "ledger_unavailable"
            message = "The answer could not be charged, so its end is withheld: try again later."
            raise errors.unavailable(message, "ledger_unavailable") from error

    async def _stream(self, channel: Channel, reply: Reply, vendor_started: float) -> None:
        meter = StreamMeter(keep_usage_chunk=self.request.include_usage)
        failure = await self._pass_on(reply, meter)
        self.vendor_seconds = time.monotonic() - vendor_started
        self.outcome = _stream_outcome(meter, failure)
        if self.outcome in ("ok", "client_gone", "shutdown"):
            self._note_attempt(channel, self.outcome, vendor_started, reply.status)
        else:
            problem = failure if isinstance(failure, Exception) else RuntimeError(str(meter.error))
            self._attempt(channel, self.outcome, vendor_started, problem, reply.status)
        try:
            await self._settle_stream(meter)
        except ApiError as error:
            if self.first_byte is None:
                raise
            await self.send({"type": "http.response.body", "body": errors.stream_event(error)})
        else:
            await self._end_stream(meter, failure)

    async def _settle_stream(self, meter: StreamMeter) -> None:
        counted = meter.estimate()
        nothing = self.first_byte is None or (meter.usage is None and counted == 0)
        if self.outcome != "ok" and nothing:
            await self._release(f"nothing was delivered: {self.outcome}")
        else:
            await self._captured_or_unavailable(meter.usage, counted)

    async def _pass_on(self, reply: Reply, meter: StreamMeter) -> BaseException | None:
        """Send on what arrives until the end; returns what cut it short."""
        loop = asyncio.get_running_loop()
        try:
            with self.departure:
                async with asyncio.timeout(None) as limit:
                    async for block in reply.blocks():
                        part = meter.feed(block)
                        if meter.error is not None and self.first_byte is None:
                            return None
                        if part:
                            await self._send_part(part)
                        if meter.done:
                            # Only the body's end is missing, which frees the connection for the next call.
                            limit.reschedule(loop.time() + AFTER_DONE_SECONDS)
        except (TransportError, BadStream, TimeoutError) as failure:
            return None if meter.done else failure
        except (ClientGone, asyncio.CancelledError) as failure:
            return failure
        return None

    async def _send_part(self, part: bytes) -> None:
        if self.first_byte is None:
            self.first_byte = time.monotonic()
            headers = [*SSE_HEADERS, self._id_header()]
            await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.send({"type": "http.response.body", "body": part, "more_body": True})

    async def _end_stream(self, meter: StreamMeter, failure: BaseException | None) -> None:
        """The last bytes, after the capture; a stream that broke off ends with an error event instead."""
        if isinstance(failure, ClientGone | asyncio.CancelledError):
            raise failure
        if self.outcome != "ok" and self.first_byte is None:
            raise _error_of(failure)
        tail = meter.tail()
        if self.outcome in ("truncated", "timeout"):
            tail = errors.stream_event(errors.broken_off())
        if self.first_byte is None:
            await self._send_part(tail)
            tail = b""
        await self.send({"type": "http.response.body", "body": tail})

    def _id_header(self) -> tuple[bytes, bytes]:
        return b"x-request-id", str(self.request_id).encode()

    # ------------------------------------------------------------------ telemetry

    def _log_fields(self) -> dict[str, Any]:
        return {
            "request_id": str(self.request_id),
            "account_id": self.caller.account_id,
            "token_id": self.caller.token_id,
            "model": self.request.model,
            "stream": self.request.stream,
        }

    def _count_money(self, meters: Mapping[str, int], order: CaptureOrder, counted: bool) -> None:
        metrics, model, provider = self.services.metrics, self.request.model, self._provider()
        for meter, quantity in meters.items():
            metrics.of("tokens", model, meter).inc(quantity)
        metrics.of("revenue", model, provider).inc(self.charged / errors.NANODOLLARS)
        if order.cost is not None:
            metrics.of("cost", model, provider).inc(order.cost.amount / errors.NANODOLLARS)
        if counted:
            metrics.of("estimated", model, provider).inc()
        output = meters.get("out_text", 0)
        if self.first_byte is not None and output:
            metrics.of("per_token", model).observe((time.monotonic() - self.first_byte) / output)

    def _provider(self) -> str:
        return self.channel.provider if self.channel else "none"

    def _report(self) -> None:
        metrics, request = self.services.metrics, self.request
        took = time.monotonic() - self.started
        stream = "true" if request.stream else "false"
        metrics.of("requests", request.model, self._provider(), self.outcome, stream).inc()
        metrics.of("duration", request.model, stream).observe(took)
        if self.first_byte is not None:
            metrics.of("first_token", request.model).observe(self.first_byte - self.started)
        if self.outcome == "ok":
            metrics.overhead.observe(max(0.0, took - self.vendor_seconds))


def _outcome_of(failure: BaseException) -> str:
    if isinstance(failure, ClientGone):
        return "client_gone"
    if isinstance(failure, asyncio.CancelledError):
        return "shutdown"
    if isinstance(failure, ApiError):
        return failure.reason
    return "timeout" if isinstance(failure, TimedOut) else "truncated"


def _stream_outcome(meter: StreamMeter, failure: BaseException | None) -> str:
    if failure is not None:
        return _outcome_of(failure)
    if meter.error is not None:
        return "vendor_error"
    return "ok" if meter.complete else "truncated"


def _error_of(failure: BaseException | None) -> ApiError:
    return errors.gateway_timeout() if isinstance(failure, TimedOut) else errors.bad_gateway()
