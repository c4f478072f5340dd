"""A conversation in no provider's words: what every format is read into, and written from.

A format module reads its requests, answers and events into these classes and writes them from these. So each
format knows this module and itself, and no format knows another.

Places: ``place`` is where a value stood in the customer's request, written as its API writes it, e.g.
``messages[3].content[1]``. A refusal names it. It is no part of a value: equality ignores it.

What is normal form, so that two formats' ways of saying one thing read alike:

- Texts at the begin with the role "system" are system turns, wherever the format keeps them. A system turn
  later in the conversation stays where it stood.
- Tool results are parts of user turns without a name, each naming its call.
- Neighbouring turns of one role are one turn (``merged``), except those with a participant's name. Neither an
  empty text nor a turn without parts says anything.
- A tool's arguments are the JSON text as the model wrote it.
- Usage is disjoint meters, as ``relay.pricing.usage.normalise`` gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
CacheLife = Literal["5m", "1h"]
NO_SUCH_FIELD = "the provider of this model has no such field; leave it out"
# Why an answer ended. "tool": it wants tools called; "pause": the provider wants to be called again with what
# it has said; "context": the model's context is full.
Stop = Literal["end", "length", "tool", "stop_sequence", "refusal", "pause", "context"]


class Untranslatable(Exception):
    """A format has no way to say something. ``place``: where it stands in the customer's request;
    ``remedy``: what to do, as the end of a sentence."""

    def __init__(self, place: str, remedy: str) -> None:
        super().__init__(f"{place}: {remedy}")
        self.place, self.remedy = place, remedy


@dataclass(slots=True)
class Text:
    """A text. ``cache``: the prompt up to here is to be cached that long. ``signature``: Gemini's."""

    text: str
    cache: CacheLife | None = None
    signature: str | None = None
    place: str = field(default="", compare=False)


@dataclass(slots=True)
class Image:
    """An image: ``data`` in base64 with its media type, or a ``url``. ``detail``: OpenAI's wish."""

    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    detail: str | None = None
    cache: CacheLife | None = None
    place: str = field(default="", compare=False)


@dataclass(slots=True)
class Reasoning:
    """What a model thought. ``signature`` proves it to the provider that made it; a signature without text is
    kept. ``hidden``: thoughts that only the provider can read, as it gave them (then there is no text)."""

    text: str = ""
    signature: str | None = None
    hidden: str | None = None
    place: str = field(default="", compare=False)


@dataclass(slots=True)
class ToolCall:
    """A call of a customer's tool. ``arguments``: JSON text of an object. ``signature``: Gemini's."""

    id: str
    name: str
    arguments: str
    signature: str | None = None
    cache: CacheLife | None = None
    place: str = field(default="", compare=False)


@dataclass(slots=True)
class ToolResult:
    """What a tool gave; ``parts`` may be empty. ``name``: the tool's, where the format tells it."""

    call_id: str
    parts: list[Text | Image] = field(default_factory=list)
    is_error: bool = False
    cache: CacheLife | None = None
    name: str | None = field(default=None, compare=False)
    place: str = field(default="", compare=False)


@dataclass(slots=True)
class Refusal:
    """The words with which a model refused, where its format tells them apart from text."""

    text: str
    place: str = field(default="", compare=False)


Part = Text | Image | Reasoning | ToolCall | ToolResult | Refusal


@dataclass(slots=True)
class Turn:
    """Who says what. ``name``: of the participant."""

    role: Role
    parts: list[Part]
    name: str | None = None
    place: str = field(default="", compare=False)


@dataclass(slots=True)
class Tool:
    """A tool that the customer runs. ``schema``: JSON Schema of its arguments, every keyword kept."""

    name: str
    description: str | None = None
    schema: Any = None
    strict: bool | None = None
    cache: CacheLife | None = None
    place: str = field(default="", compare=False)


@dataclass(slots=True)
class ToolChoice:
    """``mode``: auto, any (at least one), none, or tool: the one called ``name``."""

    mode: Literal["auto", "any", "none", "tool"]
    name: str | None = None


@dataclass(slots=True)
class AnswerFormat:
    """The answer's text is to be JSON: by ``schema``, or any object where that is None. ``name``,
    ``description`` and ``strict`` are OpenAI's labels of the schema."""

    schema: Any = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


