"""Requests in OpenAI's chat format from and to the neutral conversation.

Three things have no field in this format and are written as text, which both models and ``read_request``
understand: that a tool failed (ERROR_MARK at the begin of its result), and images that a tool gave: they
follow in a message of the user's, since a tool's message holds texts alone.

Thoughts with signatures travel as ``reasoning_details`` beside ``reasoning_content``, as OpenRouter has them.
Protocol: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import json
import re
from typing import Any

from relay.formats.conversation import (
    AnswerFormat,
    Conversation,
    Image,
    Part,
    Reasoning,
    Refusal,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
    Untranslatable,
    merged,
    with_thoughts_signed,
)
from relay.formats.format import Written
from relay.formats.openai_shared import (
    BREAKPOINT,
    EFFORTS,
    ERROR_MARK,
    breakpoint_of,
    call_id,
    read_image,
    url_of,
)
from relay.formats.reading import (
    Object,
    arguments_given,
    encoded,
    items,
    life,
    mapping,
    mark,
    object_of,
    object_schema,
    one_of,
    only,
    optional,
    string,
    text,
)
from relay.providers.profiles import Profile

PLACES = {
    "max_output": "max_tokens",
    "candidates": "n",
    "effort": "reasoning_effort",
    "tools_one_by_one": "parallel_tool_calls",
    "answer_format": "response_format",
    "thinking_budget": "thinking",
}
# Google's, of calls, which only Google reads.
SIGNATURE = "thoughtSignature"
_READ = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "tools", "tool_choice", "parallel_tool_calls"),
        *("response_format", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "stop"),
        *("seed", "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "n", "user"),
        *("reasoning_effort", "thinking", "enable_thinking", "modalities", "service_tier", "logit_bias"),
        "cache_control",
    }
)
# What says nothing about the answer: about storing, caching and metering at OpenAI.
_LEFT_OUT = (
    *("metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("safety_identifier", "store"),
)
_AS_IT_IS = (
    *("temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty", "logprobs"),
    *("top_logprobs", "user"),
)
_MOST_STOPS = 4
_MOST_CHARACTERS_OF_AN_ID = 40
_IMAGE_HERE = "[image {} of this result follows the results]"
_IMAGE_THERE = re.compile(r"\[image (\d+) of the result of (.*)\]")
_ASSISTANT = (
    *("role", "content", "name", "refusal", "tool_calls", "reasoning_content", "reasoning"),
    *("reasoning_details", "cache_control"),
)


# ---------------------------------------------------------------- reading


def read_request(body: bytes, drop_unknown: bool) -> Conversation:
    """See Format."""
    fields: Object = {name: value for name, value in json.loads(body).items() if value is not None}
    left_out = [name for name in _LEFT_OUT if fields.pop(name, None) is not None]
    for name in ("functions", "function_call"):
        if name in fields:
            raise Untranslatable(name, f"use {'tools' if name == 'functions' else 'tool_choice'}")
    if drop_unknown:
        left_out += sorted(fields.keys() - _READ)
        fields = {name: fields[name] for name in fields.keys() & _READ}
    only(fields, _READ, "")
    if fields.get("logit_bias"):
        raise Untranslatable("logit_bias", "the provider of this model has no such field; leave it out")
    stop = fields.get("stop")
    limit = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    made = Conversation(
        model=text(fields.get("model"), "model"),
        turns=_read_turns(items(fields.get("messages"), "messages")),
        stream=bool(optional(fields.get("stream"), bool, "stream")),
        include_usage=bool(mapping(fields.get("stream_options", {}), "stream_options").get("include_usage")),
        tools=[
            _read_tool(mapping(tool, f"tools[{number}]"), f"tools[{number}]")
            for number, tool in enumerate(items(fields.get("tools"), "tools"))
        ],
        tool_choice=_read_choice(fields.get("tool_choice")),
        answer_format=_read_format(fields.get("response_format")),
        max_output=optional(fields.get(limit), int, limit),
        stop=[stop] if isinstance(stop, str) else [text(word, "stop") for word in items(stop, "stop")],
        candidates=optional(fields.get("n"), int, "n") or 1,
        effort=optional(fields.get("reasoning_effort"), str, "reasoning_effort"),
        user=optional(fields.get("user"), str, "user"),
        cache=life(fields.get("cache_control"), "cache_control"),
        places=PLACES | {"max_output": limit},
        left_out=left_out,
    )
    if fields.get("parallel_tool_calls") is False:
        made.tools_one_by_one = True
    _read_sampling(fields, made)
    _read_thinking(fields, made)
    return made


def _read_sampling(fields: Object, made: Conversation) -> None:
    """A value that is the format's default says nothing."""
    for name in ("temperature", "top_p"):
        setattr(made, name, optional(fields.get(name), float, name))
    for name in ("frequency_penalty", "presence_penalty"):
        setattr(made, name, optional(fields.get(name), float, name) or None)
    for name in ("top_k", "seed"):
        setattr(made, name, optional(fields.get(name), int, name))
    made.logprobs = optional(fields.get("logprobs"), bool, "logprobs") or None
    made.top_logprobs = optional(fields.get("top_logprobs"), int, "top_logprobs") or None


