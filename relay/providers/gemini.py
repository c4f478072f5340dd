"""Providers that speak Google's Gemini API: where to send, and as whom."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote
from uuid import UUID


def url(base_url: str, model: str, stream: bool, query: str) -> str:
    """See Provider: a channel's base URL ends with the version, e.g.
    https://generativelanguage.googleapis.com/v1beta. Streams come as events."""
    return method_url(base_url, model, "streamGenerateContent?alt=sse" if stream else "generateContent")


def count_url(base_url: str, model: str) -> str:
    """Where the tokens of a request are counted."""
    return method_url(base_url, model, "countTokens")


def method_url(base_url: str, model: str, action: str) -> str:
    """Where a model's method is."""
    return f"{base_url}/models/{quote(model, safe='/')}:{action}"


def headers(api_key: str, request_id: UUID, passed: Mapping[str, str]) -> dict[str, str]:
    """See Provider: nothing of the customer's own passes."""
    return {
        "x-goog-api-key": api_key,
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": "relay",
        "x-request-id": str(request_id),
    }
