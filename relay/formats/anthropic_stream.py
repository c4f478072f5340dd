"""Reads an Anthropic event stream along while its bytes pass through.

Events: ``message_start`` (with the usage of the prompt), ``content_block_start``, ``_delta`` and ``_stop``,
``message_delta`` (why the answer ended, and the usage so far), ``message_stop``; ``ping`` and ``error`` at
any time. The end is kept back from the ``message_delta`` with the reason on.
Protocol: https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from __future__ import annotations

from typing import Any

from relay.formats import sse
from relay.formats.answer import NOT_JSON, loads
from relay.formats.anthropic_answer import REFUSED, collect_block, collect_delta, cumulated, is_output
from relay.formats.stream_meter import DROP, END, KEEP, PASS, EventMeter
from relay.formats.top_level import replace_string
from relay.formats.typed_event import TypedEvent, decoder_of

STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
PING = b'event: ping\ndata: {"type": "ping"}\n\n'


class StreamEvent(TypedEvent):
    """What is read of an event."""

    index: Any = None
    message: Any = None
    content_block: Any = None
    delta: Any = None
    usage: Any = None
    error: Any = None


decode = decoder_of(StreamEvent)


class AnthropicMeter(EventMeter):
    """See Meter. ``error`` passes as it came, without secrets."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._over = self._unbilled = self._answered = False
        self.done = False

    def end(self) -> None:
        """The provider closed the stream: an event whose blank line is missing counts, unless it was cut."""
        event, payload = sse.unended(self._buffer.take_rest())
        if payload and decode(payload) is not None:
            self._kept[:0] = self._passed(self._read(event), event + b"\n\n", b"\n\n")

    def break_off(self) -> None:
        """The provider fell silent or cut the stream: without its blank line only the last event counts."""
        event, payload = sse.unended(self._buffer.take_rest())
        if _is_stop(payload):
            self._kept[:0] = self._passed(self._read(event), STOP, b"\n\n")

    def tail(self) -> bytes:
        """What ends the stream, to be sent once the call is settled."""
        tail = b"".join(self._kept)
        return tail + STOP if self.complete and not self.done else tail

    @property
    def ending(self) -> bool:
        """Whether the last event has come, be it without its blank line."""
        rest = self._buffer.short_rest
        return self.done or (rest != b"" and _is_stop(sse.unended(rest)[1]))

    @property
    def finished(self) -> bool:
        """Whether the answer is whole, however the connection ends now."""
        return self.error is None and self.broken is None and (self.done or self._over)

    @property
    def complete(self) -> bool:
        """Whether a provider that closes now has ended the stream by itself."""
        return self.finished

    def partial_usage(self, delivered: int) -> Any:
        """See Meter: the prompt's usage came with the first event."""
        if self.usage is None or not delivered:
            return None
        return {**self.usage, "output_tokens": delivered, "estimated": True}

    def is_answer(self, value: Any) -> bool:
        """See Meter."""
        return isinstance(value, dict) and "content" in value

    def _read(self, event: bytes) -> int:
        if self.error is not None:
            return DROP  # customers' SDKs stop at an error
        payload = sse.data_of(event)
        if not payload:
            return self._other_event(event, None)
        decoded = decode(payload)
        if decoded is None:
            return self._not_json(payload)
        self.events += 1
        if self.done:
            self._tell(decoded.usage)
            return DROP
        if decoded.error or decoded.type == "error":
            return self._read_error(decoded, event, payload)
        return self._read_event(decoded, event, payload)

    def _read_event(self, decoded: StreamEvent, event: bytes, payload: bytes) -> int:
        texts: list[str] = []
        kind = decoded.type
        if kind == "content_block_delta":
            collect_delta(decoded.delta, texts)
            self._answered = self._answered or is_output(decoded.delta)
        elif kind == "content_block_start":
            collect_block(decoded.content_block, texts)
            self._answered = self._answered or is_output(decoded.content_block)
        elif kind == "message_start":
            self._read_start(decoded.message, event, payload)
        elif kind == "message_delta":
            return self._read_delta(decoded)
        elif kind == "message_stop":
            self.done = self._keeping = True
            return KEEP
        elif kind != "content_block_stop":
            return self._other_event(event, payload)
        if texts:
            self._add(texts)
            self._over = self._keeping = False
            return PASS
        return KEEP if self._keeping else PASS

    def _read_start(self, message: Any, event: bytes, payload: bytes) -> None:
        if isinstance(message, dict):
            self._tell(message.get("usage"))
        if self._model is not None:
            renamed = replace_string(payload, "model", self._model, depth=2)
            if renamed != payload:
                self._altered = sse.with_data(event, renamed)

    def _read_delta(self, decoded: StreamEvent) -> int:
        if isinstance(decoded.usage, dict) and decoded.usage:
            self._tell(decoded.usage)
            self.usage_is_last = True
        delta = decoded.delta
        if isinstance(delta, dict) and delta.get("stop_reason"):
            self._over = self._keeping = True
            if delta["stop_reason"] == REFUSED and not self._answered:
                self._unbilled, self.usage = True, None
            return END
        return KEEP if self._keeping else PASS

    def _tell(self, usage: Any) -> None:
        if not self._unbilled:
            self.usage = cumulated(self.usage, usage)

    def _read_error(self, decoded: StreamEvent, event: bytes, payload: bytes) -> int:
        if self.finished:
            return DROP  # what is complete is not undone
        self.error = decoded.error or loads(payload)
        self._keeping = False
        self._clean(event, payload)
        return PASS

    def _other_event(self, event: bytes, payload: bytes | None) -> int:
        """A ping, a comment, or an event that is unknown here."""
        return DROP if self.done else super()._other_event(event, payload)


def _is_stop(payload: bytes | None) -> bool:
    value = loads(payload) if payload else NOT_JSON
    return isinstance(value, dict) and value.get("type") == "message_stop"
