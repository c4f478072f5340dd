"""Reading ``POST /v1/chat/completions`` (OpenAI's format) and bounding what it can cost.

Top-level fields are read one by one and written anew for the provider, so that both of us see the same value
of a field that a client sent twice; what is inside a field passes untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from relay.errors import ApiError, bad_request
from relay.formats.json_depth import check_depth
from relay.formats.request import Request
from relay.formats.text_estimate import split_text, text_estimate
from relay.settings import Settings

T = TypeVar("T")
Fields = dict[str, msgspec.Raw]

_PASSED = (
    "chat_template_kwargs enable_thinking frequency_penalty function_call functions logit_bias logprobs "
    "max_completion_tokens max_tokens messages metadata min_p modalities model n parallel_tool_calls "
    "presence_penalty prompt_cache_key reasoning_effort repetition_penalty response_format "
    "safety_identifier seed service_tier stop store stream stream_options temperature thinking "
    "tool_choice tools top_k top_logprobs top_p user verbosity "
)
PASSED = frozenset(_PASSED.split())
REFUSED = {
    "audio": "audio output has no price here",
    "web_search_options": "web search has no price here",
    "prediction": "predicted outputs can be billed beyond max_completion_tokens",
    "best_of": "use n",
    "input": "that is a field of /v1/responses and /v1/embeddings",
    "prompt": "that is a field of /v1/completions: use messages",
}
PRICED_PARTS = frozenset({"text", "refusal", "image_url"})
# Fields whose text the provider counts as prompt.
PROMPT_FIELDS = ("messages", "tools", "functions", "response_format")
TOKENS_A_MESSAGE = 4
MAX_CHOICES = 128
USAGE_WANTED = msgspec.Raw(b'{"include_usage":true}')


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    """What is read of a message; everything else passes untouched."""

    role: str
    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct):
    """``stream_options``."""

    include_usage: bool = False


_encode = msgspec.json.Encoder().encode
_fields = msgspec.json.Decoder(Fields)
_messages = msgspec.json.Decoder(list[ChatMessage])
_count = msgspec.json.Decoder(int | None)
_flag = msgspec.json.Decoder(bool | None)
_text = msgspec.json.Decoder(str)
_optional_text = msgspec.json.Decoder(str | None)
_texts = msgspec.json.Decoder(list[str] | None)
_stream_options = msgspec.json.Decoder(StreamOptions | None)


@dataclass(slots=True)
class ChatRequest(Request):
    """A request in OpenAI's chat format; ``output_is_capped``: it says itself how long answers may be."""

    fields: Fields
    include_usage: bool
    choices: int
    output_is_capped: bool
    messages: list[ChatMessage]


def parse(body: bytes, settings: Settings) -> ChatRequest:
    """Check a body; raises ApiError 400 naming the field."""
    check_depth(body, settings.max_depth)
    try:
        fields = _fields.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise bad_request(None, f"The body is not a valid JSON object: {error}", "invalid_json") from None
    _check_names(fields)
    model = _read(fields, "model", _text, required=True)
    messages = _read(fields, "messages", _messages, required=True)
    if not model or len(model) > 200:
        raise bad_request("model", "model must be a name of 1 to 200 characters.")
    if not messages:
        raise bad_request("messages", "messages must not be empty.")
    images = _check_parts(messages)
    _check_prices(fields)
    stream = bool(_read(fields, "stream", _flag))
    options = _read(fields, "stream_options", _stream_options)
    if options is not None and not stream:
        raise bad_request("stream_options", "stream_options is only allowed with stream: true.")
    choices = _bounded(fields, "n", MAX_CHOICES) or 1
    limit, capped = _output_limit(fields, settings.default_max_output)
    return ChatRequest(
        fields=fields,
        model=model,
        stream=stream,
        include_usage=options is not None and options.include_usage,
        choices=choices,
        max_output=limit * choices,
        output_is_capped=capped,
        input_bound=_input_bound(fields, len(messages), images, settings.image_hold_tokens),
        images=images,
        messages=messages,
    )


