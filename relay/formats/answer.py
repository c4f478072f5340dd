"""What answers of all formats have in common: how JSON is read, and what is no answer."""

from __future__ import annotations

import json
from typing import Any

NOT_JSON: Any = object()


class BadAnswer(Exception):
    """What a provider sent with a success status is no answer."""


class ErrorAnswer(Exception):
    """What a provider sent with a success status is an error; ``error``: its value, decoded."""

    def __init__(self, error: Any) -> None:
        super().__init__("the answer is an error")
        self.error = error


def loads(document: bytes) -> Any:
    """JSON as Python's json reads it; NOT_JSON when it is none, or not UTF-8."""
    try:
        return json.loads(document.decode())
    except (ValueError, RecursionError):
        return NOT_JSON
