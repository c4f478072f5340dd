"""Answers and streams in Anthropic's messages format from and to neutral ones.

Protocol: https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from relay.formats import sse
from relay.formats.answer import BadAnswer
from relay.formats.anthropic_answer import USAGE_FORMAT, Usage, cumulated, read_message
from relay.formats.anthropic_stream import PING, STOP, StreamEvent, decode
from relay.formats.conversation import (
    Answer,
    Begin,
    Event,
    Failed,
    Part,
    Ping,
    Reasoning,
    ReasoningDelta,
    Refusal,
    RefusalDelta,
    Stop,
    Stopped,
    Text,
    TextDelta,
    ToolBegin,
    ToolCall,
    ToolDelta,
    with_thoughts_signed,
)
from relay.formats.conversation import Usage as Told
from relay.formats.format import Shown
from relay.formats.meters import as_anthropic, meters_of, reasoning_of
from relay.formats.reading import (
    Arguments,
    Object,
    arguments_given,
    arguments_object,
    encoded,
    number,
    object_of,
    string,
)
from relay.formats.refusal import said_of

_STOPS: dict[str, Stop] = {
    "end_turn": "end",
    "max_tokens": "length",
    "stop_sequence": "stop_sequence",
    "tool_use": "tool",
    "pause_turn": "pause",
    "refusal": "refusal",
    "model_context_window_exceeded": "context",
}
_REASONS = {stop: reason for reason, stop in _STOPS.items()}


def read_answer(body: bytes) -> Answer:
    """See Format."""
    message = read_message(body)
    value = message.value
    parts = [_read_part(block) for block in message.content]
    stop = value.get("stop_reason")
    return Answer(
        id=string(value.get("id")),
        model=string(value.get("model")),
        parts=parts,
        stop=_STOPS.get(str(stop), "end"),
        stop_text=string(value.get("stop_sequence")) or None,
        meters=meters_of(USAGE_FORMAT, message.usage),
        reasoning_tokens=reasoning_of(message.usage),
    )


def _read_part(block: Any) -> Part:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text":
        return Text(string(block.get("text")))
    if kind == "thinking":
        return Reasoning(string(block.get("thinking")), string(block.get("signature")) or None)
    if kind == "redacted_thinking":
        return Reasoning(hidden=string(block.get("data")))
    if kind == "tool_use":
        arguments = arguments_given(block.get("input")) or "{}"
        return ToolCall(string(block.get("id")), string(block.get("name")), arguments)
    raise BadAnswer(f"a content block of type {str(kind)[:40]!r} cannot be translated")


def write_answer(answer: Answer, shown: Shown) -> bytes:
    """See Format."""
    message = {
        "id": answer.id or "msg_relay",
        "type": "message",
        "role": "assistant",
        "model": shown.model,
        "content": [_write_part(part) for part in with_thoughts_signed(answer.parts, (Text, ToolCall))],
        "stop_reason": _REASONS[answer.stop],
        "stop_sequence": answer.stop_text,
        "usage": as_anthropic(answer.meters or {}, answer.reasoning_tokens),
    }
    return encoded(message)


def _write_part(part: Part) -> Object:
    if isinstance(part, Text | Refusal):
        return {"type": "text", "text": part.text}
    if isinstance(part, Reasoning):
        if part.hidden is not None:
            return {"type": "redacted_thinking", "data": part.hidden}
        return {"type": "thinking", "thinking": part.text, "signature": part.signature or ""}
    if isinstance(part, ToolCall):
        return {
            "type": "tool_use",
            "id": part.id,
            "name": part.name,
            "input": arguments_object(part.arguments),
        }
    raise BadAnswer(f"an answer cannot hold a {type(part).__name__}")


class Decoder:
    """See Decoder of ``relay.formats.format``."""

    def __init__(self) -> None:
        self._usage: Usage | None = None
        self._calls: dict[Any, int] = {}
        self._input: dict[Any, Any] = {}

    def feed(self, events: bytes) -> Iterator[Event]:
        """Neutral events of whole server-sent events; raises BadAnswer."""
        for payload in sse.payloads(events):
            event = decode(payload) if payload else None
            if event is not None:
                yield from self._read(event)

    def _read(self, event: StreamEvent) -> Iterator[Event]:
        kind = event.type
        if kind == "content_block_delta":
            yield from self._delta(event)
        elif kind == "content_block_start":
            yield from self._start(event)
        elif kind == "content_block_stop":
            yield from self._end(event)
        elif kind == "message_start":
            message = object_of(event.message)
            self._usage = cumulated(None, message.get("usage"))
            known = meters_of(USAGE_FORMAT, self._usage)
            yield Begin(string(message.get("id")), string(message.get("model")), known)
        elif kind == "message_delta":
            yield from self._stopped(event)
        elif kind == "ping":
            yield Ping()
        elif kind == "error" or event.error:
            yield Failed(event.error)

    def _start(self, event: StreamEvent) -> Iterator[Event]:
        block = object_of(event.content_block)
        kind = block.get("type")
        if kind == "tool_use":
            index = number(event.index)
            self._calls[index] = call = len(self._calls)
            yield ToolBegin(call, string(block.get("id")), string(block.get("name")))
            self._input[index] = block.get("input")
        elif kind == "redacted_thinking":
            yield ReasoningDelta(hidden=string(block.get("data")))
        elif kind == "thinking":
            if block.get("thinking") or block.get("signature"):
                yield ReasoningDelta(string(block.get("thinking")), string(block.get("signature")) or None)
        elif kind == "text":
            if block.get("text"):
                yield TextDelta(string(block.get("text")))
        else:
            raise BadAnswer(f"a content block of type {str(kind)[:40]!r} cannot be translated")

    def _delta(self, event: StreamEvent) -> Iterator[Event]:
        delta = object_of(event.delta)
        kind = delta.get("type")
        if kind == "text_delta":
            yield TextDelta(string(delta.get("text")))
        elif kind == "input_json_delta" and delta.get("partial_json"):
            self._input.pop(number(event.index), None)
            yield ToolDelta(self._calls.get(number(event.index), 0), string(delta.get("partial_json")))
        elif kind == "thinking_delta":
            yield ReasoningDelta(string(delta.get("thinking")))
        elif kind == "signature_delta":
            yield ReasoningDelta(signature=string(delta.get("signature")) or None)

    def _end(self, event: StreamEvent) -> Iterator[Event]:
        """Some providers give a call's whole input with its begin, and no delta."""
        given = self._input.pop(number(event.index), None)
        if given:
            yield ToolDelta(self._calls[number(event.index)], arguments_given(given))

    def _stopped(self, event: StreamEvent) -> Iterator[Event]:
        self._usage = cumulated(self._usage, event.usage)
        meters = meters_of(USAGE_FORMAT, self._usage)
        if meters is not None:
            yield Told(meters, reasoning_of(self._usage))
        delta = object_of(event.delta)
        reason = delta.get("stop_reason")
        if reason:
            yield Stopped(_STOPS.get(str(reason), "end"), string(delta.get("stop_sequence")) or None)


