"""Which fields of ``POST /v1/chat/completions`` are sent on, which are priced, and which are refused.

One table: OpenAI's reference, and what compatible providers and other gateways added to it. A field that is
not in it is unknown: RELAY_UNKNOWN_FIELDS says whether it is passed, dropped or refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from relay.formats.description import (
    FLAG,
    NAME,
    OBJECTS,
    TEXT,
    Description,
    Schema,
    answer,
    body,
    one_of,
    whole,
)

Handling = Literal["pass", "priced", "drop", "refuse"]
MAX_CHOICES = 128
MAX_OUTPUT = 10_000_000
PRICED_TIERS = ("auto", "default")


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to a field that is not null.

    ``handling``: ``pass``: it is sent on as it came; ``priced``: its value is checked, because the charge or
    its bound depends on it, then sent on; ``drop``: it is accepted and not sent on; ``refuse``: 400, and
    ``reason`` says why and what to send in its place.
    ``prompt``: the provider counts its text as input.
    """

    handling: Handling
    reason: str = ""
    prompt: bool = False


def _rules(handling: Handling, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), Rule(handling))


def _prompt(handling: Handling, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), Rule(handling, prompt=True))


def _refused(reason: str, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), Rule("refuse", reason))


FIELDS: dict[str, Rule] = {
    # OpenAI's reference
    **_rules(
        "priced", "model max_completion_tokens max_tokens modalities n service_tier stream stream_options"
    ),
    **_prompt("priced", "messages tools"),
    **_prompt("pass", "function_call functions response_format tool_choice"),
    **_rules("pass", "frequency_penalty logit_bias logprobs metadata moderation parallel_tool_calls"),
    **_rules("pass", "presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention"),
    **_rules("pass", "reasoning_effort safety_identifier seed stop store temperature top_logprobs top_p"),
    **_rules("pass", "user verbosity"),
    **_refused("audio output has no price here; leave it out", "audio"),
    **_refused("predicted outputs can be billed beyond max_completion_tokens; leave it out", "prediction"),
    **_refused("web search has no price here; leave it out", "web_search_options"),
    # compatible providers'
    **_rules("pass", "enable_thinking min_p repetition_penalty thinking top_k"),
    **_prompt("pass", "chat_template_kwargs"),
    **_refused("web search has no price here; leave it out", "enable_search search_parameters web_search"),
    **_refused("use n", "best_of use_beam_search"),
    **_refused("use max_completion_tokens", "max_length max_new_tokens max_output_tokens n_predict"),
    # other gateways'
    **_refused("the price is that of one model; name it in model", "fallbacks models route"),
    **_refused("what plugins do has no price here; leave it out", "plugins"),
    **_rules("drop", "api_base api_key api_version base_url"),  # settings of a client, and maybe its secret
    # other endpoints'
    **_refused("that is a field of /v1/responses and /v1/embeddings; use messages", "input"),
    **_refused("that is a field of /v1/completions; use messages", "prompt"),
}

# Types of a message's content parts. One that is in none of these lists is passed, and held like an image.
TEXT_PARTS = frozenset({"text", "refusal"})
IMAGE_PARTS = frozenset({"image_url", "image", "input_image"})
UNPRICED_PARTS = frozenset(
    {
        *("audio", "audio_url", "input_audio", "output_audio"),
        *("document", "file", "file_url", "input_file"),
        *("input_video", "video", "video_url"),
    }
)
# Types of tools that the customer runs; a provider bills the others apart.
CUSTOMERS_TOOLS = frozenset({"function", "custom"})

_PART: Schema = {"type": "object", "properties": {"type": TEXT}, "required": ["type"]}
_MESSAGE: Schema = {
    "type": "object",
    "properties": {
        "role": TEXT,
        "content": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _PART}]},
    },
    "required": ["role"],
}
ABOUT = Description(
    name="ChatCompletion",
    summary="Have a model answer messages, in OpenAI's chat format",
    reference="https://platform.openai.com/docs/api-reference/chat/create",
    request=body(
        (name for name, rule in FIELDS.items() if rule.handling in ("pass", "priced")),
        typed={
            "model": NAME,
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
            "tools": OBJECTS,
            "stream": FLAG,
            "stream_options": {"type": ["object", "null"], "properties": {"include_usage": FLAG}},
            "n": whole(MAX_CHOICES),
            "max_tokens": whole(MAX_OUTPUT),
            "max_completion_tokens": whole(MAX_OUTPUT),
            "modalities": {"enum": [["text"], None]},
            "service_tier": one_of(*PRICED_TIERS),
        },
        required=("model", "messages"),
        refused={name: rule.reason for name, rule in FIELDS.items() if rule.handling == "refuse"},
        dropped=(name for name, rule in FIELDS.items() if rule.handling == "drop"),
    ),
    answer=answer(choices={"type": "array"}),
    streams=True,
)
