"""Reading ``POST /v1/chat/completions`` (OpenAI's format) and bounding what it can cost.

The fields, the messages and what a charge depends on inside them are read one by one and written anew for the
provider, so that both of us see the same value of a name that a client sent twice. Everything else passes
untouched. A field that is null counts as absent.

Protocol: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from relay.errors import ApiError, bad_request
from relay.formats.json_depth import check_depth
from relay.formats.openai_chat_fields import CUSTOMERS_TOOLS, FIELDS, IMAGE_PARTS, TEXT_PARTS, UNPRICED_PARTS
from relay.formats.request import Request
from relay.formats.text_estimate import split_text, text_estimate
from relay.providers.profiles import Profile
from relay.settings import Settings

Fields = dict[str, msgspec.Raw]

TOKENS_A_MESSAGE = 4
MAX_CHOICES = 128
MAX_OUTPUT = 10_000_000
SHOWN = 100  # characters of a customer's value that an error repeats
QUOTE, LIST, NULL = b'"[n'  # how texts, lists and null begin
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TRUE = msgspec.Raw(b"true")
# A pair of surrogates, one alone (the group), or any other escape.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.S
)

_encode = msgspec.json.Encoder().encode
_fields = msgspec.json.Decoder(Fields)
_objects = msgspec.json.Decoder(list[Fields])
_number = msgspec.json.Decoder(int | float)
_flag = msgspec.json.Decoder(bool)
_text = msgspec.json.Decoder(str)
_texts = msgspec.json.Decoder(list[str])


@dataclass(slots=True)
class ChatMessage:
    """A message; ``parts``: its content where that is a list."""

    fields: Fields
    parts: list[Fields] | None = None

    def text(self) -> str:
        """The text of its content."""
        if self.parts is not None:
            return "".join(_text_of(part.get("text")) for part in self.parts)
        return _text_of(self.fields.get("content"))


@dataclass(slots=True)
class ChatRequest(Request):
    """A request in OpenAI's chat format.

    ``unknown``: names of its fields that FIELDS does not know. ``output_is_capped``: it says itself how many
    tokens a choice may have.
    """

    fields: Fields
    unknown: frozenset[str]
    include_usage: bool
    choices: int
    output_is_capped: bool
    messages: list[ChatMessage]


def parse(body: bytes, settings: Settings) -> ChatRequest:
    """Check a body; raises ApiError 400 naming the field."""
    fields = _read_fields(body, settings.max_depth)
    unknown = frozenset(fields.keys() - FIELDS.keys())
    _apply_rules(fields)
    size = _prompt_bytes(fields, unknown)
    model = _read(fields, "model", _text, required=True)
    if not 1 <= len(model) <= 200:
        raise bad_request("model", "model must be a name of 1 to 200 characters.")
    messages = _read_messages(fields)
    images, others = _count_parts(messages)
    _check_tools(fields)
    _check_prices(fields)
    stream = bool(_read(fields, "stream", _flag))
    choices = _bounded(fields, "n", MAX_CHOICES) or 1
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
        input_bound=size + TOKENS_A_MESSAGE * len(messages) + (images + others) * settings.image_hold_tokens,
        images=images,
        messages=messages,
    )


def prompt_estimate(messages: list[ChatMessage]) -> int:
    """Counted tokens of a prompt whose usage the provider did not tell: 4 a message and its text's
    estimate.
    """
    texts = sum(text_estimate(*split_text(message.text())) for message in messages)
    return TOKENS_A_MESSAGE * len(messages) + texts


def counted_prompt(request: ChatRequest, image_tokens: int) -> int:
    """Counted tokens of a prompt with its images, each as many as are held for it."""
    return prompt_estimate(request.messages) + request.images * image_tokens


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
    fields["model"] = msgspec.Raw(_encode(model))
    if request.stream:
        options = _fields.decode(fields["stream_options"]) if "stream_options" in fields else {}
        fields["stream_options"] = msgspec.Raw(_encode(options | {"include_usage": _TRUE}))
    if not request.output_is_capped:
        fields[profile.output_limit] = msgspec.Raw(_encode(request.max_output // request.choices))
    return _encode(fields)


def _refuse_unknown(names: frozenset[str]) -> None:
    """Raise ApiError 400 for the first of the unknown fields, if there is any."""
    if names:
        name = min(names)
        raise bad_request(
            name[:SHOWN], f"Unrecognized request argument supplied: {name[:SHOWN]}", "unknown_parameter"
        )


def _read_fields(body: bytes, max_depth: int) -> Fields:
    check_depth(body, max_depth)
    body = body.removeprefix(_BYTE_ORDER_MARK)
    try:
        body.decode()
    except UnicodeDecodeError as error:
        message = f"The body is not UTF-8 (byte {error.start}): send JSON in UTF-8."
        raise bad_request(None, message, "invalid_json") from None
    try:
        fields = _decode_fields(body)
    except (msgspec.MsgspecError, UnicodeError) as error:
        message = f"The body is not a valid JSON object: {error}. Send an object with model and messages."
        raise bad_request(None, message, "invalid_json") from None
    return _without_nulls(fields)


def _decode_fields(body: bytes) -> Fields:
    """A half of a surrogate pair becomes U+FFFD, as browsers and most decoders have it; many clients cut a
    text within an emoji.
    """
    try:
        return _fields.decode(body)
    except msgspec.DecodeError:
        mended = _ESCAPE.sub(lambda escape: b"\\ufffd" if escape[1] else escape[0], body)
        if mended == body:
            raise
        return _fields.decode(mended)


def _without_nulls(fields: Fields) -> Fields:
    return {name: raw for name, raw in fields.items() if _starts(raw) != NULL}


def _starts(raw: msgspec.Raw) -> int:
    """The first byte of valid JSON, which tells its type."""
    return memoryview(raw)[0]


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
    objects: list[Fields] = _read(fields, "messages", _objects, required=True)
    if not objects:
        raise bad_request("messages", "messages must not be empty.")
    messages = [_read_message(item, number) for number, item in enumerate(objects)]
    fields["messages"] = msgspec.Raw(_encode(objects))
    return messages


def _read_message(fields: Fields, number: int) -> ChatMessage:
    if "role" not in fields or _starts(fields["role"]) != QUOTE:
        _require(fields, "role", f"messages[{number}]")
    start = _starts(fields["content"]) if "content" in fields else NULL
    if start in (QUOTE, NULL):
        return ChatMessage(fields)
    if start != LIST:
        place = f"messages[{number}].content"
        message = f"Invalid value for '{place}': Expected a string, a list of parts or null."
        raise bad_request(place, message, "invalid_type")
    parts: list[Fields] = _read(fields, "content", _objects, where=f"messages[{number}]")
    fields["content"] = msgspec.Raw(_encode(parts))
    return ChatMessage(fields, parts)


def _count_parts(messages: list[ChatMessage]) -> tuple[int, int]:
    """(images, parts of types that are unknown here)."""
    images = others = 0
    for number, message in enumerate(messages):
        for position, part in enumerate(message.parts or ()):
            where = f"messages[{number}].content[{position}]"
            kind: str = _require(part, "type", where)
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
    if text is not None and _starts(text) not in (QUOTE, NULL):
        place = f"{where}.text"
        raise bad_request(place, f"Invalid value for '{place}': Expected a string.", "invalid_type")


def _check_tools(fields: Fields) -> None:
    tools: list[Fields] | None = _read(fields, "tools", _objects)
    if tools is None:
        return
    for number, tool in enumerate(tools):
        kind = _read(tool, "type", _text, where=f"tools[{number}]")
        if kind is not None and kind not in CUSTOMERS_TOOLS:
            where = f"tools[{number}].type"
            text = f"{where}: '{kind[:SHOWN]}' has no price here; use function or custom."
            raise bad_request(where, text, "unsupported_parameter")
    fields["tools"] = msgspec.Raw(_encode(tools))


def _check_prices(fields: Fields) -> None:
    modalities = _read(fields, "modalities", _texts)
    if modalities is not None and modalities != ["text"]:
        raise bad_request(
            "modalities", 'modalities: only ["text"] has a price here.', "unsupported_parameter"
        )
    tier = _read(fields, "service_tier", _text)
    if tier not in (None, "auto", "default"):
        message = f"service_tier: '{tier[:SHOWN]}' has no price here; use 'auto' or leave it out."
        raise bad_request("service_tier", message, "unsupported_parameter")


def _usage_is_wanted(fields: Fields, stream: bool) -> bool:
    options: Fields | None = _read(fields, "stream_options", _fields)
    if options is None:
        return False
    if not stream:
        raise bad_request("stream_options", "stream_options is only allowed with stream: true.")
    options = _without_nulls(options)
    fields["stream_options"] = msgspec.Raw(_encode(options))
    return bool(_read(options, "include_usage", _flag, where="stream_options"))


def _output_limit(fields: Fields) -> int | None:
    """Tokens that a choice may have, where the request says so itself."""
    limits = [_bounded(fields, name, MAX_OUTPUT) for name in ("max_completion_tokens", "max_tokens")]
    given = [limit for limit in limits if limit is not None]
    if len(given) == 2:
        message = "Set max_completion_tokens or max_tokens, not both."
        raise bad_request("max_tokens", message, "conflicting_parameters")
    return given[0] if given else None


def _bounded(fields: Fields, name: str, most: int) -> int | None:
    """A whole number from 1 to ``most``, which may be written like 100.0, as OpenAI takes it."""
    value = _read(fields, name, _number)
    if value is None:
        return None
    if isinstance(value, float) and not value.is_integer():
        raise bad_request(name, f"Invalid value for '{name}': Expected a whole number.", "invalid_type")
    if not 1 <= value <= most:
        shown = _shown(fields[name])
        raise bad_request(name, f"{name} must be between 1 and {most}, not {shown}.")
    fields[name] = msgspec.Raw(_encode(int(value)))
    return int(value)


def _require(fields: Fields, name: str, where: str) -> str:
    """A text field that an object at ``where`` must have."""
    value: str = _read(fields, name, _text, required=True, where=where)
    return value


def _read(
    fields: Fields, name: str, decoder: msgspec.json.Decoder[Any], *, required: bool = False, where: str = ""
) -> Any:
    """Field ``name`` of the object at ``where``; None where it is absent or null. Raises ApiError 400."""
    place = f"{where}.{name}" if where else name
    raw = fields.get(name)
    if raw is None or _starts(raw) == NULL:
        if required:
            raise bad_request(place, f"You must provide the field '{place}'.", "missing_required_parameter")
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise _wrong(place, str(error)) from None


def _wrong(name: str, problem: str) -> ApiError:
    """msgspec ends its messages with "- at `$[0].role`": that path names the field inside ``name``."""
    reason, _, path = problem.partition(" - at `$")
    where = name + path.rstrip("`")
    return bad_request(where, f"Invalid value for '{where}': {reason}.", "invalid_type")


def _shown(raw: msgspec.Raw) -> str:
    return bytes(memoryview(raw)[:SHOWN]).decode("ascii", "replace")


def _text_of(raw: msgspec.Raw | None) -> str:
    """A text, or nothing where there is none."""
    if raw is None or _starts(raw) != QUOTE:
        return ""
    return _text.decode(raw)