def _read_thinking(fields: Object, made: Conversation) -> None:
    """Compatible providers' permissions: Anthropic's shape, or Qwen's flag."""
    thinking, flag = fields.get("thinking"), fields.get("enable_thinking")
    if thinking is not None:
        thinking = mapping(thinking, "thinking")
        made.thinking = "off" if thinking.get("type") == "disabled" else "on"
        made.thinking_budget = optional(thinking.get("budget_tokens"), int, "thinking.budget_tokens")
    elif flag is not None:
        made.thinking = "on" if optional(flag, bool, "enable_thinking") else "off"


def _read_turns(messages: list[Any]) -> list[Turn]:
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        message = mapping(message, place)
        role = one_of(
            message.get("role"), ("system", "developer", "user", "assistant", "tool"), f"{place}.role"
        )
        name = optional(message.get("name"), str, f"{place}.name")
        if role == "assistant":
            only(message, _ASSISTANT, place)
            parts = _marked(_read_assistant(message, place), message, place)
            turns.append(Turn("assistant", parts, name, place))
        elif role == "tool":
            only(message, ("role", "content", "tool_call_id", "name", "cache_control"), place)
            turns.append(Turn("user", [_read_result(message, place)], None, place))
        else:
            only(message, ("role", "content", "name", "cache_control"), place)
            parts = _marked(_read_content(message.get("content"), f"{place}.content"), message, place)
            turns.append(Turn("user" if role == "user" else "system", parts, name, place))
    for turn in (turns := merged(turns)):
        _return_images(turn)
    return turns


def _marked(parts: list[Part], message: Object, place: str) -> list[Part]:
    """A mark for the prompt cache on a whole message, as the AI SDK writes it, is one on its last part."""
    cache = life(message.get("cache_control"), f"{place}.cache_control")
    if cache is None:
        return parts
    last = next((part for part in reversed(parts) if isinstance(part, Text | Image | ToolCall)), None)
    if last is not None:
        last.cache = last.cache or cache
    return parts


def _read_content(content: Any, place: str) -> list[Part]:
    """An empty text says nothing; Anthropic's API does not take it."""
    if isinstance(content, str):
        return [Text(content, place=place)] if content else []
    parts = [
        _read_part(mapping(part, f"{place}[{number}]"), f"{place}[{number}]")
        for number, part in enumerate(items(content, place))
    ]
    return [part for part in parts if part != Text("")]


def _read_part(part: Object, place: str) -> Part:
    kind = part.get("type")
    cache = life(part.get("cache_control"), f"{place}.cache_control") or breakpoint_of(part, place)
    if kind == "text":
        only(part, ("type", "text", "cache_control", BREAKPOINT), place)
        return Text(text(part.get("text"), f"{place}.text"), cache, place=place)
    if kind == "refusal":
        return Refusal(text(part.get("refusal"), f"{place}.refusal"), place=place)
    if kind == "image_url":
        shown = part.get("image_url")
        shown = {"url": shown} if isinstance(shown, str) else mapping(shown, f"{place}.image_url")
        url = text(shown.get("url"), f"{place}.image_url.url")
        return read_image(url, shown.get("detail"), place, f"{place}.image_url.url", cache)
    raise Untranslatable(f"{place}.type", f"'{kind}' cannot be sent to this model's provider; send text")


def _read_assistant(message: Object, place: str) -> list[Part]:
    parts = _read_content(message.get("content"), f"{place}.content")
    refusal = optional(message.get("refusal"), str, f"{place}.refusal")
    if refusal:
        parts.append(Refusal(refusal, place=f"{place}.refusal"))
    parts += read_calls(message.get("tool_calls"), f"{place}.tool_calls")
    for at, thought in read_reasoning(message, place):
        parts.insert(at, thought)
    return parts


