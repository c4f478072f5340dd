"""Providers' usage, normalised to disjoint meters: each unit that a provider counts lands in exactly one.

Reasoning tokens are answer text: OpenAI and Anthropic count them in the output already, Gemini beside it.
Sources: the providers' API references for their usage objects (tests/unit/pricing/test_usage.py has an
example each).
"""

from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any

from relay.pricing.errors import FieldError
from relay.pricing.meter_names import check_meter

Raw = Mapping[str, Any]

MOST = 10**30  # units of anything; more is no count
METERS_FORMAT = "meters"  # disjoint meters as they are: {"meters": {"in_text": 10}}

_WRITTEN = "cache_creation_input_tokens"
_SHORT, _HOUR = "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"
_HOUR_OF_NEW_API = "claude_cache_creation_1_h_tokens"
_WRAPPERS = ("usage", "usageMetadata", "usage_metadata")
_MODALITIES_IN = {"AUDIO": "in_audio", "IMAGE": "in_image", "VIDEO": "in_image"}
_MODALITIES_OUT = {"AUDIO": "out_audio", "IMAGE": "out_image", "VIDEO": "out_image"}


def normalise(fmt: str, raw: Raw) -> dict[str, int]:
    """Disjoint meters (no zeros) of a provider's usage object, or of a response that contains one.

    ``fmt``: openai (chat, completions), openai_responses (or responses), anthropic, gemini, embeddings,
    images, audio (transcription, translation, speech), meters. Raises FieldError naming the field when it is
    malformed, and nothing else whatever a provider sends.
    """
    reader = FORMATS.get(ALIASES.get(fmt, fmt))
    if reader is None:
        raise FieldError("format", f"{fmt!r} is not a usage format", f"use one of {', '.join(FORMATS)}")
    if not isinstance(raw, Mapping):
        raise FieldError(fmt, "the usage is not an object", "pass the usage as it came")
    for wrapper in _WRAPPERS:
        if wrapper in raw and isinstance(raw[wrapper], Mapping):
            raw = {**{key: value for key, value in raw.items() if key != wrapper}, **raw[wrapper]}
    return {meter: quantity for meter, quantity in reader(raw).items() if quantity}


def count(raw: Raw, *names: str) -> int:
    """The first of these fields that is present and not null, as a count; 0 when none is."""
    for name in names:
        value = raw.get(name)
        if value is None:
            continue
        if not _is_whole(value):
            raise FieldError(name, f"{_shown(value)} is not a whole number", "pass the usage as it came")
        if not 0 <= value <= MOST:
            raise FieldError(name, "it is negative or above 10**30", "pass the usage as it came")
        return int(value)
    return 0


