"""Requests in Gemini's format from and to the neutral conversation.

The model and whether to stream stand in the URL: ``read_request`` leaves both to its caller.

Three things need a form of their own:

- *Names of calls.* Models before Gemini 3 give none: such a call is named by its place, and a response that
  names none answers the first call of its function that has no answer yet.
- *What a function gave* is an object there: ``output`` or, where it failed, ``error`` holds the text, or a
  list of texts and of references to images beside it.
- *Signatures* of Google's stand at the part that they sign. Those of other providers, and thoughts that only
  another provider can read, travel as ``thoughtSignature`` too, marked, for it is the one field that every
  client brings back.

Protocol: https://ai.google.dev/api/generate-content, https://ai.google.dev/gemini-api/docs/thought-signatures
"""

from __future__ import annotations

import base64
import binascii
import json
import mimetypes
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from relay.formats.conversation import (
    AnswerFormat,
    Conversation,
    Image,
    Part,
    Reasoning,
    Refusal,
    Role,
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
from relay.formats.gemini_fields import CONFIG_PASSED, PASSED, Twice, camelised, is_image_address
from relay.formats.gemini_schema import json_schema
from relay.formats.reading import (
    Object,
    arguments_object,
    arguments_text,
    compact,
    encoded,
    image_type,
    items,
    mapping,
    object_schema,
    one_of,
    only,
    optional,
    text,
)
from relay.providers.profiles import Profile

CONFIG = "generationConfig"
PLACES = {
    "max_output": f"{CONFIG}.maxOutputTokens",
    "candidates": f"{CONFIG}.candidateCount",
    "temperature": f"{CONFIG}.temperature",
    "top_p": f"{CONFIG}.topP",
    "top_k": f"{CONFIG}.topK",
    "seed": f"{CONFIG}.seed",
    "frequency_penalty": f"{CONFIG}.frequencyPenalty",
    "presence_penalty": f"{CONFIG}.presencePenalty",
    "logprobs": f"{CONFIG}.responseLogprobs",
    "top_logprobs": f"{CONFIG}.logprobs",
    "stop": f"{CONFIG}.stopSequences",
    "effort": f"{CONFIG}.thinkingConfig.thinkingLevel",
    "thinking_budget": f"{CONFIG}.thinkingConfig.thinkingBudget",
    "answer_format": f"{CONFIG}.responseJsonSchema",
    "tool_choice": "toolConfig.functionCallingConfig",
}
# Limits of Google's own filters, and what it keeps: they say nothing about the answer.
_LEFT_OUT = ("safetySettings", "store")
_ROLES: dict[str, Role] = {"user": "user", "function": "user", "tool": "user", "model": "assistant"}
_DECLARED = ("name", "description", "parameters", "parametersJsonSchema")
_KINDS = ("text", "inlineData", "fileData", "functionCall", "functionResponse")
_BESIDE = ("thought", "thoughtSignature")
LEVELS = ("minimal", "low", "medium", "high")
# Models that know no levels, and the budgets that Google's own compatible API makes of them:
# https://ai.google.dev/gemini-api/docs/openai#thinking
_OLDER = ("gemini-1", "gemini-2")
_BUDGETS = {"minimal": 1_024, "low": 1_024, "medium": 8_192, "high": 24_576}
_MOST_STOPS = 5
_MOST_SEED = 2**31
# What Google documents for calls whose signature is not there, such as those of another model.
UNCHECKED = "skip_thought_signature_validator"
_NO_SIGNATURES = (
    UNCHECKED,
    base64.b64encode(UNCHECKED.encode()).decode(),
    "context_engineering_is_the_way_to_go",
)
_NUMBER = re.compile(r"-?[0-9]{1,20}")
_FOREIGN, _HIDDEN = b"relay:signature:", b"relay:hidden:"
_NOT_HERE = "this model's provider speaks Gemini's format, which has no such field; leave it out"
_STRICT = "VALIDATED"


# ---------------------------------------------------------------- signatures


def foreign_signature(signature: str) -> str:
    """Another provider's signature as Google's clients keep it: bytes in base64."""
    return base64.b64encode(_FOREIGN + signature.encode("utf-8", "surrogatepass")).decode()


def hidden_signature(hidden: str) -> str:
    """The same for thoughts that only another provider can read."""
    return base64.b64encode(_HIDDEN + hidden.encode("utf-8", "surrogatepass")).decode()


def _unmarked(signature: str, mark: bytes) -> str | None:
    """What was marked so, else None. Some clients write base64 in the other alphabet."""
    standard = signature.replace("-", "+").replace("_", "/")
    try:
        given = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
        return given.removeprefix(mark).decode("utf-8", "surrogatepass") if given.startswith(mark) else None
    except (binascii.Error, ValueError):
        return None


# ---------------------------------------------------------------- reading


def read_request(body: bytes, drop_unknown: bool) -> Conversation:
    """See Format."""
    try:
        fields: Object = camelised(json.loads(body))
    except Twice as twice:
        raise Untranslatable(twice.name, "it is there in two notations; send it once") from None
    left_out = [name for name in _LEFT_OUT if fields.pop(name, None) is not None]
    config = dict(mapping(fields.get(CONFIG, {}), CONFIG))
    if drop_unknown:
        left_out += sorted(fields.keys() - PASSED)
        left_out += sorted(f"{CONFIG}.{name}" for name in config.keys() - CONFIG_PASSED)
        fields = {name: fields[name] for name in fields.keys() & PASSED}
        config = {name: config[name] for name in config.keys() & CONFIG_PASSED}
    only(fields, PASSED, "")
    only(config, CONFIG_PASSED - {"mediaResolution", "enableEnhancedCivicAnswers"}, CONFIG)
    made = Conversation(
        model="",
        turns=_read_turns(fields),
        include_usage=True,
        tools=list(_read_tools(fields.get("tools"))),
        answer_format=_read_format(config),
        max_output=_whole(config, "maxOutputTokens"),
        candidates=_whole(config, "candidateCount") or 1,
        top_k=_whole(config, "topK"),
        seed=_whole(config, "seed"),
        stop=[text(word, PLACES["stop"]) for word in items(config.get("stopSequences"), PLACES["stop"])],
        logprobs=optional(config.get("responseLogprobs"), bool, PLACES["logprobs"]) or None,
        top_logprobs=_whole(config, "logprobs") or None,
        places=PLACES,
        left_out=left_out,
    )
    for field, name in (("temperature", "temperature"), ("top_p", "topP")):
        setattr(made, field, optional(config.get(name), float, PLACES[field]))
    for field, name in (("frequency_penalty", "frequencyPenalty"), ("presence_penalty", "presencePenalty")):
        setattr(made, field, optional(config.get(name), float, PLACES[field]) or None)
    _read_choice(fields.get("toolConfig"), made)
    _read_thinking(config.get("thinkingConfig"), made)
    return made


def _whole(config: Object, name: str) -> int | None:
    """A whole number, which Google also takes as a text."""
    value = config.get(name)
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value)
    found: int | None = optional(value, int, f"{CONFIG}.{name}")
    return found


