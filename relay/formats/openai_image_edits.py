"""``POST /v1/images/edits``: images of a text and of other images, in a form. Measured as generations are.

Protocol: https://platform.openai.com/docs/api-reference/images/createEdit
"""

from __future__ import annotations

from relay.errors import bad_request
from relay.formats.description import FILE, NAME, OBJECTS, Description, answer, body
from relay.formats.description import FLAG as A_FLAG
from relay.formats.description import TEXT as A_TEXT
from relay.formats.media import checked_form, streams, unread
from relay.formats.multipart import Form, missing
from relay.formats.openai_embeddings import count
from relay.formats.openai_images import MAX_IMAGES, USAGE_FORMAT, ImageRequest, most_tokens
from relay.formats.passed import PassedApi
from relay.providers import openai
from relay.settings import Settings

# Of an image that a model looks at; OpenAI's has 6,500 at most, where its details are to be kept
# (https://platform.openai.com/docs/guides/images-vision#gpt-image-1).
MAX_SEEN_TOKENS = 8_192
_FILES = ("image", "image[]")
_KNOWN = frozenset(
    {
        *("model", "prompt", "image", "image[]", "mask", "background", "input_fidelity", "moderation", "n"),
        *("output_compression", "output_format", "partial_images", "quality", "response_format", "size"),
        *("stream", "user"),
    }
)


def parse(form: Form, settings: Settings) -> ImageRequest:
    """Check a form; raises ApiError 400 naming the field."""
    checked = checked_form(form, _KNOWN)
    stream = streams(form)
    if not form.files(_FILES):
        raise missing("image")
    seen = len(form.files((*_FILES, "mask")))
    prompt, images = form.require("prompt"), _number(form)
    return ImageRequest(
        model=checked.model,
        stream=stream,
        max_output=most_tokens(settings, checked.model, images, stream=stream),
        input_bound=form.text_bytes + seen * MAX_SEEN_TOKENS,
        images=seen,
        choices=images,
        include_usage=False,
        body=b"",
        model_at=(0, 0),
        unknown=checked.unknown,
        counted=count(prompt),
        form=form,
    )


def _number(form: Form) -> int:
    given = form.text("n") or "1"
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= MAX_IMAGES):
        raise bad_request("n", f"n must be between 1 and {MAX_IMAGES}, not {given[:20]}.")
    return int(given)


ABOUT = Description(
    name="ImageEdit",
    summary="Have a model make images of a text and of other images, in OpenAI's format",
    reference="https://platform.openai.com/docs/api-reference/images/createEdit",
    request=body(
        _KNOWN,
        typed={"model": NAME, "prompt": A_TEXT | {"minLength": 1}, "image": FILE, "stream": A_FLAG},
        required=("model", "prompt"),
    ),
    answer=answer(data=OBJECTS),
    streams=True,
    form=True,
)
API = PassedApi(openai.At("/images/edits"), USAGE_FORMAT, unread)
