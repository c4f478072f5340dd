"""Reading Gemini's ``generateContent`` and bounding what it can cost.

The body is read, and passed as it came. Where it does not bound the answer by itself, ``maxOutputTokens`` is
put into its ``generationConfig``, and nothing else is touched. So that both of us see the same value, a name
that occurs twice where it counts is refused, be it once in camel case and once in snake case.

Protocol: https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from relay.errors import ApiError, bad_request
from relay.formats.gemini_fields import (
    BESIDE_PARTS,
    CONFIG_PASSED,
    CONFIG_REFUSED,
    CUSTOMERS_TOOLS,
    IMAGE_TOKENS,
    MAX_CANDIDATES,
    MAX_OUTPUT,
    MODELS,
    PASSED,
    REFUSED,
    TEXT_PARTS,
    TIERS,
    Twice,
    camel,
    camelised,
    is_image_address,
)
from relay.formats.json_fields import (
    OBJECT,
    SHOWN,
    Fields,
    encode,
    read_document,
    spans_of,
    without_nulls,
    wrong,
)
from relay.formats.reading import compact
from relay.formats.request import INSTRUCTION_TOKENS, Request
from relay.formats.text_estimate import json_estimate, split_text, text_estimate
from relay.formats.top_level import replace_string
from relay.providers.profiles import Profile
from relay.settings import Settings

TOKENS_A_MESSAGE = 4
CONFIG = "generationConfig"
_any = msgspec.json.Decoder()

Object = dict[str, Any]


@dataclass(slots=True)
class GenerateRequest(Request):
    """A request in Gemini's format. ``body``: as it came; ``config_at``: begin and end of the value of
    ``generationConfig`` in it, None where it has none; ``fields``: what it says, in camel case. ``unknown``:
    names of its fields, and ``generationConfig.`` names, that are in no list here. ``output_is_capped``: it
    says itself how many tokens an answer may have.
    """

    body: bytes
    config_at: tuple[int, int] | None
    fields: Object
    unknown: frozenset[str]
    output_is_capped: bool

    def native(self, model: str, profile: Profile) -> bytes:
        """See Request."""
        body = self._limited()
        if self.unknown and profile.unknown_fields == "refuse":
            raise unknown_field(self.unknown)
        if self.unknown and profile.unknown_fields == "drop":
            body = self._known(body)
        return body if model == self.model else replace_string(body, "model", MODELS + model)

    def _limited(self) -> bytes:
        """The body, with the limit that was held for where it has none."""
        if self.output_is_capped:
            return self.body
        start, end = self.config_at or (self.body.index(b"{") + 1,) * 2
        given: Fields = {}
        if self.config_at is not None and self.body[start:end] != b"null":
            given = without_nulls(OBJECT.decode(self.body[start:end]))
        config = encode(given | {"maxOutputTokens": msgspec.Raw(b"%d" % (self.max_output // self.choices))})
        if self.config_at is None:
            more = b"," if self.fields else b""
            config = b'"' + CONFIG.encode() + b'":' + config + more
        return self.body[:start] + config + self.body[end:]

    def _known(self, body: bytes) -> bytes:
        """The body without what is unknown."""
        fields: Fields = OBJECT.decode(body)
        kept = {name: raw for name, raw in fields.items() if camel(name) not in self.unknown}
        for name, raw in kept.items():
            if camel(name) == CONFIG:
                config: Fields = OBJECT.decode(raw)
                known = {own: one for own, one in config.items() if _in_config(own) not in self.unknown}
                kept[name] = msgspec.Raw(encode(known))
        return encode(kept)

    def document(self) -> bytes:
        """See Request."""
        return self.body

    def counted_prompt(self, image_tokens: int) -> int:
        """See Request: 4 a content, and its texts' estimate."""
        texts = sum(text_estimate(*split_text(text)) for text in _texts(self.fields))
        tools = json_estimate(encode(self.fields["tools"])) if "tools" in self.fields else 0
        contents = len(self.fields.get("contents", ()))
        return TOKENS_A_MESSAGE * contents + texts + tools + self.images * image_tokens