def _read_turns(fields: Object) -> list[Turn]:
    turns: list[Turn] = []
    if "systemInstruction" in fields:
        place = "systemInstruction"
        system = mapping(fields[place], place)
        parts = _located(system, place)
        turns.append(Turn("system", [*_Parts().read(parts)], place=place))
    calls = _Parts()
    for role, place, parts in _contents(fields):
        turns.append(Turn(role, [*calls.read(parts)], place=place))
    return merged(turns)


_Located = list[tuple[Object, str]]


def _located(content: Object, place: str) -> _Located:
    """The parts of a content, each with its place."""
    only(content, ("role", "parts"), place)
    return [
        (mapping(part, f"{place}.parts[{number}]"), f"{place}.parts[{number}]")
        for number, part in enumerate(items(content.get("parts"), f"{place}.parts"))
    ]


def _contents(fields: Object) -> list[tuple[Role, str, _Located]]:
    """(role, place, parts) of the contents, neighbours of one role as one: clients that keep a stream's
    pieces send each in a content of its own."""
    joined: list[tuple[Role, str, _Located]] = []
    for number, content in enumerate(items(fields.get("contents"), "contents")):
        place = f"contents[{number}]"
        content = mapping(content, place)
        role = _ROLES[one_of(content.get("role", "user"), tuple(_ROLES), f"{place}.role")]
        parts = _located(content, place)
        if joined and joined[-1][0] == role:
            joined[-1][2].extend(parts)
        else:
            joined.append((role, place, parts))
    return joined


