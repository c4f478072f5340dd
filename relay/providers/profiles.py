"""What providers of OpenAI's chat format take differently, and what a channel's settings change of it."""

from __future__ import annotations

from dataclasses import dataclass

from relay.settings import ANY, OutputLimitField, Settings, UnknownFields

# Who knows OpenAI's newer name. The others take max_tokens, and some would ignore the newer one.
_NEWER_NAME = frozenset({"openai", "azure"})


@dataclass(frozen=True, slots=True)
class Profile:
    """``output_limit``: the field that bounds the tokens of an answer, where the relay adds one.

    ``unknown_fields``: whether the fields that the relay does not know are passed, dropped or refused.
    """

    output_limit: OutputLimitField
    unknown_fields: UnknownFields


def profile_of(provider: str, channel: str, settings: Settings) -> Profile:
    """The profile of a channel, by its provider's and its own name."""
    usual: OutputLimitField = "max_completion_tokens" if provider in _NEWER_NAME else "max_tokens"
    return Profile(
        output_limit=settings.output_limit_field.get(channel, settings.output_limit_field.get(ANY, usual)),
        unknown_fields=settings.unknown_fields.get(channel, settings.unknown_fields[ANY]),
    )
