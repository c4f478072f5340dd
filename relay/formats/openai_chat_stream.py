"""Reads an OpenAI event stream along while its bytes pass through.

Events are server-sent events that hold a ``chat.completion.chunk`` each; the last one is ``[DONE]``. What is
generated passes as it is made. Two parts are kept back, and both are bounded:

- the begin, until something was generated: so long another provider may still be asked;
- the end (from the chunk with which the last choice finishes, a chunk of usage alone, or ``[DONE]``), until
  the call is paid for. Usage does not end a stream: what is generated afterwards releases what was kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from relay.formats import sse
from relay.formats.answer import NOT_JSON, BadAnswer, loads
from relay.formats.openai_chat_answer import Choice, Completion, collect_texts, decode
from relay.formats.refusal import in_openais_shape
from relay.formats.stream_meter import DROP, END, KEEP, PASS, EventMeter
from relay.formats.top_level import replace_string

MAX_EVENT_BYTES = 16 << 20
DONE = b"data: [DONE]\n\n"


class StreamMeter(EventMeter):
    """Feed it blocks; it returns what may be sent on, and knows what was generated.

    ``error``: the value of an error event, None before one; it passes in OpenAI's shape. ``broken``: why what
    came is no event stream of JSON; nothing passes after it.

    ``keep_usage_chunk``: the customer asked for the chunk of usage alone, else it is left out. ``choices``:
    how many were asked for. ``model``: the name that chunks get in place of the provider's, if any.
    ``redact`` cleans the JSON or text of whatever is not an ordinary chunk.
    """

    def __init__(
        self,
        *,
        keep_usage_chunk: bool,
        choices: int = 1,
        max_event_bytes: int = MAX_EVENT_BYTES,
        model: str | None = None,
        redact: Callable[[bytes], bytes] = lambda text: text,
    ) -> None:
        super().__init__(max_event_bytes, redact, model)
        self._keep_usage_chunk = keep_usage_chunk
        self._choices = choices
        self._seen: set[int] = set()
        self._over: set[int] = set()
        self._usage_ends = False
        self.done = False

    def end(self) -> None:
        """The provider closed the stream: an event whose blank line is missing counts, unless it was cut, and
        gets one: clients pass over what has none."""
        event, payload = sse.unended(self._buffer.take_rest())
        if not payload:
            return
        if not _is_done(payload) and loads(payload) is NOT_JSON:
            if _is_done(payload.rpartition(b"\n")[2]):  # of several events without blank lines between
                self._kept.append(DONE)
                self.done = True
            return
        self._kept[:0] = self._passed(self._read(event), event + b"\n\n", b"\n\n")

    def break_off(self) -> None:
        """The provider fell silent or cut the stream: without its blank line only [DONE] counts."""
        event, payload = sse.unended(self._buffer.take_rest())
        if _is_bare_done(payload):
            self._kept[:0] = self._passed(self._read(event), DONE, b"\n\n")

    def tail(self) -> bytes:
        """What ends the stream, to be sent once the call is settled; with [DONE], which some leave out."""
        tail = b"".join(self._kept)
        return tail + DONE if self.complete and not self.done else tail

    @property
    def ending(self) -> bool:
        """Whether [DONE] has come, be it without its blank line."""
        rest = self._buffer.short_rest
        return self.done or (rest != b"" and _is_bare_done(sse.unended(rest)[1]))

    @property
    def finished(self) -> bool:
        """Whether everything that was asked for is there, however the connection ends now."""
        return self.error is None and self.broken is None and (self.done or len(self._over) >= self._choices)

    @property
    def complete(self) -> bool:
        """Whether a provider that closes now has ended the stream by itself."""
        if self.error is not None or self.broken is not None:
            return False
        return self.finished or self._usage_ends or (bool(self._over) and self._over >= self._seen)

    def _read(self, event: bytes) -> int:
        if self.error is not None:
            return DROP  # the customer's SDK stops at an error: what follows is neither heard nor billed
        payload = sse.data_of(event)
        if not payload:
            # An event without data is none by the standard, but OpenAI's SDK chokes on it.
            return self._other_event(event, None) if sse.is_comment(event) else DROP
        if _is_done(payload):
            return self._read_done()
        try:
            chunk = decode(payload)
        except BadAnswer as error:
            return self._read_broken(error)
        self.events += 1
        if self.done:
            self._read_usage(chunk)
            return DROP
        if len(payload) + 6 != len(event) and not sse.is_utf8(event):
            self._altered = sse.with_data(event, payload)
        if chunk is None:
            return self._other_event(event, payload)
        if self._model is not None:
            payload = self._rename(event, payload, self._model)
        return self._read_error(chunk, event) if chunk.error else self._read_chunk(chunk, event, payload)

    def _read_broken(self, error: BadAnswer) -> int:
        if not self.finished:
            self.broken = str(error)
        return DROP

    def _rename(self, event: bytes, payload: bytes, model: str) -> bytes:
        renamed = replace_string(payload, "model", model)
        if renamed != payload:
            self._altered = sse.with_data(event, renamed)
        return renamed

    def _read_done(self) -> int:
        self.events += 1
        if self.done:
            return DROP
        self.done = self._keeping = True
        # What stands beside it, clients do not read and no redactor has seen.
        self._altered = DONE.rstrip()
        return KEEP

    def _read_chunk(self, chunk: Completion, event: bytes, payload: bytes) -> int:
        generated = self._count(chunk.choices) if chunk.choices else False
        if chunk.usage:
            self._read_usage(chunk)
        if generated:
            self._usage_ends = False
            self._keeping = bool(self._over) and self.finished
            return END if self._keeping else PASS
        if not chunk.choices:
            if chunk.usage:
                return self._usage_alone()
            return self._other_event(event, payload)
        if self._over and self.finished:
            self._keeping = True
        return KEEP if self._keeping else PASS

    def _usage_alone(self) -> int:
        """A chunk of usage alone: the end, as far as one can tell, once something was generated."""
        if self.generating:
            self._usage_ends = self._keeping = True
        if not self._keep_usage_chunk:
            return DROP
        return KEEP if self._keeping else PASS

    def _read_usage(self, chunk: Completion | None) -> None:
        if chunk is not None and chunk.usage:
            self.usage = chunk.usage
            self.usage_is_last = True

    def _read_error(self, chunk: Completion, event: bytes) -> int:
        if self.finished:
            return DROP  # what is complete is not undone
        self._read_usage(chunk)
        self.error = chunk.error
        self._keeping = False
        shaped = json.dumps({"error": in_openais_shape(chunk.error)}).encode()
        self._altered = sse.with_data(event, self._redact(shaped))
        return PASS

    def _other_event(self, event: bytes, payload: bytes | None) -> int:
        """A comment, or data that is no chunk."""
        if self.done:
            return DROP
        self._clean(event, payload)
        return KEEP if self._keeping else PASS

    def _count(self, choices: list[Choice]) -> bool:
        """Count what was generated and which choices are over; whether anything was generated."""
        texts: list[str] = []
        for choice in choices:
            before = len(texts)
            if choice.delta is not None:
                collect_texts(choice.delta, texts)
            elif choice.text and type(choice.text) is str:
                texts.append(choice.text)
            self._seen.add(choice.index)
            if choice.finish_reason:
                self._over.add(choice.index)
            elif len(texts) > before and self._over:
                self._over.discard(choice.index)
        self._add(texts)
        return bool(texts)

    def partial_usage(self, delivered: int) -> Any:
        """See Meter: chunks tell usage at the end only."""
        return None

    def is_answer(self, value: Any) -> bool:
        """See Meter."""
        return isinstance(value, dict) and "choices" in value


def _is_bare_done(payload: bytes | None) -> bool:
    return payload is not None and payload.strip() == b"[DONE]"


def _is_done(payload: bytes) -> bool:
    return payload.lstrip().startswith(b"[DONE]")
