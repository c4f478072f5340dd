"""Requests in OpenAI's Responses format from and to the neutral conversation.

Thoughts are ``reasoning`` items: their signature is ``encrypted_content``, their text the summary. Without a
summary the item holds hidden thoughts; a summary of an empty text belongs to a signature alone. That a tool
failed has no field: ERROR_MARK stands at the begin of its result. Who gives a ``prompt_cache_key`` wants the
prompt cached, which other providers do only where that is marked.
Protocol: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

import json
from typing import Any

from relay.formats.conversation import (
    NO_SUCH_FIELD,
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
)
from relay.formats.format import Written
from relay.formats.openai_responses_tools import ADDITIONAL_TOOLS, custom_arguments, joined, read_tools
from relay.formats.openai_shared import (
    BREAKPOINT,
    EFFORTS,
    ERROR_MARK,
    breakpoint_of,
    call_id,
    read_image,
    url_of,
)
from relay.formats.reading import Object, encoded, items, mapping, one_of, only, optional, string, text
from relay.providers.profiles import Profile

PLACES = {
    "max_output": "max_output_tokens",
    "effort": "reasoning.effort",
    "tools_one_by_one": "parallel_tool_calls",
    "answer_format": "text.format",
}
# Google's, of texts and calls, which only Google reads.
SIGNATURE = "thoughtSignature"
ENCRYPTED = "reasoning.encrypted_content"
LEAST_OUTPUT = 16
_READ = frozenset(
    {
        *("model", "input", "instructions", "stream", "tools", "tool_choice", "parallel_tool_calls"),
        *("text", "max_output_tokens", "temperature", "top_p", "reasoning", "include", "truncation", "user"),
        *("service_tier", "background", "prompt_cache_key"),
    }
)
# What says nothing about the answer: about storing, caching and metering at OpenAI, and its own tools.
_LEFT_OUT = (
    *("metadata", "client_metadata", "prompt_cache_options", "prompt_cache_retention"),
    *("safety_identifier", "store", "stream_options", "max_tool_calls"),
)
_ITEM = ("type", "id", "status")
_MOST_CHARACTERS_OF_AN_ID = 64


# ---------------------------------------------------------------- reading


def read_request(body: bytes, drop_unknown: bool) -> Conversation:
    """See Format."""
    fields: Object = {name: value for name, value in json.loads(body).items() if value is not None}
    left_out = [name for name in _LEFT_OUT if fields.pop(name, None) is not None]
    if drop_unknown:
        left_out += sorted(fields.keys() - _READ)
        fields = {name: fields[name] for name in fields.keys() & _READ}
    only(fields, _READ, "")
    _check_wishes(fields)
    reasoning = mapping(fields.get("reasoning", {}), "reasoning")
    left_out += [f"reasoning.{name}" for name in sorted(reasoning) if name != "effort" and reasoning[name]]
    made = Conversation(
        model=text(fields.get("model"), "model"),
        turns=_read_turns(fields, left_out),
        stream=bool(optional(fields.get("stream"), bool, "stream")),
        include_usage=True,
        tools=[*read_tools(fields.get("tools"), left_out), *_read_added(fields.get("input"), left_out)],
        tool_choice=_read_choice(fields.get("tool_choice")),
        answer_format=_read_format(fields.get("text")),
        max_output=optional(fields.get("max_output_tokens"), int, "max_output_tokens"),
        temperature=optional(fields.get("temperature"), float, "temperature"),
        top_p=optional(fields.get("top_p"), float, "top_p"),
        effort=optional(reasoning.get("effort"), str, "reasoning.effort"),
        user=optional(fields.get("user"), str, "user"),
        cache="5m" if fields.get("prompt_cache_key") else None,
        places=PLACES,
        left_out=left_out,
    )
    if fields.get("parallel_tool_calls") is False:
        made.tools_one_by_one = True
    return made


def _check_wishes(fields: Object) -> None:
    """What can have the default value alone."""
    one_of(fields.get("truncation", "disabled"), ("disabled",), "truncation")
    verbosity = mapping(fields.get("text", {}), "text").get("verbosity")
    if verbosity not in (None, "medium"):
        raise Untranslatable("text.verbosity", NO_SUCH_FIELD)
    for number, wanted in enumerate(items(fields.get("include"), "include")):
        if wanted != ENCRYPTED:
            raise Untranslatable(f"include[{number}]", "this model's provider does not tell it; leave it out")


def _read_turns(fields: Object, left_out: list[str]) -> list[Turn]:
    turns: list[Turn] = []
    instructions = optional(fields.get("instructions"), str, "instructions")
    if instructions:
        turns.append(Turn("system", [Text(instructions, place="instructions")], place="instructions"))
    given = fields.get("input")
    if isinstance(given, str):
        turns.append(Turn("user", [Text(given, place="input")] if given else [], place="input"))
        return merged(turns)
    for number, item in enumerate(items(given, "input")):
        place = f"input[{number}]"
        turns.append(_read_item(mapping(item, place), place, left_out))
    return merged(turns)


def _read_item(item: Object, place: str, left_out: list[str]) -> Turn:
    kind = item.get("type") or "message"
    if kind == "message":
        return _read_message(item, place, left_out)
    if kind in ("function_call", "custom_tool_call"):
        return Turn("assistant", [_read_call(item, kind == "custom_tool_call", place)], place=place)
    if kind in ("function_call_output", "custom_tool_call_output"):
        only(item, (*_ITEM, "call_id", "output", "name", "namespace"), place)
        return Turn("user", [_read_result(item, place)], place=place)
    if kind == "reasoning":
        thought = read_reasoning(item, place)
        return Turn("assistant", [] if thought is None else [thought], place=place)
    if kind == ADDITIONAL_TOOLS:
        return Turn("system", [], place=place)
    raise Untranslatable(f"{place}.type", f"'{kind}' cannot be sent to this model's provider; send its text")


def _read_added(given: Any, left_out: list[str]) -> list[Tool]:
    """The tools that items add. Other formats have one place for all."""
    found: list[Tool] = []
    for number, item in enumerate(given if isinstance(given, list) else ()):
        place = f"input[{number}]"
        if isinstance(item, dict) and item.get("type") == ADDITIONAL_TOOLS:
            only(item, (*_ITEM, "role", "tools"), place)
            found += read_tools(item.get("tools"), left_out, f"{place}.tools")
    return found


def _read_message(item: Object, place: str, left_out: list[str]) -> Turn:
    only(item, (*_ITEM, "role", "content", "phase"), place)
    if item.get("phase") is not None and "phase" not in left_out:
        left_out.append("phase")
    role = one_of(item.get("role"), ("system", "developer", "user", "assistant"), f"{place}.role")
    parts = _read_content(item.get("content"), f"{place}.content")
    return Turn("system" if role == "developer" else role, parts, place=place)  # type: ignore[arg-type]


def _read_content(content: Any, place: str) -> list[Part]:
    """An empty text says nothing."""
    if isinstance(content, str):
        return [Text(content, place=place)] if content else []
    parts = [
        _read_part(mapping(part, f"{place}[{number}]"), f"{place}[{number}]")
        for number, part in enumerate(items(content, place))
    ]
    return [part for part in parts if part != Text("")]


def _read_part(part: Object, place: str) -> Part:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        # What OpenAI tells of a text beside it are no words of the model's.
        only(part, ("type", "text", "annotations", "logprobs", BREAKPOINT), place)
        return Text(text(part.get("text"), f"{place}.text"), breakpoint_of(part, place), place=place)
    if kind == "refusal":
        return Refusal(text(part.get("refusal"), f"{place}.refusal"), place=place)
    if kind == "input_image":
        only(part, ("type", "image_url", "detail", BREAKPOINT), place)
        where, cache = f"{place}.image_url", breakpoint_of(part, place)
        return read_image(text(part.get("image_url"), where), part.get("detail"), place, where, cache)
    raise Untranslatable(f"{place}.type", f"'{kind}' cannot be sent to this model's provider; send text")


def _read_call(item: Object, custom: bool, place: str) -> ToolCall:
    given = "input" if custom else "arguments"
    only(item, (*_ITEM, "call_id", "name", "namespace", given), place)
    namespace = optional(item.get("namespace"), str, f"{place}.namespace")
    name = joined(text(item.get("name"), f"{place}.name"), namespace, place)
    written = text(item.get(given), f"{place}.{given}")
    arguments = custom_arguments(written) if custom else written or "{}"
    return ToolCall(text(item.get("call_id"), f"{place}.call_id"), name, arguments, place=place)


def _read_result(item: Object, place: str) -> ToolResult:
    parts: list[Text | Image] = []
    for part in _read_content(item.get("output"), f"{place}.output"):
        if not isinstance(part, Text | Image):
            raise Untranslatable(part.place, "a tool's result can hold texts and images alone")
        parts.append(part)
    first = parts[0] if parts else None
    failed = isinstance(first, Text) and first.text.startswith(ERROR_MARK)
    if failed and isinstance(first, Text):
        first.text = first.text.removeprefix(ERROR_MARK)
    parts = [part for part in parts if part != Text("")]
    return ToolResult(text(item.get("call_id"), f"{place}.call_id"), parts, failed, place=place)


def read_reasoning(item: Object, place: str = "") -> Reasoning | None:
    """A reasoning item; None where it says nothing that another provider could read."""
    parts = [*items(item.get("summary"), f"{place}.summary"), *items(item.get("content"), f"{place}.content")]
    texts = [string(mapping(part, place).get("text")) for part in parts]
    signature = string(item.get("encrypted_content")) or None
    if not texts:
        return None if signature is None else Reasoning(hidden=signature, place=place)
    thought = "\n\n".join(filter(None, texts))
    return Reasoning(thought, signature, place=place) if thought or signature else None


def _read_choice(choice: Any) -> ToolChoice | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        one_of(choice, ("auto", "none", "required"), "tool_choice")
        return ToolChoice("any" if choice == "required" else choice)  # type: ignore[arg-type]
    one_of(mapping(choice, "tool_choice").get("type"), ("function", "custom"), "tool_choice.type")
    return ToolChoice("tool", text(choice.get("name"), "tool_choice.name"))


def _read_format(given: Any) -> AnswerFormat | None:
    given = mapping(given or {}, "text")
    only(given, ("format", "verbosity"), "text")
    place = "text.format"
    wanted = mapping(given.get("format") or {"type": "text"}, place)
    kind = one_of(wanted.get("type"), ("text", "json_object", "json_schema"), f"{place}.type")
    if kind == "text":
        return None
    if kind == "json_object":
        return AnswerFormat()
    only(wanted, ("type", "name", "schema", "strict", "description"), place)
    return AnswerFormat(
        mapping(wanted.get("schema"), f"{place}.schema"),
        optional(wanted.get("name"), str, f"{place}.name"),
        optional(wanted.get("description"), str, f"{place}.description"),
        optional(wanted.get("strict"), bool, f"{place}.strict"),
    )


# ---------------------------------------------------------------- writing


def write_request(conversation: Conversation, model: str, max_output: int, profile: Profile) -> Written:
    """See Format. Nothing is to be kept at the provider: what customers send is whole."""
    made = conversation
    made.refuse("seed", "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs")
    if made.stop:
        raise Untranslatable(made.place_of("stop"), NO_SUCH_FIELD)
    if made.candidates != 1:
        raise Untranslatable(made.place_of("candidates"), "only one answer a call can be had; send 1")
    most = made.max_output or max_output
    if most < LEAST_OUTPUT:
        raise Untranslatable(made.place_of("max_output"), f"this model takes {LEAST_OUTPUT} or more")
    writer = _Writer(profile.extensions, [*made.left_out, *made.without_top_k()])
    fields: Object = {"model": model, "input": writer.items(made.turns), "store": False}
    fields["max_output_tokens"] = most
    if made.stream:
        fields["stream"] = True
    if made.tools:
        fields["tools"] = [writer.tool(tool) for tool in made.tools]
    if made.choice is not None:
        fields["tool_choice"] = _write_choice(made.choice)
    if made.tools_one_by_one and made.tools:
        fields["parallel_tool_calls"] = False
    if made.answer_format is not None:
        fields["text"] = {"format": _write_format(made.answer_format)}
    values = {"temperature": made.temperature, "top_p": made.top_p, "user": made.user}
    fields |= {name: value for name, value in values.items() if value is not None}
    fields |= _write_effort(made)
    writer.mark(made.cache)
    return Written(encoded(fields), writer.left_out)


def _write_effort(made: Conversation) -> Object:
    """Who asks for thoughts gets them, so that they can be sent with the next request."""
    if made.effort is None:
        return {}
    reasoning: Object = {"effort": one_of(made.effort, EFFORTS, made.place_of("effort"))}
    if made.effort == "none":
        return {"reasoning": reasoning}
    if made.thinking == "on":
        reasoning["summary"] = "auto"
    return {"reasoning": reasoning, "include": [ENCRYPTED]}


class _Writer:
    """``extensions``: see Profile; OpenAI itself takes no thoughts but its own, with their signature."""

    def __init__(self, extensions: bool, left_out: list[str]) -> None:
        self._extensions = extensions
        self.left_out = left_out

    def leave_out(self, name: str) -> None:
        if name not in self.left_out:
            self.left_out.append(name)

    def mark(self, cache: str | None) -> None:
        """OpenAI caches by itself."""
        if cache is not None:
            self.leave_out("cache_control")

    def _check_signature(self, signature: str | None) -> None:
        if signature is not None:
            self.leave_out(SIGNATURE)

    def items(self, turns: list[Turn]) -> list[Object]:
        """All turns."""
        written: list[Object] = []
        for turn in merged(turns):
            if turn.name is not None:
                raise Untranslatable(f"{turn.place}.name", NO_SUCH_FIELD)
            said: list[Part] = []
            for part in turn.parts:
                if isinstance(part, Text | Image | Refusal):
                    said.append(part)
                    continue
                written += self._message(turn, said)
                said = []
                written += self._item(part)
            written += self._message(turn, said)
        return written

    def _message(self, turn: Turn, said: list[Part]) -> list[Object]:
        if not said:
            return []
        return [
            {"type": "message", "role": turn.role, "content": [self._part(part, turn.role) for part in said]}
        ]

    def _part(self, part: Part, role: str) -> Object:
        own = role == "assistant"
        if isinstance(part, Text):
            self._check_signature(part.signature)
            self.mark(part.cache)
            return {"type": "output_text" if own else "input_text", "text": part.text}
        if isinstance(part, Image) and not own:
            self.mark(part.cache)
            detail = {} if part.detail is None else {"detail": part.detail}
            return {"type": "input_image", "image_url": url_of(part)} | detail
        if isinstance(part, Refusal) and own:
            return {"type": "refusal", "refusal": part.text}
        raise Untranslatable(part.place, "that cannot stand here for this model's provider; leave it out")

    def _item(self, part: Part) -> list[Object]:
        if isinstance(part, Reasoning):
            return self._reasoning(part)
        if isinstance(part, ToolCall):
            self._check_signature(part.signature)
            self.mark(part.cache)
            call = {
                "type": "function_call",
                "call_id": call_id(part.id, _MOST_CHARACTERS_OF_AN_ID),
                "name": part.name,
            }
            return [call | {"arguments": part.arguments}]
        if isinstance(part, ToolResult):
            self.mark(part.cache)
            output = {
                "type": "function_call_output",
                "call_id": call_id(part.call_id, _MOST_CHARACTERS_OF_AN_ID),
            }
            return [output | {"output": self._output(part)}]
        raise Untranslatable(part.place, "that cannot stand here for this model's provider; leave it out")

    def _reasoning(self, part: Reasoning) -> list[Object]:
        if part.hidden is not None:
            return [{"type": "reasoning", "summary": [], "encrypted_content": part.hidden}]
        if part.signature is None and not self._extensions:
            self.leave_out("thinking")
            return []
        signature = {} if part.signature is None else {"encrypted_content": part.signature}
        return [{"type": "reasoning", "summary": [{"type": "summary_text", "text": part.text}]} | signature]

    def _output(self, result: ToolResult) -> str | list[Object]:
        parts = list(result.parts)
        if result.is_error:
            first = parts[0] if parts and isinstance(parts[0], Text) else None
            if first is None:
                parts.insert(0, Text(ERROR_MARK))
            else:
                parts[0] = Text(ERROR_MARK + first.text, first.cache)
        if not parts:
            return ""
        if len(parts) == 1 and isinstance(parts[0], Text):
            self.mark(parts[0].cache)
            return parts[0].text
        return [self._part(part, "user") for part in parts]

    def tool(self, tool: Tool) -> Object:
        """A tool. Not strict, unless that was said: by default this format would be."""
        self.mark(tool.cache)
        schema = tool.schema if tool.schema is not None else {"type": "object", "properties": {}}
        described = {} if tool.description is None else {"description": tool.description}
        written = {"type": "function", "name": tool.name} | described
        return written | {"parameters": schema, "strict": bool(tool.strict)}


def _write_choice(choice: ToolChoice) -> Any:
    if choice.mode == "tool":
        return {"type": "function", "name": choice.name}
    return "required" if choice.mode == "any" else choice.mode


def _write_format(wanted: AnswerFormat) -> Object:
    if wanted.schema is None:
        return {"type": "json_object"}
    made: Object = {"type": "json_schema", "name": wanted.name or "answer", "schema": wanted.schema}
    if wanted.description is not None:
        made["description"] = wanted.description
    if wanted.strict is not None:
        made["strict"] = wanted.strict
    return made
