"""OpenAI's other APIs: POST /v1/completions (older than chat), /v1/moderations, /v1/rerank as vLLM has it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from . import openai_words
from .answers import Answer, Prompt, count, message, random_id
from .checking import (
    BadRequest,
    Path,
    Wording,
    anything,
    decimal,
    flag,
    listed,
    mapping,
    record,
    text,
    whole,
)
from .control import Control
from .embeddings import Embedded, inputs_of
from .formats import JSON, Asked, Chunk, Telling, Usage, event
from .openai_chat import Chat, finish_of

WORDING = openai_words.Wording(chat=False)
USUAL_LIMIT = 16
COMPLETION = record(
    {"model": text, "prompt": anything},
    best_of=whole(1, 20),
    echo=flag,
    frequency_penalty=decimal(-2, 2),
    logit_bias=mapping,
    logprobs=whole(0, 5),
    max_tokens=whole(1),
    n=whole(1, 128),
    presence_penalty=decimal(-2, 2),
    seed=whole(),
    stop=anything,
    stream=flag,
    stream_options=record(include_usage=flag),
    suffix=text,
    temperature=decimal(0, 2),
    top_p=decimal(0, 1),
    user=text,
)
MODERATION = record({"input": anything}, model=text)


def document(wording: Wording, value: Any, path: Path) -> None:
    """A text, or an object that has one."""
    if not isinstance(value, str):
        WITH_TEXT(wording, value, path)


WITH_TEXT = record({"text": text}, title=anything)
RERANK = record(
    {"model": text, "query": text, "documents": listed(document, 1)}, top_n=whole(1), return_documents=flag
)


class Completions(Chat):
    """The older API; it differs from chat in what a choice is."""

    name = "openai_completions"

    def read(self, asked: Asked, *, lenient: bool) -> Prompt:
        body = asked.body
        COMPLETION(WORDING, body, ())
        if body.get("stream_options") is not None and not body.get("stream"):
            raise BadRequest("'stream_options' is only allowed when 'stream' is enabled.")
        prompts = inputs_of(body["prompt"])
        said = [one if isinstance(one, str) else " ".join(map(str, one)) for one in prompts]
        stop = body.get("stop") or []
        return Prompt(
            model=body["model"],
            blocks=[message(one) for one in said],
            last=said[-1:],
            stream=bool(body.get("stream")),
            limit=body.get("max_tokens") or USUAL_LIMIT,
            stop=[stop] if isinstance(stop, str) else stop,
            n=(body.get("n") or 1) * len(prompts),
            facts={"include_usage": bool((body.get("stream_options") or {}).get("include_usage"))},
        )

    def whole(self, name: str, answer: Answer, usage: Usage, control: Control) -> JSON:
        choices = [choice(index, answer.text, finish_of(answer)) for index in range(answer.prompt.n)]
        body = head(name, answer) | {"choices": choices}
        return body if usage is None else body | {"usage": usage}

    def chunks(self, name: str, answer: Answer, telling: Telling, control: Control) -> Iterator[Chunk]:
        opening, produced = head(name, answer), 0
        for index in range(answer.prompt.n):
            for word in answer.words:
                produced += 1
                yield 1, told(opening | {"choices": [choice(index, word, None)]}, telling.so_far(produced))
            yield 0, told(opening | {"choices": [choice(index, "", finish_of(answer))]}, None)

    def tail(self, name: str, answer: Answer, telling: Telling, control: Control) -> bytes:
        usage = telling.last(answer.produced)
        if usage is None or not answer.prompt.facts["include_usage"]:
            return b"data: [DONE]\n\n"
        return event(head(name, answer) | {"choices": [], "usage": usage}) + b"data: [DONE]\n\n"


def head(name: str, answer: Answer) -> JSON:
    """The fields that open every object of an answer."""
    return {
        "id": f"cmpl-{name}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": answer.prompt.model,
    }


def choice(index: int, said: str, finish: str | None) -> JSON:
    """A choice, or a part of one."""
    return {"index": index, "text": said, "logprobs": None, "finish_reason": finish}


def told(body: JSON, usage: Usage) -> bytes:
    """A chunk, with usage where that is told with each."""
    return event(body if usage is None else body | {"usage": usage})


def moderations(body: JSON) -> Embedded:
    """The answer of /v1/moderations, which costs nothing and tells no usage; raises BadRequest."""
    MODERATION(WORDING, body, ())
    given = body["input"] if isinstance(body["input"], list) else [body["input"]]
    results = [
        {"flagged": "kill" in str(one), "categories": {"violence": "kill" in str(one)}} for one in given
    ]
    for result in results:
        result["category_scores"] = {"violence": float(bool(result["flagged"]))}
    model = body.get("model") or "omni-moderation-latest"
    answer: JSON = {"id": f"modr-{random_id(24)}", "model": model, "results": results}
    return Embedded(model, answer, {}, 0)


def rerank(body: JSON) -> Embedded:
    """The answer of /v1/rerank: first who has most words of the query; raises BadRequest."""
    RERANK(WORDING, body, ())
    wanted = set(body["query"].lower().split())
    documents = [one if isinstance(one, str) else one["text"] for one in body["documents"]]

    def score(document: str) -> float:
        return len(wanted & set(document.lower().split())) / len(wanted or {""})

    ranked = sorted(range(len(documents)), key=lambda index: -score(documents[index]))
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": score(documents[index])}
        for index in ranked[: body.get("top_n") or len(ranked)]
    ]
    if body.get("return_documents"):
        results = [one | {"document": {"text": documents[one["index"]]}} for one in results]
    tokens = sum(count(document) + count(body["query"]) for document in documents)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"id": f"rerank-{random_id(24)}", "model": body["model"], "results": results}
    return Embedded(body["model"], answer, usage, tokens)
