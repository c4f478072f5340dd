"""Answers in Anthropic's format: what of them is read for the bill.

Protocol: https://platform.claude.com/docs/en/api/messages. A field of another type than the protocol's counts
as absent, and passes to the customer as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.formats.answer import NOT_JSON, BadAnswer, ErrorAnswer, loads
from relay.formats.reading import compact
from relay.formats.text_estimate import split_text, text_estimate

USAGE_FORMAT = "anthropic"
Usage = dict[str, Any]


@dataclass(slots=True)
class Message:
    """A whole answer. See Whole."""

    value: dict[str, Any]
    usage: Usage | None = None
    content: list[Any] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """See Whole."""
        return not self.content

    def estimate(self) -> int:
        """See Whole."""
        texts: list[str] = []
        for block in self.content:
            collect_block(block, texts)
        return sum(text_estimate(*split_text(text)) for text in texts)


def read_message(body: bytes) -> Message:
    """A whole answer; raises ErrorAnswer, and BadAnswer when it is no JSON object."""
    value = loads(body)
    if value is NOT_JSON or not isinstance(value, dict):
        raise BadAnswer("the answer is not a JSON object")
    if value.get("error"):
        raise ErrorAnswer(value["error"])
    content, usage = value.get("content"), value.get("usage")
    if "content" not in value and not isinstance(usage, dict):
        raise ErrorAnswer(value)
    return Message(
        value, usage if isinstance(usage, dict) else None, content if isinstance(content, list) else []
    )


def collect_block(block: Any, into: list[str]) -> None:
    """Append the generated texts of a content block, or of what begins one."""
    if not isinstance(block, Mapping):
        return
    for name in ("text", "thinking", "name"):
        text = block.get(name)
        if isinstance(text, str) and text:
            into.append(text)
    if block.get("input"):
        into.append(compact(block["input"]))


def collect_delta(delta: Any, into: list[str]) -> None:
    """Append the generated texts of a block's delta."""
    if not isinstance(delta, Mapping):
        return
    for name in ("text", "thinking", "partial_json"):
        text = delta.get(name)
        if isinstance(text, str) and text:
            into.append(text)


def cumulated(first: Usage | None, later: Any) -> Usage | None:
    """Usage told again: figures are totals so far, so none of them becomes less, and none is added twice."""
    if not isinstance(later, Mapping):
        return first
    joined = dict(first or {})
    for name, value in later.items():
        before = joined.get(name)
        if isinstance(value, Mapping):
            joined[name] = cumulated(before if isinstance(before, dict) else None, value)
        elif value is not None:
            both = _is_number(before) and _is_number(value)
            joined[name] = max(before, value) if both else value
    return joined


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
