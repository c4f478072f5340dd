"""What providers of OpenAI's formats take differently."""

from __future__ import annotations

from dataclasses import dataclass

from relay.settings import OutputLimitField, Settings, TranscriptFormat, UnknownFields

# Who knows OpenAI's newer name. The others take max_tokens, and some would ignore the newer one.
_OPENAIS = frozenset({"openai", "azure"})
# Of which models every provider tells segments with times and the duration (verbose_json): those that have
# this in their names. OpenAI's other models (gpt-4o-transcribe) take json and text alone.
_TELLS_TIMES = "whisper"


@dataclass(frozen=True, slots=True)
class Profile:
    """``output_limit``: the field that bounds the tokens of an answer, where the relay adds one.

    ``unknown_fields``: whether the fields that the relay does not know are passed, dropped or refused.
    ``extensions``: it takes what compatible providers added to OpenAI's format (``top_k``, cache marks,
    thoughts in messages), or passes over it; OpenAI itself refuses it.
    ``transcripts``: see transcript_format; None: it goes by the model.
    """

    output_limit: OutputLimitField
    unknown_fields: UnknownFields
    extensions: bool = True
    transcripts: TranscriptFormat | None = None

    def transcript_format(self, model: str) -> TranscriptFormat:
        """What it is asked for where a customer wants a transcript as plain text, which tells no usage, by
        its name of the model. ``verbose_json``: for text and subtitles; ``json``: for text, and for subtitles
        what the customer wants; ``as_asked``: that for both."""
        return self.transcripts or ("verbose_json" if _TELLS_TIMES in model.lower() else "json")


def profile_of(
    provider: str,
    settings: Settings,
    *,
    output_limit: OutputLimitField | None = None,
    unknown_fields: UnknownFields | None = None,
    transcripts: TranscriptFormat | None = None,
) -> Profile:
    """The profile of a channel of ``provider``, with what the channel says itself."""
    own = provider in _OPENAIS
    usual: OutputLimitField = "max_completion_tokens" if own else "max_tokens"
    return Profile(
        output_limit or usual,
        unknown_fields or settings.unknown_fields,
        extensions=not own,
        transcripts=transcripts,
    )
