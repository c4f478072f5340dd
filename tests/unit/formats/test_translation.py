"""Requests from one format into another and back: nothing is lost, or it is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from relay.formats.conversation import (
    AnswerFormat,
    CacheLife,
    Conversation,
    Image,
    Part,
    Reasoning,
    Refusal,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
    Untranslatable,
    merged,
    with_thoughts_signed,
    without_blanks,
)
from relay.formats.registry import FORMATS
from relay.providers.profiles import Profile
from relay.routing import channels

COMPATIBLE = Profile("max_tokens", "pass", extensions=True)
OPENAI = Profile("max_completion_tokens", "pass", extensions=False)
MODEL, MOST = "a-model", 4096
PAIRS = [(ours, theirs) for ours in FORMATS for theirs in FORMATS if ours != theirs]

texts = st.text(min_size=1, max_size=30)
names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
# Named participants and the like are refused by one format: rare, so that most conversations get through.
named = st.sampled_from([None] * 19 + ["ada"])
lives: st.SearchStrategy[CacheLife | None] = st.sampled_from([None, None, "5m", "1h"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=5,
)
objects = st.dictionaries(names, values, max_size=3)
# Gemini's, of texts and calls in a model's turn.
signatures = st.sampled_from([None] * 4 + ["c2ln", "bWFyaw"])
text_parts = st.builds(Text, texts, lives)
said = st.builds(Text, texts, lives, signatures)
images = st.builds(Image, st.just("image/png"), st.just("aGVsbG8="), cache=lives) | st.builds(
    Image, url=st.just("https://example.com/cat.png"), cache=lives
)
calls = st.builds(ToolCall, names, names, objects.map(json.dumps), signatures)
results = st.builds(ToolResult, names, st.lists(text_parts | images, max_size=3), st.booleans(), lives)
thoughts = (
    st.builds(Reasoning, texts, st.sampled_from([None, *(f"sig{number}" for number in range(9))]))
    | st.builds(Reasoning, st.just(""), names)
    | st.builds(Reasoning, hidden=names)
)
refusals: st.SearchStrategy[list[Part]] = st.sampled_from([[]] * 9 + [[Refusal("No.")]])


@st.composite
def assistants(draw: st.DrawFn) -> Turn:
    words: list[Part] = draw(st.lists(thoughts | said, max_size=3)) + draw(refusals)
    return Turn("assistant", words + draw(st.lists(calls, max_size=3)), draw(named))


users = st.builds(
    Turn, st.just("user"), st.lists(text_parts | images | results, min_size=1, max_size=4)
) | st.builds(Turn, st.just("user"), st.lists(text_parts | images, min_size=1, max_size=4), named)
systems = st.builds(Turn, st.just("system"), st.lists(text_parts, min_size=1, max_size=2))
tools = st.builds(Tool, names, st.none() | texts, objects, st.none() | st.just(True), lives)
choices = st.builds(ToolChoice, st.sampled_from(["auto", "any", "none"])) | st.builds(
    ToolChoice, st.just("tool"), names
)
formats = st.builds(
    AnswerFormat,
    st.sampled_from([None]) | objects | objects | objects | objects,
    st.none() | names,
    st.none() | texts,
    st.none() | st.booleans(),
)
# What one format cannot say at all is rare, too.
maybe = st.sampled_from([None] * 5 + [7])


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns: list[Turn] = draw(st.lists(users | assistants() | systems, min_size=1, max_size=5))
    called: list[str] = []
    for number, part in enumerate(part for turn in turns for part in turn.parts):
        if isinstance(part, ToolCall):
            part.id += str(number)
            called.append(part.id)
        elif isinstance(part, ToolResult):
            # A call has one result, and nearly every result a call.
            part.call_id = called.pop(0) if called else part.call_id + str(number)
    return Conversation(
        model=MODEL,
        turns=turns,
        stream=draw(st.booleans()),
        include_usage=True,
        tools=draw(st.lists(tools, max_size=2)),
        tool_choice=draw(st.none() | choices),
        tools_one_by_one=draw(st.sampled_from([None, None, True])),
        answer_format=draw(st.none() | formats),
        max_output=draw(st.integers(1, 5000)),
        temperature=draw(st.none() | st.sampled_from([0.0, 0.5, 1.0] * 6 + [1.7])),
        top_p=draw(st.none() | st.sampled_from([0.1, 1.0])),
        top_k=draw(maybe),
        stop=draw(st.sampled_from([[], [], []]) | st.lists(texts, max_size=2)),
        seed=draw(st.sampled_from([None] * 19 + [7])),
        effort=draw(st.sampled_from([None, "low", "high", "none", "max"] * 4 + ["minimal"])),
        user=draw(st.none() | names),
        cache=draw(lives),
    )


def comparable(conversation: Conversation, left_out: frozenset[str]) -> Any:
    """Without what the formats say they leave out: permissions to think, labels of a schema, ``left_out``."""
    turns = []
    before = conversation.turns
    if any(name.endswith("(its place)") for name in left_out):
        system = [turn for turn in before if turn.role == "system"]
        before = merged([*system, *(turn for turn in before if turn.role != "system")])
    for turn in before:
        parts: list[Part] = turn.parts
        if "thoughtSignature" in left_out:
            parts = [_unsigned(part) for part in parts if not _signs_what_follows(part)]
        # A signature stands at what it signs or, in formats that sign thoughts alone, before it.
        parts = with_thoughts_signed(parts, (Text, ToolCall))
        if "anthropic" in left_out:  # its API takes no texts of white space
            parts = without_blanks(parts)
        # Results come first in a turn.
        parts = sorted(parts, key=lambda part: not isinstance(part, ToolResult))
        turns.append(replace(turn, parts=[_comparable(part, left_out) for part in parts]))
    turns = merged(turns)
    answer = conversation.answer_format
    mode = conversation.tool_choice.mode if conversation.tool_choice else "auto"  # which is the default
    return replace(
        conversation,
        turns=turns,
        thinking=None,
        thinking_budget=None,
        effort=None if conversation.effort == "none" else conversation.effort,
        include_usage=True,
        top_k=None if left_out & {"top_k", "generationConfig.topK"} else conversation.top_k,
        answer_format=answer and AnswerFormat(answer.schema),
        tools=[_comparable_tool(tool, conversation, left_out) for tool in conversation.tools],
        user=None if "user" in left_out or "metadata.user_id" in left_out else conversation.user,
        cache=None if "cache_control" in left_out else conversation.cache,
        tools_one_by_one=conversation.tools_one_by_one if conversation.tools and mode != "none" else None,
        tool_choice=None if mode == "auto" else conversation.choice,
    )


def _signs_what_follows(part: Part) -> bool:
    return isinstance(part, Reasoning) and not part.text and part.hidden is None


def _unsigned(part: Part) -> Part:
    return replace(part, signature=None) if isinstance(part, Text | ToolCall) else part


def _comparable(part: Part, left_out: frozenset[str]) -> Part:
    if "cache_control" in left_out and not isinstance(part, Reasoning | Refusal):
        part = replace(part, cache=None)
    if isinstance(part, ToolCall):
        return replace(part, arguments=json.dumps(json.loads(part.arguments), sort_keys=True))
    if isinstance(part, ToolResult) and "cache_control" in left_out:
        return replace(part, parts=[replace(inner, cache=None) for inner in part.parts])
    return part


def _comparable_tool(tool: Tool, conversation: Conversation, left_out: frozenset[str]) -> Tool:
    """Gemini has no strict tools but a mode of that name; calls that are forced keep to their schema."""
    if "cache_control" in left_out:
        tool = replace(tool, cache=None)
    if "gemini" not in left_out:
        return tool
    mode = conversation.tool_choice.mode if conversation.tool_choice else "auto"
    strict = mode == "auto" and any(one.strict for one in conversation.tools)
    return replace(tool, strict=strict or None)


def through(
    conversation: Conversation, name: str, left_out: set[str] | None = None, profile: Profile = COMPATIBLE
) -> Conversation:
    """The conversation as a provider of format ``name`` reads it; adds to ``left_out`` what is not said."""
    made = FORMATS[name]
    written = made.write_request(conversation, MODEL, MOST, profile)
    if left_out is not None:
        left_out |= {*written.left_out, name}
    read = made.read_request(written.body, drop_unknown=False)
    read.model, read.stream = MODEL, conversation.stream  # in Gemini's URL
    return read


@given(conversations(), st.sampled_from(PAIRS))
def test_there_and_back_loses_nothing_or_is_refused_by_name(
    conversation: Conversation, pair: tuple[str, str]
) -> None:
    ours, theirs = pair
    try:
        first = through(conversation, ours)
    except Untranslatable:
        return  # nobody can write that in this format
    named: set[str] = {ours}
    try:
        there = through(first, theirs, named)
    except Untranslatable as refusal:
        assert refusal.place  # noqa: PT017
        assert refusal.remedy  # noqa: PT017
        return
    # Gemini shows whoever wishes for effort the thoughts, too, and beside thoughts Anthropic takes no top_k.
    back = through(there, ours, named)
    left_out = frozenset(named)
    assert comparable(back, left_out) == comparable(first, left_out)


@given(conversations(), st.sampled_from(list(FORMATS)))
def test_what_a_format_writes_it_reads_again(conversation: Conversation, name: str) -> None:
    try:
        first = through(conversation, name)
    except Untranslatable:
        return
    again = through(first, name)
    assert again == first


def test_channels_offer_the_formats_that_there_are() -> None:
    assert set(channels.FORMATS) == set(FORMATS)
