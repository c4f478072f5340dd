"""What a provider may do to the chunks of a stream or to a whole answer, one function a deviation.

A mutation gets the random source and a list of JSON documents (a stream's chunks in order, or one whole
answer) and changes it in place.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

Documents = list[Any]
Mutation = Callable[[random.Random, Documents], None]

PROVIDER_KEY = "sk-planted-7Hq2XcV9pLmN4tRz8KdWf3Gb"
PROVIDER_MODEL = "provider-model-7b-0613"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
ODD: tuple[Any, ...] = (None, "", "x", 0, 5, -1, 1.5, True, False, [], {}, [None], [5], {"a": {"b": []}})
FALSY: tuple[Any, ...] = ("", None, {}, [], 0, False, 0.0)
ERRORS: tuple[Any, ...] = (
    {"message": f"Incorrect API key provided: {PROVIDER_KEY}.", "type": "invalid_request_error", "code": 401},
    {"message": "maximum context length is 8192 tokens", "code": "context_length_exceeded", "param": None},
    {"message": f"no capacity, key={PROVIDER_KEY}", "type": "server_error", "code": "overloaded"},
    {"code": 500},
    {"message": None},
    {"message": {"text": f"nested {PROVIDER_KEY}"}},
    f"upstream said no to {PROVIDER_KEY}",
    ["a", "list", PROVIDER_KEY],
    7,
    True,
)


def _usage(rng: random.Random) -> dict[str, Any]:
    prompt, answer = rng.randrange(1, 40), rng.randrange(1, 60)
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": answer}
    if rng.random() < 0.8:
        usage["total_tokens"] = prompt + answer + (rng.randrange(100) if rng.random() < 0.1 else 0)
    if rng.random() < 0.3:
        usage["completion_tokens_details"] = {"reasoning_tokens": rng.randrange(answer + 1)}
        usage["prompt_tokens_details"] = {"cached_tokens": rng.randrange(prompt + 1), "audio_tokens": None}
    return usage


def _usage_chunk(rng: random.Random, documents: Documents) -> dict[str, Any]:
    like = next((one for one in documents if isinstance(one, dict)), {})
    rest = {name: copy.deepcopy(like[name]) for name in like if name not in ("choices", "usage")}
    return {**rest, "choices": rng.choice([[], [], [], None]), "usage": _usage(rng)}


def _objects(documents: Documents) -> list[dict[str, Any]]:
    return [one for one in documents if isinstance(one, dict)]


def _choices(documents: Documents) -> list[dict[str, Any]]:
    lists = [one.get("choices") for one in _objects(documents)]
    return [choice for some in lists if isinstance(some, list) for choice in some if isinstance(choice, dict)]


def _messages(documents: Documents) -> list[dict[str, Any]]:
    found = [choice.get(name) for choice in _choices(documents) for name in ("delta", "message")]
    return [one for one in found if isinstance(one, dict)]


def _some(rng: random.Random, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One, a few or all of them."""
    if not items:
        return []
    return rng.choice([items, [rng.choice(items)], rng.sample(items, rng.randint(1, len(items)))])


def usage_first(rng: random.Random, documents: Documents) -> None:
    """Usage before anything else."""
    documents.insert(0, _usage_chunk(rng, documents))


def usage_on_every(rng: random.Random, documents: Documents) -> None:
    """Usage on each chunk, growing."""
    for number, one in enumerate(_objects(documents)):
        one["usage"] = {**USAGE, "completion_tokens": number + 1, "total_tokens": number + 11}


def usage_twice(rng: random.Random, documents: Documents) -> None:
    """A second usage anywhere."""
    documents.insert(rng.randint(0, len(documents)), _usage_chunk(rng, documents))


def usage_missing(rng: random.Random, documents: Documents) -> None:
    """No usage at all."""
    documents[:] = [one for one in documents if not (isinstance(one, dict) and one.get("choices") == [])]
    for one in _objects(documents):
        one.pop("usage", None)


def usage_null(rng: random.Random, documents: Documents) -> None:
    """A null where usage may be."""
    for one in _some(rng, _objects(documents)):
        one["usage"] = None


