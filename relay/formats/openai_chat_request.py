"""Reading ``POST /v1/chat/completions`` (OpenAI's format) and bounding what it can cost.

The fields, the messages and what a charge depends on inside them are read one by one and written anew for the
provider, so that both of us see the same value of a name that a client sent twice. Everything else passes
untouched. A field that is null counts as absent.

Protocol: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from relay.errors import bad_request
from relay.formats.json_fields import (
    FLAG,
    LIST,
    NULL,
    OBJECT,
    OBJECTS,
    QUOTE,
    SHOWN,
    TEXT,
    TEXTS,
    Fields,
    bounded,
    encode,
    read,
    read_fields,
    require,
    starts,
    text_of,
    without_nulls,
)
from relay.formats.openai_chat_fields import (
    CUSTOMERS_TOOLS,
    FIELDS,
    IMAGE_PARTS,
    MAX_CHOICES,
    MAX_OUTPUT,
    PRICED_TIERS,
    TEXT_PARTS,
    UNPRICED_PARTS,
)
from relay.formats.request import INSTRUCTION_TOKENS, Request
from relay.formats.text_estimate import json_estimate, split_text, text_estimate
from relay.providers.profiles import Profile
from relay.settings import Settings

TOKENS_A_MESSAGE = 4
_TRUE = msgspec.Raw(b"true")


@dataclass(slots=True)
class ChatMessage:
    """A message; ``parts``: its content where that is a list."""

    fields: Fields
    parts: list[Fields] | None = None

    def text(self) -> str:
        """The text of its content."""
        if self.parts is not None:
            return "".join(text_of(part.get("text")) for part in self.parts)
        return text_of(self.fields.get("content"))


@dataclass(slots=True)
class ChatRequest(Request):
    """A request in OpenAI's chat format.

    ``unknown``: names of its fields that FIELDS does not know. ``output_is_capped``: it says itself how many
    tokens a choice may have.
    """

    fields: Fields
    unknown: frozenset[str]
    output_is_capped: bool
    messages: list[ChatMessage]

    def native(self, model: str, profile: Profile) -> bytes:
        """See Request."""
        return provider_request(self, model, profile)

    def document(self) -> bytes:
        """See Request."""
        return encode(self.fields)

    def counted_prompt(self, image_tokens: int) -> int:
        """See Request."""
        tools = json_estimate(self.fields.get("tools"))
        return prompt_estimate(self.messages) + tools + self.images * image_tokens


def parse(body: bytes, settings: Settings) -> ChatRequest:
    """Check a body; raises ApiError 400 naming the field."""
    fields = read_fields(body, settings.max_depth)
    unknown = frozenset(fields.keys() - FIELDS.keys())
    _apply_rules(fields)
    size = _prompt_bytes(fields, unknown)
    model = read(fields, "model", TEXT, required=True)
    if not 1 <= len(model) <= 200:
        raise bad_request("model", "model must be a name of 1 to 200 characters.")
    messages = _read_messages(fields)
    images, others = _count_parts(messages)
    _check_tools(fields)
    _check_prices(fields)
    stream = bool(read(fields, "stream", FLAG))
    choices = bounded(fields, "n", MAX_CHOICES) or 1
    limit = _output_limit(fields)
    most = limit if limit is not None else settings.max_output_of(model)
    return ChatRequest(
        fields=fields,
        unknown=unknown,
        model=model,
        stream=stream,
        include_usage=_usage_is_wanted(fields, stream),
        choices=choices,
        max_output=most * choices,
        output_is_capped=limit is not None,
        # No tokenizer makes more tokens than a text has bytes, and its JSON never has fewer bytes than it.
        input_bound=size
        + TOKENS_A_MESSAGE * len(messages)
        + (images + others) * settings.image_hold_tokens
        + (INSTRUCTION_TOKENS if "tools" in fields else 0),
        images=images,
        messages=messages,
    )


def prompt_estimate(messages: list[ChatMessage]) -> int:
    """Counted tokens of a prompt whose usage the provider did not tell: 4 a message and the estimate of its
    text and calls.
    """
    texts = sum(text_estimate(*split_text(message.text())) for message in messages)
    calls = sum(json_estimate(message.fields.get("tool_calls")) for message in messages)
    return TOKENS_A_MESSAGE * len(messages) + texts + calls


def provider_request(request: ChatRequest, model: str, profile: Profile) -> bytes:
    """The body for a provider that calls the model ``model``: usage asked for, output bounded as held for.

    Raises ApiError 400 for unknown fields where the channel refuses them.
    """
    fields = dict(request.fields)
    if request.unknown and profile.unknown_fields != "pass":
        if profile.unknown_fields == "refuse":
            _refuse_unknown(request.unknown)
        for name in request.unknown:
            del fields[name]
    fields["model"] = msgspec.Raw(encode(model))
    if request.stream:
        options = OBJECT.decode(fields["stream_options"]) if "stream_options" in fields else {}
        fields["stream_options"] = msgspec.Raw(encode(options | {"include_usage": _TRUE}))
    if not request.output_is_capped:
        fields[profile.output_limit] = msgspec.Raw(encode(request.max_output // request.choices))
    return encode(fields)


def _refuse_unknown(names: frozenset[str]) -> None:
    """Raise ApiError 400 for the first of the unknown fields, if there is any."""
    if names:
        name = min(names)
        raise bad_request(
            name[:SHOWN], f"Unrecognized request argument supplied: {name[:SHOWN]}", "unknown_parameter"
        )


def _apply_rules(fields: Fields) -> None:
    for name in fields.keys() & FIELDS.keys():
        rule = FIELDS[name]
        if rule.handling == "refuse":
            raise bad_request(name, f"{name} is not supported: {rule.reason}.", "unsupported_parameter")
        if rule.handling == "drop":
            del fields[name]


def _prompt_bytes(fields: Fields, unknown: frozenset[str]) -> int:
    """Bytes of the fields that the provider may count as prompt: all unknown ones, too, with their names."""
    known = sum(len(memoryview(fields[name])) for name in fields.keys() - unknown if FIELDS[name].prompt)
    return known + sum(len(name.encode()) + len(memoryview(fields[name])) for name in unknown)


def _read_messages(fields: Fields) -> list[ChatMessage]:
    objects: list[Fields] = read(fields, "messages", OBJECTS, required=True)
    if not objects:
        raise bad_request("messages", "messages must not be empty.")
    messages = [_read_message(item, number) for number, item in enumerate(objects)]
    fields["messages"] = msgspec.Raw(encode(objects))
    return messages


def _read_message(fields: Fields, number: int) -> ChatMessage:
    if "role" not in fields or starts(fields["role"]) != QUOTE:
        require(fields, "role", f"messages[{number}]")
    start = starts(fields["content"]) if "content" in fields else NULL
    if start in (QUOTE, NULL):
        return ChatMessage(fields)
    if start != LIST:
        place = f"messages[{number}].content"
        message = f"Invalid value for '{place}': Expected a string, a list of parts or null."
        raise bad_request(place, message, "invalid_type")
    parts: list[Fields] = read(fields, "content", OBJECTS, where=f"messages[{number}]")
    fields["content"] = msgspec.Raw(encode(parts))
    return ChatMessage(fields, parts)


def _count_parts(messages: list[ChatMessage]) -> tuple[int, int]:
    """(images, parts of types that are unknown here)."""
    images = others = 0
    for number, message in enumerate(messages):
        for position, part in enumerate(message.parts or ()):
            where = f"messages[{number}].content[{position}]"
            kind: str = require(part, "type", where)
            if kind in UNPRICED_PARTS:
                text = f"{where}.type: '{kind}' has no price here; use text or image_url."
                raise bad_request(f"{where}.type", text, "unsupported_content")
            if kind in TEXT_PARTS:
                _check_text(part, where)
            elif kind in IMAGE_PARTS:
                images += 1
            else:
                others += 1
    return images, others


def _check_text(part: Fields, where: str) -> None:
    text = part.get("text")
    if text is not None and starts(text) not in (QUOTE, NULL):
        place = f"{where}.text"
        raise bad_request(place, f"Invalid value for '{place}': Expected a string.", "invalid_type")


def _check_tools(fields: Fields) -> None:
    tools: list[Fields] | None = read(fields, "tools", OBJECTS)
    if tools is None:
        return
    for number, tool in enumerate(tools):
        kind = read(tool, "type", TEXT, where=f"tools[{number}]")
        if kind is not None and kind not in CUSTOMERS_TOOLS:
            where = f"tools[{number}].type"
            text = f"{where}: '{kind[:SHOWN]}' has no price here; use function or custom."
            raise bad_request(where, text, "unsupported_parameter")
    fields["tools"] = msgspec.Raw(encode(tools))


def _check_prices(fields: Fields) -> None:
    modalities = read(fields, "modalities", TEXTS)
    if modalities is not None and modalities != ["text"]:
        raise bad_request(
            "modalities", 'modalities: only ["text"] has a price here.', "unsupported_parameter"
        )
    tier = read(fields, "service_tier", TEXT)
    if tier not in (None, *PRICED_TIERS):
        message = f"service_tier: '{tier[:SHOWN]}' has no price here; use 'auto' or leave it out."
        raise bad_request("service_tier", message, "unsupported_parameter")


def _usage_is_wanted(fields: Fields, stream: bool) -> bool:
    options: Fields | None = read(fields, "stream_options", OBJECT)
    if options is None:
        return False
    if not stream:
        raise bad_request("stream_options", "stream_options is only allowed with stream: true.")
    options = without_nulls(options)
    fields["stream_options"] = msgspec.Raw(encode(options))
    return bool(read(options, "include_usage", FLAG, where="stream_options"))


def _output_limit(fields: Fields) -> int | None:
    """Tokens that a choice may have, where the request says so itself."""
    limits = [bounded(fields, name, MAX_OUTPUT) for name in ("max_completion_tokens", "max_tokens")]
    given = [limit for limit in limits if limit is not None]
    if len(given) == 2:
        message = "Set max_completion_tokens or max_tokens, not both."
        raise bad_request("max_tokens", message, "conflicting_parameters")
    return given[0] if given else None
