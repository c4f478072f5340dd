"""Reading ``POST /v1/messages`` (Anthropic's format) and bounding what it can cost.

The body is read, and passed as it came: signatures of thoughts and prompt caches depend on its bytes. Only
the value of ``model`` is replaced where a channel calls the model differently. So that both of us see the
same value, a name that occurs twice at the top level is refused.

Protocol: https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from relay.errors import bad_request
from relay.formats.anthropic_fields import (
    CUSTOMERS_TOOLS,
    DOCUMENT_SOURCES,
    IMAGE_SOURCES,
    IMAGE_TOKENS,
    MAX_OUTPUT,
    PASSED,
    PRICED_VALUES,
    REFUSAL_DETAILS,
    REFUSED,
    TEXT_BLOCKS,
    TOOL_TOKENS,
    UNPRICED_BLOCKS,
)
from relay.formats.json_fields import (
    FLAG,
    SHOWN,
    TEXT,
    Fields,
    bounded,
    encode,
    read,
    read_document,
    spans_of,
    without_nulls,
)
from relay.formats.request import INSTRUCTION_TOKENS, Request
from relay.formats.text_estimate import json_estimate, split_text, text_estimate
from relay.formats.untouched import check_unknown, with_model
from relay.providers.profiles import Profile
from relay.settings import Settings, UnknownFields

TOKENS_A_MESSAGE = 4
_any = msgspec.json.Decoder()

Object = dict[str, Any]


@dataclass(slots=True)
class MessagesRequest(Request):
    """A request in Anthropic's format. ``body``: as it came; ``model_at``: begin and end of the value of
    ``model`` in it. ``unknown``: names of its fields that are in no list here. ``tools``: counted tokens of
    those that it declares.
    """

    body: bytes
    model_at: tuple[int, int]
    unknown: frozenset[str]
    messages: list[Object]
    system: Any
    tools: int

    def native(self, model: str, profile: Profile) -> bytes:
        """See Request."""
        return provider_request(self, model, profile.unknown_fields)

    def document(self) -> bytes:
        """See Request."""
        return self.body

    def counted_prompt(self, image_tokens: int) -> int:
        """See Request: 4 a message, and its texts' estimate."""
        texts = sum(text_estimate(*split_text(text)) for text in _texts(self))
        return TOKENS_A_MESSAGE * len(self.messages) + texts + self.tools + self.images * image_tokens


def parse(body: bytes, settings: Settings, *, counting: bool = False) -> MessagesRequest:
    """Check a body; raises ApiError 400 naming the field. ``counting``: of ``count_tokens``, which needs no
    ``max_tokens``.
    """
    body, given = read_document(body, settings.max_depth)
    model_at = spans_of(body, given).get("model", (0, 0))
    fields = without_nulls(given)
    _check_fields(fields)
    model = read(fields, "model", TEXT, required=True)
    if not 1 <= len(model) <= 200:
        raise bad_request("model", "model: use a name of 1 to 200 characters.")
    messages = _objects(fields, "messages", required=True)
    if not messages:
        raise bad_request("messages", "messages: at least one message is required.")
    system = _decoded(fields, "system")
    count = _Count()
    for number, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            place = f"messages.{number}.role"
            raise bad_request(place, f"{place}: Field required.", "missing_required_parameter")
        count.content(message.get("content"), f"messages.{number}.content")
    count.content(system, "system")
    most = bounded(fields, "max_tokens", MAX_OUTPUT)
    if most is None and not counting:
        raise bad_request("max_tokens", "max_tokens: Field required.", "missing_required_parameter")
    return MessagesRequest(
        model=model,
        stream=bool(read(fields, "stream", FLAG)),
        max_output=most or 1,
        # No tokenizer makes more tokens than a text has bytes, and its JSON never has fewer bytes than it.
        input_bound=len(body)
        - count.image_bytes
        + TOKENS_A_MESSAGE * len(messages)
        + (count.images + count.others) * max(settings.image_hold_tokens, IMAGE_TOKENS)
        + _check_tools(fields) * TOOL_TOKENS
        + (INSTRUCTION_TOKENS if "tools" in fields else 0),
        images=count.images,
        choices=1,
        include_usage=True,
        body=body,
        model_at=model_at,
        unknown=frozenset(fields.keys() - PASSED),
        messages=messages,
        system=system,
        tools=json_estimate(fields.get("tools")),
    )


def provider_request(request: MessagesRequest, model: str, unknown_fields: UnknownFields) -> bytes:
    """The body for a provider that calls the model ``model``: every byte but the model's name as it came,
    unless unknown fields are dropped. Raises ApiError 400 where they are refused.
    """
    body = request.body
    if model != request.model:
        body = with_model(body, request.model_at, model)
    return check_unknown(
        body,
        request.unknown,
        unknown_fields,
        lambda name: bad_request(name, f"{name}: Extra inputs are not permitted.", "unknown_parameter"),
    )


