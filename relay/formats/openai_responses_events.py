"""Answers and streams in OpenAI's Responses format from and to neutral ones.

Protocol: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from relay.formats import sse
from relay.formats.answer import BadAnswer
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
from relay.formats.meters import as_responses, meters_of, reasoning_of
from relay.formats.openai_responses_answer import USAGE_FORMAT, read_response
from relay.formats.openai_responses_conversation import read_reasoning
from relay.formats.openai_responses_stream import ENDS, ERRORS, StreamEvent, decode, error_of
from relay.formats.openai_responses_tools import ADDITIONAL_TOOLS, Named, custom_input, declared
from relay.formats.reading import Object, arguments_given, encoded, list_of, object_of, string
from relay.formats.refusal import said_of

PING = b": ping\n\n"
_REASONS: dict[str, Stop] = {"max_output_tokens": "length", "content_filter": "refusal"}


# ---------------------------------------------------------------- reading


def read_answer(body: bytes) -> Answer:
    """See Format."""
    response = read_response(body)
    parts = [part for item in response.output for part in _read_item(item)]
    return Answer(
        id=string(response.value.get("id")),
        model=string(response.value.get("model")),
        parts=parts,
        stop=_stop(response.value, {type(part) for part in parts}),
        meters=meters_of(USAGE_FORMAT, response.usage),
        reasoning_tokens=reasoning_of(response.usage),
    )


def _read_item(item: Any) -> list[Part]:
    item = object_of(item)
    kind = item.get("type")
    if kind == "message":
        return [part for given in list_of(item.get("content")) for part in _read_part(object_of(given))]
    if kind == "function_call":
        name = string(item.get("call_id")) or string(item.get("id"))
        return [ToolCall(name, string(item.get("name")), arguments_given(item.get("arguments")) or "{}")]
    if kind == "reasoning":
        try:
            thought = read_reasoning(item)
        except Untranslatable as problem:
            raise BadAnswer(f"the answer cannot be translated: {problem}") from None
        return [] if thought is None else [thought]
    raise BadAnswer(f"an item of type {str(kind)[:40]!r} cannot be translated")


def _read_part(part: Object) -> list[Part]:
    kind = part.get("type")
    if kind == "refusal":
        return [Refusal(string(part.get("refusal")))]
    if kind in ("output_text", "text"):
        said = string(part.get("text"))
        return [Text(said)] if said else []
    raise BadAnswer(f"a part of type {str(kind)[:40]!r} cannot be translated")


def _stop(response: Object, kinds: set[type]) -> Stop:
    """Why an answer ended that consists of parts of these kinds."""
    reason = object_of(response.get("incomplete_details")).get("reason")
    if response.get("status") == "incomplete" or reason:
        return _REASONS.get(str(reason), "length")
    if ToolCall in kinds:
        return "tool"
    return "refusal" if Refusal in kinds else "end"


class Decoder:
    """See Decoder of ``relay.formats.format``."""

    def __init__(self) -> None:
        self._begun = False
        # What came of the items so far, by their index: a whole item repeats it.
        self._texts: set[int] = set()
        self._calls: dict[int, int] = {}
        self._arguments: set[int] = set()
        self._kinds: set[type] = set()

    def feed(self, events: bytes) -> Iterator[Event]:
        """Neutral events of whole server-sent events; raises BadAnswer."""
        for payload in sse.payloads(events, comments=True):
            if payload is None:
                yield Ping()
                continue
            event = decode(payload)
            if event is not None:
                yield from self._read(event, payload)

    def _read(self, event: StreamEvent, payload: bytes) -> Iterator[Event]:
        kind = event.type
        index = event.output_index if isinstance(event.output_index, int) else 0
        if kind in ERRORS:
            yield Failed(error_of(event, payload))
        elif kind in ENDS:
            yield from self._end(object_of(event.response))
        elif kind == "response.output_item.added":
            yield from self._added(object_of(event.item), index)
        elif kind == "response.output_item.done":
            yield from self._done(object_of(event.item), index)
        elif kind == "response.reasoning_summary_part.added" and index in self._texts:
            yield ReasoningDelta("\n\n")
        elif kind.endswith(".delta") and isinstance(event.delta, str) and event.delta:
            yield from self._delta(kind, event.delta, index)
        elif kind == "keepalive":
            yield Ping()
        elif not self._begun and kind.startswith("response."):
            self._begun = True
            response = object_of(event.response)
            yield Begin(string(response.get("id")), string(response.get("model")))

    def _added(self, item: Object, index: int) -> Iterator[Event]:
        if item.get("type") == "function_call":
            yield from self._call(item, index)
        elif item.get("type") not in ("message", "reasoning"):
            raise BadAnswer(f"an item of type {str(item.get('type'))[:40]!r} cannot be translated")

    def _call(self, item: Object, index: int) -> Iterator[Event]:
        if index not in self._calls:
            self._calls[index] = len(self._calls)
            self._kinds.add(ToolCall)
            name = string(item.get("call_id")) or string(item.get("id"))
            yield ToolBegin(self._calls[index], name, string(item.get("name")))

    def _delta(self, kind: str, delta: str, index: int) -> Iterator[Event]:
        if kind == "response.output_text.delta":
            self._texts.add(index)
            yield TextDelta(delta)
        elif kind == "response.refusal.delta":
            self._texts.add(index)
            self._kinds.add(Refusal)
            yield RefusalDelta(delta)
        elif kind in ("response.reasoning_summary_text.delta", "response.reasoning_text.delta"):
            self._texts.add(index)
            yield ReasoningDelta(delta)
        elif kind == "response.function_call_arguments.delta":
            yield from self._call({}, index)
            self._arguments.add(index)
            yield ToolDelta(self._calls[index], delta)

    def _done(self, item: Object, index: int) -> Iterator[Event]:
        """A whole item: what has not come by deltas, and the signature of thoughts."""
        if item.get("type") == "function_call":
            yield from self._call(item, index)
            if index not in self._arguments and item.get("arguments"):
                yield ToolDelta(self._calls[index], arguments_given(item.get("arguments")))
            self._arguments.add(index)
            return
        if index not in self._texts:
            self._texts.add(index)
            for part in _read_item(item):
                self._kinds.add(type(part))
                yield from _events_of(part, 0)
        elif item.get("type") == "reasoning":
            signature = string(item.get("encrypted_content"))
            if signature:
                yield ReasoningDelta(signature=signature)

    def _end(self, response: Object) -> Iterator[Event]:
        if not self._texts and not self._calls:  # nothing but the end came
            for index, item in enumerate(list_of(response.get("output"))):
                yield from self._done(object_of(item), index)
        meters = meters_of(USAGE_FORMAT, response.get("usage"))
        if meters is not None:
            yield Usage(meters, reasoning_of(response["usage"]))
        yield Stopped(_stop(response, self._kinds))


def _events_of(part: Part, index: int) -> Iterator[Event]:
    """A part as a stream would tell it; ``index``: of calls."""
    if isinstance(part, Text):
        yield TextDelta(part.text)
    elif isinstance(part, Refusal):
        yield RefusalDelta(part.text)
    elif isinstance(part, Reasoning):
        yield ReasoningDelta(part.text, part.signature, part.hidden)
    elif isinstance(part, ToolCall):
        yield ToolBegin(index, part.id, part.name)
        yield ToolDelta(index, part.arguments)
    else:
        raise BadAnswer(f"an answer cannot hold a {type(part).__name__}")


# ---------------------------------------------------------------- writing


def write_answer(answer: Answer, shown: Shown) -> bytes:
    """See Format: what a stream of it ends with."""
    encoder = Encoder(shown)
    encoder.write(Begin(answer.id, answer.model))
    for index, part in enumerate(with_thoughts_signed(answer.parts, (Text, ToolCall))):
        for event in _events_of(part, index):
            encoder.write(event)
    if answer.meters is not None:
        encoder.write(Usage(answer.meters, answer.reasoning_tokens))
    encoder.write(Stopped(answer.stop, answer.stop_text))
    encoder.close()
    return encoded(encoder.ended())


class _Events:
    """Writes events with their running number."""

    def __init__(self) -> None:
        self._number = 0

    def write(self, kind: str, **fields: Any) -> bytes:
        written = event_of(kind, {"sequence_number": self._number} | fields)
        self._number += 1
        return written


class _Item:
    """An item of the output on its way. ``item``: as its last event tells it."""

    def __init__(self, events: _Events, index: int, item: Object) -> None:
        self.events, self.index, self.item = events, index, item

    @property
    def at(self) -> Object:
        return {"item_id": self.item["id"], "output_index": self.index}

    def begin(self) -> bytes:
        """The event with which it begins."""
        return self.events.write("response.output_item.added", output_index=self.index, item=self.item)

    def end(self) -> bytes:
        """The events with which it ends."""
        return self.events.write("response.output_item.done", output_index=self.index, item=self.item)


class _Message(_Item):
    """A message: texts and refusals, a part each."""

    def __init__(self, events: _Events, index: int, name: str) -> None:
        item: Object = {"id": f"msg_{name}_{index}", "type": "message", "status": "in_progress"}
        super().__init__(events, index, item | {"role": "assistant", "content": []})
        self._field = ""
        self._said: list[str] = []

    def say(self, field: str, words: str) -> bytes:
        """More of a part; ``field``: text or refusal."""
        written = b""
        if field != self._field:
            written = self._end_part()
            self._field = field
            self.item = self.item | {"content": [*self.item["content"], self._part("")]}
            written += self.events.write("response.content_part.added", **self._place, part=self._part(""))
        self._said.append(words)
        return written + self.events.write(
            f"response.{self._kind}.delta", **self._place, delta=words, **self._more
        )

    @property
    def _place(self) -> Object:
        return self.at | {"content_index": len(self.item["content"]) - 1}

    @property
    def _kind(self) -> str:
        return "refusal" if self._field == "refusal" else "output_text"

    @property
    def _more(self) -> Object:
        return {} if self._field == "refusal" else {"logprobs": []}

    def _part(self, words: str) -> Object:
        more: Object = {} if self._field == "refusal" else {"annotations": [], "logprobs": []}
        return {"type": self._kind, self._field: words} | more

    def _end_part(self) -> bytes:
        if not self._field:
            return b""
        words = "".join(self._said)
        self._said.clear()
        part = self._part(words)
        self.item["content"][-1] = part
        done = {self._field: words} | self._more
        written = self.events.write(f"response.{self._kind}.done", **self._place, **done)
        return written + self.events.write("response.content_part.done", **self._place, part=part)

    def end(self) -> bytes:
        """See _Item."""
        written = self._end_part()
        self.item = self.item | {"status": "completed"}
        return written + super().end()


class _Thought(_Item):
    """A reasoning item."""

    def __init__(self, events: _Events, index: int, name: str) -> None:
        super().__init__(events, index, {"id": f"rs_{name}_{index}", "type": "reasoning", "summary": []})
        self._said: list[str] = []
        self._open = False

    def say(self, words: str) -> bytes:
        """More of its summary."""
        written = b""
        if not self._open:
            self._open = True
            empty = {"type": "summary_text", "text": ""}
            written = self.events.write(
                "response.reasoning_summary_part.added", **self.at, summary_index=0, part=empty
            )
        if not words:
            return written
        self._said.append(words)
        return written + self.events.write(
            "response.reasoning_summary_text.delta", **self.at, summary_index=0, delta=words
        )

    def sign(self, encrypted: str) -> None:
        """What proves it, or hides it."""
        self.item = self.item | {"encrypted_content": encrypted}

    def end(self) -> bytes:
        """See _Item."""
        written = b""
        if self._open:
            part = {"type": "summary_text", "text": "".join(self._said)}
            self.item = self.item | {"summary": [part]}
            place = self.at | {"summary_index": 0}
            written = self.events.write(
                "response.reasoning_summary_text.done", **place, text=part["text"]
            ) + self.events.write("response.reasoning_summary_part.done", **place, part=part)
        return written + super().end()


class _Call(_Item):
    """A call of the customer's tool. A custom tool's text is known once all of its arguments are."""

    def __init__(self, events: _Events, index: int, name: str, call: str, tool: Named) -> None:
        self._custom = tool.custom
        self._field = "input" if tool.custom else "arguments"
        kind = "custom_tool_call" if tool.custom else "function_call"
        prefix = "ctc" if tool.custom else "fc"
        item: Object = {"id": f"{prefix}_{name}_{index}", "type": kind, "status": "in_progress"}
        item |= {"call_id": call, "name": tool.name, self._field: ""}
        super().__init__(events, index, item | ({"namespace": tool.namespace} if tool.namespace else {}))
        self._said: list[str] = []

    def say(self, arguments: str) -> bytes:
        """More of its arguments."""
        self._said.append(arguments)
        return b"" if self._custom else self._event("delta", delta=arguments)

    def _event(self, kind: str, **fields: Any) -> bytes:
        name = "custom_tool_call_input" if self._custom else "function_call_arguments"
        return self.events.write(f"response.{name}.{kind}", **self.at, **fields)

    def end(self) -> bytes:
        """See _Item."""
        given = "".join(self._said)
        whole = custom_input(given) if self._custom else given or "{}"
        written = self._event("delta", delta=whole) if self._custom or not given else b""
        self.item = self.item | {self._field: whole, "status": "completed"}
        named = {} if self._custom else {"name": self.item["name"]}
        return written + self._event("done", **named, **{self._field: whole}) + super().end()


class Encoder:
    """See Encoder of ``relay.formats.format``. One item is open at a time, except calls, whose arguments may
    alternate: these are closed together. The last event repeats the whole answer."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        asked = shown.repeated
        self._tools = declared([*list_of(asked.get("tools")), *list_of(asked.get(ADDITIONAL_TOOLS))])
        self._events = _Events()
        self._name = "relay"
        self._begun = False
        self._items: list[_Item] = []
        self._open: _Message | _Thought | None = None
        self._signed = False
        self._calls: dict[int, _Call] = {}
        self._refused = False
        self._told: Usage | None = None
        self._stopped = Stopped("end")

    def write(self, event: Event) -> bytes:
        """Events for the customer, or nothing yet."""
        if isinstance(event, Begin):
            return self._begin(event)
        if isinstance(event, Ping):
            return PING
        if isinstance(event, Usage):
            self._told = event
            return b""
        if isinstance(event, Stopped):
            self._stopped = event
            return b""
        if isinstance(event, Failed):
            said = said_of(event.error)
            message = said.message or "The model's provider failed."
            return error_event_of(said.code or said.kind or "server_error", message, said.param)
        begun = b"" if self._begun else self._begin(Begin("", self._shown.model))
        return begun + self._content(event)

    def _begin(self, event: Begin) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        self._name = event.id.removeprefix("resp_") or self._name
        begun = self._frame("in_progress")
        return self._events.write("response.created", response=begun) + self._events.write(
            "response.in_progress", response=begun
        )

    def _content(self, event: Event) -> bytes:
        if isinstance(event, TextDelta):
            return self._say("text", event.text) + self._sign(event.signature)
        if isinstance(event, RefusalDelta):
            self._refused = True
            return self._say("refusal", event.text)
        if isinstance(event, ReasoningDelta):
            return self._think(event)
        if isinstance(event, ToolBegin):
            written = self._sign(event.signature) + self._close_item()
            tool = self._tools.get(event.name) or Named(event.name)
            call = _Call(self._events, len(self._items), self._name, event.id, tool)
            self._calls[event.index] = call
            self._items.append(call)
            return written + call.begin()
        if isinstance(event, ToolDelta) and event.index in self._calls and event.arguments:
            return self._calls[event.index].say(event.arguments)
        return b""

    def _say(self, field: str, words: str) -> bytes:
        if not words:
            return b""
        written = b""
        message = self._open
        if not isinstance(message, _Message):
            written = self.close()
            message = _Message(self._events, len(self._items), self._name)
            written += self._start(message)
        return written + message.say(field, words)

    def _think(self, event: ReasoningDelta) -> bytes:
        if not event.text and event.signature is None and event.hidden is None:
            return b""
        written = b""
        thought = self._open
        if not isinstance(thought, _Thought) or event.hidden is not None or (self._signed and event.text):
            written = self.close()
            thought = _Thought(self._events, len(self._items), self._name)
            written += self._start(thought)
        if event.hidden is not None:
            thought.sign(event.hidden)
            return written + self.close()
        written += thought.say(event.text)
        if event.signature is not None:
            thought.sign(event.signature)
            self._signed = True
        return written

    def _sign(self, signature: str | None) -> bytes:
        """Google's, of a text or a call: this format signs thoughts alone."""
        if signature is None:
            return b""
        return self.close() + self._think(ReasoningDelta(signature=signature)) + self.close()

    def _start(self, item: _Message | _Thought) -> bytes:
        self._open = item
        self._items.append(item)
        return item.begin()

    def _close_item(self) -> bytes:
        item, self._open, self._signed = self._open, None, False
        return b"" if item is None else item.end()

    def close(self) -> bytes:
        """The ends of what is open."""
        written = self._close_item() + b"".join(call.end() for call in self._calls.values())
        self._calls.clear()
        return written

    def _frame(self, status: str) -> Object:
        """The answer without what it says."""
        shown, asked = self._shown, self._shown.repeated
        return {
            "id": f"resp_{self._name}",
            "object": "response",
            "created_at": shown.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "metadata": asked.get("metadata", {}),
            "model": shown.model,
            "output": [],
            "parallel_tool_calls": asked.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "reasoning": asked.get("reasoning", {"effort": None, "summary": None}),
            "store": False,
            "temperature": asked.get("temperature", 1.0),
            "text": asked.get("text", {"format": {"type": "text"}}),
            "tool_choice": asked.get("tool_choice", "auto"),
            "tools": asked.get("tools", []),
            "top_p": asked.get("top_p", 1.0),
            "truncation": asked.get("truncation", "disabled"),
            "usage": None,
            "user": asked.get("user"),
        }

    def ended(self) -> Object:
        """The whole answer, once everything is closed."""
        reason = _incomplete(self._stopped.stop, self._refused)
        response = self._frame("incomplete" if reason else "completed")
        response["output"] = [item.item for item in self._items]
        response["incomplete_details"] = {"reason": reason} if reason else None
        if self._told is not None:
            response["usage"] = as_responses(self._told.meters, self._told.reasoning_tokens)
        return response

    def finish(self) -> bytes:
        """What ends a stream that is complete."""
        begun = b"" if self._begun else self._begin(Begin("", self._shown.model))
        written = begun + self.close()
        response = self.ended()
        return written + self._events.write(f"response.{response['status']}", response=response)


def _incomplete(stop: Stop, refused: bool) -> str | None:
    """Why an answer is not whole. Where a model refused in words, it is."""
    if stop in ("length", "context"):
        return "max_output_tokens"
    return "content_filter" if stop == "refusal" and not refused else None


def event_of(kind: str, data: Mapping[str, Any]) -> bytes:
    """An event of this type."""
    return f"event: {kind}\ndata: ".encode() + encoded({"type": kind, **data}) + b"\n\n"


def error_event_of(code: str | None, message: str, param: str | None) -> bytes:
    """How a stream ends that fails: OpenAI's SDKs stop at the first event, Codex reads the second one alone.

    Neither tells its place in the stream.
    """
    failed: Object = {
        "id": "resp_relay",
        "object": "response",
        "status": "failed",
        "error": {"code": code or "server_error", "message": message},
        "incomplete_details": None,
        "output": [],
        "usage": None,
    }
    error = event_of("error", {"code": code, "message": message, "param": param, "sequence_number": 0})
    return error + event_of("response.failed", {"response": failed, "sequence_number": 0})
