"""How a request is asked of a channel of any format, and how its answer comes back in the customer's.

Where both speak the same format bytes pass. Else the request is read once into the neutral conversation, and
written for each format that is tried.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from relay.errors import ApiError, bad_request
from relay.formats import gemini, gemini_embeddings, openai_embeddings, written_transcript
from relay.formats.answer import BadAnswer
from relay.formats.conversation import Conversation, Untranslatable
from relay.formats.embeddings import Embedder, EmbeddingRequest
from relay.formats.format import Format, Meter, Metered, MeterOptions, Shown, Written
from relay.formats.media import MediaRequest
from relay.formats.passed import OPENAIS, PassedApi
from relay.formats.refusal import Said, read_refusal
from relay.formats.registry import FORMATS
from relay.formats.request import Request
from relay.formats.top_level import replace_string
from relay.formats.translated_stream import TranslatedMeter
from relay.gateway.bytes_response import BytesAnswer
from relay.gateway.call import Answer, Call
from relay.gateway.json_response import JsonAnswer
from relay.gateway.media_stream_response import MediaStreamAnswer
from relay.gateway.outcome import clean
from relay.gateway.stream_response import StreamAnswer
from relay.providers.profiles import Profile, profile_of
from relay.providers.transport import Reply
from relay.routing.channels import ApiKey, Channel
from relay.settings import Settings
from relay.telemetry.logs import redact_data


@dataclass(frozen=True, slots=True)
class Passed:
    """What of the customer's HTTP request passes to a provider of the same format: the ``query`` with its
    question mark, and ``headers``."""

    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


NOTHING = Passed()


class AskedRequest:
    """An Asked: ``request`` in the customer's ``format``."""

    def __init__(self, settings: Settings, format: Format, request: Request, passed: Passed) -> None:
        self.format, self.request, self.passed = format, request, passed
        self._settings = settings
        self._conversations: dict[bool, Conversation] = {}
        self._written: dict[int, Written | ApiError] = {}

    @property
    def ping(self) -> bytes:
        """See Asked."""
        return self.format.PING

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        """See Asked."""
        return self.format.error_event(error, request_id)

    def check(self, channels: list[Channel]) -> None:
        """Raise ApiError 400, which names the field, when no channel's provider can be asked this."""
        refusal: ApiError | None = None
        for channel in channels:
            if self.same(channel):
                return
            written = self.written(channel)
            if isinstance(written, Written):
                return
            refusal = refusal or written
        if refusal is not None:
            raise refusal

    def fits(self, channel: Channel) -> bool:
        """See Asked."""
        return self.same(channel) or isinstance(self.written(channel), Written)

    def same(self, channel: Channel) -> bool:
        """Whether bytes pass as they come."""
        return channel.format == self.format.NAME

    def theirs(self, channel: Channel) -> Metered:
        """How the channel's provider is asked and metered."""
        return FORMATS[channel.format]

    def written(self, channel: Channel) -> Written | ApiError:
        """The request for a channel of another format, or why it cannot be said there."""
        if channel.id not in self._written:
            self._written[channel.id] = self._write(channel)
        return self._written[channel.id]

    def _write(self, channel: Channel) -> Written | ApiError:
        request, profile = self.request, self.profile(channel)
        try:
            conversation = self._conversation(profile.unknown_fields == "drop")
            most = request.max_output // request.choices
            model = channel.provider_model(request.model)
            return FORMATS[channel.format].write_request(conversation, model, most, profile)
        except Untranslatable as problem:
            return bad_request(problem.place, f"{problem}.", "unsupported_parameter")

    def _conversation(self, drop_unknown: bool) -> Conversation:
        if drop_unknown not in self._conversations:
            read = self.format.read_request(self.request.document(), drop_unknown)
            read.model, read.stream = self.request.model, self.request.stream
            self._conversations[drop_unknown] = read
        return self._conversations[drop_unknown]

    def profile(self, channel: Channel) -> Profile:
        """What the channel's provider takes differently."""
        return profile_of(
            channel.provider,
            self._settings,
            output_limit=channel.output_limit_field,
            unknown_fields=channel.unknown_fields,
            transcripts=channel.transcript_format,
        )

    def translated(self, channel: Channel, body: bytes) -> bytes:
        """The answer of a channel of another format as the customer's."""
        return self.format.write_answer(FORMATS[channel.format].read_answer(body), self.shown())

    def shown(self) -> Shown:
        """What the customer is told beside the answer's content."""
        request = self.request
        return Shown(request.model, request.include_usage, int(time.time()), request.repeated())

    def whole_answer(
        self, call: Call, channel: Channel, shape: Callable[[bytes], bytes], redact: Callable[[bytes], bytes]
    ) -> Answer:
        """What will read an answer that is not streamed; see JsonAnswer."""
        return JsonAnswer(call, self.theirs(channel).read_whole, shape, redact)

    def streamed_answer(
        self, call: Call, channel: Channel, meter: Meter, error_event: Callable[[ApiError], bytes]
    ) -> StreamAnswer:
        """What will read an answer as events."""
        return StreamAnswer(call, meter, error_event)

    def left_out(self, channel: Channel) -> tuple[str, ...]:
        """Fields that do not pass to a channel of the same format."""
        return ()

    @property
    def max_event_bytes(self) -> int:
        """Of an event of a provider's stream."""
        return self._settings.max_event_bytes

    def exchange(self, call: Call, channel: Channel, key: ApiKey) -> ChannelExchange:
        """See Asked."""
        return ChannelExchange(call, self, channel, key)


