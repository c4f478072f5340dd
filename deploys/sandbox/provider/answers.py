"""What the fake model says: the same request always gets the same words and the same usage, in any format."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .checking import BadRequest
from .control import Control

TEXT = "all the fee has now got due and you can see how one was set for him"
WORDS = TEXT.split()  # three letters and a space make a token of four characters
MODELS = ("fake-small", "fake-large", "gpt-4o", "gpt-4o-mini", "claude-fake", "gemini-fake", "gemini-3-fake")
REFUSAL = "I'm sorry, but I can't help with that."
TOKENS_A_MESSAGE = 4
TOKENS_AN_IMAGE = 85
CHARACTERS_A_TOKEN = 4
AUTO, NONE, MUST = "auto", "none", "must"


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the request offers. ``free``: it takes a text instead of JSON."""

    name: str
    schema: Any = None
    free: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of the prompt. ``cache``: the seconds for which a marker asks to keep the prompt up to here."""

    text: str
    tokens: int
    cache: int = 0


@dataclass(slots=True)
class Prompt:
    """A request in no format's words.

    ``last``: the texts of the last message, which may order something and name tools; ``answers_tools``: the
    last message is a tool's result. ``choice``: AUTO, NONE, MUST or a tool's name. ``limit``: the most tokens
    of the answer. ``schema``: the text is to be JSON of this schema. ``facts``: what only its format knows.
    """

    model: str
    blocks: list[Block]
    last: list[str]
    stream: bool = False
    answers_tools: bool = False
    limit: int | None = None
    stop: list[str] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    choice: str = AUTO
    parallel: bool = True
    schema: Any = None
    reasons: bool = False
    n: int = 1
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return sum(block.tokens for block in self.blocks)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; ``arguments`` is JSON, or any text where the tool is ``free``."""

    id: str
    name: str
    arguments: str
    free: bool = False

    @property
    def tokens(self) -> int:
        """What it costs to say."""
        return count(self.name + self.arguments)


@dataclass(slots=True)
class Answer:
    """A whole answer, the same for each of ``n`` choices. ``thoughts`` and ``words`` are one token each.

    ``finish``: stop, length, sequence (``stopped_by``), tools, refusal or blocked. ``cached``, ``written_5m``
    and ``written_1h``: tokens of the prompt that came from the cache or went into it.
    """

    prompt: Prompt
    thoughts: list[str]
    words: list[str]
    calls: list[ToolCall]
    finish: str
    stopped_by: str | None = None
    cached: int = 0
    written_5m: int = 0
    written_1h: int = 0

    @property
    def produced(self) -> int:
        """The tokens of the whole answer."""
        each = len(self.thoughts) + len(self.words) + sum(call.tokens for call in self.calls)
        return each * self.prompt.n

    @property
    def text(self) -> str:
        """Its text."""
        return "".join(self.words)

    @property
    def thought(self) -> str:
        """Its thoughts."""
        return "".join(self.thoughts)


