"""Reads a stream in OpenAI's Responses format along while its bytes pass through.

Events: ``response.created``, for each item ``response.output_item.added``, its deltas and
``response.output_item.done``, at last ``response.completed`` or ``response.incomplete`` with the usage, or
``response.failed``; ``error`` at any time. The end is kept back from the last event on.
Protocol: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from typing import Any

from relay.formats import sse
from relay.formats.answer import loads
from relay.formats.openai_responses_answer import collect_item
from relay.formats.stream_meter import END, KEEP, PASS
from relay.formats.top_level import replace_string
from relay.formats.typed_event import TypedEvent, decoder_of
from relay.formats.typed_meter import TypedMeter

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


class ResponsesMeter(TypedMeter):
    """See Meter. ``error`` passes as it came, without secrets."""

    ENDS = ENDS
    ERRORS = ERRORS

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # Indices of items of which something came by deltas: the whole item repeats it.
        self._told: set[Any] = set()

    def _decode(self, payload: bytes) -> StreamEvent | None:
        return decode(payload)

    def is_answer(self, value: Any) -> bool:
        """See Meter."""
        return isinstance(value, dict) and "output" in value

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


def _key(event: StreamEvent) -> Any:
    index = event.output_index
    return index if isinstance(index, int) else 0
