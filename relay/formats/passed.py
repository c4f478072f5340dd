"""Requests to what is passed on as it came: completions, moderations and the like, which are never
translated, and embeddings, which may be.

Each such API is a module with ``parse`` and a PassedApi. Protocol: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relay.errors import ApiError, bad_request
from relay.formats import openai_chat
from relay.formats.answer import NOT_JSON, BadAnswer, ErrorAnswer, loads
from relay.formats.format import Meter, MeterOptions, Whole
from relay.formats.json_fields import SHOWN, TEXT, Fields, read, read_document, spans_of, without_nulls
from relay.formats.reading import list_of
from relay.formats.request import Request
from relay.formats.untouched import Span, check_unknown, with_model
from relay.pricing.bound import MaxUsage
from relay.providers.profiles import Profile
from relay.providers.provider import Provider
from relay.settings import Settings

# The formats of channels whose providers have OpenAI's other APIs beside it, under the same base URL.
OPENAIS = frozenset({"openai", "openai-responses"})


@dataclass(frozen=True, slots=True)
class PassedApi:
    """An API beside those in which a model converses. See Metered. ``BYTES``: what its whole answers
    are where they are no JSON, see relay.gateway.bytes_response; ``write``: makes what the customer wants of
    one that is JSON, which is plain text, and raises BadAnswer where it cannot. None: it passes as it is."""

    PROVIDER: Provider
    USAGE_FORMAT: str
    read_whole: Callable[[bytes], Whole]
    MODEL_FIELD: str = "model"
    meter: Callable[[MeterOptions], Meter] = openai_chat.meter
    BYTES: str = ""
    write: Callable[[bytes], bytes] | None = None


@dataclass(slots=True)
class PassedRequest(Request):
    """A request that passes as it came, but for the model's name. ``counted``: tokens of its prompt, by its
    text. ``calls``: whether the call itself is what is paid for."""

    body: bytes
    model_at: Span
    unknown: frozenset[str]
    counted: int
    calls: bool = False

    def native(self, model: str, profile: Profile) -> bytes:
        """See Request."""
        body = self.body if model == self.model else with_model(self.body, self.model_at, model)
        return check_unknown(body, self.unknown, profile.unknown_fields, unknown_field)

    def document(self) -> bytes:
        """See Request."""
        return self.body

    def counted_prompt(self, image_tokens: int) -> int:
        """See Request."""
        return self.counted + self.images * image_tokens

    def max_usage(self) -> MaxUsage:
        """See Request."""
        if self.calls:
            return MaxUsage(others={"call": 1})
        # super() does not work in a dataclass with slots
        return Request.max_usage(self)


@dataclass(slots=True)
class Checked:
    """What every such body has. ``fields``: those that are not null; see PassedRequest."""

    body: bytes
    fields: Fields
    model: str
    model_at: Span
    unknown: frozenset[str]


def check(body: bytes, settings: Settings, known: frozenset[str]) -> Checked:
    """Read a body that has a model; raises ApiError 400 naming the field."""
    body, given = read_document(body, settings.max_depth)
    model_at = spans_of(body, given).get("model", (0, 0))
    fields = without_nulls(given)
    model = check_model(read(fields, "model", TEXT, required=True))
    return Checked(body, fields, model, model_at, frozenset(fields.keys() - known))


def check_model(name: str) -> str:
    """A model's name; raises ApiError 400."""
    if not 1 <= len(name) <= 200:
        raise bad_request("model", "model must be a name of 1 to 200 characters.")
    return name


def unknown_field(name: str) -> ApiError:
    """400 for a field that is unknown here, where that is refused."""
    return bad_request(name, f"Unrecognized request argument supplied: {name[:SHOWN]}", "unknown_parameter")


@dataclass(slots=True)
class Listed:
    """An answer that is a list of ``count`` things. See Whole."""

    usage: Any
    count: int

    @property
    def empty(self) -> bool:
        """See Whole."""
        return not self.count

    def estimate(self) -> int:
        """They are no tokens; that there are some says that the prompt was read."""
        return self.count


def listed(*names: str) -> Callable[[bytes], Listed]:
    """A reader of whole answers that have their list in one of these fields."""

    def read_listed(body: bytes) -> Listed:
        value = loads(body)
        if value is NOT_JSON or not isinstance(value, dict):
            raise BadAnswer("the answer is not a JSON object")
        found = [list_of(value[name]) for name in names if name in value]
        if value.get("error") or not found:
            raise ErrorAnswer(value.get("error") or value)
        usage = value.get("usage")
        return Listed(usage if isinstance(usage, dict) and usage else None, len(found[0]))

    return read_listed
