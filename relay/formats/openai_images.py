"""``POST /v1/images/generations``: images of a text. It is passed on, and paid by the piece or by tokens.

By the piece where the model's price has the meter ``image``: as many as the answer holds, at most those that
were asked for. Else by the tokens that the provider tells.
Protocol: https://platform.openai.com/docs/api-reference/images/create
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import msgspec

from relay.errors import bad_request
from relay.formats.answer import BadAnswer, ErrorAnswer, loads
from relay.formats.description import NAME, OBJECTS, Description, answer, body, whole
from relay.formats.description import TEXT as A_TEXT
from relay.formats.json_fields import OBJECT, QUOTE, TEXT, Fields, bounded, read, starts
from relay.formats.json_fields import OBJECTS as LISTED
from relay.formats.media import Measured, MediaRequest, refuse_stream, unread
from relay.formats.openai_embeddings import count
from relay.formats.passed import PassedApi, check
from relay.pricing.bound import MaxUsage
from relay.pricing.tariff import Admission
from relay.pricing.usage import METERS_FORMAT
from relay.providers import openai
from relay.settings import Settings

MAX_IMAGES = 10
# Images of OpenAI's models have 6,208 tokens at most; of others' it is not known.
MAX_IMAGE_TOKENS = 16_384
# A square one of medium quality (https://platform.openai.com/docs/guides/image-generation#cost-and-latency).
USUAL_IMAGE_TOKENS = 1_056
USAGE_FORMAT = "images"
_KNOWN = frozenset(
    {
        *("model", "prompt", "background", "moderation", "n", "output_compression", "output_format"),
        *("partial_images", "quality", "response_format", "size", "stream", "style", "user"),
    }
)
# In which fields an image may be, as its bytes or its address.
_HELD_IN = ("b64_json", "url")


@dataclass(slots=True)
class ImageRequest(MediaRequest):
    """A request for ``choices`` images. ``by_piece``: whether they are paid so."""

    OUTPUT_FIELD: ClassVar[str | None] = "n"
    by_piece: bool = False

    def priced(self, admission: Admission) -> Self:
        """See Request. Where neither has a price, it is that of a piece which is missing."""
        by_piece = admission.has_price("image") or not admission.has_price("out_image")
        return replace(self, by_piece=by_piece)

    def max_usage(self) -> MaxUsage:
        """See Request."""
        if self.by_piece:
            return MaxUsage(others={"image": self.choices})
        prompt = ("text", "image") if self.images else ("text",)
        return MaxUsage(self.input_bound, self.max_output, prompt, ("image", "text"))

    def metered(self, api: PassedApi) -> PassedApi:
        """See MediaRequest."""
        usage_format = METERS_FORMAT if self.by_piece else USAGE_FORMAT
        return replace(
            self.reached(api),
            USAGE_FORMAT=usage_format,
            read_whole=partial(read_images, most=self.choices, by_piece=self.by_piece),
        )


def parse(body: bytes, settings: Settings) -> ImageRequest:
    """Check a body; raises ApiError 400 naming the field."""
    checked = check(body, settings, _KNOWN)
    refuse_stream(checked.fields)
    prompt: str = read(checked.fields, "prompt", TEXT, required=True)
    if not prompt:
        raise bad_request("prompt", "prompt must not be empty.")
    images = bounded(checked.fields, "n", MAX_IMAGES) or 1
    return ImageRequest(
        model=checked.model,
        stream=False,
        max_output=settings.max_output.get(checked.model, MAX_IMAGE_TOKENS) * images,
        # A token is at least one byte of its text.
        input_bound=len(checked.body),
        images=0,
        choices=images,
        include_usage=False,
        body=checked.body,
        model_at=checked.model_at,
        unknown=checked.unknown,
        counted=count(prompt),
    )


def read_images(body: bytes, *, most: int, by_piece: bool) -> Measured:
    """An answer with images, of which ``most`` were asked for; raises ErrorAnswer, and BadAnswer.

    The images themselves, which are megabytes, are not decoded.
    """
    fields = _object(body)
    error = _decoded(fields.get("error"))
    if error or "data" not in fields:
        raise ErrorAnswer(error or _decoded(msgspec.Raw(body)))
    try:
        found = sum(map(_is_image, LISTED.decode(fields["data"])))
    except (msgspec.MsgspecError, UnicodeError):
        found = 0
    if not found:
        raise BadAnswer("the answer has no image")
    usage = _decoded(fields.get("usage"))
    told = usage if isinstance(usage, dict) and usage else None
    if not by_piece:
        return Measured(told, min(found, most) * USUAL_IMAGE_TOKENS)
    return Measured({"meters": {"image": min(found, most)}, "images": found, "provider": told})


def _object(body: bytes) -> Fields:
    try:
        return OBJECT.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise BadAnswer("the answer is not a JSON object") from None


def _decoded(raw: msgspec.Raw | None) -> Any:
    return None if raw is None else loads(bytes(raw))


def _is_image(one: Fields) -> bool:
    held = [one[name] for name in _HELD_IN if name in one]
    return any(starts(raw) == QUOTE and len(memoryview(raw)) > len('""') for raw in held)


ABOUT = Description(
    name="ImageGeneration",
    summary="Have a model make images of a text, in OpenAI's format",
    reference="https://platform.openai.com/docs/api-reference/images/create",
    request=body(
        _KNOWN - {"stream"},
        typed={"model": NAME, "prompt": A_TEXT | {"minLength": 1}, "n": whole(MAX_IMAGES)},
        required=("model", "prompt"),
        refused={"stream": "an answer comes whole; leave it out"},
    ),
    answer=answer(data=OBJECTS),
)
API = PassedApi(openai.At("/images/generations"), USAGE_FORMAT, unread)
