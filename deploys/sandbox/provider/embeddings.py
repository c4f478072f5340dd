"""Embeddings: OpenAI's POST /v1/embeddings, and Gemini's :embedContent and :batchEmbedContents."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import gemini, openai_words
from .answers import count
from .checking import BadRequest, anything, one_of, record, text, whole
from .formats import JSON, figure, figures

WORDING = openai_words.Wording(chat=False)
DIMENSIONS = 8
MOST_INPUTS = 2048
REQUEST = record(
    {"model": text, "input": anything},
    dimensions=whole(1, 3072),
    encoding_format=one_of("float", "base64"),
    user=text,
)


@dataclass(frozen=True, slots=True)
class Embedded:
    """What an embedding call answers, and its usage in the format's shape."""

    model: str
    body: JSON
    usage: JSON
    tokens: int


def vector(said: str, dimensions: int) -> list[float]:
    """The same text always has the same vector; its length is 1."""
    digest = hashlib.sha256(said.encode()).digest()
    raw = [digest[index % len(digest)] - 127.5 for index in range(dimensions)]
    length = sum(value * value for value in raw) ** 0.5
    return [value / length for value in raw]


def openai_embeddings(body: JSON) -> Embedded:
    """The answer of /v1/embeddings; raises BadRequest."""
    REQUEST(WORDING, body, ())
    inputs = inputs_of(body["input"])
    dimensions = body.get("dimensions") or DIMENSIONS
    packed = body.get("encoding_format") == "base64"
    data = []
    for index, said in enumerate(inputs):
        values = vector(str(said), dimensions)
        shown = base64.b64encode(struct.pack(f"<{dimensions}f", *values)).decode() if packed else values
        data.append({"object": "embedding", "index": index, "embedding": shown})
    tokens = sum(len(said) if isinstance(said, list) else count(said) for said in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "data": data, "model": body["model"]}
    return Embedded(body["model"], answer, usage, tokens)


def inputs_of(given: Any) -> list[str | list[int]]:
    """The inputs: a text, texts, tokens, or lists of tokens."""
    wrong = BadRequest("'input' must be a string, an array of strings, or arrays of integers.", param="input")
    if isinstance(given, str) or (
        isinstance(given, list) and given and all(isinstance(one, int) for one in given)
    ):
        given = [given]
    if not isinstance(given, list) or not 1 <= len(given) <= MOST_INPUTS:
        raise wrong
    for one in given:
        tokens = isinstance(one, list) and one and all(isinstance(token, int) for token in one)
        if not tokens and not (isinstance(one, str) and one):
            raise wrong
    return given


def openai_bill(usage: Mapping[str, Any]) -> JSON:
    """Input only."""
    return figures(whole_input=figure(usage, "prompt_tokens"), output=0)


def gemini_embeddings(model: str, body: JSON, *, batch: bool) -> Embedded:
    """The answer of :embedContent or :batchEmbedContents; raises BadRequest."""
    body = gemini.camelised(body)
    (gemini.BATCH if batch else gemini.EMBED)(gemini.WORDING, body, ())
    vectors, tokens = [], 0
    for number, one in enumerate(body["requests"] if batch else [body]):
        if one.get("model", f"models/{model}") != f"models/{model}":
            place = f"requests[{number}].model" if batch else "model"
            raise BadRequest(f"* {place}: it must match the model in the request's URL\n", param=place)
        said = gemini.joined(one["content"]["parts"])
        tokens += count(said)
        vectors.append({"values": vector(said, one.get("outputDimensionality") or DIMENSIONS)})
    answer: JSON = {"embeddings": vectors} if batch else {"embedding": vectors[0]}
    return Embedded(model, answer, {"promptTokenCount": tokens}, tokens)
