"""Providers that speak OpenAI's API, natively or as a compatible service: where to send, and as whom."""

from __future__ import annotations

from uuid import UUID


def chat_url(base_url: str) -> str:
    """Where chat calls go; a channel's base URL ends with the version, as OpenAI's does."""
    return f"{base_url}/chat/completions"


def headers(api_key: str, request_id: UUID) -> dict[str, str]:
    """Headers of a call: nothing of the customer's own passes."""
    return {
        "authorization": f"Bearer {api_key}",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": "relay",
        "x-request-id": str(request_id),
    }