def parse(body: bytes, settings: Settings, *, model: str, stream: bool = False) -> GenerateRequest:
    """Check a body that was sent for ``model``; raises ApiError 400 naming the field."""
    body, given = read_document(body, settings.max_depth)
    spans = {camel(name): span for name, span in spans_of(body, given).items()}
    fields = decoded(body)
    check_model(model, fields.get("model"))
    _check_fields(fields)
    config = _object(fields, CONFIG)
    if CONFIG in fields:
        start, end = spans[CONFIG]
        spans_of(body[start:end], OBJECT.decode(body[start:end]), CONFIG)
    choices = _in_bounds(config, "candidateCount", MAX_CANDIDATES) or 1
    limit = _in_bounds(config, "maxOutputTokens", MAX_OUTPUT)
    contents = _contents(fields)
    count = _Count()
    for number, content in enumerate(contents):
        count.parts(content.get("parts"), f"contents[{number}].parts")
    count.parts(_object(fields, "systemInstruction").get("parts"), "systemInstruction.parts")
    unknown = {name for name in fields if name not in PASSED}
    unknown |= {_in_config(name) for name in config if name not in CONFIG_PASSED}
    return GenerateRequest(
        model=model,
        stream=stream,
        max_output=(limit or settings.max_output_of(model)) * choices,
        # No tokenizer makes more tokens than a text has bytes, and its JSON never has fewer bytes than it.
        input_bound=len(body)
        - count.image_bytes
        + TOKENS_A_MESSAGE * len(contents)
        + (count.images + count.others) * max(settings.image_hold_tokens, IMAGE_TOKENS)
        + (INSTRUCTION_TOKENS if "tools" in fields else 0),
        images=count.images,
        choices=choices,
        include_usage=True,
        body=body,
        config_at=spans.get(CONFIG),
        fields=fields,
        unknown=frozenset(unknown),
        output_is_capped=limit is not None,
    )


def parse_count(body: bytes, settings: Settings, *, model: str) -> GenerateRequest:
    """The same for ``countTokens``, whose body may hold a whole request."""
    body, given = read_document(body, settings.max_depth)
    whole = [raw for name, raw in given.items() if camel(name) == "generateContentRequest"]
    if not whole:
        return parse(body, settings, model=model)
    if len(given) > 1:
        place = "generateContentRequest"
        raise bad_request(place, f"{place}: send it alone, or contents alone.", "invalid_type")
    return parse(bytes(whole[0]), settings, model=model)


def decoded(body: bytes) -> Object:
    """What a body says, in camel case."""
    try:
        made: Object = camelised(_any.decode(body))
    except Twice as twice:
        message = f"{twice.name}: it is there in two notations; send it once."
        raise bad_request(twice.name, message) from None
    except (msgspec.MsgspecError, UnicodeError) as error:  # such as a number that is too large
        raise wrong("body", str(error)) from None
    return made


def check_model(model: str, given: Any, place: str = "model") -> None:
    """Raise ApiError 400 where the URL's ``model`` is no name, or the one ``given`` at ``place`` another."""
    if not 1 <= len(model) <= 200:
        raise bad_request("model", "model: use a name of 1 to 200 characters.")
    if given not in (None, model, MODELS + model):
        raise bad_request(place, f"{place}: it is another one than the URL names; leave it out.")


def unknown_field(unknown: frozenset[str]) -> ApiError:
    """400 for fields that are unknown here, where they are refused; it names the first."""
    name = min(unknown)[:SHOWN]
    message = f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
    return bad_request(name, message, "unknown_parameter")


def wrong_type(place: str, expected: str) -> ApiError:
    """400 for a value that is not what is ``expected``, such as "an object"."""
    return bad_request(place, f"Invalid value at '{place}': expected {expected}.", "invalid_type")


def _in_config(name: str) -> str:
    return f"{CONFIG}.{camel(name)}"


