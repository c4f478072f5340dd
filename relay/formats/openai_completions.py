"""``POST /v1/completions``, OpenAI's older API: passed on, and metered like chat.

Protocol: https://platform.openai.com/docs/api-reference/completions/create
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from relay.errors import bad_request
from relay.formats.description import FLAG as A_FLAG
from relay.formats.description import INPUTS, NAME, Description, answer, body, whole
from relay.formats.json_fields import FLAG, OBJECT, TEXT, Fields, bounded, encode, read, without_nulls
from relay.formats.openai_chat_answer import USAGE_FORMAT, read_completion
from relay.formats.openai_embeddings import count, read_inputs
from relay.formats.passed import PassedApi, PassedRequest, check
from relay.providers import openai
from relay.providers.profiles import Profile
from relay.settings import Settings

MAX_CHOICES = 128
MAX_OUTPUT = 10_000_000
# OpenAI's default, which not every provider has.
USUAL_OUTPUT = 16
TOKENS_A_PROMPT = 8
_KNOWN = frozenset(
    {
        *("model", "prompt", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens"),
        *("n", "presence_penalty", "seed", "stop", "stream", "stream_options", "suffix", "temperature"),
        *("top_p", "user"),
    }
)
_TRUE = msgspec.Raw(b"true")


@dataclass(slots=True)
class CompletionRequest(PassedRequest):
    """A request of the older API. ``added``: fields that it gets beside its own."""

    added: Fields = field(default_factory=dict)

    def native(self, model: str, profile: Profile) -> bytes:
        """See Request: usage is asked for, and the output bounded as it was held for."""
        # super() does not work in a dataclass with slots
        body = PassedRequest.native(self, model, profile)
        return encode(OBJECT.decode(body) | self.added) if self.added else body


def parse(body: bytes, settings: Settings) -> CompletionRequest:
    """Check a body; raises ApiError 400 naming the field."""
    checked = check(body, settings, _KNOWN)
    fields = checked.fields
    prompts = read_inputs(fields, "prompt")
    stream = bool(read(fields, "stream", FLAG))
    limit = bounded(fields, "max_tokens", MAX_OUTPUT)
    wanted = bounded(fields, "n", MAX_CHOICES) or 1
    made = max(wanted, bounded(fields, "best_of", MAX_CHOICES) or 1)
    include_usage, options = _usage_is_wanted(fields, stream)
    added: Fields = {} if limit is not None else {"max_tokens": msgspec.Raw(encode(USUAL_OUTPUT))}
    if stream and not include_usage:
        added["stream_options"] = msgspec.Raw(encode(options | {"include_usage": _TRUE}))
    if read(fields, "suffix", TEXT) and len(prompts) > 1:
        raise bad_request("suffix", "suffix: send one prompt with it.", "unsupported_parameter")
    return CompletionRequest(
        model=checked.model,
        stream=stream,
        max_output=(limit or USUAL_OUTPUT) * made * len(prompts),
        # A token is at least one byte of its text, and at least one digit where it is sent as a number.
        input_bound=len(checked.body) + TOKENS_A_PROMPT * len(prompts),
        images=0,
        choices=wanted * len(prompts),
        include_usage=include_usage,
        body=checked.body,
        model_at=checked.model_at,
        unknown=checked.unknown,
        counted=sum(map(count, prompts)),
        added=added,
    )


def _usage_is_wanted(fields: Fields, stream: bool) -> tuple[bool, Fields]:
    options: Fields | None = read(fields, "stream_options", OBJECT)
    if options is None:
        return False, {}
    if not stream:
        raise bad_request("stream_options", "stream_options is only allowed with stream: true.")
    options = without_nulls(options)
    return bool(read(options, "include_usage", FLAG, where="stream_options")), options


ABOUT = Description(
    name="Completion",
    summary="Have a model go on with a text, by OpenAI's older API",
    reference="https://platform.openai.com/docs/api-reference/completions/create",
    request=body(
        _KNOWN,
        typed={
            "model": NAME,
            "prompt": INPUTS,
            "stream": A_FLAG,
            "stream_options": {"type": ["object", "null"], "properties": {"include_usage": A_FLAG}},
            "max_tokens": whole(MAX_OUTPUT),
            "n": whole(MAX_CHOICES),
            "best_of": whole(MAX_CHOICES),
        },
        required=("model", "prompt"),
    ),
    answer=answer(choices={"type": "array"}),
    streams=True,
)
API = PassedApi(openai.At("/completions"), USAGE_FORMAT, read_completion)
