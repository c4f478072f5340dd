"""What the fake provider says: the same request always gets the same words and the same usage."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, fields, replace
from typing import Any

TEXT = "all the fee has now got due and you can see how one was set for him"
WORDS = TEXT.split()  # three letters and a space make a token of four characters
MODELS = ("fake-small", "fake-large", "gpt-4o", "gpt-4o-mini")
MAGIC = "provider:"
TOKENS_A_MESSAGE = 4
CHARACTERS_A_TOKEN = 4


class BadRequest(Exception):
    """The request cannot be served; the message names the field."""


@dataclass(frozen=True, slots=True)
class Control:
    """How the provider behaves. Set for all calls by ``PUT /control``, for one call by its header
    ``x-provider-control`` or by a last message ``provider:{…}`` (which survives a relay)."""

    latency_ms: int = 0  # before the first byte
    chunk_delay_ms: int = 0  # between the chunks of a stream
    status: int = 0  # answer with this HTTP error status
    error_rate: float = 0.0  # the share of calls (0…1) that get `status` (500 when unset)
    reset: bool = False  # abort the connection before any answer
    truncate_after_chunks: int = -1  # abort the connection after that many chunks; -1: never
    end_after_chunks: int = -1  # end the stream cleanly, but early and without usage; -1: never
    error_after_chunks: int = -1  # end the stream with an error event after that many chunks; -1: never
    omit_usage: bool = False
    usage: dict[str, Any] | None = None  # sent and booked instead of the counted usage
    completion_tokens: int = 0  # length of the answer; 0: derived from the prompt

    def merge(self, changes: dict[str, Any]) -> Control:
        """A copy with ``changes``; raises BadRequest for an unknown field."""
        known = {field.name for field in fields(self)}
        for name in changes:
            if name not in known:
                raise BadRequest(f"unknown control '{name}'; known: {', '.join(sorted(known))}")
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; ``tokens`` are its words, one a token, for each of ``n`` choices."""

    model: str
    stream: bool
    include_usage: bool
    n: int
    prompt_tokens: int
    tokens: list[str]
    finish_reason: str


def message_text(message: dict[str, Any]) -> str:
    """The text of one chat message, whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def magic(request: dict[str, Any]) -> dict[str, Any]:
    """The controls in a last message of the form ``provider:{"latency_ms": 500}``, or none."""
    messages = request.get("messages") or [{}]
    text = message_text(messages[-1]) if isinstance(messages[-1], dict) else ""
    if not text.startswith(MAGIC):
        return {}
    changes = json.loads(text[len(MAGIC) :])
    if not isinstance(changes, dict):
        raise BadRequest("messages: 'provider:' must be followed by a JSON object")
    return changes


def compose(request: dict[str, Any], control: Control) -> Answer:
    """The answer to a chat request; raises BadRequest where OpenAI's API would."""
    messages = request.get("messages")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("you must provide a model parameter")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise BadRequest("messages must be a non-empty array of objects")
    texts = [message_text(message) for message in messages]
    wanted = control.completion_tokens or 8 + zlib.crc32("\n".join(texts).encode()) % 25
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    length = min(wanted, limit) if isinstance(limit, int) else wanted
    options = request.get("stream_options") or {}
    return Answer(
        model=model,
        stream=bool(request.get("stream")),
        include_usage=bool(options.get("include_usage")),
        n=int(request.get("n") or 1),
        prompt_tokens=sum(TOKENS_A_MESSAGE + -(-len(text) // CHARACTERS_A_TOKEN) for text in texts),
        tokens=[WORDS[index % len(WORDS)] + " " for index in range(length)],
        finish_reason="stop" if length == wanted else "length",
    )


def usage_of(answer: Answer, control: Control, produced: int) -> dict[str, Any]:
    """The usage object after ``produced`` completion tokens."""
    if control.usage is not None:
        return control.usage
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": produced,
        "total_tokens": answer.prompt_tokens + produced,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def completion(call_id: str, created: int, answer: Answer, usage: dict[str, Any] | None) -> bytes:
    """A ``chat.completion`` object."""
    text = "".join(answer.tokens)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": answer.finish_reason,
        }
        for index in range(answer.n)
    ]
    body = {
        "id": call_id,
        "object": "chat.completion",
        "created": created,
        "model": answer.model,
        "choices": choices,
    }
    return json.dumps(body if usage is None else body | {"usage": usage}).encode()


def event(payload: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def chunk(
    call_id: str, created: int, answer: Answer, index: int, delta: dict[str, Any], finish: str | None
) -> bytes:
    """One ``chat.completion.chunk`` event; with include_usage it carries ``"usage":null``."""
    body: dict[str, Any] = {
        "id": call_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": answer.model,
        "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }
    return event(body | {"usage": None} if answer.include_usage else body)


def usage_chunk(call_id: str, created: int, answer: Answer, usage: dict[str, Any]) -> bytes:
    """The chunk without choices that ends a stream with include_usage."""
    return event(
        {
            "id": call_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": answer.model,
            "choices": [],
            "usage": usage,
        }
    )


DONE = b"data: [DONE]\n\n"
ERROR_EVENT = event({"error": {"message": "The fake provider was told to fail.", "type": "server_error"}})