def _check_fields(fields: Fields) -> None:
    for name, remedy in REFUSED.items():
        if name in fields:
            error = bad_request(name, f"{name}: not supported: {remedy}.", "unsupported_parameter")
            if name in REFUSAL_DETAILS:
                error.extra["details"] = REFUSAL_DETAILS[name]
            raise error
    for name, allowed in PRICED_VALUES.items():
        value = read(fields, name, TEXT)
        if value is not None and value not in allowed:
            message = f"{name}: '{value[:SHOWN]}' has no price here; use '{allowed[0]}' or leave it out."
            raise bad_request(name, message, "unsupported_parameter")
    management = _decoded(fields, "context_management")
    edits = management.get("edits") if isinstance(management, dict) else None
    for number, edit in enumerate(edits if isinstance(edits, list) else []):
        if isinstance(edit, Mapping) and str(edit.get("type")).startswith("compact"):
            place = f"context_management.edits.{number}.type"
            message = f"{place}: compaction is billed beyond max_tokens and has no price here; leave it out."
            raise bad_request(place, message, "unsupported_parameter")


def _check_tools(fields: Fields) -> int:
    """How many tools bring instructions of their own; raises ApiError 400 for those that providers run."""
    own = 0
    for number, tool in enumerate(_objects(fields, "tools")):
        kind = tool.get("type")
        if kind is None or kind == "custom":
            continue
        if not str(kind).startswith(CUSTOMERS_TOOLS):
            place = f"tools.{number}.type"
            shown = str(kind)[:SHOWN]
            message = f"{place}: '{shown}' has no price here; use tools that you run yourself."
            raise bad_request(place, message, "unsupported_parameter")
        own += 1
    return own


class _Count:
    """What content holds beside text. ``image_bytes``: of images' data, which are no tokens."""

    def __init__(self) -> None:
        self.images = self.image_bytes = self.others = 0

    def content(self, content: Any, place: str) -> None:
        """A text, or a list of blocks."""
        if content is None or isinstance(content, str):
            return
        if not isinstance(content, list):
            raise bad_request(place, f"{place}: Input should be a string or a list.", "invalid_type")
        for number, block in enumerate(content):
            self._block(block, f"{place}.{number}")

    def _block(self, block: Any, place: str) -> None:
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str):
            raise bad_request(f"{place}.type", f"{place}.type: Field required.", "missing_required_parameter")
        if kind in UNPRICED_BLOCKS:
            message = f"{place}.type: {UNPRICED_BLOCKS[kind]}."
            raise bad_request(f"{place}.type", message, "unsupported_content")
        if kind == "image":
            self._source(block, place, IMAGE_SOURCES, "send it as base64 or url")
            self.images += 1
            data = block["source"].get("data")
            self.image_bytes += len(data) if isinstance(data, str) and data.isascii() else 0
        elif kind == "document":
            self._source(block, place, DOCUMENT_SOURCES, "send its text, as source type text or content")
            if block["source"].get("type") == "content":
                self.content(block["source"].get("content"), f"{place}.source.content")
        elif kind == "tool_result":
            self.content(block.get("content"), f"{place}.content")
        elif kind not in TEXT_BLOCKS:
            self.others += 1

    def _source(self, block: Object, place: str, allowed: frozenset[str], remedy: str) -> None:
        source = block.get("source")
        kind = source.get("type") if isinstance(source, dict) else None
        if not isinstance(kind, str) or kind not in allowed:
            where = f"{place}.source.type"
            message = f"{where}: '{str(kind)[:SHOWN]}' has no price here; {remedy}."
            raise bad_request(where, message, "unsupported_content")


def _decoded(fields: Fields, name: str) -> Any:
    return read(fields, name, _any)


def _objects(fields: Fields, name: str, *, required: bool = False) -> list[Object]:
    value = read(fields, name, _any, required=required)
    items = [] if value is None else value
    if not isinstance(items, list):
        raise bad_request(name, f"{name}: Input should be a valid list.", "invalid_type")
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            place = f"{name}.{number}"
            raise bad_request(place, f"{place}: Input should be an object.", "invalid_type")
    return items


def _texts(request: MessagesRequest) -> Iterator[str]:
    for content in (request.system, *(message.get("content") for message in request.messages)):
        yield from _texts_of(content)


def _texts_of(content: Any) -> Iterator[str]:
    """The texts of a content; what a tool was called with is text, too."""
    if isinstance(content, str):
        yield content
    for block in content if isinstance(content, list) else ():
        for name in ("text", "thinking", "name"):
            if isinstance(block.get(name), str):
                yield block[name]
        if "input" in block:
            yield encode(block["input"]).decode()
        yield from _texts_of(block.get("content"))
