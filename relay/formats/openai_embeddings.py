"""``POST /v1/embeddings`` in OpenAI's format: held by its bytes, charged by the provider's usage.

It is passed on as it came, or written for Gemini.

Protocol: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import struct
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import msgspec

from relay.errors import bad_request
from relay.formats.answer import BadAnswer, ErrorAnswer, loads
from relay.formats.conversation import Untranslatable
from relay.formats.description import INPUTS, NAME, OBJECT, Description, answer, body
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
from relay.formats.json_fields import SHOWN, Fields, read
from relay.formats.passed import Listed, PassedApi, PassedRequest, check
from relay.formats.reading import encoded, list_of, object_of, one_of, optional
from relay.formats.text_estimate import split_text, text_estimate
from relay.providers import openai
from relay.settings import Settings

_KNOWN = frozenset({"model", "input", "dimensions", "encoding_format", "user"})
_ENCODINGS = ("float", "base64")
_any = msgspec.json.Decoder()


@dataclass(slots=True, kw_only=True)
class EmbeddingsRequest(PassedRequest, EmbeddingRequest):
    """A request in OpenAI's format. ``inputs``: texts, or lists of tokens; ``fields``: those that are not
    null."""

    inputs: list[Any]
    fields: Fields

    @property
    def count(self) -> int:
        """See EmbeddingRequest."""
        return len(self.inputs)

    def embedding(self, drop_unknown: bool) -> Embedding:
        """See EmbeddingRequest."""
        if self.unknown and not drop_unknown:
            raise Untranslatable(min(self.unknown)[:SHOWN], NO_FIELD)
        if not all(isinstance(one, str) for one in self.inputs):
            raise Untranslatable("input", "the provider of this model takes texts, and no tokens")
        one_of(self._value("encoding_format", "float"), _ENCODINGS, "encoding_format")
        dimensions = optional(self._value("dimensions"), int, "dimensions")
        left_out = sorted(self.unknown | (self.fields.keys() & {"user"}))
        return Embedding(self.inputs, dimensions, left_out)

    def _value(self, name: str, default: Any = None) -> Any:
        raw = self.fields.get(name)
        return default if raw is None else loads(bytes(raw))

    def write_answer(self, made: Vectors) -> bytes:
        """See EmbeddingRequest: vectors packed where that was asked for, as OpenAI's SDK does."""
        packed = self._value("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector}
            for index, vector in enumerate(made.vectors)
        ]
        tokens = self.counted if made.prompt_tokens is None else made.prompt_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return encoded({"object": "list", "data": data, "model": self.model, "usage": usage})


def _packed(vector: list[float]) -> str:
    """Floats of 32 bits, little-endian, in Base64."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def parse(body: bytes, settings: Settings) -> EmbeddingsRequest:
    """Check a body; raises ApiError 400 naming the field."""
    checked = check(body, settings, _KNOWN)
    inputs = read_inputs(checked.fields, "input")
    return EmbeddingsRequest(
        model=checked.model,
        stream=False,
        max_output=0,
        # A token is at least one byte of its text, and at least one digit where it is sent as a number.
        input_bound=len(checked.body) + TOKENS_A_TEXT * len(inputs),
        images=0,
        choices=1,
        include_usage=False,
        body=checked.body,
        model_at=checked.model_at,
        unknown=checked.unknown,
        counted=sum(map(count, inputs)),
        inputs=inputs,
        fields=checked.fields,
    )


def write_request(asked: Embedding, model: str) -> bytes:
    """See Embedder."""
    size = {} if asked.dimensions is None else {"dimensions": asked.dimensions}
    return encoded({"model": model, "input": asked.texts, "encoding_format": "float"} | size)


class _Item(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: Any = None


_answer = msgspec.json.Decoder(_Answer)


def read_vectors(body: bytes) -> Vectors:
    """See Embedder."""
    made = answer_of(_answer, body)
    made.data.sort(key=lambda one: one.index)
    return vectors_of([one.embedding for one in made.data], made.usage)


def _read_whole(body: bytes) -> Listed:
    """A whole answer; raises ErrorAnswer and BadAnswer."""
    value = loads(body)
    if not isinstance(value, dict):
        raise BadAnswer("the answer is not a JSON object")
    if value.get("error") or "data" not in value:
        raise ErrorAnswer(value.get("error") or value)
    return whole([object_of(one).get("embedding") for one in list_of(value["data"])], value.get("usage"))


def read_inputs(fields: Fields, name: str) -> list[Any]:
    """Texts or lists of tokens, as a field has them; raises ApiError 400."""
    given = read(fields, name, _any, required=True)
    if isinstance(given, str) or (isinstance(given, list) and given and all(map(_is_token, given))):
        given = [given]
    if not isinstance(given, list) or not given:
        raise _wrong(name, "expected a text, a list of texts, of tokens, or of lists of tokens")
    for number, one in enumerate(given):
        if not isinstance(one, str) and not (isinstance(one, list) and one and all(map(_is_token, one))):
            raise _wrong(f"{name}[{number}]", "expected a text or a list of tokens")
    return given


def _wrong(place: str, problem: str) -> Exception:
    return bad_request(place, f"Invalid value for '{place}': {problem}.", "invalid_type")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def count(one: Any) -> int:
    """Counted tokens of an input."""
    return text_estimate(*split_text(one)) if isinstance(one, str) else len(one)


ABOUT = Description(
    name="Embeddings",
    summary="Turn texts into vectors, in OpenAI's format",
    reference="https://platform.openai.com/docs/api-reference/embeddings/create",
    request=body(_KNOWN, typed={"model": NAME, "input": INPUTS}, required=("model", "input")),
    answer=answer(data={"type": "array", "items": OBJECT}),
)
API = PassedApi(openai.At("/embeddings"), USAGE_FORMAT, _read_whole)


def api_of(request: EmbeddingRequest) -> PassedApi:
    """See Embedder."""
    return API