def no_such_api(model: str) -> ApiError:
    """400: no provider of the model has what the endpoint needs."""
    message = f"The model '{model}' cannot be used at this endpoint: its provider has no such API."
    return bad_request("model", message, "unsupported_endpoint")


class PassedOn(AskedRequest):
    """An Asked of an ``api`` that is never translated: channels of OpenAI's formats alone can be asked."""

    def __init__(
        self, settings: Settings, format: Format, request: Request, passed: Passed, api: PassedApi
    ) -> None:
        super().__init__(settings, format, request, passed)
        self._api = api

    def check(self, channels: list[Channel]) -> None:
        """See AskedRequest."""
        if not any(map(self.fits, channels)):
            raise no_such_api(self.request.model)

    def fits(self, channel: Channel) -> bool:
        """See Asked."""
        return channel.format in OPENAIS

    def same(self, channel: Channel) -> bool:
        """See AskedRequest."""
        return True

    def theirs(self, channel: Channel) -> Metered:
        """See AskedRequest."""
        return self._api


class AskedMedia(PassedOn):
    """An Asked for images or sounds, whose request knows how they are measured."""

    def __init__(
        self, settings: Settings, format: Format, request: MediaRequest, passed: Passed, api: PassedApi
    ) -> None:
        super().__init__(settings, format, request, passed, api)
        self._media = request

    def theirs(self, channel: Channel) -> PassedApi:
        """See AskedRequest."""
        return self._media.metered(self._api, self._asked_as(channel))

    def whole_answer(
        self, call: Call, channel: Channel, shape: Callable[[bytes], bytes], redact: Callable[[bytes], bytes]
    ) -> Answer:
        """See AskedRequest."""
        api = self.theirs(channel)
        if api.BYTES:
            return BytesAnswer(call, api.read_whole, api.BYTES)
        if api.write is not None:
            return JsonAnswer(call, api.read_whole, api.write, redact, written_transcript.TYPE)
        return super().whole_answer(call, channel, shape, redact)

    def streamed_answer(
        self, call: Call, channel: Channel, meter: Meter, error_event: Callable[[ApiError], bytes]
    ) -> StreamAnswer:
        """See AskedRequest."""
        as_events = partial(self._media.as_events, asked=self._asked_as(channel))
        return MediaStreamAnswer(call, meter, error_event, as_events, self.theirs(channel).BYTES)

    def left_out(self, channel: Channel) -> tuple[str, ...]:
        """See AskedRequest."""
        return self._media.left_out(self._asked_as(channel))

    @property
    def max_event_bytes(self) -> int:
        """See AskedRequest: an event may hold an image."""
        return max(self._settings.max_event_bytes, self._settings.max_answer_bytes)

    def _asked_as(self, channel: Channel) -> str:
        return self._media.asked_as(channel.provider_model(self.request.model), self.profile(channel))


# By a channel's format: those whose providers turn texts into vectors.
EMBEDDERS: dict[str, Embedder] = {
    **dict.fromkeys(OPENAIS, openai_embeddings),
    gemini.NAME: gemini_embeddings,
}


