"""A string at the top level of a JSON object is replaced, and no other byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats.top_level import replace_string

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["model", "a", 'm"']) | st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["model", "id", "choices"]), VALUES), st.sampled_from([None, 1]))
def test_only_the_string_at_the_top_changes(document: dict[str, Any], indent: int | None) -> None:
    written = json.dumps(document, indent=indent).encode()
    replaced = replace_string(written, "model", "mine")
    if isinstance(document.get("model"), str):
        assert json.loads(replaced) == document | {"model": "mine"}
    else:
        assert replaced == written


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            b'{"model":"a","x":[{"model":"b"}],"model" : "c"}',
            b'{"model":"mine","x":[{"model":"b"}],"model" : "mine"}',
        ),
        (b'{"x":"\\"model\\":\\"a\\"","model":"a"}', b'{"x":"\\"model\\":\\"a\\"","model":"mine"}'),
        (b'{"x":"model","model":5}', b'{"x":"model","model":5}'),
        (b'["model","a"]', b'["model","a"]'),
        (b'nonsense "model"', b'nonsense "model"'),
    ],
)
def test_what_looks_like_it(document: bytes, expected: bytes) -> None:
    assert replace_string(document, "model", "mine") == expected