def read_calls(calls: Any, place: str) -> list[ToolCall]:
    """The tool calls of a message."""
    found = []
    for number, call in enumerate(items(calls, place)):
        where = f"{place}[{number}]"
        call = mapping(call, where)
        if call.get("type") not in (None, "function"):
            raise Untranslatable(f"{where}.type", "this model's provider knows function calls alone")
        function = mapping(call.get("function"), f"{where}.function")
        signature = google_signature(call)
        name = text(function.get("name"), f"{where}.function.name")
        given = function.get("arguments")
        arguments = given if isinstance(given, dict) else optional(given, str, f"{where}.function.arguments")
        found.append(
            ToolCall(
                text(call.get("id"), f"{where}.id"),
                name,
                arguments_given(arguments) or "{}",
                signature,
                life(call.get("cache_control"), f"{where}.cache_control"),
                f"{where}.function",
            )
        )
    return found


def google_signature(call: Object) -> str | None:
    """Gemini's signature of a call, where Google's own compatible API has it."""
    google = object_of(object_of(call.get("extra_content")).get("google"))
    return string(google.get("thought_signature")) or None


def read_reasoning(message: Object, place: str = "") -> list[tuple[int, Reasoning]]:
    """Thoughts of a message, each with its place among the message's parts."""
    details = message.get("reasoning_details")
    found: list[tuple[int, Reasoning]] = []
    for number, detail in enumerate(details if isinstance(details, list) else []):
        where = f"{place}.reasoning_details[{number}]"
        detail = mapping(detail, where)
        at = detail.get("index")
        made = Reasoning(
            string(detail.get("text") or detail.get("summary")),
            string(detail.get("signature")) or None,
            string(detail.get("data")) or None,
            where,
        )
        if found and isinstance(at, int) and found[-1][0] == at and not (made.hidden or found[-1][1].hidden):
            # A client that keeps a stream's pieces sends them as they came.
            found[-1][1].text += made.text
            found[-1][1].signature = made.signature or found[-1][1].signature
        else:
            found.append((at if isinstance(at, int) else number, made))
    if not found:
        thought = message.get("reasoning_content") or message.get("reasoning")
        if isinstance(thought, str) and thought:
            found.append((0, Reasoning(thought, place=f"{place}.reasoning_content")))
    return found


def _read_result(message: Object, place: str) -> ToolResult:
    parts: list[Text | Image] = []
    for part in _read_content(message.get("content"), f"{place}.content"):
        if not isinstance(part, Text | Image):
            raise Untranslatable(part.place, "a tool's result can hold texts and images alone")
        parts.append(part)
    failed = bool(parts) and isinstance(parts[0], Text) and parts[0].text.startswith(ERROR_MARK)
    if failed:
        parts[0].text = parts[0].text.removeprefix(ERROR_MARK)  # type: ignore[union-attr]
    parts = [part for part in parts if part != Text("")]
    return ToolResult(
        text(message.get("tool_call_id"), f"{place}.tool_call_id"),
        parts,
        failed,
        life(message.get("cache_control"), f"{place}.cache_control"),
        optional(message.get("name"), str, f"{place}.name"),
        place,
    )


def _return_images(turn: Turn) -> None:
    """Put images that follow a tool's result back into it, see the module."""
    results = {part.call_id: part for part in turn.parts if isinstance(part, ToolResult)}
    kept: list[Part] = []
    waiting = iter(turn.parts)
    for part in waiting:
        there = _IMAGE_THERE.fullmatch(part.text) if isinstance(part, Text) else None
        result = results.get(there[2]) if there else None
        image = next(waiting, None) if result is not None else None
        if there is None or result is None or not isinstance(image, Image):
            kept += [part] if image is None else [part, image]
            continue
        here = _IMAGE_HERE.format(there[1])
        result.parts = [
            image if isinstance(given, Text) and given.text == here else given for given in result.parts
        ]
    turn.parts = kept


def _read_tool(tool: Object, place: str) -> Tool:
    if tool.get("type") not in (None, "function"):
        raise Untranslatable(f"{place}.type", "this model's provider has function tools alone")
    function = mapping(tool.get("function"), f"{place}.function")
    only(function, ("name", "description", "parameters", "strict", "cache_control"), f"{place}.function")
    return Tool(
        text(function.get("name"), f"{place}.function.name"),
        optional(function.get("description"), str, f"{place}.function.description"),
        object_schema(function.get("parameters")),
        optional(function.get("strict"), bool, f"{place}.function.strict") or None,
        life(tool.get("cache_control", function.get("cache_control")), f"{place}.cache_control"),
        place,
    )


