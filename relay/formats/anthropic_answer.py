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
# Anthropic tells the usage of a refusal before any output, too, and does not bill it:
# https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons
REFUSED = "refusal"
FRESH = "input_tokens"
_CACHES = ("cache_read_input_tokens", "cache_creation_input_tokens")
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
    made = Message(
        value, usage if isinstance(usage, dict) else None, content if isinstance(content, list) else []
    )
    if value.get("stop_reason") == REFUSED and not any(map(is_output, made.content)):
        made.usage = None
    return made


def is_output(part: Any) -> bool:
    """Whether a content block, or a delta of one, holds anything that was generated: thoughts that are not
    shown are a signature or data alone."""
    return isinstance(part, Mapping) and any(value for name, value in part.items() if name != "type")


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
    """Usage told again: figures are totals so far, so none becomes less, and none is added twice.

    One figure may become less: of ``input_tokens`` the later one counts. Compatible providers (Moonshot's and
    Alibaba's) tell the whole prompt at the begin, and at the end what of it was not in their cache.
    """
    if not isinstance(later, Mapping):
        return first
    joined = _joined(first, later)
    if FRESH in (first or {}):
        joined[FRESH] = _fresh(first or {}, later)
    return joined


def _fresh(first: Usage, later: Mapping[str, Any]) -> Any:
    """The prompt's tokens that are in no cache, after both were told."""
    before, now = _units(first[FRESH]), _units(later.get(FRESH))
    if before is None or (now is None and later.get(FRESH) is not None):
        return first[FRESH] if later.get(FRESH) is None else later[FRESH]
    more = _cached(later) - _cached(first)
    if now is not None:
        return now if now > 0 or more > 0 else before  # some repeat it as zero
    # Who tells of a cache later than of the prompt told the prompt whole.
    return max(before - more, 0) if more > 0 and not first.keys() & set(_CACHES) else before


def _cached(usage: Mapping[str, Any]) -> int:
    return sum(_units(usage.get(name)) or 0 for name in _CACHES)


def _units(value: Any) -> int | None:
    """A figure as a whole number; None where it is none. No sum can be made of a float and an integer that is
    too large for one."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if _is_number(value) else None


def _joined(first: Usage | None, later: Mapping[str, Any]) -> Usage:
    joined = dict(first or {})
    for name, value in later.items():
        before = joined.get(name)
        if isinstance(value, Mapping):
            joined[name] = _joined(before if isinstance(before, dict) else None, value)
        elif value is not None:
            both = _is_number(before) and _is_number(value)
            joined[name] = max(before, value) if both else value
    return joined


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