def prompt_estimate(messages: list[ChatMessage]) -> int:
    """Counted tokens of a prompt whose usage the provider did not tell: 4 a message and its text's
    estimate.
    """
    total = TOKENS_A_MESSAGE * len(messages)
    for message in messages:
        if isinstance(message.content, str):
            total += text_estimate(*split_text(message.content))
        elif message.content:
            text = "".join(part.text or "" for part in message.content)
            total += text_estimate(*split_text(text))
    return total


def provider_request(request: ChatRequest, model: str) -> bytes:
    """The body for a provider that calls the model ``model``: usage asked for, output bounded as held for."""
    fields = dict(request.fields)
    fields["model"] = msgspec.Raw(_encode(model))
    if request.stream:
        fields["stream_options"] = USAGE_WANTED
    if not request.output_is_capped:
        fields["max_completion_tokens"] = msgspec.Raw(_encode(request.max_output // request.choices))
    return _encode(fields)


def _check_names(fields: Fields) -> None:
    for name in fields.keys() - PASSED:
        if name in REFUSED:
            raise bad_request(name, f"{name} is not supported: {REFUSED[name]}.", "unsupported_parameter")
        raise bad_request(name, f"Unrecognized request argument supplied: {name}", "unknown_parameter")


def _check_parts(messages: list[ChatMessage]) -> int:
    images = 0
    for number, message in enumerate(messages):
        for position, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if part.type not in PRICED_PARTS:
                where = f"messages[{number}].content[{position}].type"
                raise bad_request(
                    where, f"{where}: '{part.type}' has no price here; use text.", "unsupported_content"
                )
            images += part.type == "image_url"
    return images


def _check_prices(fields: Fields) -> None:
    modalities = _read(fields, "modalities", _texts)
    if modalities is not None and modalities != ["text"]:
        raise bad_request(
            "modalities", 'modalities: only ["text"] has a price here.', "unsupported_parameter"
        )
    tier = _read(fields, "service_tier", _optional_text)
    if tier not in (None, "auto", "default"):
        message = f"service_tier: '{tier}' has no price here; use 'auto' or leave it out."
        raise bad_request("service_tier", message, "unsupported_parameter")


def _output_limit(fields: Fields, default: int) -> tuple[int, bool]:
    """(tokens a choice may have, whether the request says so itself)."""
    limits = [_bounded(fields, name, 10_000_000) for name in ("max_completion_tokens", "max_tokens")]
    given = [limit for limit in limits if limit is not None]
    if len(given) == 2:
        message = "Set max_completion_tokens or max_tokens, not both."
        raise bad_request("max_tokens", message, "conflicting_parameters")
    return (given[0], True) if given else (default, False)


def _input_bound(fields: Fields, messages: int, images: int, image_tokens: int) -> int:
    """No tokenizer makes more tokens than a text has bytes, and its JSON never has fewer bytes than it."""
    size = sum(len(memoryview(fields[name])) for name in PROMPT_FIELDS if name in fields)
    return size + TOKENS_A_MESSAGE * messages + images * image_tokens


def _bounded(fields: Fields, name: str, most: int) -> int | None:
    value: int | None = _read(fields, name, _count)
    if value is not None and not 1 <= value <= most:
        raise bad_request(name, f"{name} must be between 1 and {most}, not {value}.")
    return value


def _read(fields: Fields, name: str, decoder: msgspec.json.Decoder[T], *, required: bool = False) -> T | Any:
    raw = fields.get(name)
    if raw is None:
        if required:
            raise bad_request(name, f"You must provide the field '{name}'.", "missing_required_parameter")
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _wrong(name, str(error)) from None


def _wrong(name: str, problem: str) -> ApiError:
    """msgspec ends its messages with "- at `$[0].role`": that path names the field inside ``name``."""
    reason, _, path = problem.partition(" - at `$")
    where = name + path.rstrip("`")
    return bad_request(where, f"Invalid value for '{where}': {reason}.", "invalid_type")