class _Parts:
    """Reads parts, and knows the calls that are still without a response."""

    def __init__(self) -> None:
        self._waiting: list[ToolCall] = []

    def read(self, parts: _Located) -> Iterator[Part]:
        """The neutral parts of one turn."""
        thoughts: list[Reasoning] = []
        for part, place in parts:
            for made in self._part(part, place):
                if not isinstance(made, Reasoning):
                    yield from thoughts
                    thoughts = []
                    yield made
                elif part.get("thought") and made.signature and not made.text:
                    # The signature of a stream's thoughts follows their pieces.
                    yield _signed(thoughts, made)
                    thoughts = []
                elif made.signature or made.hidden:
                    yield from thoughts
                    thoughts = []
                    yield made
                else:
                    thoughts.append(made)
        yield from thoughts

    def _part(self, part: Object, place: str) -> Iterator[Part]:
        _check_kind(part, place)
        given = text(part.get("thoughtSignature", ""), f"{place}.thoughtSignature")
        foreign, hidden = _unmarked(given, _FOREIGN), _unmarked(given, _HIDDEN)
        own = None if foreign or hidden or given in _NO_SIGNATURES else given or None
        if hidden:
            yield Reasoning(hidden=hidden, place=place)
            return
        said = text(part.get("text", ""), f"{place}.text")
        if part.get("thought"):
            if said or foreign or own:
                yield Reasoning(said, foreign or own, place=place)
            return
        if foreign:
            yield Reasoning("", foreign, place=place)
        if "functionCall" in part:
            yield self._call(part["functionCall"], own, f"{place}.functionCall")
        elif "functionResponse" in part:
            yield self._result(part["functionResponse"], f"{place}.functionResponse")
        elif "inlineData" in part or "fileData" in part:
            yield _read_media(part, place)
        elif said:
            yield Text(said, signature=own, place=place)
        elif own:
            yield Reasoning("", own, place=place)

    def _call(self, call: Any, signature: str | None, place: str) -> ToolCall:
        call = mapping(call, place)
        only(call, ("name", "args", "id"), place)
        name = text(call.get("name"), f"{place}.name")
        arguments = arguments_text(mapping(call.get("args", {}), f"{place}.args"))
        given = text(call.get("id", ""), f"{place}.id")
        made = ToolCall(given or _name_of(place), name, arguments, signature, place=place)
        self._waiting.append(made)
        return made

    def _result(self, result: Any, place: str) -> ToolResult:
        result = mapping(result, place)
        only(result, ("name", "id", "response", "parts"), place)
        name = text(result.get("name", ""), f"{place}.name")
        given = text(result.get("id", ""), f"{place}.id")
        call = next(
            (one for one in self._waiting if one.id == given or (not given and one.name == name)), None
        )
        if call is not None:
            self._waiting.remove(call)
        elif not given:
            raise Untranslatable(f"{place}.name", f"no call of '{name[:100]}' waits for a response")
        parts, failed = _read_response(result, place)
        call_id = call.id if call is not None else given
        return ToolResult(call_id, parts, failed, name=name or (call.name if call else None), place=place)


def _check_kind(part: Object, place: str) -> None:
    only(part, (*_BESIDE, *_KINDS), place)
    if len(part.keys() & _KINDS) > 1:
        raise Untranslatable(place, f"a part is one of {', '.join(_KINDS)}; send several parts")


