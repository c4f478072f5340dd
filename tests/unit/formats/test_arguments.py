"""Arguments of calls in pieces: when they are whole, and what it costs to know that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats.conversation import TextDelta, ToolBegin, ToolDelta
from relay.formats.format import Shown
from relay.formats.reading import Arguments, is_json
from relay.formats.registry import FORMATS

PIECES, LONGEST_WORD = 1_000, 40
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.text('"\\{}[] ué\n', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\}', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
TEXTS = VALUES.map(json.dumps) | st.text('{}[]"\\:, 1a\n', max_size=12)


@given(TEXTS, st.sampled_from(["", " \n", "}", "1", "{}", '"']), st.lists(st.integers(0, 60), max_size=6))
def test_arguments_are_whole_where_they_are_json(text: str, more: str, cuts: list[int]) -> None:
    said = text + more
    edges = [0, *sorted(min(cut, len(said)) for cut in cuts), len(said)]
    made = Arguments()
    for begin, end in pairwise(edges):
        made.add(said[begin:end])
        if end <= LONGEST_WORD or said[0] in '{["':  # a longer word or number is taken for none
            assert made.whole == is_json(said[:end]), said[:end]
        assert bool(made) == bool(end)
    assert made.text == said


def pieces_with_names() -> Iterator[Any]:
    """As older vLLM and gateways send them: each with an id of its own, and the name again."""
    for number in range(PIECES):
        function = {"name": "write", "arguments": "word" if number else '{"text": "'}
        call = {"index": 0, "id": f"call_{number}", "function": function}
        yield {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}


def decode_pieces() -> int:
    """Bytes that were read."""
    decoder, size = FORMATS["openai"].decoder(), 0
    for chunk in pieces_with_names():
        event = f"data: {json.dumps(chunk)}\n\n".encode()
        list(decoder.feed(event))
        size += len(event)
    return size


def encode_between(theirs: str, other: Callable[[int], Any]) -> int:
    """``other``: what comes after each piece."""
    encoder = FORMATS[theirs].encoder(Shown("m", True, 0))
    encoder.write(ToolBegin(0, "call", "write"))
    encoder.write(ToolDelta(0, '{"text": "'))
    for number in range(PIECES):
        encoder.write(ToolDelta(0, "word"))
        encoder.write(other(number + 1))
    return 4 * PIECES


COSTS: dict[str, Callable[[], int]] = {"pieces with names": decode_pieces} | {
    f"{theirs}, {kind}": lambda theirs=theirs, other=other: encode_between(theirs, other)
    for theirs in FORMATS
    for kind, other in (
        ("texts between", lambda _: TextDelta("x")),
        ("calls between", lambda number: ToolBegin(number, f"call_{number}", "write")),
    )
}


@pytest.mark.parametrize("case", COSTS)
def test_arguments_are_not_read_again_at_each_piece(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    read = 0
    loads = json.loads

    def counting(text: str, **options: Any) -> Any:
        nonlocal read
        read += len(text)
        return loads(text, **options)

    monkeypatch.setattr(json, "loads", counting)
    assert COSTS[case]() >= read / 2


def said_in_pieces(ours: str, *pieces: Any) -> list[Any]:
    """What customers get as arguments of the calls that come in these pieces."""
    decoder, encoder = FORMATS["openai"].decoder(), FORMATS[ours].encoder(Shown("m", True, 0))
    end = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    chunks = [{"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [one]}}]} for one in pieces]
    told = b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in [*chunks, end])
    written = b"".join(map(encoder.write, decoder.feed(told))) + encoder.finish()
    answered = FORMATS[ours].decoder().feed(written)
    calls: dict[int, str] = {}
    for event in answered:
        if isinstance(event, ToolBegin | ToolDelta):
            calls[event.index] = calls.get(event.index, "") + getattr(event, "arguments", "")
    return [json.loads(said or "{}") for said in calls.values()]


def piece(id: str | None, name: str | None, arguments: Any) -> Any:
    return {"index": 0, "id": id, "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize("ours", FORMATS)
def test_an_object_without_arguments_is_none_yet(ours: str) -> None:
    begun = piece("a", "look", {})
    assert said_in_pieces(ours, begun) == [{}]
    for more in (piece(None, None, '{"at":1}'), piece("a", "look", '{"at":1}'), piece(None, None, {"at": 1})):
        assert said_in_pieces(ours, begun, more) == [{"at": 1}]
    assert said_in_pieces(ours, begun, piece("b", "look", {})) == [{}, {}]
    assert said_in_pieces(ours, piece(None, "look", {}), piece(None, "look", {"at": 1})) == [{}, {"at": 1}]
