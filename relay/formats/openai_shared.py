"""What OpenAI's two formats for conversations have in common."""

from __future__ import annotations

import re
from typing import Any

from relay.formats.conversation import CacheLife, Image, Untranslatable
from relay.formats.reading import optional

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
        made.url, made.media_type, made.data = None, data[1], data[2]
    return made


def url_of(image: Image) -> str:
    """An image as a URL."""
    return image.url if image.url is not None else f"data:{image.media_type};base64,{image.data}"