@dataclass(slots=True)
class Conversation:
    """A request. What is None was not said.

    ``tools_one_by_one``: not several tools in one answer. ``effort``: how hard to think, an ordinal word such
    as low, medium or high; ``none`` for not at all. ``thinking``: a permission to think ("on" within
    ``thinking_budget`` tokens, or as the model sees fit) or "off"; it forces nothing, so a format without
    such a field leaves it out. ``candidates``: how many answers; events and answers here are of one, so more
    are refused between formats. ``include_usage``: whether a stream is to end with its usage, where the
    format asks that. ``user``: the customer's own name of who asks.

    ``places``: where a field of this class stood in the request, by the field's name, where that is called
    differently. ``left_out``: fields of the request that say nothing about the answer, which were understood
    and are not passed to providers of another format.
    """

    model: str
    turns: list[Turn]
    stream: bool = False
    include_usage: bool = False
    tools: list[Tool] = field(default_factory=list)
    tool_choice: ToolChoice | None = None
    tools_one_by_one: bool | None = None
    answer_format: AnswerFormat | None = None
    max_output: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: list[str] = field(default_factory=list)
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    candidates: int = 1
    effort: str | None = None
    thinking: Literal["on", "off"] | None = None
    thinking_budget: int | None = None
    user: str | None = None
    cache: CacheLife | None = None
    places: Mapping[str, str] = field(default_factory=dict, compare=False)
    left_out: list[str] = field(default_factory=list, compare=False)

    def place_of(self, name: str) -> str:
        """Where field ``name`` of this class stood in the customer's request."""
        return self.places.get(name, name)

    def without_top_k(self) -> list[str]:
        """What to name as left out by a writer whose model does not take it, since clients such as Gemini CLI
        send it with each request: it narrows the choice of words, and no answer is wrong without.
        """
        return [] if self.top_k is None else [self.place_of("top_k")]

    @property
    def choice(self) -> ToolChoice | None:
        """``tool_choice``, where there are tools to choose: without, APIs refuse even "none"."""
        unsaid = self.tool_choice is None or (not self.tools and self.tool_choice.mode in ("auto", "none"))
        return None if unsaid else self.tool_choice

    def refuse(self, *names: str, remedy: str = NO_SUCH_FIELD) -> None:
        """Raise Untranslatable for the first of these fields that was said."""
        for name in names:
            if getattr(self, name) is not None:
                raise Untranslatable(self.place_of(name), remedy)


@dataclass(slots=True)
class Answer:
    """A whole answer. ``meters``: usage as disjoint meters, None when the provider told none;
    ``reasoning_tokens``: how many of the output's tokens were thoughts, where it was told.
    ``stop_text``: the stop sequence that was met.
    """

    id: str
    model: str
    parts: list[Part]
    stop: Stop
    stop_text: str | None = None
    meters: Mapping[str, int] | None = None
    reasoning_tokens: int | None = None


# ---------------------------------------------------------------- events of a stream, in their order


@dataclass(slots=True)
class Begin:
    """The first event. ``meters``: what of the usage is known already."""

    id: str
    model: str
    meters: Mapping[str, int] | None = None


@dataclass(slots=True)
class TextDelta:
    """More text. ``signature``: of the text so far."""

    text: str
    signature: str | None = None


@dataclass(slots=True)
class ReasoningDelta:
    """More thoughts, or the signature of those so far, or ``hidden`` thoughts as a whole."""

    text: str = ""
    signature: str | None = None
    hidden: str | None = None


@dataclass(slots=True)
class RefusalDelta:
    """More words of a refusal."""

    text: str


@dataclass(slots=True)
class ToolBegin:
    """A tool call begins. ``index`` counts calls from 0 and names this one in what follows."""

    index: int
    id: str
    name: str
    signature: str | None = None


@dataclass(slots=True)
class ToolDelta:
    """More of a call's arguments; several calls' may alternate."""

    index: int
    arguments: str


@dataclass(slots=True)
class Usage:
    """Usage so far; a later one replaces an earlier one."""

    meters: Mapping[str, int]
    reasoning_tokens: int | None = None


@dataclass(slots=True)
class Stopped:
    """Nothing more is generated."""

    stop: Stop
    stop_text: str | None = None


@dataclass(slots=True)
class Ping:
    """A sign of life."""


@dataclass(slots=True)
class Failed:
    """An error in the place of what should have followed; ``error``: its value as it came, decoded."""

    error: Any


Event = (
    Begin
    | TextDelta
    | ReasoningDelta
    | RefusalDelta
    | ToolBegin
    | ToolDelta
    | Usage
    | Stopped
    | Ping
    | Failed
)


def with_thoughts_signed(parts: Iterable[Part], kinds: tuple[type[Text] | type[ToolCall], ...]) -> list[Part]:
    """The parts, where those of ``kinds`` have a signature with it as a thought of its own before them: for
    formats that sign thoughts alone."""
    made: list[Part] = []
    for part in parts:
        if isinstance(part, kinds) and part.signature is not None:
            made.append(Reasoning("", part.signature, place=part.place))
            part = replace(part, signature=None)
        made.append(part)
    return made


def without_blanks(parts: Iterable[Part]) -> list[Part]:
    """The parts without texts of white space alone; a mark of the prompt cache there moves to the part before
    it."""
    kept: list[Part] = []
    for part in parts:
        if isinstance(part, ToolResult):
            inner = without_blanks(part.parts)
            part = replace(part, parts=[one for one in inner if isinstance(one, Text | Image)])
        if not (isinstance(part, Text) and not part.text.strip()):
            kept.append(part)
        elif part.cache is not None and kept and not isinstance(kept[-1], Reasoning | Refusal):
            kept[-1] = replace(kept[-1], cache=kept[-1].cache or part.cache)
    return kept


def merged(turns: Iterable[Turn]) -> list[Turn]:
    """The turns that say something, with neighbours of one role (and without names) as one."""
    joined: list[Turn] = []
    for turn in turns:
        if not turn.parts:
            continue
        last = joined[-1] if joined else None
        if last is not None and last.role == turn.role and last.name is None and turn.name is None:
            last.parts.extend(turn.parts)
        else:
            joined.append(Turn(turn.role, list(turn.parts), turn.name, turn.place))
    return joined