def _read_choice(choice: Any) -> ToolChoice | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        one_of(choice, ("auto", "none", "required"), "tool_choice")
        return ToolChoice("any" if choice == "required" else choice)  # type: ignore[arg-type]
    one_of(mapping(choice, "tool_choice").get("type"), ("function",), "tool_choice.type")
    function = mapping(choice.get("function"), "tool_choice.function")
    return ToolChoice("tool", text(function.get("name"), "tool_choice.function.name"))


def _read_format(wanted: Any) -> AnswerFormat | None:
    kind = mapping(wanted, "response_format").get("type") if wanted is not None else "text"
    if kind == "text":
        return None
    one_of(kind, ("json_object", "json_schema"), "response_format.type")
    if kind == "json_object":
        return AnswerFormat()
    place = "response_format.json_schema"
    schema = mapping(wanted.get("json_schema"), place)
    only(schema, ("name", "schema", "strict", "description"), place)
    return AnswerFormat(
        mapping(schema.get("schema", {"type": "object"}), f"{place}.schema"),
        optional(schema.get("name"), str, f"{place}.name"),
        optional(schema.get("description"), str, f"{place}.description"),
        optional(schema.get("strict"), bool, f"{place}.strict"),
    )


# ---------------------------------------------------------------- writing


def write_request(conversation: Conversation, model: str, max_output: int, profile: Profile) -> Written:
    """See Format."""
    made = conversation
    if made.candidates != 1:
        raise Untranslatable(made.place_of("candidates"), "only one answer a call can be had; send 1")
    forgone = [] if profile.extensions else made.without_top_k()
    writer = _Writer(profile.extensions, [*made.left_out, *forgone])
    fields: Object = {"model": model, "messages": writer.messages(made.turns)}
    if made.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    if made.tools:
        fields["tools"] = [writer.tool(tool) for tool in made.tools]
    if made.choice is not None:
        fields["tool_choice"] = _write_choice(made.choice)
    fields[profile.output_limit] = made.max_output or max_output
    fields |= _write_options(made, profile)
    fields |= writer.mark(made.cache)
    return Written(encoded(fields), writer.left_out)


def _write_options(made: Conversation, profile: Profile) -> Object:
    fields: Object = {}
    if made.tools_one_by_one and made.tools:
        fields["parallel_tool_calls"] = False
    if made.answer_format is not None:
        fields["response_format"] = _write_format(made.answer_format)
    if not profile.extensions:
        if made.effort is not None:
            one_of(made.effort, EFFORTS, made.place_of("effort"))
        if len(made.stop) > _MOST_STOPS:
            raise Untranslatable(made.place_of("stop"), f"this model takes {_MOST_STOPS} at most")
    values = {name: getattr(made, name) for name in _AS_IT_IS}
    values |= {"reasoning_effort": made.effort, "stop": made.stop or None}
    if not profile.extensions:
        values["top_k"] = None
    return fields | {name: value for name, value in values.items() if value is not None}