def _signed(thoughts: list[Reasoning], signature: Reasoning) -> Reasoning:
    place = thoughts[0].place if thoughts else signature.place
    return Reasoning("".join(thought.text for thought in thoughts), signature.signature, place=place)


def _name_of(place: str) -> str:
    """A name for a call that has none: by its place, which the same conversation always gives it."""
    return "call_" + "_".join("".join(sign if sign.isdigit() else " " for sign in place).split())


def _read_media(part: Object, place: str) -> Image:
    if "fileData" in part:
        where = f"{place}.fileData"
        file = mapping(part["fileData"], where)
        only(file, ("fileUri", "mimeType", "displayName"), where)
        return Image(url=text(file.get("fileUri"), f"{where}.fileUri"), place=place)
    where = f"{place}.inlineData"
    data = mapping(part["inlineData"], where)
    only(data, ("mimeType", "data", "displayName"), where)
    kind = image_type(text(data.get("mimeType"), f"{where}.mimeType"))
    if not kind.startswith("image/"):
        raise Untranslatable(
            f"{where}.mimeType", "images alone can be sent to this model's provider; send its text"
        )
    # Others take one of base64's two alphabets.
    standard = text(data.get("data"), f"{where}.data").replace("-", "+").replace("_", "/")
    return Image(kind, standard, place=place)


def _read_response(result: Object, place: str) -> tuple[list[Text | Image], bool]:
    """(texts and images that a function gave, whether it failed)."""
    response = mapping(result.get("response", {}), f"{place}.response")
    images: dict[str, Image] = {}
    for number, part in enumerate(items(result.get("parts"), f"{place}.parts")):
        where = f"{place}.parts[{number}]"
        only(mapping(part, where), ("inlineData", "fileData"), where)
        shown = mapping(next(iter(part.values()), None), where)
        images[str(shown.get("displayName", number))] = _read_media(part, where)
    failed = list(response) == ["error"]
    given: Any = response
    if len(response) == 1 and next(iter(response)) in ("output", "result", "error"):
        given = next(iter(response.values()))
    parts: list[Text | Image] = []
    for one in given if isinstance(given, list) and _is_ours(given, images) else [given]:
        if isinstance(one, dict) and list(one) == ["$ref"] and one["$ref"] in images:
            parts.append(images.pop(one["$ref"]))
        elif one not in ("", {}):
            parts.append(Text(one if isinstance(one, str) else compact(one), place=f"{place}.response"))
    return [*parts, *images.values()], failed


def _is_ours(given: list[Any], images: dict[str, Image]) -> bool:
    """Whether a list holds texts and references to images alone, as ``_response`` writes it."""
    return all(
        isinstance(one, str)
        or (isinstance(one, dict) and list(one) == ["$ref"] and str(one["$ref"]) in images)
        for one in given
    )


def _read_tools(tools: Any) -> Iterator[Tool]:
    for number, tool in enumerate(items(tools, "tools")):
        tool = mapping(tool, f"tools[{number}]")
        only(tool, ("functionDeclarations",), f"tools[{number}]")
        where = f"tools[{number}].functionDeclarations"
        for position, declared in enumerate(items(tool.get("functionDeclarations"), where)):
            place = f"{where}[{position}]"
            declared = mapping(declared, place)
            only(declared, _DECLARED, place)
            schema = declared.get("parametersJsonSchema")
            if "parameters" in declared:
                schema = json_schema(declared["parameters"], f"{place}.parameters")
            name = text(declared.get("name"), f"{place}.name")
            described = optional(declared.get("description"), str, f"{place}.description")
            yield Tool(name, described, object_schema(schema), place=place)


