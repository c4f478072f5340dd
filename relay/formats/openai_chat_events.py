"""Answers and streams in OpenAI's chat format from and to neutral ones.

Protocol: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
    Untranslatable,
    Usage,
    with_thoughts_signed,
)
from relay.formats.format import Shown
from relay.formats.meters import as_openai, meters_of, reasoning_of
from relay.formats.openai_chat_answer import USAGE_FORMAT
from relay.formats.openai_chat_conversation import (
    google_signature,
    read_calls,
    read_reasoning,
    write_reasoning,
)
from relay.formats.openai_chat_stream import DONE
from relay.formats.reading import Object, encoded, list_of, number, object_of, string
from relay.formats.refusal import in_openais_shape

PING = b": ping\n\n"
_STOPS: dict[str, Stop] = {
    "stop": "end",
    "length": "length",
    "tool_calls": "tool",
    "function_call": "tool",
    "content_filter": "refusal",
}
_REASONS: dict[Stop, str] = {
    "end": "stop",
    "length": "length",
    "tool": "tool_calls",
    "stop_sequence": "stop",
    "refusal": "content_filter",
    "pause": "stop",
    "context": "length",
}


def read_answer(body: bytes) -> Answer:
    """See Format."""
    value = loads(body)
    choices = value.get("choices") if isinstance(value, dict) else None
    choice: Any = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise BadAnswer("the answer has no choice with a message")
    try:
        parts = _read_message(message)
    except Untranslatable as problem:
        raise BadAnswer(f"the answer cannot be translated: {problem}") from None
    return Answer(
        id=string(value.get("id")),
        model=string(value.get("model")),
        parts=parts,
        stop=_stop(choice.get("finish_reason"), parts),
        meters=meters_of(USAGE_FORMAT, value.get("usage")),
        reasoning_tokens=reasoning_of(value.get("usage")),
    )


def _read_message(message: Object) -> list[Part]:
    parts: list[Part] = []
    thoughts, texts = _texts(message.get("content"))
    if thoughts:
        parts.append(Reasoning(thoughts))
    if texts:
        parts.append(Text(texts))
    if message.get("refusal"):
        parts.append(Refusal(string(message.get("refusal"))))
    parts += read_calls(message.get("tool_calls"), "tool_calls")
    for at, thought in read_reasoning(message):
        parts.insert(at, thought)
    return parts


def _texts(content: Any) -> tuple[str, str]:
    """(thoughts, text) of a content: a text, or Mistral's list of parts."""
    if isinstance(content, str):
        return "", content
    thoughts = texts = ""
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and part.get("type") == "thinking":
            inner = part.get("thinking")
            thoughts += inner if isinstance(inner, str) else _texts(inner)[1]
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts += part["text"]
    return thoughts, texts


def _stop(reason: Any, parts: Iterable[object]) -> Stop:
    """Some providers end with "stop" though tools are to be called, and all where the model refused."""
    stop = _STOPS.get(str(reason), "end")
    if stop != "end":
        return stop
    kinds = {type(part) for part in parts}
    if ToolCall in kinds or ToolBegin in kinds:
        return "tool"
    return "refusal" if Refusal in kinds or RefusalDelta in kinds else stop


def write_answer(answer: Answer, shown: Shown) -> bytes:
    """See Format."""
    parts = with_thoughts_signed(answer.parts, (Text,))
    texts = [part.text for part in parts if isinstance(part, Text)]
    refusals = [part.text for part in parts if isinstance(part, Refusal)]
    calls = [part for part in parts if isinstance(part, ToolCall)]
    message: Object = {"role": "assistant", "content": "".join(texts) if texts else None}
    message["refusal"] = "".join(refusals) if refusals else None
    thoughts = [(at, part) for at, part in enumerate(parts) if isinstance(part, Reasoning)]
    if thoughts:
        message |= write_reasoning(thoughts)
    if calls:
        message["tool_calls"] = [_write_call(call) for call in calls]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _REASONS[answer.stop]}
    body: Object = {
        "id": answer.id or "chatcmpl-relay",
        "object": "chat.completion",
        "created": shown.created,
        "model": shown.model,
        "choices": [choice],
    }
    if answer.meters is not None:
        body["usage"] = as_openai(answer.meters, answer.reasoning_tokens)
    return encoded(body)


def _write_call(call: ToolCall) -> Object:
    made: Object = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    return made | _extra(call.signature)


def _extra(signature: str | None) -> Object:
    """Where Google's own compatible API has the signature of a call."""
    if signature is None:
        return {}
    return {"extra_content": {"google": {"thought_signature": signature}}}


