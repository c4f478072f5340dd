"""``POST /v1/moderations``: passed on. Providers tell no usage, so a call is charged by its own price.

A model without a price ``call`` is refused by that name. Protocol:
https://platform.openai.com/docs/api-reference/moderations
"""

from __future__ import annotations

import msgspec

from relay.formats.description import NAME, OBJECT, Description, answer, body
from relay.formats.json_fields import read
from relay.formats.passed import Listed, PassedApi, PassedRequest, check, listed
from relay.pricing.usage import METERS_FORMAT
from relay.providers import openai
from relay.settings import Settings

_KNOWN = frozenset({"model", "input"})
_any = msgspec.json.Decoder()
_read = listed("results")


def parse(body: bytes, settings: Settings) -> PassedRequest:
    """Check a body; raises ApiError 400 naming the field."""
    checked = check(body, settings, _KNOWN)
    read(checked.fields, "input", _any, required=True)
    return PassedRequest(
        model=checked.model,
        stream=False,
        max_output=0,
        input_bound=0,
        images=0,
        choices=1,
        include_usage=False,
        body=checked.body,
        model_at=checked.model_at,
        unknown=checked.unknown,
        counted=0,
        calls=True,
    )


def read_results(body: bytes) -> Listed:
    """A whole answer, which is one call; raises ErrorAnswer, and BadAnswer."""
    answer = _read(body)
    answer.usage = {"meters": {"call": 1}}
    return answer


ABOUT = Description(
    name="Moderation",
    summary="Judge whether texts or images are harmful, in OpenAI's format",
    reference="https://platform.openai.com/docs/api-reference/moderations/create",
    request=body(
        _KNOWN,
        typed={"model": NAME, "input": {"not": {"type": "null"}}},
        required=("model", "input"),
    ),
    answer=answer(results={"type": "array", "items": OBJECT}),
)
API = PassedApi(openai.At("/moderations"), METERS_FORMAT, read_results)