def _read_choice(config: Any, made: Conversation) -> None:
    if config is None:
        return
    only(mapping(config, "toolConfig"), ("functionCallingConfig",), "toolConfig")
    place = PLACES["tool_choice"]
    calling = mapping(config.get("functionCallingConfig", {}), place)
    only(calling, ("mode", "allowedFunctionNames"), place)
    modes = ("AUTO", "ANY", "NONE", _STRICT, "MODE_UNSPECIFIED")
    mode = one_of(str(calling.get("mode", "AUTO")).upper(), modes, f"{place}.mode")
    allowed = items(calling.get("allowedFunctionNames"), f"{place}.allowedFunctionNames")
    if mode == _STRICT:
        for tool in made.tools:
            tool.strict = True
    if allowed and (mode != "ANY" or len(allowed) > 1):
        where = f"{place}.allowedFunctionNames"
        raise Untranslatable(
            where, "with mode ANY and one name; else send only the functions that are allowed"
        )
    if allowed:
        made.tool_choice = ToolChoice("tool", text(allowed[0], f"{place}.allowedFunctionNames"))
    elif mode in ("ANY", "NONE"):
        made.tool_choice = ToolChoice("any" if mode == "ANY" else "none")


def _read_thinking(config: Any, made: Conversation) -> None:
    if config is None:
        return
    place = f"{CONFIG}.thinkingConfig"
    only(mapping(config, place), ("includeThoughts", "thinkingBudget", "thinkingLevel"), place)
    level = optional(config.get("thinkingLevel"), str, PLACES["effort"])
    if level and not level.upper().endswith("UNSPECIFIED"):
        made.effort = level.lower()
    budget = optional(config.get("thinkingBudget"), int, PLACES["thinking_budget"])
    if budget == 0:
        made.thinking = "off"
    elif budget is not None or config.get("includeThoughts"):
        made.thinking = "on"
        made.thinking_budget = budget if budget is not None and budget > 0 else None


def _read_format(config: Object) -> AnswerFormat | None:
    place = f"{CONFIG}.responseMimeType"
    kind = one_of(config.get("responseMimeType", "text/plain"), ("text/plain", "application/json"), place)
    if "responseSchema" in config:
        return AnswerFormat(json_schema(config["responseSchema"], f"{CONFIG}.responseSchema"))
    if "responseJsonSchema" in config:
        return AnswerFormat(mapping(config["responseJsonSchema"], PLACES["answer_format"]))
    return AnswerFormat() if kind == "application/json" else None


# ---------------------------------------------------------------- writing


def write_request(conversation: Conversation, model: str, max_output: int, profile: Profile) -> Written:
    """See Format."""
    made = conversation
    made.refuse("logprobs", "top_logprobs", remedy=_NOT_HERE)
    if made.candidates != 1:
        raise Untranslatable(made.place_of("candidates"), "only one answer a call can be had; send 1")
    if made.tools_one_by_one and made.tools:
        place = made.place_of("tools_one_by_one")
        raise Untranslatable(place, "this model may call several tools in one answer; leave it out")
    writer = _Writer(list(made.left_out), signs=not model.startswith(_OLDER))
    fields: Object = {}
    system, turns = writer.split(made.turns)
    if system:
        fields["systemInstruction"] = {"parts": [part for turn in system for part in writer.parts(turn)]}
    fields["contents"] = [writer.content(turn) for turn in turns]
    if made.tools:
        fields["tools"] = [{"functionDeclarations": [writer.tool(tool) for tool in made.tools]}]
    fields |= _write_choice(made)
    fields[CONFIG] = _write_config(made, model, max_output, writer)
    if made.cache is not None:
        writer.leave_out("cache_control")
    if made.user is not None:
        writer.leave_out(made.place_of("user"))
    return Written(encoded(fields), writer.left_out)


