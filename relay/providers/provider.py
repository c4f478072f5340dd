"""What a module of providers of one format offers: how they are reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from uuid import UUID


class Provider(Protocol):
    """A module of this shape."""

    def url(self, base_url: str, model: str, stream: bool, query: str) -> str:
        """Where calls go. ``base_url``: the channel's, without a slash at its end; ``query``: what the
        customer's URL had, with its question mark, where customer and channel speak the same format."""

    def headers(self, api_key: str, request_id: UUID, passed: Mapping[str, str]) -> dict[str, str]:
        """Headers of a call; ``passed``: the customer's own that pass to a provider of the same format."""