def usage_odd(rng: random.Random, documents: Documents) -> None:
    """Usage of a wrong type, or with figures of a wrong type."""
    for one in _some(rng, _objects(documents)):
        if rng.random() < 0.5:
            one["usage"] = copy.deepcopy(rng.choice(ODD))
        else:
            one["usage"] = _usage(rng) | {rng.choice([*USAGE, "prompt_tokens_details"]): rng.choice(ODD)}


def usage_impossible(rng: random.Random, documents: Documents) -> None:
    """Figures that the call cannot have had."""
    figures = (0, -5, 675_947_905, 2**31, 2**63, 2**64 - 1, 10**30, 1e308, 0.5)
    for one in _some(rng, _objects(documents)):
        one["usage"] = {name: rng.choice(figures) for name in USAGE}


def usage_with_finish(rng: random.Random, documents: Documents) -> None:
    """Usage on the chunk that finishes, none after it."""
    usage_missing(rng, documents)
    for one in _objects(documents)[-1:]:
        one["usage"] = _usage(rng)


def usage_before_finish(rng: random.Random, documents: Documents) -> None:
    """The chunk of usage comes before the one that finishes."""
    documents.insert(max(0, len(documents) - 2), _usage_chunk(rng, documents))


def choices_odd(rng: random.Random, documents: Documents) -> None:
    """Choices null, missing or of another type."""
    for one in _some(rng, _objects(documents)):
        if rng.random() < 0.2:
            one.pop("choices", None)
        else:
            one["choices"] = copy.deepcopy(rng.choice(ODD))


def choice_fields_odd(rng: random.Random, documents: Documents) -> None:
    """A field of a choice is missing or of another type."""
    for choice in _some(rng, _choices(documents)):
        name = rng.choice(["index", "delta", "message", "finish_reason", "logprobs"])
        if rng.random() < 0.3:
            choice.pop(name, None)
        else:
            choice[name] = copy.deepcopy(rng.choice(ODD))


def message_fields_odd(rng: random.Random, documents: Documents) -> None:
    """A field of a message or delta is null or of another type."""
    names = ["content", "role", "tool_calls", "refusal", "reasoning_content", "reasoning", "function_call"]
    for message in _some(rng, _messages(documents)):
        message[rng.choice(names)] = copy.deepcopy(rng.choice(ODD))


def null_deltas(rng: random.Random, documents: Documents) -> None:
    """All fields of a delta are there and null, as some providers send them."""
    for message in _messages(documents):
        for name in ("role", "content", "tool_calls", "refusal", "function_call", "reasoning_content"):
            message.setdefault(name, None)


def falsy_error(rng: random.Random, documents: Documents) -> None:
    """An error that is none."""
    for one in _some(rng, _objects(documents)):
        one["error"] = copy.deepcopy(rng.choice(FALSY))


def error(rng: random.Random, documents: Documents) -> None:
    """An error on its own, or on a chunk."""
    said = copy.deepcopy(rng.choice(ERRORS))
    if rng.random() < 0.7:
        place = rng.choice([0, rng.randint(0, len(documents)), len(documents)])
        documents.insert(place, {"error": said})
    else:
        for one in _some(rng, _objects(documents)):
            one["error"] = said


def unknown_fields(rng: random.Random, documents: Documents) -> None:
    """Fields that nobody knows, at every level."""
    for one in _some(rng, [*_objects(documents), *_choices(documents), *_messages(documents)]):
        one[rng.choice(["x_groq", "obfuscation", "provider", "sla", "native_finish_reason", "é"])] = (
            copy.deepcopy(rng.choice([*ODD, "x" * 300, [1, [2, [3]]]]))
        )


def model_odd(rng: random.Random, documents: Documents) -> None:
    """The model's name is missing, of another type, or another one."""
    for one in _some(rng, _objects(documents)):
        if rng.random() < 0.3:
            one.pop("model", None)
        else:
            one["model"] = rng.choice([None, 5, [], "", PROVIDER_MODEL + "-turbo", 'quo"ted\\ Ünï', "\ud83d"])


