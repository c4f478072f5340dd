"""What a module of a format offers.

To add a format, write a module that has everything of ``Format``, put it into ``registry.FORMATS`` (and its
name into ``relay.routing.channels.FORMATS``). Its work, in both directions:

- *requests*: ``read_request`` gives the neutral conversation of a customer's body, ``write_request`` the body
  for a provider. Whatever one of them cannot say, it refuses with Untranslatable, which names the place and
  the remedy; it never leaves a thing out silently. The two exceptions are what says nothing about the answer
  and is named in ``Conversation.left_out`` (the customer is told by the header ``x-relay-left-out``), and
  permissions to think, see Conversation.
- *whole answers*: ``read_answer`` and ``write_answer``.
- *streams*: a ``decoder`` gives neutral events of a provider's events, an ``encoder`` the customer's events
  of neutral ones. Both see whole events: the meter in front of them cuts the stream.
- *money*: ``meter`` reads a provider's stream along and keeps back its end until the call is paid for;
  ``read_whole`` finds usage and counted tokens in a whole answer; ``usage_format`` is of
  ``relay.pricing.usage.normalise``. They see a provider's bytes, whatever the customer's format is, so that a
  call costs the same in each.
- *errors*: ``error_body`` and ``error_event``, in the shape and with the type names of the API.

Where customer and channel speak the same format, nothing of the first three is used: bytes pass, and the
meter reads along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from relay.errors import ApiError
from relay.formats.conversation import Answer, Conversation, Event
from relay.providers.profiles import Profile
from relay.providers.provider import Provider


@dataclass(slots=True)
class Written:
    """A provider's request. ``left_out``: what of the customer's it does not say, see the module."""

    body: bytes
    left_out: list[str] = field(default_factory=list)


class Whole(Protocol):
    """A provider's whole answer as the bill sees it."""

    @property
    def usage(self) -> Any:
        """As the provider told it; None when it told none."""

    @property
    def empty(self) -> bool:
        """Whether no answer was found in it: it may be anything, a debug dump among it."""

    def estimate(self) -> int:
        """Counted tokens of everything that was generated."""


class Meter(Protocol):
    """Reads a provider's stream along: feed it blocks, it returns what may be sent on.

    What is generated passes as it is made. Two parts are kept back, and both are bounded: the begin, until
    something was generated (so long another provider may still be asked), and the end, until the call is
    paid for. ``error``: the value of an error event, None before one; it passes, and nothing after it.
    ``broken``: why what came is no stream of this format. ``events``: how many came. ``usage``: the
    provider's so far, as it came; ``usage_is_last``: nothing was generated since it was told.
    """

    @property
    def usage(self) -> Any: ...

    @property
    def usage_is_last(self) -> bool: ...

    @property
    def error(self) -> Any: ...

    @property
    def broken(self) -> str | None: ...

    @property
    def events(self) -> int: ...

    def feed(self, block: bytes) -> bytes:
        """The bytes to send on now; raises EventTooLarge."""

    def release(self) -> bytes:
        """What was kept back of the begin, which may wait no longer."""

    def end(self) -> None:
        """The provider closed the stream."""

    def break_off(self) -> None:
        """The provider fell silent or cut the stream."""

    def tail(self) -> bytes:
        """What ends the stream, to be sent once the call is settled."""

    @property
    def held(self) -> int:
        """Bytes that are neither passed nor dropped: what is kept back, and an event that has no end yet."""

    @property
    def ending(self) -> bool:
        """Whether the stream's last event has come."""

    @property
    def generating(self) -> bool:
        """Whether anything was generated so far."""

    @property
    def finished(self) -> bool:
        """Whether everything that was asked for is there, however the connection ends now."""

    @property
    def complete(self) -> bool:
        """Whether a provider that closes now has ended the stream by itself."""

    def estimate(self) -> int:
        """Counted tokens of what was read so far."""

    def partial_usage(self, delivered: int) -> Any:
        """Usage of a stream that broke off after ``delivered`` counted tokens of answer: what the provider
        told of the prompt with that; None where it tells the prompt only at the end."""

    def is_answer(self, value: Any) -> bool:
        """Whether decoded JSON, sent in the place of a stream, is an answer of this format."""


@dataclass(slots=True)
class MeterOptions:
    """``keep_usage_chunk``: the customer asked for OpenAI's chunk of usage alone. ``choices``: how many
    answers were asked for. ``model``: the name that events get in place of the provider's, if any. ``redact``
    cleans the JSON or text of whatever is not an ordinary event."""

    keep_usage_chunk: bool
    choices: int
    max_event_bytes: int
    model: str | None
    redact: Callable[[bytes], bytes]


class Decoder(Protocol):
    """Reads a provider's stream."""

    def feed(self, events: bytes) -> Iterable[Event]:
        """Neutral events of whole server-sent events; raises BadAnswer."""


class Encoder(Protocol):
    """Writes a customer's stream."""

    def write(self, event: Event) -> bytes:
        """Events for the customer, or nothing yet."""

    def finish(self) -> bytes:
        """What ends a stream that is complete."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the customer is told of the answer beside its content: ``model`` as it asked for it,
    ``include_usage``: whether a stream ends with its usage where the format asks that; ``created``: seconds
    since 1970; ``repeated``: see ``Request.repeated``."""

    model: str
    include_usage: bool
    created: int
    repeated: Mapping[str, Any] = field(default_factory=dict)


class Metered(Protocol):
    """How a provider is asked and metered, where bytes pass."""

    @property
    def PROVIDER(self) -> Provider:  # noqa: N802
        """How it is reached."""

    @property
    def USAGE_FORMAT(self) -> str:  # noqa: N802
        """See the module."""

    @property
    def MODEL_FIELD(self) -> str:  # noqa: N802
        """In which field an answer tells the model's name."""

    @property
    def read_whole(self) -> Callable[[bytes], Whole]:
        """Of a body; it raises ErrorAnswer, and BadAnswer."""

    @property
    def meter(self) -> Callable[[MeterOptions], Meter]:
        """For one stream."""


class Format(Metered, Protocol):
    """A module of this shape."""

    NAME: str
    # Sent to a customer of this format while the provider is quiet.
    PING: bytes

    def read_request(self, body: bytes, drop_unknown: bool) -> Conversation:
        """Of a body that the endpoint has checked; ``drop_unknown``: fields that are unknown here are left
        out, and else refused. ``model`` and ``stream``, which some APIs have in the URL, are the caller's to
        set. Raises Untranslatable."""

    def write_request(
        self, conversation: Conversation, model: str, max_output: int, profile: Profile
    ) -> Written:
        """For a provider that calls the model ``model``; ``max_output``: tokens of one answer, as held for.
        Raises Untranslatable."""

    def read_answer(self, body: bytes) -> Answer:
        """Raises BadAnswer."""

    def write_answer(self, answer: Answer, shown: Shown) -> bytes:
        """For the customer."""

    def decoder(self) -> Decoder:
        """For one stream."""

    def encoder(self, shown: Shown) -> Encoder:
        """For one stream."""

    def error_body(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """An error with its HTTP status."""

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        """An error inside a stream that has begun."""
