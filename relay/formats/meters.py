"""Usage as customers are shown it, from disjoint meters and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relay.pricing.errors import FieldError
from relay.pricing.meter_names import INPUT_METERS, OUTPUT_METERS
from relay.pricing.usage import normalise

CACHED = ("cache_read", "cache_write_5m", "cache_write_1h")


def meters_of(usage_format: str, usage: Any) -> dict[str, int] | None:
    """Disjoint meters of a provider's usage; None where it told none that can be read."""
    if not isinstance(usage, Mapping) or not usage:
        return None
    try:
        return normalise(usage_format, usage)
    except FieldError:
        return None


def reasoning_of(usage: Any) -> int | None:
    """How many of the output's tokens were thoughts, where a provider of any format tells it."""
    count = usage.get("thoughtsTokenCount") if isinstance(usage, Mapping) else None
    if isinstance(count, int) and not isinstance(count, bool) and count >= 0:
        return count
    for details in ("completion_tokens_details", "output_tokens_details"):
        told = usage.get(details) if isinstance(usage, Mapping) else None
        for name in ("reasoning_tokens", "thinking_tokens"):
            count = told.get(name) if isinstance(told, Mapping) else None
            if isinstance(count, int) and not isinstance(count, bool) and count >= 0:
                return count
    return None


def totals(meters: Mapping[str, int]) -> tuple[int, int]:
    """(units of the prompt, units of the answer)."""
    prompt = sum(meters.get(name, 0) for name in INPUT_METERS)
    return prompt, sum(meters.get(name, 0) for name in OUTPUT_METERS)


def as_openai(meters: Mapping[str, int], reasoning: int | None) -> dict[str, Any]:
    """OpenAI's usage object: the cache is inside the prompt."""
    prompt, output = totals(meters)
    details = {"cached_tokens": meters.get("cache_read", 0)}
    written = meters.get("cache_write_5m", 0) + meters.get("cache_write_1h", 0)
    if written:
        details["cache_write_tokens"] = written
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": details,
    }
    if reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage


def as_responses(meters: Mapping[str, int], reasoning: int | None) -> dict[str, Any]:
    """The usage object of OpenAI's Responses: that of chat, by other names."""
    prompt, output = totals(meters)
    written = meters.get("cache_write_5m", 0) + meters.get("cache_write_1h", 0)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": meters.get("cache_read", 0), "cache_write_tokens": written},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": reasoning or 0},
        "total_tokens": prompt + output,
    }


def as_anthropic(meters: Mapping[str, int], reasoning: int | None) -> dict[str, Any]:
    """Anthropic's usage object: the cache is beside the prompt."""
    prompt, output = totals(meters)
    read, short, hour = (meters.get(name, 0) for name in CACHED)
    usage: dict[str, Any] = {
        "input_tokens": prompt - read - short - hour,
        "cache_creation_input_tokens": short + hour,
        "cache_read_input_tokens": read,
        "output_tokens": output,
    }
    if short or hour:
        usage["cache_creation"] = {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": hour}
    if reasoning is not None:
        usage["output_tokens_details"] = {"thinking_tokens": reasoning}
    return usage


def as_gemini(meters: Mapping[str, int], reasoning: int | None) -> dict[str, Any]:
    """Google's usage object: the cache is inside the prompt, thoughts are beside the candidates."""
    prompt, output = totals(meters)
    thoughts = min(reasoning or 0, output)
    usage = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": output - thoughts,
        "totalTokenCount": prompt + output,
    }
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    if meters.get("cache_read"):
        usage["cachedContentTokenCount"] = meters["cache_read"]
    return usage
