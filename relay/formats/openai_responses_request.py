"""Reading ``POST /v1/responses`` (OpenAI's Responses format) and bounding what it can cost.

The body passes as it came. The model's name is replaced where a channel calls it differently, and
``max_output_tokens`` is put in front where the request says none: without it an answer could cost more than
was held for it.

Protocol: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from relay.errors import ApiError, bad_request
from relay.formats.json_fields import (
    FLAG,
    NULL,
    SHOWN,
    TEXT,
    Fields,
    bounded,
    encode,
    read,
    read_document,
    starts,
    without_nulls,
)
from relay.formats.openai_responses_fields import (
    CUSTOMERS_SIDE,
    DECLARED_TOOLS,
    IMAGE_PARTS,
    MAX_OUTPUT,
    OWN_TOOLS,
    PASSED,
    PRICED_TIERS,
    REFUSED,
    REFUSED_FLAGS,
    TEXT_ITEMS,
    TEXT_PARTS,
    TOOL_REMEDIES,
    TOOL_TOKENS,
    UNPRICED_ITEMS,
    UNPRICED_PARTS,
)
from relay.formats.openai_responses_tools import ADDITIONAL_TOOLS, additional_tools
from relay.formats.passed import PassedRequest, check
from relay.formats.request import INSTRUCTION_TOKENS
from relay.formats.text_estimate import json_estimate, split_text, text_estimate
from relay.providers.profiles import Profile
from relay.settings import Settings

TOKENS_AN_ITEM = 4
# Fields that the answer's object repeats.
REPEATED = (
    *("instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "reasoning", "temperature"),
    *("text", "tool_choice", "tools", "top_p", "truncation", "user"),
)
_any = msgspec.json.Decoder()

Object = dict[str, Any]


@dataclass(slots=True)
class ResponsesRequest(PassedRequest):
    """A request in OpenAI's Responses format. ``output_is_capped``: it says itself how many tokens an answer
    may have. ``fields``: those that are not null."""

    output_is_capped: bool = True
    fields: Fields = field(default_factory=dict)

    def native(self, model: str, profile: Profile) -> bytes:
        """See Request."""
        # super() does not work in a dataclass with slots
        body = PassedRequest.native(self, model, profile)
        if self.output_is_capped:
            return body
        begin = body.index(b"{") + 1
        return body[:begin] + b'"max_output_tokens":%d,' % self.max_output + body[begin:]

    def repeated(self) -> Mapping[str, Any]:
        """See Request."""
        given = {name: _any.decode(self.fields[name]) for name in REPEATED if name in self.fields}
        return given | {ADDITIONAL_TOOLS: additional_tools(_any.decode(self.fields["input"]))}


def parse(body: bytes, settings: Settings) -> ResponsesRequest:
    """Check a body; raises ApiError 400 naming the field."""
    body = _without_null_limit(body, settings)
    checked = check(body, settings, PASSED)
    body, fields = checked.body, checked.fields
    _check_fields(fields)
    items = _items(read(fields, "input", _any, required=True))
    count = _Count()
    for number, item in enumerate(items):
        count.item(item, f"input[{number}]")
    limit = bounded(fields, "max_output_tokens", MAX_OUTPUT)
    texts = [read(fields, "instructions", TEXT) or "", *(text for item in items for text in _texts(item))]
    return ResponsesRequest(
        model=checked.model,
        stream=bool(read(fields, "stream", FLAG)),
        max_output=limit if limit is not None else settings.max_output_of(checked.model),
        # No tokenizer makes more tokens than a text has bytes, and its JSON never has fewer bytes than it.
        input_bound=len(body)
        - count.image_bytes
        + TOKENS_AN_ITEM * (len(items) + 1)
        + (count.images + count.others) * settings.image_hold_tokens
        + (_own_tools(read(fields, "tools", _any), "tools") + count.own_tools) * TOOL_TOKENS
        + (INSTRUCTION_TOKENS if "tools" in fields or count.declares else 0),
        images=count.images,
        choices=1,
        include_usage=True,
        body=body,
        model_at=checked.model_at,
        unknown=checked.unknown,
        counted=TOKENS_AN_ITEM * len(items)
        + sum(text_estimate(*split_text(text)) for text in texts)
        + json_estimate(fields.get("tools"))
        + sum(json_estimate(encode(item["tools"])) for item in items if item.get("tools")),
        output_is_capped=limit is not None,
        fields=fields,
    )


def _without_null_limit(body: bytes, settings: Settings) -> bytes:
    """A limit that is null would stand beside the one that is put in front."""
    if b'"max_output_tokens"' not in body:
        return body
    _, given = read_document(body, settings.max_depth)
    limit = given.get("max_output_tokens")
    return encode(without_nulls(given)) if limit is not None and starts(limit) == NULL else body


def _check_fields(fields: Fields) -> None:
    for name, remedy in REFUSED.items():
        if name in fields:
            raise _unsupported(name, f"{name} is not supported: {remedy}.")
    for name, remedy in REFUSED_FLAGS.items():
        if read(fields, name, FLAG):
            raise _unsupported(name, f"{name} is not supported: {remedy}.")
    tier = read(fields, "service_tier", TEXT)
    if tier not in (None, *PRICED_TIERS):
        message = f"service_tier: '{tier[:SHOWN]}' has no price here; use 'auto' or leave it out."
        raise _unsupported("service_tier", message)


def _unsupported(place: str, message: str) -> ApiError:
    return bad_request(place, message, "unsupported_parameter")


def _wrong(place: str, expected: str) -> ApiError:
    return bad_request(place, f"Invalid type for '{place}': expected {expected}.", "invalid_type")


def _items(given: Any) -> list[Object]:
    """The input as items."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise _wrong("input", "a text or a list of items")
    for number, item in enumerate(given):
        if not isinstance(item, dict):
            raise _wrong(f"input[{number}]", "an object")
    return given


