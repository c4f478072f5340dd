"""Which fields, items and tools of ``POST /v1/responses`` are sent on, and which are refused.

One table, after OpenAI's reference. A field that is not in it is unknown: RELAY_UNKNOWN_FIELDS says whether
it is passed, dropped or refused. What is refused has no price here, is billed beyond what a request and its
``max_output_tokens`` bound, or needs answers that were kept: customers share an account at the provider, so
what is kept there cannot be asked for.
"""

from __future__ import annotations

from relay.formats.description import (
    FLAG,
    NAME,
    OBJECT,
    OBJECTS,
    Description,
    answer,
    body,
    one_of,
    whole,
)

MAX_OUTPUT = 10_000_000

PASSED = frozenset(
    {
        *("background", "client_metadata", "include", "input", "instructions", "max_output_tokens"),
        *("max_tool_calls", "metadata", "model", "moderation", "parallel_tool_calls", "prompt_cache_key"),
        *("prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier"),
        *("service_tier", "store", "stream", "stream_options", "temperature", "text", "tool_choice"),
        *("tools", "top_logprobs", "top_p", "truncation", "user"),
    }
)
_NOT_KEPT = "answers are not kept here; send all items in input"
REFUSED = {
    "previous_response_id": _NOT_KEPT,
    "conversation": _NOT_KEPT,
    "prompt": "it belongs to the account at the provider; send its text in instructions and input",
    "context_management": "compaction is billed beyond max_output_tokens and has no price here; leave it out",
    # where chat's fields went
    "messages": "use input",
    "max_tokens": "use max_output_tokens",
    "max_completion_tokens": "use max_output_tokens",
    "response_format": "use text.format",
    "reasoning_effort": "use reasoning.effort",
}
# Flags that may not be true.
REFUSED_FLAGS = {
    "background": "an answer comes with its call, or not at all; leave it out",
    "store": "answers are not kept here; send false, or leave it out",
}
PRICED_TIERS = ("auto", "default")

# Types of tools that the customer runs; a provider bills the others apart.
DECLARED_TOOLS = frozenset({"function", "custom"})
# Those whose instructions stand in no request; what they add to the prompt, in tokens, at most.
OWN_TOOLS = frozenset({"apply_patch", "computer", "computer_use_preview", "local_shell"})
TOOL_TOKENS = 2_000
# Tools that run where a field of theirs says: (the field's path, what it must be).
CUSTOMERS_SIDE = {"shell": (("environment", "type"), "local"), "tool_search": (("execution",), "client")}

# Where a client sends a tool unasked: how it is told not to.
TOOL_REMEDIES = {"web_search": 'leave it out (in Codex: web_search = "disabled")'}

# Types of a message's or result's parts. One that is in none of these lists is passed, and held like an
# image.
TEXT_PARTS = frozenset({"input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"})
IMAGE_PARTS = frozenset({"input_image", "computer_screenshot"})
UNPRICED_PARTS = frozenset({"input_file", "input_audio", "input_video", "output_audio"})
# Types of items whose tokens their bytes bound. One that is in none of these lists is passed, and held like
# an image.
TEXT_ITEMS = frozenset(
    {
        *(
            "additional_tools",
            "message",
            "reasoning",
            "function_call",
            "function_call_output",
            "custom_tool_call",
        ),
        *("custom_tool_call_output", "local_shell_call", "local_shell_call_output", "shell_call"),
        *("shell_call_output", "apply_patch_call", "apply_patch_call_output", "tool_search_call"),
        *("tool_search_output", "additional_tools", "computer_call", "computer_call_output"),
    }
)
_RUN_THERE = "what a provider's own tools did there has no price here; leave it out"
UNPRICED_ITEMS = {
    "item_reference": "answers are not kept here; send the item itself",
    "compaction": "compaction has no price here; send the items themselves",
    **dict.fromkeys(
        (
            *("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"),
            *("mcp_call", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response"),
        ),
        _RUN_THERE,
    ),
}

_FALSE = {"enum": [False, None]}
ABOUT = Description(
    name="Response",
    summary="Have a model answer, in OpenAI's Responses format; nothing is kept",
    reference="https://platform.openai.com/docs/api-reference/responses/create",
    request=body(
        PASSED,
        typed={
            "model": NAME,
            "input": {"anyOf": [{"type": "string"}, {"type": "array", "items": OBJECT, "minItems": 1}]},
            "instructions": {"type": ["string", "null"]},
            "max_output_tokens": whole(MAX_OUTPUT),
            "tools": OBJECTS,
            "stream": FLAG,
            "service_tier": one_of(*PRICED_TIERS),
            **{
                name: _FALSE | {"description": f"Not true: {reason}."}
                for name, reason in REFUSED_FLAGS.items()
            },
        },
        required=("model", "input"),
        refused=REFUSED,
    ),
    answer=answer(output={"type": "array"}),
    streams=True,
)
