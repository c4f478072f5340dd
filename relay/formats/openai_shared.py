"""What OpenAI's two formats for conversations have in common."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from relay.formats.conversation import CacheLife, Image, Untranslatable
from relay.formats.reading import Object, image_type, mapping, only, optional

BREAKPOINT = "prompt_cache_breakpoint"
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
# At the begin of a tool's result: the tool failed. There is no field for it.
ERROR_MARK = "[tool error]\n"
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.*)", re.S)


def read_image(url: str, detail: Any, place: str, url_place: str, cache: CacheLife | None = None) -> Image:
    """An image by its URL, which may hold its data. ``place``: of the part."""
    detail = optional(detail, str, f"{place}.detail")
    made = Image(url=url, detail=None if detail == "auto" else detail, cache=cache, place=place)
    if url.startswith("data:"):
        data = _DATA_URL.fullmatch(url)
        if data is None:
            raise Untranslatable(url_place, "expected data:TYPE;base64,… or an https URL")
        made.url, made.media_type, made.data = None, image_type(data[1]), data[2]
    return made


def breakpoint_of(part: Object, place: str) -> CacheLife | None:
    """OpenAI's mark for the prompt cache, which others have as ``cache_control``. ``place``: of the part.

    Protocol: https://platform.openai.com/docs/guides/prompt-caching
    """
    marked = mapping(part.get(BREAKPOINT) or {}, f"{place}.{BREAKPOINT}")
    only(marked, ("mode",), f"{place}.{BREAKPOINT}")
    return "5m" if marked.get("mode") == "explicit" else None


def call_id(name: str, most: int) -> str:
    """A call's name where an API takes ``most`` characters, the same for the call and its result."""
    if len(name) <= most:
        return name
    return f"call_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def url_of(image: Image) -> str:
    """An image as a URL."""
    return image.url if image.url is not None else f"data:{image.media_type};base64,{image.data}"
