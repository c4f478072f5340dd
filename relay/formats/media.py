"""Requests for images and sounds: passed on to channels of OpenAI's formats, whole, and never translated.

They are measured by what the model's price has: pieces, characters and the like where it has such a meter,
else the provider's tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from relay.errors import bad_request
from relay.formats.json_fields import FLAG, Fields, read
from relay.formats.passed import PassedApi, PassedRequest


@dataclass(slots=True)
class MediaRequest(PassedRequest):
    """A checked request for images or sounds."""

    @abstractmethod
    def metered(self, api: PassedApi) -> PassedApi:
        """``api`` as a provider's answer to this request is metered, of a request that priced() gave."""


@dataclass(slots=True)
class Measured:
    """A whole answer. ``counted``: tokens of it, for when the provider tells none. See Whole."""

    usage: Any
    counted: int = 0

    @property
    def empty(self) -> bool:
        """See Whole: an answer without content is refused when it is read."""
        return False

    def estimate(self) -> int:
        """See Whole."""
        return self.counted


def refuse_stream(fields: Fields) -> None:
    """Raise ApiError 400 for an answer that is wanted in parts."""
    if read(fields, "stream", FLAG):
        message = "stream: true is not supported at this endpoint: leave it out, and read the whole answer."
        raise bad_request("stream", message, "unsupported_parameter")