class _Writer:
    """``extensions``: see Profile; without them OpenAI's own fields alone are written, and it caches by
    itself."""

    def __init__(self, extensions: bool, left_out: list[str]) -> None:
        self._extensions = extensions
        self.left_out = left_out

    def leave_out(self, name: str) -> None:
        if name not in self.left_out:
            self.left_out.append(name)

    def messages(self, turns: list[Turn]) -> list[Object]:
        """All turns."""
        written: list[Object] = []
        for turn in merged(turns):
            if turn.role == "assistant":
                written.append(self._assistant(turn))
            elif turn.role == "system":
                written.append(self._message("system", turn, turn.parts))
            else:
                results = [part for part in turn.parts if isinstance(part, ToolResult)]
                rest: list[Part] = []
                for result in results:
                    written.append(self._result(result, rest))
                rest += [part for part in turn.parts if not isinstance(part, ToolResult)]
                if rest or not results:
                    written.append(self._message("user", turn, rest))
        return written

    def _message(self, role: str, turn: Turn, parts: list[Part]) -> Object:
        name = {} if turn.name is None else {"name": turn.name}
        return {"role": role, "content": self._content(parts)} | name

    def _content(self, parts: list[Part]) -> str | list[Object]:
        if len(parts) == 1 and isinstance(parts[0], Text) and self.mark(parts[0].cache) == {}:
            return parts[0].text
        return [self._part(part) for part in parts]

    def _part(self, part: Part) -> Object:
        if isinstance(part, Text):
            return {"type": "text", "text": part.text} | self.mark(part.cache)
        if isinstance(part, Image):
            image = {"url": url_of(part)} | ({} if part.detail is None else {"detail": part.detail})
            return {"type": "image_url", "image_url": image} | self.mark(part.cache)
        raise Untranslatable(part.place, "that cannot stand here for this model's provider; leave it out")

    def mark(self, cache: str | None) -> Object:
        """Fields that mark a part for the prompt cache."""
        if cache is not None and not self._extensions:
            self.leave_out("cache_control")
            return {}
        return mark(cache)

    def _assistant(self, turn: Turn) -> Object:
        message: Object = {"role": "assistant"} | ({} if turn.name is None else {"name": turn.name})
        parts = with_thoughts_signed(turn.parts, (Text,))
        texts = [part for part in parts if isinstance(part, Text)]
        calls = [part for part in parts if isinstance(part, ToolCall)]
        refusals = [part for part in parts if isinstance(part, Refusal)]
        self._check_order(turn)
        message["content"] = self._content(list(texts)) if texts else None
        if refusals:
            message["refusal"] = "".join(part.text for part in refusals)
        if calls:
            message["tool_calls"] = [self._call(call) for call in calls]
        thoughts = [(at, part) for at, part in enumerate(parts) if isinstance(part, Reasoning)]
        if thoughts and self._extensions:
            message |= write_reasoning(thoughts)
        elif thoughts:
            self.leave_out("thinking")
        return message

    def _check_order(self, turn: Turn) -> None:
        """Texts come before the calls in this format."""
        called = False
        for part in turn.parts:
            if called and isinstance(part, Text | Image | Refusal | ToolResult):
                raise Untranslatable(part.place, "only tool calls can follow a tool call; put it before them")
            if isinstance(part, Image | ToolResult):
                raise Untranslatable(part.place, "a model's own turn can hold texts and tool calls alone")
            called = called or isinstance(part, ToolCall)

    def _call(self, call: ToolCall) -> Object:
        self._mark_of_call(call)
        made: Object = {
            "id": self._call_id(call.id),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        if call.signature is not None and not self._extensions:
            self.leave_out(SIGNATURE)
        elif call.signature is not None:
            made["extra_content"] = {"google": {"thought_signature": call.signature}}
        return made

    def _call_id(self, name: str) -> str:
        """A call's name as far as OpenAI takes it."""
        return name if self._extensions else call_id(name, _MOST_CHARACTERS_OF_AN_ID)

    def _mark_of_call(self, call: ToolCall) -> None:
        if call.cache is not None:
            self.leave_out(f"{call.place}.cache_control")

    def _result(self, result: ToolResult, following: list[Part]) -> Object:
        parts: list[Part] = []
        images = 0
        for part in result.parts:
            if isinstance(part, Image):
                images += 1
                parts.append(Text(_IMAGE_HERE.format(images)))
                following += [Text(f"[image {images} of the result of {result.call_id}]"), part]
            else:
                parts.append(part)
        if result.is_error:
            first = parts[0] if parts and isinstance(parts[0], Text) else Text("")
            parts[:1] = [Text(ERROR_MARK + first.text, first.cache)]
        message: Object = {"role": "tool", "tool_call_id": self._call_id(result.call_id)}
        message["content"] = self._content(parts) if parts else ""
        return message | self.mark(result.cache)

    def tool(self, tool: Tool) -> Object:
        """A tool."""
        function: Object = {"name": tool.name}
        if tool.description is not None:
            function["description"] = tool.description
        if tool.schema is not None:
            function["parameters"] = tool.schema
        if tool.strict:
            function["strict"] = True
        return {"type": "function", "function": function} | self.mark(tool.cache)


def write_reasoning(thoughts: list[tuple[int, Reasoning]]) -> Object:
    """Fields of a message that hold thoughts, each with its place among the message's parts."""
    details: list[Object] = []
    for at, thought in thoughts:
        if thought.hidden is not None:
            details.append({"type": "reasoning.encrypted", "data": thought.hidden, "index": at})
        else:
            signature = {} if thought.signature is None else {"signature": thought.signature}
            details.append({"type": "reasoning.text", "text": thought.text, "index": at} | signature)
    texts = "".join(thought.text for _, thought in thoughts)
    return ({"reasoning_content": texts} if texts else {}) | {"reasoning_details": details}


def _write_choice(choice: ToolChoice) -> Any:
    if choice.mode == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.mode == "any" else choice.mode


def _write_format(wanted: AnswerFormat) -> Object:
    if wanted.schema is None:
        return {"type": "json_object"}
    schema: Object = {"name": wanted.name or "answer", "schema": wanted.schema}
    if wanted.description is not None:
        schema["description"] = wanted.description
    if wanted.strict is not None:
        schema["strict"] = wanted.strict
    return {"type": "json_schema", "json_schema": schema}
