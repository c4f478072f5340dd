"""Texts to be turned into vectors: what OpenAI's embeddings and Gemini's have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec

from relay.formats.answer import BadAnswer
from relay.formats.passed import Listed, PassedApi
from relay.formats.request import Request
from relay.pricing.errors import FieldError
from relay.pricing.usage import normalise

USAGE_FORMAT = "embeddings"
# What models put around a text, such as [CLS] and [SEP].
TOKENS_A_TEXT = 8
NO_FIELD = "the provider of this model has no such field; leave it out"
# Vectors are floats of 32 bits wherever they are made, and where they are packed.
_LARGEST = 3.4028234663852886e38

_Body = TypeVar("_Body")


@dataclass(slots=True)
class Embedding:
    """What is asked. ``dimensions``: of each vector, None: as the model has them; ``left_out``: see
    ``relay.formats.format.Written``."""

    texts: list[str]
    dimensions: int | None
    left_out: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Vectors:
    """What is answered, in the order of the texts; ``prompt_tokens``: None where the provider told none."""

    vectors: list[list[float]]
    prompt_tokens: int | None


@dataclass(slots=True)
class EmbeddingRequest(Request):
    """A checked request for vectors."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many vectors it wants."""

    @abstractmethod
    def embedding(self, drop_unknown: bool) -> Embedding:
        """To be written for a provider of another format; ``drop_unknown``: what is unknown here is left out,
        and else refused. Raises Untranslatable."""

    @abstractmethod
    def write_answer(self, made: Vectors) -> bytes:
        """For the customer."""


class Embedder(Protocol):
    """What a module of a format offers for vectors."""

    def api_of(self, request: EmbeddingRequest) -> PassedApi:
        """How a provider is asked for a request."""

    def write_request(self, asked: Embedding, model: str) -> bytes:
        """For a provider that calls the model ``model``. Raises Untranslatable."""

    def read_vectors(self, body: bytes) -> Vectors:
        """Of a provider's answer to such a request; raises BadAnswer."""


def whole(vectors: list[Any], usage: Any) -> Listed:
    """An answer as the bill sees it; raises BadAnswer where a vector is missing or empty."""
    if not vectors or not all(vectors):
        raise BadAnswer("the answer has no vectors")
    return Listed(usage if isinstance(usage, dict) and usage else None, len(vectors))


def answer_of(decoder: msgspec.json.Decoder[_Body], body: bytes) -> _Body:
    """A provider's answer; raises BadAnswer where it is another one than ``decoder`` reads."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadAnswer(f"the answer has no vectors: {error}") from None


def vectors_of(vectors: list[list[float]], usage: Any) -> Vectors:
    """A provider's vectors with the tokens that its usage tells; raises BadAnswer."""
    if not all(vectors):
        raise BadAnswer("a vector of the answer is empty")
    if any(max(map(abs, vector)) > _LARGEST for vector in vectors):
        raise BadAnswer("a vector of the answer has a number that is too large")
    try:
        return Vectors(vectors, sum(normalise(USAGE_FORMAT, usage).values()) or None)
    except FieldError:
        return Vectors(vectors, None)
