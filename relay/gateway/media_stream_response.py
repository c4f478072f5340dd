"""Passing on images, sounds and transcripts as events, also where the provider answers in one piece."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from relay.errors import ApiError
from relay.formats.format import Meter
from relay.gateway.bytes_response import refuse_others, type_of
from relay.gateway.call import Call
from relay.gateway.stream_response import StreamAnswer
from relay.gateway.whole_response import received
from relay.providers.transport import Reply

_EVENTS = "text/event-stream"


class MediaStreamAnswer(StreamAnswer):
    """An Answer as server-sent events. ``as_events`` makes them of a whole answer, which is JSON, or of this
    ``kind`` (see BytesAnswer)."""

    def __init__(
        self,
        call: Call,
        meter: Meter,
        error_event: Callable[[ApiError], bytes],
        as_events: Callable[[bytes], bytes],
        kind: str,
    ) -> None:
        super().__init__(call, meter, error_event)
        self._as_events, self._kind = as_events, kind

    def _blocks(self, reply: Reply) -> AsyncIterator[bytes]:
        given = reply.headers.get("content-type", _EVENTS)
        return reply.blocks() if given.lower().startswith(_EVENTS) else self._made(reply)

    async def _made(self, reply: Reply) -> AsyncIterator[bytes]:
        if self._kind:
            type_of(reply.headers["content-type"], self._kind)
        body = await received(self._call, reply)
        if self._kind:
            refuse_others(body, self._kind)
        yield self._as_events(body)
