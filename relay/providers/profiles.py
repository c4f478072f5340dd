"""What providers of OpenAI's chat format take differently."""

from __future__ import annotations

from dataclasses import dataclass

from relay.settings import OutputLimitField, Settings, UnknownFields

# Who knows OpenAI's newer name. The others take max_tokens, and some would ignore the newer one.
_OPENAIS = frozenset({"openai", "azure"})


@dataclass(frozen=True, slots=True)
class Profile:
    """``output_limit``: the field that bounds the tokens of an answer, where the relay adds one.

    ``unknown_fields``: whether the fields that the relay does not know are passed, dropped or refused.
    ``extensions``: it takes what compatible providers added to OpenAI's format (``top_k``, cache marks,
    thoughts in messages), or passes over it; OpenAI itself refuses it.
    """

    output_limit: OutputLimitField
    unknown_fields: UnknownFields
    extensions: bool = True


def profile_of(
    provider: str,
    settings: Settings,
    *,
    output_limit: OutputLimitField | None = None,
    unknown_fields: UnknownFields | None = None,
) -> Profile:
    """The profile of a channel of ``provider``, with what the channel says itself."""
    own = provider in _OPENAIS
    usual: OutputLimitField = "max_completion_tokens" if own else "max_tokens"
    return Profile(output_limit or usual, unknown_fields or settings.unknown_fields, extensions=not own)
