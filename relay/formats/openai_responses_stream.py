"""Reads a stream in OpenAI's Responses format along while its bytes pass through.

Events: ``response.created``, for each item ``response.output_item.added``, its deltas and
``response.output_item.done``, at last ``response.completed`` or ``response.incomplete`` with the usage, or
``response.failed``; ``error`` at any time. The end is kept back from the last event on.
Protocol: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from typing import Any

from relay.formats import sse
from relay.formats.answer import NOT_JSON, loads
from relay.formats.openai_responses_answer import collect_item
from relay.formats.stream_meter import DROP, END, KEEP, PASS, EventMeter
from relay.formats.top_level import replace_string
from relay.formats.typed_event import TypedEvent, decoder_of

ENDS = frozenset({"response.completed", "response.incomplete"})
ERRORS = frozenset({"response.failed", "error"})
# Events whose ``response`` names the model.
_NAMED = frozenset({"response.created", "response.in_progress", "response.queued"}) | ENDS
_DELTA = ".delta"


class StreamEvent(TypedEvent):
    """What is read of an event."""

    output_index: Any = None
    delta: Any = None
    item: Any = None
    response: Any = None
    error: Any = None


decode = decoder_of(StreamEvent)


def error_of(event: StreamEvent, payload: bytes) -> Any:
    """The value of the error that an event tells."""
    response = event.response if isinstance(event.response, dict) else {}
    return event.error or response.get("error") or loads(payload)


class ResponsesMeter(EventMeter):
    """See Meter. ``error`` passes as it came, without secrets."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.done = False
        # Indices of items of which something came by deltas: the whole item repeats it.
        self._told: set[Any] = set()

    def end(self) -> None:
        """The provider closed the stream: an event whose blank line is missing counts, unless it was cut."""
        event, payload = sse.unended(self._buffer.take_rest())
        if payload and decode(payload) is not None:
            self._kept[:0] = self._passed(self._read(event), event + b"\n\n", b"\n\n")

    def break_off(self) -> None:
        """The provider fell silent or cut the stream: without its blank line only the last event counts."""
        event, payload = sse.unended(self._buffer.take_rest())
        if _is_end(payload):
            self._kept[:0] = self._passed(self._read(event), event + b"\n\n", b"\n\n")

    def tail(self) -> bytes:
        """What ends the stream, to be sent once the call is settled."""
        return b"".join(self._kept)

    @property
    def ending(self) -> bool:
        """Whether the last event has come."""
        return self.done

    @property
    def finished(self) -> bool:
        """Whether the answer is whole, however the connection ends now."""
        return self.error is None and self.broken is None and self.done

    @property
    def complete(self) -> bool:
        """Whether a provider that closes now has ended the stream by itself."""
        return self.finished

    def partial_usage(self, delivered: int) -> Any:
        """See Meter: usage is told at the end only."""
        return None

    def is_answer(self, value: Any) -> bool:
        """See Meter."""
        return isinstance(value, dict) and "output" in value

    def _read(self, event: bytes) -> int:
        if self.error is not None:
            return DROP  # customers' SDKs stop at an error
        payload = sse.data_of(event)
        if not payload:
            return self._other_event(event, None)
        if payload.strip() == b"[DONE]":  # some compatible providers end like chat
            return KEEP if self.done else DROP
        decoded = decode(payload)
        if decoded is None:
            return self._read_broken(payload)
        self.events += 1
        if self.done:
            return DROP
        if decoded.type in ERRORS or (decoded.error and not decoded.type):
            return self._read_error(decoded, event, payload)
        return self._read_event(decoded, event, payload)

    def _read_broken(self, payload: bytes) -> int:
        if not self.finished:
            self.broken = f"what came is not JSON: {payload[:40]!r}"
        return DROP

    def _read_event(self, decoded: StreamEvent, event: bytes, payload: bytes) -> int:
        kind = decoded.type
        if self._model is not None and kind in _NAMED:
            renamed = replace_string(payload, "model", self._model, depth=2)
            if renamed != payload:
                self._altered = sse.with_data(event, renamed)
        if kind in ENDS:
            return self._read_end(decoded)
        texts: list[str] = []
        if kind.endswith(_DELTA):
            if isinstance(decoded.delta, str) and decoded.delta:
                self._told.add(_key(decoded))
                texts.append(decoded.delta)
        elif kind == "response.output_item.added":
            item = decoded.item if isinstance(decoded.item, dict) else {}
            collect_item({"name": item.get("name")}, texts)
        elif kind == "response.output_item.done" and _key(decoded) not in self._told:
            self._told.add(_key(decoded))
            item = decoded.item if isinstance(decoded.item, dict) else {}
            collect_item(item | {"name": None}, texts)  # which came with its begin
        elif not kind.startswith("response."):
            return self._other_event(event, payload)
        if texts:
            self._add(texts)
            self._keeping = False
            return PASS
        return KEEP if self._keeping else PASS

    def _read_end(self, decoded: StreamEvent) -> int:
        response = decoded.response if isinstance(decoded.response, dict) else {}
        if not self.generating:
            output = response.get("output")
            texts: list[str] = []
            for item in output if isinstance(output, list) else ():
                collect_item(item, texts)
            self._add(texts)
        usage = response.get("usage")
        if isinstance(usage, dict) and usage:
            self.usage = usage
            self.usage_is_last = True
        self.done = self._keeping = True
        return END

    def _read_error(self, decoded: StreamEvent, event: bytes, payload: bytes) -> int:
        response = decoded.response if isinstance(decoded.response, dict) else {}
        usage = response.get("usage")
        if isinstance(usage, dict) and usage:
            self.usage = usage
            self.usage_is_last = True
        self.error = error_of(decoded, payload)
        self._keeping = False
        self._clean(event, payload)
        return PASS

    def _other_event(self, event: bytes, payload: bytes | None) -> int:
        """A comment, or an event that is unknown here."""
        if self.done or not sse.is_utf8(event):
            return DROP
        self._clean(event, payload)
        return KEEP if self._keeping else PASS


def _key(event: StreamEvent) -> Any:
    index = event.output_index
    return index if isinstance(index, int) else 0


def _is_end(payload: bytes | None) -> bool:
    value = loads(payload) if payload else NOT_JSON
    return isinstance(value, dict) and str(value.get("type")) in ENDS
