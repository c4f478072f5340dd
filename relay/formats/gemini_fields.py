"""Which fields, parts and tools of Gemini's ``generateContent`` are sent on, and which are refused.

After Google's reference (https://ai.google.dev/api/generate-content). Its names are written in camel case or
in snake case; here they are in camel case. A field that is in no table is unknown: RELAY_UNKNOWN_FIELDS says
whether it is passed, dropped or refused. What is refused is billed beyond what a request's size and
``maxOutputTokens`` bound, or belongs to the account at the provider.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from relay.formats.description import COUNT, OBJECT, Description, Schema, answer, body

MAX_OUTPUT = 10_000_000
MAX_CANDIDATES = 8
MODELS = "models/"

PASSED = frozenset(
    {
        *("contents", "generationConfig", "model", "safetySettings", "serviceTier", "store"),
        *("systemInstruction", "toolConfig", "tools"),
    }
)
CONFIG_PASSED = frozenset(
    {
        *("candidateCount", "enableEnhancedCivicAnswers", "frequencyPenalty", "logprobs", "maxOutputTokens"),
        *("mediaResolution", "presencePenalty", "responseJsonSchema", "responseLogprobs", "responseMimeType"),
        *("responseModalities", "responseSchema", "seed", "stopSequences", "temperature", "thinkingConfig"),
        *("topK", "topP"),
    }
)
_ACCOUNT = "it belongs to the account at the provider; send what it holds"
_NO_PRICE = "it has no price here; leave it out"
REFUSED = {"cachedContent": _ACCOUNT}
CONFIG_REFUSED = {"imageConfig": _NO_PRICE, "speechConfig": _NO_PRICE}
# The tier that has the usual price.
TIERS = ("standard", "unspecified", "service_tier_standard", "service_tier_unspecified")
# What a tool may hold: functions that the customer runs. Google bills its own tools apart.
CUSTOMERS_TOOLS = frozenset({"functionDeclarations"})
# Parts whose tokens their bytes bound. One that is in none of these lists is held like an image.
TEXT_PARTS = frozenset({"text", "functionCall", "functionResponse", "executableCode", "codeExecutionResult"})
# What stands beside a part's content.
BESIDE_PARTS = frozenset({"thought", "thoughtSignature", "partMetadata", "mediaResolution"})
# The most tokens of an image: https://ai.google.dev/gemini-api/docs/media-resolution
IMAGE_TOKENS = 2_500
_NUMBER = {"type": ["integer", "string", "null"], "pattern": "^[0-9]+$", "minimum": 1}
_CONTENT: Schema = {
    "type": "object",
    "properties": {
        "role": {"type": ["string", "null"]},
        "parts": {"type": ["array", "null"], "items": OBJECT},
    },
}
_CONFIG = body(
    CONFIG_PASSED,
    typed={
        "candidateCount": _NUMBER | {"maximum": MAX_CANDIDATES},
        "maxOutputTokens": _NUMBER | {"maximum": MAX_OUTPUT},
        "responseModalities": {"enum": [["TEXT"], [], None]},
    },
    refused=CONFIG_REFUSED,
)
_TYPED: dict[str, Schema] = {
    "contents": {"type": "array", "items": _CONTENT, "minItems": 1},
    "systemInstruction": _CONTENT | {"type": ["object", "null"]},
    "generationConfig": _CONFIG | {"type": ["object", "null"]},
    "model": {"description": "The model that the URL names, if anything."},
    "serviceTier": {"enum": [*TIERS, None]},
    "tools": {"type": ["array", "null"], "items": OBJECT},
}
ABOUT = Description(
    name="GenerateContent",
    summary="Have a model answer contents, in Gemini's format",
    reference="https://ai.google.dev/api/generate-content",
    request=body(PASSED, typed=_TYPED, required=("contents",), refused=REFUSED)
    | {"description": "Names may be written in snake case, too."},
    answer={"type": "object", "properties": {"candidates": {"type": "array"}, "usageMetadata": OBJECT}},
)
ABOUT_COUNTING = Description(
    name="ContentTokens",
    summary="Count a prompt's tokens, at no charge",
    reference="https://ai.google.dev/api/tokens",
    request={
        "type": "object",
        "properties": _TYPED | {"generateContentRequest": ABOUT.request},
        "description": "Contents and what belongs to them, or generateContentRequest alone.",
    },
    answer=answer(totalTokens=COUNT),
)
# Below these names, names are the customer's own.
OPAQUE = frozenset(
    {
        *("args", "response", "parametersJsonSchema", "responseJsonSchema", "default", "example"),
        *("enum", "partMetadata"),
    }
)


# Objects of a schema whose names are the customer's own.
_OF_SCHEMAS = frozenset({"properties", "defs", "$defs", "definitions"})
# What Google reads there is no image, whatever it is said to be: hours of video, files of an account.
_NO_IMAGES = ("youtube.com", "youtu.be", "youtube-nocookie.com", "googleapis.com")


def is_image_address(url: str) -> bool:
    """Whether Google takes an image from there, and nothing else."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return False
    others = any(host == other or host.endswith(f".{other}") for other in _NO_IMAGES)
    return parts.scheme == "https" and bool(host) and not others


class Twice(Exception):
    """An object has a field in both notations; ``name``: in camel case."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def camel(name: str) -> str:
    """A field's name in camel case."""
    if "_" not in name:
        return name
    first, *rest = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def camelised(value: Any) -> Any:
    """Decoded JSON with Google's names in camel case, and without nulls, which say nothing; raises Twice."""
    if isinstance(value, list):
        return [camelised(item) for item in value]
    if not isinstance(value, dict):
        return value
    made: dict[str, Any] = {}
    seen: set[str] = set()
    for given, inner in value.items():
        name = camel(given)
        if name in seen:
            raise Twice(name)
        seen.add(name)
        if inner is None:
            continue
        if name in OPAQUE:
            made[name] = inner
        elif name in _OF_SCHEMAS and isinstance(inner, dict):
            made[name] = {own: camelised(item) for own, item in inner.items()}
        else:
            made[name] = camelised(inner)
    return made
