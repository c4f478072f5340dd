"""Passing on an answer as events while it arrives: its end is kept back until the call is settled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from relay.errors import ApiError
from relay.formats.answer import BadAnswer, ErrorAnswer, loads
from relay.formats.format import Meter
from relay.formats.refusal import MAX_ERROR_BYTES
from relay.formats.sse import EventTooLarge, may_begin
from relay.gateway.call import PIECE_BYTES, SSE_HEADERS, Call, in_time
from relay.providers.transport import Reply, TransportError

# From the last choice's end: for the usage, which follows at once where there is one.
USAGE_SECONDS = 5.0
# Then, for the body's end, which frees the connection for the next call.
CLOSE_SECONDS = 1.0
# Without anything generated after so long, what came so far (comments, a role) passes on, and with it the
# chance to ask another provider.
OPENING_SECONDS = 10.0
# A customer that leaves before the end stops the provider, unless the end is on its way already.
LEAVING_SECONDS = 0.05


class StreamAnswer:
    """An Answer as server-sent events. ``error_event``: an error in the customer's format."""

    def __init__(self, call: Call, meter: Meter, error_event: Callable[[ApiError], bytes]) -> None:
        self._call, self._meter = call, meter
        self._error_event = error_event
        self._began = time.monotonic()
        self._begin = b""
        self._delivered: int | None = None
        self._ended = False
        call.watcher.patience = self._patience

    @property
    def usage(self) -> Any:
        """See Answer. What was told before the last text is no usage of a stream that broke off: of it only
        the prompt's counts."""
        meter = self._meter
        if self._ended or meter.finished or meter.usage_is_last:
            return meter.usage
        return meter.partial_usage(self.counted())

    def counted(self) -> int:
        """See Answer."""
        return self._meter.estimate() if self._delivered is None else self._delivered

    async def read(self, reply: Reply) -> None:
        """See Answer."""
        meter = self._meter
        loop = asyncio.get_running_loop()
        stage = None
        try:
            async with asyncio.timeout(None) as limit:
                async for block in self._blocks(reply):
                    await self._pass_on(block)
                    before, stage = stage, self._stage()
                    if stage != before:
                        limit.reschedule(None if stage is None else loop.time() + stage)
        except EventTooLarge as error:
            raise BadAnswer(str(error)) from error
        except (TimeoutError, TransportError):
            meter.break_off()
            if meter.error is None and not meter.finished:
                raise
        else:
            meter.end()
        self._judge()

    def _blocks(self, reply: Reply) -> AsyncIterator[bytes]:
        """The stream, as it comes; raises as read() does."""
        return reply.blocks()

    async def _pass_on(self, block: bytes) -> None:
        call, meter = self._call, self._meter
        if call.watcher.gone and self._delivered is None:
            self._delivered = meter.estimate()
        part = meter.feed(block)
        if call.first_byte is None:
            self._check_begin(block)
            if not part and time.monotonic() - self._began > OPENING_SECONDS:
                part = meter.release()
        if part and not call.watcher.gone:
            await call.send_part(part, SSE_HEADERS)
        call.room.set(meter.held)
        if call.room.large:
            await call.room.admitted()
        if meter.broken is not None:
            raise BadAnswer(meter.broken)

    def _check_begin(self, block: bytes) -> None:
        """Raise while another provider may still be asked."""
        if self._meter.error is not None and not self._meter.generating:
            raise ErrorAnswer(self._meter.error)
        room = MAX_ERROR_BYTES + 1 - len(self._begin)
        if not self._meter.events and room > 0:
            self._begin += block[:room]
            web_page = self._begin.lstrip().startswith(b"<")
            if web_page or (len(self._begin) > MAX_ERROR_BYTES and not may_begin(self._begin)):
                raise BadAnswer("what came is no event stream")

    def _stage(self) -> float | None:
        """How many seconds may still pass, from when the stream came so far; None while it is going on."""
        meter = self._meter
        if meter.error is not None or meter.ending or (meter.finished and meter.usage_is_last):
            return CLOSE_SECONDS
        return USAGE_SECONDS if meter.finished else None

    def _judge(self) -> None:
        meter = self._meter
        if meter.error is not None:
            raise ErrorAnswer(meter.error)
        if not meter.events:
            value = loads(self._begin)
            if isinstance(value, dict) and not meter.is_answer(value):
                raise ErrorAnswer(value.get("error") or value)
            raise BadAnswer("what came is no event stream")
        if not meter.complete:
            raise BadAnswer("the stream stopped before its end")
        self._ended = True

    def _patience(self) -> float:
        """How long a customer that has left is waited for: the provider bills what is already its last."""
        if self._call.first_byte is None:
            return 0.0
        return USAGE_SECONDS if self._meter.finished else LEAVING_SECONDS

    async def finish(self, error: ApiError | None) -> None:
        """See Answer."""
        call = self._call
        if error is not None and not call.begun:
            raise error
        if error is not None and self._meter.error is None:
            tail = self._error_event(error)  # in the place of an end that may be untranslatable
        else:
            tail = self._meter.tail()
        if call.first_byte is None:
            begin, tail = tail[:PIECE_BYTES], tail[PIECE_BYTES:]
            await in_time(call.send_part(begin, SSE_HEADERS))
        await call.send_last(tail)
