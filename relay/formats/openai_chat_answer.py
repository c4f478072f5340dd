"""Answers in OpenAI's chat format: what of them is read, and a whole answer.

Protocol: https://platform.openai.com/docs/api-reference/chat. Only what is metered is read, and that
tolerantly: a field of another type than the protocol's counts as absent, and passes to the customer as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from relay.formats.answer import NOT_JSON, BadAnswer, ErrorAnswer, loads
from relay.formats.reading import compact
from relay.formats.text_estimate import split_text, text_estimate

USAGE_FORMAT = "openai"
# Reasons of an end that is none: OpenRouter's, Z.ai's and DeepSeek's.
FAILED = frozenset({"error", "network_error", "insufficient_system_resource"})
# How deep parts of a content are followed: Mistral's have texts inside their "thinking".
PART_DEPTH = 3


class Message(msgspec.Struct):
    """What a provider generates: the message of a whole answer, or the delta of a stream's chunk."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    thinking: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None

    @classmethod
    def of(cls, value: Any) -> Message | None:
        """From decoded JSON; None when it is no object."""
        if not isinstance(value, Mapping):
            return None
        return cls(**{name: value.get(name) for name in cls.__struct_fields__})


class Choice(msgspec.Struct):
    """One choice of a whole answer or of a stream's chunk. ``text``: in the place of both, in OpenAI's older
    API. Its ``usage`` and ``error``: see Completion."""

    index: int = 0
    message: Message | None = None
    delta: Message | None = None
    finish_reason: str | None = None
    text: Any = None
    usage: Any = None
    error: Any = None
    native_finish_reason: Any = None

    @classmethod
    def of(cls, value: Any) -> Choice | None:
        """From decoded JSON; None when it is no object."""
        if not isinstance(value, Mapping):
            return None
        index, reason = value.get("index"), value.get("finish_reason")
        return cls(
            index if isinstance(index, int) else 0,
            Message.of(value.get("message")),
            Message.of(value.get("delta")),
            reason if isinstance(reason, str) else None,
            value.get("text"),
            value.get("usage"),
            value.get("error"),
            value.get("native_finish_reason"),
        )


class Completion(msgspec.Struct):
    """What is read of a whole answer or of a stream's chunk.

    ``usage`` and ``error`` wherever they stand: Moonshot tells the usage in the last chunk's choice, Groq in
    ``x_groq``; OpenRouter tells an error in the choice, others by a reason of the end (FAILED).
    """

    choices: list[Choice] = []
    usage: dict[str, Any] | None = None
    error: Any = None
    x_groq: Any = None

    @property
    def empty(self) -> bool:
        """See Whole."""
        return not self.choices

    def estimate(self) -> int:
        """Counted tokens of everything the provider generated in whole messages."""
        texts: list[str] = []
        for choice in self.choices:
            if choice.message is not None:
                collect_texts(choice.message, texts)
            elif type(choice.text) is str:
                texts.append(choice.text)
        return sum(text_estimate(*split_text(text)) for text in texts)


_answer = msgspec.json.Decoder(Completion)


def decode(document: bytes) -> Completion | None:
    """A whole answer or a chunk, or None when it is JSON but no object; raises BadAnswer when it is no JSON.

    What the fast decoder refuses (another type, half of an emoji, NaN) is read as Python's json reads it,
    which is what OpenAI's SDK does.
    """
    try:
        if not document.isascii():
            document.decode()  # the fast decoder does not look at the bytes of fields that it skips
        return _gathered(_answer.decode(document))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        value = loads(document)
        if value is NOT_JSON:
            raise BadAnswer(f"what came is not JSON: {error}") from None
    if not isinstance(value, dict):
        return None
    choices, usage = value.get("choices"), value.get("usage")
    listed = choices if isinstance(choices, list) else []
    return _gathered(
        Completion(
            [choice for choice in map(Choice.of, listed) if choice is not None],
            usage if isinstance(usage, dict) else None,
            value.get("error"),
            value.get("x_groq"),
        )
    )


def _gathered(answer: Completion) -> Completion:
    """The same, with what stands in other places where those who follow OpenAI have it."""
    for choice in answer.choices:
        if choice.finish_reason or choice.usage or choice.error:
            _gather(choice, answer)
    if not answer.usage and isinstance(answer.x_groq, Mapping):
        usage = answer.x_groq.get("usage")
        answer.usage = usage if isinstance(usage, dict) else None
    return answer


def _gather(choice: Choice, answer: Completion) -> None:
    if not answer.usage and isinstance(choice.usage, dict):
        answer.usage = choice.usage
    # The second one is OpenRouter's, of the provider behind it.
    for reason in (choice.finish_reason, choice.native_finish_reason):
        if isinstance(reason, str) and reason in FAILED:
            answer.error = answer.error or choice.error or {"message": f"The provider broke off: {reason}."}
    answer.error = answer.error or choice.error


def usage_of(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The usage of a decoded answer or chunk, wherever it stands: see Completion."""
    choices = answer.get("choices")
    holders = (answer, *(choices if isinstance(choices, list) else ()), answer.get("x_groq"))
    told = (holder.get("usage") for holder in holders if isinstance(holder, Mapping))
    return next((usage for usage in told if isinstance(usage, dict) and usage), None)


def read_completion(body: bytes) -> Completion:
    """A whole answer; raises ErrorAnswer, and BadAnswer when it has no choices and no usage either."""
    answer = decode(body)
    if answer is None:
        raise BadAnswer("the answer is not a JSON object")
    if answer.error:
        raise ErrorAnswer(answer.error)
    if not answer.choices and answer.usage is None:
        value = loads(body)
        if "choices" not in value:
            raise ErrorAnswer(value)
    return answer


def collect_texts(message: Message, into: list[str]) -> None:
    """Append the generated texts of a message."""
    content = message.content
    if type(content) is str:
        if content:
            into.append(content)
    elif content:
        into.extend(_texts(content))
    if message.tool_calls or message.function_call:
        _collect_calls(message, into)
    reasoning = message.reasoning_content or message.reasoning or message.thinking
    if reasoning or message.refusal:
        into.extend(_texts(reasoning))
        into.extend(_texts(message.refusal))


def _collect_calls(message: Message, into: list[str]) -> None:
    calls = message.tool_calls if isinstance(message.tool_calls, list) else []
    functions = [
        call.get(kind) for call in calls if isinstance(call, dict) for kind in ("function", "custom")
    ]
    for function in (*functions, message.function_call):
        if isinstance(function, dict):
            for name in ("name", "arguments", "input"):
                given = function.get(name)
                # An object that is empty is no arguments yet, not the text "{}".
                into.extend(_texts(compact(given) if given and isinstance(given, dict) else given))


def _texts(value: Any, depth: int = PART_DEPTH) -> Iterable[str]:
    """A text, or the texts of a list of parts."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, list) and depth:
        for part in value:
            yield from _texts(part, depth - 1)
    elif isinstance(value, dict):
        for name in ("text", "thinking", "refusal"):
            yield from _texts(value.get(name), depth - 1)