def _check_fields(fields: Object) -> None:
    for name, remedy in REFUSED.items():
        if name in fields:
            raise _unsupported(name, remedy)
    tier = fields.get("serviceTier")
    if tier is not None and str(tier).lower() not in TIERS:
        raise _unsupported("serviceTier", "this tier has no price here; leave it out")
    config = _object(fields, CONFIG)
    for name, remedy in CONFIG_REFUSED.items():
        if name in config:
            raise _unsupported(_in_config(name), remedy)
    kinds = config.get("responseModalities") or ["TEXT"]
    if not isinstance(kinds, list) or [str(kind).upper() for kind in kinds] != ["TEXT"]:
        raise _unsupported(f"{CONFIG}.responseModalities", 'only ["TEXT"] has a price here')
    for number, tool in enumerate(_list(fields, "tools")):
        named = tool.keys() - CUSTOMERS_TOOLS if isinstance(tool, dict) else ()
        if named:
            place = f"tools[{number}].{min(named)[:SHOWN]}"
            raise _unsupported(
                place, "it has no price here; use functionDeclarations, which you run yourself"
            )


def _unsupported(place: str, remedy: str) -> ApiError:
    return bad_request(place, f"{place}: not supported: {remedy}.", "unsupported_parameter")


def _object(fields: Object, name: str) -> Object:
    value = fields.get(name, {})
    if not isinstance(value, dict):
        raise wrong_type(name, "an object")
    return value


def _list(fields: Object, name: str) -> list[Any]:
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise wrong_type(name, "a list")
    return value


def _contents(fields: Object) -> list[Object]:
    contents = _list(fields, "contents")
    if not contents:
        raise bad_request("contents", "contents: contents is not specified.", "missing_required_parameter")
    for number, content in enumerate(contents):
        if not isinstance(content, dict):
            raise wrong_type(f"contents[{number}]", "an object")
    return contents


def _in_bounds(config: Object, name: str, most: int) -> int | None:
    return whole_number(config.get(name), most, _in_config(name))


def whole_number(value: Any, most: int, place: str) -> int | None:
    """A number from 1 to ``most``, which Google also takes as 5.0 and as "5"; raises ApiError 400."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:12])
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise bad_request(place, f"{place}: use a whole number from 1 to {most}.", "invalid_type")
    return value


class _Count:
    """What contents hold beside text. ``image_bytes``: of images' data, which are no tokens."""

    def __init__(self) -> None:
        self.images = self.image_bytes = self.others = 0

    def parts(self, parts: Any, place: str) -> None:
        """The parts of a content, or of a function's response."""
        if parts is None:
            return
        if not isinstance(parts, list):
            raise wrong_type(place, "a list")
        for number, part in enumerate(parts):
            where = f"{place}[{number}]"
            if not isinstance(part, dict):
                raise wrong_type(where, "an object")
            for name, value in part.items():
                self._part(name, value, f"{where}.{name[:SHOWN]}")

    def _part(self, name: str, value: Any, place: str) -> None:
        if name in ("inlineData", "fileData"):
            self._media(name, value, place)
        elif name not in TEXT_PARTS and name not in BESIDE_PARTS:
            self.others += 1
        elif name == "functionResponse" and isinstance(value, dict):
            self.parts(value.get("parts"), f"{place}.parts")

    def _media(self, name: str, value: Any, place: str) -> None:
        """Images, by their bytes or a public address, and texts: the tokens of all else are not bounded."""
        value = value if isinstance(value, dict) else {}
        kind = str(value.get("mimeType", "")).lower()
        if name == "fileData":
            if not kind.startswith("image/") or not is_image_address(str(value.get("fileUri", ""))):
                message = f"{place}: it has no price here; send images by inlineData, and else its text."
                raise bad_request(place, message, "unsupported_content")
            self.images += 1
        elif kind.startswith("image/"):
            data = value.get("data")
            self.images += 1
            self.image_bytes += len(data) if isinstance(data, str) and data.isascii() else 0
        elif not kind.startswith("text/"):
            where = f"{place}.mimeType"
            message = f"{where}: '{kind[:SHOWN]}' has no price here; use images, or send its text."
            raise bad_request(where, message, "unsupported_content")


def _texts(fields: Object) -> Iterator[str]:
    """The texts of a request; what a function was called with, and what it gave, is text, too."""
    for content in (fields.get("systemInstruction"), *fields.get("contents", ())):
        parts = content.get("parts") if isinstance(content, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part.get("text"), str):
                yield part["text"]
            for name, inner in (("functionCall", "args"), ("functionResponse", "response")):
                value = part.get(name)
                if isinstance(value, dict):
                    yield str(value.get("name", ""))
                    yield compact(value.get(inner, {}))
