"""Providers that speak Anthropic's API: where to send, and as whom."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

VERSION = "2023-06-01"


def url(base_url: str, model: str, stream: bool, query: str) -> str:
    """See Provider: a channel's base URL ends with the version, e.g. https://api.anthropic.com/v1."""
    return f"{base_url}/messages{query}"


def count_url(base_url: str, query: str) -> str:
    """Where the tokens of a request are counted."""
    return f"{base_url}/messages/count_tokens{query}"


def headers(api_key: str, request_id: UUID, passed: Mapping[str, str]) -> dict[str, str]:
    """See Provider."""
    return {
        "anthropic-version": VERSION,
        **passed,
        "x-api-key": api_key,
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": "relay",
        "x-request-id": str(request_id),
    }
