"""Answers and streams in Gemini's format from and to neutral ones.

Protocol: https://ai.google.dev/api/generate-content#generatecontentresponse
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from relay.formats import sse
from relay.formats.answer import BadAnswer, loads
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
    Usage,
)
from relay.formats.format import Shown
from relay.formats.gemini_answer import USAGE_FORMAT, is_blocked, parts_of, read_generated
from relay.formats.gemini_conversation import content_of, thought_part, write_call
from relay.formats.gemini_fields import BESIDE_PARTS
from relay.formats.meters import as_gemini, meters_of, reasoning_of
from relay.formats.reading import (
    Arguments,
    CallNames,
    Object,
    answer_name,
    arguments_given,
    encoded,
    list_of,
    object_of,
    string,
)
from relay.formats.refusal import said_of

# Google's API sends nothing while it thinks. Blank lines are no event, and every client passes over them.
PING = b"\r\n"
_STOPS: dict[str, Stop] = {
    "MAX_TOKENS": "length",
    **dict.fromkeys(("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"), "refusal"),
    **dict.fromkeys(("IMAGE_SAFETY", "IMAGE_RECITATION", "IMAGE_PROHIBITED_CONTENT"), "refusal"),
    **dict.fromkeys(("LANGUAGE", "MODEL_ARMOR"), "refusal"),
}
# Why an answer broke off. No other format has a word for that: told as an end it would pass for an answer.
_FAILED = frozenset(
    {
        *("MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"),
        *("MISSING_THOUGHT_SIGNATURE", "NO_IMAGE", "IMAGE_OTHER", "OTHER"),
    }
)
_REASONS: dict[Stop, str] = {"length": "MAX_TOKENS", "context": "MAX_TOKENS", "refusal": "SAFETY"}
# https://cloud.google.com/apis/design/errors#handling_errors; 402 is none of Google's.
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def status_word(status: int) -> str:
    """Google's word for an HTTP status."""
    return STATUSES.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")


def read_answer(body: bytes) -> Answer:
    """See Format."""
    answer = read_generated(body)
    candidate = object_of(answer.candidates[0]) if answer.candidates else {}
    if not candidate and not answer.blocked:
        raise BadAnswer("the answer has no candidate, and the prompt was not blocked")
    names = CallNames(answer_name(answer.value.get("responseId"), answer.value))
    parts = [made for part in parts_of(candidate) for made in _read_part(part, names)]
    called = any(isinstance(part, ToolCall) for part in parts)
    return Answer(
        id=string(answer.value.get("responseId")),
        model=string(answer.value.get("modelVersion")),
        parts=parts,
        stop="refusal" if answer.blocked else _stop(candidate.get("finishReason"), called),
        meters=meters_of(USAGE_FORMAT, answer.usage),
        reasoning_tokens=reasoning_of(answer.usage),
    )


def _stop(reason: Any, called: bool) -> Stop:
    """Google ends with STOP where tools are to be called, too."""
    if str(reason) in _FAILED:
        raise BadAnswer(f"the answer broke off: {reason}")
    stop = _STOPS.get(str(reason), "end")
    return "tool" if called and stop == "end" else stop


def _read_part(part: Any, names: CallNames) -> Iterator[Part]:
    part = object_of(part)
    signature = string(part.get("thoughtSignature")) or None
    if "functionCall" in part:
        call = object_of(part["functionCall"])
        name = names.name(string(call.get("id")))
        yield ToolCall(name, string(call.get("name")), arguments_given(call.get("args")) or "{}", signature)
    elif "text" in part or signature:
        text = string(part.get("text"))
        if part.get("thought") or not text:
            if text or signature:
                yield Reasoning(text, signature)
        else:
            yield Text(text, signature=signature)
    elif part.keys() - BESIDE_PARTS:
        raise BadAnswer(f"a part with {', '.join(part)[:40]!r} cannot be translated")


def write_answer(answer: Answer, shown: Shown) -> bytes:
    """See Format."""
    parts = [_write_part(part) for part in answer.parts] or [{"text": ""}]
    usage = as_gemini(answer.meters, answer.reasoning_tokens) if answer.meters is not None else None
    return encoded(_envelope(parts, answer.stop, usage, answer.id, shown))


def _envelope(
    parts: list[Object], stop: Stop | None, usage: Object | None, name: str, shown: Shown
) -> Object:
    candidate: Object = {"content": content_of(parts), "index": 0}
    if stop is not None:
        candidate["finishReason"] = _REASONS.get(stop, "STOP")
    body: Object = {"candidates": [candidate]}
    if usage is not None:
        body["usageMetadata"] = usage
    return body | {"modelVersion": shown.model, "responseId": name or "relay"}


def _write_part(part: Part) -> Object:
    if isinstance(part, Text | Refusal):
        signature = part.signature if isinstance(part, Text) else None
        return {"text": part.text} | ({} if signature is None else {"thoughtSignature": signature})
    if isinstance(part, Reasoning):
        return thought_part(part)
    if isinstance(part, ToolCall):
        return write_call(part)
    raise BadAnswer(f"an answer cannot hold a {type(part).__name__}")


