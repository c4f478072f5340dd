"""Replaces strings of a JSON object and leaves every other byte as it is."""

from __future__ import annotations

import re

import orjson

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(_STRING + rb"|[{}\[\]]", re.S)
_VALUE = re.compile(rb"\s*:\s*(" + _STRING + rb")", re.S)


def replace_string(document: bytes, name: str, value: str, depth: int = 1) -> bytes:
    """``document`` with the strings that are called ``name`` replaced by ``value``: those at its
    top level, or of the objects in it at ``depth`` 2.

    Unchanged where there is none, where it is no string, and where the document is not a JSON object.
    """
    wanted = f'"{name}"'.encode()
    left = document.count(wanted)
    pieces: list[bytes] = []
    level = done = 0
    for token in _TOKEN.finditer(document) if left else ():
        sign = token.group()
        if sign in b"{[":
            level += 1
        elif sign in b"}]":
            level -= 1
        elif sign == wanted:
            left -= 1
            found = _VALUE.match(document, token.end()) if level == depth else None
            if found is not None:
                pieces += document[done : found.start(1)], orjson.dumps(value)
                done = found.end(1)
            if not left:
                break
    return b"".join([*pieces, document[done:]]) if pieces else document
