"""Answers of Gemini's ``generateContent``: what of them is read for the bill.

Protocol: https://ai.google.dev/api/generate-content#generatecontentresponse. A field of another type than the
protocol's counts as absent, and passes to the customer as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from relay.formats.answer import NOT_JSON, BadAnswer, ErrorAnswer, loads
from relay.formats.reading import compact, list_of, object_of
from relay.formats.text_estimate import split_text, text_estimate

USAGE_FORMAT = "gemini"


@dataclass(slots=True)
class Generated:
    """A whole answer. See Whole. ``blocked``: the prompt was, so there are no candidates."""

    value: dict[str, Any]
    usage: dict[str, Any] | None = None
    candidates: list[Any] = field(default_factory=list)
    blocked: bool = False

    @property
    def empty(self) -> bool:
        """See Whole."""
        return not self.candidates and not self.blocked

    def estimate(self) -> int:
        """See Whole."""
        texts: list[str] = []
        for candidate in self.candidates:
            collect_texts(parts_of(candidate), texts)
        return sum(text_estimate(*split_text(text)) for text in texts)


def read_generated(body: bytes) -> Generated:
    """A whole answer; raises ErrorAnswer, and BadAnswer when it is no JSON object."""
    value = loads(body)
    if value is NOT_JSON or not isinstance(value, dict):
        raise BadAnswer("the answer is not a JSON object")
    if value.get("error"):
        raise ErrorAnswer(value["error"])
    made = Generated(value, usage_of(value), list_of(value.get("candidates")), is_blocked(value))
    if "candidates" not in value and not made.blocked and made.usage is None:
        raise ErrorAnswer(value)
    return made


def usage_of(value: dict[str, Any]) -> dict[str, Any] | None:
    """What an answer, or an event, tells of its usage."""
    usage = value.get("usageMetadata")
    return usage if isinstance(usage, dict) and usage else None


def is_blocked(value: dict[str, Any]) -> bool:
    """Whether the prompt was blocked: then nothing is generated."""
    return bool(object_of(value.get("promptFeedback")).get("blockReason")) and not value.get("candidates")


def parts_of(candidate: Any) -> list[Any]:
    """The parts of a candidate."""
    return list_of(object_of(object_of(candidate).get("content")).get("parts"))


def collect_texts(parts: Iterable[Any], into: list[str]) -> None:
    """Append what was generated: texts, thoughts, calls, code."""
    for part in parts:
        if not isinstance(part, dict):
            continue
        call = object_of(part.get("functionCall"))
        told = (
            part.get("text"),
            call.get("name"),
            compact(call["args"]) if call.get("args") else None,
            object_of(part.get("executableCode")).get("code"),
            object_of(part.get("codeExecutionResult")).get("output"),
        )
        into.extend(text for text in told if isinstance(text, str) and text)
