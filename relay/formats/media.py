"""Requests for images and sounds: passed on to channels of OpenAI's formats, and never translated.

They are measured by what the model's price has: pieces, characters and the like where it has such a meter,
else the provider's tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from relay.errors import bad_request
from relay.formats.answer import BadAnswer
from relay.formats.multipart import Form
from relay.formats.passed import Checked, PassedApi, PassedRequest, check_model
from relay.providers import openai
from relay.providers.profiles import Profile

_FLAGS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(slots=True)
class MediaRequest(PassedRequest):
    """A checked request for images or sounds. ``form``: what came, where that is no JSON; then ``body`` is
    empty."""

    form: Form | None = None

    def native(self, model: str, profile: Profile) -> bytes:
        """See Request."""
        if self.form is not None:
            asked = self.asked_as(model, profile)
            changed = {"response_format": asked} if asked else {}
            left_out = frozenset(self.left_out(asked))
            policy = profile.unknown_fields
            return self.form.written(model, self.unknown, policy, changed=changed, left_out=left_out)
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

    def asked_as(self, model: str, profile: Profile) -> str:
        """The ``response_format`` that a provider, which calls the model ``model``, is asked for in place of
        the customer's, which tells no usage. Empty: it is asked for that."""
        return ""

    def left_out(self, asked: str) -> tuple[str, ...]:
        """Fields that a provider is not sent which is ``asked`` so, see asked_as()."""
        return ()

    @abstractmethod
    def metered(self, api: PassedApi, asked: str = "") -> PassedApi:
        """``api`` as answers to this request, which priced() gave, are metered that a provider makes which
        was ``asked`` so."""

    @abstractmethod
    def as_events(self, body: bytes, asked: str = "") -> bytes:
        """A whole answer, which came where a stream was asked for, as events; raises ErrorAnswer, and
        BadAnswer. Some providers pass over ``stream`` where a model has none, OpenAI's for whisper-1."""


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


def streams(form: Form) -> bool:
    """Whether a form asks for its answer in parts; raises ApiError 400."""
    given = (form.text("stream") or "false").lower()
    if given not in _FLAGS:
        raise bad_request("stream", f"stream must be true or false, not {given[:20]}.", "invalid_type")
    return _FLAGS[given]


def refuse_stream(wanted: bool, remedy: str) -> None:
    """Raise ApiError 400 for an answer that is wanted in parts where the API has none."""
    if wanted:
        message = f"stream: true is not supported at this endpoint: {remedy}."
        raise bad_request("stream", message, "unsupported_parameter")