def _own_tools(tools: Any, where: str) -> int:
    """How many tools of a list bring instructions of their own; raises ApiError 400 for those that providers
    run."""
    if tools is None:
        return 0
    if not isinstance(tools, list):
        raise _wrong(where, "a list")
    own = 0
    for number, tool in enumerate(tools):
        place = f"{where}[{number}]"
        kind = _kind(tool, place)
        if kind == "namespace":
            inner = tool.get("tools")
            for position, one in enumerate(inner if isinstance(inner, list) else []):
                _check_declared(_kind(one, f"{place}.tools[{position}]"), f"{place}.tools[{position}]")
        elif kind in OWN_TOOLS or (kind in CUSTOMERS_SIDE and _is_customers(tool, kind)):
            own += 1
        else:
            _check_declared(kind, place)
    return own


def _kind(tool: Any, place: str) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if not isinstance(kind, str):
        raise bad_request(
            f"{place}.type", f"Missing required parameter: '{place}.type'.", "missing_required_parameter"
        )
    return kind


def _check_declared(kind: str, place: str) -> None:
    if kind not in DECLARED_TOOLS:
        remedy = TOOL_REMEDIES.get(kind, "use tools that you run yourself")
        message = f"{place}.type: '{kind[:SHOWN]}' has no price here; {remedy}."
        raise _unsupported(f"{place}.type", message)


def _is_customers(tool: Object, kind: str) -> bool:
    path, wanted = CUSTOMERS_SIDE[kind]
    value: Any = tool
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return bool(value == wanted)


class _Count:
    """What items hold beside text. ``image_bytes``: of images' data, which are no tokens. ``own_tools``: see
    ``_own_tools``; ``declares``: some item declares tools."""

    def __init__(self) -> None:
        self.images = self.image_bytes = self.others = self.own_tools = 0
        self.declares = False

    def item(self, item: Object, place: str) -> None:
        """One item of the input."""
        kind = item.get("type", "message")
        if not isinstance(kind, str):
            raise _wrong(f"{place}.type", "a string")
        if kind in UNPRICED_ITEMS:
            message = f"{place}.type: {UNPRICED_ITEMS[kind]}."
            raise bad_request(f"{place}.type", message, "unsupported_content")
        if kind not in TEXT_ITEMS:
            self.others += 1
        if item.get("tools") is not None:
            self.declares = True
            self.own_tools += _own_tools(item["tools"], f"{place}.tools")
        for name in ("content", "output", "summary"):
            content = item.get(name)
            for number, part in enumerate(content if isinstance(content, list) else []):
                self._part(part, f"{place}.{name}[{number}]")
            if isinstance(content, dict):
                self._part(content, f"{place}.{name}")

    def _part(self, part: Any, place: str) -> None:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            self.others += 1
        elif kind in UNPRICED_PARTS or part.get("file_id") is not None:
            message = f"{place}.type: '{kind}' has no price here; send text, or an image by its image_url."
            raise bad_request(f"{place}.type", message, "unsupported_content")
        elif kind in IMAGE_PARTS:
            self.images += 1
            url = part.get("image_url")
            if isinstance(url, str) and url.startswith("data:") and url.isascii():
                self.image_bytes += len(url)
        elif kind not in TEXT_PARTS:
            self.others += 1


def _texts(item: Object) -> Iterator[str]:
    """The texts of an item; what a tool was called with is text, too."""
    for name in ("name", "arguments", "input"):
        if isinstance(item.get(name), str):
            yield item[name]
    for name in ("content", "output", "summary"):
        content = item.get(name)
        if isinstance(content, str):
            yield content
        for part in content if isinstance(content, list) else ():
            text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
            if isinstance(text, str):
                yield text
