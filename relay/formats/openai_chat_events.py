"""Answers and streams in OpenAI's chat format from and to neutral ones.

Protocol: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
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
    Untranslatable,
    Usage,
    with_thoughts_signed,
)
from relay.formats.format import Shown
from relay.formats.meters import as_openai, meters_of, reasoning_of
from relay.formats.openai_chat_answer import USAGE_FORMAT, usage_of
from relay.formats.openai_chat_conversation import (
    google_signature,
    read_calls,
    read_reasoning,
    write_reasoning,
)
from relay.formats.openai_chat_stream import DONE
from relay.formats.reading import (
    Arguments,
    CallNames,
    Object,
    answer_name,
    arguments_given,
    encoded,
    list_of,
    number,
    object_of,
    string,
)
from relay.formats.refusal import in_openais_shape

PING = b": ping\n\n"
# OpenAI's reasons, and what compatible providers say in their place: Mistral, Z.ai, xAI, gateways to others.
_STOPS: dict[str, Stop] = {
    "stop": "end",
    **dict.fromkeys(("length", "max_tokens", "model_length"), "length"),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), "tool"),
    **dict.fromkeys(("content_filter", "refusal", "safety", "sensitive"), "refusal"),
    "model_context_window_exceeded": "context",
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
        parts = _read_message(message, CallNames(answer_name(value.get("id"), value)))
    except Untranslatable as problem:
        raise BadAnswer(f"the answer cannot be translated: {problem}") from None
    return Answer(
        id=string(value.get("id")),
        model=string(value.get("model")),
        parts=parts,
        stop=_stop(choice.get("finish_reason"), {type(part) for part in parts}),
        meters=meters_of(USAGE_FORMAT, usage_of(value)),
        reasoning_tokens=reasoning_of(usage_of(value)),
    )


def _read_message(message: Object, names: CallNames) -> list[Part]:
    _check_images(message)
    parts: list[Part] = []
    thoughts, texts = _texts(message.get("content"))
    if thoughts:
        parts.append(Reasoning(thoughts))
    if texts:
        parts.append(Text(texts))
    if message.get("refusal"):
        parts.append(Refusal(string(message.get("refusal"))))
    parts += _read_calls(message, names)
    for at, thought in read_reasoning(message):
        parts.insert(at, thought)
    return parts


def _check_images(message: Object) -> None:
    """OpenRouter's field for images that a model made: no other format has them in answers."""
    if message.get("images"):
        raise BadAnswer("images of an answer cannot be translated")


def _read_calls(message: Object, names: CallNames) -> list[ToolCall]:
    """The calls of a whole answer, each with a name of its own."""
    calls = [call for call in list_of(message.get("tool_calls")) if isinstance(call, dict)]
    named = [call | {"id": names.name(string(call.get("id")))} for call in calls]
    return read_calls(named, "tool_calls")


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


def _stop(reason: Any, kinds: Set[type]) -> Stop:
    """Some providers end with "stop" though tools are to be called, and all where the model refused.
    ``kinds``: of what was said."""
    stop = _STOPS.get(str(reason), "end")
    if stop != "end":
        return stop
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


def _more_arguments(index: int, arguments: str) -> Object:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


def _extra(signature: str | None) -> Object:
    """Where Google's own compatible API has the signature of a call."""
    if signature is None:
        return {}
    return {"extra_content": {"google": {"thought_signature": signature}}}


class Decoder:
    """See Decoder of ``relay.formats.format``."""

    def __init__(self) -> None:
        self._begun = False
        self._names = CallNames()
        # The call that each index of the provider means now.
        self._calls: dict[int, _Call] = {}
        self._waiting: list[_Call] = []
        self._count = 0
        # The kinds that tell how the answer ended.
        self._seen: set[type] = set()

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
        # Azure's first chunk tells of its filters alone, and has no id.
        if not self._begun and (chunk.get("id") or chunk.get("choices")):
            self._begun = True
            self._names = CallNames(answer_name(chunk.get("id"), chunk))
            yield Begin(string(chunk.get("id")), string(chunk.get("model")))
        for choice in list_of(chunk.get("choices")):
            if isinstance(choice, dict) and not choice.get("index"):
                yield from self._choice(choice)
        usage = usage_of(chunk)
        meters = meters_of(USAGE_FORMAT, usage)
        if meters is not None:
            yield Usage(meters, reasoning_of(usage))

    def _choice(self, choice: Object) -> Iterator[Event]:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            _check_images(delta)
            yield from self._reasoning(delta)
            thoughts, texts = _texts(delta.get("content"))
            if thoughts:
                yield ReasoningDelta(thoughts)
            if texts:
                yield TextDelta(texts)
            if delta.get("refusal"):
                self._seen.add(RefusalDelta)
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
        index, given = number(call.get("index")), string(call.get("id"))
        function = object_of(call.get("function"))
        name = string(function.get("name"))
        known = self._calls.get(index)
        if known is None or known.is_over(given, name):
            yield from self._begin()
            known = self._calls[index] = _Call(self._count)
            self._waiting.append(known)
            self._count += 1
        known.id = known.id or given
        if name != known.name:  # some repeat it
            known.name += name
        known.signature = known.signature or google_signature(call)
        if function.get("arguments") == {}:
            known.empty = True
        elif arguments := arguments_given(function.get("arguments")):
            yield from self._begin()
            known.said.add(arguments)
            yield ToolDelta(known.number, arguments)

    def _begin(self) -> Iterator[Event]:
        """What was told of calls before their arguments: some providers tell a name later than an id."""
        for call in self._waiting:
            self._seen.add(ToolBegin)
            name = self._names.name(call.id)
            yield ToolBegin(call.number, name, call.name, call.signature)
        self._waiting.clear()


@dataclass(slots=True)
class _Call:
    """A call whose arguments are still to come. ``said``: those that came; ``empty``: an object without any
    did, which others may follow as text."""

    number: int
    id: str = ""
    name: str = ""
    signature: str | None = None
    said: Arguments = field(default_factory=Arguments)
    empty: bool = False

    def is_over(self, given: str, name: str) -> bool:
        """Whether a piece with this id and name begins another call at the same index.

        Some providers number all calls alike, with an id each or with none. Others (older vLLM) give each
        piece of one call an id of its own, or repeat id and name: only what has another id, or none, and a
        name begins a call, and only once the one before it is whole.
        """
        if not name or (given and given == self.id):
            return False
        if not self.said:
            return self.empty or bool(given and self.id)
        return self.said.whole


class Encoder:
    """See Encoder of ``relay.formats.format``."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._id = "chatcmpl-relay"
        self._role_sent = False
        self._usage: Usage | None = None
        self._thoughts = 0
        self._silent: set[int] = set()

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
            return self._whole_calls() + self._chunk({}, _REASONS[event.stop])
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
            self._silent.add(event.index)
            return {"tool_calls": [call | _extra(event.signature)]}
        if isinstance(event, ToolDelta) and event.arguments:
            self._silent.discard(event.index)
            return _more_arguments(event.index, event.arguments)
        return {}

    def _whole_calls(self) -> bytes:
        """Arguments for calls that have none: clients read them as JSON."""
        written = b"".join(self._chunk(_more_arguments(index, "{}")) for index in sorted(self._silent))
        self._silent.clear()
        return written

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