def head_fields_odd(rng: random.Random, documents: Documents) -> None:
    """id, object, created and others are missing or of another type."""
    for one in _some(rng, _objects(documents)):
        name = rng.choice(["id", "object", "created", "system_fingerprint", "service_tier"])
        if rng.random() < 0.4:
            one.pop(name, None)
        else:
            one[name] = copy.deepcopy(rng.choice(ODD))


def not_objects(rng: random.Random, documents: Documents) -> None:
    """JSON that is no object."""
    documents.insert(rng.randint(0, len(documents)), copy.deepcopy(rng.choice([*ODD, "text", 1e400])))


def finish_early(rng: random.Random, documents: Documents) -> None:
    """A choice finishes on a chunk that has content, or more than once."""
    for choice in _some(rng, _choices(documents)):
        choice["finish_reason"] = rng.choice(["stop", "length", "tool_calls", "content_filter", "eos", ""])


def finish_missing(rng: random.Random, documents: Documents) -> None:
    """No choice says that it is over."""
    for choice in _choices(documents):
        choice["finish_reason"] = None


def stops_short(rng: random.Random, documents: Documents) -> None:
    """The stream ends anywhere."""
    del documents[rng.randint(0, len(documents)) :]


def shuffled(rng: random.Random, documents: Documents) -> None:
    """Two chunks change places."""
    if len(documents) > 1:
        one, other = rng.sample(range(len(documents)), 2)
        documents[one], documents[other] = documents[other], documents[one]


def repeated(rng: random.Random, documents: Documents) -> None:
    """A chunk comes twice."""
    if documents:
        one = copy.deepcopy(rng.choice(documents))
        documents.insert(rng.randint(0, len(documents)), one)


def big(rng: random.Random, documents: Documents) -> None:
    """A text of many packets."""
    for message in _messages(documents)[:1]:
        message["content"] = rng.choice(["a", "é", "🙂 "]) * rng.choice([2_000, 20_000, 200_000])


def deep(rng: random.Random, documents: Documents) -> None:
    """A field nested deeply."""
    value: Any = rng.choice([[], {}, "x"])
    for _ in range(rng.choice([20, 100, 400])):
        value = [value] if rng.random() < 0.5 else {"d": value}
    for one in _some(rng, [*_objects(documents), *_messages(documents)])[:1]:
        one[rng.choice(["x_deep", "usage", "tool_calls", "content"])] = value


def content_parts(rng: random.Random, documents: Documents) -> None:
    """Content as a list of parts."""
    for message in _some(rng, _messages(documents)):
        message["content"] = [{"type": "text", "text": rng.choice(["part", "", "teil é"])}]


def tool_calls_odd(rng: random.Random, documents: Documents) -> None:
    """Tool calls of other shapes."""
    shapes: list[Any] = [
        5,
        [5],
        [None],
        [{}],
        [{"function": None}],
        [{"function": {"name": None, "arguments": {"a": 1}}}],
        [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"type": "custom", "custom": {"name": "f", "input": "text"}}],
        {"function": {"name": "f"}},
    ]
    for message in _some(rng, _messages(documents)):
        message["tool_calls"] = copy.deepcopy(rng.choice(shapes))


FOR_ALL: tuple[Mutation, ...] = (
    usage_missing,
    usage_null,
    usage_odd,
    usage_impossible,
    choices_odd,
    choice_fields_odd,
    message_fields_odd,
    null_deltas,
    falsy_error,
    error,
    unknown_fields,
    model_odd,
    head_fields_odd,
    finish_early,
    finish_missing,
    content_parts,
    tool_calls_odd,
)
FOR_STREAMS: tuple[Mutation, ...] = (
    *FOR_ALL,
    usage_first,
    usage_on_every,
    usage_twice,
    usage_with_finish,
    usage_before_finish,
    not_objects,
    stops_short,
    shuffled,
    repeated,
)
RARE: tuple[Mutation, ...] = (big, deep)
