"""What of a request stays the same while a conversation goes on, in each format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.formats.prompt_begin import BEGIN, prompt_begin, session_of

TOOLS = [{"name": "look", "description": "looks", "input_schema": {"type": "object"}}]
MARK = {"cache_control": {"type": "ephemeral"}}


def begin(body: Any) -> bytes:
    return prompt_begin(json.dumps(body).encode())


def chat(*turns: str, system: str = "Be brief.", **more: Any) -> Any:
    roles = ("user", "assistant")
    told = [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]
    return {"model": "m", "messages": [{"role": "system", "content": system}, *told]} | more


def messages(*turns: str, system: str = "Be brief.", **more: Any) -> Any:
    """As Claude Code sends them: the mark for the cache moves to the newest message."""
    roles = ("user", "assistant")
    told: list[Any] = [
        {"role": roles[number % 2], "content": [{"type": "text", "text": text}]}
        for number, text in enumerate(turns)
    ]
    told[-1]["content"][0] |= MARK
    return {"messages": told, "system": [{"type": "text", "text": system} | MARK]} | more


def responses(*turns: str, system: str = "Be brief.", **more: Any) -> Any:
    kinds = ("input_text", "output_text")
    told: list[Any] = []
    for number, text in enumerate(turns):
        role = ("user", "assistant")[number % 2]
        told += [{"type": "reasoning", "summary": []}] if number % 2 else []
        told += [{"role": role, "content": [{"type": kinds[number % 2], "text": text}]}]
    return {"input": told, "instructions": system} | more


def gemini(*turns: str, system: str = "Be brief.", **more: Any) -> Any:
    roles = ("user", "model")
    told = [{"role": roles[number % 2], "parts": [{"text": text}]} for number, text in enumerate(turns)]
    return {"contents": told, "systemInstruction": {"parts": [{"text": system}]}} | more


@pytest.mark.parametrize("made", [chat, messages, responses, gemini])
def test_a_conversation_begins_alike_however_long_it_is(made: Any) -> None:
    first = begin(made("Hi?"))
    assert b"Be brief." in first
    assert b"Hi?" in first
    assert begin(made("Hi?", "Hello.", "And?")) == first
    assert begin(made("Hi?", "Hello.", "And?", "So.", "Ah.", temperature=1)) == first
    assert begin(made("Hi!")) != first
    assert begin(made("Hi?", system="Be long.")) != first
    assert begin(made("Hi?", tools=TOOLS)) != first


@pytest.mark.parametrize("made", [chat, messages, responses, gemini])
def test_what_is_long_is_alike_by_its_begin_alone(made: Any) -> None:
    long = "Rules. " * BEGIN
    assert begin(made("Hi?", system=long)) == begin(made("Other words.", system=long))
    assert len(begin(made("Hi?", system=long))) == BEGIN
    assert len(begin(made("é" * BEGIN, tools=TOOLS))) <= 2 * BEGIN


def test_a_tools_call_is_part_of_an_answer() -> None:
    call = {"type": "function_call", "name": "look", "arguments": "{}", "call_id": "1"}
    result = {"type": "function_call_output", "call_id": "1", "output": "seen"}
    first = {"input": [{"role": "user", "content": "Hi?"}]}
    then = {"input": [*first["input"], call, result, {"role": "user", "content": "More?"}]}
    assert begin(first) == begin(then)
    assert begin({"input": "Hi?"}) == begin(first)
    assert begin({"prompt": "Hi?"}) == begin(first)
    assert begin({"prompt": [1, 2, 3]}) == b""


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"prompt_cache_key": "k", "user": "u"}, "k"),
        ({"metadata": {"user_id": "user_1_session_2"}}, "user_1_session_2"),
        ({"user": "u", "metadata": {"order": "7"}}, "u"),
        ({"prompt_cache_key": None, "user": ""}, ""),
        ({"prompt_cache_key": 5, "metadata": "x", "user": ["u"]}, ""),
        ({}, ""),
    ],
)
def test_whose_session_it_is(body: Any, name: str) -> None:
    assert session_of(json.dumps(body).encode()) == name


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nonsense", b'{"messages":5}', b'{"user":"\xff"}', b'{"messages":[5]}']
)
def test_what_is_odd_has_no_session_and_no_begin(body: bytes) -> None:
    assert (session_of(body), prompt_begin(body)) == ("", b"")


def test_halves_of_an_emoji_are_no_error() -> None:
    assert prompt_begin(b'{"messages":[{"role":"user","content":"\\ud83d"}]}') is not None


@pytest.mark.parametrize(
    "content",
    [
        rb'"\ud800"',
        b'"\xff"',
        b"1e999999",
        b"[" * 900 + b"]" * 900,
        b'{"parts":' * 900 + b"1" + b"}" * 900,
        b'{"text": [[{"text": {"text": 5}}]]}',
    ],
)
@pytest.mark.parametrize(
    "place",
    [
        b'{"messages":[{"role":"user","content":%b}]}',
        b'{"messages":[{"role":%b,"content":"x"}]}',
        b'{"contents":[{"parts":%b}]}',
        b'{"input":[{"type":%b}]}',
        b'{"input":%b}',
        b'{"system":%b,"tools":%b,"prompt":%b}',
        b'{"user":%b,"prompt_cache_key":%b,"metadata":{"user_id":%b}}',
        b"%b",
    ],
)
def test_whatever_stands_anywhere_nothing_is_raised(place: bytes, content: bytes) -> None:
    document = place.replace(b"%b", content)
    assert isinstance(prompt_begin(document), bytes)
    assert isinstance(session_of(document), str)
    session_of(document).encode()
