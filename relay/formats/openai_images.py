"""``POST /v1/images/generations``: images of a text. It is passed on, and paid by the piece or by tokens.

By the piece where the model's price has the meter ``image``: as many as the answer holds, at most those that
were asked for. Else by the tokens that the provider tells. In a stream that breaks off, an image of which a
preview was delivered counts as one that came: USUAL_IMAGE_TOKENS, beside what others told.
Protocol: https://platform.openai.com/docs/api-reference/images/create
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import msgspec

from relay.errors import bad_request
from relay.formats.answer import BadAnswer, ErrorAnswer, loads
from relay.formats.description import FLAG as A_FLAG
from relay.formats.description import NAME, OBJECTS, Description, answer, body, whole
from relay.formats.description import TEXT as A_TEXT
from relay.formats.format import MeterOptions
from relay.formats.json_fields import FLAG, OBJECT, QUOTE, TEXT, Fields, bounded, read, starts
from relay.formats.json_fields import OBJECTS as LISTED
from relay.formats.media import Measured, MediaRequest, unread
from relay.formats.media_stream import MediaEvent, MediaMeter, written
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
# Of the previews of an image (``partial_images``), 100 each
# (https://platform.openai.com/docs/guides/image-generation#partial-images).
MAX_PREVIEW_TOKENS = 3 * 100
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
    """A request for ``choices`` images, of a text or, in a form, of images too.

    ``by_piece``: whether they are paid so.
    """

    OUTPUT_FIELD: ClassVar[str | None] = "n"
    by_piece: bool = False

    @property
    def done(self) -> str:
        """The type of the event with which an image is there."""
        return "image_generation.completed" if self.form is None else "image_edit.completed"

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

    def metered(self, api: PassedApi, asked: str = "") -> PassedApi:
        """See MediaRequest."""
        usage_format = METERS_FORMAT if self.by_piece else USAGE_FORMAT
        return replace(
            self.reached(api),
            USAGE_FORMAT=usage_format,
            read_whole=partial(read_images, request=self),
            meter=partial(ImageMeter, request=self),
        )

    def as_events(self, body: bytes, asked: str = "") -> bytes:
        """See MediaRequest: an event for each image, the last one of which tells the usage."""
        read_images(body, request=self)
        value = loads(body)
        made = [one for one in value["data"] if any(_is_held(one.get(name)) for name in _HELD_IN)]
        created = {"created_at": value.get("created")}
        ends: list[dict[str, Any]] = [created | one for one in made[: self.choices]]
        ends[-1]["usage"] = value.get("usage")
        return b"".join(written(self.done, one) for one in ends)

    def pieces(self, made: int, told: Any) -> dict[str, Any]:
        """Usage by the piece of so many images; ``told``: the provider's own."""
        return {"meters": {"image": min(made, self.choices)}, "images": made, "provider": told}


def parse(body: bytes, settings: Settings) -> ImageRequest:
    """Check a body; raises ApiError 400 naming the field."""
    checked = check(body, settings, _KNOWN)
    stream = bool(read(checked.fields, "stream", FLAG))
    prompt: str = read(checked.fields, "prompt", TEXT, required=True)
    if not prompt:
        raise bad_request("prompt", "prompt must not be empty.")
    images = bounded(checked.fields, "n", MAX_IMAGES) or 1
    return ImageRequest(
        model=checked.model,
        stream=stream,
        max_output=most_tokens(settings, checked.model, images, stream=stream),
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


def most_tokens(settings: Settings, model: str, images: int, *, stream: bool) -> int:
    """Of so many images, in a stream with their previews."""
    previews = MAX_PREVIEW_TOKENS if stream else 0
    return (settings.max_output.get(model, MAX_IMAGE_TOKENS) + previews) * images


def read_images(body: bytes, *, request: ImageRequest) -> Measured:
    """An answer with images; raises ErrorAnswer, and BadAnswer.

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
    if not request.by_piece:
        return Measured(told, min(found, request.choices) * USUAL_IMAGE_TOKENS)
    return Measured(request.pieces(found, told))


def _is_held(image: Any) -> bool:
    return isinstance(image, str) and image != ""


class ImageMeter(MediaMeter):
    """Reads images along; see Meter. Each has an event with which it is there, and previews before."""

    PARTS = frozenset({"image_generation.partial_image", "image_edit.partial_image"})
    ENDS = frozenset({"image_generation.completed", "image_edit.completed"})

    def __init__(self, options: MeterOptions, *, request: ImageRequest) -> None:
        super().__init__(options)
        self._request = request
        self._made = 0
        self._preview = False
        # How many images were made when it was told, and the usage of all of them.
        self._told: list[tuple[int, dict[str, Any]]] = []

    def _count_part(self, part: MediaEvent) -> None:
        if not (_is_held(part.b64_json) or _is_held(part.url)):
            return
        self._preview = part.type in self.PARTS
        self._made += not self._preview
        begun = min(self._made + self._preview, self._request.choices) * USUAL_IMAGE_TOKENS
        self._add_units(max(begun - self.estimate(), 0))

    @property
    def _wanting(self) -> str | None:
        return None if self._made else "an image"

    @property
    def _last(self) -> bool:
        return self._made >= self._request.choices

    @property
    def complete(self) -> bool:
        """See Meter: fewer images than were asked for are an answer, too."""
        return self.error is None and self.broken is None and self._made > 0 and not self._preview

    def _usage_of(self, told: dict[str, Any] | None) -> Any:
        if self._request.by_piece:
            return self._request.pieces(self._made, told)
        if told is not None:
            all_told = together(self._told[-1][1], told) if self._told else told
            self._told.append((self._made, all_told))
        return self._told_of(self._made)

    def _told_of(self, images: int) -> dict[str, Any] | None:
        """Usage of the first ``images``: what was told, and of those of which nothing was the usual count."""
        known = [(made, usage) for made, usage in self._told if made <= images]
        if not known:
            return None
        made, usage = known[-1]
        return with_usual(usage, images - made)

    def _read_done(self) -> int:
        self.done = self.complete
        return super()._read_done()

    def partial_usage(self, delivered: int) -> Any:
        """See Meter."""
        begun = -(-delivered // USUAL_IMAGE_TOKENS)
        if self._request.by_piece:
            return self._request.pieces(begun, None) if begun else None
        return self._told_of(begun)


def together(before: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """Usage of several images of a stream, each of which tells its own: the prompt is the same."""
    made = [usage.get("output_tokens") for usage in (before, told)]
    if not all(map(_is_whole, made)):
        return told
    return {**told, "output_tokens": sum(made), "output_tokens_details": None, "total_tokens": None}


def with_usual(usage: dict[str, Any], images: int) -> dict[str, Any]:
    """The same with the usual count of so many more; what has no count of its own is not made to look like
    one that has."""
    if not images or not _is_whole(usage.get("output_tokens")):
        return usage
    more = usage | {"output_tokens": images * USUAL_IMAGE_TOKENS, "estimated": True}
    return together(usage, more)


def _is_whole(count: Any) -> bool:
    return isinstance(count, int) and not isinstance(count, bool)


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
        _KNOWN,
        typed={
            "model": NAME,
            "prompt": A_TEXT | {"minLength": 1},
            "n": whole(MAX_IMAGES),
            "stream": A_FLAG,
        },
        required=("model", "prompt"),
    ),
    answer=answer(data=OBJECTS),
    streams=True,
)
API = PassedApi(openai.At("/images/generations"), USAGE_FORMAT, unread)
