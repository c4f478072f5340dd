"""All formats by their names, which channels have as their ``format``."""

from __future__ import annotations

from relay.formats import anthropic, gemini, openai_chat, openai_responses
from relay.formats.format import Format

_MODULES: tuple[Format, ...] = (openai_chat, openai_responses, anthropic, gemini)
FORMATS: dict[str, Format] = {module.NAME: module for module in _MODULES}