class Decoder:
    """See Decoder of ``relay.formats.format``."""

    def __init__(self) -> None:
        self._begun = False
        # The call that each index of the provider means now.
        self._calls: dict[int, _Call] = {}
        self._waiting: list[_Call] = []
        self._count = 0
        # One of each kind that tells how the answer ended.
        self._seen: list[Event] = []

    def feed(self, events: bytes) -> Iterator[Event]:
        """Neutral events of whole server-sent events; raises BadAnswer."""
        for payload in sse.payloads(events, comments=True):
            if payload is None:
                yield Ping()
                continue
            chunk = loads(payload)
            if isinstance(chunk, dict):
                yield from self._read(chunk)
            else:  # [DONE]
                yield from self._begin()

    def _read(self, chunk: Object) -> Iterator[Event]:
        if chunk.get("error"):
            yield Failed(chunk["error"])
            return
        if not self._begun:
            self._begun = True
            yield Begin(string(chunk.get("id")), string(chunk.get("model")))
        for choice in list_of(chunk.get("choices")):
            if isinstance(choice, dict) and not choice.get("index"):
                yield from self._choice(choice)
        meters = meters_of(USAGE_FORMAT, chunk.get("usage"))
        if meters is not None:
            yield Usage(meters, reasoning_of(chunk["usage"]))

    def _choice(self, choice: Object) -> Iterator[Event]:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            yield from self._reasoning(delta)
            thoughts, texts = _texts(delta.get("content"))
            if thoughts:
                yield ReasoningDelta(thoughts)
            if texts:
                yield TextDelta(texts)
            if delta.get("refusal"):
                self._seen.append(RefusalDelta(""))
                yield RefusalDelta(string(delta.get("refusal")))
            for call in list_of(delta.get("tool_calls")):
                if isinstance(call, dict):
                    yield from self._call(call)
        if choice.get("finish_reason"):
            yield from self._begin()
            yield Stopped(_stop(choice["finish_reason"], self._seen))

    def _reasoning(self, delta: Object) -> Iterator[Event]:
        details = delta.get("reasoning_details")
        if isinstance(details, list) and details:
            for detail in details:
                if isinstance(detail, dict):
                    thought = string(detail.get("text") or detail.get("summary"))
                    yield ReasoningDelta(
                        thought, string(detail.get("signature")) or None, string(detail.get("data")) or None
                    )
            return
        plain = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(plain, str) and plain:
            yield ReasoningDelta(plain)

    def _call(self, call: Object) -> Iterator[Event]:
        """A new id at an index that is known is a new call: some providers number all of them 0."""
        index, given = number(call.get("index")), string(call.get("id"))
        function = object_of(call.get("function"))
        known = self._calls.get(index)
        if known is None or (given and known.id and given != known.id):
            yield from self._begin()
            known = self._calls[index] = _Call(self._count)
            self._waiting.append(known)
            self._count += 1
        known.id = known.id or given
        known.name += string(function.get("name"))
        known.signature = known.signature or google_signature(call)
        arguments = string(function.get("arguments"))
        if arguments:
            yield from self._begin()
            yield ToolDelta(known.number, arguments)

    def _begin(self) -> Iterator[Event]:
        """What was told of calls before their arguments: some providers tell a name later than an id."""
        for call in self._waiting:
            self._seen.append(ToolBegin(0, "", ""))
            yield ToolBegin(call.number, call.id or f"call_{call.number}", call.name, call.signature)
        self._waiting.clear()


@dataclass(slots=True)
class _Call:
    """A call whose arguments are still to come."""

    number: int
    id: str = ""
    name: str = ""
    signature: str | None = None


class Encoder:
    """See Encoder of ``relay.formats.format``."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._id = "chatcmpl-relay"
        self._role_sent = False
        self._usage: Usage | None = None
        self._thoughts = 0

    def write(self, event: Event) -> bytes:
        """Events for the customer, or nothing yet."""
        if isinstance(event, Begin):
            self._id = event.id or self._id
            return b""
        if isinstance(event, Ping):
            return PING
        if isinstance(event, Usage):
            self._usage = event
            return b""
        if isinstance(event, Failed):
            return f"data: {json.dumps({'error': in_openais_shape(event.error)})}\n\n".encode()
        if isinstance(event, Stopped):
            return self._chunk({}, _REASONS[event.stop])
        delta = self._delta(event)
        return self._chunk(delta) if delta else b""

    def _delta(self, event: Event) -> Object:
        if isinstance(event, TextDelta):
            signed = {} if event.signature is None else self._reasoning(ReasoningDelta("", event.signature))
            return ({"content": event.text} if event.text else {}) | signed
        if isinstance(event, RefusalDelta):
            return {"refusal": event.text} if event.text else {}
        if isinstance(event, ReasoningDelta):
            return self._reasoning(event)
        if isinstance(event, ToolBegin):
            call: Object = {"index": event.index, "id": event.id, "type": "function"}
            call["function"] = {"name": event.name, "arguments": ""}
            return {"tool_calls": [call | _extra(event.signature)]}
        if isinstance(event, ToolDelta):
            return {"tool_calls": [{"index": event.index, "function": {"arguments": event.arguments}}]}
        return {}

    def _reasoning(self, event: ReasoningDelta) -> Object:
        if event.hidden is not None:
            detail: Object = {"type": "reasoning.encrypted", "data": event.hidden}
        else:
            detail = {"type": "reasoning.text", "text": event.text}
            if event.signature is not None:
                detail["signature"] = event.signature
        delta: Object = {"reasoning_details": [detail | {"index": self._thoughts}]}
        if event.signature is not None or event.hidden is not None:
            self._thoughts += 1
        return ({"reasoning_content": event.text} if event.text else {}) | delta

    def _chunk(self, delta: Object, reason: str | None = None) -> bytes:
        if not self._role_sent:
            self._role_sent = True
            delta = {"role": "assistant"} | delta
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._event({"choices": [choice]} | ({"usage": None} if self._shown.include_usage else {}))

    def _event(self, data: Object) -> bytes:
        head = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._shown.created,
            "model": self._shown.model,
        }
        return b"data: " + encoded(head | data) + b"\n\n"

    def finish(self) -> bytes:
        """What ends a stream that is complete."""
        usage = b""
        if self._shown.include_usage and self._usage is not None:
            told = as_openai(self._usage.meters, self._usage.reasoning_tokens)
            usage = self._event({"choices": [], "usage": told})
        return usage + DONE
