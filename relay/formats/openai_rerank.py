"""``POST /v1/rerank``: documents in the order of a query, as Jina, Cohere and vLLM have it. It is passed on.

Charged by the provider's usage; who tells none, or pieces of its own, is charged by counted tokens: a model
reads the query with each document.
Protocol: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html (re-rank API)
"""

from __future__ import annotations

from typing import Any

import msgspec

from relay.errors import bad_request
from relay.formats.description import NAME, OBJECTS, Description, Schema, answer, body
from relay.formats.description import TEXT as A_TEXT
from relay.formats.json_fields import TEXT, encode, read
from relay.formats.openai_embeddings import count
from relay.formats.passed import PassedApi, PassedRequest, check, listed
from relay.providers import openai
from relay.settings import Settings

# What models put around a query and a document.
TOKENS_A_DOCUMENT = 8
_KNOWN = frozenset({"model", "query", "documents", "top_n", "return_documents", "max_chunks_per_doc"})
_DOCUMENTS: Schema = {"type": "array", "items": {"type": ["string", "object"]}, "minItems": 1}
_list = msgspec.json.Decoder(list[Any])


def parse(body: bytes, settings: Settings) -> PassedRequest:
    """Check a body; raises ApiError 400 naming the field."""
    checked = check(body, settings, _KNOWN)
    query: str = read(checked.fields, "query", TEXT, required=True)
    documents: list[Any] = read(checked.fields, "documents", _list, required=True)
    if not documents:
        raise bad_request("documents", "documents must not be empty.")
    for number, one in enumerate(documents):
        if not isinstance(one, str | dict):
            place = f"documents[{number}]"
            raise bad_request(
                place, f"Invalid value for '{place}': expected a text or an object.", "invalid_type"
            )
    texts = [one if isinstance(one, str) else encode(one).decode() for one in documents]
    return PassedRequest(
        model=checked.model,
        stream=False,
        max_output=0,
        input_bound=len(checked.body) + (len(query.encode()) + TOKENS_A_DOCUMENT) * len(documents),
        images=0,
        choices=1,
        include_usage=False,
        body=checked.body,
        model_at=checked.model_at,
        unknown=checked.unknown,
        counted=sum(map(count, texts)) + count(query) * len(documents),
    )


ABOUT = Description(
    name="Rerank",
    summary="Sort documents by how well they answer a query",
    reference="https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html",
    request=body(
        _KNOWN,
        typed={"model": NAME, "query": A_TEXT, "documents": _DOCUMENTS},
        required=("model", "query", "documents"),
    ),
    answer={"anyOf": [answer(results=OBJECTS), answer(data=OBJECTS)]},
)
API = PassedApi(openai.At("/rerank"), "embeddings", listed("results", "data"))
