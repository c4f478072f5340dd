"""Reading decoded JSON for its translation.

What is of another type is refused by its place in a request, and passed over in a provider's answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from relay.formats.conversation import Untranslatable

Object = dict[str, Any]

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_TYPES: dict[type, str] = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}


def text(value: Any, place: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise Untranslatable(place, "expected a string")
    return value


def optional(value: Any, kind: type, place: str) -> Any:
    """A value of ``kind`` (str, bool, int or float), or None."""
    if value is None:
        return None
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    wanted = int | float if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise Untranslatable(place, f"expected {_TYPES[kind]}")
    return value


def mapping(value: Any, place: str) -> Object:
    """An object."""
    if not isinstance(value, dict):
        raise Untranslatable(place, "expected an object")
    return value


def items(value: Any, place: str) -> list[Any]:
    """A list; nothing where it is None."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise Untranslatable(place, "expected a list")
    return value


def only(value: Mapping[str, Any], known: Iterable[str], place: str) -> None:
    """Refuse the first field of an object that is not among ``known`` and not null."""
    for name in value.keys() - set(known):
        if value[name] is not None:
            where = f"{place}.{name}" if place else name
            raise Untranslatable(where, "the provider of this model has no such field; leave it out")


def one_of(value: Any, allowed: tuple[str, ...], place: str) -> str:
    """One of these strings."""
    if value not in allowed:
        raise Untranslatable(place, f"use one of {', '.join(allowed)}")
    return str(value)


def compact(value: Any) -> str:
    """JSON text of a decoded value; numbers of any size keep their value."""
    return _compact(value)


def encoded(value: Any) -> bytes:
    """JSON of a decoded value. Halves of surrogate pairs stay: a stream may send them one by one."""
    try:
        return compact(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


# Under this name a model's arguments travel that are no JSON object, where a format wants one. Anthropic
# documents it for that: https://platform.claude.com/docs/en/agents-and-tools/tool-use/fine-grained-tool-streaming
INVALID = "INVALID_JSON"


def arguments_object(arguments: str) -> Object:
    """A tool's arguments as an object."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {INVALID: arguments}


def arguments_text(value: Object) -> str:
    """A tool's arguments as a model wrote them."""
    if list(value) == [INVALID] and isinstance(value[INVALID], str):
        return str(value[INVALID])
    return compact(value)


def is_json(text: str) -> bool:
    """Whether a text is whole JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# What begins and ends texts, objects and lists.
_MARK = re.compile(r'["\\{}\[\]]')
_BLANK = " \t\n\r"
_LONGEST_WORD = 40  # of numbers, true, false and null, which nothing ends


class Arguments:
    """A call's arguments that come in pieces. Whether they are whole is asked at many of them, so no piece is
    read twice."""

    __slots__ = ("_depth", "_ended", "_escaped", "_in_text", "_pieces", "_whole")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._depth = 0
        self._in_text = self._escaped = self._ended = False
        self._whole: bool | None = None

    def __bool__(self) -> bool:
        return bool(self._pieces)

    @property
    def text(self) -> str:
        """All pieces."""
        self._pieces = ["".join(self._pieces)] if self._pieces else []
        return "".join(self._pieces)

    def add(self, piece: str) -> None:
        """The next piece."""
        if not piece:
            return
        self._pieces.append(piece)
        if not self._ended:
            piece = piece[self._read(piece) :]
        if self._ended and piece.strip(_BLANK):
            self._whole = False  # more than one value

    def _read(self, piece: str) -> int:
        """Follow a piece to where the value ends, or to its own end: where that is."""
        at, self._escaped = int(self._escaped), False
        while (mark := _MARK.search(piece, at)) is not None:
            at = mark.end()
            if mark[0] == '"':
                self._in_text = not self._in_text
            elif self._in_text:
                at += mark[0] == "\\"  # what follows is no mark
            elif mark[0] != "\\":
                self._depth += 1 if mark[0] in "{[" else -1
            if self._depth <= 0 and not self._in_text:
                self._ended = True
                return at
        self._escaped = at > len(piece)
        return len(piece)

    @property
    def whole(self) -> bool:
        """Whether they are whole JSON."""
        if self._ended and self._whole is None:
            self._whole = is_json(self.text)
        if self._ended:
            return bool(self._whole)
        return len(self._pieces) <= _LONGEST_WORD and len(self.text) <= _LONGEST_WORD and is_json(self.text)


def arguments_given(value: Any) -> str:
    """What a model called a tool with, as JSON text; nothing where it is none. Formats have a text or an
    object there, and some who follow them have the other."""
    return arguments_text(value) if isinstance(value, dict) else string(value)


def answer_name(given: Any, answer: Object) -> str:
    """An answer's name, or one of what it says, or of its first event: calls without one are named by it."""
    return string(given) or hashlib.sha256(encoded(answer)).hexdigest()[:16]


class CallNames:
    """Names of calls, each another one: some providers give none, or the same to several. ``answer``: the
    name of the answer they are in."""

    def __init__(self, answer: str = "") -> None:
        self._answer = answer
        self._taken: set[str] = set()

    def name(self, given: str) -> str:
        """The next call's name, by the one that its provider gave it."""
        number = len(self._taken)
        name = given or f"call_{self._answer}_{number}"
        while name in self._taken:
            name = f"{name}_{number}"
        self._taken.add(name)
        return name


def image_type(media_type: str) -> str:
    """An image's type by its registered name: Anthropic's API takes no other."""
    given = media_type.lower()
    return "image/jpeg" if given == "image/jpg" else given


def object_schema(schema: Any) -> Any:
    """The schema of a tool's arguments, with what OpenAI's and Anthropic's APIs want to read in it though it
    says nothing: that an object is an object, and that it may have properties."""
    if not isinstance(schema, dict):
        return schema
    made = schema if "type" in schema else {"type": "object"} | schema
    return made if made["type"] != "object" or "properties" in made else made | {"properties": {}}


def string(value: Any) -> str:
    """What a provider sent, or nothing where that is no string."""
    return value if isinstance(value, str) else ""


def object_of(value: Any) -> Object:
    """What a provider sent, or nothing where that is no object."""
    return value if isinstance(value, dict) else {}


def list_of(value: Any) -> list[Any]:
    """What a provider sent, or nothing where that is no list."""
    return value if isinstance(value, list) else []


def number(value: Any, default: int = 0) -> int:
    """A whole number that a provider sent, or ``default``."""
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def life(mark: Any, place: str) -> Literal["5m", "1h"] | None:
    """How long a mark of a prompt cache, Anthropic's ``cache_control``, lasts."""
    if mark is None:
        return None
    mark = mapping(mark, place)
    if mark.get("type") != "ephemeral" or mark.get("ttl") not in (None, "5m", "1h"):
        raise Untranslatable(place, "use type ephemeral, with a ttl of 5m or 1h")
    return "1h" if mark.get("ttl") == "1h" else "5m"


def mark(cache: str | None) -> Object:
    """Fields that mark a part for the prompt cache."""
    if cache is None:
        return {}
    return {"cache_control": {"type": "ephemeral"} | ({"ttl": "1h"} if cache == "1h" else {})}