def count(text: str) -> int:
    """The tokens of a text."""
    return -(-len(text) // CHARACTERS_A_TOKEN)


def tokens_of(text: str) -> list[str]:
    """A text in tokens."""
    return [text[start : start + CHARACTERS_A_TOKEN] for start in range(0, len(text), CHARACTERS_A_TOKEN)]


def last_turn(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last message but for the instructions after it, as Claude Code sends them."""
    turns = [one for one in messages if one.get("role") not in ("system", "developer")]
    return turns[-1] if turns else messages[-1]


def message(text: str, images: int = 0, cache: int = 0) -> Block:
    """A message as a piece of the prompt."""
    return Block(text, TOKENS_A_MESSAGE + count(text) + images * TOKENS_AN_IMAGE, cache)


def extra(value: Any, cache: int = 0) -> Block:
    """Something else that costs tokens, such as a tool's declaration."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return Block(text, count(text), cache)


def compose(prompt: Prompt, control: Control) -> Answer:
    """What the model answers; raises BadRequest where an order cannot be followed."""
    seed = zlib.crc32("\n".join(block.text for block in prompt.blocks).encode())
    if control.refusal or control.blocked:
        words = tokens_of(REFUSAL) if control.refusal else []
        return Answer(prompt, [], words, [], "refusal" if control.refusal else "blocked")
    thinks = prompt.reasons if control.reasoning is None else control.reasoning
    thoughts = [WORDS[-1 - index % len(WORDS)] + " " for index in range(6 + seed % 5)] if thinks else []
    calls = called(prompt, control)
    words, finish, stopped_by = spoken(prompt, control, seed, bool(calls))
    answer = Answer(prompt, thoughts, words, calls, finish, stopped_by)
    return answer if prompt.limit is None else shortened(answer, prompt.limit)


def spoken(prompt: Prompt, control: Control, seed: int, calls: bool) -> tuple[list[str], str, str | None]:
    """Its words, why it ends, and the sequence that stopped it."""
    if control.text:
        words = tokens_of(control.text)
    elif calls:
        words = [WORDS[index] + " " for index in range(control.completion_tokens)]
    elif prompt.schema is not None and not control.completion_tokens:
        words = tokens_of(json.dumps(example(prompt.schema)))
    else:
        length = control.completion_tokens or 8 + seed % 25
        words = [WORDS[index % len(WORDS)] + " " for index in range(length)]
    text = "".join(words)
    met = min((stop for stop in prompt.stop if stop in text), key=text.index, default=None)
    if met is None:
        return words, "tools" if calls else "stop", None
    return tokens_of(text[: text.index(met)]), "sequence", met


def shortened(answer: Answer, limit: int) -> Answer:
    """The answer within ``limit`` tokens: first thoughts, then words, then calls, none of them in half."""
    left = limit - len(answer.thoughts)
    if left < 0:
        return Answer(answer.prompt, answer.thoughts[:limit], [], [], "length")
    if len(answer.words) > left:
        return Answer(answer.prompt, answer.thoughts, answer.words[:left], [], "length")
    left -= len(answer.words)
    for index, call in enumerate(answer.calls):
        left -= call.tokens
        if left < 0:
            return Answer(answer.prompt, answer.thoughts, answer.words, answer.calls[:index], "length")
    return answer


def called(prompt: Prompt, control: Control) -> list[ToolCall]:
    """The tools it calls. Left alone it calls those that the last message names, and none after results."""
    if control.calls is not None:
        return [ordered(prompt, call) for call in control.calls]
    named = [tool for tool in prompt.tools if tool.name == prompt.choice]
    if not prompt.tools or prompt.choice == NONE or control.tool_calls == 0:
        return []
    if prompt.choice not in (AUTO, MUST) and not named:
        raise BadRequest(f"tool_choice: there is no tool '{prompt.choice}'", param="tool_choice")
    asked = "\n".join(prompt.last)
    wanted = named or [tool for tool in prompt.tools if tool.name in asked]
    if prompt.answers_tools and prompt.choice == AUTO:
        wanted = []
    if not wanted and prompt.choice == MUST:
        wanted = prompt.tools[:1]
    if control.tool_calls > 0:
        wanted = [
            (wanted or prompt.tools)[i % len(wanted or prompt.tools)] for i in range(control.tool_calls)
        ]
    return [made(tool) for tool in (wanted if prompt.parallel else wanted[:1])]


def ordered(prompt: Prompt, call: dict[str, Any]) -> ToolCall:
    """A call that the control orders."""
    free = any(tool.free for tool in prompt.tools if tool.name == call.get("name"))
    arguments = call.get("arguments", {})
    spelled = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return ToolCall(random_id(24), str(call["name"]), spelled, free)


def made(tool: Tool) -> ToolCall:
    """A call with arguments that its schema allows."""
    spelled = TEXT[:31] if tool.free else json.dumps(example(tool.schema or {"type": "object"}))
    return ToolCall(random_id(24), tool.name, spelled, tool.free)


def random_id(digits: int) -> str:
    """A name for something that is made now."""
    return f"{random.getrandbits(4 * digits):0{digits}x}"


def example(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """A value that a JSON schema allows; every property is given, so that arguments are worth losing."""
    root = schema if root is None else root
    if not isinstance(schema, dict) or depth > 20:
        return None
    if "$ref" in schema:
        found: Any = root
        for name in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found.get(name, {}) if isinstance(found, dict) else {}
        return example(found, root, depth + 1)
    for name in ("const", "default", "example"):
        if name in schema:
            return schema[name]
    if schema.get("enum"):
        return schema["enum"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return example(schema[name][0], root, depth + 1)
    return example_of_type(schema, root, depth)


def example_of_type(schema: dict[str, Any], root: Any, depth: int) -> Any:
    """A value of the schema's type."""
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = str(kind[0] if isinstance(kind, list) and kind else kind).lower()
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: example(inner, root, depth + 1) for name, inner in properties.items()}
    if kind == "array":
        least = max(int(schema.get("minItems") or 0), 2)
        return [example(schema.get("items") or {}, root, depth + 1) for _ in range(least)]
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("maximum", 7))
    if kind == "string":
        text = (TEXT + " ") * (1 + int(schema.get("minLength") or 0) // len(TEXT))
        return text[: max(11, int(schema.get("minLength") or 0))][: schema.get("maxLength")]
    return {"boolean": True}.get(kind)


def signature(kind: str, text: str) -> str:
    """The proof that the model of API ``kind`` said ``text``; a history with another one is refused."""
    return base64.b64encode(hashlib.sha256(f"{kind}\n{text}".encode()).digest()).decode()
