"""What the fake provider is told to do: in general by ``/control``, in one call by a header or its prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from .checking import BadRequest

MAGIC = "provider:"


@dataclass(frozen=True, slots=True)
class Control:
    """How the provider behaves. Set for all calls by ``PUT /control``, for one call by its header
    ``x-provider-control`` or by a last message ``provider:{…}`` (which survives a relay). Every field works
    in every format; a chunk is an event of the format's stream (Gemini's array: an element).
    """

    # What goes wrong before the answer.
    latency_ms: int = 0  # before the first byte
    status: int = 0  # answer with this HTTP error status, in the format's own shape
    error_message: str = ""  # its message
    error_code: str = ""  # its code (OpenAI), type (Anthropic) or status (Google) instead of the usual one
    retry_after: str = ""  # its header of that name
    error_rate: float = 0.0  # the share of calls (0…1) that get `status` (500 when unset)
    reset: bool = False  # abort the connection before any answer
    instead: str = ""  # with status 200: html, text, empty, object ("{}"), null or cut (half an answer)
    # What goes wrong within it.
    chunk_delay_ms: int = 0  # between the chunks of a stream
    truncate_after_chunks: int = -1  # abort the connection after that many chunks; -1: never
    end_after_chunks: int = -1  # end the stream cleanly, but early and without usage; -1: never
    error_after_chunks: int = -1  # send an error event after that many chunks and end; 0: first; -1: never
    quiet_after_chunks: int = -1  # say nothing more after that many chunks, with the connection open
    quiet_ms: int = 0  # and go on after so long; 0: never
    ping_every: int = 0  # a sign of life after every so many chunks, in the format's way
    gzip: bool = False  # compress the answer, whatever the request accepts
    bytes_per_write: int = 0  # write the answer in pieces of so many bytes; 0: as it comes
    # What is said of the usage.
    omit_usage: bool = False
    usage: dict[str, Any] | None = None  # sent and booked instead of the counted usage, in the format's shape
    told_usage: dict[str, Any] | None = None  # sent instead of the counted usage, which is booked
    usage_at: str = ""  # in a stream: end, first, or each (so far); default: as the format does
    # What the answer is.
    completion_tokens: int = 0  # length of its text; 0: derived from the prompt
    text: str = ""  # its text
    reasoning: bool | None = None  # whether it thinks; None: when the request asks for it
    reasoning_content: bool = False  # OpenAI chat: show the thoughts as DeepSeek does
    calls: list[dict[str, Any]] | None = None  # tools it calls: [{"name": …, "arguments": {…}}]
    tool_calls: int = -1  # how many tools it calls; -1: those that the last message names, or must
    refusal: bool = False  # it refuses, in the format's way
    blocked: bool = False  # a filter stops it, in the format's way
    cached_tokens: int = -1  # how many of the prompt's tokens come from the cache; -1: as remembered
    images: int = -1  # how many images it makes; -1: as many as are asked for
    media_bytes: int = 0  # the size of each image or sound; 0: a small one
    lenient: bool = False  # take what the real API would refuse, as some compatible services do

    def merge(self, changes: dict[str, Any]) -> Control:
        """A copy with ``changes``; raises BadRequest for an unknown field."""
        known = {field.name for field in fields(self)}
        for name in changes:
            if name not in known:
                raise BadRequest(f"unknown control '{name}'; known: {', '.join(sorted(known))}")
        return replace(self, **changes)


def magic(texts: Iterable[str]) -> dict[str, Any]:
    """The controls in a text of the form ``provider:{"latency_ms": 500}``, or none.

    Raises BadRequest when no JSON object follows.
    """
    for text in texts:
        if text.lstrip().startswith(MAGIC):
            try:
                changes, _ = json.JSONDecoder().raw_decode(text.lstrip()[len(MAGIC) :].lstrip())
            except ValueError as error:
                raise BadRequest(f"messages: no JSON follows '{MAGIC}': {error}") from None
            if not isinstance(changes, dict):
                raise BadRequest(f"messages: '{MAGIC}' must be followed by a JSON object")
            return changes
    return {}
