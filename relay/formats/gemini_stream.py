"""Reads Gemini's event stream along while its bytes pass through.

Each event holds a ``GenerateContentResponse`` with more parts, and most of them the usage so far. There is no
last event: a stream is whole when each candidate has told why it ended, or the prompt was blocked. From there
on its end is kept back.
Protocol: https://ai.google.dev/api/generate-content#method:-models.streamgeneratecontent
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relay.formats import sse
from relay.formats.answer import NOT_JSON, loads
from relay.formats.gemini_answer import collect_texts, is_blocked, parts_of, usage_of
from relay.formats.reading import list_of, number
from relay.formats.stream_meter import DROP, END, KEEP, PASS, EventMeter
from relay.formats.top_level import replace_string

MODEL_FIELD = "modelVersion"
_OF_THE_ANSWER = frozenset(
    {
        *("candidatesTokenCount", "candidatesTokensDetails", "responseTokenCount", "responseTokensDetails"),
        *("thoughtsTokenCount", "totalTokenCount"),
    }
)


class GeminiMeter(EventMeter):
    """See Meter. ``error`` passes as it came, without secrets."""

    def __init__(
        self, max_event_bytes: int, redact: Callable[[bytes], bytes], model: str | None, choices: int
    ) -> None:
        super().__init__(max_event_bytes, redact, model)
        self._choices = choices
        self._over: set[int] = set()
        self._blocked = False

    def end(self) -> None:
        """The provider closed the stream: an event whose blank line is missing counts, unless it was cut."""
        event, payload = sse.unended(self._buffer.take_rest())
        if payload and loads(payload) is not NOT_JSON:
            self._kept[:0] = self._passed(self._read(event), event + b"\r\n\r\n", b"\r\n\r\n")

    def break_off(self) -> None:
        """The provider fell silent or cut the stream: an event without its blank line does not count."""
        self._buffer.take_rest()

    def tail(self) -> bytes:
        """What ends the stream, to be sent once the call is settled."""
        return b"".join(self._kept)

    @property
    def ending(self) -> bool:
        """See Meter: no event says that it is the last one."""
        return False

    @property
    def finished(self) -> bool:
        """Whether the answer is whole, however the connection ends now."""
        over = self._blocked or len(self._over) >= self._choices
        return self.error is None and self.broken is None and over

    @property
    def complete(self) -> bool:
        """Whether a provider that closes now has ended the stream by itself."""
        return self.finished

    def partial_usage(self, delivered: int) -> Any:
        """See Meter: the prompt's usage came with the first event."""
        if self.usage is None or not delivered:
            return None
        prompt = {name: value for name, value in self.usage.items() if name not in _OF_THE_ANSWER}
        return {**prompt, "candidatesTokenCount": delivered, "estimated": True}

    def is_answer(self, value: Any) -> bool:
        """See Meter."""
        return isinstance(value, dict) and ("candidates" in value or is_blocked(value))

    def _read(self, event: bytes) -> int:
        if self.error is not None:
            return DROP  # customers' SDKs stop at an error
        payload = sse.data_of(event)
        if not payload:
            return self._other_event(event, None)
        value = loads(payload)
        if value is NOT_JSON:
            return self._not_json(payload)
        self.events += 1
        if not isinstance(value, dict):
            return self._other_event(event, payload)
        if value.get("error"):
            return self._read_error(value["error"], event, payload)
        if self._model is not None:
            renamed = replace_string(payload, MODEL_FIELD, self._model)
            if renamed != payload:
                self._altered = sse.with_data(event, renamed)
        return self._read_chunk(value)

    def _read_chunk(self, value: dict[str, Any]) -> int:
        generated = self._count(list_of(value.get("candidates")))
        self._blocked = self._blocked or is_blocked(value)
        usage = usage_of(value)
        if usage is not None:
            # Figures are totals so far: they are not added up.
            self.usage = {**(self.usage or {}), **usage}
            self.usage_is_last = True
        if self.finished:
            self._keeping = True
            return END if generated else KEEP
        if generated:
            self._keeping = False
        return KEEP if self._keeping else PASS

    def _count(self, candidates: list[Any]) -> bool:
        """Count what was generated and which candidates are over; whether anything was generated."""
        texts: list[str] = []
        for candidate in candidates:
            if not isinstance(candidate, dict):
                continue
            before, index = len(texts), number(candidate.get("index"))
            collect_texts(parts_of(candidate), texts)
            if candidate.get("finishReason"):
                self._over.add(index)
            elif len(texts) > before:
                self._over.discard(index)
        self._add(texts)
        return bool(texts)

    def _read_error(self, error: Any, event: bytes, payload: bytes) -> int:
        if self.finished:
            return DROP  # what is complete is not undone
        self.error = error
        self._keeping = False
        self._clean(event, payload)
        return PASS
