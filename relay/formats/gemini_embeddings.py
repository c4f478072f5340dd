"""Gemini's ``embedContent`` and ``batchEmbedContents``: held by their bytes, charged by the prompt's tokens.

They are passed on as they came, or written for OpenAI's API. Some of Google's models tell no usage: those are
charged by counted tokens. Protocol: https://ai.google.dev/api/embeddings
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import msgspec

from relay.errors import bad_request
from relay.formats.answer import BadAnswer, ErrorAnswer, loads
from relay.formats.conversation import Untranslatable
from relay.formats.description import OBJECT, TEXT, Description, Schema, answer, body
from relay.formats.embeddings import (
    NO_FIELD,
    TOKENS_A_TEXT,
    USAGE_FORMAT,
    Embedding,
    EmbeddingRequest,
    Vectors,
    answer_of,
    vectors_of,
    whole,
)
from relay.formats.gemini_fields import MODELS
from relay.formats.gemini_request import check_model, decoded, unknown_field, whole_number, wrong_type
from relay.formats.json_fields import SHOWN, read_document, spans_of
from relay.formats.passed import Listed, PassedApi
from relay.formats.reading import Object, encoded, list_of, object_of, only
from relay.formats.text_estimate import split_text, text_estimate
from relay.formats.top_level import replace_string
from relay.providers import gemini
from relay.providers.profiles import Profile
from relay.settings import Settings

# Of one call: https://ai.google.dev/gemini-api/docs/embeddings
MAX_TEXTS = 100
MAX_DIMENSIONS = 2**31 - 1
KNOWN = ("content", "model", "outputDimensionality", "taskType", "title")
REFUSED = {"embedContentConfig": "put outputDimensionality, taskType and title beside content"}
_ANY_TASK = (None, "TASK_TYPE_UNSPECIFIED")


@dataclass(slots=True)
class EmbedRequest(EmbeddingRequest):
    """A request in Gemini's format. ``body``: as it came; ``items``: what it asks, in camel case, one for
    each text; ``batch``: whether it has a list of them. ``unknown``: names of fields that are not known here.
    """

    body: bytes
    batch: bool
    items: list[Object]
    unknown: frozenset[str]

    @property
    def count(self) -> int:
        """See EmbeddingRequest."""
        return len(self.items)

    def native(self, model: str, profile: Profile) -> bytes:
        """See Request."""
        body = self.body
        if self.unknown and profile.unknown_fields == "refuse":
            raise unknown_field(self.unknown)
        if self.unknown and profile.unknown_fields == "drop":
            known = [{name: item[name] for name in KNOWN if name in item} for item in self.items]
            body = encoded({"requests": known} if self.batch else known[0])
        if model == self.model:
            return body
        return replace_string(body, "model", MODELS + model, 3 if self.batch else 1)

    def document(self) -> bytes:
        """See Request."""
        return self.body

    def counted_prompt(self, image_tokens: int) -> int:
        """See Request."""
        return sum(text_estimate(*split_text(text)) for item in self.items for text in _texts(item))

    def embedding(self, drop_unknown: bool) -> Embedding:
        """See EmbeddingRequest."""
        if self.unknown and not drop_unknown:
            raise Untranslatable(min(self.unknown)[:SHOWN], NO_FIELD)
        sizes = set()
        for number, item in enumerate(self.items):
            where = f"requests[{number}]." if self.batch else ""
            if item.get("taskType") not in _ANY_TASK:
                raise Untranslatable(f"{where}taskType", NO_FIELD)
            if "title" in item:
                raise Untranslatable(f"{where}title", NO_FIELD)
            only(item["content"], ("parts", "role"), f"{where}content")
            place = f"{where}outputDimensionality"
            sizes.add(whole_number(item.get("outputDimensionality"), MAX_DIMENSIONS, place))
            if len(sizes) > 1:
                raise Untranslatable(place, "the provider of this model takes the same for all texts")
        return Embedding(list(map(_text_of, self.items)), sizes.pop(), sorted(self.unknown))

    def write_answer(self, made: Vectors) -> bytes:
        """See EmbeddingRequest."""
        shown = [{"values": vector} for vector in made.vectors]
        body: Object = {"embeddings": shown} if self.batch else {"embedding": shown[0]}
        if made.prompt_tokens is not None:
            body["usageMetadata"] = {"promptTokenCount": made.prompt_tokens}
        return encoded(body)


def parse(body: bytes, settings: Settings, *, model: str, batch: bool) -> EmbedRequest:
    """Check a body that was sent for ``model``; raises ApiError 400 naming the field."""
    body, given = read_document(body, settings.max_depth)
    spans_of(body, given)
    fields = decoded(body)
    items = fields.get("requests", []) if batch else [fields]
    if not isinstance(items, list):
        raise wrong_type("requests", "a list")
    if not items:
        raise bad_request("requests", "requests: give at least one.", "missing_required_parameter")
    for number, item in enumerate(items):
        _check(item, f"requests[{number}]" if batch else "", model)
    unknown = {name for item in items for name in item if name not in KNOWN}
    if batch:
        unknown |= fields.keys() - {"requests"}
    return EmbedRequest(
        model=model,
        stream=False,
        max_output=0,
        # No tokenizer makes more tokens than a text has bytes, and its JSON never has fewer bytes than it.
        input_bound=len(body) + TOKENS_A_TEXT * len(items),
        images=0,
        choices=1,
        include_usage=False,
        body=body,
        batch=batch,
        items=items,
        unknown=frozenset(unknown),
    )


def _check(item: Any, where: str, model: str) -> None:
    if not isinstance(item, dict):
        raise wrong_type(where, "an object")
    begin = f"{where}." if where else ""
    for name, remedy in REFUSED.items():
        if name in item:
            place = f"{begin}{name}"
            raise bad_request(place, f"{place}: not supported: {remedy}.", "unsupported_parameter")
    check_model(model, item.get("model"), f"{begin}model")
    whole_number(item.get("outputDimensionality"), MAX_DIMENSIONS, f"{begin}outputDimensionality")
    content = item.get("content", {})
    if not isinstance(content, dict):
        raise wrong_type(f"{begin}content", "an object")
    _check_parts(content.get("parts", []), f"{begin}content.parts")


def _check_parts(parts: Any, place: str) -> None:
    """Texts alone: the tokens of all else are not bounded."""
    if not isinstance(parts, list):
        raise wrong_type(place, "a list")
    if not parts:
        raise bad_request(place, f"{place}: give the text here.", "missing_required_parameter")
    for number, part in enumerate(parts):
        where = f"{place}[{number}]"
        if not isinstance(part, dict):
            raise wrong_type(where, "an object")
        others = part.keys() - {"text"}
        if others:
            inner = f"{where}.{min(others)[:SHOWN]}"
            raise bad_request(inner, f"{inner}: it has no price here; send its text.", "unsupported_content")
        if not isinstance(part.get("text"), str):
            raise wrong_type(f"{where}.text", "a string")


def _text_of(item: Object) -> str:
    return "".join(part["text"] for part in item["content"]["parts"])


def _texts(item: Object) -> list[str]:
    """The texts that a model reads of it."""
    title = item.get("title")
    return [_text_of(item), title] if isinstance(title, str) else [_text_of(item)]


def write_request(asked: Embedding, model: str) -> bytes:
    """See Embedder: for ``batchEmbedContents``."""
    if len(asked.texts) > MAX_TEXTS:
        raise Untranslatable("input", f"the provider of this model takes {MAX_TEXTS} texts at a time")
    size = {} if asked.dimensions is None else {"outputDimensionality": asked.dimensions}
    requests = [
        {"model": MODELS + model, "content": {"parts": [{"text": text}]}} | size for text in asked.texts
    ]
    return encoded({"requests": requests})


class _Values(msgspec.Struct):
    values: list[float]


class _Answer(msgspec.Struct):
    embeddings: list[_Values]
    usage: Any = msgspec.field(default=None, name="usageMetadata")


_answer = msgspec.json.Decoder(_Answer)


def read_vectors(body: bytes) -> Vectors:
    """See Embedder."""
    made = answer_of(_answer, body)
    return vectors_of([one.values for one in made.embeddings], made.usage)


def _read_whole(name: str, body: bytes) -> Listed:
    """A whole answer that has one vector, or a list of them, in a field; raises ErrorAnswer and BadAnswer."""
    value = loads(body)
    if not isinstance(value, dict):
        raise BadAnswer("the answer is not a JSON object")
    if value.get("error") or name not in value:
        raise ErrorAnswer(value.get("error") or value)
    found = list_of(value[name]) if name == "embeddings" else [value[name]]
    return whole([object_of(one).get("values") for one in found], value.get("usageMetadata"))


@dataclass(frozen=True, slots=True)
class _Method:
    """A Provider: one of Gemini's methods of a model."""

    name: str

    def url(self, base_url: str, model: str, stream: bool, query: str) -> str:
        """See Provider."""
        return gemini.method_url(base_url, model, self.name)

    def headers(self, api_key: str, request_id: UUID, passed: Mapping[str, str]) -> dict[str, str]:
        """See Provider."""
        return gemini.headers(api_key, request_id, passed)