class _Writer:
    """``signs``: the model wants its calls' signatures back."""

    def __init__(self, left_out: list[str], signs: bool) -> None:
        self.left_out, self._signs = left_out, signs
        self._names: dict[str, str] = {}

    def leave_out(self, name: str) -> None:
        if name not in self.left_out:
            self.left_out.append(name)

    def split(self, turns: Sequence[Turn]) -> tuple[list[Turn], list[Turn]]:
        """System turns, and the others. This format has one place for instructions, before all else: later
        ones keep their rank and lose their place, which is named.
        """
        found = merged(turns)
        system = [turn for turn in found if turn.role == "system"]
        for turn in system:
            if turn is not found[0]:
                self.leave_out(f"{turn.place} (its place)")
        return system, merged([turn for turn in found if turn.role != "system"])

    def content(self, turn: Turn) -> Object:
        """A turn."""
        return {"role": "model" if turn.role == "assistant" else "user", "parts": self.parts(turn)}

    def parts(self, turn: Turn) -> list[Object]:
        """The parts of a turn; a signature without thoughts stands at the part that follows it."""
        if turn.name is not None:
            raise Untranslatable(f"{turn.place}.name", _NOT_HERE)
        written: list[Object] = []
        signature: str | None = None
        unsigned = self._signs
        # Results must come first; the rest keeps its order.
        for part in sorted(turn.parts, key=lambda part: not isinstance(part, ToolResult)):
            if isinstance(part, Text | ToolCall) and part.signature is None and signature is not None:
                signed, signature = signature, None
                written.append(self._part(part) | {"thoughtSignature": signed})
            else:
                if signature is not None:
                    written.append({"text": "", "thoughtSignature": signature})
                signature = None
                if isinstance(part, Reasoning) and part.signature and not part.text:
                    signature = part.signature
                else:
                    written.append(self._part(part))
            if isinstance(part, ToolCall):
                if unsigned and "thoughtSignature" not in written[-1]:
                    written[-1]["thoughtSignature"] = UNCHECKED
                unsigned = False
        return written if signature is None else [*written, {"text": "", "thoughtSignature": signature}]

    def _part(self, part: Part) -> Object:
        if isinstance(part, Text):
            self._mark(part.cache)
            return {"text": part.text} | _signature(part.signature)
        if isinstance(part, Image):
            return self._image(part)
        if isinstance(part, Reasoning):
            if part.hidden is not None:
                remedy = (
                    "thoughts that another provider has encrypted cannot be sent to this one; leave them out"
                )
                raise Untranslatable(part.place, remedy)
            return {"text": part.text, "thought": True} | _signature(part.signature)
        if isinstance(part, ToolCall):
            self._mark(part.cache)
            self._names[part.id] = part.name
            return write_call(part)
        if isinstance(part, Refusal):
            raise Untranslatable(
                part.place, "a refusal cannot be sent to this model's provider; send it as text"
            )
        return {"functionResponse": self._result(part)}

    def _mark(self, cache: str | None) -> None:
        """Google caches by itself."""
        if cache is not None:
            self.leave_out("cache_control")

    def _image(self, image: Image) -> Object:
        self._mark(image.cache)
        if image.detail is not None:
            self.leave_out(f"{image.place}.detail")
        if image.url is None:
            return {"inlineData": {"mimeType": image.media_type, "data": image.data}}
        if not is_image_address(image.url):
            remedy = "this model's provider takes images from public https addresses alone; send it as base64"
            raise Untranslatable(image.place, remedy)
        kind = mimetypes.guess_type(image.url.partition("?")[0])[0] or ""
        return {
            "fileData": {
                "fileUri": image.url,
                "mimeType": kind if kind.startswith("image/") else "image/jpeg",
            }
        }

    def _result(self, result: ToolResult) -> Object:
        self._mark(result.cache)
        name = self._names.get(result.call_id) or result.name
        if name is None:
            raise Untranslatable(
                result.place, f"there is no call '{result.call_id[:100]}' before it; send it too"
            )
        given: list[Any] = []
        parts: list[Object] = []
        for part in result.parts:
            if isinstance(part, Text):
                self._mark(part.cache)
                given.append(part.text)
            else:
                reference = f"image-{len(parts) + 1}"
                given.append({"$ref": reference})
                ((kind, data),) = self._image(part).items()
                parts.append({kind: data | {"displayName": reference}})
        plain = len(given) < 2 and not parts
        response = {"error" if result.is_error else "output": "".join(given) if plain else given}
        made: Object = {"id": result.call_id, "name": name, "response": response}
        return made | ({"parts": parts} if parts else {})

    def tool(self, tool: Tool) -> Object:
        """A tool's declaration. Every keyword of JSON Schema has its place in it."""
        self._mark(tool.cache)
        made: Object = {"name": tool.name}
        if tool.description is not None:
            made["description"] = tool.description
        if tool.schema is not None:
            made["parametersJsonSchema"] = tool.schema
        return made


