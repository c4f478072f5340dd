"""Requests for images and sounds: passed on to channels of OpenAI's formats, whole, and never translated.

They are measured by what the model's price has: pieces, characters and the like where it has such a meter,
else the provider's tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from relay.errors import ApiError, bad_request
from relay.formats.answer import BadAnswer
from relay.formats.json_fields import FLAG, Fields, read
from relay.formats.multipart import Form
from relay.formats.passed import Checked, PassedApi, PassedRequest, check_model
from relay.providers import openai
from relay.providers.profiles import Profile


@dataclass(slots=True)
class MediaRequest(PassedRequest):
    """A checked request for images or sounds. ``form``: what came, where that is no JSON; then ``body`` is
    empty."""

    form: Form | None = None

    def native(self, model: str, profile: Profile) -> bytes:
        """See Request."""
        if self.form is not None:
            return self.form.written(model, self.unknown, profile.unknown_fields)
        # super() does not work in a dataclass with slots
        return PassedRequest.native(self, model, profile)

    def document(self) -> bytes:
        """See Request."""
        return self.body if self.form is None else self.form.document()

    def reached(self, api: PassedApi) -> PassedApi:
        """``api`` as it is sent this request."""
        if self.form is None:
            return api
        return replace(api, PROVIDER=openai.Sending(api.PROVIDER, self.form.content_type))

    @abstractmethod
    def metered(self, api: PassedApi) -> PassedApi:
        """``api`` as a provider's answers to this request, which priced() gave, are metered."""


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


def unread(_: bytes) -> Measured:
    """For an API whose answers only their requests can read; see MediaRequest.metered()."""
    raise BadAnswer("the answer is read without its request")


def checked_form(form: Form, known: frozenset[str]) -> Checked:
    """What every such form has; raises ApiError 400 naming the field."""
    model = check_model(form.require("model"))
    return Checked(b"", {}, model, (0, 0), form.names - known)


def refuse_stream(fields: Fields) -> None:
    """Raise ApiError 400 for an answer that is wanted in parts."""
    if read(fields, "stream", FLAG):
        raise _no_stream()


def refuse_stream_of(form: Form) -> None:
    """The same for a form."""
    if (form.text("stream") or "false").lower() not in ("false", "0"):
        raise _no_stream()


def _no_stream() -> ApiError:
    message = "stream: true is not supported at this endpoint: leave it out, and read the whole answer."
    return bad_request("stream", message, "unsupported_parameter")
