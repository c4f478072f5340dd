"""What every format offers to the program that serves it, and how events are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .answers import Answer, Prompt
from .cache import Cache
from .control import Control

JSON = dict[str, Any]
Usage = dict[str, Any] | None
Chunk = tuple[int, bytes]  # the tokens that it brings, and its bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came. ``path`` holds what the route leaves open, such as Gemini's model."""

    body: JSON
    headers: Mapping[bytes, bytes]
    query: Mapping[str, str]
    path: str = ""

    def header(self, name: bytes) -> str:
        """A header's value, or an empty text."""
        return self.headers.get(name, b"").decode("latin-1")


@dataclass(frozen=True, slots=True)
class Telling:
    """What a stream says of its usage. ``usage``: of so many tokens; ``at``: end, first or each.

    ``silent``: it says nothing.
    """

    usage: Callable[[int], JSON]
    at: str
    silent: bool

    def first(self) -> Usage:
        """The usage to tell with the first chunk."""
        return None if self.silent or self.at not in ("first", "each") else self.usage(0)

    def so_far(self, produced: int) -> Usage:
        """The usage to tell with a chunk in the middle."""
        return None if self.silent or self.at != "each" else self.usage(produced)

    def last(self, produced: int) -> Usage:
        """The usage to tell at the end."""
        return None if self.silent or self.at == "first" else self.usage(produced)


class Format(Protocol):
    """A way to ask for an answer. ``name`` stands in the books; ``usage_at``: where streams tell usage."""

    name: str
    usage_at: str
    stream_type: bytes
    ping: bytes

    def read(self, asked: Asked, *, lenient: bool) -> Prompt:
        """The request; raises BadRequest where the real API would refuse. ``lenient``: take more."""
        ...

    def remember(self, cache: Cache, answer: Answer) -> None:
        """Let the cache of prompts see it."""
        ...

    def usage(self, answer: Answer, produced: int) -> JSON:
        """The usage after ``produced`` tokens of the answer, in this format's shape."""
        ...

    def bill(self, usage: Mapping[str, Any]) -> JSON:
        """``usage`` as disjoint figures: input, cache_read, cache_write_5m, cache_write_1h, output."""
        ...

    def whole(self, name: str, answer: Answer, usage: Usage, control: Control) -> JSON:
        """The whole answer."""
        ...

    def chunks(self, name: str, answer: Answer, telling: Telling, control: Control) -> Iterator[Chunk]:
        """The stream up to, but without, its end."""
        ...

    def tail(self, name: str, answer: Answer, telling: Telling, control: Control) -> bytes:
        """The end of the stream."""
        ...

    def error(self, status: int, message: str, code: str | None = None, param: str | None = None) -> JSON:
        """The body of an error."""
        ...

    def error_event(self, error: JSON, *, first: bool) -> bytes:
        """An error in a stream; ``first``: nothing was sent before."""
        ...


def compact(payload: Any) -> bytes:
    """JSON without spaces."""
    return json.dumps(payload, separators=(",", ":")).encode()


def event(payload: JSON, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + compact(payload) + b"\n\n"


def figure(usage: Mapping[str, Any], *path: str) -> int:
    """A whole number within a usage object; 0 where there is none."""
    value: Any = usage
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def figures(*, whole_input: int, output: int, read: int = 0, written: int = 0, hour: int = 0) -> JSON:
    """A bill of which ``whole_input`` contains what was read from and written to the cache."""
    return {
        "input": whole_input - read - written - hour,
        "cache_read": read,
        "cache_write_5m": written,
        "cache_write_1h": hour,
        "output": output,
    }
