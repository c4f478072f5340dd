"""What is measured on a call: disjoint meters, whatever the provider's format counts inside what."""

import re
from collections.abc import Mapping

from relay.pricing.errors import FieldError

INPUT_METERS = ("in_text", "cache_read", "cache_write_5m", "cache_write_1h", "in_image", "in_audio")
OUTPUT_METERS = ("out_text", "out_image", "out_audio")
TOKEN_METERS = (*INPUT_METERS, *OUTPUT_METERS)
METERS = (*TOKEN_METERS, "image", "ms", "char", "call")
TEXT_INPUT = ("in_text", "cache_read", "cache_write_5m", "cache_write_1h")

# A meter without a price of its own is charged as the one it specialises.
DEFAULT_FALLBACK = {
    "cache_read": "in_text",
    "cache_write_5m": "in_text",
    "cache_write_1h": "cache_write_5m",
    "in_image": "in_text",
    "in_audio": "in_text",
    "out_image": "out_text",
    "out_audio": "out_text",
}

# Typed quotas: which meters a unit pays for, in the order in which it is used up.
QUOTA_METERS = {
    "text_tokens": ("in_text", "cache_read", "cache_write_5m", "cache_write_1h", "out_text"),
    "audio_tokens": ("in_audio", "out_audio"),
    "images": ("image",),
    "audio_ms": ("ms",),
    "characters": ("char",),
    "calls": ("call",),
}

_TOOL = re.compile(r"tool:[a-z0-9][a-z0-9_.\-]{0,63}")


def is_meter(name: str) -> bool:
    """Whether a price may be set for this name: one of METERS or ``tool:<name>``."""
    return name in METERS or _TOOL.fullmatch(name) is not None


def check_meter(name: str, field: str) -> str:
    """``name`` if it is a meter; else raises FieldError, which names ``field`` and the known meters."""
    if not is_meter(name):
        known = ", ".join(METERS)
        raise FieldError(field, f"{name!r} is not a meter", f"use one of {known} or tool:<name>")
    return name


def context_length(meters: Mapping[str, int]) -> int:
    """Prompt length that selects a tier: all input meters together."""
    return sum([meters.get(meter, 0) for meter in INPUT_METERS])