class Decoder:
    """See Decoder of ``relay.formats.format``."""

    def __init__(self) -> None:
        self._names: CallNames | None = None
        self._calls = 0

    def feed(self, events: bytes) -> Iterator[Event]:
        """Neutral events of whole server-sent events; raises BadAnswer."""
        for payload in sse.payloads(events, comments=True):
            if payload is None:
                yield Ping()
                continue
            value = loads(payload)
            if isinstance(value, dict):
                yield from self._read(value)

    def _read(self, value: Object) -> Iterator[Event]:
        if value.get("error"):
            yield Failed(value["error"])
            return
        usage = value.get("usageMetadata")
        meters = meters_of(USAGE_FORMAT, usage)
        if self._names is None:
            self._names = CallNames(answer_name(value.get("responseId"), value))
            yield Begin(string(value.get("responseId")), string(value.get("modelVersion")), meters)
        if meters is not None:
            yield Usage(meters, reasoning_of(usage))
        for candidate in list_of(value.get("candidates")):
            if isinstance(candidate, dict) and not candidate.get("index"):
                yield from self._candidate(candidate, self._names)
        if is_blocked(value):
            yield Stopped("refusal")

    def _candidate(self, candidate: Object, names: CallNames) -> Iterator[Event]:
        for part in parts_of(candidate):
            for made in _read_part(part, names):
                yield from self._events(made)
        if candidate.get("finishReason"):
            yield Stopped(_stop(candidate["finishReason"], self._calls > 0))

    def _events(self, part: Part) -> Iterable[Event]:
        if isinstance(part, Text):
            return [TextDelta(part.text, part.signature)]
        if isinstance(part, ToolCall):
            number = self._calls
            self._calls += 1
            return [ToolBegin(number, part.id, part.name, part.signature), ToolDelta(number, part.arguments)]
        if isinstance(part, Reasoning):
            return [ReasoningDelta(part.text, part.signature)]
        return []


@dataclass(slots=True)
class _Call:
    """A call whose arguments are still to come: Google's clients take whole ones alone."""

    id: str
    name: str
    signature: str | None
    arguments: Arguments = field(default_factory=Arguments)

    def part(self) -> Object:
        return write_call(ToolCall(self.id, self.name, self.arguments.text, self.signature))


class Encoder:
    """See Encoder of ``relay.formats.format``."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._name = ""
        self._calls: dict[int, _Call] = {}
        self._usage: Usage | None = None
        self._stopped = Stopped("end")

    def write(self, event: Event) -> bytes:
        """Events for the customer, or nothing yet."""
        if isinstance(event, Begin):
            self._name = event.id
        elif isinstance(event, Ping):
            return PING
        elif isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, Stopped):
            self._stopped = event
        elif isinstance(event, Failed):
            said = said_of(event.error)
            status = said.status or 500
            return error_event_of(status, said.message or "The model's provider failed.")
        elif isinstance(event, ToolDelta):
            if event.index in self._calls:
                self._calls[event.index].arguments.add(event.arguments)
        else:
            return self._content(event)
        return b""

    def _content(self, event: Event) -> bytes:
        parts = self._whole_calls()
        if isinstance(event, ToolBegin):
            self._calls[event.index] = _Call(event.id, event.name, event.signature)
        elif isinstance(event, ReasoningDelta):
            if event.text or event.signature or event.hidden:
                parts += _thoughts(event)
        elif isinstance(event, TextDelta | RefusalDelta):
            signature = event.signature if isinstance(event, TextDelta) else None
            if event.text or signature:
                parts.append(_write_part(Text(event.text, signature=signature)))
        return self._event(parts) if parts else b""

    def _whole_calls(self) -> list[Object]:
        """The first calls, as far as their arguments are complete."""
        whole: list[Object] = []
        while self._calls and self._calls[first := next(iter(self._calls))].arguments.whole:
            whole.append(self._calls.pop(first).part())
        return whole

    def _event(self, parts: list[Object], stop: Stop | None = None) -> bytes:
        usage = None
        if self._usage is not None and stop is not None:
            usage = as_gemini(self._usage.meters, self._usage.reasoning_tokens)
        return event_of(_envelope(parts, stop, usage, self._name, self._shown))

    def finish(self) -> bytes:
        """What ends a stream that is complete."""
        parts = [call.part() for call in self._calls.values()] or [{"text": ""}]
        return self._event(parts, self._stopped.stop)


def _thoughts(event: ReasoningDelta) -> list[Object]:
    """A signature follows the thoughts' pieces in a part of its own."""
    if event.hidden is not None:
        return [thought_part(Reasoning(hidden=event.hidden))]
    parts = [thought_part(Reasoning(event.text))] if event.text else []
    return parts + ([thought_part(Reasoning("", event.signature))] if event.signature else [])


def event_of(data: Object) -> bytes:
    """An event, with the line ends that Google's have."""
    return b"data: " + encoded(data) + b"\r\n\r\n"


def error_event_of(status: int, message: str) -> bytes:
    """An error inside a stream."""
    return event_of({"error": {"code": status, "message": message, "status": status_word(status)}})
