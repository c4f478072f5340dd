"""Whole answers in OpenAI's chat format.

Protocol: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import Any

import msgspec

from relay.formats.text_estimate import split_text, text_estimate

USAGE_FORMAT = "openai"


class Message(msgspec.Struct):
    """What a provider generates: the message of a whole answer, or the delta of a stream's chunk."""

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
        """Counted tokens of everything the provider generated."""
        texts: list[str] = []
        for choice in self.choices:
            if choice.message is not None:
                collect_texts(choice.message, texts)
        return sum(text_estimate(*split_text(text)) for text in texts)


_completion = msgspec.json.Decoder(Completion)


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
