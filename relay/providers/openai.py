"""Vendors that speak OpenAI's chat format, natively or as a compatible service.

Protocol: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec

from relay.gateway.chat_request import ChatRequest, split_text, text_estimate
from relay.routing.channels import Channel

USAGE_WANTED = msgspec.Raw(b'{"include_usage":true}')
USAGE_FORMAT = "openai"

_encode = msgspec.json.Encoder().encode


class Message(msgspec.Struct):
    """What a vendor generates: the message of a whole answer, or the delta of a stream's chunk."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    message: Message | None = None


class Completion(msgspec.Struct):
    """What is read of a whole answer."""

    choices: list[_Choice]
    usage: dict[str, Any] | None = None

    def estimate(self) -> int:
        """Counted tokens of everything the vendor generated."""
        texts: list[str] = []
        for choice in self.choices:
            if choice.message is not None:
                collect_texts(choice.message, texts)
        return sum(text_estimate(*split_text(text)) for text in texts)


_completion = msgspec.json.Decoder(Completion)


def chat_url(channel: Channel) -> str:
    """Where chat calls of a channel go; its base URL ends with the version, as OpenAI's does."""
    return f"{channel.base_url}/chat/completions"


def chat_headers(channel: Channel, request_id: UUID) -> dict[str, str]:
    """Headers of a call: nothing of the customer's own passes."""
    return {
        "authorization": f"Bearer {channel.api_key}",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": "relay",
        "x-request-id": str(request_id),
    }


def chat_body(channel: Channel, request: ChatRequest) -> bytes:
    """The vendor's request: its own model name, usage asked for, output bounded as it was held for."""
    fields = dict(request.fields)
    fields["model"] = msgspec.Raw(_encode(channel.upstream_model(request.model)))
    if request.stream:
        fields["stream_options"] = USAGE_WANTED
    if not request.output_is_capped:
        fields["max_completion_tokens"] = msgspec.Raw(_encode(request.max_output // request.choices))
    return _encode(fields)


def read_completion(body: bytes) -> Completion:
    """A whole answer; raises ValueError when it is none."""
    return _completion.decode(body)


def collect_texts(message: Message, into: list[str]) -> None:
    """Append the generated texts of a message."""
    for value in (message.content, message.reasoning_content or message.reasoning, message.refusal):
        if isinstance(value, str) and value:
            into.append(value)
    for call in message.tool_calls or ():
        function = call.get("function") if isinstance(call, dict) else None
        for name in ("name", "arguments"):
            value = function.get(name) if isinstance(function, dict) else None
            if isinstance(value, str):
                into.append(value)