SINGLE = PassedApi(_Method("embedContent"), USAGE_FORMAT, partial(_read_whole, "embedding"))
BATCH = PassedApi(_Method("batchEmbedContents"), USAGE_FORMAT, partial(_read_whole, "embeddings"))


def api_of(request: EmbeddingRequest) -> PassedApi:
    """See Embedder."""
    return SINGLE if isinstance(request, EmbedRequest) and not request.batch else BATCH


_ITEM: Schema = body(
    KNOWN,
    typed={
        "content": {
            "type": "object",
            "properties": {"parts": {"type": "array", "items": answer(text=TEXT), "minItems": 1}},
            "required": ["parts"],
        },
        "model": {"description": "The model that the URL names, if anything."},
        "outputDimensionality": {"type": ["integer", "string", "null"], "pattern": "^[0-9]+$", "minimum": 1},
    },
    required=("content",),
    refused=REFUSED,
)
_REFERENCE = "https://ai.google.dev/api/embeddings"
ABOUT = Description(
    name="EmbedContent",
    summary="Turn a text into a vector, in Gemini's format",
    reference=_REFERENCE,
    request=_ITEM | {"description": "Names may be written in snake case, too."},
    answer=answer(embedding=OBJECT),
)
ABOUT_BATCH = Description(
    name="BatchEmbedContents",
    summary="Turn texts into vectors, in Gemini's format",
    reference=_REFERENCE,
    request={
        "type": "object",
        "properties": {"requests": {"type": "array", "items": _ITEM, "minItems": 1}},
        "required": ["requests"],
    },
    answer=answer(embeddings={"type": "array", "items": OBJECT}),
)