def _is_whole(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    if isinstance(value, Decimal):
        return value.is_finite() and value == value.to_integral_value()
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    try:
        return repr(value)[:60]
    except (ValueError, RecursionError):  # an integer of thousands of digits, or nesting of thousands
        return f"a value of type {type(value).__name__}"


def part(raw: Raw, *names: str) -> Raw:
    """The first of these fields that is an object, or an empty one."""
    for name in names:
        value = raw.get(name)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise FieldError(name, "it is not an object", "pass the usage as it came")
        return value
    return {}


def _require(raw: Raw, *names: str) -> None:
    if not any(raw.get(name) is not None for name in names):
        raise FieldError(names[0], "the usage does not have it", "pass the usage as it came")


def _openai(raw: Raw) -> dict[str, int]:
    """Chat completions, completions and responses: details are parts of the totals.

    Cached tokens may be of any kind. They are taken by kind where the provider says so, else from text first
    and then from audio and images. Where the parts exceed the total, or the total of both sides says so, the
    provider counts them beside it.
    """
    _require(raw, "prompt_tokens", "input_tokens", "completion_tokens", "output_tokens")
    inputs = part(raw, "prompt_tokens_details", "input_tokens_details", "input_token_details")
    prompt = count(raw, "prompt_tokens", "input_tokens")
    cached = count(inputs, "cached_tokens") or count(raw, *_CACHE_READS)
    written, hour = _cache_writes(raw, inputs)
    beside = cached + written if raw.keys() & _ANTHROPICS else 0
    if _total(raw, "total_tokens") == prompt + beside + count(raw, *_OUTPUTS):
        prompt += beside
    audio, image = count(inputs, "audio_tokens"), count(inputs, "image_tokens")
    by_kind = part(inputs, "cached_tokens_details")
    audio -= min(audio, count(by_kind, "audio_tokens"))
    image -= min(image, count(by_kind, "image_tokens"))
    text = prompt - cached - written - audio - image
    audio, text = _absorb(audio, text)
    image, text = _absorb(image, text)
    return {
        "in_text": max(text, 0),
        "cache_read": cached,
        "cache_write_5m": written - hour,
        "cache_write_1h": hour,
        "in_audio": audio,
        "in_image": image,
        **_openai_output(raw, max(prompt, cached + written + audio + image)),
        **_tools(raw),
    }


_OUTPUTS = ("completion_tokens", "output_tokens")
# By these names Anthropic counts beside its input_tokens; most who have them in OpenAI's format count inside.
_ANTHROPICS = {"cache_read_input_tokens", _WRITTEN}
_CACHE_READS = ("prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")


def _cache_writes(raw: Raw, inputs: Raw) -> tuple[int, int]:
    """(tokens written to the cache, those of them that stay for an hour), of Anthropic's models and Alibaba's
    behind OpenAI's format: each gateway has names of its own for them.
    """
    names = ("cache_write_tokens", "cache_creation_tokens", "cached_creation_tokens", _WRITTEN)
    split = part(inputs, "cache_creation_token_details", "cache_creation") or part(raw, "cache_creation")
    hour = count(split, _HOUR) or count(raw, _HOUR_OF_NEW_API)
    return max(count(inputs, *names) or count(raw, _WRITTEN), hour + count(split, _SHORT)), hour


def _absorb(quantity: int, deficit: int) -> tuple[int, int]:
    """Take from a meter what cached tokens of its kind have left as a deficit of text."""
    taken = min(quantity, max(-deficit, 0))
    return quantity - taken, deficit + taken


def _openai_output(raw: Raw, prompt: int) -> dict[str, int]:
    """Reasoning is answer text. Providers that count it beside the completion say so by their total."""
    details = part(raw, "completion_tokens_details", "output_tokens_details", "output_token_details")
    output = count(raw, "completion_tokens", "output_tokens")
    output += max(_total(raw, "total_tokens") - prompt - output, 0)
    audio, image = count(details, "audio_tokens"), count(details, "image_tokens")
    return {"out_text": max(output - audio - image, 0), "out_audio": audio, "out_image": image}


def _total(raw: Raw, name: str) -> int:
    """A total beside the figures that count; one that cannot be read says nothing."""
    value: Any = raw.get(name)
    return int(value) if _is_whole(value) and 0 <= value <= MOST else 0


def _tools(raw: Raw) -> dict[str, int]:
    """Uses of providers' built-in tools: Anthropic's server_tool_use, or the gateway's count in ``tools``."""
    served = part(raw, "server_tool_use")
    uses = {f"tool:{name.removesuffix('_requests')}": count(served, name) for name in served}
    own = part(raw, "tools")
    return {**uses, **{f"tool:{name.removeprefix('tool:')}": count(own, name) for name in own}}


def _anthropic(raw: Raw) -> dict[str, int]:
    """Messages: cache reads and writes stand beside input_tokens; writes may be split by lifetime."""
    _require(raw, "input_tokens", "output_tokens")
    split = part(raw, "cache_creation")
    hour = count(split, _HOUR) or count(raw, _HOUR_OF_NEW_API)
    short = count(split, _SHORT)
    written = max(count(raw, _WRITTEN), hour + short)
    return {
        "in_text": count(raw, "input_tokens"),
        "cache_read": count(raw, "cache_read_input_tokens"),
        "cache_write_5m": written - hour,
        "cache_write_1h": hour,
        "out_text": count(raw, "output_tokens"),
        **_tools(raw),
    }


def _gemini(raw: Raw) -> dict[str, int]:
    """generateContent: the cached part is inside promptTokenCount, thoughts and tool prompts are beside."""
    raw = {_camel(name): value for name, value in raw.items()}
    _require(raw, "promptTokenCount", "candidatesTokenCount", "totalTokenCount")
    prompt, tool_prompt = count(raw, "promptTokenCount"), count(raw, "toolUsePromptTokenCount")
    cached = count(raw, "cachedContentTokenCount")
    kinds = _by_kind(raw, "promptTokensDetails", _MODALITIES_IN)
    for meter, quantity in _by_kind(raw, "cacheTokensDetails", _MODALITIES_IN).items():
        kinds[meter] = max(kinds.get(meter, 0) - quantity, 0)
    for meter, quantity in _by_kind(raw, "toolUsePromptTokensDetails", _MODALITIES_IN).items():
        kinds[meter] = kinds.get(meter, 0) + quantity
    text = prompt + tool_prompt - cached - sum(kinds.values())
    for meter in kinds:
        kinds[meter], text = _absorb(kinds[meter], text)
    return {
        "in_text": max(text, 0),
        "cache_read": cached,
        **kinds,
        **_gemini_output(raw, prompt + tool_prompt),
    }


def _gemini_output(raw: Raw, prompt: int) -> dict[str, int]:
    answer, thoughts = (
        count(raw, "candidatesTokenCount", "responseTokenCount"),
        count(raw, "thoughtsTokenCount"),
    )
    total = _total(raw, "totalTokenCount")
    if not (thoughts and total == prompt + answer):  # else the thoughts are inside the candidates already
        answer += thoughts
    answer += max(total - prompt - answer, 0)
    details = "candidatesTokensDetails" if "candidatesTokensDetails" in raw else "responseTokensDetails"
    kinds = _by_kind(raw, details, _MODALITIES_OUT)
    return {"out_text": max(answer - sum(kinds.values()), 0), **kinds}


def _by_kind(raw: Raw, name: str, meters: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    details = raw.get(name) or []
    if not isinstance(details, list) or not all(isinstance(detail, Mapping) for detail in details):
        raise FieldError(name, "it is not a list of objects", "pass the usage as it came")
    for detail in details:
        meter = meters.get(str(detail.get("modality")).upper())
        if meter:
            found[meter] = found.get(meter, 0) + count(detail, "tokenCount", "token_count")
    return found


def _camel(name: str) -> str:
    """Google's own SDKs show the JSON names in snake case."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _embeddings(raw: Raw) -> dict[str, int]:
    """OpenAI's and Gemini's: there is input only; some providers give nothing but the total."""
    names = ("prompt_tokens", "input_tokens", "promptTokenCount", "total_tokens", "totalTokenCount")
    _require(raw, *names)
    details = part(raw, "prompt_tokens_details", "input_tokens_details")
    audio, image = count(details, "audio_tokens"), count(details, "image_tokens")
    total = count(raw, *names)
    return {"in_text": max(total - audio - image, 0), "in_audio": audio, "in_image": image}


def _images(raw: Raw) -> dict[str, int]:
    """Images: tokens where the provider counts them, else pieces. The answer is image unless it says text."""
    if raw.get("input_tokens") is None and raw.get("output_tokens") is None:
        _require(raw, "n", "images", "image_count", "data")
        listed = next((raw[name] for name in ("data", "images") if isinstance(raw.get(name), list)), None)
        return {"image": len(listed) if listed is not None else count(raw, "n", "images", "image_count")}
    meters = _openai(raw)
    text = count(part(raw, "output_tokens_details", "output_token_details"), "text_tokens")
    answer = meters.pop("out_text") + meters["out_image"]
    return {**meters, "out_text": min(text, answer), "out_image": answer - min(text, answer)}


def _audio(raw: Raw) -> dict[str, int]:
    """Speech and transcription: seconds, characters, or tokens.

    Tokens with input details (or type "tokens") are a transcription: the answer is text. Bare tokens are
    speech synthesis: the answer is audio.
    """
    for name in ("characters", "character_count", "chars"):
        if raw.get(name) is not None:
            return {"char": count(raw, name)}
    for name, thousandths in (("seconds", 1000), ("duration", 1000), ("duration_seconds", 1000), ("ms", 1)):
        if raw.get(name) is not None:
            return {"ms": _milliseconds(raw[name], name, thousandths)}
    meters = _openai(raw)
    details = part(raw, "input_token_details", "input_tokens_details", "prompt_tokens_details")
    if not details and raw.get("type") != "tokens":
        meters["out_audio"] += meters.pop("out_text")
    return meters


def _milliseconds(value: Any, name: str, factor: int) -> int:
    """Whole milliseconds, a begun one counts."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise FieldError(name, f"{_shown(value)} is not a duration", "write seconds, e.g. 61.25")
    try:
        exact = Decimal(str(value)) * factor
    except (ArithmeticError, ValueError):
        raise FieldError(name, "it is not a duration", "write seconds, e.g. 61.25") from None
    if not exact.is_finite() or not 0 <= exact < 10**12:
        raise FieldError(name, "it is not a duration", "write seconds, e.g. 61.25")
    return int(exact.to_integral_value(ROUND_CEILING))


def _meters(raw: Raw) -> dict[str, int]:
    """What the relay itself counted or cut."""
    given = part(raw, "meters")
    return {check_meter(name, f"meters.{name}"): count(given, name) for name in given}


FORMATS: dict[str, Callable[[Raw], dict[str, int]]] = {
    "openai": _openai,
    "openai_responses": _openai,
    "responses": _openai,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "embeddings": _embeddings,
    "images": _images,
    "audio": _audio,
    METERS_FORMAT: _meters,
}
# What people call the same formats.
ALIASES = {
    "chat": "openai",
    "openai_chat": "openai",
    "completions": "openai",
    "messages": "anthropic",
    "anthropic_messages": "anthropic",
    "google": "gemini",
    "embedding": "embeddings",
    "openai_embeddings": "embeddings",
    "image": "images",
    "openai_images": "images",
    "openai_audio": "audio",
    "transcription": "audio",
    "speech": "audio",
}
