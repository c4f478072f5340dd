"""Vendors' usage, normalised to disjoint meters."""

from collections.abc import Mapping
from typing import Any


def normalise(fmt: str, raw: Mapping[str, Any]) -> dict[str, int]:
    """Disjoint meters (no zeros) of a vendor's usage object.

    `fmt`: openai, openai_responses (responses), anthropic, gemini, embeddings, images, audio.
    Raises FieldError naming the field when the usage is malformed.
    """
    raise NotImplementedError
