"""What a request says of the conversation that it is part of, whatever its format: its session, its begin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from relay.formats.anthropic_fields import without_billing_line

# Characters that decide; the least that providers keep in their caches is 1,024 tokens.
BEGIN = 4_096
_ASKING = frozenset({"user", "system", "developer"})


class _Session(msgspec.Struct):
    prompt_cache_key: Any = None
    metadata: Any = None
    user: Any = None


class _Prompt(msgspec.Struct):
    tools: msgspec.Raw = msgspec.Raw(b"")
    system: Any = None  # Anthropic's
    instructions: Any = None  # of Responses
    systemInstruction: Any = None  # noqa: N815 - Gemini's
    system_instruction: Any = None
    messages: list[msgspec.Raw] | None = None
    contents: list[msgspec.Raw] | None = None
    input: str | list[msgspec.Raw] | None = None
    prompt: Any = None


_session = msgspec.json.Decoder(_Session)
_prompt = msgspec.json.Decoder(_Prompt)
_any = msgspec.json.Decoder(Any)


def session_of(document: bytes) -> str:
    """What the customer calls the session: ``prompt_cache_key``, ``metadata.user_id`` or ``user``, the first
    that is there. Empty where none is."""
    try:
        said = _session.decode(document)
    except (msgspec.MsgspecError, UnicodeError):
        return ""
    of_user = said.metadata.get("user_id") if isinstance(said.metadata, dict) else None
    named = (said.prompt_cache_key, of_user, said.user)
    return next((name for name in named if isinstance(name, str) and name), "")


def prompt_begin(document: bytes) -> bytes:
    """The first characters of the prompt, tools included, as far as they stay the same while a conversation
    goes on: before its first answer. Marks for caches, which move, are no part of it."""
    try:
        texts = _first(_texts_of(_prompt.decode(document)))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return b""
    return "\0".join(texts).encode("utf-8", "surrogatepass")


def _first(texts: Iterator[str]) -> list[str]:
    found: list[str] = []
    left = BEGIN
    for text in texts:
        found.append(text[:left])
        left -= len(text)
        if left <= 0:
            break
    return found


def _texts_of(said: _Prompt) -> Iterator[str]:
    if said.tools:
        yield bytes(said.tools)[:BEGIN].decode("utf-8", "replace")
    for place in (said.system, said.instructions, said.systemInstruction, said.system_instruction):
        yield from _texts(place)
    yield from _texts(said.input if isinstance(said.input, str) else said.prompt)
    items = said.input if isinstance(said.input, list) else None
    for raw in said.messages or said.contents or items or ():
        turn = _any.decode(raw)
        if not isinstance(turn, dict) or not _asks(turn):
            return
        yield from _texts(turn)


def _asks(turn: dict[str, Any]) -> bool:
    """Whether it comes before the first answer: a tool's call, for one, is part of an answer."""
    role = turn.get("role")
    return role in _ASKING if isinstance(role, str) else turn.get("type") in (None, "message")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield without_billing_line(value)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        for name in ("text", "content", "parts"):
            yield from _texts(value.get(name))
