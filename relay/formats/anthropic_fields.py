"""Which fields, blocks and tools of ``POST /v1/messages`` are sent on, and which are refused.

One table, after Anthropic's reference. A field that is not in it is unknown: RELAY_UNKNOWN_FIELDS says
whether it is passed, dropped or refused. What is refused is billed beyond what a request's size and
``max_tokens`` bound, or belongs to the account at the provider.
"""

from __future__ import annotations

from dataclasses import replace

from relay.formats.description import (
    COUNT,
    FLAG,
    NAME,
    OBJECT,
    OBJECTS,
    TEXT,
    Description,
    Schema,
    answer,
    body,
    one_of,
    whole,
)

MAX_OUTPUT = 10_000_000

PASSED = frozenset(
    {
        *("cache_control", "context_management", "diagnostics", "inference_geo", "max_tokens", "messages"),
        *("metadata", "model", "output_config", "output_format", "service_tier", "speed", "stop_sequences"),
        *("stream", "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p"),
    }
)
_ACCOUNT = "it belongs to the account at the provider; leave it out"
_UNBOUNDED = "what it does there has no price here; leave it out"
REFUSED = {
    "billing_policy": _ACCOUNT,
    "compaction": _UNBOUNDED,
    "container": _UNBOUNDED,
    "fallback_credit_token": _ACCOUNT,
    "fallbacks": "the price is that of one model; name it in model",
    "max_completion_tokens": "use max_tokens",
    "mcp_servers": _UNBOUNDED,
    "thread": "conversations are not kept here; send all messages",
    "user_profile_id": _ACCOUNT,
    "workspace_id": _ACCOUNT,
}
# What Anthropic's API says beside it, by which its SDK goes on without the field.
REFUSAL_DETAILS = {"thread": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}}
# Values that have the usual price; others are refused.
PRICED_VALUES = {
    "speed": ("standard",),
    "inference_geo": ("global",),
    "service_tier": ("auto", "standard_only"),
}
# Types of tools that the customer runs, by their begin (a date follows); a provider bills the others apart.
CUSTOMERS_TOOLS = ("bash_", "browser_", "computer_", "memory_", "text_editor_")
# What such a tool's own instructions add to the prompt, in tokens, at most.
TOOL_TOKENS = 2_000
# The most tokens of an image: https://platform.claude.com/docs/en/build-with-claude/vision
IMAGE_TOKENS = 4_784
# Types of content blocks whose tokens their bytes bound. One that is in none of these lists is passed, and
# held like an image.
TEXT_BLOCKS = frozenset(
    {
        *("text", "thinking", "redacted_thinking", "tool_use", "tool_result", "search_result"),
        *("tool_reference", "server_tool_use", "web_search_tool_result", "web_fetch_tool_result"),
        *("code_execution_tool_result", "bash_code_execution_tool_result"),
        *("text_editor_code_execution_tool_result", "tool_search_tool_result"),
    }
)
UNPRICED_BLOCKS = {"container_upload": "a file in a container has no price here; send its text"}
# Sources of images and documents that the request itself holds or names.
IMAGE_SOURCES = frozenset({"base64", "url"})
DOCUMENT_SOURCES = frozenset({"text", "content"})
# The begin of a line that Claude Code puts before its instructions, for Anthropic's books. It is another one
# in each request, so nobody else would find anything in a cache:
# https://github.com/anthropics/claude-code/issues/68900
BILLING_LINE = "x-anthropic-billing-header:"


def without_billing_line(text: str) -> str:
    """Instructions without that line."""
    return text.partition("\n")[2] if text.startswith(BILLING_LINE) else text


_CONTENT: Schema = {
    "anyOf": [
        {"type": ["string", "null"]},
        {
            "type": "array",
            "items": {"type": "object", "properties": {"type": TEXT}, "required": ["type"]},
        },
    ]
}
_MESSAGE: Schema = {
    "type": "object",
    "properties": {"role": TEXT, "content": _CONTENT},
    "required": ["role"],
}


def _request(*required: str) -> Schema:
    return body(
        PASSED,
        typed={
            "model": NAME,
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
            "system": _CONTENT,
            "tools": OBJECTS,
            "max_tokens": whole(MAX_OUTPUT) | ({"type": "integer"} if "max_tokens" in required else {}),
            "stream": FLAG,
            **{name: one_of(*allowed) for name, allowed in PRICED_VALUES.items()},
        },
        required=required,
        refused=REFUSED,
    )


ABOUT = Description(
    name="Message",
    summary="Have a model answer messages, in Anthropic's format",
    reference="https://platform.claude.com/docs/en/api/messages",
    request=_request("model", "messages", "max_tokens"),
    answer=answer(content={"type": "array"}, usage=OBJECT),
    streams=True,
)
ABOUT_COUNTING = replace(
    ABOUT,
    name="MessageTokens",
    summary="Count a prompt's tokens, at no charge",
    reference="https://platform.claude.com/docs/en/api/messages-count-tokens",
    request=_request("model", "messages"),
    answer=answer(input_tokens=COUNT),
    streams=False,
)