class AskedEmbedding(AskedRequest):
    """An Asked for vectors: channels of OpenAI's formats and of Gemini's can be asked."""

    def __init__(self, settings: Settings, format: Format, request: EmbeddingRequest, passed: Passed) -> None:
        super().__init__(settings, format, request, passed)
        self._embedding = request

    def check(self, channels: list[Channel]) -> None:
        """See AskedRequest."""
        able = [channel for channel in channels if channel.format in EMBEDDERS]
        if not able:
            raise no_such_api(self.request.model)
        super().check(able)

    def fits(self, channel: Channel) -> bool:
        """See Asked."""
        return channel.format in EMBEDDERS and super().fits(channel)

    def same(self, channel: Channel) -> bool:
        """See AskedRequest."""
        return EMBEDDERS[channel.format] is EMBEDDERS[self.format.NAME]

    def theirs(self, channel: Channel) -> Metered:
        """See AskedRequest."""
        return EMBEDDERS[channel.format].api_of(self._embedding)

    def _write(self, channel: Channel) -> Written | ApiError:
        model = channel.provider_model(self.request.model)
        try:
            asked = self._embedding.embedding(self.profile(channel).unknown_fields == "drop")
            return Written(EMBEDDERS[channel.format].write_request(asked, model), asked.left_out)
        except Untranslatable as problem:
            return bad_request(problem.place, f"{problem}.", "unsupported_parameter")

    def translated(self, channel: Channel, body: bytes) -> bytes:
        """See AskedRequest."""
        made, wanted = EMBEDDERS[channel.format].read_vectors(body), self._embedding.count
        if len(made.vectors) != wanted:
            raise BadAnswer(f"the answer has {len(made.vectors)} vectors for {wanted} texts")
        return self._embedding.write_answer(made)


class ChannelExchange:
    """See Exchange."""

    def __init__(self, call: Call, asked: AskedRequest, channel: Channel, key: ApiKey) -> None:
        self._call, self._asked, self._channel, self._key = call, asked, channel, key
        self._theirs = asked.theirs(channel)
        self._same = asked.same(channel)
        self.usage_format = self._theirs.USAGE_FORMAT

    def post(self) -> Awaitable[Reply]:
        """See Exchange."""
        call, asked, channel = self._call, self._asked, self._channel
        request, provider = asked.request, self._theirs.PROVIDER
        model = channel.provider_model(request.model)
        passed = asked.passed if self._same else NOTHING
        return call.services.transport.post(
            provider.url(channel.base_url, model, request.stream, passed.query),
            provider.headers(self._key.secret, call.request_id, passed.headers),
            self._body(model),
        )

    def _body(self, model: str) -> bytes:
        asked, call = self._asked, self._call
        if self._same:
            call.left_out = asked.left_out(self._channel)
            return asked.request.native(model, asked.profile(self._channel))
        written = asked.written(self._channel)
        if isinstance(written, ApiError):
            raise written
        call.left_out = tuple(written.left_out)
        return written.body

    def said(self, body: bytes) -> Said:
        """See Exchange."""
        return read_refusal(body)

    def answer(self) -> Answer:
        """See Exchange."""
        call, asked, theirs, channel = self._call, self._asked, self._theirs, self._channel
        request = asked.request
        mapped = self._channel.provider_model(request.model) != request.model
        model = request.model if mapped and self._same else None
        redact = partial(redact_data, clean=partial(clean, channel=self._channel, model=request.model))
        if not request.stream:
            return asked.whole_answer(call, channel, self._shape(model), redact)
        meter = theirs.meter(
            MeterOptions(
                keep_usage_chunk=request.include_usage or not self._same,
                choices=request.choices,
                max_event_bytes=asked.max_event_bytes,
                model=model,
                redact=redact,
            )
        )
        if not self._same:
            decoder = FORMATS[self._channel.format].decoder()
            meter = TranslatedMeter(meter, decoder, asked.format.encoder(asked.shown()))
        return asked.streamed_answer(call, channel, meter, self._error_event)

    def _error_event(self, error: ApiError) -> bytes:
        return self._asked.error_event(error, str(self._call.request_id))

    def _shape(self, model: str | None) -> Callable[[bytes], bytes]:
        if not self._same:
            return partial(self._asked.translated, self._channel)
        name = self._theirs.MODEL_FIELD
        return lambda body: body if model is None else replace_string(body, name, model)
