"""Answers in OpenAI's Responses format: what of them is read for the bill.

Protocol: https://platform.openai.com/docs/api-reference/responses/object. A field of another type than the
protocol's counts as absent, and passes to the customer as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from relay.formats.answer import NOT_JSON, BadAnswer, ErrorAnswer, loads
from relay.formats.reading import compact, list_of
from relay.formats.text_estimate import split_text, text_estimate

USAGE_FORMAT = "openai_responses"
_TEXTS = ("name", "arguments", "input", "text", "refusal")
_PARTS = ("content", "summary")


@dataclass(slots=True)
class Response:
    """A whole answer. See Whole."""

    value: dict[str, Any]
    usage: dict[str, Any] | None = None
    output: list[Any] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """See Whole."""
        return not self.output

    def estimate(self) -> int:
        """See Whole."""
        texts: list[str] = []
        for item in self.output:
            collect_item(item, texts)
        return sum(text_estimate(*split_text(text)) for text in texts)


def read_response(body: bytes) -> Response:
    """A whole answer; raises ErrorAnswer, and BadAnswer when it is no JSON object."""
    value = loads(body)
    if value is NOT_JSON or not isinstance(value, dict):
        raise BadAnswer("the answer is not a JSON object")
    if value.get("error") or value.get("status") == "failed":
        raise ErrorAnswer(value.get("error") or value)
    usage = value.get("usage")
    if "output" not in value and not isinstance(usage, dict):
        raise ErrorAnswer(value)
    return Response(value, usage if isinstance(usage, dict) and usage else None, list_of(value.get("output")))


def collect_item(item: Any, into: list[str]) -> None:
    """Append the generated texts of an item of the output."""
    if not isinstance(item, dict):
        return
    for part in (item, *(part for name in _PARTS for part in list_of(item.get(name)))):
        if isinstance(part, dict):
            into.extend(text for name in _TEXTS if isinstance(text := part.get(name), str) and text)
            if (given := part.get("arguments")) and isinstance(given, dict):
                into.append(compact(given))
