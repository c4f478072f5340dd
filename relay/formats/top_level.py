"""Replaces one string of a JSON object and leaves every other byte as it is."""

from __future__ import annotations

import re

import orjson

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(_STRING + rb"|[{}\[\]]", re.S)
_VALUE = re.compile(rb"\s*:\s*(" + _STRING + rb")", re.S)


def replace_string(document: bytes, name: str, value: str) -> bytes:
    """``document`` with the string at its top level that is called ``name`` replaced by ``value``.

    Unchanged where there is none, where it is no string, and where the document is not a JSON object.
    """
    wanted = f'"{name}"'.encode()
    if wanted not in document:
        return document
    depth = 0
    for token in _TOKEN.finditer(document):
        sign = token.group()
        if sign in b"{[":
            depth += 1
        elif sign in b"}]":
            depth -= 1
        elif depth == 1 and sign == wanted:
            found = _VALUE.match(document, token.end())
            if found is not None:
                return document[: found.start(1)] + orjson.dumps(value) + document[found.end(1) :]
    return document