class Encoder:
    """See Encoder of ``relay.formats.format``. One block is open at a time, except calls whose arguments
    alternate: these are closed together."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._begun = False
        self._blocks = 0
        self._open: str | None = None
        self._signed = False
        self._calls: dict[int, tuple[int, Arguments]] = {}
        self._whole: set[int] = set()
        self._told = Told({})
        self._stopped = Stopped("end")

    def write(self, event: Event) -> bytes:
        """Events for the customer, or nothing yet."""
        if isinstance(event, Begin):
            return self._begin(event)
        if isinstance(event, Ping):
            return PING
        if isinstance(event, Told):
            self._told = event
            return b""
        if isinstance(event, Stopped):
            self._stopped = event
            return b""
        if isinstance(event, Failed):
            said = said_of(event.error)
            return error_event_of(said.kind or "api_error", said.message or "The model's provider failed.")
        begun = b"" if self._begun else self._begin(Begin("", self._shown.model))
        return begun + self._content(event)

    def _begin(self, event: Begin) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        message: Object = {
            "id": event.id or "msg_relay",
            "type": "message",
            "role": "assistant",
            "model": self._shown.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": as_anthropic(event.meters or {}, None),
        }
        return event_of("message_start", {"message": message})

    def _content(self, event: Event) -> bytes:
        if isinstance(event, TextDelta | RefusalDelta):
            delta = {"type": "text_delta", "text": event.text}
            written = self._delta("text", delta) if event.text else b""
            return written + self._signature(event.signature if isinstance(event, TextDelta) else None)
        if isinstance(event, ReasoningDelta):
            return self._reasoning(event)
        if isinstance(event, ToolBegin):
            return self._call(event)
        if isinstance(event, ToolDelta) and event.index in self._calls and event.arguments:
            block, arguments = self._calls[event.index]
            arguments.add(event.arguments)
            (self._whole.add if arguments.whole else self._whole.discard)(event.index)
            delta = {"type": "input_json_delta", "partial_json": event.arguments}
            return event_of("content_block_delta", {"index": block, "delta": delta})
        return b""

    def _reasoning(self, event: ReasoningDelta) -> bytes:
        if event.hidden is not None:
            block = {"type": "redacted_thinking", "data": event.hidden}
            return self._close() + self._start("redacted_thinking", block) + self._close()
        written = b""
        if event.text:
            written = self._close() if self._signed else b""
            written += self._delta("thinking", {"type": "thinking_delta", "thinking": event.text})
        if event.signature:
            signature = {"type": "signature_delta", "signature": event.signature}
            written += self._delta("thinking", signature)
            self._signed = True
        return written

    def _delta(self, kind: str, delta: Object) -> bytes:
        written = b""
        if self._open != kind:
            empty = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            written = self._close() + self._start(kind, empty)
        return written + event_of("content_block_delta", {"index": self._blocks - 1, "delta": delta})

    def _signature(self, signature: str | None) -> bytes:
        """Google's, of a text or a call: this format signs thoughts alone."""
        if signature is None:
            return b""
        return self._reasoning(ReasoningDelta(signature=signature)) + self._close()

    def _call(self, event: ToolBegin) -> bytes:
        written = self._signature(event.signature)
        written += self._close() if self._open != "tool_use" else self._close_whole_calls()
        self._calls[event.index] = self._blocks, Arguments()
        block = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
        return written + self._start("tool_use", block)

    def _start(self, kind: str, block: Object) -> bytes:
        self._open = kind
        self._blocks += 1
        return event_of("content_block_start", {"index": self._blocks - 1, "content_block": block})

    def _close_whole_calls(self) -> bytes:
        """End the calls whose arguments are complete."""
        return b"".join(map(self._stop_call, sorted(self._whole)))

    def _stop_call(self, index: int) -> bytes:
        self._whole.discard(index)
        return event_of("content_block_stop", {"index": self._calls.pop(index)[0]})

    def _close(self) -> bytes:
        kind, self._open, self._signed = self._open, None, False
        if kind is None:
            return b""
        if kind == "tool_use":
            return b"".join(self._stop_call(index) for index in list(self._calls))
        return event_of("content_block_stop", {"index": self._blocks - 1})

    def finish(self) -> bytes:
        """What ends a stream that is complete."""
        begun = b"" if self._begun else self._begin(Begin("", self._shown.model))
        delta = {"stop_reason": _REASONS[self._stopped.stop], "stop_sequence": self._stopped.stop_text}
        usage = as_anthropic(self._told.meters, self._told.reasoning_tokens)
        return begun + self._close() + event_of("message_delta", {"delta": delta, "usage": usage}) + STOP


def event_of(kind: str, data: Object) -> bytes:
    """An event of this type."""
    return f"event: {kind}\ndata: ".encode() + encoded({"type": kind} | data) + b"\n\n"


def error_event_of(kind: str, message: str) -> bytes:
    """An error event with Anthropic's name ``kind``."""
    return event_of("error", {"error": {"type": kind, "message": message}})