def write_call(call: ToolCall) -> Object:
    """A part that is a call."""
    made: Object = {"id": call.id, "name": call.name, "args": arguments_object(call.arguments)}
    return {"functionCall": made} | _signature(call.signature)


def _signature(signature: str | None) -> Object:
    return {} if signature is None else {"thoughtSignature": signature}


def _write_choice(made: Conversation) -> Object:
    """Left alone a model may call by no schema: strict tools ask for the mode that does not let it. Calls
    that are forced are by their schema anyway."""
    choice = made.choice
    calling: Object = {}
    if choice is not None and choice.mode != "auto":
        calling["mode"] = "NONE" if choice.mode == "none" else "ANY"
        if choice.mode == "tool":
            calling["allowedFunctionNames"] = [choice.name]
    elif any(tool.strict for tool in made.tools):
        calling["mode"] = _STRICT
    return {"toolConfig": {"functionCallingConfig": calling}} if calling else {}


def _write_config(made: Conversation, model: str, max_output: int, writer: _Writer) -> Object:
    if len(made.stop) > _MOST_STOPS:
        raise Untranslatable(made.place_of("stop"), f"this model takes {_MOST_STOPS} at most")
    if made.seed is not None and not -_MOST_SEED <= made.seed < _MOST_SEED:
        raise Untranslatable(made.place_of("seed"), f"this model takes numbers below {_MOST_SEED}")
    values = {
        "maxOutputTokens": made.max_output or max_output,
        "temperature": made.temperature,
        "topP": made.top_p,
        "topK": made.top_k,
        "stopSequences": made.stop or None,
        "seed": made.seed,
        "frequencyPenalty": made.frequency_penalty,
        "presencePenalty": made.presence_penalty,
        "thinkingConfig": _write_thinking(made, model) or None,
    }
    config: Object = {name: value for name, value in values.items() if value is not None}
    wanted = made.answer_format
    if wanted is not None:
        config["responseMimeType"] = "application/json"
        if wanted.schema is not None:
            config["responseJsonSchema"] = wanted.schema
        labels = {"name": wanted.name, "description": wanted.description, "strict": wanted.strict}
        place = made.place_of("answer_format")
        for name, value in labels.items():
            if value is not None:
                writer.leave_out(f"{place}.{name}")
    return config


def _write_thinking(made: Conversation, model: str) -> Object:
    """How hard to think, as the model's generation has it; who wants thoughts sees them."""
    if made.effort == "none" or (made.thinking == "off" and made.effort is None):
        return {"thinkingBudget": 0}
    if made.effort is not None:
        level = one_of(made.effort, LEVELS, made.place_of("effort"))
        if model.startswith(_OLDER):
            return {"includeThoughts": True, "thinkingBudget": _BUDGETS[level]}
        return {"includeThoughts": True, "thinkingLevel": level}
    if made.thinking != "on":
        return {}
    budget = {} if made.thinking_budget is None else {"thinkingBudget": made.thinking_budget}
    return {"includeThoughts": True} | budget


def thought_part(thought: Reasoning) -> Object:
    """Thoughts of an answer. Their signature is another provider's: Google's own are not read here."""
    if thought.hidden is not None:
        return {"text": "", "thought": True, "thoughtSignature": hidden_signature(thought.hidden)}
    signature = None if thought.signature is None else foreign_signature(thought.signature)
    return {"text": thought.text, "thought": True} | _signature(signature)


def content_of(parts: Iterable[Object]) -> Object:
    """What a model says."""
    return {"parts": list(parts), "role": "model"}
