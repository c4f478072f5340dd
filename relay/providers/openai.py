"""Providers that speak OpenAI's API, natively or as a compatible service: where to send, and as whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from relay.providers.provider import Provider


def url(base_url: str, model: str, stream: bool, query: str) -> str:
    """See Provider: a channel's base URL ends with the version, as OpenAI's does."""
    return f"{base_url}/chat/completions"


def headers(api_key: str, request_id: UUID, passed: Mapping[str, str]) -> dict[str, str]:
    """See Provider: nothing of the customer's own passes."""
    return {
        "authorization": f"Bearer {api_key}",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": "relay",
        "x-request-id": str(request_id),
    }


@dataclass(frozen=True, slots=True)
class Sending:
    """A Provider: another one, which is sent bodies of this type."""

    provider: Provider
    content_type: str

    def url(self, base_url: str, model: str, stream: bool, query: str) -> str:
        """See Provider."""
        return self.provider.url(base_url, model, stream, query)

    def headers(self, api_key: str, request_id: UUID, passed: Mapping[str, str]) -> dict[str, str]:
        """See Provider."""
        return self.provider.headers(api_key, request_id, passed) | {"content-type": self.content_type}


@dataclass(frozen=True, slots=True)
class At:
    """A Provider: another of OpenAI's APIs, at ``path`` under the same base URL."""

    path: str

    def url(self, base_url: str, model: str, stream: bool, query: str) -> str:
        """See Provider."""
        return f"{base_url}{self.path}"

    def headers(self, api_key: str, request_id: UUID, passed: Mapping[str, str]) -> dict[str, str]:
        """See Provider."""
        return headers(api_key, request_id, passed)
